//! The keepalive scheduler with a million agents: what each costs that is due.
//!
//! `cargo bench -p muster-remoted --bench scheduler`. Not a test: it prints figures and judges nothing.

#![allow(clippy::unwrap_used, reason = "a bench may end with a panic")]

use std::{sync::Arc, time::Duration};

use muster_config::{ManagerKeepalive, Probe, Remote, Settings};
use muster_proto::keys::file;
use muster_remoted::{
    options,
    roster::{Actions, Roster, Times},
    slot::{AgentSlot, Millis, News, Protocol, Said},
};
use nix::time::{ClockId, clock_gettime};

const AGENTS: usize = 1_000_000;
const START: u64 = 1_000_000;
const TICK_MS: u64 = 100;
const INTERVAL: u64 = 60;

fn at(ms: u64) -> Times {
    Times {
        mono: Millis(START + ms),
        wall_ms: 1_800_000_000_000 + ms,
    }
}

fn main() {
    let remote = Remote {
        manager_keepalive: Some(ManagerKeepalive {
            interval: Duration::from_secs(INTERVAL),
            probe: Probe::Ack,
            ..ManagerKeepalive::default()
        }),
        ..Remote::default()
    };
    let settings = Settings {
        remotes: vec![remote],
        ..Settings::default()
    };
    let mut roster = Roster::new(options::roster_settings(&settings, "bench"), at(0), Vec::new(), 1);
    let lines: String = (1..=AGENTS)
        .map(|id| format!("{id} agent-{id} any {id:064}\n"))
        .collect();
    let keys = file::parse(lines.as_bytes());
    let slots: Vec<_> = keys
        .entries
        .iter()
        .map(|entry| Arc::new(AgentSlot::new(entry)))
        .collect();
    drop((lines, keys));

    let mut out = Actions::default();
    let begun = cpu_time();
    let reloaded = News::KeysReloaded {
        added: slots.clone(),
        changed: Vec::new(),
        removed: Vec::new(),
    };
    roster.on_news(at(0), reloaded, &mut out);
    report("key file taken in", cpu_time() - begun, AGENTS);

    let keepalive = "#!-Linux |a |6.1 |#1 |x86_64 [Debian|debian: 12] - Wazuh v4.14.7 / ab\nx merged.mg\n";
    let begun = cpu_time();
    for slot in &slots {
        let news = News::Keepalive {
            slot: Arc::clone(slot),
            at: Millis(START),
            peer: ([127, 0, 0, 1], 1).into(),
            protocol: Protocol::Tcp,
            said: Arc::new(Said::new(keepalive)),
        };
        roster.on_news(at(0), news, &mut out);
        empty(&mut out);
    }
    report(
        "first keepalive, parsing and event included",
        cpu_time() - begun,
        AGENTS,
    );
    while !roster.take_rows(at(0), AGENTS).0.is_empty() {}

    // A minute in which every agent is due once, as agents that keep talking are.
    let (mut ticks, mut sends) = (Duration::ZERO, 0);
    for step in 1..=(2 * INTERVAL * 1000 / TICK_MS) {
        let now = at(step * TICK_MS);
        if step % 100 == 0 {
            for slot in &slots {
                slot.hear(now.mono);
            }
        }
        let begun = cpu_time();
        loop {
            roster.on_tick(now, &mut out);
            let mut messages = std::mem::take(&mut out.sends);
            for sent in messages.drain(..) {
                sends += 1;
                roster.on_sent(now, &sent, Ok(()), &mut out);
            }
            out.sends = messages;
            if roster.next_tick().is_none_or(|next| next > now.mono) {
                break;
            }
        }
        ticks += cpu_time() - begun;
        empty(&mut out);
    }
    report("each that is due, sent and put back", ticks, sends);
}

/// Processor time of this thread: what others do on the machine does not count.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn empty(out: &mut Actions) {
    out.sends.clear();
    out.events.clear();
    out.notices.clear();
}

fn report(what: &str, took: Duration, count: usize) {
    let each = took.as_secs_f64() * 1e6 / f64::from(u32::try_from(count.max(1)).unwrap());
    println!("{what}: {each:.3} µs ({count} in {:.2} s)", took.as_secs_f64());
}
