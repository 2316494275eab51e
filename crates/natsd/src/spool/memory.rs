//! Events that the disk does not take. The broker gets them from here, and whoever made them keeps them until it has; so
//! they are lost with this process, but not to the one who made them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_proto::event::Stream;

use super::{
    Spool, entry,
    index::Entry,
    record::{Mark, Stored},
};

/// More are not held. Whoever has more waits.
pub(crate) const MAX_EVENTS: usize = 10_000;
/// The same, in bytes of bodies.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// The segment that these events are said to be in.
pub(super) const MEMORY: u64 = u64::MAX;
/// Producers of whom the cursor's file says how far they were told, at most.
const MAX_TOLD: usize = 16;

type Source = (String, u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory {
    events: BTreeMap<u64, Arc<Stored>>,
    bytes: usize,
    /// What is held of each producer: its number, and our sequence.
    held: BTreeMap<Source, BTreeSet<(u64, u64)>>,
    /// The highest number of each producer that ever was here.
    highest: BTreeMap<Source, u64>,
    /// How far each producer was told that its events are safe, where no segment says so.
    told: BTreeMap<Source, u64>,
}

fn source_of(mark: &Mark) -> Source {
    (mark.producer.clone(), mark.incarnation)
}

impl Memory {
    fn hold(&mut self, event: Stored) {
        let source = source_of(&event.source);
        // Events that natsd makes itself have no producer.
        if !source.0.is_empty() {
            let highest = self.highest.entry(source.clone()).or_default();
            *highest = event.source.number.max(*highest);
            let held = self.held.entry(source).or_default();
            held.insert((event.source.number, event.seq));
        }
        self.bytes += event.body.len();
        self.events.insert(event.seq, Arc::new(event));
    }

    pub(super) fn release(&mut self, seq: u64) {
        let Some(event) = self.events.remove(&seq) else { return };
        self.bytes -= event.body.len();
        let source = source_of(&event.source);
        if let Some(held) = self.held.get_mut(&source) {
            held.remove(&(event.source.number, seq));
            if held.is_empty() {
                self.held.remove(&source);
            }
        }
    }

    pub(super) fn event(&self, seq: u64) -> Option<Arc<Stored>> {
        self.events.get(&seq).cloned()
    }

    /// What is held of a stream, in order.
    pub(super) fn of_stream(&self, stream: Stream) -> Vec<(Stream, Entry)> {
        let events = self.events.values().filter(|event| event.kind.stream() == stream);
        events.map(|event| place_of(event)).collect()
    }

    pub(super) fn count(&self) -> usize {
        self.events.len()
    }

    /// Lets go of everything, and gives the sequences.
    pub(super) fn clear(&mut self) -> BTreeSet<u64> {
        self.held.clear();
        self.bytes = 0;
        std::mem::take(&mut self.events).into_keys().collect()
    }

    pub(super) fn told(&self) -> Vec<(String, u64, u64)> {
        let told = self.told.iter().take(MAX_TOLD);
        told.map(|((producer, incarnation), number)| (producer.clone(), *incarnation, *number))
            .collect()
    }
}

fn place_of(event: &Stored) -> (Stream, Entry) {
    entry(event, MEMORY, 0, event.body.len())
}

impl Spool {
    /// Whether so many events, with so many bytes in their bodies, may be held. What is one commit always may, where
    /// nothing is.
    pub(crate) fn may_hold(&self, events: &[Stored]) -> bool {
        let bytes: usize = events.iter().map(|event| event.body.len()).sum();
        let memory = &self.memory;
        memory.events.is_empty()
            || (memory.events.len() + events.len() <= MAX_EVENTS && memory.bytes + bytes <= MAX_BYTES)
    }

    /// Takes events that are not on the disk. They wait for the broker like all others.
    pub(crate) fn hold(&mut self, events: Vec<Stored>) {
        for event in events {
            self.index.push(place_of(&event));
            self.memory.hold(event);
        }
    }

    /// All that is held, in order. A commit that succeeds begins with it.
    pub(crate) fn held(&self) -> Vec<Stored> {
        let events = self.memory.events.values();
        events.map(|event| Stored::clone(event)).collect()
    }

    /// How many events are held.
    pub(crate) fn held_count(&self) -> usize {
        self.memory.count()
    }

    /// Up to which number a producer's events are known here, safe or not.
    pub(crate) fn known(&self, producer: &str, incarnation: u64) -> u64 {
        let source = (producer.to_owned(), incarnation);
        let held = self.memory.highest.get(&source).copied().unwrap_or(0);
        held.max(self.taken(producer, incarnation))
    }

    /// An event is not to be kept, but counts as known. When its producer is told so, the cursor's file says it first.
    pub(crate) fn pass_over(&mut self, mark: &Mark) {
        let highest = self.memory.highest.entry(source_of(mark)).or_default();
        *highest = mark.number.max(*highest);
    }

    /// Whether all of a producer's events up to this number are on the disk, or the broker's.
    pub(crate) fn is_safe(&self, producer: &str, incarnation: u64, number: u64) -> bool {
        let held = self.memory.held.get(&(producer.to_owned(), incarnation));
        held.and_then(BTreeSet::first)
            .is_none_or(|(lowest, _)| *lowest > number)
    }

    /// A producer is about to be told that its events up to this number are safe. Whether the cursor's file must say so first.
    pub(crate) fn note_told(&mut self, producer: &str, incarnation: u64, number: u64) -> bool {
        let source = (producer.to_owned(), incarnation);
        let mark = Mark {
            producer: producer.to_owned(),
            incarnation,
            number,
        };
        match self.memory.highest.get(&source) {
            None => false,
            Some(highest) if number > *highest => {
                // What came behind it is on the disk, and with it how far the producer was taken.
                self.memory.highest.remove(&source);
                self.memory.told.remove(&source);
                false
            }
            Some(_) => {
                self.note_mark(&mark);
                self.memory.told.insert(source, number);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::event::Kind;

    use super::*;
    use crate::spool::tests::{NO_LIMIT, event, open, waiting};

    const SOURCE: (&str, u64) = ("remoted", 7);

    fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<Stored> {
        seqs.map(|seq| event(seq, Kind::StatusChange)).collect()
    }

    fn is_safe(spool: &Spool, number: u64) -> bool {
        spool.is_safe(SOURCE.0, SOURCE.1, number)
    }

    #[test]
    fn held_events_wait_behind_those_on_the_disk_and_are_safe_with_the_broker() {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = open(directory.path(), NO_LIMIT);
        spool.commit(&events(1..=2), 0).expect("commits");
        spool.hold(events(3..=5));
        assert_eq!(waiting(&spool, Stream::State), [1, 2, 3, 4, 5]);
        assert_eq!(
            (spool.taken(SOURCE.0, SOURCE.1), spool.known(SOURCE.0, SOURCE.1)),
            (2, 5)
        );
        assert!(!spool.acknowledge(Stream::State, 1), "that is on the disk");
        assert!(is_safe(&spool, 2) && !is_safe(&spool, 3));
        assert!(spool.acknowledge(Stream::State, 4) && spool.acknowledge(Stream::State, 3));
        assert!(is_safe(&spool, 4) && !is_safe(&spool, 5));
        assert!(spool.note_told(SOURCE.0, SOURCE.1, 4));
        spool.tidy(0).expect("tidies");
        drop(spool);
        let spool = open(directory.path(), NO_LIMIT);
        assert_eq!(spool.taken(SOURCE.0, SOURCE.1), 4, "5 went with the memory");
    }

    #[test]
    fn commit_that_succeeds_takes_what_is_held_along_but_not_what_was_acknowledged_meanwhile() {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = open(directory.path(), NO_LIMIT);
        spool.hold(events(1..=3));
        let mut all = spool.held();
        all.extend(events(4..=4));
        let (mut commit, _) = spool.begin_commit(&all, 0).expect("begins");
        assert!(spool.acknowledge(Stream::State, 2));
        commit.write().expect("writes");
        spool.finish_commit(commit, &all);
        assert_eq!((spool.held_count(), spool.depth().waiting), (0, 3));
        assert_eq!(waiting(&spool, Stream::State), [1, 3, 4]);
        assert!(is_safe(&spool, 4) && spool.taken(SOURCE.0, SOURCE.1) == 4);
        assert!(!spool.note_told(SOURCE.0, SOURCE.1, 4), "the disk knows");
        for seq in [1, 3, 4] {
            assert!(!spool.acknowledge(Stream::State, seq));
        }
        spool.tidy(u64::MAX).expect("tidies");
        drop(spool);
        let spool = open(directory.path(), NO_LIMIT);
        assert!(waiting(&spool, Stream::State).is_empty());
        assert_eq!(spool.taken(SOURCE.0, SOURCE.1), 4);
    }

    #[test]
    fn memory_is_bounded_but_always_takes_one_commit() {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = open(directory.path(), NO_LIMIT);
        let many = u64::try_from(MAX_EVENTS).expect("small");
        assert!(spool.may_hold(&events(1..=many + 1)));
        spool.hold(events(1..=10));
        assert!(spool.may_hold(&events(11..=many)) && !spool.may_hold(&events(11..=many + 1)));
    }

    #[test]
    fn broker_that_went_back_gets_what_is_held_behind_what_is_on_the_disk() {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = open(directory.path(), NO_LIMIT);
        spool.commit(&events(1..=2), 0).expect("commits");
        spool.acknowledge(Stream::State, 1);
        spool.hold(events(3..=3));
        assert_eq!(spool.rewind(Stream::State, 0).expect("reads"), 1);
        assert_eq!(waiting(&spool, Stream::State), [1, 2, 3]);
    }
}
