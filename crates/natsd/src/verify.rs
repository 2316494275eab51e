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
mod chain;
pub mod command;
mod declared;
mod keys;
mod single;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::event::{Kind, Stream, header};
use nkeys::XKey;
use serde_json::Value;

pub use self::chain::Hole;
pub(crate) use self::keys::Keys;
use self::{
    chain::{At, Chain, Seen},
    declared::{Declared, Start},
    keys::Doubt,
    single::{
        Announced, announced, check_body, check_id, check_limits, check_subject, identity, never_ages, says_nothing,
        senseless,
    },
};
use crate::{
    format, seal,
    signature::{Preamble, public_key, verifies},
};

/// The largest body that is looked at; no broker takes a larger one.
const MAX_BODY_LEN: usize = 8 * 1024 * 1024;
/// The most headers, and the most bytes of their names and values together. Ours have less than 3,000, with eight recipients.
const MAX_HEADERS: usize = 64;
const MAX_HEADERS_LEN: usize = 32 * 1024;
/// How far a clock may be off.
const MAX_SKEW_MS: u64 = 300 * 1000;
/// Holes that are remembered of a stream, and declared ranges of each.
const MAX_HOLES: usize = 100_000;
/// How long a hole may be there that nobody has declared, in milliseconds: what is late comes within that time.
pub const OVERDUE_MS: u64 = 60 * 1000;
/// The step that fails when a message is so old that nobody knows whether it came before.
pub const REPLAY: &str = "replay";
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
    /// The oldest event that may still come, in milliseconds, where events grow too old; `None` reads history and looks
    /// at no clock.
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

