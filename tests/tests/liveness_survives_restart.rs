//! What remoted knows of agents outlives it, stopped or killed, and a restart disconnects nobody by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    daemon::Daemon,
    home::Home,
    live::{Life, Live},
    nats::{Nats, STATE},
    wait::{self, SOON},
};

fn check(end: fn(Daemon) -> Result<()>) -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let remoted = home.start("remoted")?;

    let mut stays = Agent::new(home.enroll("stays")?, Family::WazuhAes, Carrier::Tcp, home.port());
    stays.hello_until_heard(SOON)?;
    let stays = Live::start(stays, Life::default());
    let mut leaves = Agent::new(home.enroll("leaves")?, Family::WazuhAes, Carrier::Tcp, home.port());
    leaves.hello_until_heard(SOON)?;
    leaves.keepalive()?;
    home.wait_for_status("002", "active", SOON)?;
    leaves.goodbye()?;
    home.enroll("never")?;
    wait::until_true("the agent's rhythm is seen", SOON, || Ok(stays.acks() >= 5))?;
    home.wait_for_status("001", "active", SOON)?;
    let left = home.wait_for_status("002", "disconnected", SOON)?;
    home.wait_for_status("003", "never_connected", SOON)?;
    nats.wait_for(STATE, "its goodbye is published", |stored| {
        stored.subject == "wazuh.xdr.agent.002.status_change" && stored.body.contains(r#""current_status":1"#)
    })?;
    let told = nats.stored(STATE)?.len();

    end(remoted)?;
    let _remoted = home.start("remoted")?;
    let again = home.agent("002")?.context("agent 002 is forgotten")?;
    for field in ["status", "reason", "since", "version", "last_heard", "last_keepalive"] {
        assert_eq!(again[field], left[field], "{field}");
    }
    assert_eq!(
        home.agent("003")?.context("agent 003 is forgotten")?["status"],
        "never_connected"
    );
    // The agent comes back by itself, and was never away.
    let status = || -> Result<bool> {
        Ok(home
            .agent("001")?
            .is_some_and(|agent| agent["status"] != "disconnected"))
    };
    wait::holds("agent 001 is not disconnected", Duration::from_secs(5), status)?;
    home.wait_for_status("001", "active", SOON)?;
    let since = nats.stored(STATE)?.split_off(told);
    let wrong = since
        .iter()
        .find(|stored| stored.body.contains(r#""current_status":1"#));
    ensure!(wrong.is_none(), "the restart was told as a disconnection: {wrong:?}");
    stays.stop().map(drop)
}

#[test]
fn liveness_survives_a_stop() -> Result<()> {
    check(|daemon| daemon.stop().map(drop))
}

#[test]
fn liveness_survives_a_kill() -> Result<()> {
    check(Daemon::kill)
}

#[test]
fn an_agent_that_died_while_remoted_was_away_is_given_up_after_the_grace() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("dies")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let live = Live::start(agent, Life::default());
    wait::until_true("the agent's rhythm is seen", SOON, || Ok(live.acks() >= 5))?;
    home.wait_for_status("001", "active", SOON)?;
    remoted.kill()?;
    drop(live);
    let _remoted = home.start("remoted")?;
    assert_eq!(
        home.agent("001")?.context("agent 001 is forgotten")?["status"],
        "active"
    );
    let gone = home.wait_for_status("001", "disconnected", SOON)?;
    assert_eq!(gone["reason"], "keepalive_timeout");
    Ok(())
}

#[test]
fn a_stopped_process_disconnects_nobody_when_it_goes_on() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("stays")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let live = Live::start(agent, Life::default());
    wait::until_true("the agent's rhythm is seen", SOON, || Ok(live.acks() >= 5))?;
    let since = home.wait_for_status("001", "active", SOON)?["since"].clone();
    remoted.signal(nix::sys::signal::Signal::SIGSTOP)?;
    // Longer than the time-out of three seconds.
    std::thread::park_timeout(Duration::from_secs(5));
    let acks = live.acks();
    remoted.signal(nix::sys::signal::Signal::SIGCONT)?;
    wait::until_true("the agent is acknowledged again", SOON, || Ok(live.acks() >= acks + 3))?;
    let agent = home.agent("001")?.context("agent 001 is forgotten")?;
    assert_eq!(
        (&agent["status"], &agent["since"]),
        (&"active".into(), &since),
        "{agent}"
    );
    live.stop().map(drop)
}
