//! Measures a release build of natsd against a local nats-server with file storage:
//! `cargo build --release -p muster-natsd --bins --example bench_nats && target/release/examples/bench_nats`.
//!
//! Prints a table; `--json FILE` writes the figures there, too. The daemon is taken from `MUSTER_BIN_DIR`, else from the
//! folder above this program.

use std::{
    collections::BTreeMap,
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use async_nats::{HeaderMap, jetstream};
use clap::Parser;
use futures_util::{StreamExt, stream::FuturesUnordered};
use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{Event, body::StatusChange},
    ipc::{
        control::{DaemonStatus, Request, Response},
        events::{FromNatsd, NumberedEvent, ToNatsd},
    },
};
use muster_service::{client::Client, clock, ipc::Connection};
use serde_json::json;

/// measure natsd
#[derive(Parser)]
struct Options {
    /// write the figures there, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// measure only these: sign, rate, latency, backlog
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<String>,
    /// events of the runs for the rate
    #[arg(long, default_value_t = 300_000)]
    events: u64,
    /// events that wait in the spool before the server comes back
    #[arg(long, default_value_t = 1_000_000)]
    backlog: u64,
}

const BATCH: u64 = 500;
/// Batches that the producer sends ahead of natsd's word that it has them.
const AHEAD: u64 = 6;
const AGENTS: u64 = 5_000;
const WINDOW: usize = 256;

#[derive(Default)]
struct Table {
    rows: Vec<serde_json::Value>,
}

