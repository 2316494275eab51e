//! What workers and the key watcher tell, and what it means.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use muster_proto::{
    agent::{AgentStatus, Reason},
    transport::control::{REQUEST_ACK, RequestId, ToAgent},
};

use super::{
    Actions, Notice, Outgoing, Purpose, Roster, Times, agent::Agent, change::Move, conflict::Conflict, level,
    time::first_send,
};
use crate::{
    edge::talkers::Overload,
    events::{self, StatusChange},
    monitor::{self, Absence},
    slot::{AgentSlot, Ending, Millis, Protocol, Said, StartupOutcome},
};

impl Roster {
    pub(super) fn on_startup(
        &mut self,
        place: u32,
        now: Times,
        at: Millis,
        outcome: StartupOutcome,
        out: &mut Actions,
    ) {
        let Some(agent) = self.table.get_mut(place) else { return };
        agent.lost = false;
        agent.schedule.rhythm.interrupt();
        agent.schedule.forget_answers();
        match outcome {
            StartupOutcome::Accepted { version } => {
                if let Some(version) = version {
                    agent.set_version(&version);
                }
                self.mark_dirty(place);
                if self.status(place) != AgentStatus::Pending {
                    self.change(place, now, Move::to(AgentStatus::Pending, Reason::Startup, at), out);
                }
            }
            StartupOutcome::RefusedVersion { version } => {
                agent.set_version(&version);
                self.refuse(place, now, at, out);
            }
            StartupOutcome::NoVersion => self.refuse(place, now, at, out),
        }
    }

    /// It was refused, and is not there: whoever was active or pending is not any more. It comes back every few
    /// seconds, so that it is said once.
    pub(super) fn refuse(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        self.mark_dirty(place);
        let Some(agent) = self.table.get(place) else { return };
        if agent.reason == Some(Reason::VersionRefused) {
            return;
        }
        let to = match agent.status {
            AgentStatus::Active | AgentStatus::Pending => AgentStatus::Disconnected,
            away => away,
        };
        self.change(place, now, Move::to(to, Reason::VersionRefused, at), out);
    }

    pub(super) fn on_keepalive(&mut self, place: u32, now: Times, at: Millis, said: &Said, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        if agent.digest != said.digest() {
            agent.digest = said.digest();
            agent.take_inventory(said.keepalive());
        }
        agent.lost = false;
        agent.schedule.rhythm.keepalive(at);
        agent.keepalive_ms = now.wall_of(at);
        self.mark_dirty(place);
        self.tell_keepalive(place, now, at, out);
        match self.table.get(place).map(|agent| (agent.status, agent.settled)) {
            Some((AgentStatus::Active, _)) => self.arm_if_sooner(place),
            Some((AgentStatus::Disconnected, _) | (_, AgentStatus::Disconnected)) => {
                self.change(place, now, Move::to(AgentStatus::Active, Reason::Reconnected, at), out);
            }
            Some(_) => self.change(place, now, Move::to(AgentStatus::Active, Reason::Startup, at), out),
            None => {}
        }
    }

    pub(super) fn on_shutdown(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        agent.lost = false;
        let slot = Arc::clone(&agent.slot);
        let goes = self.status(place) != AgentStatus::Disconnected;
        let later = goes && self.settings.monitor.delays_goodbyes();
        if !later {
            out.notices.push(stopped(Arc::clone(&slot)));
        }
        if goes {
            self.change(
                place,
                now,
                Move::to(AgentStatus::Disconnected, Reason::AgentStopped, at),
                out,
            );
        }
        if later {
            self.monitor.gone(&slot.id, at, Absence::Stopped, self.settings.monitor);
        }
        self.mark_dirty(place);
    }

    /// An event or an answer of an agent that was away. One that is pending stays so until its keepalive.
    pub(super) fn on_heard_again(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        let reason = match self.status(place) {
            AgentStatus::Disconnected => Reason::Reconnected,
            AgentStatus::NeverConnected => Reason::Startup,
            AgentStatus::Active | AgentStatus::Pending => return,
        };
        self.change(place, now, Move::to(AgentStatus::Active, reason, at), out);
    }

