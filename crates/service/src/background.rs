//! Going into the background, as stock control scripts expect of what they start.
//!
//! A process with threads cannot fork, so the background is this program again, in the foreground of a session of its
//! own. The one that was started waits until the other says that it serves, and ends with 0 then.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;
use muster_proto::paths;

use crate::{
    command_line::{Common, Program},
    exit::{DONE, Exit, FAILED},
};

/// The log that stock daemons share.
const STOCK_LOG: &str = "ossec.log";
/// What a daemon says on standard output when it serves.
pub const READY: &str = "ready";

/// Whether a daemon that was started like this goes into the background.
pub(crate) fn is_wanted(program: &Program, common: &Common) -> bool {
    program.is_stock() && !common.foreground && !common.detached && !common.supervised && !common.test_config
}

/// Runs this program again and waits until it serves. The exit code to end with.
pub(crate) fn rerun(program: &Program, common: &Common) -> anyhow::Result<Exit> {
    // The same path as before and no other: the kernel shows its file name as the process's name, by which stock
    // scripts find it.
    let path = place(&env::args_os().next().map(PathBuf::from).unwrap_or_default())?;
    let mut command = Command::new(&path);
    command
        .args(env::args_os().skip(1))
        .args(["--foreground", "--detached"]);
    if common.log_file.is_none() {
        command.arg(format!("--log-file={}/{STOCK_LOG}", paths::LOGS));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", path.display()))?;
    let said = child.stdout.take().context("the background has no output")?;
    let ready = BufReader::new(said)
        .lines()
        .map_while(Result::ok)
        .any(|line| line == READY);
    if ready {
        return Ok(Exit::quiet(DONE));
    }
    let status = child.wait()?;
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != DONE)
        .unwrap_or(FAILED);
    let message = format!(
        "{} did not start ({status}); see {}/{STOCK_LOG}",
        program.name,
        paths::LOGS
    );
    Ok(Exit::new(code, message))
}

/// The program's path from the root, with its own last name even where that is a link.
fn place(argv0: &Path) -> anyhow::Result<PathBuf> {
    let name = argv0.file_name().context("the program has no name")?;
    let parent = argv0
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok(parent
        .canonicalize()
        .with_context(|| format!("finding {}", argv0.display()))?
        .join(name))
}
