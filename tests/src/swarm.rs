//! The simulated fleet, driven over its standard input as an operator or a demo does.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    daemon::tied,
    home::Home,
    wait::{self, SOON},
};

/// A counter of one part of the fleet in a `status` or `account` line.
pub fn count_of(report: &Value, group: &str, counter: &str) -> u64 {
    let parts = report["groups"].as_array().into_iter().flatten();
    parts
        .filter(|part| part["name"] == group)
        .filter_map(|part| part[counter].as_u64())
        .sum()
}

/// Lines that nobody has looked at yet; beyond them the fleet waits.
const MAX_LINES: usize = 1024;

/// A running fleet; it is killed when dropped.
pub struct Swarm {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<Value>,
}

impl Swarm {
    /// Starts a fleet that enrolls in a home and connects to it.
    pub fn start(home: &Home, options: &[&str]) -> Result<Self> {
        let enroll = format!("127.0.0.1:{}", home.enroll_port());
        Self::connecting(home, &[&["--enroll", &enroll], options].concat())
    }

    /// Starts a fleet that has the keys in this file already and connects to a home.
    pub fn with_keys(home: &Home, keys: &Path, options: &[&str]) -> Result<Self> {
        let keys = keys.to_str().context("the path of the keys")?;
        Self::connecting(home, &[&["--keys", keys], options].concat())
    }

    fn connecting(home: &Home, options: &[&str]) -> Result<Self> {
        let mut command = tied(&home.program("muster-swarm"));
        command
            .args(["--connect", &format!("127.0.0.1:{}", home.port())])
            .args(["--output", "json"])
            .args(options);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting muster-swarm")?;
        let orders = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = sync_channel(MAX_LINES);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if serde_json::from_str(&line).is_ok_and(|line| sender.send(line).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { child, orders, lines })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order.
    pub fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}").context("the fleet has ended")
    }

    /// Waits for a line of this kind; others are passed over.
    pub fn line(&mut self, event: &str, patience: Duration) -> Result<Value> {
        let deadline = Instant::now() + patience;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line["event"] == event => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("the fleet did not say `{event}`"),
                Err(RecvTimeoutError::Disconnected) => bail!("the fleet ended before it said `{event}`"),
            }
        }
    }

    /// How it stands and what it has counted.
    pub fn status(&mut self) -> Result<Value> {
        self.order("status")?;
        self.line("status", SOON)
    }

    /// Waits until the account is as wanted; the account then.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        wait::until(what, SOON, || {
            last = self.status()?;
            Ok(wanted(&last).then(|| last.clone()))
        })
        .with_context(|| format!("the fleet says {last:#}"))
    }

    /// Tells everybody to say goodbye; the account.
    pub fn stop(mut self, patience: Duration) -> Result<Value> {
        self.order("stop")?;
        let account = self.line("account", patience)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the fleet ended with {status}");
        }
        Ok(account)
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
