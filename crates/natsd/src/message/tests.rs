use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::body::{Keepalive, KeepaliveType, StatusChange},
};

use super::*;

fn composer() -> Composer {
    Composer {
        prefix: "wazuh.xdr".to_owned(),
        node: "mgr-a".to_owned(),
        source: "wazuh-manager".to_owned(),
        version: "4.14.7".to_owned(),
        epoch: 17,
        history: false,
        format: EventFormat::Native,
        sealer: None,
        keyring: None,
    }
}

fn mark() -> Mark {
    Mark {
        producer: "remoted".to_owned(),
        incarnation: 1,
        number: 1,
    }
}

fn status_change(alert_level: u8) -> Event {
    StatusChange {
        agent_id: &AgentId::new("001"),
        agent_name: "web-01",
        previous_status: AgentStatus::Active,
        current_status: AgentStatus::Disconnected,
        ip_address: "192.0.2.1",
        timestamp: 1_795_243_200,
        reason: Reason::KeepaliveTimeout,
        missed_keepalives: 3,
        alert_level,
    }
    .into_event(1_795_243_200_123)
}

#[test]
fn headers_of_an_event() {
    let stored = composer().compose(
        &status_change(8),
        mark(),
        Numbers {
            seq: 123_456,
            prev: 123_450,
        },
        None,
    );
    let headers: Vec<_> = stored
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    assert_eq!(
        headers,
        [
            "Nats-Msg-Id: mgr-a:17:123456",
            "Content-Type: application/json",
            "Muster-Ver: 1",
            "Muster-Type: agent.status_change",
            "Muster-Subject: wazuh.xdr.agent.001.status_change",
            "Muster-Node: mgr-a",
            "Muster-Epoch: 17",
            "Muster-Seq: 123456",
            "Muster-Prev: 123450",
            "Muster-Time: 1795243200123",
            "Muster-Status: active>disconnected",
        ]
    );
}

#[test]
fn first_event_of_a_stream_has_no_previous() {
    let stored = composer().compose(&status_change(8), mark(), Numbers { seq: 1, prev: 0 }, None);
    assert!(stored.headers.contains(&("Muster-Prev".into(), "-".to_owned())));
}

#[test]
fn high_status_change_has_a_copy_with_the_same_body_and_its_own_id() {
    let event = status_change(8);
    let numbers = Numbers { seq: 2, prev: 1 };
    let alert = event.disconnect_alert().expect("a copy");
    let original = CopyOf {
        sequence: 1,
        finding: None,
    };
    let copy = composer().compose(&alert, mark(), numbers, Some(original));
    assert_eq!(copy.subject, "wazuh.xdr.alerts.agent_disconnected");
    assert_eq!(copy.body, event.body);
    assert!(
        copy.headers
            .contains(&("Muster-Copy-Of".into(), "mgr-a:17:1".to_owned()))
    );
    assert!(copy.headers.contains(&("Nats-Msg-Id".into(), "mgr-a:17:2".to_owned())));
}

#[test]
fn keepalive_gets_its_security_object() {
    let event = Keepalive {
        agent_id: &AgentId::new("001"),
        agent_name: "web-01",
        ip_address: "192.0.2.1",
        timestamp: 1,
        event_type: KeepaliveType::KeepaliveSent,
        manager_node: "mgr-a",
        interval: 60,
    }
    .into_event(1000);
    let stored = composer().compose(&event, mark(), Numbers { seq: 9, prev: 0 }, None);
    let body = String::from_utf8(stored.body).expect("UTF-8");
    assert!(
        body.ends_with(r#","security":{"source":"wazuh-manager","version":"4.14.7","sequence":9}}"#),
        "{body}"
    );
}

#[test]
fn producer_cannot_forge_or_break_headers() {
    let mut event = status_change(3);
    event.headers = [
        ("Muster-Seq", "1"),
        ("Nats-Msg-Id", "x"),
        ("Muster-Status", "b\r\nC: d"),
        ("traceparent", "00-h"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let stored = composer().compose(&event, mark(), Numbers { seq: 5, prev: 0 }, None);
    assert_eq!(stored.headers[10..], [("traceparent".into(), "00-h".to_owned())]);
}

#[test]
fn signature_covers_subject_time_number_and_body() {
    use crate::{keys, signature};
    let home = tempfile::tempdir().expect("directory");
    let file = home.path().join("signing.nk");
    keys::create_if_missing(&file).expect("makes a key");
    let (keyring, _) = Keyring::open(&file, home.path(), keys::Rules::plain("mgr-a", 17), 1).expect("opens");
    let composer = Composer {
        keyring: Some(keyring),
        ..composer()
    };
    let stored = composer.compose(&status_change(3), mark(), Numbers { seq: 5, prev: 4 }, None);
    let check = |changed: Option<(&str, &str)>, body: &[u8]| {
        let header = |name: &str| match changed {
            Some((other, value)) if other == name => Some(value),
            _ => stored
                .headers
                .iter()
                .find(|(other, _)| other == name)
                .map(|(_, value)| value.as_str()),
        };
        let preamble = Preamble::of(header).expect("complete");
        let key = signature::public_key(preamble.key_id);
        key.is_some_and(|key| {
            signature::verifies(
                &key,
                &preamble.signed_bytes(body),
                header(header::SIGNATURE).expect("signed"),
            )
        })
    };
    assert!(check(None, &stored.body));
    assert!(!check(None, b"{}"));
    let other_key = nkeys::KeyPair::new_user().public_key();
    for (name, value) in [
        (header::SUBJECT, "wazuh.xdr.agent.002.status_change"),
        (header::MSG_ID, "mgr-a:17:6"),
        (header::TIME, "1795243200124"),
        (header::PREVIOUS, "3"),
        (header::CONTENT_TYPE, "text/plain"),
        (header::SEALED, "xkv1"),
        (header::KEY_ID, other_key.as_str()),
    ] {
        assert!(!check(Some((name, value)), &stored.body), "{name} is not covered");
    }
}
