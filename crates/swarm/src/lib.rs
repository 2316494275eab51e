//! A simulated fleet that speaks the real agent protocol: thousands of agents in one process, for demos, tests,
//! benchmarks and capacity planning.
//!
//! [`agent`] is one agent as decisions only. A task of its own for each agent connects it, seals what it says and opens
//! what it hears; buffers and ciphers are shared, so that an idle agent costs little more than its socket. The
//! fleet carries out orders ([`command`]) and keeps the account ([`account`]).
//!
//! **It must never** know a daemon: what it knows of the manager is what an agent sees.
//!
//! What a fleet is made of and what happens to it comes from the command line or from a file ([`scenario`]).
//!
//! Read [`agent::Agent`] and [`account::Tally`] first.
//!
//! ```
//! use muster_swarm::mix::Mix;
//!
//! let mix: Mix = "wazuh-aes-tcp=30,wazuh-blowfish-udp=10,ossec3=5,ossec4=5".parse()?;
//! assert_eq!(mix.deal(50).len(), 50);
//! # Ok::<(), muster_swarm::mix::MixError>(())
//! ```

pub mod account;
pub mod agent;
pub mod cli;
pub mod command;
mod descriptors;
mod dice;
mod enroll;
mod fleet;
mod link;
pub mod mix;
pub mod scenario;
mod session;

use std::{
    fs,
    io::{self, BufRead, Write},
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use muster_proto::keys::Secret;
use tokio::{
    net::lookup_host,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::LocalSet,
};

pub use crate::dice::Dice;
use crate::{
    account::{Line, Standing},
    cli::{Cli, Output},
    command::Command,
    descriptors::Needs,
    enroll::Outcome,
    fleet::{Counters, Launch, Order, Running, millis},
    mix::Carrier,
    scenario::{Recruit, Scenario},
};

/// Orders that may wait while the fleet is busy; whoever writes more waits.
const MAX_WAITING_ORDERS: usize = 64;

/// Runs a whole fleet, from the first enrollment to the last goodbye.
pub fn run(cli: &Cli) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    LocalSet::new().block_on(&runtime, play(cli))
}

