//! What happened to an agent, and what the rest of the world is told of it.

use std::net::IpAddr;

use muster_proto::{
    agent::AgentId,
    event::{Event, Kind, body},
    keys::{address::source_text, file::KeyEntry},
};

use crate::registry::{Ask, GivesWay, Method};

/// Ordinary life of a fleet.
const LEVEL_LOW: u8 = 3;
/// Somebody should look.
const LEVEL_MEDIUM: u8 = 5;

/// One thing that happened to one agent. Order matters: a replaced agent goes before its successor comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has a key now.
    Enrolled(Agent),
    /// It has another key, and perhaps another name, under the id of one that went.
    KeyRotated(Agent),
    /// It has another name and the same key.
    Renamed(Agent),
    /// Its key is gone.
    Removed {
        /// Who.
        agent: Agent,
        /// Why.
        reason: Removal,
    },
}

/// Why an agent's key is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A local program asked for it.
    Asked,
    /// Another agent took its place.
    Replaced,
    /// The answer with the key could not be delivered.
    NotDelivered,
    /// Its line was marked as removed in the file.
    File,
    /// It was disconnected for longer than agents may be.
    Stale,
}

impl Removal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "removed",
            Self::Replaced => "replaced",
            Self::NotDelivered => "not_delivered",
            Self::File => "removed_in_file",
            Self::Stale => "disconnected_too_long",
        }
    }
}

/// An agent as changes tell of it: without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// The address that it is registered for.
    pub address: String,
    /// Unix seconds of its registration.
    pub registered_at: i64,
    /// Its groups.
    pub groups: Vec<String>,
    /// How it came.
    pub method: Method,
    /// Why it could: `new`, or what it had in common with an agent that gave way.
    pub reason: &'static str,
    /// Whose place it took.
    pub replaced: Option<AgentId>,
}

impl Agent {
    /// One that was just granted a key, in the place of the first of these.
    pub fn granted(entry: &KeyEntry, ask: &Ask, gave_way: &[GivesWay], now: i64) -> Self {
        let first = gave_way.first();
        Self {
            groups: ask.groups.clone(),
            reason: first.map_or(NEW, |agent| agent.clash.as_str()),
            replaced: first.map(|agent| agent.id.clone()),
            ..Self::of_line(entry, ask.method, now)
        }
    }

    /// One of which only the key line is at hand.
    pub fn of_line(entry: &KeyEntry, method: Method, registered_at: i64) -> Self {
        Self {
            id: entry.id.clone(),
            name: entry.name.clone(),
            address: entry.address.text().to_owned(),
            registered_at,
            groups: Vec::new(),
            method,
            reason: if method == Method::File { CHANGED_IN_FILE } else { NEW },
            replaced: None,
        }
    }
}

/// Nobody had to give way.
const NEW: &str = "new";
/// Its line was not written by this daemon.
const CHANGED_IN_FILE: &str = "changed_in_file";

/// Why somebody got no key, as far as it is worth an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectedFor {
    /// No or a wrong password.
    BadPassword,
    /// The name belongs to an agent that stays.
    DuplicateName,
    /// The address belongs to an agent that stays.
    DuplicateIp,
    /// There may be no more agents.
    Limit,
    /// Too many connections.
    RateLimited,
    /// No certificate, one of an unknown CA, or one that does not name the source address.
    BadCert,
    /// The name is the manager's own.
    BlockedName,
}

impl RejectedFor {
    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadPassword => "bad_password",
            Self::DuplicateName => "duplicate_name",
            Self::DuplicateIp => "duplicate_ip",
            Self::Limit => "limit",
            Self::RateLimited => "rate_limited",
            Self::BadCert => "bad_cert",
            Self::BlockedName => "blocked_name",
        }
    }

    fn alert_level(self) -> u8 {
        match self {
            Self::BadPassword | Self::BadCert | Self::BlockedName => LEVEL_MEDIUM,
            _ => LEVEL_LOW,
        }
    }
}

/// A refusal to tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub reason: RejectedFor,
    /// The name that was asked for, if it came to that.
    pub name: Option<String>,
    /// Where it was asked from; `None` = on this machine.
    pub source: Option<IpAddr>,
}

/// Makes events; knows this manager's name.
#[derive(Clone, Debug)]
pub struct EventMaker {
    /// The manager's name in events.
    pub node: String,
}

