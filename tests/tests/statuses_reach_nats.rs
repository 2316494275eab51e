//! What happens to an agent is read back from a real nats-server, byte for byte.

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    live::{Life, Live},
    nats::{ARCHIVES, KEEPALIVE, Nats, STATE, Stored},
    wait::{self, SOON},
};

const SUBJECT: &str = "wazuh.xdr.agent.001.status_change";
const ALERTS: &str = "wazuh.xdr.alerts.agent_disconnected";

/// The number in a body: tests know everything of it but the time.
fn number_behind(body: &str, key: &str) -> Result<u64> {
    let (_, rest) = body.split_once(key).with_context(|| format!("no {key} in {body}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

#[test]
fn a_vanished_agent_is_told_twice_and_its_return_once() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let key = home.enroll("web-01")?;
    assert_eq!(key.id, "001");
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let live = Live::start(agent, Life::default());
    home.wait_for_status("001", "active", SOON)?;
    wait::until_true("the manager sees its rhythm", SOON, || Ok(live.acks() >= 5))?;
    let mut agent = live.stop()?;

    agent.vanish();
    let gone = nats.wait_for(STATE, "the time-out is published", |stored| {
        stored.subject == SUBJECT && stored.body.contains("keepalive_timeout")
    })?;
    let (time, missed) = (
        number_behind(&gone.body, "\"timestamp\":")?,
        number_behind(&gone.body, "\"missed_keepalives\":")?,
    );
    let expected = format!(
        r#"{{"status_change":{{"agent_id":"001","agent_name":"web-01","previous_status":0,"current_status":1,"ip_address":"127.0.0.1","timestamp":{time},"reason":"keepalive_timeout","missed_keepalives":{missed},"alert_level":8}}}}"#
    );
    assert_eq!(gone.body, expected);
    assert_eq!(missed, 3);
    assert_eq!(
        gone.headers.get("Muster-Status").map(String::as_str),
        Some("active>disconnected")
    );
    let alert = nats.wait_for(STATE, "the alert is published", |stored| stored.subject == ALERTS)?;
    assert_eq!(alert.body, gone.body);
    assert_eq!(alert.headers.get("Muster-Copy-Of"), gone.headers.get("Nats-Msg-Id"));
    let listed = home.wait_for_status("001", "disconnected", SOON)?;
    assert_eq!(listed["reason"], "keepalive_timeout");

    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status("001", "active", SOON)?;
    nats.wait_for(STATE, "the return is published", |stored| {
        stored.sequence > gone.sequence && stored.subject == SUBJECT && stored.body.contains(r#""current_status":0"#)
    })?;

    let changes = nats.stored_under(STATE, SUBJECT)?;
    check_chain(&changes)?;
    assert_eq!(
        changes
            .iter()
            .filter(|stored| stored.body.contains("keepalive_timeout"))
            .count(),
        1
    );
    nats.wait_for(STATE, "the enrollment is published", |stored| {
        stored.subject == "wazuh.xdr.agent.001.enrolled"
    })?;
    Ok(())
}

/// Each change begins where the one before it ended.
fn check_chain(changes: &[Stored]) -> Result<()> {
    let mut status = 3;
    for change in changes {
        let body = &change.json()?["status_change"];
        ensure!(
            body["previous_status"] == status,
            "{} does not follow from {status}",
            change.body
        );
        status = body["current_status"].as_u64().context("no status")?;
    }
    Ok(())
}

#[test]
fn the_managers_keepalives_are_published_with_a_rising_sequence() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let _live = Live::start(agent, Life::default());
    let subject = "wazuh.xdr.manager.keepalive.001";
    let published = wait::until("three keepalives are published", SOON, || {
        Ok(Some(nats.stored_under(KEEPALIVE, subject)?).filter(|stored| stored.len() >= 3))
    })?;
    let mut last = 0;
    for stored in published {
        let body = stored.json()?;
        let (time, sequence) = (
            number_behind(&stored.body, "\"timestamp\":")?,
            number_behind(&stored.body, "\"sequence\":")?,
        );
        let node = body["event"]["manager_node"].as_str().context("no node")?;
        let version = body["security"]["version"].as_str().context("no version")?;
        let expected = format!(
            r#"{{"event":{{"agent_id":"001","agent_name":"web-01","ip_address":"127.0.0.1","timestamp":{time},"event_type":"keepalive_sent","manager_node":"{node}","interval":1}},"security":{{"source":"wazuh-manager","version":"{version}","sequence":{sequence}}}}}"#
        );
        assert_eq!(stored.body, expected);
        assert_eq!(version, "4.14.7");
        assert!(sequence > last, "{sequence} after {last}");
        last = sequence;
    }
    Ok(())
}

#[test]
fn what_happens_while_nats_is_away_is_published_when_it_is_back() -> Result<()> {
    let mut nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    nats.kill()?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    for _ in 0..3 {
        agent.hello_until_heard(SOON)?;
        agent.keepalive()?;
        home.wait_for_status("001", "active", SOON)?;
        agent.goodbye()?;
        home.wait_for_status("001", "disconnected", SOON)?;
    }
    nats.restart()?;
    let stopped = || -> Result<Vec<Stored>> {
        let all = nats.stored_under(STATE, SUBJECT)?;
        Ok(all
            .into_iter()
            .filter(|stored| stored.body.contains("agent_stopped"))
            .collect())
    };
    wait::until_true("all three goodbyes are published", 2 * SOON, || {
        Ok(stopped()?.len() >= 3)
    })?;
    check_chain(&nats.stored_under(STATE, SUBJECT)?)?;
    assert_eq!(stopped()?.len(), 3);
    Ok(())
}

#[test]
fn without_a_server_the_events_are_followed_from_the_spool() -> Result<()> {
    let home = Home::new()?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let key = home.enroll("web-01")?;
    let event = home.follow_events(|event| event["subject"] == "wazuh.xdr.agent.001.enrolled")?;
    assert_eq!(event["body"]["enrollment"]["agent_name"], "web-01");
    assert!(!event.to_string().contains(&key.key), "an event holds a key");
    Ok(())
}

#[test]
fn without_a_stream_events_go_out_all_the_same() -> Result<()> {
    let nats = Nats::without_streams()?;
    let published = nats.subscribe("wazuh.xdr.>")?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    home.enroll("web-01")?;
    wait::until("the enrollment is published", SOON, || {
        Ok(published
            .try_iter()
            .find(|message| message.subject == "wazuh.xdr.agent.001.enrolled"))
    })?;
    Ok(())
}

#[test]
fn log_lines_are_published_when_archives_are_asked_for() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    home.set_in("remote", "<archives>yes</archives>")?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let line = "Nov 21 08:03:10 web-01 sshd[4243]: Failed password for root from 203.0.113.7 port 50022 ssh2";
    agent.event(&format!("1:/var/log/auth.log:{line}"))?;
    let archived = nats.wait_for(ARCHIVES, "the line is archived", |stored| {
        stored.body.contains("Failed password")
    })?;
    assert_eq!(archived.subject, "wazuh.xdr.archives.001");
    let body = archived.json()?;
    assert_eq!(body["agent"]["id"], "001");
    assert_eq!(body["agent"]["name"], "web-01");
    assert_eq!(body["location"], "/var/log/auth.log");
    assert_eq!(body["full_log"], line);
    assert!(
        body["manager"]["name"].is_string() && body["timestamp"].is_string(),
        "{body}"
    );
    Ok(())
}
