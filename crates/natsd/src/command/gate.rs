//! Whether a request may be: pure, with time and bytes as parameters.
//!
//! ```text
//! size ─▶ inbox ─▶ subject ─▶ headers ─▶ known key ─▶ signature ─▶ body ─▶ times ─▶ nonce ─▶ rate ─▶ role ─▶ switches
//! ```
//!
//! **Invariant:** a grant rests on a signature of a listed key over this subject, is younger than its expiry, and is
//! given once. **Invariant:** what anybody can cause without a key is bounded: work by [`VERIFICATIONS`], lines of the
//! audit trail by [`STRANGERS`], memory by [`MAX_NONCES`].

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use ed25519_dalek::VerifyingKey;
use muster_config::{Control, ControlRole, Nats};
use muster_proto::{
    bucket::{Rate, TokenBucket},
    command::{self, Address, AddressError, MAX_BODY_LEN, MAX_LIFE_S, Request, Verb, is_nonce},
    event::{header, preamble::Preamble, subject::token},
};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{
    publish::connection::INBOX_PREFIX,
    signature::{public_key, verifies},
};

/// How far the requester's clock may be ahead of ours.
pub(crate) const SKEW_MS: u64 = 5000;
/// Signatures that are checked; beyond them requests are passed over.
const VERIFICATIONS: Rate = Rate {
    per_second: 200,
    burst: 400,
};
/// Refusals that are answered and written down although no key stands for them; beyond them they are counted.
const STRANGERS: Rate = Rate {
    per_second: 1,
    burst: 30,
};
/// Nonces that are remembered. When there are more within half a minute, requests are refused.
const MAX_NONCES: usize = 100_000;
/// How often nonces that have expired are forgotten.
const SWEEP_MS: u64 = 5000;
/// The longest header that is looked at.
const MAX_HEADER_LEN: usize = 512;
/// The longest subject that is looked at.
const MAX_SUBJECT_LEN: usize = 512;
/// Arguments of an active response, and the length of one.
const MAX_ARGUMENTS: usize = 16;
const MAX_ARGUMENT_LEN: usize = 256;

/// The moment of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) unix_ms: u64,
    pub(crate) instant: Instant,
}

/// A request as it came.
pub(crate) struct Incoming<'a> {
    pub(crate) subject: &'a str,
    /// Where the reply goes, if anybody waits for one.
    pub(crate) inbox: Option<&'a str>,
    /// The first value of each header.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

impl<'a> Incoming<'a> {
    fn header(&self, name: &str) -> Option<&'a str> {
        let found = self.headers.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| *value)
    }
}

/// Why a request is refused. The word of [`reason`](Self::reason) is for programs and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("the request is longer than {MAX_BODY_LEN} bytes, or one of its headers than {MAX_HEADER_LEN}")]
    Oversize,
    #[error("the reply shall go to a subject that is no inbox")]
    Inbox,
    #[error("the subject is not <prefix>.control.<node>.<noun>.<id>.<verb> with an id of 1 to 8 digits")]
    Subject,
    #[error("the request is for another manager")]
    OtherManager,
    #[error("this manager knows no such verb")]
    UnknownVerb,
    #[error("the request is not signed")]
    Unsigned,
    #[error("headers are missing, or are not those of version {}", header::CONTRACT)]
    Headers,
    #[error("the request was signed for another subject")]
    WrongSubject,
    #[error("the key is not listed as a <control_key>")]
    UnknownKey,
    #[error("the signature does not fit")]
    BadSignature,
    #[error(
        "the body is not a request: {{\"exp\", \"nonce\", \"arguments\"}}, with what the verb needs and nothing else"
    )]
    Body,
    #[error("the request was signed in the future; set the clocks")]
    FromTheFuture,
    #[error("the request may be older than this natsd; sign a new one")]
    BeforeStart,
    #[error("the request is valid for longer than {MAX_LIFE_S} s")]
    TooLongLived,
    #[error("the request has expired")]
    Expired,
    #[error("the nonce was used before")]
    Replayed,
    #[error("the key has sent more requests than its rate allows")]
    OverRate,
    #[error("the key does not have the role that the verb needs")]
    Role,
    #[error("<control destroy=\"yes\"> is not set")]
    DestroyOff,
    #[error("the active response is not listed in <control active_responses>")]
    NotListed,
    #[error("too many requests at once; ask again later")]
    Busy,
    #[error("the request cannot be written to the audit trail, and is not carried out")]
    NoAudit,
}

