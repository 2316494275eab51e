//! The account of what is dropped: which events exactly, in runs.
//!
//! **Invariant:** an event that is noted here is in one gap, and in one run of it.

use std::{collections::BTreeMap, os::unix::fs::FileExt};

use muster_proto::event::{Class, Stream, body::MAX_RUNS};

use super::{
    Spool,
    index::Entry,
    memory::MEMORY,
    record::{Numbers, Stored},
};

/// Events that were dropped, or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Absent where nobody knows.
    pub(crate) stream: Option<Stream>,
    /// Absent where nobody knows.
    pub(crate) class: Option<Class>,
    /// The epoch of its events; absent where nobody knows.
    pub(crate) epoch: Option<u64>,
    pub(crate) from_seq: u64,
    pub(crate) to_seq: u64,
    pub(crate) count: u64,
    pub(crate) first_ms: u64,
    pub(crate) last_ms: u64,
    pub(crate) reason: &'static str,
    /// From behind the event before to the last one dropped; none where the stream is not known.
    pub(crate) runs: Vec<(u64, u64)>,
}

/// One event that was dropped.
#[derive(Clone, Copy, Debug)]
struct Dropped {
    /// The sequence before it in its stream.
    prev: u64,
    seq: u64,
    created_ms: u64,
}

type Key = (Stream, Class, &'static str, Option<u64>);

/// Gaps while events are being dropped: those of one stream, class, reason and epoch together.
#[derive(Debug, Default)]
pub(super) struct Gaps(BTreeMap<Key, Vec<Dropped>>);

impl Gaps {
    /// Notes an event. `numbers` is what its record says of it, if that can be read.
    pub(super) fn note(&mut self, stream: Stream, entry: &Entry, numbers: Option<Numbers>, reason: &'static str) {
        let key = (stream, entry.class, reason, numbers.map(|numbers| numbers.epoch));
        self.0.entry(key).or_default().push(Dropped {
            // Of a record that cannot be read, its own number is all that is known.
            prev: numbers.map_or(entry.seq - 1, |numbers| numbers.prev),
            seq: entry.seq,
            created_ms: entry.created_ms,
        });
    }

    /// The gaps, none of which has more than [`MAX_RUNS`] runs.
    pub(super) fn finish(&mut self) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (key, mut events) in std::mem::take(&mut self.0) {
            events.sort_unstable_by_key(|event| event.seq);
            let mut gap: Option<Gap> = None;
            for event in &events {
                let follows = |gap: &Gap| gap.runs.last().is_some_and(|(_, to)| *to == event.prev);
                gaps.extend(gap.take_if(|gap| gap.runs.len() >= MAX_RUNS && !follows(gap)));
                gap.get_or_insert_with(|| Gap::beginning(key, *event)).take(*event);
            }
            gaps.extend(gap);
        }
        gaps
    }
}

impl Gap {
    fn beginning((stream, class, reason, epoch): Key, event: Dropped) -> Self {
        Self {
            stream: Some(stream),
            class: Some(class),
            epoch,
            from_seq: event.seq,
            to_seq: event.seq,
            count: 0,
            first_ms: event.created_ms,
            last_ms: event.created_ms,
            reason,
            runs: Vec::new(),
        }
    }

    fn take(&mut self, event: Dropped) {
        self.to_seq = event.seq;
        self.count += 1;
        self.first_ms = self.first_ms.min(event.created_ms);
        self.last_ms = self.last_ms.max(event.created_ms);
        match self.runs.last_mut() {
            Some((_, to)) if *to == event.prev => *to = event.seq,
            _ => self.runs.push((event.prev + 1, event.seq)),
        }
    }
}

impl Spool {
    /// Drops an event, if it still waits on the disk. What is in memory takes no room, and its producer waits for it.
    pub(super) fn drop_event(&mut self, stream: Stream, entry: &Entry, reason: &'static str, gaps: &mut Gaps) {
        if entry.segment != MEMORY && self.index.remove(stream, entry.seq).is_some() {
            let numbers = self.numbers_of(entry);
            self.dropped += 1;
            self.forget(entry.segment);
            gaps.note(stream, entry, numbers, reason);
        }
    }

