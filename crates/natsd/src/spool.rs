//! The spool: events between "taken from a daemon" and "acknowledged by the broker", on the disk.
//!
//! One log in segments of 8 MiB below `queue/nats/`. A commit is a boundary record, the events of everybody who waited,
//! and one sync. In memory there is an index: for each stream the places of its events that the broker has not
//! acknowledged. A segment goes when nothing in it waits any more and it is older than [`KEEP_ACKNOWLEDGED_MS`], since
//! a broker's acknowledgement is no promise that it survives a power cut.
//!
//! **Invariant:** [`Spool::commit`] returns only when the events are on the disk. **Invariant:** events of one stream
//! are read in the order in which they were committed. **Invariant:** an event is never dropped without being counted
//! in a [`Gap`].
//!
//! When the spool is full, it first lets go what is acknowledged, then drops keepalives, then low alerts, then high
//! alerts, oldest first. Enrollments, audit and status changes are never dropped: then [`Spool::commit`] refuses, and
//! they wait in the outboxes of the daemons that made them.

mod files;
mod index;
pub(crate) mod record;
pub(crate) mod scan;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use muster_proto::event::{Class, Kind, Stream};
use thiserror::Error;

pub(crate) use self::files::write_atomically;
use self::{
    files::Segment,
    index::{Entry, Index},
    record::{Mark, Record, Stored},
};

/// A segment of this size is followed by the next.
pub(crate) const SEGMENT_LEN: u64 = 8 * 1024 * 1024;
/// How long acknowledged segments are kept. A broker's default is to sync every two minutes.
const KEEP_ACKNOWLEDGED_MS: u64 = 5 * 60 * 1000;

static BOUNDARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    Record::Boundary.write(&mut bytes);
    bytes
});

pub(crate) fn boundary_bytes() -> &'static [u8] {
    &BOUNDARY
}

/// How large the spool may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes on the disk.
    pub(crate) max_bytes: u64,
    /// Age at which an event that may be dropped is dropped, in milliseconds.
    pub(crate) max_age_ms: u64,
    /// Whether a commit waits for the disk.
    pub(crate) sync: bool,
}

/// Why the spool did not do as told.
#[derive(Debug, Error)]
pub(crate) enum SpoolError {
    /// The disk failed, or is full.
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nothing that may be dropped is left.
    #[error("the spool is full of events that must not be dropped: {used} of {limit} bytes")]
    Full { used: u64, limit: u64 },
}

/// Events that were dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) stream: Stream,
    pub(crate) class: Class,
    pub(crate) from_seq: u64,
    pub(crate) to_seq: u64,
    pub(crate) count: u64,
    pub(crate) first_ms: u64,
    pub(crate) last_ms: u64,
    pub(crate) reason: &'static str,
}

/// How full the spool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depth {
    /// Events that wait for the broker.
    pub(crate) waiting: u64,
    /// When the oldest of them was made, in Unix milliseconds; 0 = none.
    pub(crate) oldest_ms: u64,
    /// Bytes on the disk.
    pub(crate) bytes: u64,
    /// Events dropped since the start.
    pub(crate) dropped: u64,
    /// Records found damaged at the start.
    pub(crate) damaged: u64,
}

/// What a restart must know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recovered {
    /// The highest sequence in the spool.
    pub(crate) last_seq: u64,
    /// The highest epoch in the spool.
    pub(crate) last_epoch: u64,
    /// The last sequence of each stream.
    pub(crate) last_of_stream: BTreeMap<Stream, u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    limits: Limits,
    segments: Vec<Segment>,
    index: Index,
    marks: BTreeMap<(String, u64), u64>,
    dropped: u64,
    damaged: u64,
    cursor_written: BTreeMap<Stream, u64>,
}

/// An event that waits, where to read it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    file: Arc<File>,
    offset: u64,
    length: usize,
}

/// A commit under way.
#[derive(Debug)]
pub(crate) struct Commit {
    bytes: Vec<u8>,
    places: Vec<(usize, usize)>,
    writer: files::Writer,
    sync: bool,
}

impl Commit {
    /// Writes, and waits for the disk. After a failure nothing has happened.
    pub(crate) fn write(&mut self) -> Result<(), SpoolError> {
        self.writer.write(&self.bytes, self.sync)
    }
}

