//! What the roster knows of one agent.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use muster_proto::{
    agent::{AgentStatus, Reason},
    ipc::control::{AgentInfo, Liveness, OsInfo},
    transport::keepalive::{Family, Keepalive},
};

use super::{Times, seconds};
use crate::{
    schedule::{Limits, Policy, Rhythm, Schedule},
    slot::{AgentSlot, Millis, Protocol},
    store::{LivenessRow, Row},
};

/// So many comings and goings within [`FLAPPING_WINDOW_MS`], and the agent flaps.
const FLAPPING: usize = 4;
/// Fifteen minutes.
const FLAPPING_WINDOW_MS: u64 = 15 * 60 * 1000;
/// Comings and goings that are remembered, so that a wild agent costs no memory.
const MAX_MOVES: usize = 64;

/// One agent of the roster.
pub(crate) struct Agent {
    pub(crate) slot: Arc<AgentSlot>,
    pub(crate) status: AgentStatus,
    /// The status before it was pending, which is a passage only.
    pub(crate) settled: AgentStatus,
    pub(crate) reason: Option<Reason>,
    /// Unix milliseconds at which it got its status.
    pub(crate) since_ms: u64,
    /// When that was on our clock; when we started, for what was loaded.
    pub(crate) since: Millis,
    /// Unix milliseconds at which its key was first seen here.
    pub(crate) first_seen_ms: u64,
    /// Silence counts from here at the earliest: when we started, or when it became active.
    pub(crate) floor: Millis,
    /// Unix milliseconds at which it was heard by an earlier process; 0 = never.
    pub(crate) heard_before_ms: u64,
    /// Unix milliseconds of its last keepalive; 0 = never.
    pub(crate) keepalive_ms: u64,
    /// Unix milliseconds of our last keepalive to it; 0 = never.
    pub(crate) sent_ms: u64,
    /// Whole intervals missed when it was given up.
    pub(crate) missed: u32,
    /// The level of its last change, which escalation builds on.
    pub(crate) level: u8,
    /// How often its absence was said again.
    pub(crate) escalations: u8,
    pub(crate) schedule: Schedule,
    /// Keepalives sent, for publishing one in so many.
    pub(crate) sends: u32,
    /// When a keepalive of its own was last an event.
    pub(crate) told: Millis,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) protocol: Option<Protocol>,
    /// Its connection was lost, and that was said.
    pub(crate) lost: bool,
    /// The digest of the keepalive that the inventory was read from.
    pub(crate) digest: u64,
    pub(crate) inventory: Arc<Inventory>,
    /// Whether the store has this inventory.
    pub(crate) inventory_stored: bool,
    /// Whether it is in the list of those whose status the store does not have.
    pub(crate) changed: bool,
    /// Whether it is in the list of what else the store does not have.
    pub(crate) dirty: bool,
    moves: Option<Box<Moves>>,
}

/// The comings and goings of an agent that has any, in Unix milliseconds.
#[derive(Default)]
struct Moves {
    times: VecDeque<u64>,
    /// When its absence was last an alert.
    alerted_ms: Option<u64>,
}

/// An agent comes and goes too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flapping {
    /// How often within the window.
    pub(crate) times: usize,
    /// Whether this one may still be an alert.
    pub(crate) alert: bool,
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// `Wazuh v4.14.7`, `OSSEC HIDS v4.2.0`.
    pub version: Option<String>,
    /// Its operating system.
    pub os: Option<OsInfo>,
    /// `key:value` lines with their marks.
    pub labels: Vec<String>,
    /// MD5 of its `merged.mg`, or `x`.
    pub merged_sum: Option<String>,
    /// MD5 of its `agent.conf`.
    pub config_sum: Option<String>,
    /// The address that it reports.
    pub reported_ip: Option<String>,
    /// What it is to have, and whether it has it.
    pub shared: SharedState,
}

/// An agent's groups, and whether it has their files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedState {
    /// Its groups, in their order.
    pub groups: Vec<String>,
    /// Whether its merged file is the one that its groups have now; `None` before that was looked at.
    pub synced: Option<bool>,
}

