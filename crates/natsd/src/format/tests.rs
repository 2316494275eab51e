use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{
        Kind,
        body::{Enrollment, Keepalive, KeepaliveType, StatusChange, complete_keepalive, manager_event, wrapped},
    },
};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::*;

const CLOUD_EVENTS: &str = include_str!("../../tests/fixtures/cloudevents-1.0.json");
const OCSF: &str = include_str!("../../tests/fixtures/ocsf-1.3.0.json");
const OCSF_19: &str = include_str!("../../tests/fixtures/ocsf-1.9.0.json");
const TIME: u64 = 1_795_243_200_123;

fn change(from: AgentStatus, to: AgentStatus, reason: Reason) -> Event {
    StatusChange {
        agent_id: &AgentId::new("001"),
        agent_name: "web-01",
        previous_status: from,
        current_status: to,
        ip_address: "192.0.2.1",
        timestamp: TIME / 1000,
        reason,
        missed_keepalives: 3,
        alert_level: 8,
    }
    .into_event(TIME)
}

fn lost() -> Event {
    change(AgentStatus::Active, AgentStatus::Disconnected, Reason::KeepaliveTimeout)
}

fn enrollment(kind: Kind, name: &str) -> Event {
    Enrollment {
        agent_id: &AgentId::new("001"),
        agent_name: name,
        ip_address: "any",
        timestamp: TIME / 1000,
        action: "enrolled",
        reason: "new",
        replaced_agent_id: None,
        method: "tls",
        groups: &[],
        manager_node: "mgr",
    }
    .into_event(kind, TIME)
}

fn keepalive() -> Event {
    let event = Keepalive {
        agent_id: &AgentId::new("001"),
        agent_name: "a host_with no valid name",
        ip_address: "any",
        timestamp: TIME / 1000,
        event_type: KeepaliveType::KeepaliveSent,
        manager_node: "mgr",
        interval: 60,
    }
    .into_event(TIME);
    Event {
        body: complete_keepalive(&event.body, "wazuh-manager", "4.14.7", 7),
        ..event
    }
}

fn alert(level: u8, rule: &Value) -> Event {
    let body = json!({"id": "1795243200.1", "rule": rule, "agent": {"id": "001"}, "full_log": "x"});
    manager_event(Kind::RuleAlert, "001", TIME, level, body.to_string().into_bytes())
}

/// One of each kind that the manager makes, and the alerts that an analysis daemon may hand in.
fn events() -> Vec<Event> {
    let rule = json!({
        "level": 10, "description": "many failed logins", "id": "5712", "groups": ["syslog", "sshd"],
        "mitre": {"id": ["T1110"], "tactic": ["Credential Access"], "technique": ["Brute Force"]},
    });
    let agentless = wrapped(
        "agentless",
        &json!({"host": "fw-1", "type": "ssh_integrity_check", "outcome": "changed"}),
    );
    vec![
        keepalive(),
        lost(),
        change(AgentStatus::Disconnected, AgentStatus::Active, Reason::Reconnected),
        change(AgentStatus::Active, AgentStatus::Pending, Reason::Startup),
        change(
            AgentStatus::NeverConnected,
            AgentStatus::NeverConnected,
            Reason::NeverConnected,
        ),
        lost().disconnect_alert().expect("a copy"),
        Event {
            kind: Kind::DisconnectAlert,
            ..change(AgentStatus::Disconnected, AgentStatus::Active, Reason::Reconnected)
        },
        Event {
            kind: Kind::DisconnectAlert,
            ..enrollment(Kind::Removed, "web-01")
        },
        enrollment(Kind::Enrolled, "web-01"),
        enrollment(Kind::Removed, "web-01"),
        enrollment(Kind::KeyRotated, "web-01"),
        enrollment(Kind::Renamed, "web-01"),
        alert(10, &rule),
        alert(3, &json!({"level": 3, "id": 1002})),
        manager_event(Kind::Agentless, "fw-1.ssh_integrity_check.changed", TIME, 3, agentless),
        manager_event(Kind::Audit, "", TIME, 0, b"{\"audit\":{}}".to_vec()),
        manager_event(Kind::Osquery, "001.result.q", TIME, 0, b"{\"name\":\"q\"}".to_vec()),
        change(AgentStatus::Disconnected, AgentStatus::Pending, Reason::Startup),
        Event {
            kind: Kind::DisconnectAlert,
            ..change(AgentStatus::Active, AgentStatus::Active, Reason::KeyConflict)
        },
    ]
}

