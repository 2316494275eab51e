//! What a consumer must check before it believes an event, as a library and as `muster-natsd verify`.
//!
//! [`Verifier::check`] takes messages in the order in which they come, and says of each what was checked, what failed,
//! and what to do with it. It keeps what it must know: keys, numbers seen, holes, and which holes were declared.
//!
//! ```
//! use muster_natsd::verify::{Fate, Message, Policy, Verifier};
//!
//! let mut verifier = Verifier::new(Policy::default());
//! let message = Message { subject: "a.b".to_owned(), headers: vec![], body: b"{}".to_vec(), from_stream: true };
//! assert!(matches!(verifier.check(&message, 0).fate, Fate::Refuse { .. }));
//! ```

pub mod command;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::{
    agent::AgentStatus,
    event::{
        Kind, Stream, header,
        subject::{self, token},
    },
};
use nkeys::XKey;
use serde_json::Value;

use self::window::Window;
use crate::{
    format,
    keys::{KeyRecord, KeyStatus},
    seal,
    signature::{Preamble, public_key, verifies},
};

/// The largest body and the most headers that are looked at.
const MAX_BODY_LEN: usize = 8 * 1024 * 1024;
const MAX_HEADERS: usize = 64;
/// How far a clock may be off.
const MAX_SKEW_MS: u64 = 300 * 1000;
/// Holes and declared ranges that are remembered of each node.
const MAX_HOLES: usize = 100_000;
/// Streams of nodes that are followed.
const MAX_CHAINS: usize = 2000;
/// Epochs of a stream whose numbers are told apart. Of an older one, only what fits into a hole is taken.
const MAX_EPOCHS: usize = 8;

/// A message as it was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The subject that it came under.
    pub subject: String,
    /// Its headers, in any order.
    pub headers: Vec<(String, String)>,
    /// Its body as sent.
    pub body: Vec<u8>,
    /// Whether it comes out of a stream; then it may be late.
    pub from_stream: bool,
}

impl Message {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(other, _)| other == name);
        header.map(|(_, value)| value.as_str())
    }
}

/// How strict to be.
pub struct Policy {
    /// Public nkeys that are believed from the start. Others are believed when one of these announces them.
    pub pinned: BTreeSet<String>,
    /// Whether events must be signed.
    pub signed: bool,
    /// The oldest event that may still come, in milliseconds; `None` reads history and looks at no clock.
    pub max_age_ms: Option<u64>,
    /// Opens sealed bodies.
    pub recipient: Option<XKey>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            pinned: BTreeSet::new(),
            signed: true,
            max_age_ms: Some(72 * 3600 * 1000),
            recipient: None,
        }
    }
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is what it says.
    Accept,
    /// It came before: acknowledge and forget.
    Duplicate,
    /// It must not be believed, and never will be.
    Refuse {
        /// The step of the checks that failed.
        step: &'static str,
        /// In words.
        why: String,
    },
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The steps that were passed, in order.
    pub passed: Vec<&'static str>,
    /// The end of it.
    pub fate: Fate,
    /// The body, opened if it was sealed and we hold the key.
    pub body: Option<Vec<u8>>,
}

/// Numbers of a stream that are missing: behind `after` up to `upto`, of which at least the last was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The last number before it.
    pub after: u64,
    /// Its last number.
    pub upto: u64,
}

#[derive(Default)]
struct Chain {
    windows: BTreeMap<u64, Window>,
    last: Option<u64>,
    holes: Vec<Hole>,
}

/// A range that a node has declared as lost: stream (`None` = any), first, last.
type Declared = (Option<Stream>, u64, u64);

/// See the module.
pub struct Verifier {
    policy: Policy,
    keys: BTreeMap<String, KeyRecord>,
    chains: BTreeMap<(String, Stream), Chain>,
    declared: BTreeMap<String, Vec<Declared>>,
}

/// What the headers say.
struct Identity<'a> {
    node: &'a str,
    epoch: u64,
    seq: u64,
    prev: u64,
    time_ms: u64,
    kind: Kind,
}

