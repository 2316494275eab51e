//! Measures a release build of keypolld, with authd and remoted beside it: `cargo xtask bench keypoll`.

use std::{
    fs,
    io::{BufRead, Read, Write},
    os::unix::net::{UnixDatagram, UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use muster_tests::{
    agent::Key,
    bench::{
        process::{cpu_time, family_time},
        report::{Report, Row, median},
    },
    daemon::Daemon,
    home::Home,
    keys_database::{KeysDatabase, Kind, Scripts},
    swarm::Swarm,
};

/// measure keypolld
#[derive(Parser)]
struct Options {
    /// write the figures there, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// measure only these: socket, persistent, python, exec, shell, first
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<String>,
    /// runs of each; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// agents in the database
    #[arg(long, default_value_t = 20_000)]
    keys: usize,
    /// look-ups by starting a program; the start alone takes milliseconds
    #[arg(long, default_value_t = 400)]
    starts: usize,
    /// look-ups at one time
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// be the program that is kept running
    #[arg(long, hide = true)]
    answer: bool,
}

/// Agents that come in one after the other.
const FIRST_PACKETS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the key file.
const LOOK: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    let options = Options::parse();
    if options.answer {
        return answer_lines();
    }
    let mut report = Report::new("keypoll");
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    for (name, what, target) in [
        ("socket", "look-ups over a socket", "5,000"),
        ("persistent", "look-ups by a program kept running", "5,000"),
        ("python", "the same, shipped Python script and SQLite", ""),
    ] {
        if wanted(name) {
            resolved(&options, &mut report, name, what, target)?;
        }
    }
    for (name, script) in [("exec", "Python"), ("shell", "shell")] {
        if wanted(name) {
            started(&options, &mut report, script)?;
        }
    }
    if wanted("first") {
        first_message(&options, &mut report)?;
    }
    report.finish(options.json.as_deref())
}

fn agent(number: usize) -> Key {
    Key {
        id: format!("{number:03}"),
        name: format!("bench-{number}"),
        address: "any".to_owned(),
        key: format!("{number:064x}"),
    }
}

fn line(agent: Key) -> String {
    let Key { id, name, address, key } = agent;
    format!("{id} {name} {address} {key}\n")
}

fn answer_to(id: &str) -> String {
    let number = id.parse().unwrap_or(0);
    let Key { id, name, address, key } = agent(number);
    format!(r#"{{"error":0,"data":{{"id":"{id}","name":"{name}","ip":"{address}","key":"{key}"}}}}"#)
}

/// The program that is kept running: reads the value, nothing else.
fn answer_lines() -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let value = line.rsplit("\":\"").next().unwrap_or_default().trim_end_matches("\"}");
        writeln!(stdout, "{}", answer_to(value))?;
    }
    Ok(())
}

/// A service of so many threads that knows every agent.
fn serve(path: &Path, threads: usize) -> Result<()> {
    let listener = Arc::new(UnixListener::bind(path)?);
    for _ in 0..threads {
        let listener = Arc::clone(&listener);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut buffer = [0; 128];
                let length = stream.read(&mut buffer).unwrap_or(0);
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let _ = stream.write_all(answer_to(request.trim_start_matches("id:")).as_bytes());
            }
        });
    }
    Ok(())
}

/// A manager without limits on look-ups.
struct Manager {
    home: Home,
    authd: Daemon,
    remoted: Daemon,
    keypolld: Daemon,
}

fn set(home: &Home, options: &Options, sources: &str) -> Result<()> {
    home.set_in(
        "auth",
        &format!(
            "<key_request>{sources}<threads>{}</threads><queue_size>220000</queue_size><deadline>1h</deadline>\
             <rate_per_address>off</rate_per_address><rate_total>off</rate_total></key_request>",
            options.threads
        ),
    )
}

impl Manager {
    fn start(home: Home) -> Result<Self> {
        Ok(Self {
            authd: home.start_quiet("authd")?,
            remoted: home.start_quiet("remoted")?,
            keypolld: home.start_quiet("keypolld")?,
            home,
        })
    }

