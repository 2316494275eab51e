//! Single messages: sizes, and what the headers and the body say twice.

use muster_proto::{
    agent::AgentStatus,
    event::{
        Kind, header,
        key::KeyRecord,
        subject::{fits, token},
    },
};
use serde_json::Value;

use super::{Identity, MAX_BODY_LEN, MAX_HEADERS, MAX_HEADERS_LEN, Message};
use crate::format;

/// Losses of state of which one announcement may tell.
const MAX_BEGUN: usize = 64;

type Failed = (&'static str, String);

pub(super) fn check_limits(message: &Message) -> Result<(), Failed> {
    let headers = &message.headers;
    let length = || {
        headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>()
    };
    if message.body.len() > MAX_BODY_LEN || headers.len() > MAX_HEADERS || length() > MAX_HEADERS_LEN {
        return Err(("size", "body or headers are over the limits".to_owned()));
    }
    // Others might read the other one, or not mind the case.
    let mut ours: Vec<String> = headers.iter().filter_map(|(name, _)| of_the_contract(name)).collect();
    ours.sort_unstable();
    if let Some((name, _)) = ours.iter().zip(ours.iter().skip(1)).find(|(name, next)| name == next) {
        return Err(("size", format!("the header {name} is there twice")));
    }
    match message.header(header::VERSION) {
        Some(header::CONTRACT) => Ok(()),
        other => Err(("version", format!("{} is {other:?}", header::VERSION))),
    }
}

/// The name of a header on which something hangs, in small letters.
fn of_the_contract(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let of_ours = |known: &str| name == known.to_ascii_lowercase();
    (name.starts_with("muster-") || of_ours(header::MSG_ID) || of_ours(header::CONTENT_TYPE)).then_some(name)
}

pub(super) fn senseless() -> Failed {
    ("identity", "headers are missing or make no sense".to_owned())
}

pub(super) fn says_nothing() -> Failed {
    ("announcement", "it announces no key of this node".to_owned())
}

/// The id is made of the headers, and the number before it is a smaller one.
pub(super) fn check_id(message: &Message, id: &Identity<'_>) -> Result<(), Failed> {
    let expected = format!("{}:{}:{}", id.node, id.epoch, id.seq);
    if message.header(header::MSG_ID) != Some(&expected) {
        return Err(("identity", format!("the message id is not {expected}")));
    }
    if id.prev >= id.seq {
        return Err(("identity", format!("{} is not before {}", id.prev, id.seq)));
    }
    Ok(())
}

/// The kind, and the node where the subject names one, are those of the subject. `subject` is the one that is signed.
pub(super) fn check_subject(id: &Identity<'_>, subject: &str) -> Result<(), Failed> {
    if !fits(id.kind, subject) {
        return Err(("subject", format!("{subject} is no subject of {}", id.kind.type_name())));
    }
    let of_node = match id.kind {
        Kind::Health | Kind::SpoolGap | Kind::Audit | Kind::KeyAnnouncement => from_the_end(subject, 0),
        Kind::EnrollmentRejected | Kind::KeyPolling => from_the_end(subject, 1),
        _ => return Ok(()),
    };
    if of_node != Some(&*token(id.node)) {
        return Err(("subject", format!("{subject} is no subject of the node {}", id.node)));
    }
    Ok(())
}

fn from_the_end(subject: &str, place: usize) -> Option<&str> {
    subject.rsplit('.').nth(place)
}

/// Whether events of a kind wait in the spool for however long it takes: those are never dropped for their age.
pub(super) fn never_ages(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Audit
            | Kind::KeyAnnouncement
            | Kind::SpoolGap
            | Kind::Enrolled
            | Kind::Removed
            | Kind::KeyRotated
            | Kind::Renamed
            | Kind::StatusChange
            | Kind::Connection
            | Kind::DisconnectAlert
    )
}

/// What an announcement says.
pub(super) struct Announced {
    pub(super) record: KeyRecord,
    /// Epochs with which the numbers of the node began anew, since it had lost its state, and the first of them.
    pub(super) begun: Vec<(u64, u64)>,
}

/// What a message announces of a key of its own node.
pub(super) fn announced(message: &Message, id: &Identity<'_>) -> Option<Announced> {
    if id.kind != Kind::KeyAnnouncement {
        return None;
    }
    let body = serde_json::from_slice::<Value>(&message.body).ok()?;
    let mut body = format::native(message.header(header::CONTENT_TYPE), body);
    let begun = body["key"]["begun"].as_array().map_or(&[][..], Vec::as_slice);
    let begun = begun.iter().take(MAX_BEGUN);
    let begun = begun.filter_map(|begun| Some((begun[0].as_u64()?, begun[1].as_u64()?)));
    let begun: Vec<_> = begun.filter(|(epoch, _)| *epoch <= id.epoch).collect();
    let record = serde_json::from_value::<KeyRecord>(body["key"].take()).ok()?;
    (record.node == id.node).then_some(Announced { record, begun })
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
    if let Some(sequence) = value["security"].get("sequence")
        && sequence.as_u64() != Some(id.seq)
    {
        return bad(format!("its sequence is {sequence}"));
    }
    // What comes from elsewhere has members of its own.
    let is_ours = !matches!(id.kind, Kind::RuleAlert | Kind::Archive | Kind::Osquery);
    let mut members = value.as_object().into_iter().flatten();
    let member = members.find(|(name, _)| *name != "security").filter(|_| is_ours);
    let Some((_, member)) = member else {
        return Ok(());
    };
    if let Some(node) = member.get("manager_node")
        && node.as_str() != Some(id.node)
    {
        return bad(format!("its node is {node}"));
    }
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
    let of_agent = match id.kind {
        Kind::Keepalive => from_the_end(&message.subject, 0),
        Kind::StatusChange
        | Kind::Connection
        | Kind::Enrolled
        | Kind::Removed
        | Kind::KeyRotated
        | Kind::Renamed
        | Kind::ControlResult => from_the_end(&message.subject, 1),
        _ => None,
    };
    if let (Some(of_agent), Some(agent)) = (of_agent, member.get("agent_id"))
        && agent.as_str().map(token).as_deref() != Some(of_agent)
    {
        return bad(format!("it is about agent {agent}"));
    }
    Ok(())
}
