//! What happened to the key file while nobody was looking.
//!
//! At the start the file is compared with the database. A new database is filled in silence. One that was there before
//! shows what was done by hand, or what a crash between file and database left open: that is told as events.

use std::collections::HashMap;

use muster_proto::{agent::AgentId, keys::file::KeyEntry};

use crate::{
    change::{Agent, Change, Removal},
    database::Row,
    registry::Method,
};

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Registration times of all agents.
    pub registered: HashMap<AgentId, i64>,
    /// Rows to be made without a word.
    pub silent: Vec<Agent>,
    /// What happened, with events.
    pub changes: Vec<Change>,
}

/// Compares the agents of the file with the rows of the database. `times` are registration times from the stock text;
/// `now` is Unix seconds.
pub fn reconcile(
    live: &[KeyEntry],
    rows: &HashMap<AgentId, Row>,
    times: &HashMap<AgentId, i64>,
    now: i64,
) -> Reconciled {
    let mut reconciled = Reconciled::default();
    let is_import = rows.is_empty();
    for entry in live {
        if reconciled.registered.contains_key(&entry.id) {
            continue;
        }
        let known = rows.get(&entry.id).filter(|row| row.name == entry.name);
        let registered_at = match known {
            Some(row) => row.registered_at,
            // Of an imported agent without a time it is only known that it is not new.
            None => times.get(&entry.id).copied().unwrap_or(if is_import { 0 } else { now }),
        };
        reconciled.registered.insert(entry.id.clone(), registered_at);
        if known.is_none() {
            let agent = Agent::of_line(entry, Method::File, registered_at);
            if is_import {
                reconciled.silent.push(agent);
            } else {
                reconciled.changes.push(Change::Enrolled(agent));
            }
        }
    }
    for (id, row) in rows.iter().filter(|(id, _)| !reconciled.registered.contains_key(*id)) {
        let agent = Agent {
            id: id.clone(),
            name: row.name.clone(),
            address: String::new(),
            registered_at: row.registered_at,
            groups: Vec::new(),
            method: Method::File,
            reason: "",
            replaced: None,
        };
        reconciled.changes.push(Change::Removed {
            agent,
            reason: Removal::File,
        });
    }
    reconciled
}

#[cfg(test)]
mod tests {
    use muster_proto::keys::file;

    use super::*;

    const NOW: i64 = 5000;

    fn live(text: &str) -> Vec<KeyEntry> {
        file::parse(text.as_bytes()).entries
    }

    fn rows(rows: &[(&str, &str, i64)]) -> HashMap<AgentId, Row> {
        let row = |(id, name, registered_at): &(&str, &str, i64)| {
            (
                AgentId::new(id),
                Row {
                    name: (*name).to_owned(),
                    registered_at: *registered_at,
                },
            )
        };
        rows.iter().map(row).collect()
    }

    fn time(reconciled: &Reconciled, id: &str) -> i64 {
        reconciled.registered[&AgentId::new(id)]
    }

    #[test]
    fn a_home_without_database_is_imported_in_silence_with_the_times_it_has() {
        let times = HashMap::from([(AgentId::new("001"), 77)]);
        let reconciled = reconcile(&live("001 a any k\n002 b any k\n"), &rows(&[]), &times, NOW);
        assert_eq!((time(&reconciled, "001"), time(&reconciled, "002")), (77, 0));
        assert_eq!((reconciled.silent.len(), reconciled.changes.len()), (2, 0));
    }

    #[test]
    fn a_known_agent_keeps_its_time() {
        let reconciled = reconcile(&live("001 a any k\n"), &rows(&[("001", "a", 9)]), &HashMap::new(), NOW);
        assert_eq!(time(&reconciled, "001"), 9);
        assert!(reconciled.silent.is_empty() && reconciled.changes.is_empty());
    }

    #[test]
    fn a_line_that_came_while_nobody_looked_is_told_and_counts_as_new() {
        let reconciled = reconcile(
            &live("001 a any k\n002 b any k\n"),
            &rows(&[("001", "a", 9)]),
            &HashMap::new(),
            NOW,
        );
        assert_eq!(time(&reconciled, "002"), NOW);
        assert!(matches!(&reconciled.changes[..], [Change::Enrolled(agent)] if agent.id.as_str() == "002"));
    }

    #[test]
    fn an_id_with_another_name_is_another_agent() {
        let reconciled = reconcile(&live("001 b any k\n"), &rows(&[("001", "a", 9)]), &HashMap::new(), NOW);
        assert_eq!(time(&reconciled, "001"), NOW);
    }

    #[test]
    fn a_row_without_a_line_goes_and_is_told() {
        let reconciled = reconcile(
            &live("001 a any k\n"),
            &rows(&[("001", "a", 9), ("002", "b", 9)]),
            &HashMap::new(),
            NOW,
        );
        assert!(
            matches!(&reconciled.changes[..], [Change::Removed { agent, reason: Removal::File }] if agent.name == "b")
        );
    }

    #[test]
    fn doubles_are_one_agent() {
        let reconciled = reconcile(&live("001 a any k\n001 b any k\n"), &rows(&[]), &HashMap::new(), NOW);
        assert_eq!(reconciled.silent.len(), 1);
    }
}
