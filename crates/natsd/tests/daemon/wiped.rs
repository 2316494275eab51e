//! A manager whose spool is gone, or from an old copy: its numbers begin anew, and consumers are told.

use std::fs;

use muster_natsd::verify::{Fate, Message, Verifier};
use muster_proto::event::Stream;
use serde_json::{Value, json};

use crate::{
    accepted, block_on, json as body_of, natsd::Home, producer, provisioned, server::Server, state_and_audit, verifier,
    wait_for,
};

const OPTIONS: &str = "<message_signing>yes</message_signing><audit_logging>yes</audit_logging>";
/// The name is not waited for, of which only the lost spool knew that it is ours.
const NO_BUCKETS: &str = "<kv enabled=\"no\"/>";
const BUCKETS: &str = "<kv bucket=\"agents\"/>";

fn put(home: &Home, places: std::ops::Range<u32>) {
    // A daemon that was restarted, too.
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), &format!("daemon-{}", places.start));
    places.for_each(|place| producer.put(producer::change(1, place)));
    block_on(producer.hand_over_all());
}

fn number(message: &Message, name: &str) -> u64 {
    message
        .header(name)
        .and_then(|value| value.parse().ok())
        .expect("a number")
}

/// Announcements of keys by their reason.
fn announced<'a>(audit: &'a [Message], reason: &str) -> Vec<&'a Message> {
    let is_it = |message: &&Message| body_of(message)["key"]["reason"] == reason;
    audit.iter().filter(is_it).collect()
}

/// What is missing of a stream that nobody has declared: behind which number, and up to which.
fn missing(verifier: &Verifier, stream: Stream) -> Vec<(u64, Option<u64>)> {
    let holes = verifier.undeclared();
    let of_stream = holes.iter().filter(|(_, of, _)| *of == stream);
    of_stream.map(|(_, _, hole)| (hole.after, hole.upto)).collect()
}

#[test]
fn wiped_spool_begins_an_epoch_that_is_believed_and_its_loss_is_told() {
    let mut server = Server::start();
    let home = provisioned(&server, &format!("{OPTIONS}{NO_BUCKETS}"));
    let natsd = home.start();
    put(&home, 0..5);
    home.wait_until_all_is_published();
    server.kill();
    put(&home, 5..8);
    natsd.kill();
    fs::remove_dir_all(home.path("queue/nats")).expect("removes the spool");
    server.restart();
    let natsd = home.start();
    put(&home, 8..12);
    home.wait_until_all_is_published();
    natsd.stop();
    // And on, as if nothing had been.
    let natsd = home.start();
    put(&home, 12..14);
    home.wait_until_all_is_published();
    natsd.stop();

    let (state, audit) = state_and_audit(&server);
    let lost = announced(&audit, "state_lost");
    assert_eq!(lost.len(), 1);
    let (before, behind) = (number(&state[0], "Muster-Epoch"), number(lost[0], "Muster-Epoch"));
    assert!(behind > before, "{behind} > {before}");
    // Who comes later hears of it all the same.
    for announcement in [lost[0], announced(&audit, "start")[0]] {
        assert_eq!(body_of(announcement)["key"]["begun"], json!([[behind, 1]]));
    }
    let restarts: Vec<_> = audit
        .iter()
        .filter(|message| body_of(message)["spool"]["reason"] == "restart")
        .map(|message| {
            let epoch = number(message, "Muster-Epoch");
            (epoch, body_of(message)["spool"]["prev_last_seq"].clone())
        })
        .collect();
    // What the one before has published last, of whichever stream, was the last; nobody knows it behind a wiped spool.
    let highest = |epoch: u64| {
        let all = block_on(async { Server::messages(&server.client().await, "MUSTER_KEEPALIVE").await });
        let all = state.iter().chain(&audit).chain(&all);
        let of_epoch = all.filter(|message| number(message, "Muster-Epoch") == epoch);
        of_epoch.map(|message| number(message, "Muster-Seq")).max()
    };
    assert_eq!(
        restarts,
        [
            (before, json!(0)),
            (behind, json!(0)),
            (behind + 1, json!(highest(behind)))
        ]
    );
    let last = state.iter().rfind(|message| number(message, "Muster-Epoch") == before);
    let last = number(last.expect("is there"), "Muster-Seq");

    // In the order in which a consumer may get them: all announcements first, or each in its place.
    for audit_first in [true, false] {
        let mut verifier = verifier(&home);
        if audit_first {
            accepted(&mut verifier, &audit);
        } else {
            announced(&audit, "start")
                .iter()
                .for_each(|message| drop(verifier.hear(message)));
        }
        let places: Vec<_> = accepted(&mut verifier, &state)
            .iter()
            .map(|message| body_of(message)["status_change"]["missed_keepalives"].as_u64())
            .collect();
        assert_eq!(places, (0..5).chain(8..14).map(Some).collect::<Vec<_>>());
        assert_eq!(
            missing(&verifier, Stream::State),
            [(last, None)],
            "whatever was in the spool"
        );
        assert!(
            state
                .iter()
                .all(|message| verifier.check(message, 0).fate == Fate::Duplicate)
        );
    }
    let started: Vec<Value> = crate::audit::acts(&home)
        .into_iter()
        .filter(|line| line["act"] == "started")
        .map(|line| line["detail"]["state_lost"].clone())
        .collect();
    assert_eq!(started, [json!(false), json!(true), json!(false)]);
}

