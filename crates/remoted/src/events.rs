//! The events that remoted makes, as natsd takes them. The two oldest bodies are frozen, key order and number types
//! included; what is new goes into headers or bodies of its own.

use muster_proto::{
    agent::{AgentStatus, Reason},
    event::{Event, Kind},
};
use serde::Serialize;

use crate::roster::{agent::Agent, guard::Mass};

/// What became of a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepaliveEvent {
    /// Ours went out.
    Sent,
    /// Ours could not be sent.
    Failed,
    /// The agent's came in.
    Received,
}

impl KeepaliveEvent {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "keepalive_sent",
            Self::Failed => "keepalive_failed",
            Self::Received => "keepalive_received",
        }
    }
}

#[derive(Serialize)]
struct KeepaliveBody<'a> {
    event: KeepaliveFields<'a>,
}

#[derive(Serialize)]
struct KeepaliveFields<'a> {
    agent_id: &'a str,
    agent_name: &'a str,
    ip_address: &'a str,
    timestamp: u64,
    event_type: &'a str,
    manager_node: &'a str,
    interval: u64,
}

#[derive(Serialize)]
struct StatusChangeBody<'a> {
    status_change: StatusChangeFields<'a>,
}

#[derive(Serialize)]
struct StatusChangeFields<'a> {
    agent_id: &'a str,
    agent_name: &'a str,
    previous_status: u8,
    current_status: u8,
    ip_address: &'a str,
    timestamp: u64,
    reason: &'a str,
    missed_keepalives: u32,
    alert_level: u8,
}

#[derive(Serialize)]
struct ConnectionBody<'a> {
    connection: ConnectionFields<'a>,
}

#[derive(Serialize)]
struct ConnectionFields<'a> {
    agent_id: &'a str,
    agent_name: &'a str,
    ip_address: &'a str,
    timestamp: u64,
    state: &'a str,
    reason: &'a str,
    manager_node: &'a str,
    alert_level: u8,
}

#[derive(Serialize)]
struct HealthBody<'a> {
    health: MassFields<'a>,
}

#[derive(Serialize)]
struct MassFields<'a> {
    manager_node: &'a str,
    timestamp: u64,
    reason: &'a str,
    count: usize,
    active_before: usize,
    network: Option<&'a str>,
    network_count: usize,
    confirmed: bool,
    alert_level: u8,
}

/// A change of status, or a notice that repeats one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusChange {
    pub(crate) from: AgentStatus,
    pub(crate) to: AgentStatus,
    pub(crate) reason: Reason,
    pub(crate) missed: u32,
    pub(crate) level: u8,
    /// How often the agent came and went lately, if that is too often.
    pub(crate) flapping: Option<usize>,
    pub(crate) at_ms: u64,
}

pub(crate) fn status_change(agent: &Agent, change: &StatusChange) -> Event {
    let body = StatusChangeBody {
        status_change: StatusChangeFields {
            agent_id: agent.slot.id.as_str(),
            agent_name: &agent.slot.name,
            previous_status: change.from.code(),
            current_status: change.to.code(),
            ip_address: &agent.address(),
            timestamp: change.at_ms / 1000,
            reason: change.reason.as_str(),
            missed_keepalives: change.missed,
            alert_level: change.level,
        },
    };
    let mut headers = vec![("Muster-Status".to_owned(), format!("{}>{}", change.from, change.to))];
    headers.extend(change.flapping.map(|times| ("Muster-Flapping".to_owned(), times.to_string())));
    Event { headers, ..event(Kind::StatusChange, agent, change.at_ms, change.level, &body) }
}

pub(crate) fn keepalive(agent: &Agent, what: KeepaliveEvent, at_ms: u64, interval_s: u64, node: &str) -> Event {
    let body = KeepaliveBody {
        event: KeepaliveFields {
            agent_id: agent.slot.id.as_str(),
            agent_name: &agent.slot.name,
            ip_address: &agent.address(),
            timestamp: at_ms / 1000,
            event_type: what.as_str(),
            manager_node: node,
            interval: interval_s,
        },
    };
    event(Kind::Keepalive, agent, at_ms, 0, &body)
}

pub(crate) fn connection_lost(agent: &Agent, at_ms: u64, level: u8, node: &str) -> Event {
    let body = ConnectionBody {
        connection: ConnectionFields {
            agent_id: agent.slot.id.as_str(),
            agent_name: &agent.slot.name,
            ip_address: &agent.address(),
            timestamp: at_ms / 1000,
            state: "lost",
            reason: Reason::ConnectionLost.as_str(),
            manager_node: node,
            alert_level: level,
        },
    };
    event(Kind::Connection, agent, at_ms, level, &body)
}

pub(crate) fn mass_expiry(mass: &Mass, at_ms: u64, level: u8, node: &str) -> Event {
    let body = HealthBody {
        health: MassFields {
            manager_node: node,
            timestamp: at_ms / 1000,
            reason: Reason::MassExpiry.as_str(),
            count: mass.count,
            active_before: mass.active_before,
            network: mass.network.as_ref().map(|(network, _)| network.as_str()),
            network_count: mass.network.as_ref().map_or(0, |(_, count)| *count),
            confirmed: mass.confirmed,
            alert_level: level,
        },
    };
    Event {
        kind: Kind::Health,
        subject_key: String::new(),
        created_ms: at_ms,
        alert_level: level,
        body: json(&body),
        headers: Vec::new(),
    }
}

fn event(kind: Kind, agent: &Agent, created_ms: u64, alert_level: u8, body: &impl Serialize) -> Event {
    Event {
        kind,
        subject_key: agent.slot.id.as_str().to_owned(),
        created_ms,
        alert_level,
        body: json(body),
        headers: Vec::new(),
    }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("bodies have text keys and nothing that can fail to serialise")
}