    /// Gives up an event that can never be published. It is told with the next commit.
    pub(crate) fn give_up(&mut self, stream: Stream, seq: u64, reason: &'static str) {
        let Some(entry) = self.index.waiting(stream, seq - 1).next() else {
            return;
        };
        if entry.seq != seq {
            return;
        }
        let mut lost = std::mem::take(&mut self.lost);
        if let Some(event) = self.memory.event(seq).filter(|_| entry.segment == MEMORY) {
            lost.note(stream, &entry, Some(Numbers::of(&event)), reason);
            self.dropped += 1;
            self.acknowledge(stream, seq);
        } else {
            self.drop_event(stream, &entry, reason, &mut lost);
        }
        self.lost = lost;
    }

    /// Gaps that nobody was told of.
    pub(crate) fn take_untold(&mut self) -> Vec<Gap> {
        self.untold.append(&mut self.lost.finish());
        std::mem::take(&mut self.untold)
    }

    /// A commit came to nothing: what was dropped for it is told with the next one.
    pub(crate) fn tell_later(&mut self, gaps: Vec<Gap>) {
        self.untold.extend(gaps);
    }

    /// What the record says, without reading all of it.
    fn numbers_of(&self, entry: &Entry) -> Option<Numbers> {
        let segment = self.segments.iter().find(|segment| segment.number == entry.segment)?;
        let mut head = [0; Stored::HEAD_LEN];
        segment.file.read_exact_at(&mut head, entry.offset).ok()?;
        // Nobody has looked at its checksum.
        Numbers::read(&head).filter(|numbers| numbers.seq == entry.seq && numbers.prev < entry.seq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(gaps: &mut Gaps, prev: u64, seq: u64, reason: &'static str) {
        let entry = Entry {
            seq,
            segment: 1,
            offset: 0,
            length: 10,
            class: Class::Alert,
            created_ms: 1000 + seq,
        };
        let numbers = Numbers { seq, prev, epoch: 3 };
        gaps.note(Stream::Alerts, &entry, Some(numbers), reason);
    }

    #[test]
    fn events_that_followed_each_other_are_one_run_and_others_are_not() {
        let mut gaps = Gaps::default();
        for (prev, seq) in [(2, 5), (5, 6), (6, 9), (20, 22), (22, 30)] {
            note(&mut gaps, prev, seq, "spool_full");
        }
        note(&mut gaps, 9, 12, "thinned");
        let gaps = gaps.finish();
        assert_eq!(gaps.len(), 2);
        assert_eq!(gaps[0].runs, [(3, 9), (21, 30)]);
        assert_eq!((gaps[0].from_seq, gaps[0].to_seq, gaps[0].count), (5, 30, 5));
        assert_eq!(
            (gaps[0].first_ms, gaps[0].last_ms, gaps[0].epoch),
            (1005, 1030, Some(3))
        );
        assert_eq!((gaps[1].runs.as_slice(), gaps[1].count), (&[(10, 12)][..], 1));
    }

    #[test]
    fn more_runs_than_one_gap_may_have_are_told_in_more_gaps() {
        let mut gaps = Gaps::default();
        let many = u64::try_from(MAX_RUNS).expect("small") * 2 + 1;
        for place in 1..=many {
            note(&mut gaps, 10 * place, 10 * place + 1, "thinned");
        }
        let gaps = gaps.finish();
        let runs: Vec<_> = gaps.iter().map(|gap| gap.runs.len()).collect();
        assert_eq!(runs, [MAX_RUNS, MAX_RUNS, 1]);
        assert_eq!(gaps.iter().map(|gap| gap.count).sum::<u64>(), many);
    }

    proptest! {
        /// Of a stream with any numbers, any events are dropped in any order: the runs hold these and no others.
        #[test]
        fn runs_hold_what_was_dropped_and_nothing_else(
            steps in proptest::collection::vec((1..5_u64, any::<bool>(), any::<u16>()), 1..200),
        ) {
            let (mut seq, mut dropped, mut kept) = (0, vec![], vec![]);
            for (step, drop, order) in steps {
                let prev = seq;
                seq += step;
                if drop { dropped.push((order, prev, seq)) } else { kept.push(seq) }
            }
            dropped.sort_unstable();
            let mut gaps = Gaps::default();
            for (_, prev, seq) in &dropped {
                note(&mut gaps, *prev, *seq, "thinned");
            }
            let runs: Vec<_> = gaps.finish().into_iter().flat_map(|gap| gap.runs).collect();
            let inside = |seq: u64| runs.iter().filter(|(from, to)| (*from..=*to).contains(&seq)).count();
            for (_, prev, seq) in &dropped {
                for number in prev + 1..=*seq {
                    prop_assert_eq!(inside(number), 1);
                }
            }
            for seq in kept {
                prop_assert_eq!(inside(seq), 0);
            }
        }
    }
}
