//! Server and daemon are killed and stalled again and again under load; then the streams must hold every event once, in
//! order, signed, with no hole that nobody has declared.

#![expect(
    clippy::disallowed_methods,
    reason = "troubles come at times of their own; what is waited for is waited for by its event"
)]

use std::{
    collections::BTreeMap,
    env, thread,
    time::{Duration, Instant},
};

use muster_natsd::verify::Message;
use nix::sys::signal::Signal;

use crate::{accepted, block_on, json, producer, provisioned, server::Server, verifier};

/// How many seconds of trouble, if not the ordinary number.
const LONGER: &str = "MUSTER_STORY_SECONDS";
const ORDINARY: u64 = 12;
const AGENTS: u32 = 50;
/// Events at a time, and the pause between.
const BURST: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

#[test]
fn whatever_is_killed_every_event_arrives_once_in_order_and_signed() {
    let seconds = env::var(LONGER)
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(ORDINARY);
    let mut server = Server::start();
    let home = provisioned(
        &server,
        "<message_signing>yes</message_signing><audit_logging>yes</audit_logging><publish mode=\"jetstream\"/>",
    );
    let mut natsd = Some(home.start());
    let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(1);
    let mut from = producer::Producer::new(home.path("queue/muster/events"), "remoted");
    let load = thread::spawn(move || {
        let mut places: BTreeMap<u32, u32> = BTreeMap::new();
        let mut made = 0;
        while stopped.try_recv().is_err() {
            for _ in 0..BURST {
                let place = places.entry(made % AGENTS).or_default();
                from.put(producer::change(made % AGENTS, *place));
                *place += 1;
                made += 1;
            }
            from.put(producer::keepalive(made % AGENTS));
            block_on(from.hand_over(Duration::from_millis(500)));
            thread::sleep(PAUSE);
        }
        (from, places)
    });
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(Duration::from_millis(700));
        match round % 5 {
            0 => {
                server.kill();
                thread::sleep(Duration::from_millis(300));
                server.restart();
            }
            1 => {
                natsd.take().expect("runs").kill();
                natsd = Some(home.start());
            }
            2 => {
                server.signal(Signal::SIGSTOP);
                thread::sleep(Duration::from_millis(2500));
                server.signal(Signal::SIGCONT);
            }
            3 => {
                let natsd = natsd.as_ref().expect("runs");
                natsd.signal(Signal::SIGSTOP);
                thread::sleep(Duration::from_millis(500));
                natsd.signal(Signal::SIGCONT);
            }
            _ => {
                server.kill();
                natsd.take().expect("runs").kill();
                natsd = Some(home.start());
                server.restart();
            }
        }
        round += 1;
    }
    stop.send(()).expect("the load goes on");
    let (mut from, places) = load.join().expect("the load");
    block_on(from.hand_over_all());
    home.wait_until_all_is_published();
    natsd.take().expect("runs").stop();
    let natsd = home.start();
    home.wait_until_all_is_published();

    let (state, audit) = block_on(async {
        let client = server.client().await;
        (
            Server::messages(&client, "MUSTER_STATE").await,
            Server::messages(&client, "MUSTER_AUDIT").await,
        )
    });
    let mut verifier = verifier(&home);
    accepted(&mut verifier, &audit);
    let state = accepted(&mut verifier, &state);
    assert_eq!(verifier.undeclared(), [], "holes that nobody has declared");
    check_each_agent(&state, &places);
    let lines = muster_natsd::audit::check(&home.path("logs/natsd-audit.json")).expect("the chain holds");
    assert!(lines.0 > 3);
    println!("{} events through {round} troubles", state.len());
    natsd.stop();
}

fn check_each_agent(state: &[&Message], places: &BTreeMap<u32, u32>) {
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for message in state {
        let change = &json(message)["status_change"];
        let agent: u32 = change["agent_id"].as_str().expect("an id").parse().expect("a number");
        let place = change["missed_keepalives"].as_u64().expect("a place");
        let next = next.entry(agent).or_default();
        assert_eq!(place, *next, "agent {agent}: each change once and in order");
        *next += 1;
    }
    for (agent, count) in places {
        assert_eq!(
            next.get(agent).copied(),
            Some(u64::from(*count)),
            "agent {agent}: all changes"
        );
    }
}
