//! A fleet of every family lives through a working day: files, requests, orders, a clone, a flood, a storm; and what it
//! says it sent is what the manager says it got.

use std::{fs, sync::mpsc::Receiver, time::Instant};

use anyhow::{Context, Result};
use muster_tests::{
    analysis::Analysis,
    home::Home,
    nats::{Nats, Published},
    remote::{ask_text, drop_at},
    swarm::{Swarm, count_of},
    wait::{self, SOON},
};
use serde_json::Value;

/// Every family; UDP agents share their sockets, and one group hides behind one address.
const FLEET: &str = "
[fleet]
notify_time = 1s
reconnect_after = 60s
udp_sockets = 4

[group web]
kind = wazuh-aes-tcp
agents = 6
versions = 4.9.2:1, 4.14.7:1
events = 4/s

[group old]
kind = wazuh-blowfish-tcp
agents = 3
versions = 3.13.6
events = 2/s

[group branch]
kind = wazuh-aes-udp
agents = 4
sources = 127.0.4.1

[group bsd]
kind = wazuh-blowfish-udp
agents = 2

[group legacy]
kind = ossec4
agents = 3

[group attic]
kind = ossec3
agents = 3
";
const GROUPS: [(&str, usize); 6] = [
    ("web", 6),
    ("old", 3),
    ("branch", 4),
    ("bsd", 2),
    ("legacy", 3),
    ("attic", 3),
];
const ALL: usize = 21;

fn fleet(home: &Home, options: &[&str]) -> Result<Swarm> {
    let path = home.path().join("fleet.swarm");
    fs::write(&path, FLEET)?;
    let scenario = path.to_str().context("the path")?;
    Swarm::start(home, &[&["--scenario", scenario], options].concat())
}

/// The agents as the list has them: all of them, when `wanted` takes each.
fn all_listed(home: &Home, wanted: impl Fn(&Value) -> bool) -> Result<Option<Vec<Value>>> {
    let list = home.control_json(&["agent", "list"])?;
    let agents: Vec<Value> = list.as_array().cloned().unwrap_or_default();
    let agents: Vec<Value> = agents.into_iter().filter(wanted).collect();
    Ok((agents.len() == ALL).then_some(agents))
}

fn id_of(agents: &[Value], name: &str) -> Result<String> {
    let agent = agents.iter().find(|agent| agent["name"] == name);
    let id = agent.and_then(|agent| agent["id"].as_str());
    Ok(id.with_context(|| format!("{name} is not listed"))?.to_owned())
}

/// Reads what is published until `wanted` takes one.
fn published(events: &Receiver<Published>, what: &str, wanted: impl Fn(&Published) -> bool) -> Result<Value> {
    let deadline = Instant::now() + 2 * SOON;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).with_context(|| what.to_owned())?;
        if wanted(&event) {
            return Ok(serde_json::from_str(&event.body)?);
        }
    }
}

