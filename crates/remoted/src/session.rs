//! What a message from an agent's port means: who sends it, whether it may, and what follows from it. Pure: key table,
//! bytes and time in, decisions out. The checks run in the stock order, since which one fails decides what a stranger
//! causes.
//!
//! The way of a message:
//!
//! 1. [`identify`]: the id in front, or the source address, leads to an agent's slot; or it is a ping.
//! 2. [`ownership`]: whether another connection speaks for that agent.
//! 3. The envelope is opened (`muster_proto`); [`refusal_of`] names the failure.
//! 4. [`admit`]: cipher and counters are judged, once the checksum has proved the key.
//! 5. [`decide`]: what is answered, told and passed on.
//!
//! **Invariant:** nobody who has not proved a key changes anything about an agent, takes over its connection, or is
//! answered anything but `#pong`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use muster_config::{CryptoAccept, IpNet, KeyConflict, ManagerVersion, Remote};
use muster_proto::{
    keys::address::source_text,
    transport::{
        counter::{self, Counter},
        envelope::{self, CorruptKind, CryptoForm, EnvelopeError, OpenError},
        keepalive::Family,
    },
};

use crate::{
    edge::Tally,
    keys::KeyTable,
    slot::{AgentSlot, ConnectionId, Millis, Protocol, Route},
};

mod decide;
#[cfg(test)]
mod tests;

pub use decide::{Binding, Decision, Reply, decide};

/// How messages are judged that come in through one `<remote>` block.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Silence after which a newer connection takes over; `None`: never.
    pub overtake_after: Option<Duration>,
    /// Who keeps the session before that.
    pub key_conflict: KeyConflict,
    /// Which ciphers are taken.
    pub crypto_accept: CryptoAccept,
    /// Whether agents newer than [`Rules::manager_version`] may come in.
    pub allow_higher_versions: bool,
    /// The version that we present.
    pub manager_version: ManagerVersion,
    /// Whose counters are checked.
    pub verify: Verify,
    /// Whether events also become archive records.
    pub archives: bool,
    /// Load balancers that say in front of each connection whose it is.
    pub load_balancers: Vec<IpNet>,
}

impl Rules {
    /// The rules of a block.
    pub fn new(remote: &Remote, manager_version: ManagerVersion, verify: Verify) -> Self {
        Self {
            overtake_after: Some(remote.connection_overtake_time).filter(|time| !time.is_zero()),
            key_conflict: remote.key_conflict,
            crypto_accept: remote.crypto_accept,
            allow_higher_versions: remote.allow_higher_versions,
            manager_version,
            verify,
            archives: remote.archives,
            load_balancers: remote.proxy_protocol.clone(),
        }
    }
}

/// Whose counters are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Everybody's.
    All,
    /// Those of agents whose own managers check them: OSSEC's.
    Ossec,
    /// Nobody's.
    Nobody,
}

impl Verify {
    /// Whether those of this agent are, which talks in this form.
    pub(crate) fn applies(self, slot: &AgentSlot, form: CryptoForm) -> bool {
        match self {
            Self::All => true,
            Self::Nobody => false,
            Self::Ossec => form == CryptoForm::OssecAes || slot.family() == Some(Family::Ossec),
        }
    }
}

/// Where a message came from, and how an answer gets there.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Where answers go when the message binds.
    pub route: Route,
}

impl Origin {
    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.route.peer()
    }

    /// The carrier.
    pub fn protocol(&self) -> Protocol {
        self.route.protocol()
    }

    /// The connection, over TCP.
    pub fn connection(&self) -> Option<ConnectionId> {
        match self.route {
            Route::Tcp { connection, .. } => Some(connection),
            Route::Udp { .. } => None,
        }
    }
}

/// Who a message says it is from.
#[derive(Clone, Copy, Debug)]
pub enum Sender<'t, 'p> {
    /// Anybody: wants to know whether we are there.
    Ping,
    /// An agent, if it has the key.
    Agent {
        /// The agent.
        slot: &'t Arc<AgentSlot>,
        /// By what it was found, for a key request.
        named: KeyRequest<'p>,
        /// Token and ciphertext.
        sealed: &'p [u8],
    },
}