impl Verifier {
    /// Knows nothing yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            keys: BTreeMap::new(),
            chains: BTreeMap::new(),
            declared: BTreeMap::new(),
        }
    }

    /// Checks the next message. `now_ms` is Unix milliseconds.
    pub fn check(&mut self, message: &Message, now_ms: u64) -> Verdict {
        let mut passed = Vec::new();
        let (fate, body) = match self.steps(message, now_ms, &mut passed) {
            Ok((fate, body)) => (fate, body),
            Err((step, why)) => (Fate::Refuse { step, why }, None),
        };
        Verdict { passed, fate, body }
    }

    /// Holes of every node's streams that no node has declared. Holes may still be filled while messages come.
    pub fn undeclared(&self) -> Vec<(String, Stream, Hole)> {
        let mut undeclared = Vec::new();
        for ((node, stream), chain) in &self.chains {
            let ranges = self.declared.get(node).map_or(&[][..], Vec::as_slice);
            for hole in &chain.holes {
                let declared = ranges
                    .iter()
                    .any(|(of, from, to)| of.is_none_or(|of| of == *stream) && (*from..=*to).contains(&hole.upto));
                if !declared {
                    undeclared.push((node.clone(), *stream, *hole));
                }
            }
        }
        undeclared
    }

    #[expect(clippy::type_complexity, reason = "a step's name and why it failed, used here only")]
    fn steps(
        &mut self,
        message: &Message,
        now_ms: u64,
        passed: &mut Vec<&'static str>,
    ) -> Result<(Fate, Option<Vec<u8>>), (&'static str, String)> {
        if message.body.len() > MAX_BODY_LEN || message.headers.len() > MAX_HEADERS {
            return Err(("size", "body or headers are over the limits".to_owned()));
        }
        passed.push("size");
        match message.header(header::VERSION) {
            Some(header::CONTRACT) => passed.push("version"),
            other => return Err(("version", format!("{} is {other:?}", header::VERSION))),
        }
        let id = identity(message).ok_or(("identity", "headers are missing or make no sense".to_owned()))?;
        let kid = self.check_key(message, &id)?;
        if kid.is_some() {
            passed.extend(["key", "signature"]);
        }
        if message.header(header::SUBJECT) != Some(&message.subject) {
            let said = message.header(header::SUBJECT).unwrap_or_default();
            return Err(("subject", format!("it says {said} and came under {}", message.subject)));
        }
        if !subject::fits(id.kind, &message.subject) {
            let kind = id.kind.type_name();
            return Err(("subject", format!("{} is no subject of {kind}", message.subject)));
        }
        passed.push("subject");
        let expected = format!("{}:{}:{}", id.node, id.epoch, id.seq);
        if message.header(header::MSG_ID) != Some(&expected) {
            return Err(("identity", format!("the message id is not {expected}")));
        }
        passed.push("identity");
        self.check_time(message, &id, now_ms)?;
        passed.push("time");
        let body = self.open(message)?;
        if let Some(body) = &body {
            check_body(&id, message, body)?;
            passed.push("body");
        }
        let stream = id.kind.stream();
        let of = (id.node.to_owned(), stream);
        if self.chains.len() >= MAX_CHAINS && !self.chains.contains_key(&of) {
            return Err(("sequence", "too many nodes".to_owned()));
        }
        let chain = self.chains.entry(of).or_default();
        let fate = chain.note(id.epoch, id.seq, id.prev).map_err(|why| ("sequence", why))?;
        passed.push("sequence");
        if fate == Fate::Accept {
            self.learn(message, &id, kid.as_deref(), body.as_deref());
        }
        Ok((fate, body))
    }

    fn check_key(&self, message: &Message, id: &Identity<'_>) -> Result<Option<String>, (&'static str, String)> {
        let Some(kid) = message.header(header::KEY_ID) else {
            return if self.policy.signed {
                Err(("signature", "it is not signed".to_owned()))
            } else {
                Ok(None)
            };
        };
        let bad = |step, why: &str| Err((step, format!("{why}: {kid}")));
        if message.header(header::ALGORITHM) != Some(header::ED25519) {
            return bad("signature", "unknown algorithm");
        }
        match self.keys.get(kid) {
            Some(record) if record.node != id.node => return bad("key", "the key is another node's"),
            // A key that was announced may say itself that it is in force earlier.
            Some(record)
                if id.kind != Kind::KeyAnnouncement && id.time_ms.saturating_add(MAX_SKEW_MS) < record.not_before =>
            {
                return bad("key", "the key was not yet valid");
            }
            Some(record) if record.status == KeyStatus::Revoked => {
                let since = record.revoked_at.unwrap_or(0).saturating_mul(1000);
                if id.time_ms >= since {
                    return bad("key", "the key is revoked");
                }
            }
            Some(record)
                if record
                    .not_after
                    .is_some_and(|until| id.time_ms > until.saturating_add(MAX_SKEW_MS)) =>
            {
                return bad("key", "the key was no longer valid");
            }
            Some(_) => {}
            None if self.policy.pinned.contains(kid) => {}
            None => return bad("key", "nobody who is believed has announced the key"),
        }
        let Some(key) = public_key(kid) else {
            return bad("key", "not a public nkey of type U");
        };
        let Some(preamble) = Preamble::of(|name| message.header(name)) else {
            return bad("signature", "a signed header is missing");
        };
        let signature = message.header(header::SIGNATURE).unwrap_or_default();
        if !verifies(&key, &preamble.signed_bytes(&message.body), signature) {
            return bad("signature", "the signature is not that of the key");
        }
        Ok(Some(kid.to_owned()))
    }

    fn check_time(&self, message: &Message, id: &Identity<'_>, now_ms: u64) -> Result<(), (&'static str, String)> {
        let Some(max_age) = self.policy.max_age_ms else {
            return Ok(());
        };
        let (age, ahead) = (now_ms.saturating_sub(id.time_ms), id.time_ms.saturating_sub(now_ms));
        let late_is_legal = message.from_stream && message.header(header::DELAYED).is_some() && age <= max_age;
        if ahead > MAX_SKEW_MS || (age > MAX_SKEW_MS && !late_is_legal) {
            return Err(("time", format!("it was made at {} and now is {now_ms}", id.time_ms)));
        }
        Ok(())
    }

    /// The open body; nothing if it is sealed for somebody else.
    fn open(&self, message: &Message) -> Result<Option<Vec<u8>>, (&'static str, String)> {
        let Some(sealed) = message.header(header::SEALED) else {
            return Ok(Some(message.body.clone()));
        };
        let Some(recipient) = &self.policy.recipient else {
            return Ok(None);
        };
        match seal::open(recipient, sealed, &message.body) {
            Some(body) => Ok(Some(body)),
            None => Err(("seal", "the body cannot be opened with this key".to_owned())),
        }
    }

    /// Keys and gaps that an accepted message tells of.
    fn learn(&mut self, message: &Message, id: &Identity<'_>, kid: Option<&str>, body: Option<&[u8]>) {
        let Some(body) = body.and_then(|body| serde_json::from_slice::<Value>(body).ok()) else {
            return;
        };
        let body = format::native(message.header(header::CONTENT_TYPE), body);
        match id.kind {
            Kind::KeyAnnouncement if kid.is_some() => {
                if let Ok(record) = serde_json::from_value::<KeyRecord>(body["key"].clone())
                    && record.node == id.node
                {
                    self.keys.insert(record.kid.clone(), record);
                }
            }
            Kind::SpoolGap => {
                let gap = &body["spool"];
                let (from, to) = (gap["from_seq"].as_u64(), gap["to_seq"].as_u64());
                let stream = Stream::ALL.into_iter().find(|stream| gap["stream"] == stream.name());
                let declared = self.declared.entry(id.node.to_owned()).or_default();
                if let (Some(from), Some(to)) = (from, to)
                    && declared.len() < MAX_HOLES
                {
                    declared.push((stream, from, to));
                }
            }
            _ => {}
        }
    }
}

