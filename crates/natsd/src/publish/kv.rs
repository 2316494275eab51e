//! The latest state of each agent, mirrored into a key-value bucket: `agents`, keyed by agent id.
//!
//! State, not history: what changed many times before it could be written is written once. The keys are written with
//! plain publishes, as the bucket is a stream like any other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use muster_proto::{
    agent::AgentStatus,
    event::{Event, Kind, subject::token},
};
use serde::Serialize;
use serde_json::Value;

/// Writes that may be under way.
const MAX_UNDER_WAY: usize = 64;
/// Agents that are remembered. Beyond it the bucket lacks agents; a manager has no more.
const MAX_AGENTS: usize = 200_000;
/// The last keepalive alone is written at most this often.
const KEEPALIVE_INTERVAL_MS: u64 = 60 * 1000;

/// What the bucket says of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    agent_id: String,
    agent_name: String,
    ip_address: String,
    status: String,
    /// Unix seconds.
    last_keepalive: u64,
    manager_node: String,
    epoch: u64,
    seq: u64,
    groups: Vec<String>,
    /// Unix seconds since when the status is what it is.
    since: u64,
}

/// All agents, as far as events have told of them.
#[derive(Debug)]
pub(crate) struct Roll {
    node: String,
    epoch: u64,
    agents: BTreeMap<String, Entry>,
    /// Must be written.
    dirty: BTreeSet<String>,
    /// When each was written.
    written_ms: HashMap<String, u64>,
    /// Only the last keepalive is newer.
    aged: BTreeSet<String>,
}

impl Roll {
    pub(crate) fn new(node: &str, epoch: u64) -> Self {
        Self {
            node: node.to_owned(),
            epoch,
            agents: BTreeMap::new(),
            dirty: BTreeSet::new(),
            written_ms: HashMap::new(),
            aged: BTreeSet::new(),
        }
    }

    /// Takes an event in.
    pub(crate) fn note(&mut self, event: &Event, seq: u64) {
        let (member, transition) = match event.kind {
            Kind::StatusChange => ("status_change", true),
            Kind::Enrolled | Kind::Removed | Kind::Renamed | Kind::KeyRotated => ("enrollment", true),
            Kind::Keepalive => ("event", false),
            _ => return,
        };
        let Ok(body) = serde_json::from_slice::<Value>(&event.body) else {
            return;
        };
        let id = &event.subject_key;
        if !self.agents.contains_key(id) && self.agents.len() >= MAX_AGENTS {
            return;
        }
        let told = &body[member];
        let entry = self.agents.entry(id.clone()).or_default();
        let text = |name: &str| told[name].as_str().map(str::to_owned);
        entry.agent_id.clone_from(id);
        entry.manager_node.clone_from(&self.node);
        (entry.epoch, entry.seq) = (self.epoch, seq);
        entry.agent_name = text("agent_name").unwrap_or_else(|| entry.agent_name.clone());
        entry.ip_address = text("ip_address").unwrap_or_else(|| entry.ip_address.clone());
        let time = told["timestamp"].as_u64().unwrap_or(0);
        match event.kind {
            Kind::StatusChange => {
                let status = told["current_status"].as_u64().and_then(|code| u8::try_from(code).ok());
                let status = status.and_then(AgentStatus::from_code);
                entry.status = status.map_or_else(String::new, |status| status.to_string());
                entry.since = time;
            }
            Kind::Keepalive => entry.last_keepalive = time,
            Kind::Removed => entry.status = "removed".to_owned(),
            _ => {
                let groups = told["groups"].as_array().into_iter().flatten();
                entry.groups = groups.filter_map(|group| group.as_str().map(str::to_owned)).collect();
                if event.kind == Kind::Enrolled {
                    entry.status = AgentStatus::NeverConnected.to_string();
                    entry.since = time;
                }
            }
        }
        if transition {
            self.dirty.insert(id.clone());
        } else {
            self.aged.insert(id.clone());
        }
    }

    /// The next agent to write.
    fn next(&mut self, now_ms: u64) -> Option<(String, Vec<u8>)> {
        let due = |id: &&String| {
            let written = self.written_ms.get(*id).copied().unwrap_or(0);
            now_ms.saturating_sub(written) >= KEEPALIVE_INTERVAL_MS
        };
        let id = match self.dirty.pop_first() {
            Some(id) => id,
            None => self.aged.iter().find(due)?.clone(),
        };
        self.aged.remove(&id);
        self.written_ms.insert(id.clone(), now_ms);
        let value = serde_json::to_vec(self.agents.get(&id)?).ok()?;
        Some((id, value))
    }
}

/// A write.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) subject: String,
    pub(super) reply: String,
    pub(super) value: Vec<u8>,
}

/// Writes the roll over one connection.
pub(super) struct Writer {
    bucket: String,
    inbox: String,
    under_way: HashMap<u64, String>,
    count: u64,
}

impl Writer {
    pub(super) fn new(roll: &mut Roll, bucket: &str, inbox: &str) -> Self {
        // What was under way over the connection before may not have arrived.
        roll.dirty = roll.agents.keys().cloned().collect();
        Self {
            bucket: bucket.to_owned(),
            inbox: inbox.to_owned(),
            under_way: HashMap::new(),
            count: 0,
        }
    }

    pub(super) fn next(&mut self, roll: &mut Roll, now_ms: u64) -> Option<Put> {
        if self.under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        let (id, value) = roll.next(now_ms)?;
        self.count += 1;
        let put = Put {
            subject: format!("$KV.{}.{}", self.bucket, token(&id).replace('~', "=")),
            reply: format!("{}.k.{}", self.inbox, self.count),
            value,
        };
        self.under_way.insert(self.count, id);
        Some(put)
    }

    pub(super) fn settle(&mut self, roll: &mut Roll, number: u64, kept: bool) {
        if let Some(id) = self.under_way.remove(&number)
            && !kept
        {
            // It is tried again after a while.
            roll.aged.insert(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        agent::{AgentId, Reason},
        event::body::{Keepalive, KeepaliveType, StatusChange},
    };

    use super::*;

    fn change(to: AgentStatus, timestamp: u64) -> Event {
        StatusChange {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            previous_status: AgentStatus::Active,
            current_status: to,
            ip_address: "192.0.2.1",
            timestamp,
            reason: Reason::KeepaliveTimeout,
            missed_keepalives: 3,
            alert_level: 8,
        }
        .into_event(timestamp * 1000)
    }

    fn keepalive(timestamp: u64) -> Event {
        Keepalive {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            ip_address: "192.0.2.1",
            timestamp,
            event_type: KeepaliveType::KeepaliveSent,
            manager_node: "n",
            interval: 60,
        }
        .into_event(timestamp * 1000)
    }

    #[test]
    fn several_changes_are_written_once_and_keepalives_once_a_minute() {
        let mut roll = Roll::new("n", 1);
        roll.note(&change(AgentStatus::Disconnected, 10), 1);
        roll.note(&change(AgentStatus::Active, 11), 2);
        let (id, value) = roll.next(1_000_000).expect("one");
        let value: Value = serde_json::from_slice(&value).expect("JSON");
        assert_eq!(
            (id.as_str(), &value["status"], &value["since"]),
            ("001", &"active".into(), &11.into())
        );
        assert_eq!(roll.next(1_000_000), None);
        roll.note(&keepalive(20), 3);
        assert_eq!(roll.next(1_000_001), None);
        let (_, value) = roll.next(1_000_000 + KEEPALIVE_INTERVAL_MS).expect("due");
        assert!(
            String::from_utf8(value)
                .expect("UTF-8")
                .contains("\"last_keepalive\":20")
        );
    }
}
