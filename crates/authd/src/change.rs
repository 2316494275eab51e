//! What happened to an agent, and what the rest of the world is told of it.

use std::net::IpAddr;

use muster_proto::{
    agent::AgentId,
    event::{Event, Kind},
    keys::{address::source_text, file::KeyEntry},
};
use serde::Serialize;

use crate::registry::{Ask, Method};

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
    /// Where it asked from, or else the address that it is registered for.
    pub address: String,
    /// Unix seconds of its registration.
    pub registered_at: i64,
    /// Its groups.
    pub groups: Vec<String>,
    /// How it came.
    pub method: Method,
    /// Whose place it took.
    pub replaced: Option<AgentId>,
}

impl Agent {
    /// One that was just granted a key.
    pub fn granted(entry: &KeyEntry, ask: &Ask, replaced: Option<AgentId>, now: i64) -> Self {
        Self {
            id: entry.id.clone(),
            name: entry.name.clone(),
            address: ask.source.map_or_else(|| entry.address.text().to_owned(), source_text),
            registered_at: now,
            groups: ask.groups.clone(),
            method: ask.method,
            replaced,
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
            replaced: None,
        }
    }
}

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
    pub name: String,
    /// Where it was asked from.
    pub source: Option<IpAddr>,
    /// Who stands in the way.
    pub in_the_way: Option<AgentId>,
    /// How it was asked.
    pub method: Method,
}

/// Makes events; knows this manager's name.
#[derive(Clone, Debug)]
pub struct EventMaker {
    /// The manager's name in events.
    pub node: String,
}

/// The body of every enrollment event. Its key order is frozen.
#[derive(Serialize)]
struct Body<'a> {
    enrollment: Enrollment<'a>,
}

#[derive(Serialize)]
struct Enrollment<'a> {
    agent_id: &'a str,
    agent_name: &'a str,
    ip_address: &'a str,
    timestamp: u64,
    action: &'a str,
    reason: Option<&'a str>,
    replaced_agent_id: Option<&'a str>,
    method: &'a str,
    groups: &'a [String],
    manager_node: &'a str,
}

impl EventMaker {
    /// The event of a change at `now_ms` (Unix milliseconds).
    pub fn of_change(&self, change: &Change, now_ms: u64) -> Event {
        let (kind, agent, action, reason) = match change {
            Change::Enrolled(agent) => (Kind::Enrolled, agent, "enrolled", None),
            Change::KeyRotated(agent) => (Kind::KeyRotated, agent, "key_rotated", None),
            Change::Removed { agent, reason } => (Kind::Removed, agent, "removed", Some(reason.as_str())),
        };
        let enrollment = Enrollment {
            agent_id: agent.id.as_str(),
            agent_name: &agent.name,
            ip_address: &agent.address,
            timestamp: now_ms / 1000,
            action,
            reason,
            replaced_agent_id: agent.replaced.as_ref().map(AgentId::as_str),
            method: agent.method.as_str(),
            groups: &agent.groups,
            manager_node: &self.node,
        };
        event(kind, agent.id.as_str(), LEVEL_LOW, &enrollment_body(enrollment), now_ms)
    }

    /// The event of a refusal at `now_ms` (Unix milliseconds).
    pub fn of_rejection(&self, rejected: &Rejected, now_ms: u64) -> Event {
        let address = rejected.source.map(source_text).unwrap_or_default();
        let enrollment = Enrollment {
            agent_id: rejected.in_the_way.as_ref().map_or("", AgentId::as_str),
            agent_name: &rejected.name,
            ip_address: &address,
            timestamp: now_ms / 1000,
            action: "rejected",
            reason: Some(rejected.reason.as_str()),
            replaced_agent_id: None,
            method: rejected.method.as_str(),
            groups: &[],
            manager_node: &self.node,
        };
        event(
            Kind::EnrollmentRejected,
            "",
            rejected.reason.alert_level(),
            &enrollment_body(enrollment),
            now_ms,
        )
    }
}

fn enrollment_body(enrollment: Enrollment<'_>) -> Vec<u8> {
    serde_json::to_vec(&Body { enrollment }).unwrap_or_default()
}

fn event(kind: Kind, subject_key: &str, alert_level: u8, body: &[u8], created_ms: u64) -> Event {
    Event {
        kind,
        subject_key: subject_key.to_owned(),
        created_ms,
        alert_level,
        body: body.to_vec(),
        headers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            replaced: Some(AgentId::new("001")),
        }
    }

    #[test]
    fn an_enrollment_has_the_frozen_body() {
        let event = maker().of_change(&Change::Enrolled(agent()), 1_716_897_300_123);
        assert_eq!(
            String::from_utf8_lossy(&event.body),
            "{\"enrollment\":{\"agent_id\":\"002\",\"agent_name\":\"web-01\",\"ip_address\":\"10.0.0.5\",\
             \"timestamp\":1716897300,\"action\":\"enrolled\",\"reason\":null,\"replaced_agent_id\":\"001\",\
             \"method\":\"remote\",\"groups\":[\"default\",\"web\"],\"manager_node\":\"mgr-a\"}}"
        );
        assert_eq!(
            (event.kind, event.subject_key.as_str(), event.alert_level),
            (Kind::Enrolled, "002", 3)
        );
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
            name: String::new(),
            source: Some("::ffff:10.0.0.9".parse().expect("an address")),
            in_the_way: None,
            method: Method::Remote,
        };
        let event = maker().of_rejection(&rejected, 5000);
        assert_eq!(
            (event.kind, event.subject_key.as_str(), event.alert_level),
            (Kind::EnrollmentRejected, "", 5)
        );
        assert!(String::from_utf8_lossy(&event.body).starts_with(
            "{\"enrollment\":{\"agent_id\":\"\",\"agent_name\":\"\",\"ip_address\":\"10.0.0.9\",\"timestamp\":5,\
             \"action\":\"rejected\",\"reason\":\"bad_password\""
        ));
    }
}
