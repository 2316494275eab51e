//! `config check` and `config show`

use std::path::PathBuf;

use muster_config::{Loaded, Secrets};
use muster_service::exit::{BAD_CONFIG, DONE, Exit};

use crate::{
    cli::{ConfigFile, OutputFormat},
    context::Context,
    output::{self, say},
};

pub(crate) fn check(context: &Context, arguments: &ConfigFile) -> anyhow::Result<u8> {
    let loaded = load(context, arguments)?;
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
    let file: Option<PathBuf> = arguments.file.as_deref().map(|file| context.here.join(file));
    let loaded = muster_config::load(&context.home, file.as_deref());
    loaded.map_err(|faults| Exit::new(BAD_CONFIG, faults.to_string()).into())
}
