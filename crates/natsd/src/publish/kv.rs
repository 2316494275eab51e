//! The latest state of each agent, mirrored into a key-value bucket: `agents`, keyed by agent id.
//!
//! State, not history: what changed many times before it could be written is written once. The keys are written with
//! plain publishes, as the bucket is a stream like any other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use muster_proto::{
    agent::AgentStatus,
    event::{Event, Kind, subject::token},
    ipc::control::{AgentInfo, OsInfo},
};
use serde::Serialize;
use serde_json::Value;

use super::answer::Answer;

/// Writes that may be under way.
const MAX_UNDER_WAY: usize = 64;
/// Agents that are remembered. Beyond it the bucket lacks agents; a manager has no more.
const MAX_AGENTS: usize = 200_000;
/// The last keepalive alone is written at most this often.
const KEEPALIVE_INTERVAL_MS: u64 = 60 * 1000;
/// A write that is not answered by then counts as lost.
const ANSWER_MS: u64 = 10 * 1000;
/// The status of an agent that authd knows no more.
const REMOVED: &str = "removed";

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
    /// As the agent reports it: `Wazuh v4.14.7`.
    version: Option<String>,
    os: Option<OsInfo>,
    config_sum: Option<String>,
    merged_sum: Option<String>,
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
    /// Came to be active: remoted is asked for what no event tells of them.
    curious: BTreeSet<String>,
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
            curious: BTreeSet::new(),
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
        let time = told["timestamp"].as_u64().unwrap_or(0);
        let entry = self.agents.entry(id.clone()).or_default();
        // authd's events and remoted's come in no common order: an agent may have been heard before it is told to be
        // enrolled, and may lose its connection after it was removed.
        let late = match event.kind {
            Kind::Enrolled => !entry.status.is_empty() && entry.status != REMOVED,
            Kind::StatusChange => entry.status == REMOVED && time <= entry.since,
            _ => false,
        };
        if late {
            return;
        }
        let text = |name: &str| told[name].as_str().map(str::to_owned);
        entry.agent_id.clone_from(id);
        entry.manager_node.clone_from(&self.node);
        (entry.epoch, entry.seq) = (self.epoch, seq);
        entry.agent_name = text("agent_name").unwrap_or_else(|| entry.agent_name.clone());
        entry.ip_address = text("ip_address").unwrap_or_else(|| entry.ip_address.clone());
        match event.kind {
            Kind::StatusChange => {
                let status = told["current_status"].as_u64().and_then(|code| u8::try_from(code).ok());
                let status = status.and_then(AgentStatus::from_code);
                if status == Some(AgentStatus::Active) {
                    self.curious.insert(id.clone());
                }
                entry.status = status.map_or_else(String::new, |status| status.to_string());
                entry.since = time;
            }
            Kind::Keepalive => entry.last_keepalive = time,
            Kind::Removed => {
                REMOVED.clone_into(&mut entry.status);
                entry.since = time;
            }
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

    /// Takes in what remoted knows of an agent: all of it, when we have just started, and what no event tells.
    pub(crate) fn fill(&mut self, info: &AgentInfo) {
        let id = info.id.as_str();
        if !self.agents.contains_key(id) && self.agents.len() >= MAX_AGENTS {
            return;
        }
        let entry = self.agents.entry(id.to_owned()).or_default();
        let before = entry.clone();
        id.clone_into(&mut entry.agent_id);
        entry.agent_name.clone_from(&info.name);
        entry.manager_node.clone_from(&self.node);
        entry.epoch = self.epoch;
        let peer = info.peer.as_ref().and_then(|peer| peer.parse::<SocketAddr>().ok());
        let peer = peer.map(|peer| peer.ip().to_string());
        entry.ip_address = peer
            .or_else(|| info.reported_ip.clone())
            .unwrap_or_else(|| info.ip.clone());
        entry.groups.clone_from(&info.groups);
        entry.version.clone_from(&info.version);
        entry.os.clone_from(&info.os);
        entry.config_sum.clone_from(&info.config_sum);
        entry.merged_sum.clone_from(&info.merged_sum);
        entry.last_keepalive = entry.last_keepalive.max(info.last_keepalive.unwrap_or(0));
        // An event that came meanwhile may know better.
        let since = info.since.unwrap_or(0);
        if entry.status.is_empty() || since >= entry.since {
            entry.status = info.status.to_string();
            entry.since = since;
        }
        if *entry != before {
            self.dirty.insert(id.to_owned());
        }
    }

    /// Agents that came to be active since this was asked, at most so many.
    pub(crate) fn take_curious(&mut self, most: usize) -> Vec<String> {
        let taken = std::iter::from_fn(|| self.curious.pop_first());
        taken.take(most).collect()
    }

    /// The bucket has lost what was in it.
    fn write_all_again(&mut self) {
        self.dirty = self.agents.keys().cloned().collect();
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
    /// By number: whose entry, and since when.
    under_way: BTreeMap<u64, (String, u64)>,
    count: u64,
    /// The highest place in the bucket's stream that an entry got.
    highest: u64,
    /// There was no bucket.
    missing: bool,
}

impl Writer {
    pub(super) fn new(roll: &mut Roll, bucket: &str, inbox: &str) -> Self {
        // What was under way over the connection before may not have arrived.
        roll.write_all_again();
        Self {
            bucket: bucket.to_owned(),
            inbox: inbox.to_owned(),
            under_way: BTreeMap::new(),
            count: 0,
            highest: 0,
            missing: false,
        }
    }

    pub(super) fn next(&mut self, roll: &mut Roll, now_ms: u64) -> Option<Put> {
        while let Some(oldest) = self.under_way.first_entry()
            && now_ms.saturating_sub(oldest.get().1) > ANSWER_MS
        {
            let (id, _) = oldest.remove();
            roll.aged.insert(id);
        }
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
        self.under_way.insert(self.count, (id, now_ms));
        Some(put)
    }

    /// Whether the entry is in the bucket. A bucket that was made anew gets all entries again.
    pub(super) fn settle(&mut self, roll: &mut Roll, number: u64, answer: &Answer) -> bool {
        let id = self.under_way.remove(&number).map(|(id, _)| id);
        if let Answer::Kept { sequence, .. } = answer {
            // Answers to one connection's writes come in their order.
            let is_new = std::mem::replace(&mut self.missing, false) || *sequence <= self.highest;
            self.highest = *sequence;
            if is_new {
                roll.write_all_again();
            }
            return true;
        }
        self.missing |= *answer == Answer::Nobody;
        // It is tried again after a while.
        roll.aged.extend(id);
        false
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        agent::{AgentId, Reason},
        event::body::{Enrollment, Keepalive, KeepaliveType, StatusChange},
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

    fn enrollment(action: &'static str, timestamp: u64) -> Event {
        let kind = if action == "removed" {
            Kind::Removed
        } else {
            Kind::Enrolled
        };
        Enrollment {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            ip_address: "any",
            timestamp,
            action,
            reason: "",
            replaced_agent_id: None,
            method: "tls",
            groups: &[],
            manager_node: "n",
        }
        .into_event(kind, timestamp * 1000)
    }

    fn info(since: u64, status: AgentStatus) -> AgentInfo {
        let mut info: AgentInfo = serde_json::from_value(serde_json::json!({
            "id": "001", "name": "web-01", "ip": "any", "status": "active", "missed": 0, "labels": [], "groups": ["web"],
            "peer": "192.0.2.7:50000", "version": "Wazuh v4.14.7", "since": since, "os": {"name": "Debian GNU/Linux"},
        }))
        .expect("an agent");
        info.status = status;
        info
    }

    fn written(roll: &mut Roll, now_ms: u64) -> Value {
        let (_, value) = roll.next(now_ms).expect("one");
        serde_json::from_slice(&value).expect("JSON")
    }

    fn kept(sequence: u64) -> Answer {
        Answer::Kept {
            stream: "KV_agents".to_owned(),
            sequence,
        }
    }

    #[test]
    fn what_remoted_knows_is_written_once_and_does_not_undo_a_later_event() {
        let mut roll = Roll::new("n", 1);
        roll.fill(&info(100, AgentStatus::Active));
        let value = written(&mut roll, 1_000_000);
        assert_eq!(
            (&value["version"], &value["os"]["name"]),
            (&"Wazuh v4.14.7".into(), &"Debian GNU/Linux".into())
        );
        assert_eq!(
            (&value["ip_address"], &value["groups"][0]),
            (&"192.0.2.7".into(), &"web".into())
        );
        roll.fill(&info(100, AgentStatus::Active));
        assert_eq!(roll.next(2_000_000), None, "nothing is new");
        assert_eq!(roll.take_curious(9), [""; 0]);
        roll.note(&change(AgentStatus::Active, 150), 6);
        assert_eq!(roll.take_curious(9), ["001"]);
        roll.note(&change(AgentStatus::Disconnected, 200), 7);
        roll.fill(&info(100, AgentStatus::Active));
        let value = written(&mut roll, 3_000_000);
        assert_eq!(
            (&value["status"], &value["since"], &value["seq"]),
            (&"disconnected".into(), &200.into(), &7.into())
        );
    }

    #[test]
    fn enrollment_and_status_may_be_told_in_either_order() {
        let mut roll = Roll::new("n", 1);
        roll.note(&change(AgentStatus::Active, 100), 1);
        roll.note(&enrollment("enrolled", 100), 2);
        let value = written(&mut roll, 1_000_000);
        assert_eq!(
            (&value["status"], &value["ip_address"]),
            (&"active".into(), &"192.0.2.1".into())
        );
        roll.note(&enrollment("removed", 200), 3);
        roll.note(&change(AgentStatus::Disconnected, 200), 4);
        assert_eq!(written(&mut roll, 2_000_000)["status"], "removed");
        roll.note(&enrollment("enrolled", 300), 5);
        assert_eq!(written(&mut roll, 3_000_000)["status"], "never_connected");
        roll.note(&change(AgentStatus::Active, 300), 6);
        assert_eq!(written(&mut roll, 4_000_000)["status"], "active");
    }

    #[test]
    fn bucket_that_was_made_anew_gets_all_entries_again() {
        let mut roll = Roll::new("n", 1);
        roll.fill(&info(100, AgentStatus::Active));
        let mut writer = Writer::new(&mut roll, "agents", "_INBOX.x");
        let put = writer.next(&mut roll, 1).expect("a write");
        assert_eq!(put.subject, "$KV.agents.001");
        assert!(writer.settle(&mut roll, 1, &kept(1)));
        assert!(writer.next(&mut roll, 2).is_none());
        roll.note(&change(AgentStatus::Disconnected, 200), 7);
        writer.next(&mut roll, 3).expect("a write");
        assert!(writer.settle(&mut roll, 2, &kept(1)), "the same place again");
        writer.next(&mut roll, 4).expect("all again");
        assert!(!writer.settle(&mut roll, 3, &Answer::Nobody));
        writer
            .next(&mut roll, 4 + KEEPALIVE_INTERVAL_MS)
            .expect("again after a while");
        assert!(writer.settle(&mut roll, 4, &kept(2)));
        assert!(
            writer.next(&mut roll, 5 + KEEPALIVE_INTERVAL_MS).is_some(),
            "it had been missing"
        );
    }

    #[test]
    fn writes_that_nobody_answers_do_not_stop_the_others() {
        let mut roll = Roll::new("n", 1);
        let mut writer = Writer::new(&mut roll, "agents", "_INBOX.x");
        for number in 0..MAX_UNDER_WAY + 1 {
            let info = AgentInfo {
                id: AgentId::new(&number.to_string()),
                ..info(1, AgentStatus::Active)
            };
            roll.fill(&info);
        }
        let sent = std::iter::from_fn(|| writer.next(&mut roll, 1)).count();
        assert_eq!(sent, MAX_UNDER_WAY);
        assert!(writer.next(&mut roll, 2 + ANSWER_MS).is_some());
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
