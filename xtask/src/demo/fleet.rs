//! The simulated fleet: `muster-swarm`, told over its standard input what shall happen.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::manager::Manager;

/// A running fleet; stopped when dropped.
pub(super) struct Fleet {
    process: Child,
    orders: ChildStdin,
    reports: Receiver<Value>,
}

/// Reports come one per order and a few at the start.
const MAX_PENDING_REPORTS: usize = 1024;

impl Fleet {
    pub(super) fn start(binaries: &Path, manager: &Manager, agents: u32) -> Result<Self> {
        // A fleet as one meets it: most agents new, some old, some very old.
        let (blowfish, ossec3, ossec4) = (agents / 5, agents / 10, agents / 10);
        let aes = agents - blowfish - ossec3 - ossec4;
        let mix = format!("wazuh-aes-tcp={aes},wazuh-blowfish-udp={blowfish},ossec3={ossec3},ossec4={ossec4}");
        let mut process = Command::new(binaries.join("muster-swarm"))
            .args(["--enroll", &format!("127.0.0.1:{}", manager.enroll_port.number)])
            .args(["--connect", &format!("127.0.0.1:{}", manager.port.number)])
            .args(["--agents", &agents.to_string(), "--mix", &mix])
            .args(["--notify-time", "1", "--output", "json"])
            .arg("--password-file")
            .arg(manager.password_file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start muster-swarm")?;
        let orders = process.stdin.take().context("muster-swarm has no standard input")?;
        let output = process.stdout.take().context("muster-swarm has no standard output")?;
        let (sender, reports) = sync_channel(MAX_PENDING_REPORTS);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if serde_json::from_str(&line).is_ok_and(|report| sender.send(report).is_err()) {
                    break;
                }
            }
        });
        Ok(Self {
            process,
            orders,
            reports,
        })
    }

    /// Makes that many agents vanish without a goodbye; gives their names.
    pub(super) fn kill(&mut self, count: usize) -> Result<Vec<String>> {
        self.order(&format!("kill {count}"))?;
        let report = self.report("killed")?;
        let names = report["names"]
            .as_array()
            .context("the fleet did not say whom it killed")?;
        Ok(names
            .iter()
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect())
    }

    /// Lets the killed ones come back.
    pub(super) fn revive(&mut self) -> Result<()> {
        self.order("revive")
    }

    fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}")
            .and_then(|()| self.orders.flush())
            .context("muster-swarm has ended")
    }

    fn report(&self, event: &str) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self
                .reports
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(report) if report["event"] == event => return Ok(report),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("muster-swarm did not report `{event}` within 10 s"),
                Err(RecvTimeoutError::Disconnected) => bail!("muster-swarm has ended"),
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
