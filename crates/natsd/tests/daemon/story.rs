//! Server, daemon, network, rights and disk fail again and again under load; then the streams must hold every event once,
//! in order, signed, with no hole that nobody has declared.
//!
//! Ordinarily each trouble comes once. `cargo xtask story --minutes 5` goes on for longer, and stalls for a minute, too.

#![expect(
    clippy::disallowed_methods,
    reason = "troubles come at times of their own; what is waited for is waited for by its event"
)]

mod sums;
mod troubles;

use std::{
    collections::BTreeMap,
    env,
    sync::mpsc::{Receiver, TryRecvError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use self::troubles::{Site, TROUBLES};
use crate::{block_on, producer};

/// How many minutes of trouble, if not each of them once.
const LONGER: &str = "MUSTER_STORY_MINUTES";
const AGENTS: u32 = 50;
/// Between two troubles.
const REST: Duration = Duration::from_millis(500);

/// How much comes meanwhile.
#[derive(Clone, Copy)]
struct Load {
    /// Events at a time, and the pause between.
    burst: u32,
    pause: Duration,
}

#[test]
fn whatever_fails_every_event_arrives_once_in_order_and_signed() {
    let minutes: Option<u64> = env::var(LONGER).ok().and_then(|minutes| minutes.parse().ok());
    let load = match minutes {
        None => Load {
            burst: 40,
            pause: Duration::from_millis(50),
        },
        Some(_) => Load {
            burst: 30,
            pause: Duration::from_millis(100),
        },
    };
    let mut site = Site::start(minutes.is_some());
    let (stop, stopped) = sync_channel::<()>(1);
    let from = producer::Producer::new(site.home.path("queue/muster/events"), "remoted");
    let load = thread::spawn(move || give(load, from, &stopped));
    let begun = Instant::now();
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    loop {
        for (what, trouble) in TROUBLES {
            thread::sleep(REST);
            let at = begun.elapsed();
            trouble(&mut site);
            *times.entry(what).or_default() += 1;
            println!(
                "{:6.1} s  {what}, for {:.1} s",
                at.as_secs_f32(),
                (begun.elapsed() - at).as_secs_f32()
            );
        }
        if minutes.is_none_or(|minutes| begun.elapsed() >= Duration::from_secs(60 * minutes)) {
            break;
        }
    }
    stop.send(()).expect("the load goes on");
    let (mut from, places) = load.join().expect("the load");
    block_on(from.hand_over_all());
    site.home.wait_until_all_is_published();
    // What was written on the way down and up again counts, too.
    site.restart_natsd();
    site.home.wait_until_all_is_published();
    for (what, times) in times {
        println!("{times:4} times {what}");
    }
    sums::check(&site, &places);
    let (lines, _) = muster_natsd::audit::check(&site.home.path("logs/natsd-audit.json")).expect("the chain holds");
    assert!(lines > 3);
    println!("{lines} lines in the audit file, and the chain holds");
}

/// Makes events until it is told to stop. Gives who makes them, with what was not handed over, and how many changes
/// each agent had.
fn give(load: Load, mut from: producer::Producer, stopped: &Receiver<()>) -> (producer::Producer, BTreeMap<u32, u32>) {
    let mut places: BTreeMap<u32, u32> = BTreeMap::new();
    let mut made = 0;
    while stopped.try_recv() == Err(TryRecvError::Empty) {
        for _ in 0..load.burst {
            let place = places.entry(made % AGENTS).or_default();
            from.put(producer::change(made % AGENTS, *place));
            *place += 1;
            made += 1;
        }
        from.put(producer::keepalive(made % AGENTS));
        block_on(from.hand_over(Duration::from_millis(500)));
        thread::sleep(load.pause);
    }
    (from, places)
}