impl SharedState {
    /// The word in lists and stock databases.
    pub fn word(&self) -> Option<&'static str> {
        self.synced.map(|synced| if synced { "synced" } else { "not synced" })
    }
}

impl Inventory {
    /// What a keepalive says. The version stays when it says none.
    fn of(keepalive: &Keepalive, before: &Self) -> Self {
        let said = keepalive.fields();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let os = OsInfo {
            name: owned(said.os_name),
            version: owned(said.os_version),
            major: owned(said.os_major),
            minor: owned(said.os_minor),
            build: owned(said.os_build),
            codename: owned(said.os_codename),
            platform: owned(said.os_platform),
            arch: owned(said.os_arch),
            uname: owned(said.os_uname),
        };
        Self {
            version: owned(said.version).or_else(|| before.version.clone()),
            os: (os != OsInfo::default()).then_some(os),
            labels: said.labels.iter().map(|label| (*label).to_owned()).collect(),
            merged_sum: owned(said.merged_sum),
            config_sum: owned(said.config_sum),
            reported_ip: owned(said.agent_ip),
            shared: before.shared.clone(),
        }
    }

    /// Whether it is labelled as one whose absence is critical. Labels of its groups are among its own: agents read both
    /// from their configuration and report them alike.
    pub fn is_critical(&self) -> bool {
        self.labels.iter().any(|line| {
            let label = line.trim_start_matches(['#', '!']);
            let (key, value) = label.split_once(':').unwrap_or((label, ""));
            key.trim_matches('"') == "criticality" && value.trim_matches('"').trim() == "critical"
        })
    }
}

impl Agent {
    /// An agent whose key was never seen before.
    pub(crate) fn new(slot: Arc<AgentSlot>, now: Times) -> Self {
        Self {
            slot,
            status: AgentStatus::NeverConnected,
            settled: AgentStatus::NeverConnected,
            reason: None,
            since_ms: now.wall_ms,
            since: now.mono,
            first_seen_ms: now.wall_ms,
            floor: now.mono,
            heard_before_ms: 0,
            keepalive_ms: 0,
            sent_ms: 0,
            missed: 0,
            level: 0,
            escalations: 0,
            schedule: Schedule::default(),
            sends: 0,
            told: Millis::NEVER,
            peer: None,
            protocol: None,
            lost: false,
            digest: 0,
            inventory: Arc::default(),
            inventory_stored: false,
            changed: false,
            dirty: false,
            moves: None,
        }
    }

    /// An agent as an earlier process left it.
    pub(crate) fn restored(slot: Arc<AgentSlot>, row: Row, now: Times) -> Self {
        let Row {
            liveness, inventory, ..
        } = row;
        let mut agent = Self {
            status: liveness.status,
            settled: match liveness.status {
                AgentStatus::Pending => liveness.settled,
                settled => settled,
            },
            reason: liveness.reason,
            since_ms: liveness.since_ms,
            // As far back as our clock goes; it may have begun after that.
            since: Millis(
                now.mono
                    .0
                    .saturating_sub(now.wall_ms.saturating_sub(liveness.since_ms))
                    .max(1),
            ),
            first_seen_ms: liveness.first_seen_ms,
            heard_before_ms: liveness.heard_ms,
            keepalive_ms: liveness.keepalive_ms,
            sent_ms: liveness.sent_ms,
            missed: liveness.missed,
            level: liveness.level,
            escalations: liveness.escalations,
            peer: liveness.peer,
            protocol: liveness.protocol,
            inventory: inventory.unwrap_or_default(),
            inventory_stored: true,
            ..Self::new(slot, now)
        };
        // A process that has just started can say nothing of how long an agent stays pending.
        if agent.status == AgentStatus::Pending {
            agent.since = now.mono;
        }
        if liveness.period_ms > 0 {
            agent.schedule.rhythm = Rhythm::remembered(Duration::from_millis(liveness.period_ms));
        }
        agent.slot.set_form(liveness.form);
        if let Some(family) = family_of(agent.inventory.version.as_deref()) {
            agent.slot.set_family(family);
        }
        if let Some(version) = &agent.inventory.version {
            agent.slot.set_version(version);
        }
        agent
    }

