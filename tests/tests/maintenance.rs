//! An agent that goes away in a maintenance window: no alarm, over a restart too, and an alarm when the window ends.

use anyhow::{Context, Result};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    live::{Life, Live},
    nats::{Nats, STATE, Stored},
    wait::{self, SOON},
};

const SUBJECT: &str = "wazuh.xdr.agent.001.status_change";
const ALERTS: &str = "wazuh.xdr.alerts.agent_disconnected";

fn change(nats: &Nats, reason: &str) -> Result<Stored> {
    nats.wait_for(STATE, reason, |stored| {
        stored.subject == SUBJECT && stored.body.contains(&format!("\"reason\":\"{reason}\""))
    })
}

#[test]
fn window_silences_an_absence_over_a_restart_and_its_end_tells_of_it() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let live = Live::start(agent, Life::default());
    home.wait_for_status("001", "active", SOON)?;
    wait::until_true("the manager sees its rhythm", SOON, || Ok(live.acks() >= 5))?;
    let mut agent = live.stop()?;

    let opened = home.control_json(&["maintenance", "start", "1h", "--agent", "001"])?;
    assert_eq!(opened[0]["scope"]["agent"], "001");
    let until = opened[0]["until"].as_u64().context("no end")?;
    assert_eq!(Some(until - 3600), opened[0]["since"].as_u64());
    agent.vanish();
    remoted.kill()?;
    let _remoted = home.start("remoted")?;
    assert_eq!(home.control_json(&["maintenance", "list"])?, opened);

    let quiet = change(&nats, "maintenance")?;
    assert_eq!(quiet.json()?["status_change"]["alert_level"], 3);
    assert_eq!(
        home.wait_for_status("001", "disconnected", SOON)?["reason"],
        "maintenance"
    );
    assert_eq!(nats.stored_under(STATE, ALERTS)?.len(), 0);

    let ended = home.control(&["maintenance", "stop"])?;
    assert!(ended.contains("agent 001"), "{ended}");
    let told = change(&nats, "keepalive_timeout")?;
    assert_eq!(
        told.headers.get("Muster-Status").map(String::as_str),
        Some("disconnected>disconnected")
    );
    assert_eq!(told.json()?["status_change"]["alert_level"], 8);
    let alert = nats.wait_for(STATE, "the alert is published", |stored| stored.subject == ALERTS)?;
    assert_eq!(alert.body, told.body);
    assert_eq!(home.control(&["maintenance", "list"])?.trim(), "no window is open");

    let bad = home.run_control(&["maintenance", "start", "31d"])?;
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    let bad = home.run_control(&["maintenance", "start", "soon"])?;
    assert_eq!(bad.status.code(), Some(2), "{bad:?}");
    Ok(())
}
