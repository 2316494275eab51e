//! `etc/client.keys` as the workers use it: a snapshot that finds an agent's slot, and the difference between two of
//! them.
//!
//! A snapshot is never changed. A reload makes the next one from the file and the one before: agents whose line is the
//! same keep their slot, so nobody else's session notices.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
};

use muster_proto::{
    agent::AgentId,
    keys::file::{KeyEntry, KeyFile},
};

use crate::slot::{AgentSlot, plain_ip};

pub mod taken;
pub mod watcher;

/// Who is registered, at one moment.
#[derive(Clone, Default)]
pub struct KeyTable {
    by_id: HashMap<AgentId, Line>,
    by_host: HashMap<IpAddr, Arc<AgentSlot>>,
    /// Keyed at random, so that what is kept of a line tells nothing of its key.
    fingerprints: RandomState,
    /// How many snapshots there were before.
    reloads: u64,
}

#[derive(Clone)]
struct Line {
    slot: Arc<AgentSlot>,
    fingerprint: u64,
}

/// How a snapshot differs from the one before.
#[derive(Default, Debug)]
pub struct Changes {
    /// Ids that were not there.
    pub added: Vec<Arc<AgentSlot>>,
    /// New slots of ids whose name, address or key is another.
    pub changed: Vec<Arc<AgentSlot>>,
    /// Slots of ids that are gone.
    pub removed: Vec<Arc<AgentSlot>>,
    /// Those in `removed` whose lines are gone, too, and not marked as removed.
    pub(crate) vanished: Vec<Arc<AgentSlot>>,
    /// Slots whose key is gone, with their id or without: those in `removed`, and the old ones of those in `changed`.
    pub(crate) retired: Vec<Arc<AgentSlot>>,
}

impl Changes {
    /// Whether the two are the same.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl KeyTable {
    /// The next snapshot. Of lines with the same id, and of lines with the same single address, the first one counts.
    pub fn next(&self, file: &KeyFile) -> (Self, Changes) {
        let mut next = Self {
            by_id: HashMap::with_capacity(file.entries.len()),
            by_host: HashMap::new(),
            fingerprints: self.fingerprints.clone(),
            reloads: self.reloads + 1,
        };
        let mut changes = Changes::default();
        for entry in &file.entries {
            if next.by_id.contains_key(&entry.id) {
                continue;
            }
            let fingerprint = next.fingerprint(entry);
            let slot = match self.by_id.get(&entry.id) {
                Some(line) if line.fingerprint == fingerprint => Arc::clone(&line.slot),
                Some(line) => {
                    let slot = Arc::new(AgentSlot::succeed(entry, &line.slot));
                    if !slot.has_key_of(&line.slot) {
                        changes.retired.push(Arc::clone(&line.slot));
                    }
                    changes.changed.push(Arc::clone(&slot));
                    slot
                }
                None => {
                    let slot = Arc::new(AgentSlot::new(entry));
                    changes.added.push(Arc::clone(&slot));
                    slot
                }
            };
            next.insert(entry, Line { slot, fingerprint });
        }
        changes.removed = self
            .by_id
            .iter()
            .filter(|(id, _)| !next.by_id.contains_key(*id))
            .map(|(_, line)| Arc::clone(&line.slot))
            .collect();
        changes.retired.extend(changes.removed.iter().cloned());
        (next, changes)
    }

    /// How often the file was read again: the first time does not count.
    pub fn reloads(&self) -> u64 {
        self.reloads.saturating_sub(1)
    }

    /// The next snapshot when lines have been added behind the others, which are as they were: `added` has only the new
    /// ones. Gives what [`next`](Self::next) gives for the whole file, without looking at every line.
    pub fn grown(&self, added: &KeyFile) -> (Self, Changes) {
        let mut next = self.clone();
        let mut changes = Changes::default();
        for entry in &added.entries {
            if next.by_id.contains_key(&entry.id) {
                continue;
            }
            let slot = Arc::new(AgentSlot::new(entry));
            changes.added.push(Arc::clone(&slot));
            let fingerprint = next.fingerprint(entry);
            next.insert(entry, Line { slot, fingerprint });
        }
        (next, changes)
    }

    /// The agent with exactly this id.
    pub fn by_id(&self, id: &str) -> Option<&Arc<AgentSlot>> {
        self.by_id.get(id).map(|line| &line.slot)
    }

    /// The agent registered for exactly this address. Networks and `any` are never found by address.
    pub fn by_host(&self, source: IpAddr) -> Option<&Arc<AgentSlot>> {
        self.by_host.get(&plain_ip(source))
    }

