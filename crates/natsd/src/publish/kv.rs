//! The latest state of each agent, mirrored into a key-value bucket: `agents`, keyed by agent id.
//!
//! State, not history: what changed many times before it could be written is written once, and that an agent was heard
//! again is written once in its interval. The keys are written with plain publishes, as the bucket is a stream like any
//! other. Times of the queue are milliseconds of a clock that never steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use muster_proto::{
    agent::AgentStatus,
    event::{Event, Kind, subject::token},
    ipc::control::{AgentInfo, Heard, OsInfo},
};
use serde::Serialize;
use serde_json::Value;

use super::answer::Answer;

/// Writes that may be under way.
const MAX_UNDER_WAY: usize = 64;
/// The same while events crowd the way: an entry that waits takes in what changes meanwhile, an event only waits.
const CROWDED: usize = 1;
/// Agents that are remembered. Beyond it the bucket lacks agents; a manager has no more.
const MAX_AGENTS: usize = 200_000;
/// That an agent was heard again is written at most this often, until remoted has said what its interval is.
const USUAL_INTERVAL_MS: u64 = 60 * 1000;
/// And at most this often whatever its interval is.
const SHORTEST_INTERVAL_MS: u64 = 1000;
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
    /// Unix seconds of the last valid message from the agent itself, whatever it was; 0 = never.
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

/// An agent, and when it is written.
#[derive(Debug)]
struct Row {
    entry: Entry,
    interval_ms: u64,
    /// When it was written last.
    written_ms: u64,
    /// When it is due, if nothing but the time it was heard at is newer than what was written.
    due_ms: Option<u64>,
}

impl Default for Row {
    fn default() -> Self {
        Self {
            entry: Entry::default(),
            interval_ms: USUAL_INTERVAL_MS,
            written_ms: 0,
            due_ms: None,
        }
    }
}

/// All agents, as far as events and remoted have told of them.
#[derive(Debug)]
pub(crate) struct Roll {
    node: String,
    epoch: u64,
    agents: BTreeMap<String, Row>,
    /// Must be written.
    dirty: BTreeSet<String>,
    /// Only the time they were heard at is newer: when each is due.
    aged: BTreeSet<(u64, String)>,
    /// Came to be active, or were heard and are not known: remoted is asked for what no event tells of them.
    curious: BTreeSet<String>,
}

impl Roll {
    pub(crate) fn new(node: &str, epoch: u64) -> Self {
        Self {
            node: node.to_owned(),
            epoch,
            agents: BTreeMap::new(),
            dirty: BTreeSet::new(),
            aged: BTreeSet::new(),
            curious: BTreeSet::new(),
        }
    }

    /// Takes an event in.
    pub(crate) fn note(&mut self, event: &Event, seq: u64) {
        let member = match event.kind {
            Kind::StatusChange => "status_change",
            Kind::Enrolled | Kind::Removed | Kind::Renamed | Kind::KeyRotated => "enrollment",
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
        let entry = &mut self.agents.entry(id.clone()).or_default().entry;
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
                // A notice repeats the status.
                let is_new = told["previous_status"] != told["current_status"];
                if is_new && status == Some(AgentStatus::Active) {
                    self.curious.insert(id.clone());
                    // Nothing but a message of its own makes an agent active.
                    entry.last_keepalive = time;
                }
                entry.status = status.map_or_else(String::new, |status| status.to_string());
                if is_new || entry.since == 0 {
                    entry.since = time;
                }
            }
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
        self.dirty.insert(id.clone());
    }

    /// Takes in when remoted heard an agent.
    pub(crate) fn hear(&mut self, heard: &Heard) {
        let id = heard.id.as_str();
        let Some(row) = self.agents.get_mut(id) else {
            if self.agents.len() < MAX_AGENTS {
                self.curious.insert(id.to_owned());
            }
            return;
        };
        row.interval_ms = heard.interval.saturating_mul(1000).max(SHORTEST_INTERVAL_MS);
        if row.entry.last_keepalive != heard.at {
            row.entry.last_keepalive = heard.at;
            self.age(id);
        }
    }