/// A question to whoever knows keys that we do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRequest<'p> {
    /// By the id in front of the message.
    Id(&'p str),
    /// By the source address.
    Address(IpAddr),
}

impl KeyRequest<'_> {
    /// The text of the datagram, without NUL or line feed.
    pub fn text(&self) -> String {
        match self {
            Self::Id(id) => format!("id:{id}"),
            Self::Address(ip) => format!("ip:{}", source_text(*ip)),
        }
    }
}

/// Who takes key requests. Must neither wait nor allocate for requests that it does not want: strangers cause them.
pub trait KeyRequests: Send + Sync {
    /// A message that came from there could not be read for want of this key.
    fn ask(&self, request: KeyRequest<'_>, origin: &Origin);
}

/// A message that is dropped. Over TCP its connection is closed too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'p> {
    /// Why.
    pub cause: Cause,
    /// What is asked of the source of keys.
    pub key_request: Option<KeyRequest<'p>>,
}

/// Why a message is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It begins with `!` and no id follows.
    Malformed,
    /// Nobody has the id.
    UnknownId,
    /// The agent of that id may not talk from there.
    WrongSource,
    /// No id, and nobody is registered for the address.
    UnknownAddress,
    /// Sealed with another key.
    WrongKey,
    /// Sealed with the right key, or with none, and not right.
    Corrupt(CorruptKind),
    /// The same counters as before, or a smaller local one.
    Replay,
    /// A smaller global counter.
    OlderGlobal,
    /// The agent is connected elsewhere.
    KeyInUse,
    /// `<crypto_accept>` says no.
    Cipher,
}

impl Cause {
    /// The number in stock logs, where it has one.
    pub fn log_number(self) -> Option<u16> {
        match self {
            Self::Malformed => Some(1403),
            Self::UnknownId | Self::WrongSource => Some(1408),
            Self::UnknownAddress => Some(1213),
            Self::WrongKey | Self::OlderGlobal => Some(1404),
            Self::Corrupt(kind) => kind.log_number(),
            Self::Replay => Some(1407),
            Self::KeyInUse | Self::Cipher => None,
        }
    }

    /// The word in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownId => "unknown id",
            Self::WrongSource => "id may not come from there",
            Self::UnknownAddress => "unknown address",
            Self::WrongKey => "wrong key",
            Self::Corrupt(_) => "corrupt",
            Self::Replay => "counters used before",
            Self::OlderGlobal => "counters older than the last",
            Self::KeyInUse => "agent is connected elsewhere",
            Self::Cipher => "cipher not accepted",
        }
    }

    /// What it is counted as.
    pub fn tally(self) -> Tally {
        match self {
            Self::Malformed => Tally::RefusedMalformed,
            Self::UnknownId => Tally::RefusedUnknownId,
            Self::WrongSource => Tally::RefusedSource,
            Self::UnknownAddress => Tally::RefusedAddress,
            Self::WrongKey => Tally::RefusedKey,
            Self::Corrupt(_) => Tally::RefusedCorrupt,
            Self::Replay | Self::OlderGlobal => Tally::RefusedReplay,
            Self::KeyInUse => Tally::RefusedConflict,
            Self::Cipher => Tally::RefusedCipher,
        }
    }
}

impl<'p> Refusal<'p> {
    fn silent(cause: Cause) -> Self {
        Self {
            cause,
            key_request: None,
        }
    }

    fn asking(cause: Cause, key_request: KeyRequest<'p>) -> Self {
        Self {
            cause,
            key_request: Some(key_request),
        }
    }
}

/// Finds the agent that a message says it is from.
pub fn identify<'t, 'p>(table: &'t KeyTable, source: IpAddr, packet: &'p [u8]) -> Result<Sender<'t, 'p>, Refusal<'p>> {
    if envelope::is_ping(packet) {
        return Ok(Sender::Ping);
    }
    let envelope = envelope::split(packet).map_err(|error| match error {
        // An id so long that it is nobody's: no need to ask around.
        EnvelopeError::IdTooLong => Refusal::silent(Cause::UnknownId),
        _ => Refusal::silent(Cause::Malformed),
    })?;
    let Some(id) = envelope.id else {
        let named = KeyRequest::Address(source);
        let slot = table
            .by_host(source)
            .ok_or(Refusal::asking(Cause::UnknownAddress, named))?;
        return Ok(Sender::Agent {
            slot,
            named,
            sealed: envelope.sealed,
        });
    };
    let named = KeyRequest::Id(id);
    let slot = table.by_id(id).ok_or(Refusal::asking(Cause::UnknownId, named))?;
    if !slot.address.matches(source) {
        return Err(Refusal::asking(Cause::WrongSource, named));
    }
    Ok(Sender::Agent {
        slot,
        named,
        sealed: envelope.sealed,
    })
}

