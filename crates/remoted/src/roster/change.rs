//! The one place where a status changes: agent, slot, event, row and wheel together.

use muster_proto::{
    agent::{AgentStatus, Reason},
    event::HIGH_ALERT_THRESHOLD,
};

use super::{
    Actions, Roster, Times,
    agent::Flapping,
    level::{CRITICAL, Change, level},
};
use crate::{
    events::{self, StatusChange},
    monitor::Absence,
    slot::Millis,
};

/// A change of a status, or a notice that leaves it as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    /// When.
    pub(super) at: Millis,
    /// The status from now on.
    pub(super) to: AgentStatus,
    /// Why.
    pub(super) reason: Reason,
    /// It is one of very many at once.
    pub(super) mass: bool,
}

impl Move {
    pub(super) fn to(to: AgentStatus, reason: Reason, at: Millis) -> Self {
        Self {
            at,
            to,
            reason,
            mass: false,
        }
    }
}

impl Roster {
    pub(super) fn change(&mut self, place: u32, now: Times, change: Move, out: &mut Actions) {
        let Move { at, to, reason, mass } = change;
        let goes = to == AgentStatus::Disconnected
            && matches!(
                reason,
                Reason::KeepaliveTimeout | Reason::ManagerRestart | Reason::AgentStopped
            );
        let reason = match self.table.get(place) {
            Some(agent) if goes && self.is_expected(agent) => Reason::Maintenance,
            _ => reason,
        };
        let Some(agent) = self.table.get_mut(place) else { return };
        let (from, at_ms) = (agent.status, now.wall_of(at));
        if to != from {
            agent.since = now.mono;
            agent.since_ms = at_ms;
        }
        agent.status = to;
        agent.reason = Some(reason);
        agent.escalations = 0;
        agent.slot.set_status(to);
        let mut flapping = None;
        if to != AgentStatus::Pending {
            if to != agent.settled && agent.settled != AgentStatus::NeverConnected {
                flapping = agent.moved(at_ms);
            }
            agent.settled = to;
        }
        match to {
            AgentStatus::Active => {
                agent.missed = 0;
                agent.floor = at;
                if from != AgentStatus::Active {
                    agent.schedule.begin(now.mono, self.settings.policy.interval);
                }
            }
            AgentStatus::Disconnected => agent.schedule.rhythm.interrupt(),
            AgentStatus::Pending => agent.missed = 0,
            AgentStatus::NeverConnected => {}
        }
        match (to, reason) {
            (AgentStatus::Disconnected, Reason::KeepaliveTimeout | Reason::ManagerRestart | Reason::StuckPending) => {
                self.monitor
                    .gone(&agent.slot.id, at, Absence::Silent, self.settings.monitor);
            }
            _ => self.monitor.back(&agent.slot.id),
        }
        let critical_agent = agent.inventory.is_critical();
        agent.level = level(&Change {
            from,
            to,
            reason,
            critical_agent,
            mass,
            escalations: 0,
        });
        if agent.level >= HIGH_ALERT_THRESHOLD {
            // Also when it does not flap yet: the first alert of a flapping agent is the one before it did. What is
            // critical is always one: else whoever makes an agent flap first could hide it.
            let alert = agent.may_alert(at_ms) || agent.level >= CRITICAL;
            flapping = flapping.map(|flapping| Flapping { alert, ..flapping });
        }
        let change = StatusChange {
            from,
            to,
            reason,
            missed: agent.missed,
            level: agent.level,
            flapping,
            at_ms,
        };
        out.events.push(events::status_change(agent, &change));
        tracing::info!(agent_id = %agent.slot.id, %from, %to, %reason, "agent's status changed");
        self.counters.status_changes_total.increment();
        self.active += usize::from(to == AgentStatus::Active);
        self.active -= usize::from(from == AgentStatus::Active);
        if !std::mem::replace(&mut agent.changed, true) {
            self.changed.push(place);
        }
        self.arm(place);
    }

    pub(super) fn status(&self, place: u32) -> AgentStatus {
        self.table
            .get(place)
            .map_or(AgentStatus::NeverConnected, |agent| agent.status)
    }

    pub(super) fn mark_dirty(&mut self, place: u32) {
        if let Some(agent) = self.table.get_mut(place).filter(|agent| !agent.dirty) {
            agent.dirty = true;
            self.dirty.push(place);
        }
    }
}
