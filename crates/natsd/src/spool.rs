//! The spool: events between "taken from a daemon" and "acknowledged by the broker", on the disk.
//!
//! One log in segments of 8 MiB below `queue/nats/`. A commit is a boundary record, the events of everybody who waited,
//! and one sync. In memory there is an index: for each stream the places of its events that the broker has not
//! acknowledged. A segment goes when nothing in it waits any more and it is older than [`KEEP_ACKNOWLEDGED_MS`], since
//! a broker's acknowledgement is no promise that it survives a power cut.
//!
//! **Invariant:** [`Spool::commit`] returns only when the events are on the disk. **Invariant:** events of one stream
//! are read in the order in which they were committed. **Invariant:** an event is never dropped without being counted
//! in a [`Gap`], which tells exactly which ones.
//!
//! What goes when the spool is full: `room`. What then does not fit is refused, and waits in the outboxes of the daemons
//! that made it.

mod commit;
pub(crate) mod cursor;
mod files;
mod gaps;
mod index;
pub(crate) mod memory;
mod ready;
pub(crate) mod record;
mod recover;
mod rewind;
mod room;
pub(crate) mod scan;
pub(crate) mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use muster_config::SpoolFsync;
use muster_proto::event::{Class, Kind, Stream};
use thiserror::Error;

use crate::{aside::Aside, keeper::chain};

use self::{
    cursor::{Cursor, CursorFile, Kept, Tidying},
    files::Segment,
    gaps::Gaps,
    index::{Entry, Index},
    memory::{MEMORY, Memory},
    ready::Ready,
    record::{Mark, Record, Stored},
    scan::Found,
};
pub(crate) use self::{gaps::Gap, recover::Recovered};

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
    /// When it is forced to the disk.
    pub(crate) sync: SpoolFsync,
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
    /// There is no number for another event.
    #[error("all sequence numbers are used up: give this manager another <node_name> and an empty spool")]
    Exhausted,
    /// It is not yet time to try the disk again.
    #[error("the disk took nothing a moment ago")]
    Again,
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

impl Depth {
    /// Age of the oldest event that waits, in seconds; 0 when none does.
    pub(crate) fn age_s(&self, now_ms: u64) -> u64 {
        match self.oldest_ms {
            0 => 0,
            oldest => now_ms.saturating_sub(oldest) / 1000,
        }
    }
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
    /// Absent while it is written.
    cursor: Option<CursorFile>,
    kept: BTreeMap<Stream, Kept>,
    /// The broker's sequences of what it acknowledged last, and ours.
    remembered: BTreeMap<Stream, VecDeque<(u64, u64)>>,
    /// Gaps of a commit that came to nothing.
    untold: Vec<Gap>,
    /// What was given up since the last commit.
    lost: Gaps,
    /// How far events were told to whoever listens, while no stream takes them.
    heard: BTreeMap<Stream, u64>,
    /// The last sequence of the runs before.
    heard_before: u64,
    /// The newest event of each class when what is superfluous of it was looked for.
    thinned: BTreeMap<Class, u64>,
    /// Does what no commit should wait for.
    aside: Aside,
    ready: Ready,
    memory: Memory,
}

/// An event that waits, where to read it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    at: At,
}

#[derive(Clone, Debug)]
enum At {
    Disk {
        file: Arc<File>,
        offset: u64,
        length: usize,
    },
    Memory(Arc<Stored>),
}

