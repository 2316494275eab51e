//! What makes an absence matter more or less, and who was refused a key, as those who follow the events see it.

use anyhow::{Context, Result};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    enroll::{self, Tls},
    home::Home,
    live::{Life, Live},
    nats::{KEEPALIVE, Nats, STATE, Stored},
    swarm::Swarm,
    wait::{self, SOON},
};
use serde_json::Value;

const SUBJECT: &str = "wazuh.xdr.agent.001.status_change";
const ALERTS: &str = "wazuh.xdr.alerts.agent_disconnected";

/// The bodies of the status changes that have this reason, of all subjects that end so.
fn changes(nats: &Nats, subject: &str, reason: &str) -> Result<Vec<Value>> {
    let stored = nats.stored(STATE)?;
    let of_subject = stored.iter().filter(|stored| stored.subject.ends_with(subject));
    let bodies = of_subject.filter_map(|stored| stored.json().ok());
    let changes = bodies.map(|mut body| body["status_change"].take());
    Ok(changes.filter(|change| change["reason"] == reason).collect())
}

fn flapping(stored: &Stored) -> Option<&str> {
    stored.headers.get("Muster-Flapping").map(String::as_str)
}

/// Lets an agent live until the manager knows its pace, and ends it without a word.
fn lives_and_vanishes(home: &Home, mut agent: Agent) -> Result<Agent> {
    agent.hello_until_heard(SOON)?;
    let id = agent.key.id.clone();
    let live = Live::start(agent, Life::default());
    home.wait_for_status(&id, "active", SOON)?;
    wait::until_true("the manager sees its rhythm", SOON, || Ok(live.acks() >= 5))?;
    let mut agent = live.stop()?;
    agent.vanish();
    home.wait_for_status(&id, "disconnected", 2 * SOON)?;
    Ok(agent)
}

#[test]
fn loss_of_a_whole_site_is_one_alarm_that_says_how_many_and_where() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    // Whoever is lost within one interval is counted together, however long a busy machine takes for it.
    home.set_in(
        "remote",
        "<manager_keepalive><enabled>yes</enabled><interval>10</interval><timeout>6</timeout>\
         <max_missed>3</max_missed><retry_interval>5</retry_interval></manager_keepalive>",
    )?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut fleet = Swarm::start(&home, &["--mix", "wazuh-aes-tcp=12", "--notify-time", "1"])?;
    assert_eq!(fleet.line("ready", SOON)?["connected"], 12);
    wait::until_true("all are active and in their group", 2 * SOON, || {
        let list = home.control_json(&["agent", "list"])?;
        let agents = list.as_array().context("agent list is no array")?;
        let is_there = |agent: &Value| agent["status"] == "active" && agent["groups"][0] == "default";
        Ok(agents.len() == 12 && agents.iter().all(is_there))
    })?;
    fleet.order("kill all silent")?;
    fleet.line("killed", SOON)?;
    let told = |confirmed: bool| {
        nats.wait_for(KEEPALIVE, "the loss is told as one", |stored| {
            let body = stored.json().unwrap_or_default();
            body["health"]["reason"] == "mass_expiry" && body["health"]["confirmed"] == confirmed
        })
    };
    let first = told(false)?.json()?["health"].take();
    assert!(first["count"].as_u64() >= Some(10), "{first}");
    let whole = told(true)?;
    assert!(
        whole.subject.starts_with("wazuh.xdr.manager.health."),
        "{}",
        whole.subject
    );
    let whole = whole.json()?["health"].take();
    assert_eq!(
        (&whole["count"], &whole["active_before"]),
        (&12.into(), &12.into()),
        "{whole}"
    );
    assert_eq!(
        (&whole["group"], &whole["group_count"]),
        (&"default".into(), &12.into())
    );
    assert_eq!(
        (&whole["network_count"], &whole["alert_level"]),
        (&12.into(), &8.into())
    );
    let network = whole["network"].as_str().context("no network")?;
    assert!(network.starts_with("127."), "{network}");

    let lost = wait::until("each loss is published", SOON, || {
        let lost = changes(&nats, ".status_change", "keepalive_timeout")?;
        Ok((lost.len() == 12).then_some(lost))
    })?;
    let alarming = lost.iter().filter(|change| change["alert_level"] == 8).count();
    let others = lost.iter().filter(|change| change["alert_level"] == 5).count();
    assert!(others >= 3 && alarming + others == 12, "{lost:?}");
    assert_eq!(nats.stored_under(STATE, ALERTS)?.len(), alarming);
    Ok(())
}

