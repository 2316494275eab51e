//! What the passing of time brings: keepalives that are due, agents that have been silent for too long, absences that
//! are said again.

use std::{borrow::Cow, sync::Arc, time::Duration};

use muster_proto::{
    agent::{AgentStatus, Reason},
    transport::control::{ACK, ToAgent},
};

use super::{
    Actions, Outgoing, Purpose, Roster, TICK, Times, agent::Agent, change::Move, guard::Gone, guard::Mass, level,
};
use crate::{
    events::{self, StatusChange},
    schedule::{Probe, Sending},
    slot::Millis,
};

/// An agent that was enrolled and did not come within a day is worth a notice.
const NEVER_CONNECTED_AFTER: Duration = Duration::from_secs(24 * 3600);

impl Roster {
    pub(super) fn begin_round(&mut self, now: Times, out: &mut Actions) {
        self.round.due.clear();
        self.round.next = 0;
        self.wheel.advance(tick_of(now.mono), &mut self.round.due);
        let expiring: Vec<Gone> = self
            .round
            .due
            .iter()
            .filter_map(|place| self.table.get(*place))
            .filter(|agent| agent.status == AgentStatus::Active && self.is_silent(agent, now.mono))
            .filter(|agent| !self.is_expected(agent))
            .map(Gone::of)
            .collect();
        let mut said = Vec::new();
        self.round.mass = self.guard.expire(now.mono, self.active, &expiring, &mut said);
        for mass in &said {
            self.announce(mass, now, out);
        }
    }

    /// Looks at an agent that came up.
    pub(super) fn review(&mut self, place: u32, now: Times, mass: bool, out: &mut Actions) {
        let Some(agent) = self.table.get(place) else { return };
        match agent.status {
            AgentStatus::Active if self.is_silent(agent, now.mono) => self.expire(place, now, mass, out),
            AgentStatus::Active => {
                // Armed when it is known what became of the message.
                if self.send_if_due(place, now, out) {
                    return;
                }
            }
            AgentStatus::Pending if self.is_stuck(agent, now.mono) => self.give_up_pending(place, now, out),
            AgentStatus::Pending => {}
            AgentStatus::Disconnected => self.escalate(place, now, out),
            AgentStatus::NeverConnected => self.remind(place, now, out),
        }
        self.arm(place);
    }

    pub(super) fn expire(&mut self, place: u32, now: Times, mass: bool, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        let heard = agent.heard();
        agent.slot.set_status(AgentStatus::Disconnected);
        // A worker that heard it just now saw it active and said nothing, so this is the last look.
        if agent.heard() > heard {
            agent.slot.set_status(AgentStatus::Active);
            return;
        }
        agent.missed = agent.limits(&self.settings.policy).missed(now.mono.since(heard));
        self.counters.timeouts_total.increment();
        // Only where the time-out is set to less than `max_missed` intervals: else whoever is given up has missed them
        // all since we started. What is critical stays so.
        let few = self.settings.policy.is_impatient() && agent.missed < self.settings.policy.max_missed;
        let reason = if few && !agent.is_reachable() && !agent.inventory.is_critical() {
            Reason::ManagerRestart
        } else {
            Reason::KeepaliveTimeout
        };
        let gone = Move::to(AgentStatus::Disconnected, reason, now.mono);
        self.change(place, now, Move { mass, ..gone }, out);
    }

    /// Says whether something is sent, of which [`Roster::on_sent`] will hear.
    pub(super) fn send_if_due(&mut self, place: u32, now: Times, out: &mut Actions) -> bool {
        let Some(Sending { probe, retry }) = self.settings.policy.sending else {
            return false;
        };
        let Some(agent) = self.table.get_mut(place) else {
            return false;
        };
        if agent.schedule.next_send() > now.mono {
            return false;
        }
        if !agent.is_reachable() {
            // Not heard by this process, so there is nowhere to send to: that is no failure of the agent's.
            agent.schedule.postpone(now.mono + self.settings.policy.interval);
            return false;
        }
        // Until it is known what became of it.
        agent.schedule.postpone(now.mono + retry);
        let probe = agent.schedule.probe(probe, agent.slot.family(), agent.slot.heard());
        // What an agent does not know destroys a file that it is getting.
        let probe = if agent.slot.receives_file() { Probe::Ack } else { probe };
        let (payload, counter) = match probe {
            Probe::Keepalive => {
                let message = ToAgent::Keepalive {
                    name: &agent.slot.name,
                    unix_seconds: now.wall_ms / 1000,
                };
                (message.to_bytes().into(), None)
            }
            Probe::Ack => (Cow::Borrowed(ACK), None),
            Probe::Request => {
                let id = self.request_ids.next();
                let message = ToAgent::Request {
                    id,
                    text: b"agent getstate",
                };
                (message.to_bytes().into(), Some(id.0))
            }
        };
        out.sends.push(Outgoing {
            slot: Arc::clone(&agent.slot),
            payload,
            purpose: Purpose::Keepalive(counter),
        });
        true
    }

    /// It said hello, and no keepalive came. One that does send events is only told of.
    pub(super) fn give_up_pending(&mut self, place: u32, now: Times, out: &mut Actions) {
        let Some(agent) = self.table.get(place) else { return };
        let silence = now.mono.since(agent.heard());
        let to = if silence >= self.patience() {
            AgentStatus::Disconnected
        } else {
            AgentStatus::Pending
        };
        if to == AgentStatus::Pending && agent.reason == Some(Reason::StuckPending) {
            return;
        }
        let missed = agent.limits(&self.settings.policy).missed(silence);
        if let Some(agent) = self.table.get_mut(place) {
            agent.missed = missed;
        }
        self.change(place, now, Move::to(to, Reason::StuckPending, now.mono), out);
    }

