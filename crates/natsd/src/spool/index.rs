//! In memory: which events wait for the broker, and where they stand on the disk.

use std::collections::{BTreeMap, VecDeque};

use muster_proto::event::{Class, Stream};

/// One event that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) class: Class,
    pub(super) created_ms: u64,
}

/// Each stream's events in the order of their sequences. An event that is acknowledged out of turn leaves a hole that
/// goes when it comes to the front.
#[derive(Debug, Default)]
pub(super) struct Index {
    streams: BTreeMap<Stream, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: VecDeque<Option<Entry>>,
    /// The sequence of each entry, holes included.
    seqs: VecDeque<u64>,
    live: u64,
    highest: u64,
}

impl Index {
    pub(super) fn push(&mut self, (stream, entry): (Stream, Entry)) {
        let waiting = self.streams.entry(stream).or_default();
        waiting.seqs.push_back(entry.seq);
        waiting.highest = waiting.highest.max(entry.seq);
        waiting.entries.push_back(Some(entry));
        waiting.live += 1;
    }

    pub(super) fn waiting(&self, stream: Stream, behind: u64) -> impl Iterator<Item = &Entry> {
        self.streams
            .get(&stream)
            .into_iter()
            .flat_map(move |waiting| {
                let from = waiting.seqs.partition_point(|seq| *seq <= behind);
                waiting.entries.range(from..)
            })
            .flatten()
    }

    pub(super) fn contains(&self, stream: Stream, seq: u64) -> bool {
        self.streams
            .get(&stream)
            .and_then(|waiting| waiting.entries.get(waiting.seqs.binary_search(&seq).ok()?))
            .is_some_and(Option::is_some)
    }

    pub(super) fn remove(&mut self, stream: Stream, seq: u64) -> Option<Entry> {
        let waiting = self.streams.get_mut(&stream)?;
        let place = waiting.seqs.binary_search(&seq).ok()?;
        let entry = waiting.entries.get_mut(place)?.take()?;
        waiting.live -= 1;
        waiting.shorten();
        Some(entry)
    }

    /// Takes out every event of a class that was made before an instant, in order.
    pub(super) fn remove_class(&mut self, class: Class, older_than_ms: u64) -> Vec<(Stream, Entry)> {
        let mut removed = Vec::new();
        for (stream, waiting) in &mut self.streams {
            for place in &mut waiting.entries {
                if place.is_some_and(|entry| entry.class == class && entry.created_ms < older_than_ms) {
                    removed.extend(place.take().map(|entry| (*stream, entry)));
                    waiting.live -= 1;
                }
            }
            waiting.shorten();
        }
        removed
    }

    pub(super) fn relocate(&mut self, stream: Stream, seq: u64, segment: u64, offset: usize, length: usize) {
        let Some(waiting) = self.streams.get_mut(&stream) else {
            return;
        };
        let Ok(place) = waiting.seqs.binary_search(&seq) else {
            return;
        };
        if let Some(Some(entry)) = waiting.entries.get_mut(place) {
            entry.segment = segment;
            entry.offset = u64::try_from(offset).unwrap_or(u64::MAX);
            entry.length = length;
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.streams.values().map(|waiting| waiting.live).sum()
    }

    pub(super) fn oldest_ms(&self) -> u64 {
        let fronts = self
            .streams
            .values()
            .filter_map(|waiting| waiting.entries.iter().flatten().next());
        fronts.map(|entry| entry.created_ms).min().unwrap_or(0)
    }

    /// For each stream, the sequence up to which nothing waits; what was known before stays where nothing came since.
    pub(super) fn cursor(&self, before: &BTreeMap<Stream, u64>) -> BTreeMap<Stream, u64> {
        let mut cursor = before.clone();
        for (stream, waiting) in &self.streams {
            let settled = match waiting.entries.iter().flatten().next() {
                Some(entry) => entry.seq.saturating_sub(1),
                None => waiting.highest,
            };
            let known = cursor.entry(*stream).or_default();
            *known = settled.max(*known);
        }
        cursor
    }
}

impl Waiting {
    fn shorten(&mut self) {
        while self.entries.front().is_some_and(Option::is_none) {
            self.entries.pop_front();
            self.seqs.pop_front();
        }
    }
}
