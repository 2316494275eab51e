//! One agent that floods costs the others neither a keepalive nor an event, and is named.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    analysis::Analysis,
    home::Home,
    live::{Life, Live},
    wait::{self, SOON},
};

/// An ack waits for nobody, whatever the machine is doing.
const AT_ONCE: Duration = Duration::from_secs(8);
/// Agents beside the one that floods.
const QUIET: usize = 10;

#[test]
fn flood_costs_others_neither_keepalives_nor_events_and_its_sender_is_named() -> Result<()> {
    let home = Home::new()?;
    // However long this takes on a busy machine, nothing is dropped.
    home.set_in("remote", "<when_full>block</when_full>")?;
    // Nor do events of our own keepalives hide the one that is waited for.
    home.set_in("remote", "<manager_keepalive><enabled>no</enabled></manager_keepalive>")?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _natsd = home.start("natsd")?;
    let _remoted = home.start("remoted")?;
    let mut quiet = Vec::new();
    for number in 0..QUIET {
        let key = home.enroll(&format!("quiet-{number}"))?;
        let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
        agent.hello_until_heard(SOON)?;
        // With events of its own on the same connection: they must not make it wait with the others.
        let life = Life {
            events: 2,
            reconnects: false,
            ..Life::default()
        };
        quiet.push(Live::start(agent, life));
    }
    let mut loud = Agent::new(home.enroll("loud")?, Family::WazuhAes, Carrier::Tcp, home.port());
    loud.hello_until_heard(SOON)?;
    let loud_id = loud.key.id.clone();

    analysis.pause();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = thread::spawn(move || -> Result<u64> {
        let filler = "x".repeat(4_000);
        let mut sent = 0;
        while !stopped.load(Ordering::Relaxed) {
            loud.event(&format!("1:/var/log/flood:event {sent} {filler}"))?;
            sent += 1;
        }
        Ok(sent)
    });
    wait::until_true("the flood is held back", SOON, || {
        Ok(home.counter("remoted", "remoted_pauses_total")? > 0)
    })?;
    for agent in &quiet {
        agent.forget_waits();
    }
    let before: Vec<u64> = quiet.iter().map(Live::acks).collect();
    wait::until_true("every quiet agent is acknowledged again and again", SOON, || {
        ensure!(!quiet.iter().any(Live::has_ended), "a quiet agent has given up");
        Ok(quiet
            .iter()
            .zip(&before)
            .all(|(agent, before)| agent.acks() >= before + 5))
    })?;
    for agent in &quiet {
        assert!(agent.slowest_ack() < AT_ONCE, "{:?}", agent.slowest_ack());
    }
    assert_eq!(home.counter("remoted", "remoted_events_dropped_full_total")?, 0);

    // Top talkers are looked at every ten seconds.
    wait::until_true("the status names the flood first", SOON, || {
        let status = home.status("remoted")?.to_string();
        Ok(status.contains(&format!("{loud_id} loud ")))
    })?;
    let event = home.follow_events(|event| {
        let text = event.to_string();
        text.contains("overload") && text.contains("loud")
    })?;
    assert!(event.to_string().contains("top_talkers"), "{event}");

    analysis.resume();
    stop.store(true, Ordering::Relaxed);
    let sent = flood.join().ok().context("the flood panicked")??;
    let sent = usize::try_from(sent)?;
    let begin = format!("1:[{loud_id}] (loud) any->/var/log/flood:event");
    wait::until_true("all of the flood has come", 3 * SOON, || {
        Ok(analysis.count_beginning(&begin) >= sent)
    })?;
    for agent in quiet {
        let events = agent.events();
        let agent = agent.stop()?;
        let begin = format!("1:[{}] ({}) any->/var/log/live", agent.key.id, agent.key.name);
        let events = usize::try_from(events)?;
        wait::until_true("all of the quiet agents' events have come", SOON, || {
            Ok(analysis.count_beginning(&begin) >= events)
        })?;
    }
    Ok(())
}