    /// Lets it be written when its interval has passed since it last was.
    fn age(&mut self, id: &str) {
        if let Some(row) = self.agents.get_mut(id)
            && row.due_ms.is_none()
        {
            let due = row.written_ms.saturating_add(row.interval_ms);
            row.due_ms = Some(due);
            self.aged.insert((due, id.to_owned()));
        }
    }

    /// Takes in what remoted knows of an agent: all of it, when we have just started, and what no event tells.
    pub(crate) fn fill(&mut self, info: &AgentInfo) {
        let id = info.id.as_str();
        if !self.agents.contains_key(id) && self.agents.len() >= MAX_AGENTS {
            return;
        }
        let entry = &mut self.agents.entry(id.to_owned()).or_default().entry;
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
        // An event that came meanwhile may know better.
        let since = info.since.unwrap_or(0);
        if entry.status.is_empty() || since >= entry.since {
            entry.status = info.status.to_string();
            entry.since = since;
        }
        let changed = *entry != before;
        let heard = info.last_heard.unwrap_or(0);
        let heard_again = std::mem::replace(&mut entry.last_keepalive, heard) != heard;
        if changed {
            self.dirty.insert(id.to_owned());
        } else if heard_again {
            self.age(id);
        }
    }

    /// Agents that came to be active since this was asked, at most so many.
    pub(crate) fn take_curious(&mut self, most: usize) -> Vec<String> {
        let taken = std::iter::from_fn(|| self.curious.pop_first());
        taken.take(most).collect()
    }

    /// Another manager tells of this agent.
    pub(crate) fn forget(&mut self, id: &str) {
        if let Some(due) = self.agents.remove(id).and_then(|row| row.due_ms) {
            self.aged.remove(&(due, id.to_owned()));
        }
        self.dirty.remove(id);
        self.curious.remove(id);
    }

    /// The bucket has lost what was in it.
    fn write_all_again(&mut self) {
        self.dirty = self.agents.keys().cloned().collect();
    }

