//! Measures a release build of authd, and how soon remoted knows a new key: `cargo xtask bench authd`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Parser;
use muster_tests::{
    agent::{Agent, Carrier, Family},
    bench::{
        fleet::Sealed,
        process::cpu_time,
        report::{Report, Row, median},
    },
    enroll,
    home::Home,
};

/// measure authd
#[derive(Parser)]
struct Options {
    /// write the figures there, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// measure only these: enrollments, key
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<String>,
    /// runs of each; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// clients that enroll at the same time
    #[arg(long, default_value_t = 32)]
    clients: usize,
}

/// How long clients enroll.
const MEASURED: Duration = Duration::from_secs(8);
/// Keys that are there before a new one is made.
const REGISTERED: usize = 10_000;
/// New keys of one run.
const NEW_KEYS: usize = 20;
/// Between two attempts to be heard with a new key.
const RETRY: Duration = Duration::from_millis(1);

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::new("authd");
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    if wanted("enrollments") {
        enrollments(&options, &mut report)?;
    }
    if wanted("key") {
        new_key(&options, &mut report)?;
    }
    report.finish(options.json.as_deref())
}

fn enrollments(options: &Options, report: &mut Report) -> Result<()> {
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let home = Home::with(&["--no-password"])?;
        let authd = home.start_quiet("authd")?;
        let (count, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let before = cpu_time(authd.pid())?;
        let clients: Vec<_> = (0..options.clients)
            .map(|client| {
                let (port, count) = (home.enroll_port(), Arc::clone(&count));
                thread::spawn(move || -> Result<()> {
                    for number in 0.. {
                        if begun.elapsed() >= MEASURED {
                            break;
                        }
                        enroll::enroll(port, &format!("bench-{client}-{number}"))?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        let (cpu, took) = (cpu_time(authd.pid())? - before, begun.elapsed());
        let enrolled = u32::try_from(count.load(Ordering::Relaxed))?;
        let kept = home.client_keys()?.lines().count();
        ensure!(
            kept >= usize::try_from(enrolled)?,
            "{enrolled} agents have a key, {kept} are in the file"
        );
        rates.push(f64::from(enrolled) / took.as_secs_f64());
        costs.push(cpu.as_secs_f64() * 1e6 / f64::from(enrolled));
    }
    let conditions = format!(
        "{} clients on the same machine, TLS 1.3, one connection each, RSA-2048, the key on the disk before the answer",
        options.clients
    );
    report.add(Row {
        what: "enrollments a second".into(),
        value: median(&rates),
        unit: "/s",
        target: "1,500",
        stock: "800",
        runs: rates,
        conditions,
    });
    report.add(Row {
        what: "CPU of authd per enrollment".into(),
        value: median(&costs),
        unit: "µs",
        target: "",
        stock: "",
        runs: costs,
        conditions: "the same runs".into(),
    });
    Ok(())
}

/// From the answer of authd to the first acknowledgement of remoted.
fn new_key(options: &Options, report: &mut Report) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..options.runs {
        let home = Home::with(&["--no-password"])?;
        let lines: String = (0..REGISTERED)
            .map(|number| format!("{}\n", Sealed::new(number).key_line()))
            .collect();
        let path = home.path().join("etc/client.keys");
        fs::write(&path, lines)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        let _authd = home.start_quiet("authd")?;
        let _remoted = home.start_quiet("remoted")?;
        let mut slowest = Duration::ZERO;
        for number in 0..NEW_KEYS {
            let key = home.enroll(&format!("new-{number}"))?;
            let begun = Instant::now();
            let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
            while agent.hello().is_err() {
                ensure!(
                    begun.elapsed() < Duration::from_secs(30),
                    "remoted does not take a new key"
                );
                thread::park_timeout(RETRY);
            }
            slowest = slowest.max(begun.elapsed());
        }
        times.push(slowest.as_secs_f64() * 1e3);
    }
    report.add(Row {
        what: "new key usable by remoted".into(),
        value: median(&times),
        unit: "ms",
        target: "50 ms",
        stock: "up to 10 s",
        runs: times,
        conditions: format!(
            "from authd's answer to remoted's first acknowledgement, the slowest of {NEW_KEYS} one after the other, with \
             {REGISTERED} agents registered"
        ),
    });
    Ok(())
}
