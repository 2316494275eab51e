//! The forms of a body: our own, with the headers of CloudEvents, or OCSF. The subject is the same in all of them.
//!
//! CloudEvents is the binary mode of its NATS binding: the body stays as it is, and six `ce-` headers say the rest. OCSF
//! has no class for the state of an agent: [`ROWS`] is our reading, all of it in one place.

use jiff::Timestamp;
use muster_config::EventFormat;
use muster_proto::event::{Event, Kind, header};
use serde_json::{Map, Value, json};

/// The newest release whose fields are used.
const OCSF_VERSION: &str = "1.3.0";

/// A body and what goes with it.
pub(crate) struct Written {
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// Puts an event's body into the configured form.
pub(crate) fn write(format: EventFormat, event: &Event, body: Vec<u8>, id: &str, node: &str) -> Written {
    let mut written = Written {
        content_type: header::JSON,
        body,
        headers: Vec::new(),
    };
    match format {
        EventFormat::Native => {}
        EventFormat::Cloudevents => written.headers = cloud_event(event, id, node),
        EventFormat::Ocsf => {
            if let Some(body) = ocsf(event, &written.body, id, node) {
                written.content_type = "application/ocsf+json";
                written.body = body;
            }
        }
    }
    written
}

fn cloud_event(event: &Event, id: &str, node: &str) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", id.to_owned()),
        (
            "ce-source",
            format!("/muster/{}", muster_proto::event::subject::token(node)),
        ),
        ("ce-type", event.kind.type_name().to_owned()),
        ("ce-time", rfc3339(event.created_ms)),
    ];
    // The subject may be absent and must not be empty; only what is one token is sure to be printable.
    if !event.subject_key.is_empty() {
        headers.push((
            "ce-subject",
            muster_proto::event::subject::token(&event.subject_key).into_owned(),
        ));
    }
    headers
}

fn rfc3339(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(String::new, |time| format!("{time:.3}"))
}

/// A kind of event in OCSF.
struct Row {
    kind: Kind,
    class: u64,
    activity: fn(&Value) -> u64,
}

const INVENTORY: u64 = 5001;
const LIFECYCLE: u64 = 6002;
const FINDING: u64 = 2004;
const ENTITY: u64 = 3004;
const CONFIG_CHANGE: u64 = 5019;
const LIVE_EVIDENCE: u64 = 5040;

const CREATE: u64 = 1;
const LOG: u64 = 1;
const UPDATE: u64 = 3;
const START: u64 = 3;
const STOP: u64 = 4;
const DELETE: u64 = 4;

/// Which class and activity each kind has. What is not listed stays in our own form.
const ROWS: [Row; 10] = [
    Row {
        kind: Kind::Keepalive,
        class: INVENTORY,
        activity: |_| LOG,
    },
    Row {
        kind: Kind::StatusChange,
        class: LIFECYCLE,
        activity: |body| if body["current_status"] == 0 { START } else { STOP },
    },
    Row {
        kind: Kind::DisconnectAlert,
        class: FINDING,
        activity: |_| CREATE,
    },
    Row {
        kind: Kind::Enrolled,
        class: ENTITY,
        activity: |_| CREATE,
    },
    Row {
        kind: Kind::Removed,
        class: ENTITY,
        activity: |_| DELETE,
    },
    Row {
        kind: Kind::KeyRotated,
        class: ENTITY,
        activity: |_| UPDATE,
    },
    Row {
        kind: Kind::Renamed,
        class: ENTITY,
        activity: |_| UPDATE,
    },
    Row {
        kind: Kind::RuleAlert,
        class: FINDING,
        activity: |_| CREATE,
    },
    Row {
        kind: Kind::Agentless,
        class: CONFIG_CHANGE,
        activity: |_| LOG,
    },
    Row {
        kind: Kind::Osquery,
        class: LIVE_EVIDENCE,
        activity: |_| LOG,
    },
];

