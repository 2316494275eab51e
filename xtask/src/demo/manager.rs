//! The manager under demonstration, through `muster-control`.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::{Context, Result};
use muster_test_ports::Port;
use serde_json::Value;

use crate::{nats, shell};

/// Time-outs short enough to watch.
const KEEPALIVE: &str = "<manager_keepalive>
      <enabled>yes</enabled>
      <interval>1</interval>
      <timeout>4</timeout>
      <max_missed>4</max_missed>
      <retry_interval>1</retry_interval>
    </manager_keepalive>";

/// More events than are ever under way between two looks; beyond it the follower waits.
const MAX_PENDING_EVENTS: usize = 4096;

/// A running manager; stopped when dropped.
pub(super) struct Manager {
    control: PathBuf,
    home: PathBuf,
    pub(super) port: Port,
    pub(super) enroll_port: Port,
}

/// One agent of `muster-control agent list`.
pub(super) struct Agent {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) version: String,
    /// Seconds of silence after which it counts as disconnected.
    pub(super) timeout: Option<u64>,
}

/// One event, wherever it was read.
pub(super) struct Event {
    pub(super) subject: String,
    pub(super) body: Value,
}

impl Manager {
    pub(super) fn start(binaries: &Path, home: &Path, nats: Option<&nats::Server>) -> Result<Self> {
        let manager = Self {
            control: binaries.join("muster-control"),
            home: home.to_owned(),
            port: Port::free()?,
            enroll_port: Port::free()?,
        };
        let mut init = manager.control(&["init", "--bind", "127.0.0.1"]);
        init.args([
            "--port",
            &manager.port.number.to_string(),
            "--enroll-port",
            &manager.enroll_port.number.to_string(),
        ]);
        if let Some(server) = nats {
            init.args(["--nats", &server.url()]);
        }
        shell::output(&mut init)?;
        manager.shorten_time_outs()?;
        shell::output(&mut manager.control(&["start"]))?;
        Ok(manager)
    }

    /// Every event from now on: from the server, as any subscriber sees it, or from natsd.
    pub(super) fn events(&self, nats: Option<&nats::Server>) -> Result<Receiver<Event>> {
        let (sender, receiver) = sync_channel(MAX_PENDING_EVENTS);
        match nats {
            Some(server) => {
                let messages = nats::subscribe(&server.address, "wazuh.xdr.>")?;
                thread::spawn(move || {
                    for message in messages {
                        let body = serde_json::from_slice(&message.body).unwrap_or(Value::Null);
                        if sender
                            .send(Event {
                                subject: message.subject,
                                body,
                            })
                            .is_err()
                        {
                            break;
                        }
                    }
                });
            }
            None => self.follow(sender)?,
        }
        Ok(receiver)
    }

    pub(super) fn agents(&self) -> Result<Vec<Agent>> {
        let listing = shell::output(&mut self.control(&["agent", "list", "--output", "json"]))?;
        let listing: Vec<Value> = serde_json::from_str(&listing).context("agent list printed no JSON array")?;
        let text = |agent: &Value, key: &str| agent[key].as_str().unwrap_or_default().to_owned();
        Ok(listing
            .iter()
            .map(|agent| Agent {
                id: text(agent, "id"),
                name: text(agent, "name"),
                status: text(agent, "status"),
                reason: text(agent, "reason"),
                version: text(agent, "version"),
                timeout: agent["timeout"].as_u64(),
            })
            .collect())
    }

    pub(super) fn password_file(&self) -> PathBuf {
        self.home.join("etc/authd.pass")
    }

    fn control(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.control);
        command
            .arg("--home")
            .arg(&self.home)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn shorten_time_outs(&self) -> Result<()> {
        let path = self.home.join("etc/ossec.conf");
        let text = fs::read_to_string(&path)?;
        let (before, rest) = text
            .rsplit_once("<manager_keepalive>")
            .context("no <manager_keepalive> to shorten")?;
        let (_, after) = rest
            .split_once("</manager_keepalive>")
            .context("<manager_keepalive> is not closed")?;
        fs::write(&path, format!("{before}{KEEPALIVE}{after}"))?;
        Ok(())
    }

    /// The follower ends by itself when natsd does.
    fn follow(&self, sender: SyncSender<Event>) -> Result<()> {
        let mut command = self.control(&["events", "--output", "json"]);
        let mut follower = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot follow the events")?;
        let output = follower.stdout.take().context("the follower has no output")?;
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<Value>(&line) else {
                    continue;
                };
                let subject = event["subject"].as_str().unwrap_or_default().to_owned();
                if sender
                    .send(Event {
                        subject,
                        body: event["body"].clone(),
                    })
                    .is_err()
                {
                    break;
                }
            }
            let _ = follower.kill();
            let _ = follower.wait();
        });
        Ok(())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Err(error) = shell::output(&mut self.control(&["stop"])) {
            eprintln!("stopping the manager: {error:#}");
        }
    }
}