#[test]
fn a_fleet_of_every_family_lives_through_a_working_day() -> Result<()> {
    let nats = Nats::start()?;
    let events = nats.subscribe("wazuh.xdr.>")?;
    let home = Home::publishing_to(&nats.url())?;
    // However long this takes on a busy machine, nothing is dropped.
    home.set_in("remote", "<when_full>block</when_full>")?;
    let analysis = Analysis::listen(home.path())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let files = home.path().join("files");
    let mut fleet = fleet(&home, &["--keep-files", files.to_str().context("the path")?])?;
    assert_eq!(fleet.line("ready", SOON)?["connected"], ALL);

    // The files that each agent was sent are those of its group, and the sums that it reports are right.
    let agents = wait::until("all have the files of their group", 2 * SOON, || {
        all_listed(&home, |agent| {
            agent["status"] == "active" && agent["group_config_status"] == "synced"
        })
    })?;
    for agent in &agents {
        let name = agent["name"].as_str().context("no name")?;
        let ossec = name.starts_with("legacy") || name.starts_with("attic");
        let group = if ossec { "ossec" } else { "default" };
        let sent = fs::read(home.path().join(format!("etc/shared/{group}/merged.mg")))?;
        let taken = fs::read(files.join(format!("{name}.merged.mg"))).with_context(|| format!("{name} has no file"))?;
        assert_eq!(taken, sent, "{name}");
    }
    let status = fleet.status()?;
    assert_eq!(
        (&status["pushes_taken"], &status["pushes_broken"]),
        (&ALL.into(), &0.into())
    );

    requests_and_orders(&home, &mut fleet, &agents)?;

    // The same key from two places: over TCP the second is refused, over UDP both go on.
    for (name, first, kept) in [("web-001", "127.0.0.1:", "first"), ("branch-001", "127.0.4.1:", "both")] {
        fleet.order(&format!("clone @{name} from 127.0.0.9"))?;
        assert_eq!(fleet.line("cloned", SOON)?["count"], 1);
        let conflict = published(&events, &format!("the conflict of {name} is published"), |event| {
            event.body.contains("other_address") && event.body.contains(name)
        })?;
        let conflict = &conflict["connection"];
        let mut ends = ["ip_address", "other_address"].map(|field| conflict[field].as_str().unwrap_or_default());
        // Over UDP there is no telling who was first.
        if kept == "both" {
            ends.sort_unstable_by_key(|end| end.starts_with("127.0.0.9:"));
        }
        assert!(
            ends[0].starts_with(first) && ends[1].starts_with("127.0.0.9:"),
            "{conflict}"
        );
        assert_eq!(conflict["kept"], kept, "{conflict}");
        let alert = published(&events, &format!("the conflict of {name} is an alert"), |event| {
            event.subject == "wazuh.xdr.alerts.agent_disconnected" && event.body.contains("key_conflict")
        })?;
        let alert = &alert["status_change"];
        assert_eq!(
            (&alert["agent_name"], &alert["alert_level"]),
            (&name.into(), &12.into()),
            "{alert}"
        );
        fleet.order("unclone")?;
    }
    let status = fleet.status()?;
    assert_eq!(count_of(&status, "web (clones)", "startups_acked"), 0);
    assert_eq!(count_of(&status, "web", "closed_by_manager"), 0);

    flood(&home, &mut fleet, &agents, &analysis, &events)?;

    fleet.order("storm all")?;
    assert_eq!(fleet.line("storm", SOON)?["count"], ALL);
    assert_eq!(fleet.line("ready", SOON)?["connected"], ALL);
    wait::until("all are active again", SOON, || {
        all_listed(&home, |agent| agent["status"] == "active")
    })?;
    let account = fleet.stop(2 * SOON)?;
    for zero in [
        "undecodable",
        "oversized",
        "stale_counters",
        "unknown_messages",
        "startups_refused",
    ] {
        assert_eq!(account[zero], 0, "{zero} in {account:#}");
    }
    Ok(())
}