fn about(finding: Option<Finding>) -> About<'static> {
    About {
        id: "n:1:2",
        node: "mgr.a",
        epoch: 1,
        key_id: Some("UKEY"),
        finding,
    }
}

/// Alerts are about an absence.
fn finding_of(event: &Event) -> Option<Finding> {
    let since = event.created_ms - 5;
    let body: Value = serde_json::from_slice(&event.body).ok()?;
    (event.kind == Kind::DisconnectAlert).then(|| match body["status_change"]["current_status"].as_u64() {
        Some(1) => Finding::New(since),
        _ => Finding::Over(since),
    })
}

fn written(format: EventFormat, event: &Event) -> (Written, Value) {
    let written = write(format, event, event.body.clone(), about(finding_of(event)));
    let body = serde_json::from_slice(&written.body).expect("JSON");
    (written, body)
}

fn ocsf(event: &Event) -> Value {
    let (written, body) = written(EventFormat::Ocsf, event);
    assert_eq!(written.content_type, "application/ocsf+json");
    body
}

/// What of JSON Schema the check below knows. What says nothing about a value is known, too.
const KEYWORDS: [&str; 11] = [
    "$ref",
    "$comment",
    "$schema",
    "description",
    "type",
    "minLength",
    "format",
    "required",
    "properties",
    "definitions",
    "contentEncoding",
];

/// The part of JSON Schema that the schema of CloudEvents uses, formats included. A schema that uses more than that is no
/// schema to check against.
fn faults(schema: &Value, root: &Value, value: &Value, at: &str) -> Vec<String> {
    for keyword in schema.as_object().expect("a schema").keys() {
        assert!(KEYWORDS.contains(&keyword.as_str()), "{keyword} is not checked");
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.trim_start_matches("#/definitions/");
        return faults(&root["definitions"][name], root, value, at);
    }
    let mut faults_here = Vec::new();
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !types.iter().any(|wanted| wanted == is) {
        faults_here.push(format!("{at} is {is}"));
    }
    if let (Some(least), Some(text)) = (schema["minLength"].as_u64(), value.as_str())
        && (text.len() as u64) < least
    {
        faults_here.push(format!("{at} is too short"));
    }
    match (schema["format"].as_str(), value.as_str()) {
        (Some("date-time"), Some(text)) if text.parse::<Timestamp>().is_err() => {
            faults_here.push(format!("{at} is no time"));
        }
        (Some("uri-reference"), Some(text)) if !is_reference(text) => {
            faults_here.push(format!("{at} is no reference"));
        }
        (Some("date-time" | "uri-reference"), _) | (None, _) | (_, None) => {}
        (Some(format), Some(_)) => faults_here.push(format!("{at} has the format {format}, which is not checked")),
    }
    for required in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if value.get(required).is_none() {
            faults_here.push(format!("{at}.{required} is missing"));
        }
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            faults_here.extend(faults(schema, root, value, &format!("{at}.{name}")));
        }
    }
    faults_here
}

/// RFC 3986: its characters, and what is quoted by a percent sign.
fn is_reference(text: &str) -> bool {
    let mut parts = text.split('%');
    let plain = |part: &str| {
        let others = "-._~:/?#[]@!$&'()*+,;=";
        part.chars()
            .all(|one| one.is_ascii_alphanumeric() || others.contains(one))
    };
    let quoted = |part: &str| part.len() >= 2 && part.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    parts.next().is_some_and(plain) && parts.all(|part| quoted(part) && plain(part))
}

/// The schema of a release of OCSF.
fn ocsf_schema(format: EventFormat) -> Value {
    let mut schema: Value = serde_json::from_str(OCSF).expect("JSON");
    if format == EventFormat::Ocsf {
        return schema;
    }
    // The later one has all that the earlier one has, and this.
    let more: Value = serde_json::from_str(OCSF_19).expect("JSON");
    schema["version"] = more["version"].clone();
    for (class, shape) in schema["classes"].as_object_mut().expect("classes") {
        let own = more["classes"].get(class);
        let own_attributes = own.and_then(|own| own["attributes"].as_object());
        let attributes = more["all_classes"].as_object().into_iter().chain(own_attributes);
        for (name, attribute) in attributes.flatten() {
            shape["attributes"][name] = attribute.clone();
        }
        if let Some(names) = own.and_then(|own| own.get("at_least_one")) {
            shape["at_least_one"] = names.clone();
        }
    }
    for (name, object) in more["objects"].as_object().expect("objects") {
        schema["objects"][name] = object.clone();
    }
    schema
}