/// The same for a connection whose speaker is registered still: most of what comes over it is that agent's.
pub fn identify_again<'t, 'p>(speaker: &'t Arc<AgentSlot>, source: IpAddr, packet: &'p [u8]) -> Option<Sender<'t, 'p>> {
    let envelope = envelope::split(packet).ok()?;
    let id = envelope.id.filter(|id| *id == speaker.id.as_str())?;
    speaker.address.matches(source).then_some(Sender::Agent {
        slot: speaker,
        named: KeyRequest::Id(id),
        sealed: envelope.sealed,
    })
}

/// Who speaks for an agent, seen from a connection or datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Nobody else over TCP.
    Free,
    /// This connection may take over, once it has proved the key; that one is closed then.
    Overtakes(ConnectionId),
    /// Another connection: this one is refused.
    Taken,
}

/// Whether another TCP connection speaks for the agent.
pub fn ownership(slot: &AgentSlot, origin: &Origin, now: Millis, rules: &Rules) -> Ownership {
    let Some(owner) = slot.owner() else {
        return Ownership::Free;
    };
    if origin.connection() == Some(owner) {
        return Ownership::Free;
    }
    let silent_for = now.since(slot.heard());
    match (rules.key_conflict, rules.overtake_after) {
        (KeyConflict::Newest, _) => Ownership::Overtakes(owner),
        (KeyConflict::First, Some(time)) if silent_for > time => Ownership::Overtakes(owner),
        (KeyConflict::First, _) => Ownership::Taken,
    }
}

/// Why a message that does not open is dropped. While another connection owns the agent that is the reason, whatever
/// else is wrong.
pub fn refusal_of<'p>(error: OpenError, named: KeyRequest<'p>, ownership: Ownership) -> Refusal<'p> {
    match (ownership, error) {
        (Ownership::Taken, _) => Refusal::silent(Cause::KeyInUse),
        (_, OpenError::WrongKey) => Refusal::asking(Cause::WrongKey, named),
        (_, OpenError::Corrupt(kind)) => Refusal::silent(Cause::Corrupt(kind)),
        (_, _) => Refusal::silent(Cause::Malformed),
    }
}

/// The last checks, on a message that has proved its key. Its counters are recorded when it passes; `stored` gives
/// those kept on disk, and is asked once for each agent whose counters are checked.
pub fn admit<'p>(
    slot: &AgentSlot,
    (form, counter): (CryptoForm, Counter),
    named: KeyRequest<'p>,
    ownership: Ownership,
    rules: &Rules,
    stored: impl FnOnce(&AgentSlot) -> Option<Counter>,
) -> Result<(), Refusal<'p>> {
    if ownership == Ownership::Taken {
        return Err(Refusal::silent(Cause::KeyInUse));
    }
    let accepted = match rules.crypto_accept {
        CryptoAccept::Both => true,
        CryptoAccept::Aes => form != CryptoForm::Blowfish,
        CryptoAccept::Blowfish => form == CryptoForm::Blowfish,
    };
    if !accepted {
        return Err(Refusal::silent(Cause::Cipher));
    }
    if !rules.verify.applies(slot, form) {
        slot.record(counter);
        return Ok(());
    }
    if slot.must_load_received()
        && let Some(stored) = stored(slot)
    {
        slot.record_if_newer(stored);
    }
    match counter::verify(slot.record_if_newer(counter), counter) {
        counter::Verdict::Fresh => Ok(()),
        counter::Verdict::Replay => Err(Refusal::silent(Cause::Replay)),
        counter::Verdict::OlderGlobal => Err(Refusal::asking(Cause::OlderGlobal, named)),
    }
}