fn requests_and_orders(home: &Home, fleet: &mut Swarm, agents: &[Value]) -> Result<()> {
    for name in ["web-001", "old-001", "branch-001", "bsd-001"] {
        let id = id_of(agents, name)?;
        let answer = home.control(&["agent", "request", &id, "agent", "getstate"])?;
        assert!(answer.contains(r#""status":"connected""#), "{name}: {answer}");
    }
    // An order for all, which those who know no JSON get as text.
    let order = r#"{"version":1,"origin":{"module":"api"},"command":"restart-wazuh0","parameters":{"extra_args":[],"alert":{}}}"#;
    let order = format!("(msg_to_agent) [] ANN (null) {order} - null (from_the_server) (no_rule_id)");
    drop_at(home.path(), "queue/alerts/ar", order.as_bytes())?;
    fleet.until("all get the order", |status| status["orders_received"] == ALL)?;
    home.control(&["agent", "reconnect", &id_of(agents, "branch-002")?])?;
    fleet.until("one reconnects", |status| {
        count_of(status, "branch", "reconnect_orders") == 1 && status["connected"] == ALL
    })?;
    Ok(())
}

/// One agent sends as much as is taken while the reader of events takes nothing: it is named, and nobody else loses a
/// keepalive or an event.
fn flood(
    home: &Home,
    fleet: &mut Swarm,
    agents: &[Value],
    analysis: &Analysis,
    events: &Receiver<Published>,
) -> Result<()> {
    analysis.pause();
    fleet.order("flood @old-001 at 1000/s of 2000 for 1m")?;
    assert_eq!(fleet.line("flooding", SOON)?["count"], 1);
    wait::until_true("the flood is held back", SOON, || {
        Ok(home.counter("remoted", "remoted_pauses_total")? > 0)
    })?;
    let before = fleet.status()?;
    let after = fleet.until("keepalives of all are acknowledged all the while", |status| {
        GROUPS.iter().all(|(group, members)| {
            let acks = |report| count_of(report, group, "keepalives_acked");
            acks(status) >= acks(&before) + 3 * *members as u64
        })
    })?;
    assert_eq!(after["manager_lost"], 0);
    assert_eq!(
        after["closed_by_manager"].as_u64(),
        before["closed_by_manager"].as_u64()
    );

    // The flood goes on meanwhile, so whenever the manager looks it is what there is most of.
    analysis.resume();
    let overload = published(events, "the flood is published", |event| {
        event.body.contains("overload")
    })?;
    let talkers = &overload["health"]["top_talkers"];
    assert_eq!(talkers[0]["agent_name"], "old-001", "{overload}");
    fleet.order("flood @old-001 for 0s")?;
    fleet.line("flooding", SOON)?;
    let status = fleet.status()?;
    // One event of each is `Agent started`.
    let mut texts = Vec::new();
    for (group, members) in &GROUPS[..2] {
        for number in 1..=*members {
            let name = format!("{group}-{number:03}");
            texts.push((*group, format!("1:[{}] ({name}) ", id_of(agents, &name)?)));
        }
    }
    for (group, _) in &GROUPS[..2] {
        let sent = usize::try_from(count_of(&status, group, "events_sent"))?;
        wait::until_true(&format!("all events of {group} have come"), 2 * SOON, || {
            let of_group = texts.iter().filter(|(of, _)| of == group);
            Ok(of_group
                .map(|(_, begin)| analysis.count_beginning(begin))
                .sum::<usize>()
                >= sent)
        })?;
    }
    assert_eq!(home.counter("remoted", "remoted_events_dropped_full_total")?, 0);
    Ok(())
}

#[test]
fn what_the_fleet_says_it_sent_is_what_the_manager_says_it_got() -> Result<()> {
    let home = Home::new()?;
    home.set_in("remote", "<when_full>block</when_full>")?;
    let _analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut fleet = fleet(&home, &[])?;
    fleet.line("ready", SOON)?;
    let agents = wait::until("all are listed", SOON, || {
        all_listed(&home, |agent| agent["status"] == "active")
    })?;
    requests_and_orders(&home, &mut fleet, &agents)?;
    fleet.until("a few rounds have gone by", |status| {
        status["keepalives_acked"].as_u64() >= Some(5 * ALL as u64) && status["events_sent"].as_u64() >= Some(100)
    })?;
    let account = fleet.stop(SOON)?;

    let count = |counter: &str| account[counter].as_u64().unwrap_or(u64::MAX);
    let parts: u64 = GROUPS
        .iter()
        .map(|(group, _)| count_of(&account, group, "messages_sent"))
        .sum();
    assert_eq!(parts, count("messages_sent"));
    assert_eq!(
        count("messages_sent"),
        [
            "startups_sent",
            "keepalives_sent",
            "shutdowns_sent",
            "answers_sent",
            "events_sent"
        ]
        .map(count)
        .iter()
        .sum::<u64>()
    );
    assert_eq!(count("events_unsent"), 0);

    let stats = || -> Result<Value> {
        let answer = ask_text(home.path(), r#"{"command":"getstats"}"#, SOON)?;
        let answer: Value = serde_json::from_str(&answer)?;
        Ok(answer["data"]["metrics"]["messages"].clone())
    };
    let sent = "/received_breakdown/control_breakdown";
    let pairs = [
        ("/received_breakdown/event".to_owned(), vec!["events_sent"]),
        (format!("{sent}/startup"), vec!["startups_sent"]),
        (format!("{sent}/keepalive"), vec!["keepalives_sent"]),
        (format!("{sent}/shutdown"), vec!["shutdowns_sent"]),
        (format!("{sent}/request"), vec!["answers_sent"]),
        // What it sends of its own accord, to see who is there, says the same as an acknowledgement.
        (
            "/sent_breakdown/ack".to_owned(),
            vec!["startups_acked", "keepalives_acked", "unasked_acks"],
        ),
        (
            "/sent_breakdown/ar".to_owned(),
            vec!["orders_received", "reconnect_orders"],
        ),
        ("/sent_breakdown/shared".to_owned(), vec!["push_messages"]),
    ];
    let mut last = Value::Null;
    wait::until_true("the manager counts what was sent", SOON, || {
        last = stats()?;
        Ok(pairs.iter().all(|(theirs, ours)| {
            let ours: u64 = ours.iter().map(|counter| count(counter)).sum();
            last.pointer(theirs).and_then(Value::as_u64) == Some(ours)
        }))
    })
    .with_context(|| format!("{last:#} of {account:#}"))?;
    Ok(())
}
