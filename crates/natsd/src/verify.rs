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

mod announcements;
pub mod command;
mod keys;
mod single;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::event::{Kind, Stream, header, subject};
use nkeys::XKey;
use serde_json::Value;

use self::{
    keys::{Doubt, Keys},
    single::{announced, check_body, check_id, check_limits, identity, says_nothing, senseless},
    window::Window,
};
use crate::{
    format,
    keys::KeyRecord,
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
    /// Public halves of trust keys. With any, a key is believed when one of them vouches for it, or when it is pinned.
    pub trust_keys: BTreeSet<String>,
    /// Public nkeys that are believed from the start. Without trust keys, others are when these introduce them.
    pub pinned: BTreeSet<String>,
    /// Of pinned keys, the manager that they are for. Others are for the one that they are seen to sign for first.
    pub nodes: BTreeMap<String, String>,
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
            trust_keys: BTreeSet::new(),
            pinned: BTreeSet::new(),
            nodes: BTreeMap::new(),
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
    /// Whether what is missing is an announcement, which may still come: hear what is on `manager.keys`, and check the
    /// message again before it is given up.
    pub unannounced: bool,
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
    keys: Keys,
    chains: BTreeMap<(String, Stream), Chain>,
    declared: BTreeMap<String, Vec<Declared>>,
}

/// A check that a message did not pass.
struct Refusal {
    step: &'static str,
    why: String,
    /// Whether an announcement that may still come could change it.
    unannounced: bool,
}

