//! A mixed fleet of simulated agents: all known to be alive, ten of them gone, all back, and an account that agrees.

use std::time::Duration;

use anyhow::{Context, Result};
use muster_tests::{
    analysis::Analysis,
    home::Home,
    swarm::Swarm,
    wait::{self, SOON},
};
use serde_json::Value;

const MIX: &str = "wazuh-aes-tcp=30,wazuh-blowfish-udp=10,ossec3=5,ossec4=5";

fn statuses(home: &Home, status: &str) -> Result<Vec<String>> {
    let list = home.control_json(&["agent", "list"])?;
    let agents = list.as_array().context("agent list is no array")?;
    let names = agents.iter().filter(|agent| agent["status"] == status);
    let mut names: Vec<String> = names
        .filter_map(|agent| Some(agent["name"].as_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn names(line: &Value) -> Vec<String> {
    let names = line["names"].as_array().into_iter().flatten();
    let mut names: Vec<String> = names.filter_map(|name| Some(name.as_str()?.to_owned())).collect();
    names.sort();
    names
}

#[test]
fn fifty_agents_of_all_families_are_tracked_through_a_loss_and_a_return() -> Result<()> {
    let home = Home::new()?;
    let _analysis = Analysis::listen(home.path())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut fleet = Swarm::start(&home, &["--mix", MIX, "--notify-time", "1"])?;
    let enrolled = fleet.line("enrolled", SOON)?;
    assert_eq!((&enrolled["agents"], &enrolled["refused"]), (&50.into(), &0.into()));
    assert_eq!(fleet.line("ready", SOON)?["connected"], 50);
    wait::until_true("all are active", SOON, || Ok(statuses(&home, "active")?.len() == 50))?;
    // Until their rhythm was seen, agents that answer no requests are given the benefit of the doubt.
    wait::until_true("every rhythm is seen", SOON, || {
        fleet.order("status")?;
        Ok(fleet.line("status", SOON)?["keepalives_acked"].as_u64() >= Some(50 * 4))
    })?;
    fleet.order("kill 10")?;
    let killed = names(&fleet.line("killed", SOON)?);
    assert_eq!(killed.len(), 10);
    wait::until_true("the killed are disconnected", 2 * SOON, || {
        Ok(statuses(&home, "disconnected")? == killed)
    })?;
    fleet.order("revive")?;
    assert_eq!(fleet.line("ready", SOON)?["connected"], 50);
    wait::until_true("all are active again", SOON, || {
        Ok(statuses(&home, "active")?.len() == 50)
    })?;
    let account = fleet.stop(SOON)?;
    for zero in [
        "undecodable",
        "oversized",
        "stale_counters",
        "unknown_messages",
        "startups_refused",
        "connect_failures",
    ] {
        assert_eq!(account[zero], 0, "{zero} in {account:#}");
    }
    wait::until_true("all that say goodbye are disconnected", SOON, || {
        Ok(statuses(&home, "disconnected")?.len() >= 40)
    })
}

#[test]
fn every_event_of_a_tcp_fleet_arrives() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut fleet = Swarm::start(
        &home,
        &[
            "--mix",
            "wazuh-aes-tcp=20",
            "--notify-time",
            "1",
            "--events-per-second",
            "2000",
            "--event-size",
            "180",
        ],
    )?;
    fleet.line("ready", SOON)?;
    analysis.expect_count("swarm[1]: event", 8000, 3 * SOON)?;
    let account = fleet.stop(SOON)?;
    assert_eq!(
        (&account["events_unsent"], &account["closed_by_manager"]),
        (&0.into(), &0.into())
    );
    let sent = account["events_sent"].as_u64().context("no count")?;
    // One per agent is its first, `Agent started`.
    analysis.expect_count("swarm[1]: event", usize::try_from(sent)? - 20, SOON)?;
    assert_eq!(analysis.texts_with("Agent started: ").len(), 20);
    Ok(())
}

#[test]
fn a_fleet_ends_when_its_owner_does() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut fleet = Swarm::start(&home, &["--agents", "2", "--notify-time", "1"])?;
    fleet.line("ready", SOON)?;
    fleet.order("kill nobody")?;
    assert!(
        fleet.line("error", SOON)?["text"]
            .as_str()
            .is_some_and(|text| text.contains("nobody"))
    );
    let account = fleet.stop(Duration::from_secs(15))?;
    assert_eq!(account["shutdowns_sent"], 2);
    wait::until_true("both goodbyes are heard", SOON, || {
        Ok(statuses(&home, "disconnected")?.len() == 2)
    })
}
