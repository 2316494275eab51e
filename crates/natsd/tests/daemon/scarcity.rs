//! Servers that run out of room, go away in good order, or take less than they should.

use async_nats::jetstream::{self, stream};
use muster_natsd::verify::Message;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    accepted, block_on, json as body, natsd::Home, producer, provisioned, server::Server, state_and_audit, verifier,
    wait_for,
};

fn put(home: &Home, places: std::ops::Range<u32>) {
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), &format!("producer-{}", places.start));
    places.for_each(|place| producer.put(producer::change(1, place)));
    block_on(producer.hand_over_all());
}

fn places(messages: &[Message]) -> Vec<Value> {
    let places = messages
        .iter()
        .map(|message| body(message)["status_change"]["missed_keepalives"].clone());
    places.collect()
}

fn all(count: u32) -> Vec<Value> {
    (0..count).map(Value::from).collect()
}

fn stored(server: &Server, stream: &str) -> Vec<Message> {
    block_on(async { Server::messages(&server.client().await, stream).await })
}

/// A stream without bounds of its own.
async fn create(context: &jetstream::Context, name: &str, subject: &str, storage: stream::StorageType) {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        storage,
        ..stream::Config::default()
    };
    context.create_stream(config).await.expect("creates");
}

#[test]
fn server_without_room_is_named_and_only_what_it_has_no_room_for_waits() {
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", max_file_store: 1MB, max_memory_store: 8MB }}\n",
            store.display()
        )
    });
    let context = || async { jetstream::new(server.client().await) };
    block_on(async {
        let context = context().await;
        create(
            &context,
            "MUSTER_STATE",
            "wazuh.xdr.agent.*.>",
            stream::StorageType::File,
        )
        .await;
        let keepalives = "wazuh.xdr.manager.keepalive.*";
        create(&context, "MUSTER_KEEPALIVE", keepalives, stream::StorageType::Memory).await;
        // Without a stream, they would wait for one.
        for (name, subject) in [
            ("HEALTH", "wazuh.xdr.manager.health.*"),
            ("MUSTER_AUDIT", "wazuh.xdr.manager.spool.*"),
        ] {
            create(&context, name, subject, stream::StorageType::Memory).await;
        }
        create(&context, "BALLAST", "ballast", stream::StorageType::File).await;
    });
    let home = Home::new(&format!(
        "<server_url>{}</server_url><node_name>mgr-a</node_name><publish ack_timeout=\"2s\"/>",
        server.url()
    ));
    let natsd = home.start();
    put(&home, 0..3);
    home.wait_until_all_is_published();
    // Until there is no room for one byte more.
    block_on(async {
        let context = context().await;
        for size in [100_000, 1000, 10] {
            while let Ok(ack) = context.publish("ballast", vec![b'x'; size].into()).await {
                if ack.await.is_err() {
                    break;
                }
            }
        }
    });
    put(&home, 3..10);
    wait_for("natsd says what is missing", || {
        let degraded = home.status().map(|status| status.degraded.join("\n"));
        degraded.is_some_and(|degraded| degraded.contains("MUSTER_STATE") && degraded.contains("resource"))
    });
    let mut keepalives = producer::Producer::new(home.path("queue/muster/events"), "keepalives");
    keepalives.put(producer::keepalive(7));
    block_on(keepalives.hand_over_all());
    wait_for("other families go on", || {
        let stored = stored(&server, "MUSTER_KEEPALIVE");
        stored.iter().any(|message| message.subject.ends_with("keepalive.007"))
    });
    assert_eq!(places(&stored(&server, "MUSTER_STATE")), all(3));
    assert!(home.log().matches("resource").count() <= 3, "{}", home.log());
    block_on(async {
        context().await.delete_stream("BALLAST").await.expect("deletes");
    });
    home.wait_until_all_is_published();
    assert_eq!(places(&stored(&server, "MUSTER_STATE")), all(10));
    natsd.stop();
}

#[test]
fn server_that_announces_its_end_is_left_and_events_wait_for_its_return() {
    let mut server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n\
             lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"\n",
            store.display()
        )
    });
    let home = provisioned(&server, "<message_signing>yes</message_signing>");
    let natsd = home.start();
    put(&home, 0..3);
    home.wait_until_all_is_published();
    // What `nats-server -sl ldm` sends.
    server.signal(Signal::SIGUSR2);
    wait_for("natsd tells of it", || home.log().contains("is about to stop"));
    put(&home, 3..10);
    wait_for("the server has closed the connection", || {
        home.facts().get("nats").is_some_and(|link| link != "connected")
    });
    put(&home, 10..20);
    server.restart();
    home.wait_until_all_is_published();
    let (state, audit) = state_and_audit(&server);
    let mut verifier = verifier(&home);
    accepted(&mut verifier, &audit);
    assert_eq!(accepted(&mut verifier, &state).len(), 20);
    assert_eq!(places(&state), all(20));
    assert_eq!(verifier.undeclared(), []);
    natsd.stop();
}

#[test]
fn no_consumer_that_is_provisioned_needs_more_than_one_filter() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let natsd = home.start();
    put(&home, 0..3);
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), "authd");
    producer.put(producer::enrollment(9));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    natsd.stop();
    block_on(async {
        let client = server.client().await;
        let ask = async |what: &str, request: Value| -> Value {
            let answer = client
                .request(format!("$JS.API.{what}"), request.to_string().into())
                .await;
            serde_json::from_slice(&answer.expect("answers").payload).expect("JSON")
        };
        let mut consumers = 0;
        for stream in ["MUSTER_KEEPALIVE", "MUSTER_STATE", "MUSTER_ALERTS", "MUSTER_AUDIT"] {
            let answer = ask(&format!("CONSUMER.LIST.{stream}"), json!({})).await;
            for consumer in answer["consumers"].as_array().into_iter().flatten() {
                let config = &consumer["config"];
                assert!(config["filter_subject"].is_string(), "{config}");
                assert!(config.get("filter_subjects").is_none(), "{config}");
                consumers += 1;
            }
        }
        assert!(consumers >= 5, "{consumers}");
        // Why: a server that does not know several filters takes them, and then delivers everything.
        let several = json!({"stream_name": "MUSTER_STATE", "config": {
            "durable_name": "several", "ack_policy": "explicit",
            "filter_subjects": ["wazuh.xdr.agent.*.enrolled", "wazuh.xdr.agent.*.removed"],
        }});
        let made = ask("CONSUMER.DURABLE.CREATE.MUSTER_STATE.several", several).await;
        assert_eq!(made.get("error"), None, "{made}");
        let filters = made["config"].get("filter_subjects").is_some();
        let expected = if filters { 1 } else { 4 };
        assert_eq!(made["num_pending"], expected, "{made}");
    });
}
