//! A spool without room: what may be dropped goes, all of it is declared, and what may not be dropped is there.

use std::collections::BTreeMap;

use muster_natsd::verify::Message;

use crate::{
    accepted, block_on, json,
    natsd::Home,
    producer::{self, Producer},
    provisioned,
    server::Server,
    verifier,
};

const AGENTS: u32 = 400;

fn hand_over(home: &Home, name: &str, fill: impl FnOnce(&mut Producer)) {
    let mut producer = Producer::new(home.path("queue/muster/events"), name);
    fill(&mut producer);
    block_on(producer.hand_over_all());
}

/// What was dropped, by stream and reason.
fn dropped(audit: &[&Message]) -> BTreeMap<(String, String), u64> {
    let mut dropped = BTreeMap::new();
    for message in audit {
        let gap = &json(message)["spool"];
        if let (Some(stream), Some(reason)) = (gap["stream"].as_str(), gap["reason"].as_str()) {
            let count = gap["count"].as_u64().expect("a count");
            *dropped.entry((stream.to_owned(), reason.to_owned())).or_default() += count;
        }
    }
    dropped
}

#[test]
fn full_spool_drops_by_class_and_a_consumer_finds_all_of_it_declared() {
    let mut server = Server::start();
    // The least that a spool may have: 16 MiB, of which status changes get a quarter and keepalives a twentieth.
    let home = provisioned(
        &server,
        "<message_signing>yes</message_signing><publish mode=\"jetstream\"/><spool max_bytes=\"16MB\"/>",
    );
    let natsd = home.start();
    hand_over(&home, "before", |producer| producer.put(producer::change(0, 0)));
    home.wait_until_all_is_published();
    server.kill();
    hand_over(&home, "authd", |producer| {
        (1..=50).for_each(|agent| producer.put(producer::enrollment(agent)));
    });
    // More than all of it takes: before that no class is held to its share.
    let rounds = 40;
    for round in 0..rounds {
        hand_over(&home, &format!("fleet-{round}"), |producer| {
            for agent in 1..=AGENTS {
                producer.put(producer::change(agent, round));
                producer.put(producer::keepalive(agent));
            }
        });
    }
    hand_over(&home, "authd-again", |producer| {
        (51..=60).for_each(|agent| producer.put(producer::enrollment(agent)));
    });
    server.restart();
    home.wait_until_all_is_published();
    natsd.stop();
    let natsd = home.start();
    home.wait_until_all_is_published();
    natsd.stop();

    let [state, audit, keepalives] = block_on(async {
        let client = server.client().await;
        [
            Server::messages(&client, "MUSTER_STATE").await,
            Server::messages(&client, "MUSTER_AUDIT").await,
            Server::messages(&client, "MUSTER_KEEPALIVE").await,
        ]
    });
    let mut verifier = verifier(&home);
    let audit = accepted(&mut verifier, &audit);
    let state = accepted(&mut verifier, &state);
    let dropped = dropped(&audit);
    let lost = |stream: &str| -> u64 {
        let of_stream = dropped.iter().filter(|((of, _), _)| of == stream);
        of_stream.map(|(_, count)| count).sum()
    };
    let undeclared = verifier.undeclared();
    let of_state: Vec<_> = undeclared
        .iter()
        .filter(|(_, stream, _)| stream.name() == "MUSTER_STATE")
        .collect();
    assert!(of_state.is_empty(), "{of_state:?} {dropped:?}");
    let enrolled = state.iter().filter(|message| message.subject.ends_with(".enrolled"));
    assert_eq!(enrolled.count(), 60, "these are never dropped");
    // Each is either there, or counted as dropped.
    let changes = state
        .iter()
        .filter(|message| message.subject.ends_with(".status_change"));
    let changes = u64::try_from(changes.count()).expect("small");
    let made = u64::from(rounds * AGENTS) + 1;
    assert!(lost("MUSTER_STATE") > 0, "{dropped:?}");
    assert_eq!(changes + lost("MUSTER_STATE"), made, "{dropped:?}");
    // Of each agent the last one is there: its state is right in the end.
    let mut last = BTreeMap::new();
    for message in &state {
        let change = &json(message)["status_change"];
        if let (Some(agent), Some(place)) = (change["agent_id"].as_str(), change["missed_keepalives"].as_u64()) {
            last.insert(agent.to_owned(), place);
        }
    }
    last.remove("000");
    assert_eq!(last.len(), usize::try_from(AGENTS).expect("small"));
    assert!(last.values().all(|place| *place == u64::from(rounds - 1)), "{last:?}");
    assert!(lost("MUSTER_KEEPALIVE") > 0, "{dropped:?}");
    let newest = keepalives
        .iter()
        .filter(|message| message.subject.contains(".keepalive."))
        .map(|message| message.subject.clone());
    let newest: std::collections::BTreeSet<_> = newest.collect();
    assert_eq!(
        newest.len(),
        usize::try_from(AGENTS).expect("small"),
        "of each agent one is left"
    );
}
