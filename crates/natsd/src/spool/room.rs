//! Room in a full spool: what goes, in which order, and the account of it.
//!
//! Each class has a share of the spool that the classes above it cannot take away. When the spool is full:
//!
//! 1. what the broker has acknowledged goes;
//! 2. of keepalives and health only the newest of each agent stays;
//! 3. of each class over its share the oldest go: keepalives, then low alerts, then high alerts;
//! 4. of each agent's status changes the first and the last stay;
//! 5. the oldest keepalives, low alerts and high alerts go, whatever their share.
//!
//! What is then too much is refused. Enrollments, keys and audit are never dropped.

use std::collections::{BTreeMap, HashMap, HashSet};

use muster_proto::event::{Class, Kind, Stream};

use super::{
    Gap, SEGMENT_LEN, Spool, SpoolError,
    index::Entry,
    memory::MEMORY,
    record::Record,
    scan::{self, Found},
};

/// Percent of the spool that each class may fill, in the order of [`Class::ALL`].
const SHARES: [u64; Class::ALL.len()] = [15, 25, 25, 30, 5];
/// What may be dropped altogether, cheapest first.
const DROPPABLE: [Class; 3] = [Class::Keepalive, Class::Alert, Class::HighAlert];
/// Dropping goes on until a tenth is free, so that the next commits need not drop again.
const FREE_SHARE: u64 = 10;

const FULL: &str = "spool_full";
const THINNED: &str = "thinned";
const TOO_OLD: &str = "too_old";

impl Spool {
    /// Room for so many bytes, whatever it takes that may be taken.
    pub(super) fn make_room(&mut self, incoming: u64, now_ms: u64) -> Result<Vec<Gap>, SpoolError> {
        let limit = self.limits.max_bytes;
        let mut gaps = Gaps::default();
        let oldest = self.index.oldest_ms();
        if oldest != 0 && oldest.saturating_add(self.limits.max_age_ms) < now_ms {
            let horizon = now_ms.saturating_sub(self.limits.max_age_ms);
            for class in DROPPABLE {
                let old = self
                    .index
                    .of_class(class)
                    .filter(|(_, entry)| entry.created_ms < horizon);
                let old: Vec<_> = old.collect();
                self.drop_events(&old, TOO_OLD, &mut gaps);
            }
        }
        if self.has_room(incoming) {
            return Ok(gaps.finish());
        }
        self.remove_settled()?;
        if !self.has_room(incoming) {
            let goal = limit.saturating_sub(limit / FREE_SHARE).saturating_sub(incoming);
            self.drop_down_to(goal, &mut gaps)?;
            self.finish_segment(true)?;
            self.compact()?;
            self.remove_settled()?;
        }
        if self.has_room(incoming) || self.bytes().saturating_add(incoming) <= limit {
            return Ok(gaps.finish());
        }
        // What was dropped is dropped, and must be told once there is room for telling.
        self.untold.append(&mut gaps.finish());
        Err(SpoolError::Full {
            used: self.bytes(),
            limit,
        })
    }

    fn has_room(&self, incoming: u64) -> bool {
        // Half a segment for the marks at the head of the next ones, and for what compaction writes beside.
        self.bytes().saturating_add(incoming).saturating_add(SEGMENT_LEN / 8) <= self.limits.max_bytes
    }

    fn drop_down_to(&mut self, goal: u64, gaps: &mut Gaps) -> Result<(), SpoolError> {
        if self.index.bytes() > goal {
            let superseded = self.superseded(Class::Keepalive, Thin::KeepLast)?;
            self.drop_events(&superseded, THINNED, gaps);
        }
        for class in DROPPABLE {
            let share = self.limits.max_bytes / 100 * SHARES[usize::from(class.code())];
            let spare = self.index.bytes_of(class).saturating_sub(share);
            self.drop_oldest(class, spare.min(self.index.bytes().saturating_sub(goal)), gaps);
        }
        if self.index.bytes() > goal {
            let between = self.superseded(Class::Status, Thin::KeepFirstAndLast)?;
            self.drop_events(&between, THINNED, gaps);
        }
        for class in DROPPABLE {
            self.drop_oldest(class, self.index.bytes().saturating_sub(goal), gaps);
        }
        Ok(())
    }

