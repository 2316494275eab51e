//! In memory: which events wait for the broker, and where they stand on the disk. A million of them take 16 MB.

use std::collections::{BTreeMap, VecDeque};

use muster_proto::event::{Class, Stream};

/// One event that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Bytes that wait, by class.
    bytes: [u64; Class::ALL.len()],
}

#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<Chunk>,
    live: u64,
    highest: u64,
}

/// Events of one stream in one segment.
#[derive(Debug)]
struct Chunk {
    segment: u64,
    first_seq: u64,
    first_ms: u64,
    places: Vec<Place>,
    /// Everything before this place is gone.
    head: usize,
}

/// An [`Entry`], relative to its chunk.
#[derive(Clone, Copy, Debug)]
struct Place {
    seq: u32,
    offset: u32,
    /// The length in 24 bits, the class in four, and whether it is gone.
    packed: u32,
    ms: i32,
}

const LENGTH_BITS: u32 = 24;
const GONE: u32 = 1 << 31;

impl Place {
    fn is_gone(self) -> bool {
        self.packed & GONE != 0
    }

    fn length(self) -> u32 {
        self.packed & ((1 << LENGTH_BITS) - 1)
    }

    fn class(self) -> Class {
        let code = (self.packed & !GONE) >> LENGTH_BITS;
        u8::try_from(code)
            .ok()
            .and_then(Class::from_code)
            .unwrap_or(Class::Audit)
    }
}

impl Chunk {
    fn new(entry: &Entry) -> Self {
        Self {
            segment: entry.segment,
            first_seq: entry.seq,
            first_ms: entry.created_ms,
            places: Vec::new(),
            head: 0,
        }
    }

    /// The entry as a place of this chunk, if it fits in.
    fn place(&self, entry: &Entry) -> Option<Place> {
        let ms = i128::from(entry.created_ms) - i128::from(self.first_ms);
        let length = u32::try_from(entry.length)
            .ok()
            .filter(|length| *length < 1 << LENGTH_BITS)?;
        (self.segment == entry.segment).then_some(())?;
        Some(Place {
            seq: u32::try_from(entry.seq.checked_sub(self.first_seq)?).ok()?,
            offset: u32::try_from(entry.offset).ok()?,
            packed: length | u32::from(entry.class.code()) << LENGTH_BITS,
            ms: i32::try_from(ms).unwrap_or(if ms < 0 { i32::MIN } else { i32::MAX }),
        })
    }

    fn entry(&self, place: Place) -> Entry {
        Entry {
            seq: self.first_seq + u64::from(place.seq),
            segment: self.segment,
            offset: u64::from(place.offset),
            length: usize::try_from(place.length()).unwrap_or(usize::MAX),
            class: place.class(),
            created_ms: self.first_ms.saturating_add_signed(i64::from(place.ms)),
        }
    }

    fn last_seq(&self) -> u64 {
        self.places
            .last()
            .map_or(self.first_seq, |place| self.first_seq + u64::from(place.seq))
    }

    fn find(&self, seq: u64) -> Option<usize> {
        let delta = u32::try_from(seq.checked_sub(self.first_seq)?).ok()?;
        self.places.binary_search_by_key(&delta, |place| place.seq).ok()
    }

    fn entries(&self, behind: u64) -> impl Iterator<Item = Entry> {
        let from = match behind.checked_sub(self.first_seq) {
            None => 0,
            Some(delta) => self.places.partition_point(|place| u64::from(place.seq) <= delta),
        };
        let live = self.places[from.max(self.head).min(self.places.len())..].iter();
        live.filter(|place| !place.is_gone()).map(|place| self.entry(*place))
    }

