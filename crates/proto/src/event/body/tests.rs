use super::*;

#[test]
fn keepalive_body_is_frozen() {
    let id = AgentId::new("001");
    let event = Keepalive {
        agent_id: &id,
        agent_name: "web-server-01",
        ip_address: "192.168.1.100",
        timestamp: 1_716_897_300,
        event_type: KeepaliveType::KeepaliveSent,
        manager_node: "wazuh-manager-01",
        interval: 60,
    }
    .into_event(1_716_897_300_123);
    assert_eq!(
        String::from_utf8(complete_keepalive(&event.body, "wazuh-manager", "4.7.0", 12345)).expect("UTF-8"),
        r#"{"event":{"agent_id":"001","agent_name":"web-server-01","ip_address":"192.168.1.100","timestamp":1716897300,"event_type":"keepalive_sent","manager_node":"wazuh-manager-01","interval":60},"security":{"source":"wazuh-manager","version":"4.7.0","sequence":12345}}"#
    );
}

#[test]
fn status_change_body_is_frozen() {
    let id = AgentId::new("001");
    let event = StatusChange {
        agent_id: &id,
        agent_name: "web-server-01",
        previous_status: AgentStatus::Active,
        current_status: AgentStatus::Disconnected,
        ip_address: "192.168.1.100",
        timestamp: 1_716_897_360,
        reason: Reason::KeepaliveTimeout,
        missed_keepalives: 3,
        alert_level: 8,
    }
    .into_event(1_716_897_360_000);
    assert_eq!(
        String::from_utf8(event.body).expect("UTF-8"),
        r#"{"status_change":{"agent_id":"001","agent_name":"web-server-01","previous_status":0,"current_status":1,"ip_address":"192.168.1.100","timestamp":1716897360,"reason":"keepalive_timeout","missed_keepalives":3,"alert_level":8}}"#
    );
    assert_eq!(
        event.headers,
        [("Muster-Status".to_owned(), "active>disconnected".to_owned())]
    );
}

#[test]
fn names_with_quotes_are_escaped() {
    let rejection = Rejection {
        agent_name: Some("a\"b\n"),
        ip_address: "::1",
        timestamp: 1,
        reason: "limit",
        manager_node: "n",
    };
    let event = rejection.into_event(1000, 0);
    assert_eq!(
        String::from_utf8(event.body).expect("UTF-8"),
        r#"{"enrollment":{"agent_name":"a\"b\n","ip_address":"::1","timestamp":1,"reason":"limit","manager_node":"n"}}"#
    );
}
