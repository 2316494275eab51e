//! Nobody listens at the analysis socket, or somebody slow does: agents stay alive, and every loss is counted.

use std::time::Duration;

use anyhow::{Context, Result};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    analysis::Analysis,
    home::Home,
    live::{Life, Live},
    wait::{self, SOON},
};

/// An ack must not wait for the event path.
const AT_ONCE: Duration = Duration::from_secs(8);

fn burst(agent: &mut Agent, count: usize) -> Result<()> {
    let padding = "x".repeat(400);
    for number in 0..count {
        agent.event(&format!("1:/var/log/burst:event {number} {padding}"))?;
    }
    Ok(())
}

#[test]
fn agents_are_acknowledged_while_nobody_listens_and_events_flow_once_somebody_does() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut quiet = Agent::new(home.enroll("quiet")?, Family::WazuhAes, Carrier::Tcp, home.port());
    quiet.hello_until_heard(SOON)?;
    let quiet = Live::start(
        quiet,
        Life {
            reconnects: false,
            ..Life::default()
        },
    );
    let mut loud = Agent::new(home.enroll("loud")?, Family::WazuhAes, Carrier::Tcp, home.port());
    loud.hello_until_heard(SOON)?;
    burst(&mut loud, 100)?;
    let acks = quiet.acks();
    wait::until_true("the quiet agent is acknowledged", SOON, || Ok(quiet.acks() >= acks + 5))?;
    assert!(quiet.slowest_ack() < AT_ONCE, "{:?}", quiet.slowest_ack());
    let analysis = Analysis::listen(home.path())?;
    let mut number = 0;
    wait::until_true("events arrive", SOON, || {
        number += 1;
        loud.event(&format!("1:/var/log/later:event {number}"))?;
        loud.keepalive()?;
        Ok(!analysis.texts_with("/var/log/later").is_empty())
    })?;
    // What came while nobody listened has waited.
    analysis.expect_count("(loud) any->/var/log/burst:event", 100, SOON)?;
    quiet.stop().map(drop)
}

#[test]
fn a_reader_that_stops_for_a_while_costs_nothing_and_delays_no_ack_of_others() -> Result<()> {
    const EVENTS: usize = 20_000;
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut quiet = Agent::new(home.enroll("quiet")?, Family::WazuhAes, Carrier::Tcp, home.port());
    quiet.hello_until_heard(SOON)?;
    let quiet = Live::start(
        quiet,
        Life {
            reconnects: false,
            ..Life::default()
        },
    );
    let mut loud = Agent::new(home.enroll("loud")?, Family::WazuhAes, Carrier::Tcp, home.port());
    loud.hello_until_heard(SOON)?;
    analysis.pause();
    quiet.forget_waits();
    let sending = std::thread::spawn(move || burst(&mut loud, EVENTS).map(|()| loud));
    wait::holds("the quiet agent is acknowledged", Duration::from_secs(5), || {
        Ok(!quiet.has_ended())
    })?;
    assert!(
        quiet.acks() > 0 && quiet.slowest_ack() < AT_ONCE,
        "{:?}",
        quiet.slowest_ack()
    );
    analysis.resume();
    let mut loud = sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    // Less than 20 s of pause: back-pressure, no loss.
    analysis.expect_count("(loud) any->/var/log/burst:event", EVENTS, 3 * SOON)?;
    loud.keepalive()?;
    quiet.stop().map(drop)
}

#[test]
fn a_reader_that_stays_away_costs_events_which_are_all_counted_and_no_agent_its_acks() -> Result<()> {
    // Together more than remoted and the kernel hold for a reader.
    const EVENTS: usize = 900;
    const SIZE: usize = 60_000;
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut quiet = Agent::new(home.enroll("quiet")?, Family::WazuhAes, Carrier::Tcp, home.port());
    quiet.hello_until_heard(SOON)?;
    let quiet = Live::start(
        quiet,
        Life {
            reconnects: false,
            ..Life::default()
        },
    );
    let mut loud = Agent::new(home.enroll("loud")?, Family::WazuhAes, Carrier::Tcp, home.port());
    loud.hello_until_heard(SOON)?;
    loud.keepalive()?;
    analysis.pause();
    let sending = std::thread::spawn(move || -> Result<Agent> {
        let text = format!("1:/var/log/large:event {}", "x".repeat(SIZE));
        for _ in 0..EVENTS {
            loud.event(&text)?;
        }
        // Behind all events on the same connection, so that its answer says that each has met its fate.
        loud.ping(4 * SOON)?;
        Ok(loud)
    });
    let dropped = || -> Result<usize> {
        let status = home.status("remoted")?;
        let queues = status["queues"].as_array().context("no queues")?;
        let queue = queues
            .iter()
            .find(|queue| queue["name"] == "analysis")
            .context("no analysis queue")?;
        Ok(usize::try_from(queue["dropped"].as_u64().context("no number")?)?)
    };
    // After 20 s of not being read the connection is read on, and what does not fit is dropped.
    wait::until_true("events are dropped", 3 * SOON, || Ok(dropped()? > 0))?;
    assert!(
        !quiet.has_ended() && quiet.slowest_ack() < AT_ONCE,
        "{:?}",
        quiet.slowest_ack()
    );
    let listed = home.agent("002")?.context("agent 002 is not listed")?;
    assert_eq!(
        listed["status"], "active",
        "a connection that we do not read is no silence"
    );
    sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    analysis.resume();
    let dropped = dropped()?;
    let kept = EVENTS.checked_sub(dropped).context("more dropped than sent")?;
    analysis.expect_count("(loud) any->/var/log/large:event", kept, SOON)?;
    wait::holds("nothing else arrives", Duration::from_millis(500), || {
        Ok(analysis.texts_with("/var/log/large").len() == kept)
    })?;
    quiet.stop().map(drop)
}