    /// The next agent to write.
    fn next(&mut self, now_ms: u64) -> Option<(String, Vec<u8>)> {
        let id = match self.dirty.pop_first() {
            Some(id) => id,
            None => self.aged.first().filter(|(due, _)| *due <= now_ms)?.1.clone(),
        };
        let row = self.agents.get_mut(&id)?;
        row.written_ms = now_ms;
        let value = serde_json::to_vec(&row.entry).ok()?;
        if let Some(due) = row.due_ms.take() {
            self.aged.remove(&(due, id.clone()));
        }
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

    /// The next entry to write. `crowded` is whether many events are under way.
    pub(super) fn next(&mut self, roll: &mut Roll, crowded: bool, now_ms: u64) -> Option<Put> {
        while let Some(oldest) = self.under_way.first_entry()
            && now_ms.saturating_sub(oldest.get().1) > ANSWER_MS
        {
            let (id, _) = oldest.remove();
            roll.age(&id);
        }
        if self.under_way.len() >= if crowded { CROWDED } else { MAX_UNDER_WAY } {
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
        if let Some(id) = id {
            roll.age(&id);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        agent::{AgentId, Reason},
        event::body::{Enrollment, StatusChange},
    };

    use super::*;

    fn change(to: AgentStatus, timestamp: u64) -> Event {
        StatusChange {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            previous_status: match to {
                AgentStatus::Active => AgentStatus::Disconnected,
                _ => AgentStatus::Active,
            },
            current_status: to,
            ip_address: "192.0.2.1",
            timestamp,
            reason: Reason::KeepaliveTimeout,
            missed_keepalives: 3,
            alert_level: 8,
        }
        .into_event(timestamp * 1000)
    }

    fn heard(at: u64, interval: u64) -> Heard {
        Heard {
            id: AgentId::new("001"),
            at,
            interval,
        }
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
    fn notice_that_repeats_a_status_changes_neither_since_when_it_is_nor_when_the_agent_was_heard() {
        let mut roll = Roll::new("n", 1);
        roll.note(&change(AgentStatus::Active, 100), 1);
        let notice = StatusChange {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            previous_status: AgentStatus::Active,
            current_status: AgentStatus::Active,
            ip_address: "192.0.2.1",
            timestamp: 200,
            reason: Reason::KeyConflict,
            missed_keepalives: 0,
            alert_level: 12,
        };
        roll.note(&notice.into_event(200_000), 2);
        let value = written(&mut roll, 1);
        assert_eq!(
            (&value["since"], &value["last_keepalive"], &value["seq"]),
            (&100.into(), &100.into(), &2.into())
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
        let put = writer.next(&mut roll, false, 1).expect("a write");
        assert_eq!(put.subject, "$KV.agents.001");
        assert!(writer.settle(&mut roll, 1, &kept(1)));
        assert!(writer.next(&mut roll, false, 2).is_none());
        roll.note(&change(AgentStatus::Disconnected, 200), 7);
        writer.next(&mut roll, false, 3).expect("a write");
        assert!(writer.settle(&mut roll, 2, &kept(1)), "the same place again");
        writer.next(&mut roll, false, 4).expect("all again");
        assert!(!writer.settle(&mut roll, 3, &Answer::Nobody));
        writer
            .next(&mut roll, false, 4 + USUAL_INTERVAL_MS)
            .expect("again after a while");
        assert!(writer.settle(&mut roll, 4, &kept(2)));
        assert!(
            writer.next(&mut roll, false, 5 + USUAL_INTERVAL_MS).is_some(),
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
        let crowded = std::iter::from_fn(|| writer.next(&mut roll, true, 1)).count();
        assert_eq!(crowded, CROWDED);
        let sent = crowded + std::iter::from_fn(|| writer.next(&mut roll, false, 1)).count();
        assert_eq!(sent, MAX_UNDER_WAY);
        assert!(writer.next(&mut roll, false, 2 + ANSWER_MS).is_some());
    }

    #[test]
    fn several_changes_are_written_once_and_that_it_was_heard_once_in_its_interval() {
        let mut roll = Roll::new("n", 1);
        roll.note(&change(AgentStatus::Disconnected, 10), 1);
        roll.note(&change(AgentStatus::Active, 11), 2);
        let value = written(&mut roll, 1_000_000);
        assert_eq!(
            (&value["status"], &value["since"], &value["last_keepalive"]),
            (&"active".into(), &11.into(), &11.into())
        );
        assert_eq!(roll.next(1_000_000), None);
        for at in 20..30 {
            roll.hear(&heard(at, 30));
        }
        assert_eq!(roll.next(1_029_999), None);
        let value = written(&mut roll, 1_030_000);
        assert_eq!((&value["last_keepalive"], &value["seq"]), (&29.into(), &2.into()));
        roll.hear(&heard(29, 30));
        assert_eq!(roll.next(9_000_000), None, "nothing is new");
        roll.hear(&heard(30, 30));
        roll.note(&change(AgentStatus::Disconnected, 40), 3);
        assert_eq!(written(&mut roll, 9_000_001)["last_keepalive"], 30);
        assert_eq!(roll.next(u64::MAX), None, "it went with the change");
    }

    #[test]
    fn manager_that_sends_keepalives_says_nothing_of_when_the_agent_was_heard() {
        let mut roll = Roll::new("n", 1);
        let mut known = info(100, AgentStatus::Active);
        known.last_heard = Some(90);
        roll.fill(&known);
        assert_eq!(written(&mut roll, 1)["last_keepalive"], 90);
        let sent = Event {
            kind: Kind::Keepalive,
            ..change(AgentStatus::Active, 500)
        };
        roll.note(&sent, 7);
        assert_eq!(roll.next(u64::MAX), None);
        known.last_heard = Some(150);
        roll.fill(&known);
        assert_eq!(roll.next(2), None, "it is no hurry");
        assert_eq!(written(&mut roll, 1 + USUAL_INTERVAL_MS)["last_keepalive"], 150);
    }

    #[test]
    fn agent_that_is_heard_and_not_known_is_asked_for() {
        let mut roll = Roll::new("n", 1);
        roll.hear(&heard(20, 60));
        assert_eq!(roll.next(u64::MAX), None);
        assert_eq!(roll.take_curious(9), ["001"]);
    }
}
