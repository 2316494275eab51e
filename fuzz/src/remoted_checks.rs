//! What must hold between two steps of a story.

use std::sync::Arc;

use muster_proto::{
    agent::AgentStatus,
    event::{Event, Kind},
    transport::envelope::CryptoForm,
};
use muster_remoted::{
    session::Origin,
    slot::{AgentSlot, Millis, Route},
};
use serde_json::Value;

use super::{IDS, Stage};

/// All that a worker or the roster could change of an agent.
#[derive(Debug, PartialEq)]
struct Picture(Vec<(Millis, AgentStatus, CryptoForm, Option<Route>, String)>);

impl Stage {
    /// A message of somebody who has no key: nothing may come of it.
    pub(super) fn powerless(&mut self, origin: &Origin, packet: &[u8]) {
        let (before, unstored) = (self.picture(), self.roster.unstored());
        assert!(
            !self.handle(origin, packet),
            "a stranger was admitted: {}",
            packet.escape_ascii()
        );
        assert_eq!(before, self.picture(), "a stranger changed something");
        assert!(
            self.out.events.is_empty() && self.roster.unstored() == unstored,
            "a stranger is told of"
        );
    }

    fn picture(&self) -> Picture {
        let mut slots: Vec<_> = self.table.slots().collect();
        slots.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        let of = |slot: &Arc<AgentSlot>| {
            let info = self.roster.agent(self.now, slot.id.as_str());
            (
                slot.heard(),
                slot.status(),
                slot.form(),
                slot.route(),
                format!("{:?} {info:?}", slot.family()),
            )
        };
        Picture(slots.into_iter().map(of).collect())
    }

    pub(super) fn hear_events(&mut self) {
        let events = std::mem::take(&mut self.out.events);
        self.out.notices.clear();
        assert!(events.len() <= 8 * IDS.len() + 8, "{} events at once", events.len());
        for event in events.iter().filter(|event| event.kind == Kind::StatusChange) {
            let change = fields(event);
            let number = |name: &str| change.get(name).and_then(Value::as_u64).expect("a number");
            let (from, to) = (number("previous_status"), number("current_status"));
            let known = self.told.insert(event.subject_key.clone(), to).unwrap_or(3);
            assert_eq!(known, from, "begins where the one before ended: {change}");
            assert!((3..=15).contains(&number("alert_level")), "{change}");
        }
    }

    pub(super) fn check(&mut self) {
        self.hear_events();
        // One for all, one for a group, one for each agent.
        assert!(self.roster.maintenance().windows().len() <= IDS.len() + 2);
        assert!(
            self.roster.unstored() <= 4 * IDS.len(),
            "{} rows wait",
            self.roster.unstored()
        );
        let (rows, gone) = self.roster.take_rows(self.now, usize::MAX);
        gone.iter().for_each(|id| drop(self.rows.remove(id.as_str())));
        for mut row in rows {
            let known = self.rows.get(row.id.as_str()).and_then(|known| known.inventory.clone());
            row.inventory = row.inventory.or(known);
            self.rows.insert(row.id.to_string(), row);
        }
        assert_eq!(self.roster.len(), self.table.len());
        assert_eq!(self.roster.census().iter().sum::<usize>(), self.table.len());
        for slot in self.table.slots() {
            let id = slot.id.as_str();
            let status = u64::from(slot.status().code());
            assert_eq!(
                self.told.get(id).copied().unwrap_or(3),
                status,
                "{id}: what was told is what holds"
            );
            let shown = self
                .roster
                .agent(self.now, id)
                .expect("every agent of the table is in the roster");
            assert_eq!(u64::from(shown.status.code()), status);
            assert_eq!(
                self.rows.get(id).map(|row| row.liveness.status),
                Some(slot.status()),
                "{id}: what holds is stored"
            );
        }
        let (page, more) = self.roster.page(self.now, None, IDS.len());
        assert!(page.len() == self.table.len() && !more);
    }
}

fn fields(event: &Event) -> Value {
    let body: Value = serde_json::from_slice(&event.body).expect("an event's body is JSON");
    body.get("status_change").cloned().expect("a status change")
}
