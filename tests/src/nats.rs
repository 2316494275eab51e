//! A real nats-server of one test's own, and what its streams hold.

use std::{
    collections::HashMap,
    env, fs,
    path::PathBuf,
    process::{Child, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use muster_test_ports::Port;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    daemon::tied,
    wait::{self, SOON},
};

/// The stream of status changes and enrollments.
pub const STATE: &str = "MUSTER_STATE";
/// The stream of log lines.
pub const ARCHIVES: &str = "MUSTER_ARCHIVES";
/// The stream of keepalives.
pub const KEEPALIVE: &str = "MUSTER_KEEPALIVE";

/// A message in a stream.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its place in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: HashMap<String, String>,
    /// Its body as published.
    pub body: String,
}

impl Stored {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{} holds {}", self.subject, self.body))
    }
}

/// A message as a subscriber gets it.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its subject.
    pub subject: String,
    /// Its body.
    pub body: String,
}

/// Names another server to test against than the one that is installed.
const OTHER_SERVER: &str = "MUSTER_TEST_NATS_SERVER";

/// Messages that a test has not looked at; beyond them the subscriber waits.
const MAX_WAITING: usize = 4096;

/// A server with JetStream and an empty store; it ends when dropped.
pub struct Nats {
    program: PathBuf,
    store: TempDir,
    port: Port,
    child: Option<Child>,
}

impl Nats {
    /// Starts a server on a free port, with the two streams that a manager publishes to.
    pub fn start() -> Result<Self> {
        let mut server = Self::without_streams()?;
        server.create_streams()?;
        Ok(server)
    }

    /// Starts a server on a free port that has no stream.
    pub fn without_streams() -> Result<Self> {
        let mut server = Self {
            program: program()?,
            store: tempfile::tempdir()?,
            port: Port::free()?,
            child: None,
        };
        server.restart()?;
        Ok(server)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.number)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it again on the same port and store.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let child = tied(&self.program)
            .args(["-a", "127.0.0.1", "-p", &self.port.number.to_string(), "-js", "-sd"])
            .arg(self.store.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        self.child = Some(child);
        wait::until_true("nats-server answers", SOON, || Ok(self.visit(async |_| Ok(())).is_ok()))
    }

    /// Creates the streams.
    pub fn create_streams(&mut self) -> Result<()> {
        let prefix = "wazuh.xdr";
        let streams = [
            (ARCHIVES, vec![format!("{prefix}.archives.*")]),
            (
                KEEPALIVE,
                vec![
                    format!("{prefix}.manager.keepalive.*"),
                    format!("{prefix}.manager.health.*"),
                ],
            ),
            (
                STATE,
                vec![
                    format!("{prefix}.agent.*.>"),
                    format!("{prefix}.alerts.agent_disconnected"),
                    format!("{prefix}.manager.enrollment.>"),
                    format!("{prefix}.manager.keypoll.>"),
                    format!("{prefix}.agentless.>"),
                ],
            ),
        ];
        self.visit(async |jetstream| {
            for (name, subjects) in streams {
                let config = stream::Config {
                    name: name.to_owned(),
                    subjects,
                    duplicate_window: Duration::from_secs(600),
                    allow_direct: true,
                    ..stream::Config::default()
                };
                jetstream
                    .get_or_create_stream(config)
                    .await
                    .with_context(|| format!("creating {name}"))?;
            }
            Ok(())
        })
    }

    /// Everything published below a subject from now on, streams or not, until the server ends.
    pub fn subscribe(&self, subject: &str) -> Result<Receiver<Published>> {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let (ready, subscribed) = sync_channel(1);
        let (url, subject) = (self.url(), subject.to_owned());
        thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = async_nats::connect(url).await?;
                let mut messages = client.subscribe(subject).await?;
                client.flush().await?;
                ready.send(())?;
                while let Some(message) = messages.next().await {
                    let body = String::from_utf8_lossy(&message.payload).into_owned();
                    if sender
                        .send(Published {
                            subject: message.subject.to_string(),
                            body,
                        })
                        .is_err()
                    {
                        break;
                    }
                }
                Ok(())
            })
        });
        subscribed
            .recv_timeout(SOON)
            .context("the subscription does not stand")?;
        Ok(receiver)
    }

    /// Takes a stream away, with all that it holds.
    pub fn delete_stream(&self, name: &str) -> Result<()> {
        self.visit(async |jetstream| {
            jetstream.delete_stream(name).await?;
            Ok(())
        })
    }

    /// Everything that a stream holds, in order.
    pub fn stored(&self, name: &str) -> Result<Vec<Stored>> {
        self.visit(async |jetstream| {
            let mut stream = jetstream
                .get_stream(name)
                .await
                .with_context(|| format!("opening {name}"))?;
            let state = stream.info().await?.state.clone();
            let mut stored = Vec::new();
            for sequence in state.first_sequence..=state.last_sequence {
                if state.messages == 0 {
                    break;
                }
                let message = stream.get_raw_message(sequence).await?;
                let headers = message
                    .headers
                    .iter()
                    .filter_map(|(name, values)| Some((name.to_string(), values.first()?.as_str().to_owned())))
                    .collect();
                stored.push(Stored {
                    sequence,
                    subject: message.subject.to_string(),
                    headers,
                    body: String::from_utf8_lossy(&message.payload).into_owned(),
                });
            }
            Ok(stored)
        })
    }

    /// What a stream holds under one subject.
    pub fn stored_under(&self, name: &str, subject: &str) -> Result<Vec<Stored>> {
        Ok(self
            .stored(name)?
            .into_iter()
            .filter(|stored| stored.subject == subject)
            .collect())
    }

    /// Waits until a stream holds a message that `wanted` takes.
    pub fn wait_for(&self, name: &str, what: &str, wanted: impl Fn(&Stored) -> bool) -> Result<Stored> {
        wait::until(what, SOON, || {
            Ok(self.stored(name)?.into_iter().find(|stored| wanted(stored)))
        })
    }

    /// A conversation with the server, on a connection of its own.
    fn visit<T>(&self, work: impl AsyncFnOnce(jetstream::Context) -> Result<T>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let options = async_nats::ConnectOptions::new().connection_timeout(SOON);
            let client = options.connect(self.url()).await?;
            client.flush().await?;
            work(jetstream::new(client)).await
        })
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The server's program: the one that is named, or on the path, where Debian puts it, or unpacked below `target/tools`.
fn program() -> Result<PathBuf> {
    if let Some(other) = env::var_os(OTHER_SERVER) {
        return Ok(other.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let target = env::current_exe()?
        .ancestors()
        .nth(3)
        .map(|target| target.join("tools"));
    if let Some(tools) = target {
        folders.extend([tools.join("usr/sbin"), tools.join("usr/bin")]);
    }
    let found = folders
        .into_iter()
        .map(|folder| folder.join("nats-server"))
        .find(|program| fs::metadata(program).is_ok());
    match found {
        Some(program) => Ok(program),
        None => bail!("there is no nats-server; `cargo xtask tools` fetches one, `apt install nats-server` too"),
    }
}
