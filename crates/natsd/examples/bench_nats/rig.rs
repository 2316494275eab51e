//! A server and a daemon, each in a folder of its own.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use muster_proto::ipc::control::{DaemonStatus, Request, Response};
use muster_service::client::Client;

/// Where the events go.
pub(crate) const STREAM: &str = "MUSTER_STATE";
/// Room for all of them.
const STREAM_LEN: i64 = 3 << 30;

pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    pub(crate) async fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = Self {
            folder: tempfile::tempdir()?,
            port,
            child: None,
        };
        server.restart().await?;
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn restart(&mut self) -> Result<()> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
        folders.push("/usr/sbin".into());
        let program = folders
            .iter()
            .map(|folder| folder.join("nats-server"))
            .find(|program| program.exists());
        let child = Command::new(program.context("there is no nats-server; install Debian's package nats-server")?)
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-js", "-sd"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        for _ in 0..500 {
            if async_nats::connect(self.url()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("nats-server does not answer")
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) struct Home {
    pub(crate) path: tempfile::TempDir,
    pub(crate) child: Child,
}

impl Home {
    /// Streams, and a daemon that publishes to them.
    pub(crate) async fn start(server: &Server, options: &str) -> Result<Self> {
        let path = tempfile::tempdir()?;
        fs::create_dir_all(path.path().join("etc"))?;
        let config = format!(
            "<ossec_config><nats><server_url>{}</server_url><node_name>mgr-a</node_name>\
             <reconnect_delay>1</reconnect_delay>{options}</nats></ossec_config>\n",
            server.url()
        );
        fs::write(path.path().join("etc/ossec.conf"), config)?;
        let natsd = program()?;
        let made = Command::new(&natsd)
            .arg("--home")
            .arg(path.path())
            .args(["provision", "--share", "5"])
            .stdout(Stdio::null())
            .status()?;
        anyhow::ensure!(made.success(), "provisioning failed");
        // A stream that is full throws away an old event for each new one, which costs the server more than all else.
        let streams = jetstream::new(async_nats::connect(server.url()).await?);
        let mut config = streams.get_stream(STREAM).await?.cached_info().config.clone();
        config.max_bytes = config.max_bytes.max(STREAM_LEN);
        streams.update_stream(&config).await?;
        let log = fs::File::create(path.path().join("log"))?;
        let child = Command::new(&natsd)
            .arg("--home")
            .arg(path.path())
            .arg("--foreground")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { path, child })
    }

    pub(crate) async fn status(&self) -> Result<DaemonStatus> {
        let socket = self.path.path().join("queue/muster/natsd.ctl");
        let mut client = Client::connect(&socket, "bench", Duration::from_secs(10)).await?;
        match client.ask(&Request::Status).await? {
            Response::Status(status) => Ok(*status),
            _ => bail!("natsd says something else"),
        }
    }

    pub(crate) async fn ready(&self) -> Result<()> {
        for _ in 0..500 {
            if let Ok(status) = self.status().await
                && status
                    .facts
                    .iter()
                    .any(|(name, value)| name == "nats" && value == "connected")
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("natsd does not connect")
    }

    /// Status changes only: what natsd says of itself comes on top, and is not waited for.
    pub(crate) async fn wait_until_published(&self, count: u64) -> Result<()> {
        loop {
            let status = self.status().await?;
            let number = |name: &str| {
                status
                    .counters
                    .iter()
                    .find(|(other, _)| other == name)
                    .map_or(0, |(_, value)| *value)
            };
            if number("events_published_total") >= count {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Until no more than so many events wait.
    pub(crate) async fn wait_until_waiting(&self, most: u64) -> Result<()> {
        loop {
            let status = self.status().await?;
            let waiting = status.facts.iter().find(|(name, _)| name == "waiting_events");
            if waiting.is_some_and(|(_, value)| value.parse().is_ok_and(|waiting: u64| waiting <= most)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The most memory that was ever resident.
    pub(crate) fn peak_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .context("no VmHWM")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Result<PathBuf> {
    let folder = match env::var_os("MUSTER_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => env::current_exe()?
            .ancestors()
            .nth(2)
            .map(Path::to_owned)
            .context("no folder")?,
    };
    let program = folder.join("muster-natsd");
    anyhow::ensure!(program.exists(), "{} is missing: build it first", program.display());
    Ok(program)
}

/// Time on a processor, of all threads; what others take on the same machine is not in it.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two looks.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().map_or(Ok(0), str::parse::<u64>)?;
    }
    Ok(Duration::from_nanos(total))
}
