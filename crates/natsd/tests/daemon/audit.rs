//! What the audit stream and the announcements of keys tell of the daemon itself.

use std::fs;

use muster_proto::ipc::control::{Request, Response};
use serde_json::Value;

use crate::{accepted, block_on, json, natsd::Home, provisioned, server::Server, verifier, wait_for};

const OPTIONS: &str = "<message_signing>yes</message_signing><audit_logging>yes</audit_logging>";

/// The members `audit` and `key` of everything in the stream.
fn told(server: &Server) -> Vec<Value> {
    let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_AUDIT").await });
    let bodies = messages.iter().map(json);
    bodies
        .map(|mut body| match body.get("key") {
            Some(key) => key.clone(),
            None => body["audit"].take(),
        })
        .collect()
}

/// The lines of the file, as far as they are whole.
pub(crate) fn acts(home: &Home) -> Vec<Value> {
    let text = fs::read_to_string(home.path("logs/natsd-audit.json")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[test]
fn changed_configuration_is_an_act_with_the_sums_of_both() {
    let server = Server::start();
    let home = provisioned(&server, OPTIONS);
    let _natsd = home.start();
    let act = |name: &str| told(&server).into_iter().find(|line| line["act"] == name);
    wait_for("the configuration is told", || act("configuration").is_some());
    let file = home.path("etc/ossec.conf");
    let text = fs::read_to_string(&file).expect("reads");
    let reload = || {
        block_on(async {
            let mut control = home.control().await.expect("connects");
            control.ask(&Request::Reload).await.expect("answers")
        })
    };
    assert!(matches!(reload(), Response::Done(_)));
    fs::write(&file, format!("{text}\n<!-- changed -->\n")).expect("writes");
    assert!(matches!(reload(), Response::Done(_)));
    wait_for("the change is told", || act("configuration_changed").is_some());
    let (before, after) = (act("configuration"), act("configuration_changed").expect("is there"));
    let first = before.expect("is there")["detail"]["sha256"].clone();
    assert_eq!(after["detail"]["before"], first);
    assert_ne!(after["detail"]["sha256"], first);
    let changes = told(&server)
        .iter()
        .filter(|line| line["act"] == "configuration_changed")
        .count();
    assert_eq!(changes, 1, "the first reload changed nothing");
}

#[test]
fn lost_state_of_the_sequence_is_announced_with_the_key() {
    let server = Server::start();
    let home = provisioned(&server, OPTIONS);
    let natsd = home.start();
    home.wait_until_all_is_published();
    natsd.stop();
    fs::remove_file(home.path("queue/nats/seq.state")).expect("removes");
    let _natsd = home.start();
    wait_for("it is announced", || {
        told(&server).iter().any(|line| line["reason"] == "state_lost")
    });
    let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_AUDIT").await });
    accepted(&mut verifier(&home), &messages);
}
