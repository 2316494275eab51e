//! Who was heard of late, and when: for those who keep that for others and ask again and again, and as events for those
//! who want to see agents' own keepalives. Both once in an agent's interval.

use std::time::Duration;

use muster_proto::{agent::AgentId, event::body::KeepaliveType, ipc::control::Heard};

use super::{Actions, Roster, Times, agent::Agent};
use crate::{events, slot::Millis};

/// Agents that are looked at for one answer, so that the roster is held for a moment only. The answer fits a frame.
const LOOKED_AT: usize = 2000;
/// Where nothing is sent to agents, the time-out is the only interval there is, and too long for looking.
const WITHOUT_SENDING: Duration = Duration::from_secs(60);

impl Roster {
    /// Of the next agents behind `after`, those that were heard within this time; and the agent to go on behind, if there
    /// are more. Only what this process has heard counts.
    pub fn heard(&self, now: Times, within: Duration, after: Option<&AgentId>) -> (Vec<Heard>, Option<AgentId>) {
        let mut behind = self.table.behind(after).filter_map(|place| self.table.get(place));
        let mut last = None;
        let agents = behind
            .by_ref()
            .take(LOOKED_AT)
            .inspect(|agent| last = Some(&agent.slot.id))
            .filter(|agent| agent.is_reachable() && now.mono.since(agent.slot.heard()) <= within)
            .map(|agent| self.heard_of(agent, now))
            .collect();
        let next = behind.next().and(last).cloned();
        (agents, next)
    }

    fn heard_of(&self, agent: &Agent, now: Times) -> Heard {
        Heard {
            id: agent.slot.id.clone(),
            at: agent.heard_ms(now) / 1000,
            interval: self.interval_of(agent).as_secs(),
        }
    }

    /// How often it is worth saying that an agent was heard.
    fn interval_of(&self, agent: &Agent) -> Duration {
        let policy = &self.settings.policy;
        let interval = agent.limits(policy).interval;
        match policy.sending {
            Some(_) => interval,
            None => interval.min(WITHOUT_SENDING),
        }
    }

    /// An agent's own keepalive came in.
    pub(super) fn tell_keepalive(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        if !self.settings.keepalive_received {
            return;
        }
        let Some(agent) = self.table.get(place) else { return };
        if !agent.told.is_never() && at.since(agent.told) < self.interval_of(agent) {
            return;
        }
        let (interval, node) = (self.settings.policy.interval.as_secs(), &self.settings.node);
        let received = KeepaliveType::KeepaliveReceived;
        out.events
            .push(events::keepalive(agent, received, now.wall_of(at), interval, node));
        if let Some(agent) = self.table.get_mut(place) {
            agent.told = at;
        }
    }
}
