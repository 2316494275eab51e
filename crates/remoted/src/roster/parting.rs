//! Agents that another manager has: they go, and nobody is told.

use std::sync::Arc;

use muster_proto::agent::{AgentStatus, Reason};

use super::{Actions, Roster, Times, change::Move};
use crate::slot::AgentSlot;

impl Roster {
    /// Lets go of an agent, unless it has come here after `since_ms`, in Unix milliseconds. It keeps its key. There is
    /// neither an event nor a line for the analysis daemon: the manager that has it tells of it.
    ///
    /// # Errors
    /// Why it was not let go, for people.
    pub fn let_go(&mut self, now: Times, id: &str, since_ms: u64) -> Result<Arc<AgentSlot>, String> {
        let place = self.table.place(id).ok_or_else(|| format!("there is no agent {id}"))?;
        let agent = self.table.get(place).ok_or_else(|| format!("there is no agent {id}"))?;
        if !matches!(agent.status, AgentStatus::Active | AgentStatus::Pending) {
            return Err(format!("agent {id} is not here"));
        }
        if agent.since_ms > since_ms {
            return Err(format!("agent {id} has come back since"));
        }
        let slot = Arc::clone(&agent.slot);
        let moved = Move::to(AgentStatus::Disconnected, Reason::Moved, now.mono);
        self.change(place, now, moved, &mut Actions::default());
        self.counters.agents_let_go_total.increment();
        Ok(slot)
    }
}