    /// It named its version in its startup: `v4.14.7`, where keepalives say `Wazuh v4.14.7`.
    pub(crate) fn set_version(&mut self, version: &str) {
        let version = if version.starts_with("Wazuh") {
            version.to_owned()
        } else {
            format!("Wazuh {version}")
        };
        if self.inventory.version.as_ref() != Some(&version) {
            self.slot.set_family(Family::Wazuh);
            Arc::make_mut(&mut self.inventory).version = Some(version);
            self.inventory_stored = false;
        }
    }

    /// Its keepalive says something else than the one before.
    pub(crate) fn take_inventory(&mut self, keepalive: &Keepalive) {
        let inventory = Inventory::of(keepalive, &self.inventory);
        if inventory != *self.inventory {
            self.inventory = Arc::new(inventory);
            self.inventory_stored = false;
        }
    }

    /// What it is to have of its groups, and whether it has it. Says whether that is news.
    pub(crate) fn set_shared(&mut self, shared: SharedState) -> bool {
        let is_news = self.inventory.shared != shared;
        if is_news {
            Arc::make_mut(&mut self.inventory).shared = shared;
            self.inventory_stored = false;
        }
        is_news
    }

    /// When its silence began.
    pub(crate) fn heard(&self) -> Millis {
        self.slot.heard().max(self.floor)
    }

    /// Whether it was heard by this process, and so has a place that something can be sent to.
    pub(crate) fn is_reachable(&self) -> bool {
        !self.slot.heard().is_never()
    }

    pub(crate) fn limits(&self, policy: &Policy) -> Limits {
        policy.limits(self.schedule.period(self.slot.family(), policy.sending))
    }

    /// The address to name in events: where it talks from, else what it reports, else what it is registered with.
    pub(crate) fn address(&self) -> String {
        match (self.peer, &self.inventory.reported_ip) {
            (Some(peer), _) => peer.ip().to_canonical().to_string(),
            (None, Some(reported)) => reported.clone(),
            (None, None) => self.slot.address.text().to_owned(),
        }
    }

    /// It came or went. Says so when that was too often lately.
    pub(crate) fn moved(&mut self, wall_ms: u64) -> Option<Flapping> {
        let moves = self.moves.get_or_insert_default();
        moves.times.retain(|at| at.abs_diff(wall_ms) < FLAPPING_WINDOW_MS);
        if moves.times.len() == MAX_MOVES {
            moves.times.pop_front();
        }
        moves.times.push_back(wall_ms);
        (moves.times.len() >= FLAPPING).then_some(Flapping {
            times: moves.times.len(),
            alert: false,
        })
    }

    /// Its absence is to be an alert. Of a flapping agent's, only one in every window is.
    pub(crate) fn may_alert(&mut self, wall_ms: u64) -> bool {
        let moves = self.moves.get_or_insert_default();
        let may = moves
            .alerted_ms
            .is_none_or(|at| at.abs_diff(wall_ms) >= FLAPPING_WINDOW_MS);
        if may {
            moves.alerted_ms = Some(wall_ms);
        }
        may
    }

    /// When the last valid message came, in Unix milliseconds; 0 = never.
    pub(crate) fn heard_ms(&self, now: Times) -> u64 {
        match self.slot.heard() {
            Millis::NEVER => self.heard_before_ms,
            heard => now.wall_of(heard),
        }
    }

    /// Whole intervals missed: those that it was given up for, or those of its present silence.
    pub(crate) fn missed(&self, now: Times, limits: Limits) -> u32 {
        match self.status {
            AgentStatus::Active | AgentStatus::Pending => limits.missed(now.mono.since(self.heard())),
            AgentStatus::Disconnected | AgentStatus::NeverConnected => self.missed,
        }
    }

