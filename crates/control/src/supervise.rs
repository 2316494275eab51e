//! `run`: the daemons in the foreground, as children of ours, for containers and for trying things out.
//!
//! **Invariant:** no daemon outlives this process. In good order they are told to stop; if we are killed, the kernel
//! tells them (`--supervised`).

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use muster_service::{
    exit::{BAD_CONFIG, DONE, FAILED, NOT_PERMITTED},
    signals::{Signal, Signals},
};
use nix::{
    sys::signal::{Signal as Number, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    cli,
    context::Context,
    daemons::{self, Daemon},
    output::{line, say},
    spawn,
    stop::STOP_DEADLINE,
};

/// The first and the longest pause before a daemon that failed is started again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A daemon that ran so long begins with the first pause again.
const STEADY: Duration = Duration::from_secs(60);

/// What all keepers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    /// So many SIGHUPs so far.
    Reload(u32),
    Stop,
}

pub(crate) async fn run(context: &Context, chosen: &cli::Daemons) -> anyhow::Result<u8> {
    let settings = context.settings()?;
    let mut signals = Signals::take().context("taking over signals")?;
    let (order, orders) = watch::channel(Order::Run);
    let mut keepers = JoinSet::new();
    for daemon in daemons::chosen(chosen) {
        match daemon.idle_because(&settings) {
            Some(why) => say(format!("{}: left out, {why}", daemon.name)),
            None => {
                let mut command = Command::new(daemon.program()?);
                command
                    .args(["--foreground", "--supervised"])
                    .arg("--home")
                    .arg(&context.home);
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .kill_on_drop(true);
                keepers.spawn(keep(daemon, command, orders.clone()));
            }
        }
    }
    let mut code = DONE;
    let mut reloads = 0;
    loop {
        tokio::select! {
            ended = keepers.join_next() => match ended {
                None => return Ok(code),
                // Whoever gives up takes the others along: half a manager would look like a whole one.
                Some(ended) => {
                    let given_up = ended.context("keeping a daemon")??;
                    if code == DONE {
                        code = given_up;
                    }
                    order.send_replace(Order::Stop);
                }
            },
            signal = signals.next() => match signal {
                Signal::Stop => {
                    order.send_replace(Order::Stop);
                }
                Signal::Reload => {
                    reloads += 1;
                    order.send_if_modified(|order| {
                        let running = *order != Order::Stop;
                        if running {
                            *order = Order::Reload(reloads);
                        }
                        running
                    });
                }
            },
        }
    }
}

/// Starts one daemon again and again until it is told to stop or there is no point any more. Gives the exit code.
async fn keep(daemon: Daemon, mut command: Command, mut orders: watch::Receiver<Order>) -> anyhow::Result<u8> {
    let mut pause = PAUSES.0;
    loop {
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("starting {}", daemon.name))?;
        let stdout = relay(daemon.name, child.stdout.take());
        let stderr = relay(daemon.name, child.stderr.take());
        let (status, ((), ())) = tokio::join!(attend(&mut child, &mut orders), async { tokio::join!(stdout, stderr) });
        let status = status?;
        if *orders.borrow() == Order::Stop {
            return Ok(if status.success() { DONE } else { FAILED });
        }
        let code = spawn::code(status);
        if matches!(code, NOT_PERMITTED | BAD_CONFIG) {
            say(format!(
                "{}: ended ({status}), which starting again would not change",
                daemon.name
            ));
            return Ok(code);
        }
        if started.elapsed() >= STEADY {
            pause = PAUSES.0;
        }
        say(format!(
            "{}: ended ({status}), starting again in {} s",
            daemon.name,
            pause.as_secs()
        ));
        if timeout(pause, orders.wait_for(|order| *order == Order::Stop))
            .await
            .is_ok()
        {
            return Ok(DONE);
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Passes orders on to a child until it ends.
async fn attend(child: &mut Child, orders: &mut watch::Receiver<Order>) -> anyhow::Result<ExitStatus> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let tell = |signal| pid.map_or(Ok(()), |pid| kill(pid, signal));
    loop {
        let order = *orders.borrow_and_update();
        match order {
            Order::Run => {}
            Order::Reload(_) => tell(Number::SIGHUP)?,
            Order::Stop => {
                tell(Number::SIGTERM)?;
                return Ok(tokio::select! {
                    status = child.wait() => status?,
                    () = sleep(STOP_DEADLINE) => {
                        child.start_kill()?;
                        child.wait().await?
                    }
                });
            }
        }
        tokio::select! {
            status = child.wait() => return Ok(status?),
            changed = orders.changed() => changed.context("the supervisor is gone")?,
        }
    }
}

/// Prints each line that a daemon says, behind its name. That nobody reads is no reason to end daemons.
async fn relay(name: &str, output: Option<impl AsyncRead + Unpin>) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(text)) = lines.next_segment().await {
        let _ = line(format!("{name:8} | {}", String::from_utf8_lossy(&text)));
    }
}