impl Refusal {
    /// One word.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::Inbox => "bad_inbox",
            Self::Subject => "bad_subject",
            Self::OtherManager => "other_manager",
            Self::UnknownVerb => "unknown_verb",
            Self::Unsigned => "unsigned",
            Self::Headers => "bad_headers",
            Self::WrongSubject => "wrong_subject",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Body => "bad_body",
            Self::FromTheFuture => "from_the_future",
            Self::BeforeStart => "before_start",
            Self::TooLongLived => "too_long_lived",
            Self::Expired => "expired",
            Self::Replayed => "replayed",
            Self::OverRate => "over_rate",
            Self::Role => "role",
            Self::DestroyOff => "destroy_off",
            Self::NotListed => "not_listed",
            Self::Busy => "busy",
            Self::NoAudit => "no_audit",
        }
    }
}

/// An active response that may be ordered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Respond {
    pub(crate) command: String,
    pub(crate) extra_args: Vec<String>,
    pub(crate) alert: Map<String, Value>,
}

/// What may be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grant {
    pub(crate) address: Address,
    /// Of [`Verb::AgentRespond`].
    pub(crate) respond: Option<Respond>,
}

/// Whose signature stands under a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signer {
    /// The name in the configuration.
    pub(crate) id: String,
    /// The public key.
    pub(crate) key_id: String,
}

/// What is thought of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judgement {
    /// What it asks for, as far as that can be read.
    pub(crate) verb: Option<Verb>,
    /// Who asks, if that is proven.
    pub(crate) signer: Option<Signer>,
    /// Empty unless it was read from a body that the signature covers.
    pub(crate) nonce: String,
    /// Whether it may be.
    pub(crate) verdict: Result<Grant, Refusal>,
    /// Whether it is answered and written down, or only counted.
    pub(crate) heard: bool,
}

/// A key that may ask.
#[derive(Debug)]
struct Key {
    id: String,
    key: VerifyingKey,
    roles: Vec<ControlRole>,
    rate: Rate,
    bucket: TokenBucket,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    prefix: String,
    /// The token of our name.
    node: String,
    keys: BTreeMap<String, Key>,
    control: Control,
    started_ms: u64,
    /// The latest time that was seen: behind a clock that is set back nothing becomes valid again.
    latest_ms: u64,
    /// Until when each nonce counts, in Unix seconds, behind the key that has used it.
    nonces: HashMap<(String, String), u64>,
    swept_ms: u64,
    verifications: TokenBucket,
    strangers: TokenBucket,
}

/// A `<control_key>` is no key.
#[derive(Debug, Error)]
#[error("<control_key id=\"{0}\"> is no public nkey of a user: its checksum does not fit")]
pub(crate) struct BadKey(String);

impl Gate {
    pub(crate) fn new(nats: &Nats, node: &str, now: Now) -> Result<Self, BadKey> {
        let mut gate = Self {
            prefix: nats.subject_prefix.clone(),
            node: token(node).into_owned(),
            keys: BTreeMap::new(),
            control: Control::default(),
            started_ms: now.unix_ms,
            latest_ms: now.unix_ms,
            nonces: HashMap::new(),
            swept_ms: now.unix_ms,
            verifications: TokenBucket::new(VERIFICATIONS, now.instant),
            strangers: TokenBucket::new(STRANGERS, now.instant),
        };
        gate.configure(nats, now)?;
        Ok(gate)
    }

    /// Takes keys and switches over. On an error everything stays as it was.
    pub(crate) fn configure(&mut self, nats: &Nats, now: Now) -> Result<(), BadKey> {
        let mut keys = BTreeMap::new();
        for listed in &nats.control_keys {
            let key = public_key(&listed.key).ok_or_else(|| BadKey(listed.id.clone()))?;
            let rate = Rate {
                per_second: listed.rate.per_second,
                burst: listed.rate.burst,
            };
            // A reload is no way to a full bucket.
            let before = self.keys.get(&listed.key).filter(|key| key.rate == rate);
            let bucket = before.map_or_else(|| TokenBucket::new(rate, now.instant), |key| key.bucket);
            let key = Key {
                id: listed.id.clone(),
                key,
                roles: listed.roles.clone(),
                rate,
                bucket,
            };
            keys.insert(listed.key.clone(), key);
        }
        self.keys = keys;
        self.control = nats.control.clone();
        Ok(())
    }

