//! A program that keeps running, with all that it starts: a group of its own, ended as a whole.

use std::{
    io,
    path::Path,
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

use super::{command_line::CommandLine, leftovers};

/// How long a group may take to end by itself once it was asked to.
pub const GRACE: Duration = Duration::from_secs(1);

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
    /// Starts a program with pipes on all three sides; see [`CommandLine::command`].
    ///
    /// The caller is held until the program has its turn on a processor, which takes milliseconds on a busy machine.
    ///
    /// # Errors
    /// It does not exist, may not be executed, or there is no room for another process.
    pub fn start(line: &CommandLine, home: &Path) -> io::Result<Self> {
        let mut command = Command::from(line.command(home)?);
        command.stdin(Stdio::piped());
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
