//! Who an agent is, how it is, and why that changed.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The id of an agent as its key line has it: text, compared byte for byte (`001` is not `1`).
///
/// Stock key stores keep ids that are no numbers, so this type does not ask for digits; the places that must
/// (the wire, enrollment, key polling) check with [`AgentId::is_numeric`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentId(Arc<str>);

impl AgentId {
    /// Takes the text as it is.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The id that a number is printed as: at least three digits.
    pub fn from_number(number: u32) -> Self {
        Self(format!("{number:03}").into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number that the text is, if it has 1 to 8 digits and nothing else.
    pub fn number(&self) -> Option<u32> {
        if self.is_numeric() { self.0.parse().ok() } else { None }
    }

    /// Whether the text is 1 to 8 decimal digits.
    pub fn is_numeric(&self) -> bool {
        (1..=8).contains(&self.0.len()) && self.0.bytes().all(|byte| byte.is_ascii_digit())
    }
}

impl Borrow<str> for AgentId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AgentId({})", self.0)
    }
}

/// Whether an agent is there. The numbers are those of the event bodies and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum AgentStatus {
    /// Heard within its time-out.
    Active = 0,
    /// Silent for longer than its time-out, or it said goodbye.
    Disconnected = 1,
    /// It said hello and has sent no keepalive yet.
    Pending = 2,
    /// It has a key and was never heard.
    NeverConnected = 3,
}

impl AgentStatus {
    /// The number used in event bodies.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The status of a number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Active,
            1 => Self::Disconnected,
            2 => Self::Pending,
            3 => Self::NeverConnected,
            _ => return None,
        })
    }

    /// The word used in lists, headers and stock databases.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disconnected => "disconnected",
            Self::Pending => "pending",
            Self::NeverConnected => "never_connected",
        }
    }
}

impl fmt::Display for AgentStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Why a status changed: the same words in events, logs, lists and the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It said hello.
    Startup,
    /// It was heard again.
    Reconnected,
    /// Nothing valid was heard within the time-out.
    KeepaliveTimeout,
    /// Its connection closed without a goodbye.
    ConnectionLost,
    /// It said goodbye.
    AgentStopped,
    /// Its key was removed.
    KeyRemoved,
    /// Its key was used from two places at once.
    KeyConflict,
    /// It was removed while active by somebody unknown.
    UnexpectedRemoval,
    /// It was not heard since the manager was restarted, and was given up before it had missed as many intervals as
    /// count: the restart may be all there is to it.
    ManagerRestart,
    /// It went away in a declared maintenance window.
    Maintenance,
    /// It was enrolled and never came.
    NeverConnected,
    /// It said hello and stayed pending.
    StuckPending,
    /// Its version is higher than the manager's, or it sent none.
    VersionRefused,
    /// So many agents went silent at once that the manager is the likely cause.
    MassExpiry,
    /// It went to another manager of the same fleet. In lists only: the other one tells of it.
    Moved,
}

impl Reason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Reconnected => "reconnected",
            Self::KeepaliveTimeout => "keepalive_timeout",
            Self::ConnectionLost => "connection_lost",
            Self::AgentStopped => "agent_stopped",
            Self::KeyRemoved => "key_removed",
            Self::KeyConflict => "key_conflict",
            Self::UnexpectedRemoval => "unexpected_removal",
            Self::ManagerRestart => "manager_restart",
            Self::Maintenance => "maintenance",
            Self::NeverConnected => "never_connected",
            Self::StuckPending => "stuck_pending",
            Self::VersionRefused => "version_refused",
            Self::MassExpiry => "mass_expiry",
            Self::Moved => "moved",
        }
    }

    /// The reason of a word, as a store gives it back.
    pub fn from_word(word: &str) -> Option<Self> {
        const ALL: [Reason; 15] = [
            Reason::Startup,
            Reason::Reconnected,
            Reason::KeepaliveTimeout,
            Reason::ConnectionLost,
            Reason::AgentStopped,
            Reason::KeyRemoved,
            Reason::KeyConflict,
            Reason::UnexpectedRemoval,
            Reason::ManagerRestart,
            Reason::Maintenance,
            Reason::NeverConnected,
            Reason::StuckPending,
            Reason::VersionRefused,
            Reason::MassExpiry,
            Reason::Moved,
        ];
        ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