    /// Judges a request. A grant is given once.
    pub(crate) fn judge(&mut self, incoming: &Incoming<'_>, now: Now) -> Judgement {
        self.latest_ms = self.latest_ms.max(now.unix_ms);
        self.sweep();
        let mut judgement = Judgement {
            verb: None,
            signer: None,
            nonce: String::new(),
            verdict: Err(Refusal::Busy),
            heard: true,
        };
        judgement.verdict = match self.admit(incoming, now, &mut judgement) {
            Ok(grant) => self.allow(incoming, grant),
            Err(refusal) => {
                // Up to here nobody's rate was charged: whoever has overheard a request can send it any number of times.
                judgement.heard = refusal != Refusal::Busy && self.strangers.take(STRANGERS, now.instant);
                Err(refusal)
            }
        };
        judgement
    }

    /// Whether it is a request of one of our keys, for now and for the first time.
    fn admit(
        &mut self,
        incoming: &Incoming<'_>,
        now: Now,
        judgement: &mut Judgement,
    ) -> Result<(Address, Request), Refusal> {
        let short = |(_, value): &(&str, &str)| value.len() <= MAX_HEADER_LEN;
        if incoming.body.len() > MAX_BODY_LEN
            || incoming.subject.len() > MAX_SUBJECT_LEN
            || !incoming.headers.iter().all(short)
        {
            return Err(Refusal::Oversize);
        }
        if !incoming.inbox.is_none_or(is_inbox) {
            return Err(Refusal::Inbox);
        }
        let address = Address::parse(&self.prefix, incoming.subject).map_err(|error| match error {
            AddressError::Verb => Refusal::UnknownVerb,
            AddressError::Form | AddressError::Agent => Refusal::Subject,
        })?;
        if address.node != self.node && address.node != command::ANY {
            return Err(Refusal::OtherManager);
        }
        judgement.verb = Some(address.verb);
        let (signer, time_ms) = self.authenticate(incoming, now)?;
        let key_id = signer.key_id.clone();
        judgement.signer = Some(signer);
        let request: Request = serde_json::from_slice(incoming.body).map_err(|_| Refusal::Body)?;
        if !is_nonce(&request.nonce) || incoming.header(header::MSG_ID) != Some(request.nonce.as_str()) {
            return Err(Refusal::Body);
        }
        judgement.nonce.clone_from(&request.nonce);
        self.check_times(time_ms, request.exp, now)?;
        let used = (key_id, request.nonce.clone());
        if self.nonces.contains_key(&used) {
            return Err(Refusal::Replayed);
        }
        if self.nonces.len() >= MAX_NONCES {
            return Err(Refusal::Busy);
        }
        let key = self.keys.get_mut(&used.0).ok_or(Refusal::UnknownKey)?;
        if !key.bucket.take(key.rate, now.instant) {
            return Err(Refusal::OverRate);
        }
        self.nonces.insert(used, request.exp);
        Ok((address, request))
    }

    fn authenticate(&mut self, incoming: &Incoming<'_>, now: Now) -> Result<(Signer, u64), Refusal> {
        let key_id = incoming.header(header::KEY_ID);
        let signature = incoming.header(header::SIGNATURE);
        let (Some(key_id), Some(signature)) = (key_id, signature) else {
            return Err(Refusal::Unsigned);
        };
        let preamble = Preamble::of(|name| incoming.header(name)).ok_or(Refusal::Headers)?;
        let time_ms = preamble.time.parse::<u64>().map_err(|_| Refusal::Headers)?;
        if incoming.header(header::VERSION) != Some(header::CONTRACT)
            || incoming.header(header::ALGORITHM) != Some(header::ED25519)
            || preamble.content_type != header::JSON
            || preamble.sealed.is_some()
        {
            return Err(Refusal::Headers);
        }
        if preamble.subject != incoming.subject {
            return Err(Refusal::WrongSubject);
        }
        let key = self.keys.get(key_id).ok_or(Refusal::UnknownKey)?;
        if !self.verifications.take(VERIFICATIONS, now.instant) {
            return Err(Refusal::Busy);
        }
        if !verifies(&key.key, &preamble.signed_bytes(incoming.body), signature) {
            return Err(Refusal::BadSignature);
        }
        let signer = Signer {
            id: key.id.clone(),
            key_id: key_id.to_owned(),
        };
        Ok((signer, time_ms))
    }

