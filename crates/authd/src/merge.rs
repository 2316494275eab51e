//! Edits that somebody else made to `client.keys` while the daemon runs.
//!
//! The daemon is the only writer, but operators have editors. What such an edit *says* is taken over: new lines,
//! changed lines, lines marked as removed. What it leaves out is not: a line that is merely missing may have been lost
//! by a full disk or an editor that is still writing, and an agent that lost its key is lost itself.

use std::collections::HashSet;

use muster_proto::{
    agent::AgentId,
    keys::file::{KeyEntry, KeyFile},
};

use crate::{
    change::{Agent, Change, Removal},
    keystore::Trace,
    registry::{Method, Registry},
};

/// What an edit came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// What happened to agents.
    pub changes: Vec<Change>,
    /// Agents whose line is missing. They stay, and are written again with the next change.
    pub missing: usize,
}

/// The file as it was found.
pub struct Found {
    /// What could be read.
    pub file: KeyFile,
    /// Whether the last line has its line feed. If not, it may be half a line.
    pub is_whole: bool,
}

/// Takes over what an edit says, at `now` (Unix seconds).
pub fn merge(registry: &mut Registry, found: Found, now: i64) -> Merged {
    let Found { file, is_whole } = found;
    let mut merged = Merged::default();
    let named: HashSet<AgentId> = file.entries.iter().map(|entry| entry.id.clone()).collect();
    let half_line = (!is_whole).then(|| file.entries.len().saturating_sub(1));

    let known_removed: HashSet<Vec<u8>> = registry
        .keys
        .removed()
        .iter()
        .map(|removed| removed.line.to_vec())
        .collect();
    for removed in file.removed {
        let id = AgentId::new(&removed.id);
        if !known_removed.contains(&**removed.line) {
            if !named.contains(&id) {
                merged.take_out(registry, &id);
            }
            registry.keys.keep_removed_line(removed);
        }
    }
    registry
        .keys
        .keep_unreadable(file.problems.into_iter().filter_map(|problem| problem.keep));
    registry.keys.raise_highest_number(file.highest_number);

    let mut seen = HashSet::new();
    let mut exchanged = Vec::new();
    for (place, entry) in file.entries.into_iter().enumerate() {
        // Of several lines with one id the first one counts; what is known of the others is not worth a guess.
        if !seen.insert(entry.id.clone()) {
            continue;
        }
        match registry.keys.get(entry.id.as_str()) {
            None => merged.bring_in(registry, entry, now),
            Some(known) if *known != entry && half_line != Some(place) => {
                let known = known.clone();
                merged.note_exchange(registry, &known, &entry, now);
                exchanged.push(entry);
            }
            Some(_) => {}
        }
    }
    registry.keys.exchange(exchanged);
    merged.missing = registry
        .keys
        .live()
        .iter()
        .filter(|entry| !seen.contains(&entry.id))
        .count();
    merged
}

impl Merged {
    fn bring_in(&mut self, registry: &mut Registry, entry: KeyEntry, now: i64) {
        registry.registered.insert(entry.id.clone(), now);
        self.changes
            .push(Change::Enrolled(Agent::of_line(&entry, Method::File, now)));
        registry.keys.add(entry);
    }

    /// Another address alone is not worth an event: the agent is who it was.
    fn note_exchange(&mut self, registry: &mut Registry, known: &KeyEntry, entry: &KeyEntry, now: i64) {
        let registered_at = *registry.registered.entry(entry.id.clone()).or_insert(now);
        let agent = Agent::of_line(entry, Method::File, registered_at);
        if known.key != entry.key {
            self.changes.push(Change::KeyRotated(agent));
        } else if known.name != entry.name {
            self.changes.push(Change::Renamed(agent));
        }
    }

    fn take_out(&mut self, registry: &mut Registry, id: &AgentId) {
        let registered_at = registry.registered.get(id).copied().unwrap_or(0);
        if let Some(entry) = registry.remove(id, Trace::Nothing) {
            let agent = Agent::of_line(&entry, Method::File, registered_at);
            self.changes.push(Change::Removed {
                agent,
                reason: Removal::File,
            });
        }
    }
}

#[cfg(test)]
mod tests;
