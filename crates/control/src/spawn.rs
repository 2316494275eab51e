//! Starting one daemon and waiting until it serves.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use muster_service::{background::READY, exit::FAILED};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{context::Context, daemons::Daemon};

/// How long a daemon may take until it serves.
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How much of a failed daemon's log is shown.
const SHOWN_LINES: usize = 20;
/// Where the last lines of a log are looked for.
const SHOWN_BYTES: u64 = 16 * 1024;

/// How a start ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It serves, and nobody waits for it any more.
    Ready,
    /// It ended before it served.
    Ended(ExitStatus),
    /// It runs and did not say that it serves.
    TooSlow,
}

/// Starts a daemon detached, its log and its standard error in its log file.
pub(crate) async fn detached(context: &Context, daemon: &Daemon) -> anyhow::Result<(Outcome, LogMark)> {
    let log = daemon.log();
    let mark = LogMark::at_end(&log)?;
    let mut command = Command::new(daemon.program()?);
    command
        .args(["--detached", "--log-file"])
        .arg("--home")
        .arg(&context.home);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(open_log(&log)?);
    let mut child = command.spawn().with_context(|| format!("starting {}", daemon.name))?;
    let outcome = match timeout(READY_DEADLINE, ready(&mut child)).await {
        Ok(outcome) => outcome?,
        Err(_) => {
            child.start_kill().context("ending a daemon that does not get ready")?;
            child.wait().await?;
            Outcome::TooSlow
        }
    };
    Ok((outcome, mark))
}

async fn ready(child: &mut Child) -> anyhow::Result<Outcome> {
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Some(said) = lines.next_line().await? {
            if said == READY {
                return Ok(Outcome::Ready);
            }
        }
    }
    Ok(Outcome::Ended(child.wait().await?))
}

/// The code to end with for a daemon that ended: its own, if it is one of ours.
pub(crate) fn code(status: ExitStatus) -> u8 {
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != 0)
        .unwrap_or(FAILED)
}

/// A place in a log file: what stands behind it was written since.
#[derive(Debug)]
pub(crate) struct LogMark {
    file: File,
    from: u64,
}

impl LogMark {
    fn at_end(path: &Path) -> anyhow::Result<Self> {
        open_log(path)?;
        let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let from = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, from })
    }

    /// The last lines written since.
    pub(crate) fn last_lines(&mut self) -> Vec<String> {
        let mut read = || -> std::io::Result<Vec<u8>> {
            let end = self.file.seek(SeekFrom::End(0))?;
            self.file
                .seek(SeekFrom::Start(self.from.max(end.saturating_sub(SHOWN_BYTES))))?;
            let mut bytes = Vec::new();
            self.file.by_ref().take(SHOWN_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec()
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let open = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    open.with_context(|| format!("opening {}", path.display()))
}
