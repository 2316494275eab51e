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
    /// measure only these: sign, rate, latency, backlog, sustained
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
    /// how many seconds the sustained run goes on; it is no part of a run without --only
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    sustained: u64,
    /// live events a second while the backlog is drained
    #[arg(long, value_name = "RATE", default_value_t = 10_000)]
    live: u64,
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
    if options.only.iter().any(|only| only == "sustained") {
        sustained(Duration::from_secs(options.sustained), &mut table).await?;
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
    drop(Home::start(&server, "").await?);
    let direct = direct(&server, options.events).await?;
    table.add(
        "published directly",
        direct,
        "/s",
        "",
        "window 256, no spool, not signed",
    );
    let mut through = Vec::new();
    let no_bucket = "<kv enabled=\"no\"/>";
    let signed = "<message_signing>yes</message_signing>";
    for (what, target, form) in [
        ("through the spool, unsigned", "80 % of it", no_bucket.to_owned()),
        ("through the spool, signed", "25,000", format!("{signed}{no_bucket}")),
        (
            "through the spool, signed, and agents' states in the bucket",
            "",
            signed.to_owned(),
        ),
    ] {
        let server = Server::start().await?;
        let home = Home::start(&server, &form).await?;
        home.ready().await?;
        let begun = Instant::now();
        let mut producer = Feeder::connect(&home, 1).await?;
        producer.feed(options.events, None).await?;
        home.wait_until_published(options.events).await?;
        let rate = as_f64(options.events) / begun.elapsed().as_secs_f64();
        let cost = cpu_time(home.child.id())?.as_secs_f64() * 1e6 / as_f64(options.events);
        table.add(what, rate, "/s", target, EVENTS);
        table.add(
            &format!("  peak of resident memory, {what}"),
            home.peak_mib()?,
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
    )
    .await?;
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
        &format!("  peak of resident memory with {} waiting", options.backlog),
        home.peak_mib()?,
        "MiB",
        "under 64",
        "",
    );
    server.restart().await?;
    // From the first acknowledgement on: how long it takes until the next attempt to connect is configuration.
    home.wait_until_published(1).await?;
    let begun = Instant::now();
    let mut second = Feeder::connect(&home, 2).await?;
    let feeding = async {
        loop {
            let fed = second.feed(options.live, Some((options.live, Arc::default())));
            if let Err(error) = fed.await {
                return error;
            }
        }
    };
    // Live events are of the same stream: they wait behind the backlog, and its last event is out when so many are.
    let draining = async {
        home.wait_until_published(options.backlog).await?;
        let drained = begun.elapsed();
        home.wait_until_waiting(options.live / 10).await?;
        anyhow::Ok((drained, begun.elapsed()))
    };
    let (drained, caught_up) = tokio::select! {
        error = feeding => return Err(error),
        drained = draining => drained?,
    };
    let conditions = "of the same stream";
    table.add(
        &format!("drained, with {} live events a second", options.live),
        as_f64(options.backlog) / drained.as_secs_f64(),
        "/s",
        "the live rate",
        conditions,
    );
    table.add(
        "  until live events wait no longer, either",
        caught_up.as_secs_f64(),
        "s",
        "",
        conditions,
    );
    table.add(
        "  peak of resident memory behind it",
        home.peak_mib()?,
        "MiB",
        "under 64",
        "",
    );
    Ok(())
}

/// As much as goes, for a long time.
async fn sustained(time: Duration, table: &mut Table) -> Result<()> {
    const CHUNK: u64 = 25_000;
    let server = Server::start().await?;
    let home = Home::start(&server, "<message_signing>yes</message_signing>").await?;
    home.ready().await?;
    let mut producer = Feeder::connect(&home, 1).await?;
    let (begun, mut fed) = (Instant::now(), 0);
    while begun.elapsed() < time {
        producer.feed(CHUNK, None).await?;
        fed += CHUNK;
        // What is taken may wait: how much, is bounded.
        home.wait_until_waiting(4 * CHUNK).await?;
    }
    home.wait_until_published(fed).await?;
    let what = format!("sustained for {} s, signed, through the spool", time.as_secs());
    table.add(
        &what,
        as_f64(fed) / begun.elapsed().as_secs_f64(),
        "/s",
        "25,000",
        EVENTS,
    );
    table.add(
        "  peak of resident memory, sustained",
        home.peak_mib()?,
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