#[test]
fn epoch_is_above_the_one_that_the_bucket_knows_even_if_the_clock_went_back() {
    const FAR: u64 = 9_000_000_000;
    let server = Server::start();
    let home = provisioned(&server, &format!("{OPTIONS}{BUCKETS}"));
    let natsd = home.start();
    put(&home, 0..1);
    home.wait_until_all_is_published();
    natsd.stop();
    block_on(async {
        let holder = json!({"node": "mgr-a", "epoch": FAR, "host": "h", "since": 0, "deadline": 0, "mark": "another"});
        let client = server.client().await;
        let written = client
            .request("$KV.muster_nodes.mgr-a", holder.to_string().into())
            .await;
        assert!(!String::from_utf8_lossy(&written.expect("answers").payload).contains("error"));
    });
    // The spool is there, but somebody has used later epochs: it is an old copy.
    let natsd = home.start();
    put(&home, 1..2);
    home.wait_until_all_is_published();
    natsd.stop();
    let (state, audit) = state_and_audit(&server);
    assert_eq!(number(&state[1], "Muster-Epoch"), FAR + 1);
    assert_eq!(announced(&audit, "state_lost").len(), 1);
    let mut verifier = verifier(&home);
    accepted(&mut verifier, &audit);
    assert_eq!(accepted(&mut verifier, &state).len(), 2);
    assert_eq!(
        missing(&verifier, Stream::State),
        [],
        "no number was used twice, and none is missing"
    );
}

#[test]
fn natsd_that_finds_a_later_epoch_only_when_it_has_begun_publishes_nothing_in_its_own() {
    let mut server = Server::start();
    let home = provisioned(&server, &format!("<message_signing>yes</message_signing>{BUCKETS}"));
    let natsd = home.start();
    put(&home, 0..1);
    home.wait_until_all_is_published();
    natsd.stop();
    let copied = home.path("copy");
    copy(&home.path("queue/nats"), &copied);
    for place in 1..3 {
        let natsd = home.start();
        put(&home, place..place + 1);
        home.wait_until_all_is_published();
        natsd.stop();
    }
    server.kill();
    fs::remove_dir_all(home.path("queue/nats")).expect("removes");
    fs::rename(&copied, home.path("queue/nats")).expect("brings the old copy back");
    let natsd = home.start();
    server.restart();
    let degraded = || {
        home.status()
            .map(|status| status.degraded.join("\n"))
            .unwrap_or_default()
    };
    wait_for("it says so", || degraded().contains("restart natsd"));
    let before = state_and_audit(&server).0.len();
    natsd.stop();
    let natsd = home.start();
    put(&home, 3..4);
    home.wait_until_all_is_published();
    natsd.stop();
    let (state, audit) = state_and_audit(&server);
    assert_eq!(before, 3);
    let mut verifier = verifier(&home);
    accepted(
        &mut verifier,
        &announced(&audit, "state_lost").into_iter().cloned().collect::<Vec<_>>(),
    );
    assert_eq!(accepted(&mut verifier, &state).len(), 4);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("makes it");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}
