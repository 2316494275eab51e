//! What maintenance windows do to the agents that they cover.

use std::time::Duration;

use muster_proto::{
    agent::{AgentStatus, Reason},
    ipc::control::MaintenanceWindow,
};

use super::{
    Actions, Roster, Times,
    agent::Agent,
    change::Move,
    guard::Gone,
    maintenance::{self, Maintenance},
    time::escalations,
};

/// How often it is looked for agents that a maintenance window has silenced and no longer covers: they may have left a
/// group, or the window may have ended while we were away.
const LOOK_FOR_SILENCED: Duration = Duration::from_secs(10);

impl Roster {
    /// Whether a maintenance window covers the agent.
    pub(super) fn is_expected(&self, agent: &Agent) -> bool {
        self.maintenance.covers(&agent.slot.id, &agent.inventory.shared.groups)
    }

    /// Closes the windows whose time is over, and says of those who went away in one and are still away what it has
    /// silenced.
    pub(super) fn end_maintenance(&mut self, now: Times, out: &mut Actions) {
        for window in self.maintenance.take_ended(now.wall_ms / 1000) {
            let node = &self.settings.node;
            out.events
                .push(maintenance::event(&window, "maintenance_ended", now.wall_ms, node));
            self.silenced_at = now.mono;
        }
        if now.mono < self.silenced_at {
            return;
        }
        self.silenced_at = now.mono + LOOK_FOR_SILENCED;
        let silenced = |place: &u32| {
            let agent = self.table.get(*place)?;
            let is = agent.status == AgentStatus::Disconnected
                && agent.reason == Some(Reason::Maintenance)
                && !self.is_expected(agent);
            is.then(|| (*place, Gone::of(agent)))
        };
        let (places, gone): (Vec<u32>, Vec<Gone>) =
            self.table.behind(None).filter_map(|place| silenced(&place)).unzip();
        if places.is_empty() {
            return;
        }
        let mut said = Vec::new();
        let mass = self
            .guard
            .expire(now.mono, self.active + places.len(), &gone, &mut said);
        for mass in &said {
            self.announce(mass, now, out);
        }
        for place in places {
            let reason = match self.table.get(place) {
                // Whoever said goodbye has missed nothing.
                Some(agent) if agent.missed == 0 => Reason::AgentStopped,
                _ => Reason::KeepaliveTimeout,
            };
            let still = Move::to(AgentStatus::Disconnected, reason, now.mono);
            self.change(place, now, Move { mass, ..still }, out);
            if let Some(agent) = self.table.get_mut(place) {
                agent.escalations = escalations(now.mono.since(agent.since), &self.settings.escalation);
            }
            self.arm(place);
        }
    }

    /// Takes over other windows, and tells of those that were opened or ended.
    pub fn set_maintenance(
        &mut self,
        now: Times,
        maintenance: Maintenance,
        changed: &[MaintenanceWindow],
        reason: &str,
    ) {
        self.maintenance = maintenance;
        self.silenced_at = now.mono;
        let told = changed
            .iter()
            .map(|window| maintenance::event(window, reason, now.wall_ms, &self.settings.node));
        self.said.extend(told);
    }

    /// The windows that are open.
    pub fn maintenance(&self) -> &Maintenance {
        &self.maintenance
    }
}
