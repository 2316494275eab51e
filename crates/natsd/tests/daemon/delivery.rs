//! Delivery through what operators do to streams: every event is there in the end, once.

use std::collections::BTreeMap;

use crate::{Home, Server, block_on, json, producer, provisioned, wait_for};

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
