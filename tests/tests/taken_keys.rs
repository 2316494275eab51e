//! Somebody other than authd takes an agent's key out of `client.keys`, while the agent is there.

use std::fs;

use anyhow::{Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    nats::{Nats, STATE},
    wait::SOON,
};
use serde_json::Value;

fn connected(home: &Home, name: &str) -> Result<Agent> {
    let mut agent = Agent::new(home.enroll(name)?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status(&agent.key.id, "active", SOON)?;
    Ok(agent)
}

fn end_of(nats: &Nats, agent: &Agent) -> Result<Value> {
    let subject = format!("wazuh.xdr.agent.{}.status_change", agent.key.id);
    let end = nats.wait_for(STATE, "its end is told", |stored| {
        stored.subject == subject
            && stored
                .json()
                .is_ok_and(|body| body["status_change"]["current_status"] == 1)
    })?;
    Ok(end.json()?["status_change"].take())
}

#[test]
fn removal_behind_authds_back_is_an_alert_and_one_by_authd_is_not() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _daemons = [home.start("natsd")?, home.start("authd")?, home.start("remoted")?];
    let (web, db) = (connected(&home, "web-01")?, connected(&home, "db-01")?);

    // authd has nothing more to write behind this, and so leaves the file to us.
    home.control(&["agent", "remove", &db.key.id])?;
    let end = end_of(&nats, &db)?;
    assert_eq!(
        (&end["reason"], &end["alert_level"]),
        (&"key_removed".into(), &3.into())
    );

    let keys = home.client_keys()?;
    let line = format!("{} web-01 ", web.key.id);
    let without: Vec<_> = keys.lines().filter(|kept| !kept.starts_with(&line)).collect();
    ensure!(without.len() < keys.lines().count(), "{keys}");
    let path = home.path().join("etc/client.keys");
    let edited = path.with_extension("edited");
    fs::write(&edited, without.join("\n") + "\n")?;
    fs::rename(&edited, &path)?;
    home.control(&["reload", "remoted"])?;
    let end = end_of(&nats, &web)?;
    assert_eq!(
        (&end["reason"], &end["alert_level"]),
        (&"unexpected_removal".into(), &12.into())
    );
    let id = web.key.id.clone();
    nats.wait_for(STATE, "the alert is told", |stored| {
        stored.subject == "wazuh.xdr.alerts.agent_disconnected"
            && stored.json().is_ok_and(|body| body["status_change"]["agent_id"] == *id)
    })?;
    Ok(())
}