    fn check_times(&self, time_ms: u64, exp: u64, now: Now) -> Result<(), Refusal> {
        if time_ms > now.unix_ms.saturating_add(SKEW_MS) {
            return Err(Refusal::FromTheFuture);
        }
        let exp_ms = exp.saturating_mul(1000);
        if exp_ms > time_ms.saturating_add(MAX_LIFE_S * 1000) {
            return Err(Refusal::TooLongLived);
        }
        if exp_ms <= self.latest_ms {
            return Err(Refusal::Expired);
        }
        // The nonces of the process before us are gone. It has taken nothing that was signed later than this.
        if time_ms <= self.started_ms.saturating_add(SKEW_MS) {
            return Err(Refusal::BeforeStart);
        }
        Ok(())
    }

    /// Whether the key may do this, and the configuration allows it at all.
    fn allow(&self, incoming: &Incoming<'_>, (address, request): (Address, Request)) -> Result<Grant, Refusal> {
        let key = incoming.header(header::KEY_ID).and_then(|key_id| self.keys.get(key_id));
        let role = role(address.verb);
        if !key.is_some_and(|key| key.roles.contains(&role)) {
            return Err(Refusal::Role);
        }
        if role == ControlRole::Destroy && !self.control.destroy {
            return Err(Refusal::DestroyOff);
        }
        let respond = if address.verb == Verb::AgentRespond {
            let respond = respond(request.arguments).ok_or(Refusal::Body)?;
            if !self.control.active_responses.contains(&respond.command) {
                return Err(Refusal::NotListed);
            }
            Some(respond)
        } else if request.arguments.is_empty() {
            None
        } else {
            return Err(Refusal::Body);
        };
        Ok(Grant { address, respond })
    }

    fn sweep(&mut self) {
        if self.latest_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = self.latest_ms;
            let latest_ms = self.latest_ms;
            self.nonces.retain(|_, exp| exp.saturating_mul(1000) > latest_ms);
        }
    }
}

/// Whether this is where requesters wait. Anywhere else, our reply would be a message that the requester may not send:
/// an entry of the bucket of agents, an order to the broker, an acknowledgement of an event.
pub(crate) fn is_inbox(subject: &str) -> bool {
    let theirs = subject.starts_with("_INBOX.") || subject.starts_with(command::FOREIGN_INBOX);
    let ours = subject.strip_prefix(INBOX_PREFIX);
    theirs && subject.len() <= MAX_SUBJECT_LEN && !ours.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What a key needs for a verb.
fn role(verb: Verb) -> ControlRole {
    match verb {
        Verb::AgentStatus | Verb::AgentsSummary | Verb::NodeStatus => ControlRole::Read,
        Verb::AgentRestart | Verb::AgentReconnect | Verb::AgentReload | Verb::AgentRespond => ControlRole::Act,
        Verb::AgentRemove | Verb::AgentRekey => ControlRole::Destroy,
    }
}

/// Whether a verb changes something.
pub(crate) fn changes(verb: Verb) -> bool {
    role(verb) != ControlRole::Read
}

/// `{"command": "firewall-drop600", "extra_args": [], "alert": {}}`; the last two may be left out.
fn respond(mut arguments: Map<String, Value>) -> Option<Respond> {
    let Some(Value::String(command)) = arguments.remove("command") else {
        return None;
    };
    let extra_args = match arguments.remove("extra_args") {
        None => Vec::new(),
        Some(Value::Array(values)) if values.len() <= MAX_ARGUMENTS => {
            let text = |value| match value {
                Value::String(text) if text.len() <= MAX_ARGUMENT_LEN && !text.contains(char::is_control) => Some(text),
                _ => None,
            };
            values.into_iter().map(text).collect::<Option<_>>()?
        }
        Some(_) => return None,
    };
    let alert = match arguments.remove("alert") {
        None => Map::new(),
        Some(Value::Object(alert)) => alert,
        Some(_) => return None,
    };
    let respond = Respond {
        command,
        extra_args,
        alert,
    };
    arguments.is_empty().then_some(respond)
}

#[cfg(test)]
mod tests;