    pub(super) fn on_connection_lost(&mut self, place: u32, now: Times, at: Millis, ending: Ending, out: &mut Actions) {
        self.counters.connections_lost_total.increment();
        match ending {
            Ending::Refused(_) | Ending::TooLong | Ending::Preface | Ending::Crowded => {
                self.counters.connections_refused_total.increment();
            }
            Ending::Network(_) => self.counters.connections_failed_total.increment(),
            Ending::ByPeer | Ending::Stopping => {}
        }
        let Some(agent) = self.table.get_mut(place) else { return };
        if agent.lost || !matches!(agent.status, AgentStatus::Active | AgentStatus::Pending) {
            return;
        }
        agent.lost = true;
        let expected = self.maintenance.covers(&agent.slot.id, &agent.inventory.shared.groups);
        let level = if expected { level::LOW } else { level::MEDIUM };
        out.events.push(events::connection_lost(
            agent,
            ending,
            now.wall_of(at),
            level,
            &self.settings.node,
        ));
    }

    /// Events had to wait, or were lost.
    pub(super) fn on_overload(&mut self, now: Times, at: Millis, overload: &Overload, out: &mut Actions) {
        let first = overload.talkers.first().map(ToString::to_string);
        tracing::warn!(
            pauses = overload.pauses,
            dropped = overload.dropped,
            top_talker = first.as_deref(),
            "the analysis daemon takes less than agents send: see top_talkers in the status"
        );
        out.events
            .push(events::overload(overload, now.wall_of(at), &self.settings.node));
    }

    /// Somebody else has the key.
    pub(super) fn on_key_conflict(
        &mut self,
        place: u32,
        now: Times,
        at: Millis,
        conflict: &Conflict,
        out: &mut Actions,
    ) {
        self.counters.key_conflicts_total.increment();
        let Some(agent) = self.table.get_mut(place) else { return };
        if !self
            .conflicts
            .is_news(&agent.slot.id, conflict, agent.slot.heard(), now.mono)
        {
            return;
        }
        tracing::warn!(
            agent_id = %agent.slot.id,
            holder = %conflict.holder,
            other = %conflict.other,
            kept = conflict.kept.as_str(),
            "agent key is used from two places: enroll one of them again under a name of its own"
        );
        let at_ms = now.wall_of(at);
        out.events
            .push(events::key_conflict(agent, conflict, at_ms, &self.settings.node));
        // What has both addresses is for those who follow connections; those who follow statuses and alerts hear of it too.
        let notice = StatusChange {
            from: agent.status,
            to: agent.status,
            reason: Reason::KeyConflict,
            missed: agent.missed,
            level: level::CRITICAL,
            flapping: None,
            at_ms,
        };
        out.events.push(events::status_change(agent, &notice));
    }

    pub(super) fn on_answer(&mut self, place: u32, counter: &str, body: &[u8], out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        let ours = RequestId::from_text(counter.as_bytes()).filter(|id| agent.schedule.answer(id.0));
        let Some(id) = ours else {
            self.counters.stray_answers_total.increment();
            return;
        };
        // Over UDP the first thing that comes back is that the request has come.
        if body == REQUEST_ACK {
            return;
        }
        self.counters.answers_total.increment();
        if agent.protocol == Some(Protocol::Udp) {
            out.sends.push(Outgoing {
                slot: Arc::clone(&agent.slot),
                payload: ToAgent::RequestAck(id).to_bytes().into(),
                purpose: Purpose::Courtesy,
            });
        }
        self.arm_if_sooner(place);
    }

    pub(super) fn on_keys(
        &mut self,
        now: Times,
        added: Vec<Arc<AgentSlot>>,
        changed: Vec<Arc<AgentSlot>>,
        removed: Vec<Arc<AgentSlot>>,
        out: &mut Actions,
    ) {
        for slot in removed {
            if let Some(place) = self.table.place(slot.id.as_str()) {
                self.remove(place, now, out);
            }
        }
        for slot in changed {
            match self.table.place(slot.id.as_str()) {
                Some(place) => self.replace(place, slot),
                None => self.add(slot, now),
            }
        }
        for slot in added {
            match self.table.place(slot.id.as_str()) {
                Some(place) => self.replace(place, slot),
                None => self.add(slot, now),
            }
        }
        if !self.is_empty() {
            for row in self.restored.leftovers() {
                tracing::info!(agent_id = %row.id, "agent was removed while we were away");
                self.gone.push(row.id);
            }
        }
    }

