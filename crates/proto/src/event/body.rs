//! The JSON bodies of events. Compact, UTF-8, keys in the order of the fields here, no line end.
//!
//! [`Keepalive`] and [`StatusChange`] are frozen. The others may get fields at their end.

use serde::Serialize;

use super::{Event, Kind};
use crate::agent::{AgentId, AgentStatus, Reason};

/// The largest body that is published: a broker takes messages of 1 MiB, headers included.
pub const MAX_BODY_LEN: usize = 1_000_000;
/// The largest sequence number that every JSON reader keeps exactly.
pub const MAX_SEQUENCE: u64 = (1 << 53) - 1;
/// Room for most bodies: keepalives and changes of status with names of some length.
const USUAL_BODY_LEN: usize = 256;

/// Somebody should look.
const DEGRADED_LEVEL: u8 = 5;
/// Somebody must act: events are lost for good.
const GAP_LEVEL: u8 = 8;

/// What became of a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepaliveType {
    /// Ours went out.
    KeepaliveSent,
    /// Ours could not be sent.
    KeepaliveFailed,
    /// The agent's came in.
    KeepaliveReceived,
}

/// A keepalive. Frozen. natsd adds the `security` object with [`complete_keepalive`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Keepalive<'a> {
    /// Id.
    pub agent_id: &'a AgentId,
    /// Name.
    pub agent_name: &'a str,
    /// The address that the agent talks from, else the one it reports, else the registered one.
    pub ip_address: &'a str,
    /// Unix seconds.
    pub timestamp: u64,
    /// What became of it.
    pub event_type: KeepaliveType,
    /// The name of this manager.
    pub manager_node: &'a str,
    /// The scheduler's interval in seconds.
    pub interval: u64,
}

/// A change of status. Frozen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StatusChange<'a> {
    /// Id.
    pub agent_id: &'a AgentId,
    /// Name.
    pub agent_name: &'a str,
    /// The status before, as its number.
    #[serde(serialize_with = "status_code")]
    pub previous_status: AgentStatus,
    /// The status now, as its number.
    #[serde(serialize_with = "status_code")]
    pub current_status: AgentStatus,
    /// As in [`Keepalive`].
    pub ip_address: &'a str,
    /// Unix seconds.
    pub timestamp: u64,
    /// Why.
    pub reason: Reason,
    /// Whole intervals missed.
    pub missed_keepalives: u32,
    /// 0 to 15.
    pub alert_level: u8,
}

/// A connection was lost without a goodbye. Not a change of status.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Connection<'a> {
    /// Id.
    pub agent_id: &'a AgentId,
    /// Name.
    pub agent_name: &'a str,
    /// As in [`Keepalive`].
    pub ip_address: &'a str,
    /// Unix seconds.
    pub timestamp: u64,
    /// `lost`.
    pub state: &'a str,
    /// Why.
    pub reason: Reason,
    /// What ended it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    /// The name of this manager.
    pub manager_node: &'a str,
    /// 0 to 15.
    pub alert_level: u8,
}

/// An agent got a key, lost it, or changed it. The key itself is never in it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Enrollment<'a> {
    /// Id.
    pub agent_id: &'a AgentId,
    /// Name.
    pub agent_name: &'a str,
    /// The registered address.
    pub ip_address: &'a str,
    /// Unix seconds.
    pub timestamp: u64,
    /// `enrolled`, `removed`, `key_rotated` or `renamed`.
    pub action: &'a str,
    /// Why, as authd's log says it.
    pub reason: &'a str,
    /// The agent that gave way, if one did.
    pub replaced_agent_id: Option<&'a AgentId>,
    /// `tls`, `local`, `keypoll` …
    pub method: &'a str,
    /// Its groups.
    pub groups: &'a [String],
    /// The name of this manager.
    pub manager_node: &'a str,
}

/// Somebody was refused a key.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rejection<'a> {
    /// The name that was asked for, if one was.
    pub agent_name: Option<&'a str>,
    /// Where the request came from.
    pub ip_address: &'a str,
    /// Unix seconds.
    pub timestamp: u64,
    /// `bad_password`, `duplicate_name`, `duplicate_ip`, `limit`, `rate_limited`, `bad_cert` or `blocked_name`.
    pub reason: &'a str,
    /// The name of this manager.
    pub manager_node: &'a str,
}

/// A key was asked for at the external source.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KeyPolling<'a> {
    /// `id` or `ip`.
    pub lookup: &'a str,
    /// What was looked up.
    pub value: &'a str,
    /// How it went.
    pub outcome: &'a str,
    /// How long it took.
    pub duration_ms: u64,
    /// The agent that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<&'a AgentId>,
}