/// What is wrong with an object of OCSF, by the attributes of its class or object.
fn ocsf_faults(schema: &Value, shape: &Value, object: &Map<String, Value>, at: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let attributes = shape["attributes"].as_object().expect("attributes");
    for (name, attribute) in attributes {
        if attribute["required"] == true && attribute.get("profile").is_none() && !object.contains_key(name) {
            faults.push(format!("{at}.{name} is missing"));
        }
    }
    if let Some(names) = shape["at_least_one"].as_array()
        && !names
            .iter()
            .any(|name| name.as_str().is_some_and(|name| object.contains_key(name)))
    {
        faults.push(format!("{at} has none of {names:?}"));
    }
    for (name, value) in object {
        let at = format!("{at}.{name}");
        let Some(attribute) = attributes.get(name) else {
            faults.push(format!("{at} is no attribute"));
            continue;
        };
        if attribute["deprecated"] == true {
            faults.push(format!("{at} is deprecated"));
        }
        if let Some(profile) = attribute["profile"].as_str()
            && let Some(metadata) = object.get("metadata")
            && !metadata["profiles"]
                .as_array()
                .is_some_and(|used| used.iter().any(|used| used == profile))
        {
            faults.push(format!("{at} needs the profile {profile}"));
        }
        let values = match (attribute["array"] == true, value) {
            (true, Value::Array(values)) => values.clone(),
            (false, value) => vec![value.clone()],
            (true, _) => {
                faults.push(format!("{at} is no array"));
                continue;
            }
        };
        let kind = attribute["type"].as_str().expect("a type");
        for value in values {
            let fits = match kind {
                "integer_t" | "long_t" | "timestamp_t" => value.is_u64(),
                "string_t" | "username_t" => value.as_str().is_some_and(|text| !text.is_empty()),
                "hostname_t" => value.as_str().is_some_and(|text| !text.contains(['_', ' '])),
                "ip_t" => value
                    .as_str()
                    .is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok()),
                other => match (schema["objects"].get(other), value.as_object()) {
                    (Some(shape), Some(object)) => {
                        faults.extend(ocsf_faults(schema, shape, object, &at));
                        true
                    }
                    _ => false,
                },
            };
            let numbers = attribute["enum"].as_array();
            if !fits || numbers.is_some_and(|numbers| !numbers.contains(&value)) {
                faults.push(format!("{at} is {value}, and should be {kind}"));
            }
        }
    }
    faults
}

