//! Our events in the classes of the Open Cybersecurity Schema Framework.
//!
//! It has no class for the state of an agent: [`ROWS`] is our reading, all of it in one place, and [`Release`] says what
//! differs between the releases. A row of osquery stays in our own form: the class for it came later than 1.3.0, and
//! wants each row as one of sixteen typed objects.

use std::net::IpAddr;

use muster_proto::event::{Event, Kind};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{About, Finding};

/// A release, of which only what it has is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    V1_3,
    /// It has an application that is no product, and a profile for what attests an event.
    V1_9,
}

impl Release {
    const fn version(self) -> &'static str {
        match self {
            Self::V1_3 => "1.3.0",
            Self::V1_9 => "1.9.0",
        }
    }
}

/// A kind of event in OCSF.
struct Row {
    kind: Kind,
    class: u64,
    activity: ActivityOf,
    fill: Fill,
}

/// What happened.
type ActivityOf = fn(&Told<'_>) -> Activity;
/// Adds what the class has besides what all have.
type Fill = fn(&Told<'_>, &mut Map<String, Value>);

const fn row(kind: Kind, class: u64, activity: ActivityOf, fill: Fill) -> Row {
    Row {
        kind,
        class,
        activity,
        fill,
    }
}

/// What happened, within a class: its number, and a name where the class has no number for it.
struct Activity(u64, Option<&'static str>);

const INVENTORY: u64 = 5001;
const LIFECYCLE: u64 = 6002;
const FINDING: u64 = 2004;
const ENTITY: u64 = 3004;
const CONFIG_CHANGE: u64 = 5019;

const CREATE: Activity = Activity(1, None);
const LOG: Activity = Activity(1, None);
const CLOSE: Activity = Activity(3, None);
const UPDATE: Activity = Activity(3, None);
/// What an update is to a finding.
const GOES_ON: Activity = Activity(2, None);
const START: Activity = Activity(3, None);
const STOP: Activity = Activity(4, None);
const RESTART: Activity = Activity(5, None);
const DELETE: Activity = Activity(4, None);

/// The state of a finding.
const NEW: u64 = 1;
const RESOLVED: u64 = 4;

/// How a fingerprint is made.
const SHA_256: u64 = 3;
const HEX: u64 = 1;
const JCS: u64 = 2;

/// Which class and activity each kind has. What is not listed stays in our own form.
const ROWS: [Row; 9] = [
    row(Kind::Keepalive, INVENTORY, |_| LOG, of_device),
    row(Kind::StatusChange, LIFECYCLE, lifecycle, application),
    row(Kind::DisconnectAlert, FINDING, absence, lost_agent),
    row(Kind::Enrolled, ENTITY, |_| CREATE, identity),
    row(Kind::Removed, ENTITY, |_| DELETE, identity),
    row(Kind::KeyRotated, ENTITY, |_| UPDATE, identity),
    row(Kind::Renamed, ENTITY, |_| UPDATE, identity),
    row(Kind::RuleAlert, FINDING, |_| CREATE, rule),
    row(Kind::Agentless, CONFIG_CHANGE, |_| LOG, agentless),
];

/// An event as it is to be told.
struct Told<'a> {
    release: Release,
    event: &'a Event,
    about: About<'a>,
    raw: &'a [u8],
    whole: &'a Value,
    /// The one member that our own bodies wrap everything in; the whole of any other body.
    member: &'a Value,
}

/// The event as OCSF; nothing for a kind that has no class, or a body that is no JSON.
pub(super) fn write(release: Release, event: &Event, raw: &[u8], about: About<'_>) -> Option<Vec<u8>> {
    let row = ROWS.iter().find(|row| row.kind == event.kind)?;
    let whole: Value = serde_json::from_slice(raw).ok()?;
    let member = ["event", "status_change", "enrollment", "agentless"]
        .iter()
        .find_map(|name| whole.get(name))
        .unwrap_or(&whole);
    let told = Told {
        release,
        event,
        about,
        raw,
        whole: &whole,
        member,
    };
    let Activity(activity, name) = (row.activity)(&told);
    let severity = match event.kind {
        Kind::RuleAlert => severity_of_rule(event.alert_level),
        _ => severity(event.alert_level),
    };
    let mut out = Map::new();
    for (name, value) in [
        ("class_uid", row.class),
        ("category_uid", row.class / 1000),
        ("activity_id", activity),
        ("type_uid", row.class * 100 + activity),
        ("time", event.created_ms),
        ("severity_id", severity),
    ] {
        set(&mut out, name, value);
    }
    if let Some(name) = name {
        set(&mut out, "activity_name", name);
    }
    let mut metadata = json!({
        "version": release.version(),
        "uid": about.id,
        "event_code": event.kind.type_name(),
        "product": {"name": "Muster", "vendor_name": "Muster", "version": env!("CARGO_PKG_VERSION")},
        "log_provider": about.node,
    });
    (row.fill)(&told, &mut out);
    let attests = release == Release::V1_9 && about.key_id.is_some();
    // In these classes it is no attribute of the class itself.
    let has_host = matches!(row.class, LIFECYCLE | FINDING) && out.contains_key("device");
    let profiles: Vec<&str> = [(has_host, "host"), (attests, "record_integrity")]
        .iter()
        .filter_map(|(is_used, name)| is_used.then_some(*name))
        .collect();
    if !profiles.is_empty() {
        metadata["profiles"] = json!(profiles);
    }
    set(&mut out, "metadata", metadata);
    if let Some(reason) = member["reason"].as_str() {
        set(&mut out, "status_detail", reason);
    }
    if attests {
        attest(&mut out, about)?;
    }
    serde_json::to_vec(&out).ok()
}

/// Says whose the event is and what it was, for those who keep the body and not the headers. What proves it is the
/// signature in the headers: it is made over the finished body, so that no copy of it can be inside.
fn attest(out: &mut Map<String, Value>, about: About<'_>) -> Option<()> {
    let attestation = json!({
        "authority_uid": about.key_id,
        "chain_uid": format!("{}:{}", about.node, about.epoch),
    });
    set(out, "attestation_list", json!([attestation]));
    // Over all but itself, in the form of RFC 8785: keys in order, no spaces, and no number of ours is a fraction.
    let fingerprint = hex(&Sha256::digest(serde_json::to_vec(&out).ok()?));
    out["attestation_list"][0]["fingerprint"] =
        json!({"algorithm_id": SHA_256, "encoding_id": HEX, "serialization_id": JCS, "value": fingerprint});
    Some(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lifecycle(told: &Told<'_>) -> Activity {
    let status = |name: &str| told.member[name].as_u64();
    match (status("previous_status"), status("current_status")) {
        (_, Some(0)) => START,
        (_, Some(1)) => STOP,
        // It says that it starts, and had not stopped.
        (Some(0), Some(2)) if told.member["reason"] == "startup" => RESTART,
        (_, Some(2)) => Activity(99, Some("Pending")),
        _ => Activity(99, Some("Never connected")),
    }
}

fn absence(told: &Told<'_>) -> Activity {
    match told.about.finding {
        None | Some(Finding::New(_)) => CREATE,
        Some(Finding::GoesOn(_)) => GOES_ON,
        Some(Finding::Over(_)) => CLOSE,
    }
}

fn of_device(told: &Told<'_>, out: &mut Map<String, Value>) {
    set(out, "device", device(told));
}

fn application(told: &Told<'_>, out: &mut Map<String, Value>) {
    let uid = &told.member["agent_id"];
    match told.release {
        Release::V1_3 => {
            let app = json!({"name": "agent", "uid": uid, "vendor_name": "Wazuh"});
            set(out, "app", present(app));
        }
        Release::V1_9 => {
            let product = json!({"name": "agent", "vendor_name": "Wazuh"});
            let application = json!({"name": "agent", "uid": uid, "product": product});
            set(out, "application", present(application));
        }
    }
    of_device(told, out);
}

/// Each absence is a finding of its own.
fn lost_agent(told: &Told<'_>, out: &mut Map<String, Value>) {
    let since = told.about.finding.map_or(told.event.created_ms, Finding::since);
    let uid = format!("{}:{}:{since}", told.about.node, told.event.subject_key);
    let title = match told.member["reason"].as_str() {
        Some("key_conflict") => "agent key used from two places",
        _ => "agent disconnected",
    };
    set(out, "finding_info", json!({"uid": uid, "title": title}));
    of_device(told, out);
    let is_over = matches!(told.about.finding, Some(Finding::Over(_)));
    set(out, "status_id", if is_over { RESOLVED } else { NEW });
}

fn identity(told: &Told<'_>, out: &mut Map<String, Value>) {
    let member = told.member;
    let entity = json!({
        "uid": member["agent_id"], "name": member["agent_name"], "type_id": 99, "type": "agent",
    });
    set(out, "entity", present(entity));
    if let Some(action) = member["action"].as_str() {
        set(out, "comment", action);
    }
}

fn rule(told: &Told<'_>, out: &mut Map<String, Value>) {
    let rule = &told.whole["rule"];
    let texts = |value: &Value| -> Vec<String> {
        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let title = rule["description"].as_str().unwrap_or("alert");
    let uid = told.whole["id"].as_str().unwrap_or(&told.event.subject_key);
    let rule_id = match &rule["id"] {
        Value::Number(number) => Value::from(number.to_string()),
        id => id.clone(),
    };
    let groups = texts(&rule["groups"]);
    let analytic = json!({
        "uid": rule_id, "name": title, "type_id": 1, "type": "Rule",
        "category": (!groups.is_empty()).then(|| groups.join(",")),
    });
    let mitre = &rule["mitre"];
    let (techniques, tactics) = (texts(&mitre["technique"]), texts(&mitre["tactic"]));
    let attacks = texts(&mitre["id"]).into_iter().enumerate().map(|(place, id)| {
        let tactic = tactics.get(place).map(|name| json!({"name": name}));
        present(json!({"technique": present(json!({"uid": id, "name": techniques.get(place)})), "tactic": tactic}))
    });
    let attacks: Vec<Value> = attacks.collect();
    let mut finding = json!({"uid": uid, "title": title, "analytic": present(analytic)});
    if !attacks.is_empty() {
        finding["attacks"] = attacks.into();
    }
    set(out, "finding_info", finding);
    set(out, "raw_data", String::from_utf8_lossy(told.raw));
}

fn agentless(told: &Told<'_>, out: &mut Map<String, Value>) {
    let host = told.event.subject_key.split('.').next().unwrap_or_default();
    set(out, "device", json!({"name": host, "type_id": 0}));
    set(out, "raw_data", String::from_utf8_lossy(told.raw));
}

/// The agent's host, as far as it is known.
fn device(told: &Told<'_>) -> Value {
    let member = told.member;
    let (id, name) = (&member["agent_id"], &member["agent_name"]);
    let hostname = name.as_str().filter(|name| is_hostname(name));
    let ip = member["ip_address"].as_str().filter(|ip| ip.parse::<IpAddr>().is_ok());
    present(json!({
        "uid": id,
        "name": name,
        "hostname": hostname,
        "ip": ip,
        "type_id": 0,
        "agent_list": [present(json!({"uid": id, "name": name, "type_id": 1}))],
    }))
}

/// Labels of letters, digits and inner hyphens, with dots between them.
fn is_hostname(name: &str) -> bool {
    name.split('.').all(|label| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    })
}

fn set(out: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    out.insert(name.to_owned(), value.into());
}

/// Without the members that nothing is known of: OCSF has no null.
fn present(mut object: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    object
}

/// From the level of our own events: informational, low, medium, high, critical.
fn severity(level: u8) -> u64 {
    match level {
        0 => 1,
        1..=4 => 2,
        5..=7 => 3,
        8..=11 => 4,
        _ => 5,
    }
}

/// From the level of a rule, in the bands of the subjects.
fn severity_of_rule(level: u8) -> u64 {
    match level {
        0 => 1,
        1..=6 => 2,
        7..=11 => 3,
        12..=14 => 4,
        _ => 5,
    }
}