    /// Says again that it is away, a level higher.
    pub(super) fn escalate(&mut self, place: u32, now: Times, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        let said_again = |reason: &Reason| !matches!(reason, Reason::Maintenance | Reason::Moved);
        let Some(reason) = agent.reason.filter(said_again) else {
            return;
        };
        let absent = now.mono.since(agent.since);
        let due = escalations(absent, &self.settings.escalation);
        if due <= agent.escalations {
            return;
        }
        agent.escalations = due;
        let status = AgentStatus::Disconnected;
        let change = StatusChange {
            from: status,
            to: status,
            reason,
            missed: agent.missed,
            level: agent.level.saturating_add(due).min(15),
            flapping: None,
            at_ms: now.wall_ms,
        };
        out.events.push(events::status_change(agent, &change));
        self.mark_dirty(place);
    }

    /// Says that it has a key and never came.
    pub(super) fn remind(&mut self, place: u32, now: Times, out: &mut Actions) {
        let Some(agent) = self.table.get(place) else { return };
        if agent.reason.is_none() && now.mono.since(agent.since) >= NEVER_CONNECTED_AFTER {
            self.change(
                place,
                now,
                Move::to(AgentStatus::NeverConnected, Reason::NeverConnected, now.mono),
                out,
            );
        }
    }

    pub(super) fn announce(&self, mass: &Mass, now: Times, out: &mut Actions) {
        self.counters.mass_expiries_total.increment();
        tracing::warn!(
            count = mass.count,
            active_before = mass.active_before,
            network = mass.network.as_ref().map(|(network, _)| network),
            group = mass.group.as_ref().map(|(group, _)| group),
            confirmed = mass.confirmed,
            "many agents timed out at once"
        );
        out.events
            .push(events::mass_expiry(mass, now.wall_ms, level::HIGH, &self.settings.node));
    }

    pub(super) fn is_silent(&self, agent: &Agent, now: Millis) -> bool {
        now >= self.deadline(agent)
    }

    pub(super) fn deadline(&self, agent: &Agent) -> Millis {
        (agent.heard() + agent.limits(&self.settings.policy).timeout).max(self.pulse.patient_until())
    }

    pub(super) fn is_stuck(&self, agent: &Agent, now: Millis) -> bool {
        now >= (agent.since + self.patience()).max(self.pulse.patient_until())
    }

    /// How long an agent may stay pending: the time-out as configured, whatever the agent's own pace.
    pub(super) fn patience(&self) -> Duration {
        self.settings.policy.limits(None).timeout
    }

    /// Arms the wheel for the next thing that can happen to the agent by the passing of time.
    pub(super) fn arm(&mut self, place: u32) {
        match self.table.get(place).and_then(|agent| self.next_due(agent)) {
            Some(due) => self.wheel.arm(place, tick_at(due)),
            None => self.wheel.cancel(place),
        }
    }

    /// The same when only something earlier than what it is armed for would matter: what is later is found out when
    /// the entry comes up.
    pub(super) fn arm_if_sooner(&mut self, place: u32) {
        let due = self
            .table
            .get(place)
            .and_then(|agent| self.next_due(agent))
            .map(tick_at);
        if let Some(due) = due.filter(|due| self.wheel.armed_for(place).is_none_or(|armed| *due < armed)) {
            self.wheel.arm(place, due);
        }
    }

    pub(super) fn next_due(&self, agent: &Agent) -> Option<Millis> {
        match agent.status {
            AgentStatus::Active => {
                let deadline = self.deadline(agent);
                let send = self.settings.policy.sending.map(|_| agent.schedule.next_send());
                Some(send.map_or(deadline, |send| send.min(deadline)))
            }
            AgentStatus::Pending => {
                // Once it was said, there is nothing to say until it falls silent.
                let since = if agent.reason == Some(Reason::StuckPending) {
                    agent.heard()
                } else {
                    agent.since
                };
                Some((since + self.patience()).max(self.pulse.patient_until()))
            }
            AgentStatus::Disconnected => {
                let after = self.settings.escalation.get(usize::from(agent.escalations));
                let after = after.filter(|_| !matches!(agent.reason, Some(Reason::Maintenance | Reason::Moved)))?;
                Some(agent.since + *after)
            }
            AgentStatus::NeverConnected => agent.reason.is_none().then(|| agent.since + NEVER_CONNECTED_AFTER),
        }
    }
}

/// How often an absence should have been said again by now.
pub(super) fn escalations(absent: Duration, times: &[Duration]) -> u8 {
    let due = times.iter().filter(|after| absent >= **after).count();
    u8::try_from(due).unwrap_or(u8::MAX)
}

/// Keepalives of agents that are there when we start are spread over the interval.
pub(super) fn first_send(place: u32, interval: Duration) -> Duration {
    let spread = place.wrapping_mul(0x9e37_79b9);
    interval.mul_f64(f64::from(spread) / f64::from(u32::MAX))
}

/// The tick that a moment lies in.
pub(super) fn tick_of(at: Millis) -> u64 {
    at.0 / TICK.as_millis() as u64
}

/// The first tick that is not before a moment.
fn tick_at(at: Millis) -> u64 {
    at.0.div_ceil(TICK.as_millis() as u64)
}
