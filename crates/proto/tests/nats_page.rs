//! The bodies that `docs/nats.md` prints are those that daemons write, byte for byte.

use std::{collections::BTreeSet, fs};

use muster_proto::{
    agent::{AgentId, Reason},
    event::{
        Event, Kind,
        body::{Connection, Enrollment, Health, KeyPolling, QueueFill, Rejection, SpoolGap},
    },
};

const NOW: u64 = 1_795_243_200;

fn events() -> Vec<Event> {
    let (first, seventh) = (AgentId::new("001"), AgentId::new("007"));
    let connection = Connection {
        agent_id: &first,
        agent_name: "web-01",
        ip_address: "192.0.2.7",
        timestamp: NOW,
        state: "lost",
        reason: Reason::ConnectionLost,
        detail: Some("reset"),
        manager_node: "mgr-a",
        alert_level: 5,
    };
    let enrollment = Enrollment {
        agent_id: &seventh,
        agent_name: "web-01",
        ip_address: "any",
        timestamp: NOW,
        action: "enrolled",
        reason: "duplicate_name",
        replaced_agent_id: Some(&first),
        method: "tls",
        groups: &["default".to_owned(), "web".to_owned()],
        manager_node: "mgr-a",
    };
    let rejection = Rejection {
        agent_name: Some("web-01"),
        ip_address: "192.0.2.7",
        timestamp: NOW,
        reason: "bad_password",
        manager_node: "mgr-a",
    };
    let keypoll = KeyPolling {
        lookup: "id",
        value: "001",
        outcome: "registered",
        duration_ms: 12,
        agent_id: Some(&first),
    };
    let intake = QueueFill {
        daemon: "natsd".to_owned(),
        queue: "intake".to_owned(),
        used: 0,
        capacity: 64,
        unit: "batches".to_owned(),
        dropped: 0,
    };
    let health = Health {
        manager_node: "mgr-a",
        timestamp: NOW,
        reason: "periodic",
        epoch: 17,
        seq: 123_456,
        events_per_second: 120,
        spool_events: 0,
        spool_bytes: 0,
        spool_capacity: 1_000_000_000,
        spool_age: 0,
        last_ack: NOW - 1,
        degraded: &[],
        clock_step_ms: 0,
        broker_skew_ms: Some(3),
        queues: &[intake],
    };
    let gap = SpoolGap {
        class: "P4",
        node: "mgr-a",
        epoch: 17,
        from_seq: 5,
        to_seq: 900,
        count: 700,
        first_ts: NOW,
        last_ts: NOW + 3600,
        reason: "spool_full",
        stream: "MUSTER_KEEPALIVE",
        prev_last_seq: None,
        producer: None,
        runs: &[(2, 640), (651, 900)],
        spool_age: 3600,
    };
    vec![
        connection.into_event(NOW),
        enrollment.into_event(Kind::Enrolled, NOW),
        rejection.into_event(NOW, 5),
        keypoll.into_event("resolved", NOW),
        health.into_event(NOW),
        gap.into_event(NOW),
    ]
}

#[test]
fn bodies_on_the_page_are_what_daemons_write() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nats.md")).expect("docs/nats.md");
    let lines: BTreeSet<&str> = page.lines().collect();
    for event in events() {
        let body = String::from_utf8(event.body).expect("text");
        assert!(lines.contains(body.as_str()), "docs/nats.md does not have\n{body}");
    }
}
