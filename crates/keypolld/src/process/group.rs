//! A process with all that it starts: a group of its own, ended as a whole.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{
    command_line::{CommandLine, SEARCH_PATH},
    leftovers,
};

/// How long a group may take to end by itself once it was asked to.
const GRACE: Duration = Duration::from_secs(1);

/// Whether a program is given something to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// `/dev/null`.
    None,
    /// A pipe.
    Pipe,
}

/// A running program. Its group is killed when the value is dropped.
#[derive(Debug)]
pub struct Group {
    child: Child,
    leader: Option<Pid>,
    /// Everybody has been killed: the number may belong to somebody else by now.
    is_over: bool,
    /// What it reads.
    pub stdin: Option<ChildStdin>,
    /// What it writes.
    pub stdout: Option<ChildStdout>,
    /// What it says beside.
    pub stderr: Option<ChildStderr>,
}

impl Group {
    /// Starts a program in the current directory, which is the home, with `PATH`, `LANG` and `HOME` and nothing else in
    /// its environment. It inherits three descriptors, no signal mask, and our limits.
    ///
    /// The caller is held until the program has its turn on a processor, which takes milliseconds on a busy machine.
    ///
    /// # Errors
    /// It does not exist, may not be executed, or there is no room for another process.
    pub fn start(line: &CommandLine, further: &[impl AsRef<OsStr>], input: Input, home: &Path) -> io::Result<Self> {
        let file: PathBuf = line.file().ok_or(io::ErrorKind::NotFound)?;
        let mut command = Command::new(file);
        command
            .args(&line.arguments)
            .args(further)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LANG", "C.UTF-8")
            .env("HOME", home)
            .stdin(match input {
                Input::None => Stdio::null(),
                Input::Pipe => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let _starting = leftovers::starting();
        let mut child = command.spawn()?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        if let Some(leader) = leader {
            leftovers::expect(leader);
        }
        Ok(Self {
            leader,
            is_over: false,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
        })
    }

    /// Waits for the leader's end. May be dropped and called again.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends the group: SIGTERM, and SIGKILL for what is still there a moment later.
    pub async fn end(mut self) {
        self.stdin = None;
        self.signal(Signal::SIGTERM);
        let _ = timeout(GRACE, self.child.wait()).await;
        self.kill().await;
    }

    /// Kills the group and takes the leader's end.
    pub async fn kill(mut self) {
        self.kill_rest();
        // Nothing survives SIGKILL except a process that the kernel holds; that one must not hold us too.
        let _ = timeout(GRACE, self.child.wait()).await;
    }

    /// Kills whoever is in the group, also those whom the leader has left there at its end.
    pub fn kill_rest(&mut self) {
        self.signal(Signal::SIGKILL);
        self.is_over = true;
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader
            && !self.is_over
        {
            // That nobody is left is what we want.
            let _ = killpg(leader, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(leader) = self.leader {
            // Takes its end if nobody has; tokio takes that of others in the background.
            let _ = self.child.try_wait();
            leftovers::forget(leader);
        }
    }
}
