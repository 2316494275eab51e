//! Single messages: sizes, and what the headers and the body say twice.

use muster_proto::{
    agent::AgentStatus,
    event::{Kind, header, key::KeyRecord, subject::token},
};
use serde_json::Value;

use super::{Identity, MAX_BODY_LEN, MAX_HEADERS, Message};
use crate::format;

type Failed = (&'static str, String);

pub(super) fn check_limits(message: &Message) -> Result<(), Failed> {
    if message.body.len() > MAX_BODY_LEN || message.headers.len() > MAX_HEADERS {
        return Err(("size", "body or headers are over the limits".to_owned()));
    }
    match message.header(header::VERSION) {
        Some(header::CONTRACT) => Ok(()),
        other => Err(("version", format!("{} is {other:?}", header::VERSION))),
    }
}

pub(super) fn senseless() -> Failed {
    ("identity", "headers are missing or make no sense".to_owned())
}

pub(super) fn says_nothing() -> Failed {
    ("announcement", "it announces no key of this node".to_owned())
}

/// The id is made of the headers.
pub(super) fn check_id(message: &Message, id: &Identity<'_>) -> Result<(), Failed> {
    let expected = format!("{}:{}:{}", id.node, id.epoch, id.seq);
    if message.header(header::MSG_ID) != Some(&expected) {
        return Err(("identity", format!("the message id is not {expected}")));
    }
    Ok(())
}

/// What a message announces of a key of its own node.
pub(super) fn announced(message: &Message, id: &Identity<'_>) -> Option<KeyRecord> {
    if id.kind != Kind::KeyAnnouncement {
        return None;
    }
    let body = serde_json::from_slice::<Value>(&message.body).ok()?;
    let mut body = format::native(message.header(header::CONTENT_TYPE), body);
    let record = serde_json::from_value::<KeyRecord>(body["key"].take()).ok()?;
    (record.node == id.node).then_some(record)
}

pub(super) fn identity(message: &Message) -> Option<Identity<'_>> {
    let number = |name: &str| message.header(name)?.parse::<u64>().ok();
    let kind = message.header(header::TYPE)?;
    Some(Identity {
        node: message.header(header::NODE)?,
        epoch: number(header::EPOCH)?,
        seq: number(header::SEQUENCE)?,
        prev: match message.header(header::PREVIOUS)? {
            "-" => 0,
            prev => prev.parse().ok()?,
        },
        time_ms: number(header::TIME)?,
        kind: Kind::ALL.into_iter().find(|other| other.type_name() == kind)?,
    })
}

/// What the body repeats of the headers must be the same.
pub(super) fn check_body(id: &Identity<'_>, message: &Message, body: &[u8]) -> Result<(), Failed> {
    let bad = |why: String| Err(("body", why));
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return bad("it is no JSON".to_owned());
    };
    let content_type = message.header(header::CONTENT_TYPE);
    if format::is_envelope(content_type, &value) && value["id"].as_str() != message.header(header::MSG_ID) {
        return bad(format!("its id is {}", value["id"]));
    }
    let value = format::native(content_type, value);
    if let Some(sequence) = value["security"]["sequence"].as_u64()
        && sequence != id.seq
    {
        return bad(format!("its sequence is {sequence}"));
    }
    let Some(member) = value.as_object().and_then(|object| object.values().next()) else {
        return Ok(());
    };
    if let Some(node) = member["manager_node"].as_str()
        && matches!(id.kind, Kind::Keepalive | Kind::Health)
        && node != id.node
    {
        return bad(format!("its node is {node}"));
    }
    let of_agent = matches!(
        id.kind,
        Kind::Keepalive
            | Kind::StatusChange
            | Kind::Connection
            | Kind::Enrolled
            | Kind::Removed
            | Kind::KeyRotated
            | Kind::Renamed
    );
    let status = |name: &str| {
        u8::try_from(member[name].as_u64()?)
            .ok()
            .and_then(AgentStatus::from_code)
    };
    if let (Some(said), Some(from), Some(to)) = (
        message.header(header::STATUS),
        status("previous_status"),
        status("current_status"),
    ) && said != format!("{from}>{to}")
    {
        return bad(format!("{} is {said}", header::STATUS));
    }
    if let Some(agent) = member["agent_id"].as_str()
        && of_agent
        && !message.subject.split('.').any(|part| part == token(agent))
    {
        return bad(format!("it is about agent {agent}"));
    }
    Ok(())
}
