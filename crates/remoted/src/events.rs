//! The events that remoted makes, as natsd takes them: agents and what happened to them, put into the bodies of
//! [`muster_proto::event::body`].

use std::net::SocketAddr;

use muster_proto::{
    agent::{AgentStatus, Reason},
    event::{
        Event, HIGH_ALERT_THRESHOLD, Kind,
        body::{self, KeepaliveType},
    },
};
use serde::Serialize;

use crate::{
    edge::talkers::Overload,
    roster::{
        agent::{Agent, Flapping},
        conflict::Conflict,
        guard::Mass,
        level,
    },
    slot::{Ending, Millis, plain_ip},
    syslog::watch::Change,
};

/// A change of status, or a notice that repeats one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusChange {
    pub(crate) from: AgentStatus,
    pub(crate) to: AgentStatus,
    pub(crate) reason: Reason,
    pub(crate) missed: u32,
    pub(crate) level: u8,
    pub(crate) flapping: Option<Flapping>,
    pub(crate) at_ms: u64,
}

pub(crate) fn status_change(agent: &Agent, change: &StatusChange) -> Event {
    let mut event = body::StatusChange {
        agent_id: &agent.slot.id,
        agent_name: &agent.slot.name,
        previous_status: change.from,
        current_status: change.to,
        ip_address: &agent.address(),
        timestamp: change.at_ms / 1000,
        reason: change.reason,
        missed_keepalives: change.missed,
        alert_level: change.level,
    }
    .into_event(change.at_ms);
    if let Some(flapping) = change.flapping {
        event
            .headers
            .push(("Muster-Flapping".to_owned(), flapping.times.to_string()));
        if !flapping.alert {
            // The body keeps its level; the one beside it decides about the copy on the subject of alerts.
            event.alert_level = event.alert_level.min(HIGH_ALERT_THRESHOLD - 1);
        }
    }
    event
}

pub(crate) fn keepalive(agent: &Agent, what: KeepaliveType, at_ms: u64, interval_s: u64, node: &str) -> Event {
    body::Keepalive {
        agent_id: &agent.slot.id,
        agent_name: &agent.slot.name,
        ip_address: &agent.address(),
        timestamp: at_ms / 1000,
        event_type: what,
        manager_node: node,
        interval: interval_s,
    }
    .into_event(at_ms)
}

pub(crate) fn connection_lost(agent: &Agent, ending: Ending, at_ms: u64, level: u8, node: &str) -> Event {
    body::Connection {
        agent_id: &agent.slot.id,
        agent_name: &agent.slot.name,
        ip_address: &agent.address(),
        timestamp: at_ms / 1000,
        state: "lost",
        reason: Reason::ConnectionLost,
        detail: Some(ending.as_str()),
        manager_node: node,
        alert_level: level,
    }
    .into_event(at_ms)
}

/// What is said of two who use one key: as of a lost connection, with both addresses.
#[derive(Serialize)]
struct ConflictBody<'a> {
    agent_id: &'a str,
    agent_name: &'a str,
    /// The one whose connection the agent's was.
    ip_address: String,
    timestamp: u64,
    state: &'a str,
    reason: Reason,
    /// The other one.
    other_address: String,
    /// Which of them the agent is now: `first`, `newest`, or `both` in turns.
    kept: &'a str,
    manager_node: &'a str,
    alert_level: u8,
}

/// As addresses are written everywhere else: IPv4 as IPv4, also where the socket is one of IPv6.
fn plain(at: SocketAddr) -> String {
    SocketAddr::new(plain_ip(at.ip()), at.port()).to_string()
}

pub(crate) fn key_conflict(agent: &Agent, conflict: &Conflict, at_ms: u64, node: &str) -> Event {
    let body = ConflictBody {
        agent_id: agent.slot.id.as_str(),
        agent_name: &agent.slot.name,
        ip_address: plain(conflict.holder),
        timestamp: at_ms / 1000,
        state: "conflict",
        reason: Reason::KeyConflict,
        other_address: plain(conflict.other),
        kept: conflict.kept.as_str(),
        manager_node: node,
        alert_level: level::CRITICAL,
    };
    body::manager_event(
        Kind::Connection,
        agent.slot.id.as_str(),
        at_ms,
        level::CRITICAL,
        body::wrapped("connection", &body),
    )
}