    fn shorten(&mut self) {
        while self.places.get(self.head).is_some_and(|place| place.is_gone()) {
            self.head += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.head >= self.places.len()
    }
}

impl Index {
    pub(super) fn push(&mut self, (stream, entry): (Stream, Entry)) {
        let waiting = self.streams.entry(stream).or_default();
        waiting.highest = waiting.highest.max(entry.seq);
        let place = waiting.chunks.back().and_then(|chunk| chunk.place(&entry));
        let place = match place {
            Some(place) => Some(place),
            None => {
                let chunk = Chunk::new(&entry);
                let place = chunk.place(&entry);
                waiting.chunks.push_back(chunk);
                place
            }
        };
        if let (Some(place), Some(chunk)) = (place, waiting.chunks.back_mut()) {
            chunk.places.push(place);
            waiting.live += 1;
            self.bytes[usize::from(entry.class.code())] += u64::try_from(entry.length).unwrap_or(0);
        }
    }

    pub(super) fn waiting(&self, stream: Stream, behind: u64) -> impl Iterator<Item = Entry> {
        self.streams.get(&stream).into_iter().flat_map(move |waiting| {
            let from = waiting.chunks.partition_point(|chunk| chunk.last_seq() <= behind);
            waiting
                .chunks
                .range(from..)
                .flat_map(move |chunk| chunk.entries(behind))
        })
    }

    pub(super) fn contains(&self, stream: Stream, seq: u64) -> bool {
        self.streams.get(&stream).is_some_and(|waiting| {
            let chunk = waiting.chunks.get(waiting.chunk_of(seq));
            chunk.is_some_and(|chunk| chunk.find(seq).is_some_and(|place| !chunk.places[place].is_gone()))
        })
    }

    pub(super) fn remove(&mut self, stream: Stream, seq: u64) -> Option<Entry> {
        let waiting = self.streams.get_mut(&stream)?;
        let number = waiting.chunk_of(seq);
        let chunk = waiting.chunks.get_mut(number)?;
        let at = chunk.find(seq)?;
        let place = chunk.places.get_mut(at).filter(|place| !place.is_gone())?;
        let before = *place;
        place.packed |= GONE;
        let entry = chunk.entry(before);
        chunk.shorten();
        waiting.live -= 1;
        waiting.shorten();
        let bytes = &mut self.bytes[usize::from(entry.class.code())];
        *bytes = bytes.saturating_sub(u64::from(before.length()));
        Some(entry)
    }

    /// Forgets what stands in this segment behind everything else.
    pub(super) fn forget_tail(&mut self, segment: u64) {
        for waiting in self.streams.values_mut() {
            while let Some(chunk) = waiting.chunks.pop_back_if(|chunk| chunk.segment == segment) {
                for entry in chunk.entries(0) {
                    let bytes = &mut self.bytes[usize::from(entry.class.code())];
                    *bytes = bytes.saturating_sub(u64::try_from(entry.length).unwrap_or(0));
                    waiting.live -= 1;
                }
            }
        }
    }

    /// Forgets a stream, for building it anew.
    pub(super) fn clear(&mut self, stream: Stream) {
        if let Some(waiting) = self.streams.get_mut(&stream) {
            for chunk in &waiting.chunks {
                for entry in chunk.entries(0) {
                    let bytes = &mut self.bytes[usize::from(entry.class.code())];
                    *bytes = bytes.saturating_sub(u64::try_from(entry.length).unwrap_or(0));
                }
            }
            waiting.chunks.clear();
            waiting.live = 0;
        }
    }

    /// Every event of a class, streams one after another, each in order.
    pub(super) fn of_class(&self, class: Class) -> impl Iterator<Item = (Stream, Entry)> {
        self.streams.iter().flat_map(move |(stream, waiting)| {
            let entries = waiting.chunks.iter().flat_map(|chunk| chunk.entries(0));
            entries
                .filter(move |entry| entry.class == class)
                .map(move |entry| (*stream, entry))
        })
    }