    /// How many agents there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// All slots, in no order.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<AgentSlot>> {
        self.by_id.values().map(|line| &line.slot)
    }

    fn insert(&mut self, entry: &KeyEntry, line: Line) {
        if let Some(host) = entry.address.single_host() {
            self.by_host
                .entry(plain_ip(host))
                .or_insert_with(|| Arc::clone(&line.slot));
        }
        self.by_id.insert(entry.id.clone(), line);
    }

    fn fingerprint(&self, entry: &KeyEntry) -> u64 {
        self.fingerprints
            .hash_one((&entry.name, entry.address.text(), entry.key.expose()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use muster_proto::keys::file;

    use super::*;
    use crate::slot::{ConnectionId, Millis, Route};

    fn table(from: &KeyTable, text: &str) -> (KeyTable, Changes) {
        from.next(&file::parse(text.as_bytes()))
    }

    fn ids(slots: &[Arc<AgentSlot>]) -> Vec<&str> {
        slots.iter().map(|slot| slot.id.as_str()).collect()
    }

    #[test]
    fn unchanged_line_keeps_its_slot_and_changed_line_gets_another() {
        let (first, changes) = table(&KeyTable::default(), "001 a any k1\n002 b any k2\n003 c any k3\n");
        assert_eq!(ids(&changes.added).len(), 3);
        let (second, changes) = table(&first, "002 b any other\n001 a any k1\n004 d any k4\n");
        assert!(Arc::ptr_eq(first.by_id("001").unwrap(), second.by_id("001").unwrap()));
        assert!(!Arc::ptr_eq(first.by_id("002").unwrap(), second.by_id("002").unwrap()));
        assert_eq!(ids(&changes.added), ["004"]);
        assert_eq!(ids(&changes.changed), ["002"]);
        assert_eq!(ids(&changes.removed), ["003"]);
        assert_eq!((first.reloads(), second.reloads()), (0, 1));
    }

    #[test]
    fn what_was_heard_and_the_route_survive_a_changed_key_but_not_a_changed_address() {
        let (first, _) = table(&KeyTable::default(), "001 a any k1\n");
        let peer: SocketAddr = "127.0.0.1:7".parse().unwrap();
        let route = Route::Tcp {
            connection: ConnectionId::new(0, 1),
            peer,
        };
        first.by_id("001").unwrap().hear(Millis(9));
        first.by_id("001").unwrap().bind(route);

        let (other_key, _) = table(&first, "001 a any k2\n");
        assert_eq!(other_key.by_id("001").unwrap().heard(), Millis(9));
        assert_eq!(other_key.by_id("001").unwrap().route(), Some(route));

        let (other_address, _) = table(&first, "001 a 127.0.0.1 k1\n");
        assert!(other_address.by_id("001").unwrap().heard().is_never());
        assert_eq!(other_address.by_id("001").unwrap().route(), None);
    }

    #[test]
    fn only_single_hosts_are_found_by_address_and_the_first_line_wins() {
        let (table, _) = table(
            &KeyTable::default(),
            "001 a any k\n002 b 127.0.0.2 k\n003 c 127.0.0.2 k\n004 d 10.0.0.0/8 k\n005 e ::1 k\n",
        );
        assert_eq!(table.by_host("127.0.0.2".parse().unwrap()).unwrap().id.as_str(), "002");
        assert_eq!(
            table.by_host("::ffff:127.0.0.2".parse().unwrap()).unwrap().id.as_str(),
            "002"
        );
        assert_eq!(table.by_host("::1".parse().unwrap()).unwrap().id.as_str(), "005");
        assert!(table.by_host("10.0.0.0".parse().unwrap()).is_none());
        assert!(table.by_id("1").is_none());
    }

    #[test]
    fn lines_behind_the_others_make_the_same_snapshot_as_the_whole_file() {
        let old = "001 a any k\n002 b 127.0.0.2 k\n003 !c any k\n";
        let new = "004 d 127.0.0.4 k\n002 again any other\n005 e 127.0.0.2 k\n004 f any k\n";
        let (first, _) = table(&KeyTable::default(), old);
        let (grown, changes) = first.grown(&file::parse(new.as_bytes()));
        let (whole, expected) = table(&first, &format!("{old}{new}"));
        assert_eq!(ids(&changes.added), ids(&expected.added));
        assert!(changes.changed.is_empty() && changes.removed.is_empty() && changes.retired.is_empty());
        assert_eq!(grown.len(), whole.len());
        for slot in whole.slots() {
            let same = grown.by_id(slot.id.as_str()).unwrap();
            assert_eq!((&same.name, same.has_key_of(slot)), (&slot.name, true));
        }
        assert!(Arc::ptr_eq(first.by_id("002").unwrap(), grown.by_id("002").unwrap()));
        for host in ["127.0.0.2", "127.0.0.4"] {
            let id = |table: &KeyTable| table.by_host(host.parse().unwrap()).unwrap().id.clone();
            assert!(id(&grown) == id(&whole), "{host}");
        }
        // And the next one is made from it as from any other.
        let (last, changes) = table(&grown, "004 d 127.0.0.4 k\n");
        assert_eq!((last.len(), changes.removed.len(), changes.changed.len()), (1, 3, 0));
    }

    #[test]
    fn of_two_lines_with_one_id_the_first_counts() {
        let (table, changes) = table(&KeyTable::default(), "001 a any k\n001 b any k\n");
        assert_eq!(&*table.by_id("001").unwrap().name, "a");
        assert_eq!(changes.added.len(), 1);
    }
}