/// The event as OCSF; nothing for a kind that has no class, or a body that is no JSON.
fn ocsf(event: &Event, body: &[u8], id: &str, node: &str) -> Option<Vec<u8>> {
    let row = ROWS.iter().find(|row| row.kind == event.kind)?;
    let whole: Value = serde_json::from_slice(body).ok()?;
    let member = ["event", "status_change", "enrollment"]
        .iter()
        .find_map(|name| whole.get(name))
        .unwrap_or(&whole);
    let activity = (row.activity)(member);
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    put("class_uid", row.class.into());
    put("category_uid", (row.class / 1000).into());
    put("activity_id", activity.into());
    put("type_uid", (row.class * 100 + activity).into());
    put("time", event.created_ms.into());
    put("severity_id", severity(event.alert_level).into());
    put(
        "metadata",
        json!({
            "version": OCSF_VERSION,
            "uid": id,
            "product": {"name": "Muster", "vendor_name": "Muster", "version": env!("CARGO_PKG_VERSION")},
            "log_provider": node,
        }),
    );
    if let Some(reason) = member["reason"].as_str() {
        put("status_detail", reason.into());
    }
    let agent = json!({"uid": member["agent_id"], "name": member["agent_name"], "type_id": 1});
    let device = json!({
        "uid": member["agent_id"],
        "name": member["agent_name"],
        "hostname": member["agent_name"],
        "ip": member["ip_address"],
        "type_id": 0,
        "agent_list": [agent],
    });
    match row.class {
        LIFECYCLE => {
            put(
                "app",
                json!({"name": "agent", "uid": member["agent_id"], "vendor_name": "Wazuh"}),
            );
            put("device", device);
        }
        FINDING => {
            let title = whole["rule"]["description"].as_str().unwrap_or("agent disconnected");
            let uid = whole["id"]
                .as_str()
                .map_or_else(|| format!("{node}:{}:disconnected", event.subject_key), str::to_owned);
            put("finding_info", json!({"uid": uid, "title": title}));
            if event.kind == Kind::RuleAlert {
                put("raw_data", String::from_utf8_lossy(body).into());
            } else {
                put("device", device);
            }
        }
        ENTITY => {
            put(
                "entity",
                json!({"uid": member["agent_id"], "name": member["agent_name"], "type": "agent"}),
            );
            put("comment", member["action"].clone());
        }
        CONFIG_CHANGE | LIVE_EVIDENCE => {
            put("device", json!({"uid": event.subject_key, "type_id": 0}));
            put("raw_data", String::from_utf8_lossy(body).into());
        }
        _ => {
            put("device", device);
        }
    }
    serde_json::to_vec(&out).ok()
}

/// From a rule level to OCSF: informational, low, medium, high, critical.
fn severity(level: u8) -> u64 {
    match level {
        0 => 1,
        1..=4 => 2,
        5..=7 => 3,
        8..=11 => 4,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        agent::{AgentId, AgentStatus, Reason},
        event::body::StatusChange,
    };

    use super::*;

    fn change() -> Event {
        StatusChange {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            previous_status: AgentStatus::Active,
            current_status: AgentStatus::Disconnected,
            ip_address: "192.0.2.1",
            timestamp: 1_795_243_200,
            reason: Reason::KeepaliveTimeout,
            missed_keepalives: 3,
            alert_level: 8,
        }
        .into_event(1_795_243_200_123)
    }

    #[test]
    fn cloud_events_leave_the_body_and_add_their_headers() {
        let event = change();
        let written = write(EventFormat::Cloudevents, &event, event.body.clone(), "n:1:2", "mgr.a");
        assert_eq!(written.body, event.body);
        assert_eq!(written.content_type, "application/json");
        let header = |name| {
            written
                .headers
                .iter()
                .find(|(other, _)| *other == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(header("ce-specversion"), Some("1.0"));
        assert_eq!(header("ce-id"), Some("n:1:2"));
        assert!(header("ce-source").is_some_and(|source| source.starts_with("/muster/mgr_a~")));
        assert_eq!(header("ce-type"), Some("agent.status_change"));
        assert_eq!(header("ce-subject"), Some("001"));
        assert_eq!(header("ce-time"), Some("2026-11-21T06:40:00.123Z"));
    }

    #[test]
    fn a_lost_agent_is_a_stopped_application_in_ocsf() {
        let event = change();
        let written = write(EventFormat::Ocsf, &event, event.body.clone(), "n:1:2", "mgr");
        assert_eq!(written.content_type, "application/ocsf+json");
        let body: Value = serde_json::from_slice(&written.body).expect("JSON");
        assert_eq!(
            (
                &body["class_uid"],
                &body["activity_id"],
                &body["type_uid"],
                &body["severity_id"]
            ),
            (&json!(6002), &json!(4), &json!(600_204), &json!(4))
        );
        assert_eq!(body["status_detail"], "keepalive_timeout");
        assert_eq!(body["device"]["agent_list"][0]["uid"], "001");
        assert_eq!(body["metadata"]["uid"], "n:1:2");
        let copy = event.disconnect_alert().expect("a copy");
        let written = write(EventFormat::Ocsf, &copy, copy.body.clone(), "n:1:3", "mgr");
        let body: Value = serde_json::from_slice(&written.body).expect("JSON");
        assert_eq!(body["type_uid"], 200_401);
    }

    #[test]
    fn what_has_no_class_stays_as_it_is() {
        let event = muster_proto::event::body::manager_event(Kind::Audit, "", 1, 0, b"{\"audit\":{}}".to_vec());
        let written = write(EventFormat::Ocsf, &event, event.body.clone(), "n:1:2", "mgr");
        assert_eq!((written.body, written.content_type), (event.body, "application/json"));
    }
}