    /// Asks for these agents, and waits until all are in the key file: how long it took. Looking at the file's length
    /// costs nothing, reading it a hundred times a second would.
    fn poll(&self, agents: std::ops::RangeInclusive<usize>) -> Result<Duration> {
        let path = self.home.path().join("etc/client.keys");
        let length = || fs::metadata(&path).map_or(0, |file| file.len());
        let wanted = length()
            + agents
                .clone()
                .map(|number| line(agent(number)).len() as u64)
                .sum::<u64>();
        let begun = Instant::now();
        ask(&self.home, agents.clone())?;
        while length() < wanted {
            ensure!(
                begun.elapsed() < PATIENCE,
                "{} of {wanted} bytes of key lines are there",
                length()
            );
            thread::park_timeout(LOOK);
        }
        let took = begun.elapsed();
        let text = fs::read_to_string(&path)?;
        for number in [*agents.start(), *agents.end()] {
            ensure!(text.contains(&line(agent(number))), "agent {number} is not registered");
        }
        Ok(took)
    }

    /// The same for the first so many agents, and what each daemon worked for one of them, in microseconds.
    fn measure(&self, agents: usize) -> Result<(Duration, [f64; 3])> {
        let before = self.cpu()?;
        let took = self.poll(1..=agents)?;
        let mut costs = [0.0; 3];
        for (cost, (after, before)) in costs.iter_mut().zip(self.cpu()?.into_iter().zip(before)) {
            *cost = (after - before).as_secs_f64() * 1e6 / agents as f64;
        }
        Ok((took, costs))
    }

    /// What keypolld, its programs and authd have worked.
    fn worked(&self) -> Result<Duration> {
        Ok(family_time(self.keypolld.pid())? + family_time(self.authd.pid())?)
    }

    fn cpu(&self) -> Result<[Duration; 3]> {
        Ok([
            cpu_time(self.keypolld.pid())?,
            cpu_time(self.authd.pid())?,
            cpu_time(self.remoted.pid())?,
        ])
    }
}

fn in_words(costs: &[[f64; 3]]) -> String {
    let of = |daemon: usize| median(&costs.iter().map(|run| run[daemon]).collect::<Vec<_>>());
    format!(
        "CPU per key: keypolld {:.0} µs, authd {:.0} µs, remoted {:.0} µs",
        of(0),
        of(1),
        of(2)
    )
}

fn resolved(
    options: &Options,
    report: &mut Report,
    name: &str,
    what: &'static str,
    target: &'static str,
) -> Result<()> {
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let home = Home::with(&["--no-password"])?;
        let mut database = None;
        let sources = match name {
            "socket" => {
                let path = home.path().join("source.sock");
                serve(&path, options.threads)?;
                format!("<socket>{}</socket>", path.display())
            }
            "persistent" => {
                let own = std::env::current_exe()?;
                format!(
                    "<exec_path>{} --answer</exec_path><exec_mode>persistent</exec_mode>",
                    own.display()
                )
            }
            _ => {
                let known = full_database(options.keys)?;
                let command = Scripts::install(&home, &known)?.python("--persistent");
                database = Some(known);
                format!("<exec_path>{command}</exec_path><exec_mode>persistent</exec_mode>")
            }
        };
        set(&home, options, &sources)?;
        let manager = Manager::start(home)?;
        let (took, cost) = manager.measure(options.keys)?;
        rates.push(options.keys as f64 / took.as_secs_f64());
        costs.push(cost);
        drop(database);
    }
    let conditions = format!(
        "{} keys, {} threads; keypolld, authd, remoted and the source on the same machine; each key on the disk. {}",
        options.keys,
        options.threads,
        in_words(&costs)
    );
    report.add(Row {
        what: what.into(),
        value: median(&rates),
        unit: "/s",
        target,
        stock: "",
        runs: rates,
        conditions,
    });
    Ok(())
}

fn full_database(keys: usize) -> Result<KeysDatabase> {
    let database = KeysDatabase::start(Kind::Sqlite)?;
    database.insert(&(1..=keys).map(agent).collect::<Vec<_>>())?;
    Ok(database)
}

/// Some starts: how long they took, and how long processors worked for them.
struct Starts {
    took: Duration,
    worked: Duration,
}

