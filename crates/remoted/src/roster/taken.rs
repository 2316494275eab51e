//! Agents that were cut off: see [`crate::keys::taken`].

use std::sync::Arc;

use muster_proto::agent::{AgentStatus, Reason};

use super::{Actions, Roster, Times, change::Move};
use crate::slot::AgentSlot;

impl Roster {
    /// Comes before they go from the table with all whose keys went.
    pub(super) fn on_keys_taken(&mut self, now: Times, slots: &[Arc<AgentSlot>], out: &mut Actions) {
        for slot in slots {
            let Some(place) = self.find(slot) else { continue };
            if matches!(self.status(place), AgentStatus::Active | AgentStatus::Pending) {
                let gone = Move::to(AgentStatus::Disconnected, Reason::UnexpectedRemoval, now.mono);
                self.change(place, now, gone, out);
            }
        }
    }
}
