//! What the manager tells the world: kinds of events, their subjects, and their JSON bodies.
//!
//! The bodies of [`Kind::Keepalive`] and [`Kind::StatusChange`] are frozen, key order and number types included:
//! consumers parse them. Whatever is new goes into headers or new subjects.
//!
//! * [`body`]: the JSON of each kind.
//! * [`subject`]: where each kind is published.
//! * [`header`]: what natsd writes on each message.
//! * [`key`]: the keys that sign.
//! * [`preamble`]: what its signature covers.

pub mod body;
pub mod header;
pub mod key;
pub mod preamble;
pub mod subject;

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
    /// The copy of a [`Kind::StatusChange`] of [`HIGH_ALERT_THRESHOLD`] or more, made by natsd. Key: agent id.
    DisconnectAlert,
    /// What came of an order that was given over NATS. Key: agent id.
    ControlResult,
}

/// From this alert level up, a status change is published a second time, on the subject of alerts.
pub const HIGH_ALERT_THRESHOLD: u8 = 8;
/// The highest alert level.
pub const MAX_ALERT_LEVEL: u8 = 15;

/// A stream of the broker. The order is that of the wire and of files: it grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Keepalives and the manager's health.
    Keepalive,
    /// What happens to agents and agentless hosts.
    State,
    /// Rule alerts.
    Alerts,
    /// osquery logs.
    Osquery,
    /// Every log line.
    Archives,
    /// What matters for security, and which events were lost.
    Audit,
}

impl Stream {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Keepalive,
        Self::State,
        Self::Alerts,
        Self::Osquery,
        Self::Archives,
        Self::Audit,
    ];

    /// The name on the broker.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keepalive => "MUSTER_KEEPALIVE",
            Self::State => "MUSTER_STATE",
            Self::Alerts => "MUSTER_ALERTS",
            Self::Osquery => "MUSTER_OSQUERY",
            Self::Archives => "MUSTER_ARCHIVES",
            Self::Audit => "MUSTER_AUDIT",
        }
    }

    /// The number in files.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The stream of a number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The subjects that it takes; no two streams share any. None of them may cover `<prefix>.control`: a stream would
    /// answer the requests there with its own acknowledgement.
    pub fn subjects(self, prefix: &str) -> Vec<String> {
        let patterns: &[&str] = match self {
            Self::Keepalive => &["manager.keepalive.*", "manager.health.*"],
            Self::State => &[
                "agent.*.>",
                "alerts.agent_disconnected",
                "manager.enrollment.>",
                "manager.keypoll.>",
                "agentless.>",
            ],
            Self::Alerts => &["alerts.rule.>"],
            Self::Osquery => &["osquery.>"],
            Self::Archives => &["archives.*"],
            Self::Audit => &["manager.audit.>", "manager.spool.>", "manager.keys.>"],
        };
        patterns.iter().map(|pattern| format!("{prefix}.{pattern}")).collect()
    }
}

/// How dear an event is when there is no room: the first is never dropped, the last first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Audit, changes of identities and keys, gaps. Never dropped.
    Audit,
    /// Status changes and connections. Thinned to the first and last change of each agent.
    Status,
    /// Alerts of a high level.
    HighAlert,
    /// Other alerts, agentless hosts, osquery, key polling, archives, results of orders. Refused enrollments too: strangers can cause any
    /// number of them.
    Alert,
    /// Keepalives and health. The newest of each agent is kept.
    Keepalive,
}

impl Class {
    /// All of them, dearest first, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Audit, Self::Status, Self::HighAlert, Self::Alert, Self::Keepalive];

    /// The number in files.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The class of a number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The word in events and statuses: `P0` to `P4`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "P0",
            Self::Status => "P1",
            Self::HighAlert => "P2",
            Self::Alert => "P3",
            Self::Keepalive => "P4",
        }
    }
}

/// Rule levels from here up are high.
const HIGH_RULE_LEVEL: u8 = 12;