impl From<(&'static str, String)> for Refusal {
    fn from((step, why): (&'static str, String)) -> Self {
        Self {
            step,
            why,
            unannounced: false,
        }
    }
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
            keys: Keys::new(&policy),
            policy,
            chains: BTreeMap::new(),
            declared: BTreeMap::new(),
        }
    }

    /// Checks the next message. `now_ms` is Unix milliseconds.
    pub fn check(&mut self, message: &Message, now_ms: u64) -> Verdict {
        let mut passed = Vec::new();
        let came_out = self.steps(message, now_ms, &mut passed);
        verdict(came_out, passed)
    }

    /// Takes in what a message announces of keys and epochs, whichever way it came: out of another stream, again, or out
    /// of the bucket `muster_keys`. Numbers and times are not looked at.
    pub fn hear(&mut self, message: &Message) -> Verdict {
        let heard = self.overhear(message).map(|()| (Fate::Accept, None));
        verdict(heard, Vec::new())
    }

    fn overhear(&mut self, message: &Message) -> Result<(), Refusal> {
        check_limits(message)?;
        let id = identity(message).ok_or_else(senseless)?;
        let record = announced(message, &id).ok_or_else(says_nothing)?;
        self.keys.introduce(&record);
        let kid = self.check_key(message, &id)?;
        let subject = message.header(header::SUBJECT).unwrap_or_default();
        if !subject::fits(id.kind, subject) {
            return Err(("subject", format!("{subject} is no subject of announcements")).into());
        }
        check_id(message, &id)?;
        if kid.is_some() {
            self.keys.know_epoch(id.node, id.epoch);
            self.learn_key(Some(&record))?;
        }
        Ok(())
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

    fn steps(
        &mut self,
        message: &Message,
        now_ms: u64,
        passed: &mut Vec<&'static str>,
    ) -> Result<(Fate, Option<Vec<u8>>), Refusal> {
        check_limits(message)?;
        passed.extend(["size", "version"]);
        let id = identity(message).ok_or_else(senseless)?;
        let record = announced(message, &id);
        if let Some(record) = &record {
            self.keys.introduce(record);
        }
        let kid = self.check_key(message, &id)?;
        if kid.is_some() {
            passed.extend(["key", "signature"]);
        }
        if message.header(header::SUBJECT) != Some(&message.subject) {
            let said = message.header(header::SUBJECT).unwrap_or_default();
            return Err(("subject", format!("it says {said} and came under {}", message.subject)).into());
        }
        if !subject::fits(id.kind, &message.subject) {
            let kind = id.kind.type_name();
            return Err(("subject", format!("{} is no subject of {kind}", message.subject)).into());
        }
        passed.push("subject");
        check_id(message, &id)?;
        passed.push("identity");
        self.check_time(message, &id, now_ms)?;
        passed.push("time");
        if kid.is_some() {
            self.check_epoch(&id)?;
            passed.push("epoch");
        }
        let body = self.open(message)?;
        if let Some(body) = &body {
            check_body(&id, message, body)?;
            passed.push("body");
        }
        let stream = id.kind.stream();
        let of = (id.node.to_owned(), stream);
        if self.chains.len() >= MAX_CHAINS && !self.chains.contains_key(&of) {
            return Err(("sequence", "too many nodes".to_owned()).into());
        }
        let chain = self.chains.entry(of).or_default();
        let fate = chain.note(id.epoch, id.seq, id.prev).map_err(|why| ("sequence", why))?;
        passed.push("sequence");
        if fate == Fate::Accept {
            if kid.is_some() {
                self.keys.know_epoch(id.node, id.epoch);
                if id.kind == Kind::KeyAnnouncement {
                    self.learn_key(record.as_ref())?;
                    passed.push("announcement");
                }
            }
            self.learn_gap(message, &id, body.as_deref());
        }
        Ok((fate, body))
    }

    /// The key that has signed it, unless it need not be signed and is not.
    fn check_key(&mut self, message: &Message, id: &Identity<'_>) -> Result<Option<String>, Refusal> {
        let Some(kid) = message.header(header::KEY_ID) else {
            return if self.policy.signed {
                Err(("signature", "it is not signed".to_owned()).into())
            } else {
                Ok(None)
            };
        };
        let bad = |step, why: &str| Err((step, format!("{why}: {kid}")).into());
        if message.header(header::ALGORITHM) != Some(header::ED25519) {
            return bad("signature", "unknown algorithm");
        }
        match self.keys.admit(kid, id.node, id.time_ms) {
            Ok(()) => {}
            Err(Doubt::Bad(why)) => return bad("key", why),
            Err(Doubt::Unknown(why)) => {
                return Err(Refusal {
                    step: "key",
                    why: format!("{why}: {kid}"),
                    unannounced: true,
                });
            }
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
        self.keys.bind(kid, id.node);
        Ok(Some(kid.to_owned()))
    }

    /// The first epoch that is seen is as good as any; each later one must have been announced.
    fn check_epoch(&self, id: &Identity<'_>) -> Result<(), Refusal> {
        let known = self.keys.epoch(id.node).unwrap_or(u64::MAX);
        if id.kind == Kind::KeyAnnouncement || id.epoch <= known {
            return Ok(());
        }
        Err(Refusal {
            step: "epoch",
            why: format!("nobody has announced an epoch above {known}, and it is of {}", id.epoch),
            unannounced: true,
        })
    }

    fn learn_key(&mut self, record: Option<&KeyRecord>) -> Result<(), Refusal> {
        let record = record.ok_or_else(says_nothing)?;
        let learned = self.keys.learn(record);
        learned.map_err(|why| ("announcement", format!("{why}: {}", record.kid)).into())
    }

    fn check_time(&self, message: &Message, id: &Identity<'_>, now_ms: u64) -> Result<(), Refusal> {
        let Some(max_age) = self.policy.max_age_ms else {
            return Ok(());
        };
        let (age, ahead) = (now_ms.saturating_sub(id.time_ms), id.time_ms.saturating_sub(now_ms));
        let late_is_legal = message.from_stream && message.header(header::DELAYED).is_some() && age <= max_age;
        if ahead > MAX_SKEW_MS || (age > MAX_SKEW_MS && !late_is_legal) {
            return Err(("time", format!("it was made at {} and now is {now_ms}", id.time_ms)).into());
        }
        Ok(())
    }

    /// The open body; nothing if it is sealed for somebody else.
    fn open(&self, message: &Message) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(sealed) = message.header(header::SEALED) else {
            return Ok(Some(message.body.clone()));
        };
        let Some(recipient) = &self.policy.recipient else {
            return Ok(None);
        };
        match seal::open(recipient, sealed, &message.body) {
            Some(body) => Ok(Some(body)),
            None => Err(("seal", "the body cannot be opened with this key".to_owned()).into()),
        }
    }

    /// A gap that an accepted message tells of.
    fn learn_gap(&mut self, message: &Message, id: &Identity<'_>, body: Option<&[u8]>) {
        if id.kind != Kind::SpoolGap {
            return;
        }
        let Some(body) = body.and_then(|body| serde_json::from_slice::<Value>(body).ok()) else {
            return;
        };
        let body = format::native(message.header(header::CONTENT_TYPE), body);
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
}

fn verdict(came_out: Result<(Fate, Option<Vec<u8>>), Refusal>, passed: Vec<&'static str>) -> Verdict {
    let (fate, body, unannounced) = match came_out {
        Ok((fate, body)) => (fate, body, false),
        Err(Refusal { step, why, unannounced }) => (Fate::Refuse { step, why }, None, unannounced),
    };
    Verdict {
        passed,
        fate,
        body,
        unannounced,
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

#[cfg(test)]
mod tests;