/// See the module.
pub struct Verifier {
    policy: Policy,
    keys: Keys,
    chains: BTreeMap<(String, Stream), Chain>,
    declared: BTreeMap<String, Declared>,
    reads_history: bool,
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
            reads_history: false,
        }
    }

    /// Whether what comes next was in its stream before anybody looked: then it may be of any age, whatever the policy says.
    pub fn read_history(&mut self, history: bool) {
        self.reads_history = history;
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
        let announced = announced(message, &id).ok_or_else(says_nothing)?;
        self.keys.introduce(&announced.record);
        let kid = self.check_key(message, &id)?;
        check_subject(&id, message.header(header::SUBJECT).unwrap_or_default())?;
        check_id(message, &id)?;
        if kid.is_some() {
            self.keys.know_epoch(id.node, id.epoch);
            self.learn_start(&id, &announced);
            self.learn_key(Some(&announced))?;
        }
        Ok(())
    }

    /// Holes of every node's streams that no node has declared. Holes may still be filled while messages come.
    pub fn undeclared(&self) -> Vec<(String, Stream, Hole)> {
        let mut undeclared = Vec::new();
        for ((node, stream), chain) in &self.chains {
            let declared = self.declared.get(node);
            let cut_off = declared.and_then(Declared::newest);
            let cut_off = cut_off.and_then(|(run, start)| chain.cut_off(run, start.first));
            let holes = chain.holes.iter().map(|missing| missing.hole).chain(cut_off);
            let holes = holes.filter(|hole| !declared.is_some_and(|declared| declared.covers(*stream, *hole)));
            undeclared.extend(holes.map(|hole| (node.clone(), *stream, hole)));
        }
        undeclared
    }

    /// Of those, which have been there for so long, as [`OVERDUE_MS`] is: each once.
    pub fn overdue(&mut self, now_ms: u64, patience_ms: u64) -> Vec<(String, Stream, Hole)> {
        let is_overdue = |since_ms: u64| now_ms.saturating_sub(since_ms) >= patience_ms;
        let mut overdue = Vec::new();
        for ((node, stream), chain) in &mut self.chains {
            let declared = self.declared.get(node);
            if let Some((run, start)) = declared.and_then(Declared::newest)
                && is_overdue(start.since_ms)
                && chain.cut_off(run, start.first).is_some()
            {
                // Without room it is told at the end.
                let _ = chain.begin_run(run, start.first, start.since_ms);
            }
            for missing in &mut chain.holes {
                if !missing.told
                    && is_overdue(missing.since_ms)
                    && !declared.is_some_and(|declared| declared.covers(*stream, missing.hole))
                {
                    missing.told = true;
                    overdue.push((node.clone(), *stream, missing.hole));
                }
            }
        }
        overdue
    }

    /// Whether [`Self::overdue`] has given this hole.
    pub fn was_told(&self, (node, stream, hole): &(String, Stream, Hole)) -> bool {
        let chain = self.chains.get(&(node.clone(), *stream));
        chain.is_some_and(|chain| chain.holes.iter().any(|missing| missing.told && missing.hole == *hole))
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
        let announced = announced(message, &id);
        if let Some(announced) = &announced {
            self.keys.introduce(&announced.record);
        }
        let kid = self.check_key(message, &id)?;
        if kid.is_some() {
            passed.extend(["key", "signature"]);
        }
        if message.header(header::SUBJECT) != Some(&message.subject) {
            let said = message.header(header::SUBJECT).unwrap_or_default();
            return Err(("subject", format!("it says {said} and came under {}", message.subject)).into());
        }
        check_subject(&id, &message.subject)?;
        passed.push("subject");
        check_id(message, &id)?;
        passed.push("identity");
        if self.check_time(message, &id, now_ms)? {
            passed.push("time");
        }
        let of = (id.node.to_owned(), id.kind.stream());
        if kid.is_some() {
            self.check_epoch(&id)?;
            if let Some(announced) = &announced {
                self.learn_start(&id, announced);
            }
            passed.push("epoch");
        } else if let Some((epoch, seq)) = self.chains.get(&of).and_then(Chain::last)
            && id.epoch > epoch
            && id.prev < seq
        {
            // Nothing is signed, and so nothing announced.
            let start = Start {
                first: 1,
                since_ms: id.time_ms,
            };
            self.declared.entry(of.0.clone()).or_default().begin(id.epoch, start);
        }
        if self.chains.len() >= MAX_CHAINS && !self.chains.contains_key(&of) {
            return Err(("sequence", "too many nodes".to_owned()).into());
        }
        let at = self.place(&id);
        match self.chains.get(&of).map_or(Seen::Never, |chain| chain.look(at)) {
            Seen::Never => passed.push("sequence"),
            Seen::Before => return Ok((Fate::Duplicate, None)),
            Seen::Replay => {
                return Err((
                    REPLAY,
                    format!("{} is older than what is known, and fits into no hole", id.seq),
                )
                    .into());
            }
        }
        let body = self.open(message)?;
        if message.header(header::SEALED).is_some() && body.is_some() {
            passed.push("seal");
        }
        if let Some(body) = &body {
            check_body(&id, message, body)?;
            passed.push("body");
        }
        let noted = self.chains.entry(of).or_default().note(at, now_ms);
        noted.map_err(|why| ("gaps", why))?;
        passed.push("gaps");
        if kid.is_some() {
            self.keys.know_epoch(id.node, id.epoch);
            if id.kind == Kind::KeyAnnouncement {
                self.learn_key(announced.as_ref())?;
                passed.push("announcement");
            }
        }
        self.learn_gap(message, &id, body.as_deref());
        Ok((Fate::Accept, body))
    }

    /// Where a message stands, by what is known of its node.
    fn place(&self, id: &Identity<'_>) -> At {
        let run = |number| match self.declared.get(id.node) {
            Some(declared) => declared.run(id.epoch, number),
            None => (0, 0),
        };
        let ((run_of_this, first), (run_of_prev, _)) = (run(id.seq), run(id.prev));
        At {
            run: run_of_this,
            first,
            epoch: id.epoch,
            seq: id.seq,
            prev: id.prev,
            run_of_prev,
        }
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

    /// Whether the numbers have begun anew.
    fn learn_start(&mut self, id: &Identity<'_>, announced: &Announced) {
        for (epoch, first) in &announced.begun {
            let start = Start {
                first: *first,
                since_ms: id.time_ms,
            };
            let declared = self.declared.entry(id.node.to_owned()).or_default();
            if declared.begin(*epoch, start) {
                for stream in Stream::ALL {
                    let chain = self.chains.get_mut(&(id.node.to_owned(), stream));
                    chain.into_iter().for_each(|chain| chain.has_begun(*epoch, *first));
                }
            }
        }
    }

    fn learn_key(&mut self, announced: Option<&Announced>) -> Result<(), Refusal> {
        let record = &announced.ok_or_else(says_nothing)?.record;
        let learned = self.keys.learn(record);
        learned.map_err(|why| ("announcement", format!("{why}: {}", record.kid)).into())
    }

    /// Whether the time was looked at, and is right.
    fn check_time(&self, message: &Message, id: &Identity<'_>, now_ms: u64) -> Result<bool, Refusal> {
        let Some(max_age) = self.policy.max_age_ms.filter(|_| !self.reads_history) else {
            return Ok(false);
        };
        let (age, ahead) = (now_ms.saturating_sub(id.time_ms), id.time_ms.saturating_sub(now_ms));
        let has_waited = message.from_stream && message.header(header::DELAYED).is_some();
        let late_is_legal = has_waited && (age <= max_age || never_ages(id.kind));
        if ahead > MAX_SKEW_MS || (age > MAX_SKEW_MS && !late_is_legal) {
            return Err(("time", format!("it was made at {} and now is {now_ms}", id.time_ms)).into());
        }
        Ok(true)
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
        let declared = self.declared.entry(id.node.to_owned()).or_default();
        declared.learn(id.epoch, &body["spool"]);
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

#[cfg(test)]
mod tests;