/// How natsd does, regularly.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Health<'a> {
    /// The name of this manager.
    pub manager_node: &'a str,
    /// Unix seconds.
    pub timestamp: u64,
    /// `periodic`; `probe` when somebody tests the way to the broker and back; `clock_step`.
    pub reason: &'a str,
    /// How often natsd has started.
    pub epoch: u64,
    /// The last sequence number given.
    pub seq: u64,
    /// Events taken a second since the last report.
    pub events_per_second: u64,
    /// Events that wait for the broker.
    pub spool_events: u64,
    /// Their bytes.
    pub spool_bytes: u64,
    /// The bound of that.
    pub spool_capacity: u64,
    /// Age of the oldest in seconds; 0 when none waits.
    pub spool_age: u64,
    /// Unix seconds of the broker's last acknowledgement; 0 = none yet.
    pub last_ack: u64,
    /// What is worse than it should be.
    pub degraded: &'a [String],
    /// How far the clock of this machine was stepped, in milliseconds, if that is why this is told; else 0.
    pub clock_step_ms: i64,
    /// How far the broker's clock is ahead of ours, in milliseconds; null where nobody knows.
    pub broker_skew_ms: Option<i64>,
    /// The queues of the daemons that answered when they were asked last, half a minute ago at most.
    pub queues: &'a [QueueFill],
}

/// How full a daemon's queue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueFill {
    /// Whose, by its short name.
    pub daemon: String,
    /// Its name, such as `analysis`.
    pub queue: String,
    /// What is in it, in `unit`s.
    pub used: u64,
    /// Its bound.
    pub capacity: u64,
    /// `events`, `bytes`, `messages` …
    pub unit: String,
    /// What could not get in and was dropped, since the daemon's start.
    pub dropped: u64,
}

/// The most runs of one [`SpoolGap`]. What was dropped in more of them is told in more records.
pub const MAX_RUNS: usize = 512;

/// Sequence numbers that nobody will ever see, and why.
///
/// All streams of a manager share one sequence, so most numbers between two events of a stream are other streams'. A
/// *run* `[from, to]` of a stream says that whatever this stream had under the numbers `from` to `to` is gone, all of it:
/// `to` is the number of the last event that was dropped, and `from` is one behind the event before the first, which is
/// that one's `Muster-Prev` plus one. So the runs of events that followed each other meet, whatever their classes and
/// reasons, and nothing that was not dropped is ever inside one.
///
/// A consumer that has seen the number `seen` of a stream, and next gets an event with the `Muster-Prev` `prev`, misses
/// something if `prev > seen`. That is declared exactly if every number of `seen + 1 ..= prev` is inside a run of the stream
/// or inside a record of the stream `-`; often it takes several records.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SpoolGap<'a> {
    /// The class that was dropped, `P1` to `P4`; `unknown` where that cannot be said.
    pub class: &'a str,
    /// The name of this manager.
    pub node: &'a str,
    /// The epoch of both ends.
    pub epoch: u64,
    /// The number of the first event that is missing.
    pub from_seq: u64,
    /// The number of the last one.
    pub to_seq: u64,
    /// How many events are missing: those of all runs, each counted in one record only. Zero where they are counted in a
    /// record of the stream `-`, which counts numbers.
    pub count: u64,
    /// Unix seconds at which the first of them happened; 0 when that is not known.
    pub first_ts: u64,
    /// Unix seconds at which the last of them happened; 0 when that is not known.
    pub last_ts: u64,
    /// `spool_full`, `thinned`, `too_old`, `too_large`, `damaged`, `restart` or `outbox_full`.
    pub reason: &'a str,
    /// The stream that misses them; `-` for numbers of which nobody knows whether they were used, and in which stream.
    pub stream: &'a str,
    /// At the beginning of an epoch: the last number that may have been used before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_last_seq: Option<u64>,
    /// The daemon that dropped them before they had numbers, which are 0 then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer: Option<&'a str>,
    /// The runs, in order, at most [`MAX_RUNS`]. Absent for the stream `-`, whose only run is `from_seq` to `to_seq`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub runs: &'a [(u64, u64)],
    /// Age of the oldest event that waits for the broker, in seconds; 0 when none waits.
    pub spool_age: u64,
}

/// A log line in the shape of archives.json.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Archive<'a> {
    /// ISO 8601 with milliseconds and offset, as archives.json has it.
    pub timestamp: &'a str,
    /// Who sent it.
    pub agent: ArchiveAgent<'a>,
    /// Who took it.
    pub manager: ArchiveManager<'a>,
    /// Where the agent read it.
    pub location: &'a str,
    /// The line.
    pub full_log: &'a str,
}

