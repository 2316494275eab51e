//! From files to settings.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use muster_proto::paths;

use crate::{
    Settings,
    diagnostic::{Diagnostic, Diagnostics, Severity},
    internal,
    limits::MAX_FILE_LEN,
    reader::{HomeKind, Reader},
    source::{Report, Source},
    suggest, xml,
};

/// A second configuration file, read after `ossec.conf` if it is there. Stock daemons refuse a file with a block that
/// they do not know, such as `<nats>`: in a home that they still share, our blocks go here.
pub const OWN_CONFIG: &str = "etc/muster.conf";

/// The root element of a manager's configuration.
const ROOT: &str = "ossec_config";
/// The root element of what agents are sent.
const AGENT_ROOT: &str = "agent_config";

/// A configuration that may be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What it means.
    pub settings: Settings,
    /// What is worth a look.
    pub warnings: Vec<Diagnostic>,
}

/// The bytes of one file.
#[derive(Clone, Debug)]
pub struct Input {
    /// The name that diagnostics give it.
    pub path: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Everything that a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// `ossec.conf`, then [`OWN_CONFIG`].
    pub config: Vec<Input>,
    /// `local_internal_options.conf`, then `internal_options.conf`: the first that has an option decides.
    pub internal: Vec<Input>,
    /// What the home looks like.
    pub home: HomeKind,
}

/// Reads the configuration of a home: `file`, or `etc/ossec.conf` below the home; then `etc/muster.conf` if it is
/// there, and the internal options.
///
/// # Errors
/// Everything that is wrong with it, all at once, each with its place.
pub fn load(home: &Path, file: Option<&Path>) -> Result<Loaded, Diagnostics> {
    let mut problems = Report::default();
    let config = file.map_or_else(|| home.join(paths::CONFIG), Path::to_path_buf);
    let mut inputs = Inputs {
        home: home_kind(home),
        ..Inputs::default()
    };
    match read_file(&config) {
        Ok(input) => inputs.config.push(input),
        Err(error) => {
            let cure = match error.kind() {
                io::ErrorKind::NotFound => "; `muster-control init` makes a home with one",
                io::ErrorKind::PermissionDenied => "; the daemon's user must be able to read it",
                _ => "",
            };
            problems.file(
                Severity::Error,
                &config.display().to_string(),
                &format!("cannot read: {error}{cure}"),
            );
        }
    }
    let optional = [
        (home.join(OWN_CONFIG), &mut inputs.config),
        (home.join(paths::LOCAL_INTERNAL_OPTIONS), &mut inputs.internal),
    ];
    for (path, list) in optional {
        read_optional(&path, list, &mut problems);
    }
    read_optional(&home.join(paths::INTERNAL_OPTIONS), &mut inputs.internal, &mut problems);
    parse_into(&inputs, problems)
}

/// Reads a configuration from bytes. Nothing else is looked at.
///
/// # Errors
/// Everything that is wrong with it, all at once, each with its place.
pub fn parse(inputs: &Inputs) -> Result<Loaded, Diagnostics> {
    parse_into(inputs, Report::default())
}

/// Reads one `ossec.conf` from a text, with every internal option at its default.
///
/// # Errors
/// Everything that is wrong with it, all at once, each with its place.
pub fn parse_text(text: &str) -> Result<Loaded, Diagnostics> {
    let input = Input {
        path: paths::CONFIG.to_owned(),
        bytes: text.as_bytes().to_vec(),
    };
    parse(&Inputs {
        config: vec![input],
        ..Inputs::default()
    })
}

/// Whose home it is, by what only one of the two has. In an OSSEC home our daemons make `queue/sockets` and `queue/db`
/// of their own, so that these alone tell nothing; a Wazuh home may have an old `queue/ossec`.
pub fn home_kind(home: &Path) -> HomeKind {
    let has = |path: &str| home.join(path).exists();
    let is_wazuh = has("queue/db/global.db") || (has("queue/sockets") && !has("queue/agent-info"));
    if has("queue/ossec") && !is_wazuh {
        HomeKind::Ossec
    } else {
        HomeKind::Wazuh
    }
}

fn read_file(path: &Path) -> io::Result<Input> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes)?;
    Ok(Input {
        path: path.display().to_string(),
        bytes,
    })
}

fn read_optional(path: &Path, list: &mut Vec<Input>, problems: &mut Report) {
    match read_file(path) {
        Ok(input) => list.push(input),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            problems.file(
                Severity::Error,
                &path.display().to_string(),
                &format!("cannot read: {error}"),
            );
        }
    }
}

fn parse_into(inputs: &Inputs, mut report: Report) -> Result<Loaded, Diagnostics> {
    let config = sources(&inputs.config, &mut report);
    let trees: Vec<_> = config.iter().map(|source| xml::parse(source, &mut report)).collect();
    let mut roots = Vec::new();
    for element in trees.iter().flatten() {
        match element.name.as_str() {
            ROOT => roots.push(element),
            AGENT_ROOT => {
                let message =
                    "<agent_config> is for agents and belongs in etc/shared/<group>/agent.conf; it is ignored";
                report.warning(element.source, element.name_span, message);
            }
            name => {
                let cure = match suggest::nearest(name, [ROOT]) {
                    Some(meant) => format!("did you mean <{meant}>?"),
                    None => format!("put it into <{ROOT}>"),
                };
                let message = format!("<{name}> is no root of a configuration and is ignored; {cure}");
                report.warning(element.source, element.name_span, &message);
            }
        }
    }
    if let (true, Some(input)) = (roots.is_empty() && !report.has_errors(), inputs.config.first()) {
        report.file(
            Severity::Warning,
            &input.path,
            &format!("there is no <{ROOT}> in it: every option has its default"),
        );
    }
    let mut settings: Settings = Reader::read(roots, inputs.home, &mut report);
    let internal = sources(&inputs.internal, &mut report);
    settings.internal = internal::read(&internal, &mut report);

    if report.has_errors() {
        return Err(Diagnostics(report.finish()));
    }
    Ok(Loaded {
        settings,
        warnings: report.finish(),
    })
}

/// The files that are worth reading.
fn sources(inputs: &[Input], report: &mut Report) -> Vec<Source> {
    let mut sources = Vec::new();
    for input in inputs {
        let size = u64::try_from(input.bytes.len()).unwrap_or(u64::MAX);
        if size > MAX_FILE_LEN {
            let message = format!("is larger than {} MiB; is it a configuration?", MAX_FILE_LEN >> 20);
            report.file(Severity::Error, &input.path, &message);
        } else if input.bytes.starts_with(b"\xff\xfe") || input.bytes.starts_with(b"\xfe\xff") {
            report.file(Severity::Error, &input.path, "is UTF-16; save it as UTF-8");
        } else {
            sources.push(Source::new(&input.path, &input.bytes));
        }
    }
    sources
}
