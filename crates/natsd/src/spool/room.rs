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
//! What is then too much is refused, and waits where it was made. Enrollments, keys and audit are never dropped, and what
//! they have not yet used of their share is refused to all others.

use std::collections::{HashMap, HashSet};

use muster_proto::event::{Class, Kind, Stream};

use super::{
    Gap, SEGMENT_LEN, Spool, SpoolError,
    gaps::Gaps,
    index::Entry,
    record::Record,
    scan::{self, Found},
};

/// Percent of the spool that each class may fill, in the order of [`Class::ALL`].
const SHARES: [u64; Class::ALL.len()] = [15, 25, 25, 30, 5];
/// What may be dropped altogether, cheapest first.
const DROPPABLE: [Class; 3] = [Class::Keepalive, Class::Alert, Class::HighAlert];
/// Dropping goes on until a tenth is free, so that the next commits need not drop again.
const FREE_SHARE: u64 = 10;

/// What is not worth writing a segment anew for.
const LITTLE_LEN: u64 = SEGMENT_LEN / 64;

const FULL: &str = "spool_full";
const THINNED: &str = "thinned";
const TOO_OLD: &str = "too_old";

impl Spool {
    /// Drops what is too old, and what must go for so many bytes to find room. On the disk it stays until room is made, so
    /// that it can be told before it is gone.
    pub(crate) fn drop_for(&mut self, incoming: u64, only_audit: bool, now_ms: u64) -> Result<Vec<Gap>, SpoolError> {
        let mut gaps = Gaps::default();
        self.drop_old(now_ms, &mut gaps);
        let limit = self.limit(only_audit);
        if !self.has_room(incoming, limit) {
            self.remove_settled()?;
            if !self.has_room(incoming, limit) {
                let free = self.limits.max_bytes / FREE_SHARE;
                let goal = limit.saturating_sub(free).saturating_sub(incoming);
                let dropped = self.drop_down_to(goal, &mut gaps);
                if let Err(error) = dropped {
                    self.untold.append(&mut gaps.finish());
                    return Err(error);
                }
            }
        }
        Ok(gaps.finish())
    }

    /// Room for so many bytes, whatever it takes that may be taken.
    pub(super) fn make_room(&mut self, incoming: u64, only_audit: bool, now_ms: u64) -> Result<Vec<Gap>, SpoolError> {
        let gaps = self.drop_for(incoming, only_audit, now_ms)?;
        let limit = self.limit(only_audit);
        if self.has_room(incoming, limit) {
            return Ok(gaps);
        }
        let compacted = self
            .finish_segment(true)
            .and_then(|()| self.compact())
            .and_then(|()| self.remove_settled());
        let fits = self.bytes().saturating_add(incoming) <= limit;
        match compacted {
            Ok(()) if fits => return Ok(gaps),
            // What was dropped is dropped, and must be told once there is room for telling.
            _ => self.tell_later(gaps),
        }
        compacted?;
        Err(SpoolError::Full {
            used: self.bytes(),
            limit,
        })
    }

    /// How large the spool may be: what audit, enrollments and keys leave of their share is kept for them.
    fn limit(&self, only_audit: bool) -> u64 {
        let share = self.share(Class::Audit);
        let kept_free = if only_audit {
            0
        } else {
            share.saturating_sub(self.index.bytes_of(Class::Audit))
        };
        self.limits.max_bytes.saturating_sub(kept_free)
    }

    fn share(&self, class: Class) -> u64 {
        self.limits.max_bytes / 100 * SHARES[usize::from(class.code())]
    }

    fn has_room(&self, incoming: u64, limit: u64) -> bool {
        // Half a segment for the marks at the head of the next ones, and for what compaction writes beside.
        self.bytes().saturating_add(incoming).saturating_add(SEGMENT_LEN / 8) <= limit
    }

    /// Whether room could be made for something that may be refused.
    pub(crate) fn could_take(&self) -> bool {
        self.index.bytes().saturating_add(SEGMENT_LEN / 8) <= self.limit(false)
    }

    fn drop_old(&mut self, now_ms: u64, gaps: &mut Gaps) {
        let oldest = self.index.oldest_ms();
        if oldest == 0 || oldest.saturating_add(self.limits.max_age_ms) >= now_ms {
            return;
        }
        let horizon = now_ms.saturating_sub(self.limits.max_age_ms);
        for class in DROPPABLE {
            let of_class = self.index.of_class(class);
            let old: Vec<_> = of_class.filter(|(_, entry)| entry.created_ms < horizon).collect();
            self.drop_events(&old, TOO_OLD, gaps);
        }
    }

    fn drop_down_to(&mut self, goal: u64, gaps: &mut Gaps) -> Result<(), SpoolError> {
        if self.index.bytes() > goal {
            let superseded = self.superseded(Class::Keepalive, Thin::KeepLast)?;
            self.drop_events(&superseded, THINNED, gaps);
        }
        for class in DROPPABLE {
            let spare = self.index.bytes_of(class).saturating_sub(self.share(class));
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
            self.drop_event(*stream, entry, reason, gaps);
        }
    }

    /// Events of a class that a later one of the same agent and kind makes superfluous.
    fn superseded(&mut self, class: Class, thin: Thin) -> Result<Vec<(Stream, Entry)>, SpoolError> {
        // Reading all of the spool finds nothing where nothing came since.
        let newest = self
            .index
            .of_class(class)
            .map(|(_, entry)| entry.seq)
            .max()
            .unwrap_or(0);
        let before = self.thinned.insert(class, newest);
        if newest == 0 || before == Some(newest) {
            return Ok(Vec::new());
        }
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

    /// Writes each finished segment anew with only what waits in it, if much does not.
    fn compact(&mut self) -> Result<(), SpoolError> {
        let waiting = self.index.bytes_of_segments();
        for place in 0..self.segments.len().saturating_sub(1) {
            let segment = &self.segments[place];
            let left = waiting.get(&segment.number).copied().unwrap_or(0);
            if left.saturating_add(LITTLE_LEN) > segment.length {
                continue;
            }
            let bytes = segment.read()?;
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