    fn drop_oldest(&mut self, class: Class, bytes: u64, gaps: &mut Gaps) {
        if bytes == 0 {
            return;
        }
        let mut oldest: Vec<_> = self.index.of_class(class).collect();
        oldest.sort_by_key(|(_, entry)| entry.seq);
        let mut freed = 0;
        let enough = oldest.iter().position(|(_, entry)| {
            freed += u64::try_from(entry.length).unwrap_or(0);
            freed >= bytes
        });
        oldest.truncate(enough.map_or(oldest.len(), |place| place + 1));
        self.drop_events(&oldest, FULL, gaps);
    }

    fn drop_events(&mut self, events: &[(Stream, Entry)], reason: &'static str, gaps: &mut Gaps) {
        for (stream, entry) in events {
            // What is in memory takes no room, and its producer waits for it.
            if entry.segment == MEMORY {
                continue;
            }
            if self.index.remove(*stream, entry.seq).is_some() {
                self.dropped += 1;
                self.forget(entry.segment);
                gaps.note(*stream, entry, reason);
            }
        }
    }

    /// Events of a class that a later one of the same agent and kind makes superfluous.
    fn superseded(&self, class: Class, thin: Thin) -> Result<Vec<(Stream, Entry)>, SpoolError> {
        let mut of_agent: HashMap<(Kind, String), Vec<u64>> = HashMap::new();
        let mut superseded = HashSet::new();
        for segment in &self.segments {
            let bytes = segment.read()?;
            scan::scan(&bytes, false, |found| {
                let Found::Record {
                    record: Record::Event(event),
                    ..
                } = found
                else {
                    return;
                };
                if event.class != class || !self.index.contains(event.kind.stream(), event.seq) {
                    return;
                }
                let seen = of_agent.entry((event.kind, event.key)).or_default();
                let keep = match thin {
                    Thin::KeepLast => 0,
                    Thin::KeepFirstAndLast => 1,
                };
                if seen.len() > keep {
                    superseded.extend(seen.pop());
                }
                seen.push(event.seq);
            });
        }
        Ok(self
            .index
            .of_class(class)
            .filter(|(_, entry)| superseded.contains(&entry.seq))
            .collect())
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

    /// Writes each finished segment anew with only what waits in it.
    fn compact(&mut self) -> Result<(), SpoolError> {
        for place in 0..self.segments.len().saturating_sub(1) {
            let bytes = self.segments[place].read()?;
            let mut kept = super::boundary_bytes().to_vec();
            let mut moved = Vec::new();
            scan::scan(&bytes, false, |found| {
                let Found::Record { offset, length, record } = found else {
                    return;
                };
                let keep = match record {
                    Record::Event(event) if self.index.contains(event.kind.stream(), event.seq) => {
                        moved.push((event.kind.stream(), event.seq, kept.len()));
                        true
                    }
                    Record::Marks(_) => true,
                    _ => false,
                };
                if keep {
                    kept.extend_from_slice(&bytes[offset..offset + length]);
                }
            });
            if kept.len() < bytes.len() {
                self.segments[place].replace(&self.directory, &kept)?;
                for (stream, seq, offset) in moved {
                    self.index.relocate(stream, seq, offset);
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Thin {
    KeepLast,
    KeepFirstAndLast,
}

/// One range for each stream, class and reason: a gap names its ends, and how many of the numbers between are missing.
#[derive(Default)]
struct Gaps(BTreeMap<(Stream, Class, &'static str), Gap>);

impl Gaps {
    fn note(&mut self, stream: Stream, entry: &Entry, reason: &'static str) {
        let gap = self.0.entry((stream, entry.class, reason)).or_insert(Gap {
            stream: Some(stream),
            class: Some(entry.class),
            from_seq: entry.seq,
            to_seq: entry.seq,
            count: 0,
            first_ms: entry.created_ms,
            last_ms: entry.created_ms,
            reason,
        });
        gap.from_seq = gap.from_seq.min(entry.seq);
        gap.to_seq = gap.to_seq.max(entry.seq);
        gap.count += 1;
        gap.first_ms = gap.first_ms.min(entry.created_ms);
        gap.last_ms = gap.last_ms.max(entry.created_ms);
    }

    fn finish(self) -> Vec<Gap> {
        self.0.into_values().collect()
    }
}