    /// The event stands elsewhere in its segment now.
    pub(super) fn relocate(&mut self, stream: Stream, seq: u64, offset: usize) {
        let Some(waiting) = self.streams.get_mut(&stream) else {
            return;
        };
        let number = waiting.chunk_of(seq);
        let Some(chunk) = waiting.chunks.get_mut(number) else {
            return;
        };
        if let (Some(place), Ok(offset)) = (chunk.find(seq), u32::try_from(offset)) {
            chunk.places[place].offset = offset;
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.streams.values().map(|waiting| waiting.live).sum()
    }

    /// Bytes of a class that wait.
    pub(super) fn bytes_of(&self, class: Class) -> u64 {
        self.bytes[usize::from(class.code())]
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Bytes that wait, by segment.
    pub(super) fn bytes_of_segments(&self) -> BTreeMap<u64, u64> {
        let mut bytes = BTreeMap::new();
        for chunk in self.streams.values().flat_map(|waiting| &waiting.chunks) {
            let lengths = chunk.entries(0).map(|entry| u64::try_from(entry.length).unwrap_or(0));
            *bytes.entry(chunk.segment).or_default() += lengths.sum::<u64>();
        }
        bytes
    }

    pub(super) fn oldest_ms(&self) -> u64 {
        let fronts = self.streams.values().filter_map(Waiting::front);
        fronts.map(|entry| entry.created_ms).min().unwrap_or(0)
    }

    /// For each stream, the sequence up to which nothing waits; what was known before stays where nothing came since.
    pub(super) fn cursor(&self, before: &BTreeMap<Stream, u64>) -> BTreeMap<Stream, u64> {
        let mut cursor = before.clone();
        for (stream, waiting) in &self.streams {
            let known = cursor.entry(*stream).or_default();
            match waiting.front() {
                // It may go back: events that the broker has lost wait again.
                Some(entry) if entry.seq <= *known => *known = entry.seq.saturating_sub(1),
                Some(entry) => *known = (entry.seq - 1).max(*known),
                None => *known = waiting.highest.max(*known),
            }
        }
        cursor
    }
}

impl Waiting {
    /// The chunk in which a sequence stands, if it stands in any.
    fn chunk_of(&self, seq: u64) -> usize {
        self.chunks.partition_point(|chunk| chunk.last_seq() < seq)
    }

    fn front(&self) -> Option<Entry> {
        self.chunks.iter().find_map(|chunk| chunk.entries(0).next())
    }

    fn shorten(&mut self) {
        while self.chunks.front().is_some_and(Chunk::is_empty) {
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        /// Against a map that does the same the slow way.
        #[test]
        fn behaves_as_an_ordered_map(steps in vec((0..3_u8, 1..40_u64, 0..5_u64, any::<u16>()), 1..80)) {
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            let mut next = 1;
            for (what, number, segment, ms) in steps {
                if what < 2 {
                    next += number;
                    let entry = Entry {
                        seq: next,
                        segment,
                        offset: number,
                        length: 10,
                        class: Class::Status,
                        created_ms: 100_000 + u64::from(ms),
                    };
                    index.push((Stream::State, entry));
                    model.insert(next, entry);
                } else {
                    let seq = next.saturating_sub(number);
                    prop_assert_eq!(index.remove(Stream::State, seq), model.remove(&seq));
                }
                let behind = next.saturating_sub(number);
                let found: Vec<_> = index.waiting(Stream::State, behind).collect();
                let expected: Vec<_> = model.range(behind + 1..).map(|(_, entry)| *entry).collect();
                prop_assert_eq!(found, expected);
                prop_assert_eq!(index.len(), model.len() as u64);
                prop_assert_eq!(index.bytes(), 10 * model.len() as u64);
                let oldest = model.values().next().map_or(0, |entry| entry.created_ms);
                prop_assert_eq!(index.oldest_ms(), oldest);
                prop_assert_eq!(index.contains(Stream::State, behind), model.contains_key(&behind));
            }
        }
    }
}
