//! What the manager tells the world: kinds of events, their subjects, and their JSON bodies.
//!
//! The bodies of [`Kind::Keepalive`] and [`Kind::StatusChange`] are frozen, key order and number types included:
//! consumers parse them. Whatever is new goes into headers or new subjects.

use serde::{Deserialize, Serialize};

/// One event as its producer made it. natsd adds sequence, signature and delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What it tells of; decides subject, stream and quota.
    pub kind: Kind,
    /// The changing part of the subject: the agent's id for events of an agent, otherwise what [`Kind`] says.
    pub subject_key: String,
    /// Unix milliseconds at which it happened.
    pub created_ms: u64,
    /// How much it matters, 0 to 15, on the scale of rule levels.
    pub alert_level: u8,
    /// The JSON body, compact. natsd passes it on byte for byte, except that it completes a keepalive's body with
    /// the `security` object, whose sequence only natsd knows.
    pub body: Vec<u8>,
    /// Further headers, such as `Muster-Status: active>disconnected`.
    pub headers: Vec<(String, String)>,
}

/// What an event tells of. Grows at the end only: the place in the list is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A keepalive was sent, could not be sent, or was received. Key: agent id.
    Keepalive,
    /// An agent's status changed. Key: agent id.
    StatusChange,
    /// A connection was lost without a goodbye; the status has not changed. Key: agent id.
    Connection,
    /// An agent got a key. Key: agent id.
    Enrolled,
    /// An agent's key was removed. Key: agent id.
    Removed,
    /// An agent got another key under the same id. Key: agent id.
    KeyRotated,
    /// An agent got another name under the same id. Key: agent id.
    Renamed,
    /// Somebody was refused a key. Key: empty.
    EnrollmentRejected,
    /// A key was asked for at the external source. Key: `requested`, `resolved` or `failed`.
    KeyPolling,
    /// How the manager is. Key: empty.
    Health,
    /// Events were dropped, and which. Key: empty.
    SpoolGap,
    /// Somebody did something that matters for security. Key: empty.
    Audit,
    /// A signing key was made, rotated, retired or revoked. Key: empty.
    KeyAnnouncement,
    /// A rule fired. Key: agent id.
    RuleAlert,
    /// Every log line, for sites without an analysis daemon. Key: agent id.
    Archive,
    /// A host without an agent was looked at. Key: host, type and outcome, tokens joined by dots.
    Agentless,
    /// An osquery log. Key: agent id, log type and query, tokens joined by dots.
    Osquery,
}
