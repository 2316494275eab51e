//! What the broker has said that it keeps; and what waits again when it has lost some of that.

use std::collections::HashSet;

use muster_proto::event::Stream;

use super::{
    Spool, SpoolError,
    cursor::Kept,
    entry,
    record::Record,
    scan::{self, Found},
};

/// Acknowledged events of each stream that are remembered with their places in the broker's stream.
const MAX_REMEMBERED: usize = 65_536;

impl Spool {
    /// Where the broker keeps a stream's events, and how far it has said so.
    pub(crate) fn kept(&self, stream: Stream) -> Option<&Kept> {
        self.kept.get(&stream)
    }

    /// The broker has kept our event `seq` under this sequence of its stream.
    pub(crate) fn note_kept(&mut self, stream: Stream, name: &str, sequence: u64, seq: u64) {
        let remembered = self.remembered.entry(stream).or_default();
        if remembered.len() == MAX_REMEMBERED {
            remembered.pop_front();
        }
        remembered.push_back((sequence, seq));
        match self.kept.get_mut(&stream) {
            Some(kept) if kept.name == name => kept.sequence = kept.sequence.max(sequence),
            _ => {
                let kept = Kept {
                    name: name.to_owned(),
                    sequence,
                    created: String::new(),
                };
                self.kept.insert(stream, kept);
            }
        }
    }

    /// Up to which sequence whoever listens has heard of events that no stream takes yet. What a former run of ours took
    /// is not told again.
    pub(crate) fn heard(&self, stream: Stream) -> u64 {
        let heard = self.heard.get(&stream).copied().unwrap_or(0);
        heard.max(self.heard_before)
    }

    /// Whoever listens has heard of this event.
    pub(crate) fn note_heard(&mut self, stream: Stream, seq: u64) {
        let heard = self.heard.entry(stream).or_default();
        *heard = seq.max(*heard);
    }

    /// The broker has said when it made the stream that keeps these events; empty where there is none now.
    pub(crate) fn note_created(&mut self, stream: Stream, name: &str, created: &str) {
        if let Some(kept) = self.kept.get_mut(&stream).filter(|kept| kept.name == name) {
            kept.created = created.to_owned();
        }
    }

    /// The broker has lost what it had acknowledged behind `last` of its stream: as far as it is still on the disk, it
    /// waits again. Gives how many events.
    pub(crate) fn rewind(&mut self, stream: Stream, last: u64) -> Result<u64, SpoolError> {
        let remembered = self.remembered.remove(&stream).unwrap_or_default();
        // What was acknowledged longer ago is only known to be before all of these.
        let knows = remembered.iter().any(|(sequence, _)| *sequence <= last);
        let lost = remembered.iter().filter(|(sequence, _)| *sequence > last);
        let behind = lost.map(|(_, seq)| seq - 1).min().filter(|_| knows).unwrap_or(0);
        let before: HashSet<u64> = self.index.waiting(stream, 0).map(|entry| entry.seq).collect();
        let mut again = Vec::new();
        for segment in &self.segments {
            let bytes = segment.read()?;
            scan::scan(&bytes, false, |found| {
                if let Found::Record {
                    offset,
                    length,
                    record: Record::Event(event),
                } = found
                    && event.kind.stream() == stream
                    && !event.history
                    && (event.seq > behind || before.contains(&event.seq))
                {
                    again.push(entry(&event, segment.number, offset, length));
                }
            });
        }
        self.index.clear(stream);
        for segment in &mut self.segments {
            let number = segment.number;
            let of_segment = |waits: bool| {
                let entries = again.iter().filter(|(_, entry)| entry.segment == number);
                u64::try_from(
                    entries
                        .filter(|(_, entry)| before.contains(&entry.seq) == waits)
                        .count(),
                )
                .unwrap_or(0)
            };
            segment.waiting += of_segment(false);
        }
        again.extend(self.memory.of_stream(stream));
        let more = again.len().saturating_sub(before.len());
        again.into_iter().for_each(|entry| self.index.push(entry));
        if let Some(kept) = self.kept.get_mut(&stream) {
            kept.sequence = last;
        }
        Ok(u64::try_from(more).unwrap_or(0))
    }
}
