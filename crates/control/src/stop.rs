//! `stop`

use std::time::Duration;

use anyhow::Context as _;
use muster_proto::ipc::control::{Request, Response};
use muster_service::{
    exit::{DONE, Exit, FAILED, NOT_PERMITTED},
    pid_file,
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use crate::{
    cli,
    context::Context,
    daemons::{self, Daemon},
    output::say,
    unit::Unit,
};

/// How long a daemon may take to end in good order.
pub(crate) const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long the kernel may take to remove a killed process.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked whether the process is still there: it is not our child, so nothing tells us.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) async fn stop(context: &Context, chosen: &cli::Daemons) -> anyhow::Result<u8> {
    let mut daemons = daemons::chosen(chosen);
    daemons.reverse();
    let mut code = DONE;
    for daemon in daemons {
        if !stop_one(context, &daemon).await? {
            code = FAILED;
        }
    }
    Ok(code)
}

/// Whether it does not run any more.
async fn stop_one(context: &Context, daemon: &Daemon) -> anyhow::Result<bool> {
    let name = daemon.name;
    let Some(number) = running(context, daemon).await else {
        say(format!("{name}: is not running"));
        return Ok(true);
    };
    if let Some(unit) = Unit::of(name, &context.home).filter(|unit| unit.main_pid() == Some(number)) {
        let stopped = unit.tell("stop")?;
        let outcome = if stopped { "stopped by systemd" } else { "did not stop" };
        say(format!("{name}: {outcome}"));
        return Ok(stopped);
    }
    let pid = Pid::from_raw(i32::try_from(number).context("a pid out of range")?);
    signal(pid, Signal::SIGTERM, name)?;
    if ended(number, STOP_DEADLINE).await {
        say(format!("{name}: stopped"));
        return Ok(true);
    }
    signal(pid, Signal::SIGKILL, name)?;
    let gone = ended(number, KILL_DEADLINE).await;
    let outcome = if gone { "killed" } else { "cannot be killed" };
    say(format!(
        "{name}: did not stop within {} s, {outcome}",
        STOP_DEADLINE.as_secs()
    ));
    Ok(gone)
}

/// Its pid: by its pid file, else as it says itself.
async fn running(context: &Context, daemon: &Daemon) -> Option<u32> {
    if let Some(pid) = daemon.pid() {
        return Some(pid);
    }
    match context.ask(daemon.name, &Request::Status).await {
        Ok(Response::Status(status)) => Some(status.pid),
        _ => None,
    }
}

fn signal(pid: Pid, signal: Signal, name: &str) -> anyhow::Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(Errno::EPERM) => {
            Err(Exit::new(NOT_PERMITTED, format!("cannot stop {name}: it belongs to another user")).into())
        }
        Err(errno) => Err(errno).with_context(|| format!("signalling {name}")),
    }
}

async fn ended(pid: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while pid_file::is_alive(pid) {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK).await;
    }
    true
}