impl EventMaker {
    /// The event of a change at `now_ms` (Unix milliseconds).
    pub fn of_change(&self, change: &Change, now_ms: u64) -> Event {
        let (kind, agent, action, reason) = match change {
            Change::Enrolled(agent) => (Kind::Enrolled, agent, "enrolled", agent.reason),
            Change::KeyRotated(agent) => (Kind::KeyRotated, agent, "key_rotated", agent.reason),
            Change::Renamed(agent) => (Kind::Renamed, agent, "renamed", agent.reason),
            Change::Removed { agent, reason } => (Kind::Removed, agent, "removed", reason.as_str()),
        };
        let body = body::Enrollment {
            agent_id: &agent.id,
            agent_name: &agent.name,
            ip_address: &agent.address,
            timestamp: now_ms / 1000,
            action,
            reason,
            replaced_agent_id: agent.replaced.as_ref(),
            method: agent.method.as_str(),
            groups: &agent.groups,
            manager_node: &self.node,
        };
        body.into_event(kind, now_ms)
    }

    /// The event of a refusal at `now_ms` (Unix milliseconds).
    pub fn of_rejection(&self, rejected: &Rejected, now_ms: u64) -> Event {
        let address = rejected.source.map(source_text);
        let body = body::Rejection {
            agent_name: rejected.name.as_deref(),
            ip_address: address.as_deref().unwrap_or(LOCAL),
            timestamp: now_ms / 1000,
            reason: rejected.reason.as_str(),
            manager_node: &self.node,
        };
        body.into_event(now_ms, rejected.reason.alert_level())
    }
}

/// What stands for an address when a local program asked.
const LOCAL: &str = "local";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Clash;

    fn maker() -> EventMaker {
        EventMaker {
            node: "mgr-a".to_owned(),
        }
    }

    fn agent() -> Agent {
        Agent {
            id: AgentId::new("002"),
            name: "web-01".to_owned(),
            address: "10.0.0.5".to_owned(),
            registered_at: 1_716_897_300,
            groups: vec!["default".to_owned(), "web".to_owned()],
            method: Method::Remote,
            reason: Clash::Name.as_str(),
            replaced: Some(AgentId::new("001")),
        }
    }

    #[test]
    fn an_enrollment_tells_everything_but_the_key() {
        let event = maker().of_change(&Change::Enrolled(agent()), 1_716_897_300_123);
        assert_eq!(
            String::from_utf8_lossy(&event.body),
            "{\"enrollment\":{\"agent_id\":\"002\",\"agent_name\":\"web-01\",\"ip_address\":\"10.0.0.5\",\
             \"timestamp\":1716897300,\"action\":\"enrolled\",\"reason\":\"duplicate_name\",\
             \"replaced_agent_id\":\"001\",\"method\":\"tls\",\"groups\":[\"default\",\"web\"],\
             \"manager_node\":\"mgr-a\"}}"
        );
        assert_eq!((event.kind, event.subject_key.as_str()), (Kind::Enrolled, "002"));
        assert_eq!(event.created_ms, 1_716_897_300_123);
    }

    #[test]
    fn a_removal_tells_its_reason() {
        let change = Change::Removed {
            agent: agent(),
            reason: Removal::Replaced,
        };
        let event = maker().of_change(&change, 0);
        assert_eq!(event.kind, Kind::Removed);
        assert!(String::from_utf8_lossy(&event.body).contains("\"action\":\"removed\",\"reason\":\"replaced\""));
    }

    #[test]
    fn a_refusal_tells_whom_where_and_why() {
        let rejected = Rejected {
            reason: RejectedFor::BadPassword,
            name: None,
            source: Some("::ffff:10.0.0.9".parse().expect("an address")),
        };
        let event = maker().of_rejection(&rejected, 5000);
        assert_eq!(
            (event.kind, event.subject_key.as_str(), event.alert_level),
            (Kind::EnrollmentRejected, "", 5)
        );
        assert_eq!(
            String::from_utf8_lossy(&event.body),
            "{\"enrollment\":{\"agent_name\":null,\"ip_address\":\"10.0.0.9\",\"timestamp\":5,\
             \"reason\":\"bad_password\",\"manager_node\":\"mgr-a\"}}"
        );
    }
}