impl Chain {
    fn note(&mut self, epoch: u64, seq: u64, prev: u64) -> Result<Fate, String> {
        let window = self.windows.entry(epoch).or_default();
        let seen = window.note(seq);
        if self.windows.len() > MAX_EPOCHS {
            self.windows.pop_first();
        }
        match seen {
            window::Seen::Before => return Ok(Fate::Duplicate),
            window::Seen::TooOld => return Err(format!("{seq} is older than the window: a replay")),
            window::Seen::First => {}
        }
        match self.last {
            None => self.last = Some(seq),
            Some(last) if seq > last => {
                if prev > last && self.holes.len() < MAX_HOLES {
                    self.holes.push(Hole {
                        after: last,
                        upto: prev,
                    });
                } else if prev < last {
                    return Err(format!("{seq} names {prev} as the one before it, which was {last}"));
                }
                self.last = Some(seq);
            }
            Some(_) => {
                let place = self.holes.iter().position(|hole| hole.after < seq && seq <= hole.upto);
                let Some(place) = place else {
                    return Err(format!("{seq} fits into no hole: a replay"));
                };
                let hole = self.holes.swap_remove(place);
                if prev > hole.after {
                    self.holes.push(Hole { upto: prev, ..hole });
                }
                if seq < hole.upto {
                    self.holes.push(Hole { after: seq, ..hole });
                }
            }
        }
        Ok(Fate::Accept)
    }
}

fn identity(message: &Message) -> Option<Identity<'_>> {
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
fn check_body(id: &Identity<'_>, message: &Message, body: &[u8]) -> Result<(), (&'static str, String)> {
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

#[cfg(test)]
mod tests;
