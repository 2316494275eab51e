//! What an earlier process left, until the key file says who is still registered.

use std::collections::HashMap;

use muster_proto::agent::AgentId;

use crate::{slot::AgentSlot, store::Row};

/// Rows of the store that no agent has claimed yet.
#[derive(Default)]
pub(crate) struct Restored {
    rows: HashMap<AgentId, Row>,
}

impl Restored {
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        Self {
            rows: rows.into_iter().map(|row| (row.id.clone(), row)).collect(),
        }
    }

    /// The row of an agent. An id that went to another name meanwhile is another agent.
    pub(crate) fn claim(&mut self, slot: &AgentSlot) -> Option<Row> {
        self.rows.remove(&slot.id).filter(|row| row.name == slot.name)
    }

    /// The rows of those that are not registered any more. Ask when the key file was read and is not empty: a file that
    /// is missing for a moment must not make us forget the fleet.
    pub(crate) fn leftovers(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.rows).into_values().collect()
    }
}
