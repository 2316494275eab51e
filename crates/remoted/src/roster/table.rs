//! The agents by their places: a place is a small number that the timer wheel and the dirty list use.

use std::collections::{BTreeMap, HashMap};

use muster_proto::agent::AgentId;

use super::agent::Agent;

/// Agents by place, by id, and in the order of their numbers.
#[derive(Default)]
pub(crate) struct Table {
    places: Vec<Option<Agent>>,
    free: Vec<u32>,
    by_id: HashMap<AgentId, u32>,
    in_order: BTreeMap<OrderKey, u32>,
}

/// Ids that are numbers come first, by number; the others behind them, by text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OrderKey(u32, AgentId);

impl OrderKey {
    fn of(id: &AgentId) -> Self {
        Self(id.number().unwrap_or(u32::MAX), id.clone())
    }
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn place(&self, id: &str) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    pub(crate) fn get(&self, place: u32) -> Option<&Agent> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, place: u32) -> Option<&mut Agent> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    /// Puts an agent in; its id must not be there yet.
    pub(crate) fn insert(&mut self, agent: Agent) -> u32 {
        let id = agent.slot.id.clone();
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 agents fit into memory")
        });
        self.in_order.insert(OrderKey::of(&id), place);
        self.by_id.insert(id, place);
        self.places[place as usize] = Some(agent);
        place
    }

    /// Takes an agent out; its place may be given to another.
    pub(crate) fn remove(&mut self, place: u32) -> Option<Agent> {
        let agent = self.places.get_mut(place as usize)?.take()?;
        self.by_id.remove(&agent.slot.id);
        self.in_order.remove(&OrderKey::of(&agent.slot.id));
        self.free.push(place);
        Some(agent)
    }

    /// Places behind an id, in order. The id itself need not be there.
    pub(crate) fn behind(&self, after: Option<&AgentId>) -> impl Iterator<Item = u32> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(OrderKey::of(id)));
        self.in_order.range((from, Bound::Unbounded)).map(|(_, place)| *place)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.places.iter().flatten()
    }
}
