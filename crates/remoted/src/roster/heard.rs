//! Who was heard of late, and when: for those who keep that for others, and ask again and again.

use std::time::Duration;

use muster_proto::{agent::AgentId, ipc::control::Heard};

use super::{Roster, Times, agent::Agent};

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
        let policy = &self.settings.policy;
        let interval = match policy.sending {
            Some(_) => agent.limits(policy).interval,
            None => agent.limits(policy).interval.min(WITHOUT_SENDING),
        };
        Heard {
            id: agent.slot.id.clone(),
            at: agent.heard_ms(now) / 1000,
            interval: interval.as_secs(),
        }
    }
}
