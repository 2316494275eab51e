//! The real daemon against a real nats-server.

mod accounts;
mod activation;
mod alerts;
mod audit;
mod bundles;
mod damage;
mod delivery;
mod disk;
mod faults;
mod findings;
mod full;
mod hostile;
mod jwt;
mod logins;
mod names;
mod natsd;
mod network;
mod owners;
mod page;
mod permissions;
mod probe;
mod producer;
mod provisioned;
mod proxy;
mod received;
mod recipes;
mod requests;
mod scarcity;
mod server;
mod story;
mod traces;
mod trail;
mod trust;
mod trusted;
mod verifying;
mod wiped;

use std::{
    thread,
    time::{Duration, Instant},
};

use muster_natsd::{
    keys::KeyFile,
    verify::{Fate, Message, Policy, Verifier},
};
use natsd::Home;
use producer::Producer;
use server::Server;

const PATIENCE: Duration = Duration::from_secs(30);

fn wait_for(what: &str, is_so: impl FnMut() -> bool) {
    wait_for_within(PATIENCE, what, is_so);
}

#[expect(clippy::disallowed_methods, reason = "polls for what has no event, with a deadline")]
fn wait_for_within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < patience, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(future)
}

/// A daemon that publishes to a server which has all streams.
fn provisioned(server: &Server, options: &str) -> Home {
    let home = Home::new(&format!(
        "<server_url>{}</server_url><node_name>mgr-a</node_name><reconnect_delay>1</reconnect_delay>\
         <publish ack_timeout=\"2s\"/>{options}",
        server.url()
    ));
    let made = home.run(&["provision", "--share", "1"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    home
}

/// A verifier that believes the daemon's first key.
fn verifier(home: &Home) -> Verifier {
    let keys = KeyFile::read(&home.path("etc/nats/signing.nk"))
        .expect("reads")
        .public();
    Verifier::new(Policy {
        pinned: keys.into_iter().collect(),
        max_age_ms: None,
        ..Policy::default()
    })
}

/// What is accepted, in order. Nothing may be refused.
fn accepted<'a>(verifier: &mut Verifier, messages: &'a [Message]) -> Vec<&'a Message> {
    let mut accepted = vec![];
    for message in messages {
        let verdict = verifier.check(message, 0);
        let refused = matches!(verdict.fate, Fate::Refuse { .. });
        assert!(!refused, "{:?}: {:?}", message.header("Nats-Msg-Id"), verdict.fate);
        if verdict.fate == Fate::Accept {
            accepted.push(message);
        }
    }
    accepted
}

/// What is in the streams of states and of the audit.
fn state_and_audit(server: &Server) -> (Vec<Message>, Vec<Message>) {
    block_on(async {
        let client = server.client().await;
        (
            Server::messages(&client, "MUSTER_STATE").await,
            Server::messages(&client, "MUSTER_AUDIT").await,
        )
    })
}

fn json(message: &Message) -> serde_json::Value {
    serde_json::from_slice(&message.body).expect("JSON")
}

fn producer(home: &Home) -> Producer {
    Producer::new(home.path("queue/muster/events"), "remoted")
}

#[test]
fn provisioning_twice_changes_nothing_and_differences_are_told() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let again = home.run(&["provision", "--share", "1"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    block_on(async {
        let client = server.client().await;
        let subjects = muster_proto::event::Stream::State.subjects("wazuh.xdr");
        let request =
            serde_json::json!({"name": "MUSTER_STATE", "subjects": subjects, "max_age": 1_000_000_000_000_u64});
        let answer = client
            .request("$JS.API.STREAM.UPDATE.MUSTER_STATE", request.to_string().into())
            .await;
        let answer = answer.expect("answers");
        assert!(!String::from_utf8_lossy(&answer.payload).contains("error"));
    });
    let differs = home.run(&["provision", "--share", "1"]);
    assert_eq!(differs.status.code(), Some(1));
    let told = String::from_utf8_lossy(&differs.stderr);
    assert!(told.contains("MUSTER_STATE: max_age is"), "{told}");
    assert!(home.run(&["provision", "--share", "1", "--update"]).status.success());
}

#[test]
fn a_deleted_stream_makes_events_wait_for_its_return() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let _natsd = home.start();
    let mut producer = producer(&home);
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        jetstream.delete_stream("MUSTER_STATE").await.expect("deletes");
    });
    producer.put(producer::change(1, 1));
    block_on(producer.hand_over_all());
    wait_for("natsd says what is missing", || {
        home.status()
            .is_some_and(|status| status.degraded.join("\n").contains("no stream"))
    });
    assert!(home.run(&["provision", "--share", "1"]).status.success());
    home.wait_until_all_is_published();
    let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
    assert!(
        messages
            .iter()
            .any(|message| json(message)["status_change"]["missed_keepalives"] == 1)
    );
}

#[test]
fn events_too_large_for_the_broker_are_told_as_a_gap_and_stop_nobody() {
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\nmax_payload: 16KB\njetstream {{ store_dir: \"{}\" }}\n",
            store.display()
        )
    });
    let home = provisioned(&server, "<message_signing>yes</message_signing>");
    let _natsd = home.start();
    let mut producer = producer(&home);
    producer.put(producer::change(1, 0));
    let mut large = producer::change(1, 1);
    large.body = format!(
        "{{\"status_change\":{{\"agent_id\":\"001\",\"x\":\"{}\"}}}}",
        "x".repeat(20_000)
    )
    .into_bytes();
    producer.put(large);
    producer.put(producer::change(1, 2));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    wait_for("the gap is published", || {
        let mut verifier = verifier(&home);
        let (state, audit) = state_and_audit(&server);
        accepted(&mut verifier, &audit);
        let state = accepted(&mut verifier, &state);
        state.len() == 2 && verifier.undeclared().is_empty()
    });
}
