//! Measures a release build of natsd against a local nats-server with file storage: `cargo xtask bench nats`.
//!
//! Prints a table; `--json FILE` writes the figures there, too. The daemon is taken from `MUSTER_BIN_DIR`, else from the
//! folder above this program. Where its folders lie decides about the disk: `TMPDIR` says it.

mod direct;
mod feeder;
mod latency;
mod rig;
mod table;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use muster_natsd::signature::Signer;

use crate::{
    direct::direct,
    feeder::Feeder,
    latency::latency,
    rig::{Home, Server, cpu_time},
    table::Table,
};

/// measure natsd
#[derive(Parser)]
struct Options {
    /// write the figures there, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// measure only these: sign, rate, latency, backlog
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<String>,
    /// runs of each; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// print when events took longer than so many milliseconds
    #[arg(long, value_name = "MS")]
    stalls: Option<u64>,
    /// events of the runs for the rate
    #[arg(long, default_value_t = 300_000)]
    events: u64,
    /// events that wait in the spool before the server comes back
    #[arg(long, default_value_t = 1_000_000)]
    backlog: u64,
}

const EVENTS: &str = "status changes of 5,000 agents, batches of 500, one producer";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let mut table = Table::default();
    for _ in 0..options.runs {
        if wanted("sign") {
            sign(&mut table)?;
        }
        if wanted("rate") {
            rates(&options, &mut table).await?;
        }
        if wanted("latency") {
            for (rate, target) in [(100, "under 5"), (10_000, "under 50")] {
                latency(rate, target, options.stalls.map(Duration::from_millis), &mut table).await?;
            }
        }
    }
    if wanted("backlog") {
        backlog(&options, &mut table).await?;
    }
    table.finish(options.json.as_deref())
}

fn sign(table: &mut Table) -> Result<()> {
    let key = Signer::new(&nkeys::KeyPair::new_user()).context("a new key signs")?;
    let bytes = vec![b'x'; 500];
    let begun = cpu_time(std::process::id())?;
    let count = 20_000;
    for _ in 0..count {
        std::hint::black_box(key.sign(&bytes));
    }
    let took = cpu_time(std::process::id())?.saturating_sub(begun);
    table.add(
        "one signature, processor time",
        took.as_secs_f64() * 1e6 / f64::from(count),
        "µs",
        "15",
        "500 bytes, with its text",
    );
    Ok(())
}

async fn rates(options: &Options, table: &mut Table) -> Result<()> {
    let server = Server::start().await?;
    // It makes the streams.
    drop(Home::start(&server, "")?);
    let direct = direct(&server, options.events).await?;
    table.add(
        "published directly",
        direct,
        "/s",
        "",
        "window 256, no spool, not signed",
    );
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
        table.add(what, rate, "/s", target, EVENTS);
        table.add(
            &format!("  resident memory, {what}"),
            home.resident_mib()?,
            "MiB",
            "under 64",
            "",
        );
        table.add(
            &format!("  processor time per event, {what}"),
            cost,
            "µs",
            "",
            "natsd alone, all its threads",
        );
        through.push(rate);
    }
    table.add(
        "unsigned through the spool, of direct",
        through[0] / direct * 100.0,
        "%",
        "80",
        "of the same run",
    );
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
    table.add(
        "taken into the spool while the server is away, signed",
        taken,
        "/s",
        "",
        "",
    );
    table.add(
        &format!("  resident memory with {} waiting", options.backlog),
        home.resident_mib()?,
        "MiB",
        "under 64",
        "",
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
    table.add(
        "drained, with 1,000 live events a second",
        rate,
        "/s",
        "the live rate",
        "",
    );
    table.add(
        "  resident memory behind it",
        home.resident_mib()?,
        "MiB",
        "under 64",
        "",
    );
    Ok(())
}

fn as_f64(number: u64) -> f64 {
    // Counts of events are far below 2^53.
    number as f64
}
