//! How long an event takes until it is stored, and how much of that is whose.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Result;
use async_nats::jetstream::{self, consumer::push::OrderedConfig};
use futures_util::StreamExt;
use tokio::{task::JoinHandle, time::interval};

use crate::{
    direct::message,
    feeder::{Feeder, Sent, event},
    rig::{Home, STREAM, Server},
    table::Table,
};

const SECONDS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(60);
/// What an event takes in the spool.
const RECORD_LEN: usize = 900;

/// One event's way.
struct Took {
    sent: Instant,
    /// The same on the clock, in Unix seconds.
    at: u64,
    time: Duration,
}

/// One run at a rate.
pub(crate) async fn latency(
    rate: u64,
    target: &'static str,
    stalls: Option<Duration>,
    table: &mut Table,
) -> Result<()> {
    let server = Server::start().await?;
    let home = Home::start(&server, "<message_signing>yes</message_signing><kv enabled=\"no\"/>").await?;
    home.ready().await?;
    let count = rate * SECONDS;

    let (sent, took) = reader(&server, count).await?;
    let mut producer = Feeder::connect(&home, 1).await?;
    producer.feed(count, Some((rate, sent))).await?;
    let took = tokio::time::timeout(PATIENCE, took).await??;
    tell_stalls(&took, stalls);
    let peak = home.peak_mib()?;
    let conditions = "signed, through the spool, 8 s";
    add(
        table,
        &format!("event to stored, {rate} a second"),
        times(took),
        target,
        conditions,
    );
    let what = format!("  peak of resident memory, {rate} a second");
    table.add(&what, peak, "MiB", "under 64", conditions);

    let (sent, took) = reader(&server, count).await?;
    publish(&server, rate, count, &sent).await?;
    let took = tokio::time::timeout(PATIENCE, took).await??;
    tell_stalls(&took, stalls);
    let conditions = "the same server; not signed, no spool, not on our disk";
    add(
        table,
        &format!("  published directly, {rate} a second"),
        times(took),
        "",
        conditions,
    );

    let took = disk(home.path.path(), rate.min(500)).await?;
    add(
        table,
        &format!("  one sync of this disk, {} a second", rate.min(500)),
        took,
        "",
        "900 bytes appended and synced, nothing else",
    );
    Ok(())
}

fn add(table: &mut Table, what: &str, mut took: Vec<Duration>, target: &'static str, conditions: &'static str) {
    took.sort_unstable();
    for (name, share) in [("p50", 50), ("p99", 99)] {
        let at = (took.len() * share / 100).min(took.len().saturating_sub(1));
        let took = took.get(at).copied().unwrap_or_default();
        let target = if name == "p99" { target } else { "" };
        table.add(
            &format!("{what}, {name}"),
            took.as_secs_f64() * 1e3,
            "ms",
            target,
            conditions,
        );
    }
}

fn times(took: Vec<Took>) -> Vec<Duration> {
    took.into_iter().map(|took| took.time).collect()
}

/// When events took longer than this, how many in a row, and how long the slowest.
fn tell_stalls(took: &[Took], longer: Option<Duration>) {
    let Some((longer, first)) = longer.zip(took.first()) else {
        return;
    };
    let slow = |took: &Took| took.time > longer;
    for stall in took.chunk_by(|one, next| slow(one) == slow(next)) {
        if slow(&stall[0]) {
            let slowest = stall.iter().map(|took| took.time).max().unwrap_or_default();
            let (begun, count) = (stall[0].sent.duration_since(first.sent), stall.len());
            eprintln!("  {} {begun:.3?}: {count} events, up to {slowest:.1?}", stall[0].at);
        }
    }
}

/// What a consumer of the stream gets is stored: the acknowledgement was sent before, or at the same time.
async fn reader(server: &Server, count: u64) -> Result<(Sent, JoinHandle<Vec<Took>>)> {
    let client = async_nats::connect(server.url()).await?;
    let subject = client.new_inbox();
    let stream = jetstream::new(client).get_stream(STREAM).await?;
    let config = OrderedConfig {
        deliver_subject: subject,
        deliver_policy: jetstream::consumer::DeliverPolicy::New,
        ..Default::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let sent: Sent = Arc::default();
    let noted = Arc::clone(&sent);
    let took = tokio::spawn(async move {
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
            let at = body["status_change"]["timestamp"].as_u64().unwrap_or(0);
            took.extend(sent.map(|sent| Took {
                sent,
                at,
                time: now.duration_since(sent),
            }));
        }
        took
    });
    Ok((sent, took))
}

async fn publish(
    server: &Server,
    rate: u64,
    count: u64,
    sent: &Mutex<std::collections::BTreeMap<u64, Instant>>,
) -> Result<()> {
    let client = async_nats::connect(server.url()).await?;
    let begun = Instant::now();
    let mut next = 0;
    while next < count {
        let elapsed = u64::try_from(begun.elapsed().as_millis())?;
        let due = (rate * elapsed / 1000).min(count);
        while next < due {
            let (subject, headers, event) = message(next, event(next));
            if let Ok(mut sent) = sent.lock() {
                sent.insert(next, Instant::now());
            }
            client.publish_with_headers(subject, headers, event.body.into()).await?;
            next += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.flush().await?;
    Ok(())
}

/// What the disk takes for itself.
async fn disk(folder: &Path, rate: u64) -> Result<Vec<Duration>> {
    let file = File::create(folder.join("synced"))?;
    let mut took = Vec::new();
    let mut ticks = interval(Duration::from_micros(1_000_000 / rate));
    for place in 0..rate * SECONDS / 2 {
        ticks.tick().await;
        let begun = Instant::now();
        file.write_all_at(&[b'x'; RECORD_LEN], place * u64::try_from(RECORD_LEN)?)?;
        file.sync_data()?;
        took.push(begun.elapsed());
    }
    Ok(took)
}