impl Place {
    /// Reads the event.
    pub(crate) fn read(&self) -> io::Result<Stored> {
        let (file, offset, length) = match &self.at {
            At::Disk { file, offset, length } => (file, *offset, *length),
            At::Memory(event) => return Ok(Stored::clone(event)),
        };
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset)?;
        match Record::read(&bytes) {
            Ok((Record::Event(event), _)) => Ok(*event),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the record is no event")),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

impl Spool {
    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens the spool, as a crash at any instant may have left it.
    pub(crate) fn open(directory: &Path, limits: Limits) -> Result<(Self, Recovered), SpoolError> {
        files::make_directory(directory)?;
        let (cursor_file, cursor) = CursorFile::open(directory)?;
        let mut spool = Self {
            directory: directory.to_owned(),
            limits,
            segments: Vec::new(),
            index: Index::default(),
            marks: BTreeMap::new(),
            dropped: 0,
            damaged: 0,
            cursor: Some(cursor_file),
            kept: cursor.kept,
            remembered: BTreeMap::new(),
            untold: Vec::new(),
            lost: Gaps::default(),
            heard: BTreeMap::new(),
            heard_before: 0,
            thinned: BTreeMap::new(),
            aside: Aside::default(),
            ready: Ready::default(),
            memory: Memory::default(),
        };
        for (producer, incarnation, number) in cursor.told {
            spool.note_mark(&Mark {
                producer,
                incarnation,
                number,
            });
        }
        // Segments may be gone, deleted by hand too; what they held was used all the same.
        let mut recovered = Recovered {
            last_seq: cursor.settled.values().copied().max().unwrap_or(0),
            last_of_stream: cursor.settled.clone(),
            ..Recovered::default()
        };
        let mut numbers = files::segment_numbers(directory)?;
        spool.set_unused_apart(&mut numbers)?;
        for (place, number) in numbers.iter().enumerate() {
            let last = place + 1 == numbers.len();
            spool.recover_segment(*number, last, &cursor.settled, &mut recovered)?;
        }
        spool.heard_before = recovered.last_seq;
        if spool.damaged > 0 {
            tracing::error!(
                records = spool.damaged,
                directory = %directory.display(),
                "records of the spool were damaged on the disk and are lost"
            );
        }
        let next = numbers.last().map_or(1, |number| number + 1);
        spool.begin_segment(next, true)?;
        Ok((spool, recovered))
    }

    /// From now on what no commit should wait for is done there.
    pub(crate) fn work_aside(&mut self, aside: Aside) {
        self.ready.work_aside(aside.clone(), self.limits.max_bytes);
        self.aside = aside;
    }

    /// How far an outbox has been taken.
    pub(crate) fn taken(&self, producer: &str, incarnation: u64) -> u64 {
        self.marks
            .get(&(producer.to_owned(), incarnation))
            .copied()
            .unwrap_or(0)
    }

    /// The events of a stream behind a sequence that wait, at most so many.
    pub(crate) fn waiting(&self, stream: Stream, behind: u64, max: usize) -> Vec<Place> {
        self.index
            .waiting(stream, behind)
            .take(max)
            .filter_map(|entry| self.place(&entry))
            .collect()
    }

    /// Whether an event still waits.
    pub(crate) fn waits(&self, stream: Stream, seq: u64) -> bool {
        self.index.contains(stream, seq)
    }

    /// The broker has an event. Whether it was one that the disk did not take.
    pub(crate) fn acknowledge(&mut self, stream: Stream, seq: u64) -> bool {
        let Some(entry) = self.index.remove(stream, seq) else {
            return false;
        };
        if entry.segment == MEMORY {
            self.memory.release(seq);
            return true;
        }
        self.forget(entry.segment);
        false
    }

    /// Writes down how far the broker has acknowledged, and lets old segments go. The steps of it, for those who hold the
    /// spool in a lock, are [`begin_tidy`](Self::begin_tidy), [`Tidying::write`] and [`finish_tidy`](Self::finish_tidy).
    #[cfg(test)]
    pub(crate) fn tidy(&mut self, now_ms: u64) -> Result<(), SpoolError> {
        let Some(mut tidying) = self.begin_tidy() else {
            return Ok(());
        };
        let written = tidying.write();
        self.finish_tidy(tidying, now_ms)?;
        written
    }

    /// How far the broker has acknowledged, to be written down now and then, and at the end. Nothing while one is written.
    pub(crate) fn begin_tidy(&mut self) -> Option<Tidying> {
        let file = self.cursor.take()?;
        let settled = self.index.cursor(file.settled());
        let cursor = Cursor {
            settled,
            kept: self.kept.clone(),
            told: self.memory.told(),
        };
        Some(Tidying { file, cursor })
    }

    /// Lets segments go of which nothing waits, and that are older than they are kept for.
    pub(crate) fn finish_tidy(&mut self, tidying: Tidying, now_ms: u64) -> Result<(), SpoolError> {
        let written = tidying.file.holds(&tidying.cursor);
        self.cursor = Some(tidying.file);
        if !written {
            return Ok(());
        }
        let old = |segment: &Segment| segment.newest_ms.saturating_add(KEEP_ACKNOWLEDGED_MS) < now_ms;
        while self.segments.len() > 1 && self.segments[0].waiting == 0 && old(&self.segments[0]) {
            let (directory, number) = (self.directory.clone(), self.segments.remove(0).number);
            // One that stays is found again by the next start.
            drop(self.aside.run(move || {
                if let Err(error) = files::remove(&directory, number) {
                    tracing::warn!(
                        error = chain(&error),
                        "a segment of the spool stays longer than it should"
                    );
                }
            }));
        }
        Ok(())
    }

    /// The newest events, oldest first, for somebody who wants to look back.
    pub(crate) fn newest(&self, count: usize) -> Vec<Stored> {
        let mut newest = Vec::new();
        for segment in self.segments.iter().rev() {
            let Ok(bytes) = segment.read() else { continue };
            let mut events = VecDeque::new();
            let wanted = count.saturating_sub(newest.len());
            scan::scan(&bytes, false, |found| {
                if let Found::Record {
                    record: Record::Event(event),
                    ..
                } = found
                {
                    if events.len() == wanted {
                        events.pop_front();
                    }
                    events.push_back(*event);
                }
            });
            newest.extend(events.into_iter().rev());
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

    /// Whether what different daemons sent is forced to the disk together.
    pub(crate) fn gathers(&self) -> bool {
        self.limits.sync != SpoolFsync::Each
    }

    fn waits_for_disk(&self) -> bool {
        self.limits.sync != SpoolFsync::Never
    }

    /// How many bytes it may take.
    pub(crate) fn capacity(&self) -> u64 {
        self.limits.max_bytes
    }

    fn place(&self, entry: &Entry) -> Option<Place> {
        if entry.segment == MEMORY {
            return Some(Place {
                seq: entry.seq,
                at: At::Memory(self.memory.event(entry.seq)?),
            });
        }
        let segment = self.segments.iter().find(|segment| segment.number == entry.segment)?;
        Some(Place {
            seq: entry.seq,
            at: At::Disk {
                file: Arc::clone(&segment.file),
                offset: entry.offset,
                length: entry.length,
            },
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