#[test]
fn binary_cloud_events_leave_the_body_and_add_their_headers() {
    let event = lost();
    let (written, _) = written(EventFormat::Cloudevents, &event);
    assert_eq!(written.body, event.body);
    assert_eq!(written.content_type, "application/json");
    let header = |name| {
        let found = written.headers.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(header("ce-specversion"), Some("1.0"));
    assert_eq!(header("ce-id"), Some("n:1:2"));
    assert!(header("ce-source").is_some_and(|source| source.starts_with("/muster/mgr_a~")));
    assert_eq!(header("ce-type"), Some("agent.status_change"));
    assert_eq!(header("ce-subject"), Some("001"));
    assert_eq!(header("ce-time"), Some("2026-11-21T06:40:00.123Z"));
}

#[test]
fn structured_cloud_events_keep_the_body_byte_for_byte_and_fit_the_public_schema() {
    let schema: Value = serde_json::from_str(CLOUD_EVENTS).expect("JSON");
    for event in events() {
        let (written, body) = written(EventFormat::CloudeventsStructured, &event);
        assert_eq!(written.content_type, "application/cloudevents+json");
        assert_eq!(written.headers, []);
        assert_eq!(faults(&schema, &schema, &body, ""), Vec::<String>::new(), "{body}");
        assert!(
            written.body.ends_with(&[&event.body[..], b"}"].concat()),
            "the body is the last member"
        );
        assert_eq!((&body["specversion"], &body["id"]), (&json!("1.0"), &json!("n:1:2")));
        let native: Value = serde_json::from_slice(&event.body).expect("JSON");
        assert_eq!(super::native(Some(written.content_type), body), native);
    }
    let broken = json!({"specversion": "", "id": "1", "type": 5, "time": "yesterday"});
    assert_eq!(
        faults(&schema, &schema, &broken, "").len(),
        4,
        "the check itself finds what is wrong"
    );
}

#[test]
fn body_that_is_no_json_gets_no_envelope() {
    let event = manager_event(Kind::RuleAlert, "001", TIME, 3, b"{\"a\":".to_vec());
    for format in [EventFormat::CloudeventsStructured, EventFormat::Ocsf] {
        let written = write(format, &event, event.body.clone(), about(None));
        assert_eq!((written.content_type, &written.body), ("application/json", &event.body));
    }
}

#[test]
fn every_event_with_a_class_fits_the_public_schema_of_ocsf() {
    for format in [EventFormat::Ocsf, EventFormat::Ocsf19] {
        fits_ocsf(format);
    }
}

fn fits_ocsf(format: EventFormat) {
    let schema = ocsf_schema(format);
    let mut classes = std::collections::BTreeSet::new();
    for event in events() {
        let (written, body) = written(format, &event);
        if written.content_type == "application/json" {
            assert!(matches!(event.kind, Kind::Audit | Kind::Osquery));
            continue;
        }
        let (class, activity) = (
            body["class_uid"].as_u64().expect("a class"),
            body["activity_id"].as_u64(),
        );
        classes.insert(class);
        let shape = &schema["classes"][class.to_string()];
        let object = body.as_object().expect("an object");
        assert_eq!(ocsf_faults(&schema, shape, object, ""), Vec::<String>::new(), "{body}");
        assert_eq!(
            body["type_uid"].as_u64(),
            activity.map(|activity| class * 100 + activity)
        );
        assert_eq!(
            (&body["category_uid"], &body["time"]),
            (&shape["category_uid"], &json!(TIME))
        );
        assert_eq!(body["metadata"]["version"], schema["version"]);
        let profiles = body["metadata"]["profiles"].as_array();
        let uses = |profile: &str| profiles.is_some_and(|profiles| profiles.iter().any(|used| used == profile));
        let of_profile = shape["attributes"]["device"]["profile"] == "host" && body.get("device").is_some();
        assert_eq!(uses("host"), of_profile, "{body}");
        assert_eq!(uses("record_integrity"), format == EventFormat::Ocsf19, "{body}");
    }
    assert_eq!(classes.into_iter().collect::<Vec<_>>(), [2004, 3004, 5001, 5019, 6002]);
}

#[test]
fn check_against_the_schema_of_ocsf_finds_what_is_wrong() {
    let schema = ocsf_schema(EventFormat::Ocsf);
    let broken = json!({"class_uid": 6002, "app": {"name": 5}, "device": {"ip": "any", "type_id": 0}, "x": 1});
    let shape = &schema["classes"]["6002"];
    let faults = ocsf_faults(&schema, shape, broken.as_object().expect("an object"), "");
    for part in [
        ".time is missing",
        ".app.vendor_name is missing",
        ".app.name is 5",
        ".device.ip is",
        ".x is no",
    ] {
        assert!(faults.iter().any(|fault| fault.starts_with(part)), "{part}: {faults:?}");
    }
    let schema = ocsf_schema(EventFormat::Ocsf19);
    let broken = json!({
        "app": {"vendor_name": "x", "name": "x"}, "metadata": {}, "attestation_list": [{"fingerprint": {"algorithm_id": 8}}],
    });
    let broken = broken.as_object().expect("an object");
    let faults = ocsf_faults(&schema, &schema["classes"]["6002"], broken, "");
    for part in [
        ".app is deprecated",
        ".attestation_list needs the profile record_integrity",
        ".attestation_list.fingerprint.value is missing",
        ".attestation_list.fingerprint.algorithm_id is 8",
    ] {
        assert!(faults.iter().any(|fault| fault.starts_with(part)), "{part}: {faults:?}");
    }
}

#[test]
fn release_1_9_names_the_application_and_attests_what_it_says() {
    let (written, body) = written(EventFormat::Ocsf19, &lost());
    assert_eq!(written.content_type, "application/ocsf+json");
    assert_eq!(body.get("app"), None);
    assert_eq!(
        body["application"],
        json!({"name": "agent", "uid": "001", "product": {"name": "agent", "vendor_name": "Wazuh"}})
    );
    assert_eq!(body["metadata"]["profiles"], json!(["host", "record_integrity"]));
    let attestation = &body["attestation_list"][0];
    assert_eq!(
        (&attestation["authority_uid"], &attestation["chain_uid"]),
        (&json!("UKEY"), &json!("mgr.a:1"))
    );
    // As one who has only the body checks it.
    let mut bare = body.clone();
    let fingerprint = bare["attestation_list"][0]
        .as_object_mut()
        .and_then(|attestation| attestation.remove("fingerprint"));
    let fingerprint = fingerprint.expect("is there");
    let canonical = serde_json::to_vec(&bare).expect("JSON");
    assert!(
        canonical.starts_with(b"{\"activity_id\":4,\"application\":{\"name\":"),
        "keys are in order"
    );
    let digest: String = Sha256::digest(&canonical)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        fingerprint,
        json!({"algorithm_id": 3, "encoding_id": 1, "serialization_id": 2, "value": digest})
    );
    let unsigned = About {
        key_id: None,
        ..about(None)
    };
    let written = write(EventFormat::Ocsf19, &lost(), lost().body, unsigned);
    let body: Value = serde_json::from_slice(&written.body).expect("JSON");
    assert_eq!(
        (body.get("attestation_list"), &body["metadata"]["profiles"]),
        (None, &json!(["host"]))
    );
}

