//! Delivery through what operators do to streams: every event is there in the end, once.

use std::collections::BTreeMap;

use futures_util::StreamExt;

use crate::{
    Home, PATIENCE, Server, accepted, block_on, json, producer, provisioned, state_and_audit, verifier, wait_for,
};

fn hand_over(home: &Home, producer: &mut producer::Producer, places: std::ops::Range<u32>) {
    for place in places {
        producer.put(producer::change(place % 5, place));
    }
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
}

pub(crate) fn delete_and_make_again(home: &Home, server: &Server) {
    block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        jetstream.delete_stream("MUSTER_STATE").await.expect("deletes");
    });
    assert!(home.run(&["provision", "--share", "1"]).status.success());
}

/// How often each change of status is in the stream, by its place.
fn places(server: &Server) -> BTreeMap<u64, usize> {
    let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
    let mut places = BTreeMap::new();
    for message in &messages {
        if let Some(place) = json(message)["status_change"]["missed_keepalives"].as_u64() {
            *places.entry(place).or_default() += 1;
        }
    }
    places
}

fn once(places: std::ops::Range<u64>) -> BTreeMap<u64, usize> {
    places.map(|place| (place, 1)).collect()
}

#[test]
fn stream_that_is_made_again_gets_what_the_one_before_had_acknowledged() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let natsd = home.start();
    let mut producer = producer(&home);
    hand_over(&home, &mut producer, 0..20);
    hand_over(&home, &mut producer, 20..25);
    assert_eq!(places(&server), once(0..25));
    for round in 1..=2 {
        // The connection lives on, and nothing of ours comes while the stream is away.
        delete_and_make_again(&home, &server);
        hand_over(&home, &mut producer, 24 + round..25 + round);
        let expected = once(0..u64::from(25 + round));
        wait_for("everything is there again", || places(&server) == expected);
    }
    natsd.stop();
}

#[test]
fn stream_that_was_made_again_and_has_outgrown_the_one_before_gets_everything_all_the_same() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let natsd = home.start();
    let mut producer = producer(&home);
    hand_over(&home, &mut producer, 0..5);
    // When the stream was made is known before these are sent.
    hand_over(&home, &mut producer, 5..10);
    natsd.stop();
    delete_and_make_again(&home, &server);
    block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        for _ in 0..200 {
            let sent = jetstream.publish("wazuh.xdr.agent.900.other", "{}".into()).await;
            sent.expect("publishes").await.expect("is acknowledged");
        }
    });
    let _natsd = home.start();
    wait_for("everything is there again", || places(&server) == once(0..10));
}

fn unprovisioned(server: &Server) -> Home {
    Home::new(&format!(
        "<server_url>{}</server_url><node_name>mgr-a</node_name><message_signing>yes</message_signing>",
        server.url()
    ))
}

fn is_degraded(home: &Home, why: &str) -> bool {
    let degraded = home.status().map(|status| status.degraded.join("\n"));
    degraded.is_some_and(|degraded| degraded.contains(why))
}

/// The places of so many changes that somebody hears, in order.
async fn heard(subscriber: &mut async_nats::Subscriber, count: usize) -> Vec<u64> {
    let mut places = vec![];
    while places.len() < count {
        let message = tokio::time::timeout(PATIENCE, subscriber.next()).await;
        let message = message.expect("in time").expect("a message");
        let body: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
        places.extend(body["status_change"]["missed_keepalives"].as_u64());
    }
    places
}

#[test]
fn events_that_no_stream_takes_are_heard_once_and_wait_for_the_stream() {
    let server = Server::start();
    let home = unprovisioned(&server);
    let natsd = home.start();
    let mut producer = producer(&home);
    let put = |producer: &mut producer::Producer, places: std::ops::Range<u32>| {
        places.for_each(|place| producer.put(producer::change(place % 5, place)));
    };
    block_on(async {
        let client = server.client().await;
        let mut subscriber = client.subscribe("wazuh.xdr.agent.>").await.expect("subscribes");
        client.flush().await.expect("flushes");
        put(&mut producer, 0..50);
        producer.hand_over_all().await;
        assert_eq!(heard(&mut subscriber, 50).await, (0..50).collect::<Vec<_>>());
    });
    wait_for("natsd says what is missing", || {
        is_degraded(&home, "no stream that takes the events of MUSTER_STATE")
    });
    assert!(is_degraded(&home, "muster-natsd provision"));
    natsd.stop();
    // Another run does not tell them again, but what is new.
    let _natsd = home.start();
    block_on(async {
        let client = server.client().await;
        let mut subscriber = client.subscribe("wazuh.xdr.agent.>").await.expect("subscribes");
        client.flush().await.expect("flushes");
        put(&mut producer, 50..60);
        producer.hand_over_all().await;
        assert_eq!(heard(&mut subscriber, 10).await, (50..60).collect::<Vec<_>>());
    });
    assert!(home.run(&["provision", "--share", "1"]).status.success());
    home.wait_until_all_is_published();
    assert_eq!(places(&server), once(0..60));
    wait_for("nothing is missing any more", || !is_degraded(&home, "no stream"));
    let mut verifier = verifier(&home);
    let (state, audit) = state_and_audit(&server);
    accepted(&mut verifier, &audit);
    assert_eq!(accepted(&mut verifier, &state).len(), 60);
    assert!(verifier.undeclared().is_empty());
}

#[test]
fn server_without_jetstream_has_done_with_an_event_when_it_has_read_it() {
    let server = Server::with_config(|_, port| format!("listen: \"127.0.0.1:{port}\"\n"));
    let home = unprovisioned(&server);
    let _natsd = home.start();
    block_on(async {
        let client = server.client().await;
        let mut subscriber = client.subscribe("wazuh.xdr.agent.>").await.expect("subscribes");
        client.flush().await.expect("flushes");
        let mut producer = producer(&home);
        (0..50).for_each(|place| producer.put(producer::change(1, place)));
        producer.hand_over_all().await;
        assert_eq!(heard(&mut subscriber, 50).await, (0..50).collect::<Vec<_>>());
    });
    home.wait_until_all_is_published();
    assert!(is_degraded(&home, "no JetStream"));
    assert_eq!(home.log().matches("the broker has no JetStream").count(), 1);
}

#[test]
fn a_site_with_a_stream_of_its_own_gets_its_events_there_although_others_wait() {
    let server = Server::start();
    block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        let config = async_nats::jetstream::stream::Config {
            name: "SITE".to_owned(),
            subjects: vec!["wazuh.xdr.agent.>".to_owned()],
            ..Default::default()
        };
        jetstream.create_stream(config).await.expect("creates");
    });
    let home = unprovisioned(&server);
    let natsd = home.start();
    let mut producer = producer(&home);
    // Each has a copy among the alerts, which no stream takes.
    let put = |producer: &mut producer::Producer, places: std::ops::Range<u32>| {
        places.for_each(|place| producer.put(producer::change_of_level(place % 7, place, 12)));
        block_on(producer.hand_over_all());
    };
    let stored = || block_on(async { Server::messages(&server.client().await, "SITE").await.len() });
    put(&mut producer, 0..300);
    wait_for("the site has its events", || stored() == 300);
    natsd.stop();
    let _natsd = home.start();
    put(&mut producer, 300..310);
    wait_for("the site has its events", || stored() == 310);
    wait_for("natsd says what is missing", || {
        is_degraded(&home, "no stream that takes the events of MUSTER_STATE")
    });
    assert_ne!(home.facts()["waiting_events"], "0");
}
