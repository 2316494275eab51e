//! Measures a release build of remoted: `cargo xtask bench remoted`.
//!
//! The daemon is a process of its own in a private home; the fleet, whose messages were sealed beforehand, and the
//! reader in the analysis daemon's place are this process. All share the machine.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use muster_tests::{
    bench::{
        fairness::{self, Latencies, percentile},
        fleet::{Fleet, Sealed},
        keepalives::{self, Rhythm},
        process::{cpu_time, resident_kib},
        reader::{Pace, Reader},
        report::{Report, Row, median},
    },
    daemon::Daemon,
    home::Home,
};
use tokio::{runtime, time};

/// measure remoted
#[derive(Parser)]
struct Options {
    /// write the figures there, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// measure only these: events, paced, loss, keepalives, fairness, memory, reconnect, scheduler
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<String>,
    /// runs of each; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// a line for local_internal_options.conf, such as remoted.gather_msec=0
    #[arg(long, value_name = "OPTION")]
    internal: Vec<String>,
    /// agents of the large fleet
    #[arg(long, default_value_t = 18_000)]
    agents: usize,
}

/// Connections of the measurements of events.
const CONNECTIONS: usize = 100;
/// Bytes of an event's frame, its length included.
const EVENT_LEN: usize = 174;
/// Different events of each agent, sent again and again.
const VARIETY: u32 = 64;
/// Before the clock runs.
const WARM_UP: Duration = Duration::from_secs(1);
/// While it runs.
const MEASURED: Duration = Duration::from_secs(6);
/// Nothing has come for so long: nothing more will.
const QUIET: Duration = Duration::from_secs(2);

type Measurement = fn(&Options, &mut Report) -> Result<()>;

const MEASUREMENTS: [(&str, Measurement); 8] = [
    ("events", events),
    ("paced", paced_events),
    ("loss", loss),
    ("keepalives", keepalives),
    ("fairness", fairness),
    ("memory", memory),
    ("reconnect", reconnect),
    ("scheduler", scheduler),
];

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::new("remoted");
    for (name, measure) in MEASUREMENTS {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            measure(&options, &mut report).with_context(|| format!("measuring {name}"))?;
        }
    }
    report.finish(options.json.as_deref())
}

/// A home, a fleet with keys in it, and a running daemon.
struct Stage {
    home: Home,
    fleet: Fleet,
    remoted: Daemon,
}

impl Stage {
    fn new(options: &Options, agents: usize) -> Result<Self> {
        let home = Home::with(&["--no-password"])?;
        for line in &options.internal {
            home.set_internal(line)?;
        }
        // Stock agents' own rhythm, and nothing sent by us.
        home.set_in("remote", "<manager_keepalive><enabled>no</enabled></manager_keepalive>")?;
        let fleet = Fleet::new(agents, home.port());
        fleet.register(home.path())?;
        let remoted = home.start_quiet("remoted")?;
        Ok(Self { home, fleet, remoted })
    }

    fn cpu(&self) -> Result<Duration> {
        cpu_time(self.remoted.pid())
    }
}

/// How fast events are sent.
#[derive(Clone, Copy)]
enum Rate {
    Unlimited,
    /// Each agent, every so often, one.
    Every(Duration),
}

/// Threads that send events.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(fleet: &Fleet, port: u16, rate: Rate) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for part in fleet.agents.chunks(fleet.agents.len().div_ceil(2)) {
            let mut senders = Vec::new();
            for agent in part {
                senders.push(Sender::new(agent, port)?);
            }
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            threads.push(thread::spawn(move || match rate {
                Rate::Unlimited => flood(&mut senders, &stop, &sent),
                Rate::Every(pause) => pace(&mut senders, pause, &stop, &sent),
            }));
        }
        Ok(Self { stop, sent, threads })
    }

    /// Stops, and says how many events were handed to the system.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

struct Sender {
    stream: TcpStream,
    events: Vec<Vec<u8>>,
    together: Vec<u8>,
    next: usize,
}

