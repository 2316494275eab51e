//! The arguments that every daemon has, and what the name it was started under means.

#![allow(rustdoc::invalid_html_tags, reason = "doc comments are help texts for a terminal")]

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

use crate::exit::{Exit, FAILED};

/// Where a packaged installation lives.
pub const DEFAULT_HOME: &str = "/var/lib/muster";
/// The environment variable that moves the home.
pub const HOME_VARIABLE: &str = "MUSTER_HOME";

/// Arguments of every daemon. Flatten it into the daemon's own `Cli`.
#[derive(Args, Clone, Debug, Default)]
pub struct Common {
    /// the directory that everything lies in
    ///
    /// Default: $MUSTER_HOME, else /var/lib/muster. A daemon started as <home>/bin/wazuh-… or <home>/bin/ossec-…
    /// takes that home.
    #[arg(long, short = 'D', value_name = "DIR")]
    pub home: Option<PathBuf>,

    /// the configuration file, relative to the home [default: etc/ossec.conf]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// check the configuration and end: 0 if it is good, 78 if not
    #[arg(long, short)]
    pub test_config: bool,

    /// stay in the foreground
    ///
    /// The daemon always does, unless it was started under a stock name.
    #[arg(long, short)]
    pub foreground: bool,

    /// say more; twice for everything
    #[arg(short, action = clap::ArgAction::Count)]
    pub debug: u8,

    /// the user to become when started as root [default: muster-<daemon>, else the owner of the home]
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,

    /// the group to become when started as root [default: muster, else the user's own]
    #[arg(long, short, value_name = "GROUP")]
    pub group: Option<String>,

    /// how log lines look
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// write the log to a file, opened anew on SIGHUP [default: logs/<daemon>.log below the home]
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub log_file: Option<Option<PathBuf>>,

    /// do not restrict file access with landlock
    #[arg(long)]
    pub no_sandbox: bool,

    /// lead a new session and say `ready` on standard output once serving; for whoever starts daemons
    #[arg(long, hide = true)]
    pub detached: bool,

    /// end when the process that started this one does; for whoever supervises daemons
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What the name that a program was started under says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The name for pid files and messages: `muster-remoted`, or `wazuh-remoted` when started as that.
    pub name: String,
    /// The home that a stock name implies.
    pub stock_home: Option<PathBuf>,
}

impl Program {
    /// Judges `argv[0]`. A daemon that stands in for a stock one is a link or copy under that name in `<home>/bin`.
    pub fn of(argv0: &OsStr, daemon: &str) -> Self {
        let path = Path::new(argv0);
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if !name.starts_with("wazuh-") && !name.starts_with("ossec-") {
            return Self {
                name: format!("muster-{daemon}"),
                stock_home: None,
            };
        }
        // The directory is resolved, the file is not: it may be a link to where the package put the program.
        let stock_home = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .and_then(|parent| parent.canonicalize().ok())
            .filter(|parent| parent.file_name() == Some(OsStr::new("bin")))
            .and_then(|parent| parent.parent().map(Path::to_owned));
        Self {
            name: name.to_owned(),
            stock_home,
        }
    }

    /// Whether it stands in for a stock program, with that program's manners.
    pub fn is_stock(&self) -> bool {
        self.stock_home.is_some()
    }
}

/// The home, without links: what `--home` says, else what a stock name implies, else `$MUSTER_HOME`, else the default.
pub fn home(argument: Option<&Path>, stock_home: Option<&Path>, variable: Option<OsString>) -> Result<PathBuf, Exit> {
    let variable = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    let (path, origin) = match (argument, stock_home, &variable) {
        (Some(path), ..) => (path, "given with --home"),
        (None, Some(path), _) => (path, "implied by the program's place"),
        (None, None, Some(path)) => (path.as_path(), "given in $MUSTER_HOME"),
        (None, None, None) => (
            Path::new(DEFAULT_HOME),
            "the default; --home or $MUSTER_HOME names another",
        ),
    };
    let unusable = |why: &dyn std::fmt::Display| {
        Exit::new(
            FAILED,
            format!("cannot use the home {} ({origin}): {why}", path.display()),
        )
    };
    let canonical = path.canonicalize().map_err(|error| unusable(&error))?;
    if !canonical.is_dir() {
        return Err(unusable(&"it is not a directory"));
    }
    Ok(canonical)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        common: Common,
    }

    #[test]
    fn stock_name_in_a_bin_directory_implies_the_home() {
        let home = tempfile::tempdir().expect("directory");
        let root = home.path().canonicalize().expect("canonical");
        std::fs::create_dir(root.join("bin")).expect("created");
        let program = Program::of(root.join("bin/wazuh-remoted").as_os_str(), "remoted");
        assert_eq!(
            program,
            Program {
                name: "wazuh-remoted".to_owned(),
                stock_home: Some(root.clone())
            }
        );
        let program = Program::of(root.join("wazuh-remoted").as_os_str(), "remoted");
        assert_eq!(program.stock_home, None, "not in a bin directory");
        let program = Program::of(root.join("bin/muster-remoted").as_os_str(), "remoted");
        assert_eq!(
            program,
            Program {
                name: "muster-remoted".to_owned(),
                stock_home: None
            }
        );
    }

    #[test]
    fn argument_beats_stock_place_beats_variable() {
        let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("directory")).collect();
        let [a, b, c] = [0, 1, 2].map(|index: usize| directories[index].path().canonicalize().expect("canonical"));
        assert_eq!(home(Some(&a), Some(&b), Some(c.clone().into())).expect("home"), a);
        assert_eq!(home(None, Some(&b), Some(c.clone().into())).expect("home"), b);
        assert_eq!(home(None, None, Some(c.clone().into())).expect("home"), c);
    }

    #[test]
    fn missing_home_is_named_with_its_origin() {
        let error = home(Some(Path::new("/nonexistent/muster")), None, None).expect_err("is an error");
        assert_eq!(
            error.to_string(),
            "cannot use the home /nonexistent/muster (given with --home): No such file or directory (os error 2)"
        );
    }

    #[test]
    fn stock_flags_are_understood() {
        let cli = Cli::try_parse_from(["x", "-D", "/h", "-dd", "-t", "-f", "-u", "u", "-g", "g", "-c", "c"]);
        let common = cli.expect("parses").common;
        assert_eq!(common.home.as_deref(), Some(Path::new("/h")));
        assert_eq!((common.debug, common.test_config, common.foreground), (2, true, true));
    }

    #[test]
    fn log_file_takes_a_value_only_behind_an_equals_sign() {
        let log_file = |arguments: &[&str]| Cli::try_parse_from(arguments).expect("parses").common.log_file;
        assert_eq!(log_file(&["x"]), None);
        assert_eq!(log_file(&["x", "--log-file", "-d"]), Some(None));
        assert_eq!(
            log_file(&["x", "--log-file=/tmp/l"]),
            Some(Some(PathBuf::from("/tmp/l")))
        );
    }
}