impl Place {
    /// Reads the event.
    pub(crate) fn read(&self) -> io::Result<Stored> {
        let mut bytes = vec![0; self.length];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        match Record::read(&bytes) {
            Ok((Record::Event(event), _)) => Ok(*event),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the record is no event")),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

impl Spool {
    /// Opens the spool, as a crash at any instant may have left it.
    pub(crate) fn open(directory: &Path, limits: Limits) -> Result<(Self, Recovered), SpoolError> {
        files::make_directory(directory)?;
        let cursor = files::read_cursor(directory);
        let mut spool = Self {
            directory: directory.to_owned(),
            limits,
            segments: Vec::new(),
            index: Index::default(),
            marks: BTreeMap::new(),
            dropped: 0,
            damaged: 0,
            cursor_written: cursor.clone(),
        };
        let mut recovered = Recovered::default();
        let numbers = files::segment_numbers(directory)?;
        for (place, number) in numbers.iter().enumerate() {
            let last = place + 1 == numbers.len();
            spool.recover_segment(*number, last, &cursor, &mut recovered)?;
        }
        if spool.damaged > 0 {
            tracing::error!(
                records = spool.damaged,
                directory = %directory.display(),
                "records of the spool were damaged on the disk and are lost"
            );
        }
        let next = numbers.last().map_or(1, |number| number + 1);
        spool.begin_segment(next)?;
        Ok((spool, recovered))
    }

    fn recover_segment(
        &mut self,
        number: u64,
        last: bool,
        cursor: &BTreeMap<Stream, u64>,
        recovered: &mut Recovered,
    ) -> Result<(), SpoolError> {
        let (mut segment, bytes) = Segment::open(&self.directory, number)?;
        let scan = scan::scan(&bytes, last);
        self.damaged += scan.damaged;
        let end = u64::try_from(scan.end).unwrap_or(u64::MAX);
        if end < segment.length {
            tracing::warn!(
                segment = number,
                bytes = segment.length - end,
                "the last commit of the spool was cut short; nobody was told that it is safe"
            );
            segment.truncate(end)?;
        }
        for (offset, length, record) in scan.records {
            match record {
                Record::Boundary => {}
                Record::Marks(marks) => marks.into_iter().for_each(|mark| self.note_mark(&mark)),
                Record::Event(event) => {
                    recovered.last_seq = recovered.last_seq.max(event.seq);
                    recovered.last_epoch = recovered.last_epoch.max(event.epoch);
                    let stream = event.kind.stream();
                    recovered.last_of_stream.insert(stream, event.seq);
                    self.note_mark(&event.source);
                    segment.newest_ms = segment.newest_ms.max(event.created_ms);
                    if !event.history && cursor.get(&stream).is_none_or(|acked| event.seq > *acked) {
                        segment.waiting += 1;
                        self.index.push(entry(&event, number, offset, length));
                    }
                }
            }
        }
        self.segments.push(segment);
        Ok(())
    }

    /// How far an outbox has been taken.
    pub(crate) fn taken(&self, producer: &str, incarnation: u64) -> u64 {
        self.marks
            .get(&(producer.to_owned(), incarnation))
            .copied()
            .unwrap_or(0)
    }

    /// Makes events durable: all or none. The three steps of it, for those who hold the spool in a lock, are
    /// [`begin_commit`](Self::begin_commit), [`Commit::write`] and [`finish_commit`](Self::finish_commit).
    #[cfg(test)]
    pub(crate) fn commit(&mut self, events: &[Stored], now_ms: u64) -> Result<Vec<Gap>, SpoolError> {
        let (mut commit, gaps) = self.begin_commit(events, now_ms)?;
        commit.write()?;
        self.finish_commit(commit, events)?;
        Ok(gaps)
    }

    /// Makes room, and says where the events will stand. Between this and the end of the commit nobody else may begin
    /// one; reading and acknowledging go on.
    pub(crate) fn begin_commit(&mut self, events: &[Stored], now_ms: u64) -> Result<(Commit, Vec<Gap>), SpoolError> {
        let gaps = self.make_room(now_ms)?;
        let mut bytes = boundary_bytes().to_vec();
        let mut places = Vec::with_capacity(events.len());
        for event in events {
            let start = bytes.len();
            event.write_record(&mut bytes);
            places.push((start, bytes.len() - start));
        }
        let sync = self.limits.sync;
        let segment = self.current()?;
        let writer = segment.writer();
        Ok((
            Commit {
                bytes,
                places,
                writer,
                sync,
            },
            gaps,
        ))
    }

    /// Takes the written events into the index.
    pub(crate) fn finish_commit(&mut self, commit: Commit, events: &[Stored]) -> Result<(), SpoolError> {
        let waiting = u64::try_from(events.iter().filter(|event| !event.history).count()).unwrap_or(0);
        let newest_ms = events.iter().map(|event| event.created_ms).max().unwrap_or(0);
        let segment = self.current()?;
        let (base, number) = (segment.length, segment.number);
        segment.length += u64::try_from(commit.bytes.len()).unwrap_or(u64::MAX);
        segment.newest_ms = segment.newest_ms.max(newest_ms);
        segment.waiting += waiting;
        let full = segment.length >= SEGMENT_LEN;
        for (event, (start, length)) in events.iter().zip(commit.places) {
            if !event.history {
                let offset = usize::try_from(base).unwrap_or(usize::MAX).saturating_add(start);
                self.index.push(entry(event, number, offset, length));
            }
        }
        for event in events {
            self.note_mark(&event.source);
        }
        if full { self.begin_segment(number + 1) } else { Ok(()) }
    }

    /// The events of a stream behind a sequence that wait, at most so many.
    pub(crate) fn waiting(&self, stream: Stream, behind: u64, max: usize) -> Vec<Place> {
        self.index
            .waiting(stream, behind)
            .take(max)
            .filter_map(|entry| self.place(entry))
            .collect()
    }

    /// Whether an event still waits.
    pub(crate) fn waits(&self, stream: Stream, seq: u64) -> bool {
        self.index.contains(stream, seq)
    }

    /// The broker has an event.
    pub(crate) fn acknowledge(&mut self, stream: Stream, seq: u64) {
        if let Some(entry) = self.index.remove(stream, seq) {
            self.forget(entry.segment);
        }
    }

    /// Writes down how far the broker has acknowledged, and lets old segments go. Call it now and then, and at the end.
    pub(crate) fn tidy(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        let cursor = self.index.cursor(&self.cursor_written);
        if cursor != self.cursor_written {
            files::write_cursor(&self.directory, &cursor)?;
            self.cursor_written = cursor;
        }
        let old = |segment: &Segment| segment.newest_ms.saturating_add(KEEP_ACKNOWLEDGED_MS) < now_ms;
        while self.segments.len() > 1 && self.segments[0].waiting == 0 && old(&self.segments[0]) {
            self.remove_segment(0)?;
        }
        Ok(())
    }

    /// The newest events, oldest first, for somebody who wants to look back.
    pub(crate) fn newest(&self, count: usize) -> Vec<Stored> {
        let mut newest = Vec::new();
        for segment in self.segments.iter().rev() {
            let Ok(bytes) = segment.read() else { continue };
            let scan = scan::scan(&bytes, false);
            let events: Vec<_> = scan.events().map(|(_, _, event)| event.clone()).collect();
            let wanted = count.saturating_sub(newest.len());
            newest.extend(events.into_iter().rev().take(wanted));
            if newest.len() >= count {
                break;
            }
        }
        newest.reverse();
        newest
    }

    /// How full it is.
    pub(crate) fn depth(&self) -> Depth {
        Depth {
            waiting: self.index.len(),
            oldest_ms: self.index.oldest_ms(),
            bytes: self.bytes(),
            dropped: self.dropped,
            damaged: self.damaged,
        }
    }

    fn place(&self, entry: &Entry) -> Option<Place> {
        let segment = self.segments.iter().find(|segment| segment.number == entry.segment)?;
        Some(Place {
            seq: entry.seq,
            file: Arc::clone(&segment.file),
            offset: entry.offset,
            length: entry.length,
        })
    }

    fn note_mark(&mut self, mark: &Mark) {
        // Events that natsd makes itself have no producer.
        if !mark.producer.is_empty() {
            let highest = self.marks.entry((mark.producer.clone(), mark.incarnation)).or_default();
            *highest = mark.number.max(*highest);
        }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    fn current(&mut self) -> Result<&mut Segment, SpoolError> {
        if self.segments.last().is_none_or(|segment| segment.length >= SEGMENT_LEN) {
            let next = self.segments.last().map_or(1, |segment| segment.number + 1);
            self.begin_segment(next)?;
        }
        self.segments.last_mut().ok_or(SpoolError::Full { used: 0, limit: 0 })
    }

    fn begin_segment(&mut self, number: u64) -> Result<(), SpoolError> {
        let marks = self
            .marks
            .iter()
            .map(|((producer, incarnation), number)| Mark {
                producer: producer.clone(),
                incarnation: *incarnation,
                number: *number,
            })
            .collect();
        let mut bytes = boundary_bytes().to_vec();
        Record::Marks(marks).write(&mut bytes);
        let mut segment = Segment::create(&self.directory, number)?;
        segment.append(&bytes, self.limits.sync)?;
        self.segments.push(segment);
        Ok(())
    }

    fn remove_segment(&mut self, place: usize) -> Result<(), SpoolError> {
        files::remove(&self.directory, self.segments[place].number)?;
        self.segments.remove(place);
        Ok(())
    }

    fn forget(&mut self, number: u64) {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) {
            segment.waiting = segment.waiting.saturating_sub(1);
        }
    }

    /// Room for one more segment, whatever it takes that may be taken.
    fn make_room(&mut self, now_ms: u64) -> Result<Vec<Gap>, SpoolError> {
        let limit = self.limits.max_bytes;
        let needed = |spool: &Self| spool.bytes().saturating_add(SEGMENT_LEN / 8) > limit;
        let mut gaps = Vec::new();
        let oldest = self.index.oldest_ms();
        if oldest != 0 && oldest.saturating_add(self.limits.max_age_ms) < now_ms {
            let horizon = now_ms - self.limits.max_age_ms;
            for class in [Class::Keepalive, Class::Alert, Class::HighAlert] {
                self.drop_class(class, horizon, "too old", &mut gaps);
            }
        }
        if !needed(self) {
            return Ok(gaps);
        }
        self.remove_settled()?;
        for class in [Class::Keepalive, Class::Alert, Class::HighAlert] {
            if !needed(self) {
                return Ok(gaps);
            }
            self.drop_class(class, u64::MAX, "the spool is full", &mut gaps);
            self.remove_settled()?;
            self.compact()?;
        }
        if self.bytes() > limit {
            return Err(SpoolError::Full {
                used: self.bytes(),
                limit,
            });
        }
        Ok(gaps)
    }

    /// Removes segments in which nothing waits, oldest first, however young.
    fn remove_settled(&mut self) -> Result<(), SpoolError> {
        let mut place = 0;
        while place + 1 < self.segments.len() && self.bytes() > self.limits.max_bytes / 2 {
            if self.segments[place].waiting == 0 {
                self.remove_segment(place)?;
            } else {
                place += 1;
            }
        }
        Ok(())
    }

    fn drop_class(&mut self, class: Class, older_than_ms: u64, reason: &'static str, gaps: &mut Vec<Gap>) {
        for (stream, entry) in self.index.remove_class(class, older_than_ms) {
            self.dropped += 1;
            self.forget(entry.segment);
            match gaps.last_mut() {
                Some(gap) if (gap.stream, gap.class, gap.reason) == (stream, class, reason) => {
                    gap.to_seq = entry.seq;
                    gap.count += 1;
                    gap.last_ms = entry.created_ms;
                }
                _ => gaps.push(Gap {
                    stream,
                    class,
                    from_seq: entry.seq,
                    to_seq: entry.seq,
                    count: 1,
                    first_ms: entry.created_ms,
                    last_ms: entry.created_ms,
                    reason,
                }),
            }
        }
    }

    /// Writes each finished segment anew with only what waits in it.
    fn compact(&mut self) -> Result<(), SpoolError> {
        for place in 0..self.segments.len().saturating_sub(1) {
            let number = self.segments[place].number;
            let bytes = self.segments[place].read()?;
            let scan = scan::scan(&bytes, false);
            let mut kept = boundary_bytes().to_vec();
            let mut moved = Vec::new();
            for (offset, length, record) in &scan.records {
                match record {
                    Record::Event(event) if self.index.contains(event.kind.stream(), event.seq) => {
                        moved.push((event.kind.stream(), event.seq, kept.len(), *length));
                        kept.extend_from_slice(&bytes[*offset..offset + length]);
                    }
                    Record::Marks(_) => kept.extend_from_slice(&bytes[*offset..offset + length]),
                    _ => {}
                }
            }
            if kept.len() < bytes.len() {
                self.segments[place].replace(&self.directory, &kept)?;
                for (stream, seq, offset, length) in moved {
                    self.index.relocate(stream, seq, number, offset, length);
                }
            }
        }
        Ok(())
    }
}

fn entry(event: &Stored, segment: u64, offset: usize, length: usize) -> (Stream, Entry) {
    let kind: Kind = event.kind;
    let entry = Entry {
        seq: event.seq,
        segment,
        offset: u64::try_from(offset).unwrap_or(u64::MAX),
        length,
        class: event.class,
        created_ms: event.created_ms,
    };
    (kind.stream(), entry)
}