/// The agent of an [`Archive`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ArchiveAgent<'a> {
    /// Id.
    pub id: &'a str,
    /// Name.
    pub name: &'a str,
    /// The registered address; absent for `any`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<&'a str>,
}

/// The manager of an [`Archive`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ArchiveManager<'a> {
    /// The host's name.
    pub name: &'a str,
}

/// Wraps a body into its one outer member: `{"status_change":{…}}`.
pub fn wrapped(member: &str, body: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_BODY_LEN);
    bytes.extend_from_slice(b"{\"");
    bytes.extend_from_slice(member.as_bytes());
    bytes.extend_from_slice(b"\":");
    // Serialising structs with text keys into a growing buffer has no way to fail.
    let _ = serde_json::to_writer(&mut bytes, body);
    bytes.push(b'}');
    bytes
}

impl Keepalive<'_> {
    /// The event.
    pub fn into_event(self, created_ms: u64) -> Event {
        agent_event(Kind::Keepalive, self.agent_id, created_ms, 0, wrapped("event", &self))
    }
}

impl StatusChange<'_> {
    /// The event, with the header that has the statuses as words.
    pub fn into_event(self, created_ms: u64) -> Event {
        let words = format!("{}>{}", self.previous_status, self.current_status);
        Event {
            headers: vec![("Muster-Status".to_owned(), words)],
            ..agent_event(
                Kind::StatusChange,
                self.agent_id,
                created_ms,
                self.alert_level,
                wrapped("status_change", &self),
            )
        }
    }
}

impl Connection<'_> {
    /// The event.
    pub fn into_event(self, created_ms: u64) -> Event {
        agent_event(
            Kind::Connection,
            self.agent_id,
            created_ms,
            self.alert_level,
            wrapped("connection", &self),
        )
    }
}

impl Enrollment<'_> {
    /// The event: one of `Enrolled`, `Removed`, `KeyRotated` and `Renamed`.
    pub fn into_event(self, kind: Kind, created_ms: u64) -> Event {
        agent_event(kind, self.agent_id, created_ms, 0, wrapped("enrollment", &self))
    }
}

impl Rejection<'_> {
    /// The event.
    pub fn into_event(self, created_ms: u64, alert_level: u8) -> Event {
        manager_event(
            Kind::EnrollmentRejected,
            "",
            created_ms,
            alert_level,
            wrapped("enrollment", &self),
        )
    }
}

impl KeyPolling<'_> {
    /// The event; `stage` is `requested`, `resolved` or `failed`.
    pub fn into_event(self, stage: &str, created_ms: u64) -> Event {
        manager_event(Kind::KeyPolling, stage, created_ms, 0, wrapped("keypoll", &self))
    }
}

impl Health<'_> {
    /// The event.
    pub fn into_event(self, created_ms: u64) -> Event {
        let level = if self.degraded.is_empty() { 0 } else { DEGRADED_LEVEL };
        manager_event(Kind::Health, "", created_ms, level, wrapped("health", &self))
    }
}

impl SpoolGap<'_> {
    /// The event.
    pub fn into_event(self, created_ms: u64) -> Event {
        let level = if self.count == 0 || self.reason == "restart" {
            0
        } else {
            GAP_LEVEL
        };
        manager_event(Kind::SpoolGap, "", created_ms, level, wrapped("spool", &self))
    }
}

fn agent_event(kind: Kind, id: &AgentId, created_ms: u64, alert_level: u8, body: Vec<u8>) -> Event {
    manager_event(kind, id.as_str(), created_ms, alert_level, body)
}

/// An event whose body is made elsewhere.
pub fn manager_event(kind: Kind, key: &str, created_ms: u64, alert_level: u8, body: Vec<u8>) -> Event {
    Event {
        kind,
        subject_key: key.to_owned(),
        created_ms,
        alert_level,
        body,
        headers: Vec::new(),
    }
}

#[derive(Serialize)]
struct Security<'a> {
    source: &'a str,
    version: &'a str,
    sequence: u64,
}

/// Adds the `security` object behind the last member of a keepalive's body. A body that is no JSON object stays as
/// it is.
pub fn complete_keepalive(body: &[u8], source: &str, version: &str, sequence: u64) -> Vec<u8> {
    let Some(open) = body.strip_suffix(b"}") else {
        return body.to_vec();
    };
    let mut complete = open.to_vec();
    complete.extend_from_slice(b",\"security\":");
    // As in `wrapped`.
    let _ = serde_json::to_writer(
        &mut complete,
        &Security {
            source,
            version,
            sequence,
        },
    );
    complete.push(b'}');
    complete
}

fn status_code<S: serde::Serializer>(status: &AgentStatus, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(status.code())
}

#[cfg(test)]
mod tests;