/// What is said of too many events, on the subject of the manager's health.
#[derive(Serialize)]
struct OverloadBody<'a> {
    manager_node: &'a str,
    timestamp: u64,
    reason: &'a str,
    /// Times that a connection was not read.
    pauses: u64,
    /// Events that were dropped.
    dropped: u64,
    /// Who sends most.
    top_talkers: Vec<TalkerBody<'a>>,
    alert_level: u8,
}

#[derive(Serialize)]
struct TalkerBody<'a> {
    agent_id: &'a str,
    agent_name: &'a str,
    events_per_second: u64,
    bytes_per_second: u64,
    dropped: u64,
}

pub(crate) fn overload(overload: &Overload, at_ms: u64, node: &str) -> Event {
    let talkers = overload.talkers.iter().map(|talker| TalkerBody {
        agent_id: talker.id.as_str(),
        agent_name: &talker.name,
        events_per_second: talker.events,
        bytes_per_second: talker.bytes,
        dropped: talker.dropped,
    });
    let level = if overload.dropped > 0 {
        level::HIGH
    } else {
        level::MEDIUM
    };
    let body = OverloadBody {
        manager_node: node,
        timestamp: at_ms / 1000,
        reason: "overload",
        pauses: overload.pauses,
        dropped: overload.dropped,
        top_talkers: talkers.collect(),
        alert_level: level,
    };
    body::manager_event(Kind::Health, "", at_ms, level, body::wrapped("health", &body))
}

/// The summary of a mass expiry, on the subject of the manager's health.
#[derive(Serialize)]
struct MassBody<'a> {
    manager_node: &'a str,
    timestamp: u64,
    reason: Reason,
    /// Agents that timed out.
    count: usize,
    /// Of how many that were active.
    active_before: usize,
    /// The network that they share, if they do.
    network: Option<&'a str>,
    /// How many of them are in it.
    network_count: usize,
    /// The group that most of them are in, if at least half are in one.
    group: Option<&'a str>,
    /// How many of them are in it.
    group_count: usize,
    /// No more are to come.
    confirmed: bool,
    alert_level: u8,
}

pub(crate) fn mass_expiry(mass: &Mass, at_ms: u64, level: u8, node: &str) -> Event {
    let summary = MassBody {
        manager_node: node,
        timestamp: at_ms / 1000,
        reason: Reason::MassExpiry,
        count: mass.count,
        active_before: mass.active_before,
        network: mass.network.as_ref().map(|(network, _)| network.as_str()),
        network_count: mass.network.as_ref().map_or(0, |(_, count)| *count),
        group: mass.group.as_ref().map(|(group, _)| group.as_str()),
        group_count: mass.group.as_ref().map_or(0, |(_, count)| *count),
        confirmed: mass.confirmed,
        alert_level: level,
    };
    body::manager_event(Kind::Health, "", at_ms, level, body::wrapped("health", &summary))
}

/// What is said of a syslog sender that fell silent or is back, on the subject of the manager's health.
#[derive(Serialize)]
struct SyslogBody<'a> {
    manager_node: &'a str,
    timestamp: u64,
    /// `syslog_silent` or `syslog_back`.
    reason: &'a str,
    sender: String,
    /// Unix seconds of its last line before; absent when none came since we started.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_heard: Option<u64>,
    /// Seconds that it was silent.
    silent_for: u64,
    alert_level: u8,
}

pub(crate) fn syslog_sender(change: &Change, now: Millis, wall_ms: u64, node: &str) -> Event {
    let (reason, level) = if change.silent {
        ("syslog_silent", level::MEDIUM)
    } else {
        ("syslog_back", level::LOW)
    };
    let last_heard = change.last_heard.map(|at| {
        let ago_ms = u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        wall_ms.saturating_sub(ago_ms) / 1000
    });
    let body = SyslogBody {
        manager_node: node,
        timestamp: wall_ms / 1000,
        reason,
        sender: change.sender.to_string(),
        last_heard,
        silent_for: change.silence.as_secs(),
        alert_level: level,
    };
    body::manager_event(Kind::Health, "", wall_ms, level, body::wrapped("health", &body))
}
