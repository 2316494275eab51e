//! Who may take whose place, with a remoted that says how agents are connected.

use crate::support::{FakeRemoted, Home};
use muster_proto::{agent::AgentStatus, ipc::control::Liveness};
use muster_service::clock;

const AT_ONCE: &str = "<force><disconnected_time enabled=\"yes\">1h</disconnected_time>\
    <after_registration_time>0</after_registration_time></force>";

/// 001 to 005, in every state that there is.
fn state(id: &muster_proto::agent::AgentId) -> Option<Liveness> {
    let now = clock::unix_s();
    let (status, disconnected_at) = match id.as_str() {
        "001" => (AgentStatus::Active, 0),
        "002" => (AgentStatus::Pending, 0),
        "003" => (AgentStatus::Disconnected, now - 1800),
        "004" => (AgentStatus::Disconnected, now - 7200),
        "005" => (AgentStatus::NeverConnected, 0),
        _ => return None,
    };
    Some(Liveness {
        status,
        disconnected_at,
    })
}

#[test]
fn only_who_is_gone_for_long_or_never_came_gives_way() {
    let home = Home::new(AT_ONCE);
    let remoted = FakeRemoted::start(&home, state);
    let _daemon = home.start();
    for number in 1..=6 {
        home.enroll(&format!("OSSEC A:'agent-{number}'"));
    }
    for (number, reason) in [
        (1, "Agent '001' can't be replaced since it is not disconnected."),
        (2, "Agent '002' can't be replaced since it is not disconnected."),
        (3, "Agent '003' has not been disconnected long enough to be replaced."),
    ] {
        assert_eq!(
            home.request(&format!("OSSEC A:'agent-{number}'")),
            format!("ERROR: Duplicate agent name: agent-{number}. Unable to add agent")
        );
        let line = format!("Duplicate name 'agent-{number}', rejecting enrollment. {reason}");
        assert!(home.read("authd.log").contains(&line), "{line}");
    }
    assert_eq!(home.enroll("OSSEC A:'agent-4'")[0], "007");
    assert_eq!(home.enroll("OSSEC A:'agent-5'")[0], "008");
    assert_eq!(
        home.enroll("OSSEC A:'agent-6'")[0],
        "009",
        "remoted has never heard of it"
    );
    assert!(remoted.told() > 0);
}

#[test]
fn a_local_request_brings_its_own_rules() {
    let home = Home::new("");
    let _remoted = FakeRemoted::start(&home, state);
    let _daemon = home.start();
    for number in 1..=2 {
        home.enroll(&format!("OSSEC A:'agent-{number}'"));
    }
    let add = |name: &str, checks_connection: bool| {
        home.local(&format!(
            r#"{{"function":"add","arguments":{{"name":"{name}","ip":"any","force":{{"enabled":true,"key_mismatch":true,"disconnected_time":{{"enabled":{checks_connection},"value":"1h"}},"after_registration_time":"0"}}}}}}"#
        ))
    };
    assert_eq!(add("agent-1", true), r#"{"error":9008,"message":"Duplicate name"}"#);
    assert!(add("agent-1", false).starts_with(r#"{"error":0,"data":{"id":"003","#));
}

#[test]
fn an_address_may_take_one_place_and_a_name_another() {
    let home = Home::new(&AT_ONCE.replace("\"yes\">1h</disconnected_time>", "\"no\"/>"));
    let _daemon = home.start();
    home.enroll("OSSEC A:'a1' IP:'10.0.0.1'");
    home.enroll("OSSEC A:'a2'");
    assert_eq!(home.enroll("OSSEC A:'a2' IP:'10.0.0.1'")[0], "003");
    assert_eq!(
        home.events(),
        [
            "enrolled 001 a1",
            "enrolled 002 a2",
            "removed 001 a1",
            "removed 002 a2",
            "enrolled 003 a2"
        ]
    );
    let log = home.read("authd.log");
    assert!(
        log.contains("Duplicate IP '10.0.0.1'. Removing old agent 'a1' (id '001')."),
        "{log}"
    );
    assert!(
        log.contains("Duplicate name. Removing old agent 'a2' (id '002')."),
        "{log}"
    );
}

#[test]
fn nobody_is_removed_when_a_later_check_refuses() {
    let home = Home::new(&AT_ONCE.replace("\"yes\">1h</disconnected_time>", "\"no\"/>"));
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .expect("a host name")
        .trim()
        .to_owned();
    let _daemon = home.start();
    home.enroll("OSSEC A:'o6' IP:'10.0.0.6'");
    assert!(
        home.request(&format!("OSSEC A:'{own}' IP:'10.0.0.6'"))
            .starts_with("ERROR: Invalid agent name: ")
    );
    assert!(
        home.local(r#"{"function":"get","arguments":{"id":"001"}}"#)
            .starts_with(r#"{"error":0"#)
    );
    assert!(home.keys().starts_with("001 o6 10.0.0.6 "));
}