    pub(crate) fn liveness(&self) -> Liveness {
        let disconnected_at = match self.status {
            AgentStatus::Disconnected => self.since_ms / 1000,
            _ => 0,
        };
        Liveness {
            status: self.status,
            disconnected_at,
        }
    }

    pub(crate) fn info(&self, now: Times, policy: &Policy) -> AgentInfo {
        let limits = self.limits(policy);
        let heard_ms = self.heard_ms(now);
        AgentInfo {
            id: self.slot.id.clone(),
            name: self.slot.name.to_string(),
            ip: self.slot.address.text().to_owned(),
            status: self.status,
            reason: self.reason,
            since: seconds(self.since_ms),
            version: self.inventory.version.clone(),
            last_heard: seconds(heard_ms),
            last_keepalive: seconds(self.keepalive_ms),
            last_sent: seconds(self.sent_ms),
            missed: self.missed(now, limits),
            timeout: (self.status != AgentStatus::NeverConnected).then_some(limits.timeout.as_secs()),
            observed_interval: self
                .schedule
                .rhythm
                .period()
                .map(|period| period.as_millis().div_ceil(1000) as u64),
            peer: self
                .peer
                .map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()),
            protocol: self.protocol.map(|protocol| protocol.as_str().to_owned()),
            crypto: (heard_ms > 0).then(|| self.slot.form().as_str().to_owned()),
            reported_ip: self.inventory.reported_ip.clone(),
            os: self.inventory.os.clone(),
            merged_sum: self.inventory.merged_sum.clone(),
            config_sum: self.inventory.config_sum.clone(),
            labels: self.inventory.labels.clone(),
            groups: self.inventory.shared.groups.clone(),
            group_config_status: self.inventory.shared.word().map(str::to_owned),
        }
    }

    /// The row for the store; with the inventory only when the store does not have it.
    pub(crate) fn row(&mut self, now: Times) -> Row {
        let inventory = (!self.inventory_stored).then(|| Arc::clone(&self.inventory));
        self.inventory_stored = true;
        Row {
            id: self.slot.id.clone(),
            name: Arc::clone(&self.slot.name),
            inventory,
            liveness: LivenessRow {
                status: self.status,
                settled: self.settled,
                reason: self.reason,
                since_ms: self.since_ms,
                first_seen_ms: self.first_seen_ms,
                heard_ms: self.heard_ms(now),
                keepalive_ms: self.keepalive_ms,
                sent_ms: self.sent_ms,
                missed: self.missed,
                level: self.level,
                escalations: self.escalations,
                period_ms: self
                    .schedule
                    .rhythm
                    .period()
                    .map_or(0, |period| period.as_millis() as u64),
                peer: self.peer,
                protocol: self.protocol,
                form: self.slot.form(),
            },
        }
    }
}

/// Whose agent a version text is of.
fn family_of(version: Option<&str>) -> Option<Family> {
    match version? {
        version if version.starts_with("OSSEC") => Some(Family::Ossec),
        version if version.starts_with("Wazuh") => Some(Family::Wazuh),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_label_is_found_in_every_form() {
        for line in [
            "\"criticality\":critical",
            "#\"criticality\":critical",
            "!\"criticality\":\"critical\"",
        ] {
            assert!(
                Inventory {
                    labels: vec![line.to_owned()],
                    ..Inventory::default()
                }
                .is_critical(),
                "{line}"
            );
        }
        for line in ["\"criticality\":high", "\"my_criticality\":critical", "criticality"] {
            assert!(
                !Inventory {
                    labels: vec![line.to_owned()],
                    ..Inventory::default()
                }
                .is_critical(),
                "{line}"
            );
        }
    }

    #[test]
    fn family_is_told_by_the_version() {
        assert_eq!(family_of(Some("OSSEC HIDS v3.7.0")), Some(Family::Ossec));
        assert_eq!(family_of(Some("Wazuh v4.14.7")), Some(Family::Wazuh));
        assert_eq!(family_of(None), None);
    }
}