impl Sender {
    fn new(agent: &Sealed, port: u16) -> Result<Self> {
        let events: Vec<Vec<u8>> = (0..VARIETY)
            .map(|number| agent.event(number, EVENT_LEN))
            .collect::<Result<_>>()?;
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            together: events.concat(),
            events,
            next: 0,
        })
    }
}

fn flood(senders: &mut [Sender], stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        for sender in &mut *senders {
            sender.stream.write_all(&sender.together)?;
            sent.fetch_add(u64::from(VARIETY), Ordering::Relaxed);
        }
    }
    Ok(())
}

fn pace(senders: &mut [Sender], pause: Duration, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let step = pause / u32::try_from(senders.len())?;
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for sender in &mut *senders {
            due += step;
            if let Some(left) = due.checked_duration_since(Instant::now()) {
                thread::park_timeout(left);
            }
            sender.stream.write_all(&sender.events[sender.next])?;
            sender.next = (sender.next + 1) % sender.events.len();
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Processor time for each event, and events a second, of one run.
fn run_events(options: &Options, rate: Rate) -> Result<(f64, f64)> {
    let stage = Stage::new(options, CONNECTIONS)?;
    let reader = Reader::listen(stage.home.path(), Pace::Steady)?;
    let load = Load::start(&stage.fleet, stage.home.port(), rate)?;
    thread::park_timeout(WARM_UP);
    let (cpu, count, begun) = (stage.cpu()?, reader.count(), Instant::now());
    thread::park_timeout(MEASURED);
    let (cpu, count, took) = (stage.cpu()? - cpu, reader.count() - count, begun.elapsed());
    load.stop()?;
    ensure!(count > 0, "no event arrived");
    let events = as_f64(count);
    Ok((cpu.as_secs_f64() * 1e6 / events, events / took.as_secs_f64()))
}

fn events(options: &Options, report: &mut Report) -> Result<()> {
    let (mut costs, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let (cost, rate) = run_events(options, Rate::Unlimited)?;
        costs.push(cost);
        rates.push(rate);
    }
    report.add(Row {
        what: "CPU of remoted per event, as many as it takes".into(),
        value: median(&costs),
        unit: "µs",
        target: "5 µs, then lower",
        stock: "15 µs",
        runs: costs,
        conditions: format!("{EVENT_LEN}-byte AES frames, TCP, {CONNECTIONS} connections, a datagram reader"),
    });
    report.add(Row {
        what: "events a second, as many as it takes".into(),
        value: median(&rates),
        unit: "/s",
        target: "",
        stock: "",
        runs: rates,
        conditions: "the same run; senders, remoted and reader share the cores".into(),
    });
    Ok(())
}

fn paced_events(options: &Options, report: &mut Report) -> Result<()> {
    let mut costs = Vec::new();
    for _ in 0..options.runs {
        costs.push(run_events(options, Rate::Every(Duration::from_millis(20)))?.0);
    }
    report.add(Row {
        what: "CPU of remoted per event, one by one".into(),
        value: median(&costs),
        unit: "µs",
        target: "",
        stock: "",
        runs: costs,
        conditions: format!(
            "{CONNECTIONS} connections with 50 events a second each, evenly spread: a read for each event"
        ),
    });
    Ok(())
}

/// Offered more than the reader takes: what is sent must come, as the senders are slowed down.
fn loss(options: &Options, report: &mut Report) -> Result<()> {
    let (mut lost, mut counted, mut sent_events) = (Vec::new(), Vec::new(), 0);
    for _ in 0..options.runs {
        let stage = Stage::new(options, CONNECTIONS)?;
        let pace = Pace::Bursts {
            read: Duration::from_millis(300),
            rest: Duration::from_millis(700),
        };
        let reader = Reader::listen(stage.home.path(), pace)?;
        let load = Load::start(&stage.fleet, stage.home.port(), Rate::Unlimited)?;
        thread::park_timeout(MEASURED);
        let sent = load.stop()?;
        let came = reader.settle(QUIET);
        sent_events += sent;
        lost.push(as_f64(sent - came) * 100.0 / as_f64(sent));
        let dropped = ["full", "no_reader", "too_long"].map(|reason| {
            let name = format!("remoted_events_dropped_{reason}_total");
            stage.home.counter("remoted", &name)
        });
        let mut sum = 0;
        for dropped in dropped {
            sum += dropped?;
        }
        counted.push(as_f64(sum));
    }
    report.add(Row {
        what: "events lost when offered more than can be taken".into(),
        value: median(&lost),
        unit: "%",
        target: "none",
        stock: "95 %",
        runs: lost,
        conditions: format!(
            "TCP, {CONNECTIONS} connections, unlimited senders, a reader that reads 300 ms of every second; {sent_events} \
             events in all runs, of which {} were counted as dropped",
            counted.iter().sum::<f64>()
        ),
    });
    Ok(())
}

/// Agents of the measurement of keepalives.
const KEEPALIVE_AGENTS: usize = 2_000;

fn keepalives(options: &Options, report: &mut Report) -> Result<()> {
    for (rhythm, agents, when) in [
        (Rhythm::EverySecond, KEEPALIVE_AGENTS, "one a second each"),
        (Rhythm::Acknowledged, KEEPALIVE_AGENTS, "as many as it takes"),
    ] {
        for (changing, what) in [(false, "the same text each time"), (true, "another text each time")] {
            let mut costs = Vec::new();
            for _ in 0..options.runs {
                let Stage { home, fleet, remoted } = Stage::new(options, agents)?;
                costs.push(keepalives::measure(&home, &remoted, &fleet, rhythm, changing)?);
            }
            let rate = median(&costs.iter().map(|cost| cost.rate).collect::<Vec<_>>());
            let each: Vec<f64> = costs.iter().map(|cost| cost.each).collect();
            report.add(Row {
                what: format!("CPU of remoted per keepalive, {when}, {what}"),
                value: median(&each),
                unit: "µs",
                target: "20 µs",
                stock: "370 µs",
                runs: each,
                conditions: format!(
                    "{agents} TCP agents, {rate:.0} keepalives a second; acknowledgement and database write included"
                ),
            });
        }
    }
    Ok(())
}

/// Some of the times of a run.
type Which = fn(&Latencies) -> &[f64];

/// How much later other agents' messages are while one agent sends as much as it can, compared with its sending to
/// another manager on the same machine.
fn fairness(options: &Options, report: &mut Report) -> Result<()> {
    let mut runs = Vec::new();
    for _ in 0..options.runs {
        let (stage, other) = (
            Stage::new(options, fairness::AGENTS)?,
            Stage::new(options, fairness::AGENTS)?,
        );
        let reader = Reader::listen(other.home.path(), Pace::Steady)?;
        let run = |flooded| fairness::measure(stage.home.path(), stage.home.port(), &stage.fleet.agents, flooded);
        runs.push((run(other.home.port())?, run(stage.home.port())?));
        drop(reader);
    }
    let flood = median(&runs.iter().map(|(_, flooded)| flooded.flood).collect::<Vec<_>>());
    let whats: [(&str, Which); 2] = [
        ("events until the reader has them", |latencies| &latencies.events),
        ("keepalives until they are acknowledged", |latencies| {
            &latencies.keepalives
        }),
    ];
    for (what, of) in whats {
        let at = |percent, flooded: bool| {
            let pick = |run: &(Latencies, Latencies)| percentile(of(if flooded { &run.1 } else { &run.0 }), percent);
            median(&runs.iter().map(pick).collect::<Vec<_>>())
        };
        let ratios: Vec<f64> = runs
            .iter()
            .map(|(quiet, flooded)| percentile(of(flooded), 99) / percentile(of(quiet), 99))
            .collect();
        report.add(Row {
            what: format!("p99 latency of other agents' {what}, while one agent floods the same manager, against another one"),
            value: median(&ratios),
            unit: "times",
            target: "2 times",
            stock: "",
            runs: ratios,
            conditions: format!(
                "half of them take {:.2} ms and 99 % {:.2} ms while another manager on this machine is flooded, {:.2} ms \
                 and {:.2} ms while theirs is; the flood is {flood:.0} events a second on one connection, as many as \
                 are taken",
                at(50, false),
                at(99, false),
                at(50, true),
                at(99, true),
            ),
        });
    }
    Ok(())
}

/// The keepalive scheduler, timed by a program of its own, since it needs no daemon.
fn scheduler(_: &Options, report: &mut Report) -> Result<()> {
    let Some(program) = std::env::var_os("MUSTER_SCHEDULER_BENCH") else {
        eprintln!("scheduler: left out, `cargo xtask bench remoted` builds what it needs");
        return Ok(());
    };
    let output = std::process::Command::new(program)
        .output()
        .context("running the scheduler's bench")?;
    let said = String::from_utf8(output.stdout)?;
    let due = said
        .lines()
        .find_map(|line| line.strip_prefix("each that is due, sent and put back: "));
    let (value, conditions) = due
        .and_then(|due| due.split_once(" µs "))
        .context("no figure of the scheduler")?;
    let value: f64 = value.parse().context("the scheduler's figure is no number")?;
    report.add(Row {
        what: "keepalive scheduler, one million agents, for each that is due".into(),
        value,
        unit: "µs",
        target: "1 µs",
        stock: "",
        runs: vec![value],
        conditions: format!("two rounds of all agents, one thread {conditions}"),
    });
    Ok(())
}

fn memory(options: &Options, report: &mut Report) -> Result<()> {
    let stage = Stage::new(options, options.agents)?;
    let before = resident_kib(stage.remoted.pid())?;
    runtime()?.block_on(async {
        let connections = stage.fleet.connect().await?;
        time::sleep(Duration::from_secs(3)).await;
        let after = resident_kib(stage.remoted.pid())?;
        let agents = as_f64(connections.len() as u64);
        report.add(Row {
            what: "memory per connected idle agent".into(),
            value: as_f64(after.saturating_sub(before)) / agents,
            unit: "KiB",
            target: "8 KiB",
            stock: "11 KiB",
            runs: vec![as_f64(after.saturating_sub(before)) / agents],
            conditions: format!(
                "resident memory after less before {} agents connected; their keys were loaded before",
                connections.len()
            ),
        });
        report.add(Row {
            what: format!("resident memory with {} TCP agents", connections.len()),
            value: as_f64(after) / 1024.0,
            unit: "MiB",
            target: "180 MiB",
            stock: "",
            runs: vec![as_f64(after) / 1024.0],
            conditions: format!("all of it; {:.0} MiB with the keys alone", as_f64(before) / 1024.0),
        });
        anyhow::Ok(())
    })
}

/// Agents of the reconnect storm.
const STORM: usize = 10_000;

fn reconnect(options: &Options, report: &mut Report) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..options.runs {
        let Stage { home, fleet, remoted } = Stage::new(options, STORM)?;
        times.push(runtime()?.block_on(async {
            let connections = fleet.connect().await?;
            remoted.kill()?;
            drop(connections);
            let remoted = home.start_quiet("remoted")?;
            let begun = Instant::now();
            let connections = fleet.connect().await?;
            loop {
                let status = home.status("remoted")?;
                let active = status["facts"]
                    .as_array()
                    .and_then(|facts| facts.iter().find(|fact| fact[0] == "active"))
                    .or_else(|| status["facts"].get("active").map(|_| &status["facts"]))
                    .context("no count of active agents in the status")?;
                let active = active
                    .get("active")
                    .or_else(|| active.get(1))
                    .and_then(|text| text.as_str());
                if active == Some(STORM.to_string().as_str()) {
                    break;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
            let took = begun.elapsed().as_secs_f64();
            drop((connections, remoted));
            anyhow::Ok(took)
        })?);
    }
    report.add(Row {
        what: format!("{STORM} agents reconnect at once"),
        value: median(&times),
        unit: "s",
        target: "10 s",
        stock: "",
        runs: times,
        conditions: "remoted was killed and is back; until every startup and first keepalive is acknowledged and the \
                     status counts all as active; the fleet's own work is in it"
            .into(),
    });
    Ok(())
}

fn runtime() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread().enable_all().build()?)
}

fn as_f64(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