impl Kind {
    /// All of them, in the order of their numbers on the wire and in files.
    pub const ALL: [Self; 19] = [
        Self::Keepalive,
        Self::StatusChange,
        Self::Connection,
        Self::Enrolled,
        Self::Removed,
        Self::KeyRotated,
        Self::Renamed,
        Self::EnrollmentRejected,
        Self::KeyPolling,
        Self::Health,
        Self::SpoolGap,
        Self::Audit,
        Self::KeyAnnouncement,
        Self::RuleAlert,
        Self::Archive,
        Self::Agentless,
        Self::Osquery,
        Self::DisconnectAlert,
        Self::ControlResult,
    ];

    /// The number on the wire and in files.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kind of a number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The stream that takes events of this kind.
    pub fn stream(self) -> Stream {
        match self {
            Self::Keepalive | Self::Health => Stream::Keepalive,
            Self::StatusChange
            | Self::Connection
            | Self::Enrolled
            | Self::Removed
            | Self::KeyRotated
            | Self::Renamed
            | Self::EnrollmentRejected
            | Self::KeyPolling
            | Self::Agentless
            | Self::DisconnectAlert
            | Self::ControlResult => Stream::State,
            Self::RuleAlert => Stream::Alerts,
            Self::Osquery => Stream::Osquery,
            Self::Archive => Stream::Archives,
            Self::SpoolGap | Self::Audit | Self::KeyAnnouncement => Stream::Audit,
        }
    }

    /// The stable dotted type in the header `Muster-Type`.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Keepalive => "manager.keepalive",
            Self::StatusChange => "agent.status_change",
            Self::Connection => "agent.connection",
            Self::Enrolled => "agent.enrolled",
            Self::Removed => "agent.removed",
            Self::KeyRotated => "agent.key_rotated",
            Self::Renamed => "agent.renamed",
            Self::EnrollmentRejected => "manager.enrollment_rejected",
            Self::KeyPolling => "manager.keypoll",
            Self::Health => "manager.health",
            Self::SpoolGap => "manager.spool",
            Self::Audit => "manager.audit",
            Self::KeyAnnouncement => "manager.keys",
            Self::RuleAlert => "alerts.rule",
            Self::Archive => "archives",
            Self::Agentless => "agentless",
            Self::Osquery => "osquery",
            Self::DisconnectAlert => "alerts.agent_disconnected",
            Self::ControlResult => "agent.control_result",
        }
    }
}

impl Event {
    /// How dear this event is when there is no room.
    pub fn class(&self) -> Class {
        match self.kind {
            Kind::Audit
            | Kind::KeyAnnouncement
            | Kind::SpoolGap
            | Kind::Enrolled
            | Kind::Removed
            | Kind::KeyRotated
            | Kind::Renamed => Class::Audit,
            Kind::StatusChange | Kind::Connection | Kind::DisconnectAlert => Class::Status,
            Kind::RuleAlert if self.alert_level >= HIGH_RULE_LEVEL => Class::HighAlert,
            // Strangers cause refusals, as many as they like: those must be droppable.
            Kind::RuleAlert
            | Kind::EnrollmentRejected
            | Kind::KeyPolling
            | Kind::Archive
            | Kind::Agentless
            | Kind::ControlResult
            | Kind::Osquery => Class::Alert,
            Kind::Keepalive | Kind::Health => Class::Keepalive,
        }
    }

    /// Where it is published: `prefix` is configured, `node` the name of this manager.
    pub fn subject(&self, prefix: &str, node: &str) -> String {
        subject::of(self, prefix, node)
    }

    /// Whether it says which trace it belongs to.
    pub fn is_traced(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == header::TRACE)
    }

    /// The copy on the subject of alerts, if this is a status change that matters enough.
    pub fn disconnect_alert(&self) -> Option<Self> {
        let high = self.kind == Kind::StatusChange && self.alert_level >= HIGH_ALERT_THRESHOLD;
        high.then(|| Self {
            kind: Kind::DisconnectAlert,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests;
