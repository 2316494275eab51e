//! What a keepalive costs remoted: of agents that send one a second, evenly spread, and of agents that send the next one
//! when they have the acknowledgement of the last, which is as many as remoted takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use tokio::{io::AsyncWriteExt, net::TcpStream, runtime, task::JoinSet, time};

use super::{
    fleet::{Fleet, Sealed, read_frame},
    process::cpu_time,
};
use crate::{daemon::Daemon, home::Home};

/// Before the clock runs.
const WARM_UP: Duration = Duration::from_secs(2);
/// While it runs.
const MEASURED: Duration = Duration::from_secs(6);
/// Different texts of an agent whose text changes.
const VARIETY: u32 = 8;

/// When agents send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rhythm {
    /// Each once a second, evenly spread.
    EverySecond,
    /// Each when its last one was acknowledged.
    Acknowledged,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Processor time of remoted for each, in microseconds.
    pub each: f64,
    /// Keepalives a second.
    pub rate: f64,
}

/// Measures a running remoted that has the fleet's keys; `changing` says whether each keepalive says something new.
pub fn measure(home: &Home, remoted: &Daemon, fleet: &Fleet, rhythm: Rhythm, changing: bool) -> Result<Cost> {
    let stop = Arc::new(AtomicBool::new(false));
    let threads = start(fleet, rhythm, changing, &stop)?;
    thread::park_timeout(WARM_UP);
    let look = || {
        let count = home.counter("remoted", "remoted_keepalives_total")?;
        anyhow::Ok((cpu_time(remoted.pid())?, count, Instant::now()))
    };
    let (cpu_before, before, begun) = look()?;
    thread::park_timeout(MEASURED);
    let (cpu, count, ended) = look()?;
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a part of the fleet panicked"))??;
    }
    ensure!(count > before, "no keepalive arrived");
    let count = as_f64(count - before);
    Ok(Cost {
        each: (cpu - cpu_before).as_secs_f64() * 1e6 / count,
        rate: count / ended.duration_since(begun).as_secs_f64(),
    })
}

/// Connects the fleet, and lets it send.
fn start(fleet: &Fleet, rhythm: Rhythm, changing: bool, stop: &Arc<AtomicBool>) -> Result<Vec<JoinHandle<Result<()>>>> {
    // A thread for every processor where they are to be kept busy.
    let parts = match rhythm {
        Rhythm::EverySecond => 1,
        Rhythm::Acknowledged => thread::available_parallelism()?.get(),
    };
    let connections = runtime()?.block_on(async {
        let connections = fleet.connect().await?;
        connections
            .into_iter()
            .map(|stream| Ok(stream.into_std()?))
            .collect::<Result<Vec<_>>>()
    })?;
    let count = connections.len();
    let mut senders: Vec<_> = connections
        .into_iter()
        .zip(fleet.agents.iter().cloned())
        .enumerate()
        .collect();
    let mut threads = Vec::new();
    while !senders.is_empty() {
        let part = senders.split_off(senders.len().saturating_sub(count.div_ceil(parts)));
        let stop = Arc::clone(stop);
        threads.push(thread::spawn(move || {
            runtime()?.block_on(async {
                let (begun, mut tasks) = (time::Instant::now(), JoinSet::new());
                for (number, (stream, agent)) in part {
                    let stream = TcpStream::from_std(stream)?;
                    let frames = frames(&agent, changing);
                    let offset = Duration::from_secs(1).mul_f64(as_f64(number as u64) / as_f64(count as u64));
                    let first = (rhythm == Rhythm::EverySecond).then(|| begun + offset);
                    tasks.spawn(talk(stream, frames, first, Arc::clone(&stop)));
                }
                while let Some(joined) = tasks.join_next().await {
                    joined??;
                }
                Ok(())
            })
        }));
    }
    Ok(threads)
}

fn frames(agent: &Sealed, changing: bool) -> Vec<Vec<u8>> {
    let versions = if changing { 1..VARIETY + 1 } else { 0..1 };
    versions.map(|version| agent.keepalive(version)).collect()
}

/// One agent; `due` is when it sends first, and every second from then on.
async fn talk(
    mut stream: TcpStream,
    frames: Vec<Vec<u8>>,
    mut due: Option<time::Instant>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    for frame in frames.iter().cycle() {
        if let Some(due) = &mut due {
            time::sleep_until(*due).await;
            *due += Duration::from_secs(1);
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        stream.write_all(frame).await?;
        read_frame(&mut stream).await?;
    }
    Ok(())
}

fn runtime() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread().enable_all().build()?)
}

fn as_f64(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