    /// Tells the analysis daemon of those that have been away for so long that it is to know.
    pub(super) fn tell_absences(&mut self, now: Times, out: &mut Actions) {
        for (id, absence) in self.monitor.take_due(now.mono) {
            let agent = self.table.place(id.as_str()).and_then(|place| self.table.get(place));
            if let Some(agent) = agent {
                out.notices.push(match absence {
                    Absence::Silent => Notice::of_monitor(&agent.slot, "disconnected"),
                    Absence::Stopped => stopped(Arc::clone(&agent.slot)),
                });
            }
        }
    }

    pub(super) fn add(&mut self, slot: Arc<AgentSlot>, now: Times) {
        let row = self.restored.claim(&slot);
        let is_new = row.is_none();
        let agent = match row {
            Some(row) => Agent::restored(slot, row, now),
            None => Agent::new(slot, now),
        };
        agent.slot.set_status(agent.status);
        // A line that an earlier process still owed. Whatever was due before we started, it has told.
        let absence = match agent.reason {
            Some(Reason::KeepaliveTimeout | Reason::ManagerRestart | Reason::StuckPending) => Some(Absence::Silent),
            Some(Reason::AgentStopped) => Some(Absence::Stopped),
            _ => None,
        };
        if let (AgentStatus::Disconnected, Some(absence), Some(after)) =
            (agent.status, absence, self.settings.monitor.alert_after)
            && agent.since + after > now.mono
        {
            self.monitor
                .gone(&agent.slot.id, agent.since, absence, self.settings.monitor);
        }
        self.active += usize::from(agent.status == AgentStatus::Active);
        let place = self.table.insert(agent);
        if let Some(agent) = self.table.get_mut(place) {
            agent.slot.set_place(place);
            agent
                .schedule
                .postpone(now.mono + first_send(place, self.settings.policy.interval));
        }
        if is_new {
            self.mark_dirty(place);
        }
        self.arm(place);
    }

    /// The same agent with another name, address or key.
    pub(super) fn replace(&mut self, place: u32, slot: Arc<AgentSlot>) {
        let Some(agent) = self.table.get_mut(place) else { return };
        agent.floor = agent.heard();
        slot.set_status(agent.status);
        slot.set_place(place);
        agent.slot = slot;
        self.mark_dirty(place);
        self.arm(place);
    }

    pub(super) fn remove(&mut self, place: u32, now: Times, out: &mut Actions) {
        if matches!(self.status(place), AgentStatus::Active | AgentStatus::Pending) {
            self.change(
                place,
                now,
                Move::to(AgentStatus::Disconnected, Reason::KeyRemoved, now.mono),
                out,
            );
        }
        self.wheel.cancel(place);
        if let Some(agent) = self.table.remove(place) {
            self.monitor.back(&agent.slot.id);
            let away = Duration::from_millis(now.wall_ms.saturating_sub(agent.since_ms));
            if agent.status == AgentStatus::Disconnected && monitor::was_stale(away, self.settings.monitor) {
                out.notices.push(Notice::of_monitor(&agent.slot, "removed"));
            }
            self.conflicts.forget(&agent.slot.id);
            self.gone.push(agent.slot.id.clone());
        }
    }

    /// The agent of a slot, if the slot is still the one in force.
    pub(super) fn find(&self, slot: &Arc<AgentSlot>) -> Option<u32> {
        let is_at = |place: &u32| {
            self.table
                .get(*place)
                .is_some_and(|agent| Arc::ptr_eq(&agent.slot, slot))
        };
        let found = Some(slot.place()).filter(is_at);
        if found.is_none() {
            self.counters.news_of_strangers_total.increment();
        }
        found
    }

    pub(super) fn met(&mut self, place: u32, peer: SocketAddr, protocol: Protocol) {
        if let Some(agent) = self.table.get_mut(place) {
            agent.peer = Some(peer);
            agent.protocol = Some(protocol);
        }
    }
}

/// What stock says of an agent that said goodbye.
fn stopped(slot: Arc<AgentSlot>) -> Notice {
    let text = format!("ossec: Agent stopped: '{}->{}'.", slot.name, slot.address.host_text());
    Notice {
        slot,
        location: "wazuh-remoted",
        text,
    }
}
