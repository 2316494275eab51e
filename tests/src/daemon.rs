//! One daemon as a process.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::wait;

/// A command whose process the kernel kills when the thread that starts it ends, even if that thread is killed: an
/// interrupted test run leaves nothing behind. Without util-linux's `setpriv` it is an ordinary command.
pub fn tied(program: &Path) -> Command {
    const SETPRIV: &str = "/usr/bin/setpriv";
    if !Path::new(SETPRIV).exists() {
        return Command::new(program);
    }
    let mut command = Command::new(SETPRIV);
    // It becomes the program itself, under the same process id.
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// How long a daemon may take until it serves, or until it has ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that is killed, with everything it started, when dropped.
pub struct Daemon {
    /// Its short name.
    pub name: String,
    child: Child,
    log: PathBuf,
    home: Option<Arc<TempDir>>,
}

impl Daemon {
    /// Starts a program in the foreground and waits until it says that it serves, as systemd would.
    pub fn start(name: &str, program: &Path, home: &Path, arguments: &[&OsStr]) -> Result<Self> {
        let notify = home.join(format!("notify-{name}"));
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).context("binding the notify socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let log = home.join(format!("{name}.stderr"));
        let file = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = tied(program);
        command
            .arg("--home")
            .arg(home)
            .arg("--foreground")
            .args(arguments)
            .env("NOTIFY_SOCKET", &notify);
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut daemon = Self {
            name: name.to_owned(),
            child,
            log,
            home: None,
        };
        daemon.wait_until_ready(&socket)?;
        Ok(daemon)
    }

    /// Keeps the folder that it lives in until it has ended.
    #[must_use]
    pub fn living_in(mut self, home: Arc<TempDir>) -> Self {
        self.home = Some(home);
        self
    }

    fn wait_until_ready(&mut self, socket: &UnixDatagram) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            if let Ok(bytes) = socket.recv(&mut buffer)
                && buffer[..bytes]
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once ({status}):\n{}", self.name, self.log_tail());
            }
        }
        bail!(
            "{} is not ready after {} s:\n{}",
            self.name,
            PATIENCE.as_secs(),
            self.log_tail()
        )
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// SIGKILL: no time for anything.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, then waits until it has ended in good order.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let status = wait::until(&format!("{} ends", self.name), PATIENCE, || {
            Ok(self.child.try_wait()?)
        })?;
        if !status.success() {
            bail!("{} ended badly ({status}):\n{}", self.name, self.log_tail());
        }
        Ok(status)
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log_tail());
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}