#[test]
fn absence_of_a_critical_agent_is_critical_and_said_again_louder() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    home.set_in("nats", "<escalation>1s,4s</escalation>")?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("db-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    // As an agent says it whose group has `<labels><label key="criticality">critical</label></labels>`.
    agent.labels = "\"criticality\":critical\n".to_owned();
    lives_and_vanishes(&home, agent)?;
    let level = |status: u64, level: u64| {
        wait::until("the absence is an alert", SOON, || {
            let alerts = changes(&nats, ALERTS, "keepalive_timeout")?;
            let is_it = |alert: &Value| alert["previous_status"] == status && alert["alert_level"] == level;
            Ok(alerts.into_iter().find(is_it))
        })
    };
    level(0, 12)?;
    // A machine that stands still may be late for the first of the two.
    level(1, 14)?;
    let known = home.agent("001")?.context("the agent is known")?;
    assert_eq!(
        (&known["status"], &known["reason"]),
        (&"disconnected".into(), &"keepalive_timeout".into())
    );
    Ok(())
}

#[test]
fn agent_that_comes_and_goes_says_so_and_is_one_alert() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    // Gone, back, gone: three times.
    for _ in 0..2 {
        agent.hello_until_heard(SOON)?;
        agent.keepalive()?;
        home.wait_for_status("001", "active", SOON)?;
        agent.goodbye()?;
        home.wait_for_status("001", "disconnected", SOON)?;
    }
    for _ in 0..2 {
        agent = lives_and_vanishes(&home, agent)?;
    }
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    let back = nats.wait_for(STATE, "its last return is published", |stored| {
        stored.subject == SUBJECT && flapping(stored) == Some("8")
    })?;
    let all = nats.stored_under(STATE, SUBJECT)?;
    let headers: Vec<Option<&str>> = all
        .iter()
        .filter(|stored| stored.sequence <= back.sequence && !stored.body.contains("\"current_status\":2"))
        .map(flapping)
        .collect();
    let counted = ["4", "5", "6", "7", "8"].map(Some);
    assert_eq!(headers, [[None; 4].as_slice(), &counted].concat(), "{all:?}");
    let lost = changes(&nats, SUBJECT, "keepalive_timeout")?;
    assert!(
        lost.len() == 2 && lost.iter().all(|change| change["alert_level"] == 8),
        "{lost:?}"
    );
    assert_eq!(
        nats.stored_under(STATE, ALERTS)?.len(),
        1,
        "the second time in a quarter of an hour is none"
    );
    Ok(())
}

#[test]
fn who_is_refused_for_an_address_or_for_want_of_room_is_told_of() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    home.set_in("auth", "<limits><max_agents>2</max_agents></limits>")?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let ask = |name: &str, address: &str| {
        let request = format!("OSSEC A:'{name}' V:'v4.14.7' IP:'{address}'\n");
        enroll::ask(home.enroll_port(), Tls::New, request.as_bytes())
    };
    for (name, address, refused) in [
        ("web-01", "192.0.2.1", None),
        ("web-02", "192.0.2.1", Some("duplicate_ip")),
        ("web-03", "192.0.2.3", None),
        ("web-04", "192.0.2.4", Some("limit")),
    ] {
        let answer = ask(name, address)?;
        assert_eq!(answer.starts_with("OSSEC K:'"), refused.is_none(), "{name}: {answer}");
        let Some(reason) = refused else { continue };
        let told = nats.wait_for(STATE, "the refusal is published", |stored| {
            stored.subject.starts_with("wazuh.xdr.manager.enrollment.") && stored.body.contains(name)
        })?;
        assert!(told.subject.ends_with(".rejected"), "{}", told.subject);
        let body = told.json()?["enrollment"].take();
        assert_eq!(
            (&body["agent_name"], &body["reason"]),
            (&name.into(), &reason.into()),
            "{body}"
        );
        assert!(
            body["ip_address"].is_string() && body["manager_node"].is_string(),
            "{body}"
        );
    }
    Ok(())
}
