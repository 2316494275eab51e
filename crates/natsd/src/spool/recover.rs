//! What a start finds in the segments.

use std::collections::BTreeMap;

use muster_proto::event::Stream;

use super::{
    Gap, Spool, SpoolError, entry,
    files::{self, Segment},
    record::{Record, Stored},
    scan::{self, Found},
};

/// What a restart must know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recovered {
    /// The highest sequence in the spool.
    pub(crate) last_seq: u64,
    /// The highest epoch in the spool.
    pub(crate) last_epoch: u64,
    /// The last sequence of each stream.
    pub(crate) last_of_stream: BTreeMap<Stream, u64>,
    /// What the disk has damaged.
    pub(crate) gaps: Vec<Gap>,
    /// When the event before was made, for the account of what is missing behind it.
    pub(crate) last_ms: u64,
    /// Whether something was missing there.
    pub(crate) damage: bool,
    /// Streams of which nothing was found since, and the first number that was missing.
    pub(crate) doubted: BTreeMap<Stream, u64>,
}

impl Spool {
    /// Segments at the end in which nothing was ever safe were made ready for what never came: one is taken, the others go.
    /// So the last one is the one that was being written.
    pub(super) fn set_unused_apart(&mut self, numbers: &mut Vec<u64>) -> Result<(), SpoolError> {
        while let Some(number) = numbers.last().copied() {
            let (segment, bytes) = Segment::open(&self.directory, number)?;
            if !scan::is_room(&bytes) {
                break;
            }
            numbers.pop();
            if numbers.last().is_some_and(|before| before + 1 != number) || !self.ready.found(segment) {
                files::remove(&self.directory, number)?;
            }
        }
        Ok(())
    }

    pub(super) fn recover_segment(
        &mut self,
        number: u64,
        last: bool,
        cursor: &BTreeMap<Stream, u64>,
        recovered: &mut Recovered,
    ) -> Result<(), SpoolError> {
        let (mut segment, bytes) = Segment::open(&self.directory, number)?;
        let scan = scan::scan(&bytes, last, |found| match found {
            Found::Damage => recovered.damage = true,
            Found::Record {
                record: Record::Marks(marks),
                ..
            } => marks.iter().for_each(|mark| self.note_mark(mark)),
            Found::Record {
                offset,
                length,
                record: Record::Event(event),
            } => {
                recovered.note(&event);
                self.note_mark(&event.source);
                segment.newest_ms = segment.newest_ms.max(event.created_ms);
                let stream = event.kind.stream();
                if !event.history && cursor.get(&stream).is_none_or(|acked| event.seq > *acked) {
                    segment.waiting += 1;
                    self.index.push(entry(&event, number, offset, length));
                }
            }
            Found::Record { .. } => {}
        });
        self.damaged += scan.damaged;
        let end = u64::try_from(scan.end).unwrap_or(u64::MAX);
        if end < segment.length {
            if !scan::is_room(&bytes[scan.end..]) {
                tracing::warn!(
                    segment = number,
                    bytes = segment.length - end,
                    "the last commit of the spool was cut short; nobody was told that it is safe"
                );
            }
            segment.truncate(end)?;
        }
        self.segments.push(segment);
        Ok(())
    }
}

impl Recovered {
    fn note(&mut self, event: &Stored) {
        let stream = event.kind.stream();
        if std::mem::take(&mut self.damage) && event.seq > self.last_seq + 1 {
            let from = self.last_seq + 1;
            self.gaps.push(Gap {
                count: event.seq - from,
                ..self.damaged(None, event, (from, event.seq - 1))
            });
            for stream in Stream::ALL {
                self.doubted.entry(stream).or_insert(from);
            }
        }
        let last = self.last_of_stream.get(&stream).copied().unwrap_or(0);
        // Whose the numbers were is known of the last one: the next event of its stream names it.
        if let Some(from) = self.doubted.remove(&stream).filter(|from| event.prev >= *from) {
            let run = (if last == 0 { from } else { last + 1 }, event.prev);
            self.gaps.push(Gap {
                runs: vec![run],
                ..self.damaged(Some(stream), event, (event.prev, event.prev))
            });
        }
        self.last_ms = event.created_ms;
        self.last_seq = self.last_seq.max(event.seq);
        self.last_epoch = self.last_epoch.max(event.epoch);
        self.last_of_stream.insert(stream, event.seq.max(last));
    }

    fn damaged(&self, stream: Option<Stream>, behind: &Stored, (from_seq, to_seq): (u64, u64)) -> Gap {
        Gap {
            stream,
            class: None,
            epoch: Some(behind.epoch),
            from_seq,
            to_seq,
            count: 0,
            first_ms: self.last_ms,
            last_ms: behind.created_ms,
            reason: "damaged",
            runs: Vec::new(),
        }
    }
}