async fn play(cli: &Cli) -> Result<ExitCode> {
    let output = cli.output;
    let tell = move |line: &Line| {
        let text = match output {
            Output::Text => line.text(),
            Output::Json => line.json(),
        };
        // Whoever has stopped listening still wants the agents to go on, or ends us by other means.
        let _ = writeln!(io::stdout().lock(), "{text}");
    };
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (mut interrupt, mut terminate) = (interrupt.context("SIGINT")?, terminate.context("SIGTERM")?);
    let quit = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::pin!(quit);

    let mut scenario = cli.scenario()?;
    if cli.check {
        let _ = write!(io::stdout().lock(), "{}", scenario.plan());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(folder) = &scenario.keep_files {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let wanted = cli.agents.unwrap_or_else(|| scenario.agents());
    let mut recruits = scenario.recruits(wanted, cli.naming());
    let needs = needs(&scenario, &recruits);
    let granted = descriptors::grant(needs.all()).context("cannot raise the limit of open files")?;
    let shares = needs.share(granted);
    for text in shortage(needs, shares) {
        tell(&Line::Note { text });
    }
    let mut tcp_left = shares.tcp;
    recruits.retain(|recruit| {
        recruit.kind.carrier == Carrier::Udp || {
            let there_is_one = tcp_left > 0;
            tcp_left = tcp_left.saturating_sub(1);
            there_is_one
        }
    });
    let manager = resolve(cli.connect.as_deref().unwrap_or_default()).await?;
    let mut orders = listen();

    let began = Instant::now();
    let outcome = tokio::select! {
        outcome = keys(cli, recruits) => outcome?,
        () = &mut quit => return Ok(ExitCode::FAILURE),
    };
    if cli.keys.is_none() {
        tell(&Line::Enrolled {
            agents: outcome.enrolled.len(),
            refused: outcome.refused,
            reasons: outcome.reasons.clone(),
            elapsed_ms: millis(began.elapsed()),
        });
    }
    if outcome.enrolled.is_empty() {
        bail!(
            "no agent has a key: {}",
            outcome.reasons.first().map_or("the key file has none", String::as_str)
        );
    }
    if let Some(path) = &cli.save_keys {
        save(path, &enroll::to_key_file(&outcome.enrolled))?;
    }
    let standing = Standing {
        agents: wanted,
        enrolled: outcome.enrolled.len(),
        enroll_refused: outcome.refused,
        ..Standing::default()
    };
    let counters = if cli.keys.is_some() {
        Counters::Unknown
    } else {
        Counters::New
    };
    let duration = scenario.duration.take();
    let dice = Dice::new(cli.seed.or(scenario.seed).unwrap_or(1));
    let running = Running::start(Launch {
        manager,
        scenario,
        agents: outcome.enrolled,
        counters,
        dice,
        standing,
        udp_sockets: shares.udp_sockets,
    })
    .context("cannot open the sockets that UDP agents share")?;
    let report = running.run(&mut orders, duration, quit, &tell).await;
    tell(&Line::Account(report));
    Ok(ExitCode::SUCCESS)
}

async fn keys(cli: &Cli, recruits: Vec<Recruit>) -> Result<Outcome> {
    if let Some(path) = &cli.keys {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(enroll::from_key_file(&text, recruits));
    }
    let server = resolve(cli.enroll.as_deref().unwrap_or_default()).await?;
    let password = cli.password_file.as_deref().map(first_line).transpose()?;
    enroll::over_tls(server, password.as_ref(), recruits).await
}

/// What the fleet needs sockets for.
fn needs(scenario: &Scenario, recruits: &[Recruit]) -> Needs {
    let udp = recruits
        .iter()
        .filter(|recruit| recruit.kind.carrier == Carrier::Udp)
        .count();
    let groups = scenario.groups.iter().enumerate();
    let udp_least = groups
        .filter(|(place, group)| {
            group.kind.carrier == Carrier::Udp && recruits.iter().any(|recruit| recruit.group == *place)
        })
        .map(|(_, group)| group.sources.len().max(1))
        .sum();
    let clones = scenario.story.iter().filter_map(|scene| match &scene.command {
        Command::Clone(who, _) => Some(who.at_most(recruits.len())),
        _ => None,
    });
    Needs {
        tcp: recruits.len() - udp,
        udp,
        udp_least,
        udp_most: scenario.udp_sockets.unwrap_or(usize::MAX),
        clones: clones.sum(),
    }
}

/// What to say when the system grants less than is asked for.
fn shortage(needs: Needs, shares: descriptors::Shares) -> Vec<String> {
    let mut notes = Vec::new();
    if shares.tcp < needs.tcp {
        notes.push(format!(
            "only {} of {} TCP agents: each needs a descriptor, and the hard limit of open files is too low",
            shares.tcp, needs.tcp
        ));
    }
    if shares.udp_sockets < needs.udp {
        let sockets = match shares.udp_sockets {
            1 => "one socket".to_owned(),
            more => format!("{more} sockets"),
        };
        notes.push(format!("{} UDP agents share {sockets}", needs.udp));
    }
    notes
}

async fn resolve(place: &str) -> Result<SocketAddr> {
    let mut found = lookup_host(place)
        .await
        .with_context(|| format!("`{place}` should be an address and a port"))?;
    found.next().with_context(|| format!("`{place}` has no address"))
}

fn first_line(path: &Path) -> Result<Secret> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Secret::new(text.split('\n').next().unwrap_or_default().to_owned()))
}

/// Keys are for nobody else's eyes.
fn save(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads orders from standard input, in a thread of its own since reading a terminal cannot be waited for otherwise.
fn listen() -> mpsc::Receiver<Order> {
    let (sender, receiver) = mpsc::channel(MAX_WAITING_ORDERS);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let order = match line.parse::<Command>() {
                _ if line.trim().is_empty() => continue,
                Ok(command) => Order::Do(command),
                Err(text) => Order::Bad(text),
            };
            if sender.blocking_send(order).is_err() {
                return;
            }
        }
        // Whoever gave orders through a pipe has gone: do not live on without an owner.
        let piped = fs::metadata("/proc/self/fd/0").is_ok_and(|input| input.file_type().is_fifo());
        if piped {
            let _ = sender.blocking_send(Order::Do(Command::Stop));
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_does_not_grant_is_told() {
        let text = "[group a]\nkind = wazuh-aes-tcp\nagents = 100\n[group b]\nkind = ossec3\nagents = 50\n";
        let scenario = scenario::file::parse("f", text).unwrap();
        let recruits = scenario.recruits(150, scenario::Naming::ByGroup(""));
        let needs = needs(&scenario, &recruits);
        assert_eq!(needs.all(), 150);
        assert_eq!(shortage(needs, needs.share(150)), Vec::<String>::new());
        let notes = shortage(needs, needs.share(36));
        assert!(notes[0].starts_with("only 35 of 100 TCP agents"), "{notes:?}");
        assert_eq!(notes[1], "50 UDP agents share one socket");
    }
}