impl Table {
    fn add(&mut self, what: &str, value: f64, unit: &str, target: &str) {
        println!("{what:58} {value:>12.1} {unit:4}  wanted: {target}");
        self.rows
            .push(json!({"what": what, "value": value, "unit": unit, "target": target}));
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let mut table = Table::default();
    if wanted("sign") {
        sign(&mut table)?;
    }
    if wanted("rate") {
        rates(&options, &mut table).await?;
    }
    if wanted("latency") {
        for (rate, target) in [(100, "under 5"), (10_000, "under 50")] {
            latency(rate, target, &mut table).await?;
        }
    }
    if wanted("backlog") {
        backlog(&options, &mut table).await?;
    }
    if let Some(path) = &options.json {
        let whole = json!({"name": "nats", "rows": table.rows});
        fs::write(path, format!("{whole:#}\n")).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn sign(table: &mut Table) -> Result<()> {
    let key = nkeys::KeyPair::new_user();
    let bytes = vec![b'x'; 500];
    let begun = cpu_time(std::process::id())?;
    let count = 20_000;
    for _ in 0..count {
        std::hint::black_box(key.sign(&bytes)?);
    }
    let took = cpu_time(std::process::id())?.saturating_sub(begun);
    table.add(
        "one signature, processor time",
        took.as_secs_f64() * 1e6 / f64::from(count),
        "µs",
        "15",
    );
    Ok(())
}

/// Time on a processor, of all threads; what others take on the same machine is not in it.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two looks.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().map_or(Ok(0), str::parse::<u64>)?;
    }
    Ok(Duration::from_nanos(total))
}

async fn rates(options: &Options, table: &mut Table) -> Result<()> {
    let server = Server::start().await?;
    // It makes the streams.
    drop(Home::start(&server, "")?);
    let direct = direct(&server, options.events).await?;
    table.add("published directly, window 256, no spool", direct, "/s", "");
    let mut through = Vec::new();
    for (signing, target) in [("no", "80 % of it"), ("yes", "25,000")] {
        let server = Server::start().await?;
        let home = Home::start(&server, &format!("<message_signing>{signing}</message_signing>"))?;
        home.ready().await?;
        let begun = Instant::now();
        let mut producer = Feeder::connect(&home, 1).await?;
        producer.feed(options.events, None).await?;
        home.wait_until_published(options.events).await?;
        let rate = as_f64(options.events) / begun.elapsed().as_secs_f64();
        let cost = cpu_time(home.child.id())?.as_secs_f64() * 1e6 / as_f64(options.events);
        let what = if signing == "yes" {
            "through the spool, signed"
        } else {
            "through the spool, unsigned"
        };
        table.add(what, rate, "/s", target);
        table.add(
            &format!("  resident memory, {what}"),
            home.resident_mib()?,
            "MiB",
            "under 64",
        );
        table.add(&format!("  processor time per event, {what}"), cost, "µs", "");
        through.push(rate);
    }
    table.add(
        "unsigned through the spool, of direct",
        through[0] / direct * 100.0,
        "%",
        "80",
    );
    Ok(())
}

/// The same messages from the same client, without a spool.
async fn direct(server: &Server, events: u64) -> Result<f64> {
    let client = async_nats::connect(server.url()).await?;
    let jetstream = jetstream::new(client);
    let mut under_way = FuturesUnordered::new();
    let begun = Instant::now();
    for seq in 0..events {
        let event = event(seq);
        let subject = format!("wazuh.xdr.agent.{}.status_change", event.subject_key);
        let mut headers = HeaderMap::new();
        let id = format!("mgr-a:1:{seq}");
        let numbers = [
            seq.to_string(),
            seq.saturating_sub(1).to_string(),
            event.created_ms.to_string(),
        ];
        for (name, value) in [
            ("Nats-Msg-Id", id.as_str()),
            ("Content-Type", "application/json"),
            ("Muster-Ver", "1"),
            ("Muster-Type", "agent.status_change"),
            ("Muster-Subject", subject.as_str()),
            ("Muster-Node", "mgr-a"),
            ("Muster-Epoch", "1"),
            ("Muster-Seq", &numbers[0]),
            ("Muster-Prev", &numbers[1]),
            ("Muster-Time", &numbers[2]),
            ("Muster-Status", "active>disconnected"),
            ("Nats-Expected-Stream", "MUSTER_STATE"),
        ] {
            headers.insert(name, value);
        }
        if under_way.len() >= WINDOW {
            under_way.next().await.context("none under way")??;
        }
        let acknowledged = jetstream
            .publish_with_headers(subject, headers, event.body.into())
            .await?;
        under_way.push(acknowledged.into_future());
    }
    while let Some(acknowledged) = under_way.next().await {
        acknowledged?;
    }
    Ok(as_f64(events) / begun.elapsed().as_secs_f64())
}

async fn latency(rate: u64, target: &str, table: &mut Table) -> Result<()> {
    let server = Server::start().await?;
    let home = Home::start(&server, "<message_signing>yes</message_signing>")?;
    home.ready().await?;
    let client = async_nats::connect(server.url()).await?;
    let stream = jetstream::new(client).get_stream("MUSTER_STATE").await?;
    // What a consumer of the stream gets is stored: the acknowledgement was sent before, or at the same time.
    let config = jetstream::consumer::push::OrderedConfig {
        deliver_subject: "bench.delivered".to_owned(),
        ..Default::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let seconds = 8;
    let count = rate * seconds;
    let sent: Arc<Mutex<BTreeMap<u64, Instant>>> = Arc::default();
    let noted = Arc::clone(&sent);
    let reader = tokio::spawn(async move {
        let mut took = Vec::new();
        while u64::try_from(took.len()).unwrap_or(u64::MAX) < count {
            let Some(Ok(message)) = messages.next().await else {
                break;
            };
            let now = Instant::now();
            let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            let name = body["status_change"]["agent_name"].as_str().unwrap_or_default();
            let number: u64 = name.trim_start_matches("host-").parse().unwrap_or(0);
            let sent = noted.lock().ok().and_then(|mut sent| sent.remove(&number));
            took.extend(sent.map(|sent| now.duration_since(sent)));
        }
        took
    });
    let mut producer = Feeder::connect(&home, 1).await?;
    producer.feed(count, Some((rate, sent))).await?;
    let mut took = tokio::time::timeout(Duration::from_secs(60), reader).await??;
    took.sort_unstable();
    for (name, share) in [("p50", 50), ("p99", 99)] {
        let at = took.len() * share / 100;
        let took = took.get(at.min(took.len() - 1)).copied().unwrap_or_default();
        let target = if name == "p99" { target } else { "" };
        table.add(
            &format!("event to stored, {rate} a second, {name}"),
            took.as_secs_f64() * 1e3,
            "ms",
            target,
        );
    }
    Ok(())
}

async fn backlog(options: &Options, table: &mut Table) -> Result<()> {
    let mut server = Server::start().await?;
    let home = Home::start(
        &server,
        "<message_signing>yes</message_signing><spool max_bytes=\"4GB\"/>",
    )?;
    home.ready().await?;
    server.stop();
    let begun = Instant::now();
    let mut producer = Feeder::connect(&home, 1).await?;
    producer.feed(options.backlog, None).await?;
    let taken = as_f64(options.backlog) / begun.elapsed().as_secs_f64();
    table.add("taken into the spool while the server is away, signed", taken, "/s", "");
    table.add(
        &format!("  resident memory with {} waiting", options.backlog),
        home.resident_mib()?,
        "MiB",
        "under 64",
    );
    server.restart().await?;
    // From the first acknowledgement on: how long it takes until the next attempt to connect is configuration.
    home.wait_until_published(1).await?;
    let begun = Instant::now();
    let live = options.backlog / 50;
    let mut second = Feeder::connect(&home, 2).await?;
    let feeding = second.feed(live, Some((1_000, Arc::default())));
    let total = options.backlog + live;
    let (fed, drained) = tokio::join!(feeding, home.wait_until_published(total - live));
    fed.and(drained)?;
    let rate = as_f64(options.backlog) / begun.elapsed().as_secs_f64();
    home.wait_until_published(total).await?;
    table.add("drained, with 1,000 live events a second", rate, "/s", "the live rate");
    table.add("  resident memory behind it", home.resident_mib()?, "MiB", "under 64");
    Ok(())
}

fn event(number: u64) -> Event {
    let now = clock::unix_ms();
    StatusChange {
        agent_id: &AgentId::new(&format!("{:04}", number % AGENTS)),
        agent_name: &format!("host-{number}"),
        previous_status: AgentStatus::Active,
        current_status: AgentStatus::Disconnected,
        ip_address: "192.168.100.100",
        timestamp: now / 1000,
        reason: Reason::KeepaliveTimeout,
        missed_keepalives: 3,
        alert_level: 3,
    }
    .into_event(now)
}

type Sent = Arc<Mutex<BTreeMap<u64, Instant>>>;

/// A daemon with an outbox that never runs dry.
struct Feeder {
    writer: muster_service::ipc::FrameWriter,
    taken: Arc<AtomicU64>,
    next: u64,
    changed: Arc<tokio::sync::Notify>,
}

impl Feeder {
    async fn connect(home: &Home, incarnation: u64) -> Result<Self> {
        let mut connection = Connection::connect(&home.path.path().join("queue/muster/events"), "bench").await?;
        let producer = format!("bench{incarnation}");
        connection.send(&ToNatsd::Produce { producer, incarnation }).await?;
        let Some(FromNatsd::Resume { .. }) = connection.receive().await? else {
            bail!("natsd did not resume")
        };
        let (mut reader, writer) = connection.into_split();
        let (taken, changed) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (noted, woken) = (Arc::clone(&taken), Arc::clone(&changed));
        tokio::spawn(async move {
            while let Ok(Some(FromNatsd::Taken { number })) = reader.receive().await {
                noted.store(number, Ordering::Relaxed);
                woken.notify_one();
            }
        });
        Ok(Self {
            writer,
            taken,
            next: 1,
            changed,
        })
    }

    /// Hands over so many events, at a rate if one is given, and waits until they are taken.
    async fn feed(&mut self, count: u64, pace: Option<(u64, Sent)>) -> Result<()> {
        let (begun, first) = (Instant::now(), self.next);
        let last = first + count;
        while self.next < last {
            let due = match &pace {
                None => BATCH,
                Some((rate, _)) => {
                    let elapsed = u64::try_from(begun.elapsed().as_millis())?;
                    (first + rate * elapsed / 1000).saturating_sub(self.next)
                }
            };
            if due == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            let batch = due.min(BATCH).min(last - self.next);
            let events = (self.next..self.next + batch).map(|number| NumberedEvent {
                number,
                event: event(number),
            });
            let events: Vec<_> = events.collect();
            if let Some((_, sent)) = &pace {
                let now = Instant::now();
                let mut sent = sent.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
                sent.extend(events.iter().map(|event| (event.number, now)));
            }
            self.writer.send(&ToNatsd::Batch(events)).await?;
            self.next += batch;
            self.wait_for(self.next.saturating_sub(AHEAD * BATCH)).await;
        }
        self.wait_for(last - 1).await;
        Ok(())
    }

    async fn wait_for(&self, number: u64) {
        while self.taken.load(Ordering::Relaxed) < number {
            self.changed.notified().await;
        }
    }
}

struct Server {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    async fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = Self {
            folder: tempfile::tempdir()?,
            port,
            child: None,
        };
        server.restart().await?;
        Ok(server)
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    async fn restart(&mut self) -> Result<()> {
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

    fn stop(&mut self) {
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

struct Home {
    path: tempfile::TempDir,
    child: Child,
}

impl Home {
    /// Streams, and a daemon that publishes to them.
    fn start(server: &Server, options: &str) -> Result<Self> {
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
            .args(["provision", "--share", "10"])
            .stdout(Stdio::null())
            .status()?;
        anyhow::ensure!(made.success(), "provisioning failed");
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

    async fn status(&self) -> Result<DaemonStatus> {
        let socket = self.path.path().join("queue/muster/natsd.ctl");
        let mut client = Client::connect(&socket, "bench", Duration::from_secs(10)).await?;
        match client.ask(&Request::Status).await? {
            Response::Status(status) => Ok(*status),
            _ => bail!("natsd says something else"),
        }
    }

    async fn ready(&self) -> Result<()> {
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
    async fn wait_until_published(&self, count: u64) -> Result<()> {
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

    fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("no VmRSS")?;
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

fn as_f64(number: u64) -> f64 {
    // Counts of events are far below 2^53.
    number as f64
}