/// The same script started by us, one after the other by each of so many threads.
fn bare_starts(command: &str, options: &Options) -> Result<Starts> {
    let own = std::process::id();
    let worked = family_time(own)?;
    let words: Vec<&str> = command.split_whitespace().collect();
    let (program, arguments) = words.split_first().context("no program")?;
    let next = AtomicUsize::new(1);
    let begun = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..options.threads)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number > options.starts {
                            return Ok(());
                        }
                        let output = Command::new(program)
                            .args(arguments)
                            .args(["id", &agent(number).id])
                            .stdin(Stdio::null())
                            .output()?;
                        ensure!(output.status.success() && !output.stdout.is_empty());
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    Ok(Starts {
        took: begun.elapsed(),
        worked: family_time(own)? - worked,
    })
}

/// Look-ups by a program that is started for each, in turn with the same starts by us: other things go on on a machine.
fn started(options: &Options, report: &mut Report, name: &str) -> Result<()> {
    let (mut shares, mut rates, mut costs) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..options.runs {
        let home = Home::with(&["--no-password"])?;
        let database = full_database(options.starts)?;
        let scripts = Scripts::install(&home, &database)?;
        let command = match name {
            "Python" => scripts.python(""),
            _ => scripts.shell(),
        };
        set(&home, options, &format!("<exec_path>{command}</exec_path>"))?;
        let manager = Manager::start(home)?;
        let before = bare_starts(&command, options)?;
        let idle = manager.worked()?;
        let took = manager.poll(1..=options.starts)?;
        let ours = Starts {
            took,
            worked: manager.worked()? - idle,
        };
        let after = bare_starts(&command, options)?;
        rates.push(options.starts as f64 / took.as_secs_f64());
        shares.push((before.took + after.took).as_secs_f64() / took.as_secs_f64() * 50.0);
        let cost = |worked: Duration| worked.as_secs_f64() * 1e3 / options.starts as f64;
        costs[0].push(cost((before.worked + after.worked) / 2));
        costs[1].push(cost(ours.worked));
    }
    report.add(Row {
        what: format!("look-ups by starting the {name} script, share of what fork and exec allow"),
        value: median(&shares),
        unit: "%",
        target: "90 %",
        stock: "",
        runs: shares,
        conditions: format!(
            "{} threads, SQLite; {:.0} keys a second; CPU per key {:.2} ms, authd's and the script's in it, and {:.2} ms \
             for the script alone",
            options.threads,
            median(&rates),
            median(&costs[1]),
            median(&costs[0])
        ),
    });
    Ok(())
}

/// Asks for these agents as remoted does.
fn ask(home: &Home, agents: std::ops::RangeInclusive<usize>) -> Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(home.path().join("queue/sockets/krequest"))?;
    for number in agents {
        socket.send(format!("id:{number:03}").as_bytes())?;
    }
    Ok(())
}

/// From an agent's first packet to its acknowledged startup, each agent a fleet of its own that comes again at once.
fn first_message(options: &Options, report: &mut Report) -> Result<()> {
    let mut slowest_of_runs = Vec::new();
    for _ in 0..options.runs {
        let home = Home::with(&["--no-password"])?;
        let path = home.path().join("source.sock");
        serve(&path, options.threads)?;
        set(&home, options, &format!("<socket>{}</socket>", path.display()))?;
        let manager = Manager::start(home)?;
        manager.poll(1..=options.keys)?;
        let mut slowest = 0.0_f64;
        for number in options.keys + 1..=options.keys + FIRST_PACKETS {
            let keys = manager.home.path().join("one.keys");
            fs::write(&keys, line(agent(number)))?;
            let mut fleet = Swarm::with_keys(&manager.home, &keys, &["--agents", "1", "--retry-interval", "0.005"])?;
            let ready = fleet.line("ready", PATIENCE)?;
            slowest = slowest.max(ready["elapsed_ms"].as_f64().context("no time")?);
        }
        slowest_of_runs.push(slowest);
    }
    report.add(Row {
        what: "from an unknown agent's first packet to its first accepted message".into(),
        value: median(&slowest_of_runs),
        unit: "ms",
        target: "200 ms",
        stock: "up to 10 s",
        runs: slowest_of_runs,
        conditions: format!(
            "muster-swarm, coming again every 5 ms; the slowest of {FIRST_PACKETS} agents, with {} registered",
            options.keys
        ),
    });
    Ok(())
}