#[test]
fn lost_agent_is_a_stopped_application_and_its_alert_a_finding() {
    let body = ocsf(&lost());
    assert_eq!((&body["type_uid"], &body["severity_id"]), (&json!(600_204), &json!(4)));
    assert_eq!(body["status_detail"], "keepalive_timeout");
    assert_eq!(
        body["device"]["agent_list"][0],
        json!({"uid": "001", "name": "web-01", "type_id": 1})
    );
    assert_eq!(body["metadata"]["uid"], "n:1:2");
    let copy = ocsf(&lost().disconnect_alert().expect("a copy"));
    assert_eq!(copy["type_uid"], 200_401);
    assert_eq!(copy["finding_info"]["uid"], format!("mgr.a:001:{}", TIME - 5));
    let end = ocsf(&events()[6]);
    assert_eq!((&end["type_uid"], &end["status_id"]), (&json!(200_403), &json!(4)));
    assert_eq!(end["finding_info"]["uid"], copy["finding_info"]["uid"]);
    let gone = ocsf(&events()[7]);
    assert_eq!(
        (&gone["type_uid"], &gone["device"]["uid"]),
        (&json!(200_403), &json!("001"))
    );
    let about = about(Some(Finding::GoesOn(7)));
    let again = write(
        EventFormat::Ocsf,
        &lost().disconnect_alert().expect("a copy"),
        lost().body,
        about,
    );
    let again: Value = serde_json::from_slice(&again.body).expect("JSON");
    assert_eq!(
        (&again["type_uid"], &again["finding_info"]["uid"]),
        (&json!(200_402), &json!("mgr.a:001:7"))
    );
    let back = ocsf(&change(
        AgentStatus::Disconnected,
        AgentStatus::Active,
        Reason::Reconnected,
    ));
    assert_eq!(back["type_uid"], 600_203);
    let restart = ocsf(&change(AgentStatus::Active, AgentStatus::Pending, Reason::Startup));
    assert_eq!(
        (&restart["type_uid"], restart.get("activity_name")),
        (&json!(600_205), None)
    );
    let pending = ocsf(&change(
        AgentStatus::Disconnected,
        AgentStatus::Pending,
        Reason::Startup,
    ));
    assert_eq!(
        (&pending["type_uid"], &pending["activity_name"]),
        (&json!(600_299), &json!("Pending"))
    );
}

#[test]
fn rule_becomes_the_analytic_of_its_finding_and_its_level_the_severity_of_its_band() {
    let body = ocsf(&events()[12]);
    assert_eq!(
        body["finding_info"],
        json!({
            "uid": "1795243200.1", "title": "many failed logins",
            "analytic": {"uid": "5712", "name": "many failed logins", "type_id": 1, "type": "Rule", "category": "syslog,sshd"},
            "attacks": [{"technique": {"uid": "T1110", "name": "Brute Force"}, "tactic": {"name": "Credential Access"}}],
        })
    );
    for (level, severity) in [(0, 1), (6, 2), (7, 3), (11, 3), (12, 4), (14, 4), (15, 5)] {
        assert_eq!(
            ocsf(&alert(level, &json!({"id": "1"})))["severity_id"],
            severity,
            "{level}"
        );
    }
}

#[test]
fn address_that_is_no_address_is_left_out() {
    let body = ocsf(&keepalive());
    assert_eq!(body["type_uid"], 500_101);
    assert!(
        body["device"].get("ip").is_none() && body["device"].get("hostname").is_none(),
        "{body}"
    );
    assert_eq!(body["device"]["name"], "a host_with no valid name");
}
