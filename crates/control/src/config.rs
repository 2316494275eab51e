//! `config check` and `config show`

use muster_config::{Loaded, Secrets};
use muster_service::exit::DONE;

use crate::{
    cli::{ConfigFile, OutputFormat},
    context::Context,
    output::{self, say},
};

pub(crate) fn check(context: &Context, arguments: &ConfigFile) -> anyhow::Result<u8> {
    let mut loaded = load(context, arguments)?;
    let on_disk = muster_config::look_on_disk(&context.home);
    loaded.warnings.extend(muster_config::check(&loaded.settings, on_disk));
    for warning in &loaded.warnings {
        say(warning.to_string());
    }
    say(match loaded.warnings.len() {
        0 => "the configuration is good".to_owned(),
        1 => "the configuration is usable, with 1 warning".to_owned(),
        count => format!("the configuration is usable, with {count} warnings"),
    });
    Ok(DONE)
}

pub(crate) fn show(context: &Context, arguments: &ConfigFile) -> anyhow::Result<u8> {
    let settings = load(context, arguments)?.settings;
    match context.output {
        OutputFormat::Json => output::json(&settings)?,
        OutputFormat::Text => output::line(muster_config::show(&settings, Secrets::Masked).trim_end())?,
    }
    Ok(DONE)
}

fn load(context: &Context, arguments: &ConfigFile) -> anyhow::Result<Loaded> {
    let file = arguments.file.as_deref().map(|file| context.here.join(file));
    context.load(file.as_deref())
}
