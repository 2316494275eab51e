//! What a segment's bytes hold, after any crash: pure.
//!
//! A commit writes a [`Boundary`](super::record::Record::Boundary), then its records, then waits for the disk. So all
//! that stands before the last boundary was on the disk once: a bad record there has been damaged since, is passed
//! over, and is told. A bad record behind the last boundary of the last segment is a commit that a crash cut short;
//! nobody was told that it is safe, so the segment ends there. Zeros up to the end are room for what never came.

use super::record::{Record, RecordError};

/// Something in a segment.
#[derive(Debug)]
pub(crate) enum Found {
    /// A readable record that is no boundary.
    Record {
        /// Where it begins.
        offset: usize,
        /// All of its bytes.
        length: usize,
        /// What it says.
        record: Record,
    },
    /// A record that was damaged after it had been safe.
    Damage,
}

/// What was found altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Where the good part ends; what follows is to be cut off.
    pub(crate) end: usize,
    /// Records that were damaged after they had been safe.
    pub(crate) damaged: u64,
}

/// Reads a whole segment. `last` says whether it is the one that was being written.
pub(crate) fn scan(bytes: &[u8], last: bool, mut visit: impl FnMut(Found)) -> Scan {
    let unsafe_from = if last { last_boundary(bytes) } else { bytes.len() };
    let mut scan = Scan::default();
    while scan.end < bytes.len() {
        match Record::read(&bytes[scan.end..]) {
            Ok((record, length)) => {
                if record != Record::Boundary {
                    let offset = scan.end;
                    visit(Found::Record { offset, length, record });
                }
                scan.end += length;
            }
            Err(_) if scan.end >= unsafe_from || is_room(&bytes[scan.end..]) => break,
            Err(error) => {
                visit(Found::Damage);
                let boundary = next_boundary(bytes, scan.end + 1).unwrap_or(bytes.len());
                scan.damaged += 1;
                scan.end = match error {
                    RecordError::Checksum { skip } | RecordError::Unknown { skip } => boundary.min(scan.end + skip),
                    // The length field itself is damaged. So it is where a record would reach over a boundary.
                    RecordError::Short | RecordError::Length => boundary,
                };
            }
        }
    }
    scan
}

/// Whether nothing was ever written there.
pub(crate) fn is_room(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Where the last boundary stands; 0 when there is none, so that nothing is taken for safe.
fn last_boundary(bytes: &[u8]) -> usize {
    let mut found = 0;
    let mut from = 0;
    while let Some(next) = next_boundary(bytes, from) {
        found = next;
        from = next + 1;
    }
    found
}

fn next_boundary(bytes: &[u8], from: usize) -> Option<usize> {
    let boundary = super::boundary_bytes();
    let found = bytes
        .get(from..)?
        .windows(boundary.len())
        .position(|window| window == boundary)?;
    Some(from + found)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::spool::{
        boundary_bytes,
        record::{Stored, tests::stored},
    };

    fn events(bytes: &[u8], last: bool) -> (Vec<Stored>, Scan) {
        let mut events = vec![];
        let scan = scan(bytes, last, |found| {
            if let Found::Record {
                record: Record::Event(event),
                ..
            } = found
            {
                events.push(*event);
            }
        });
        (events, scan)
    }

    /// A segment of several commits: its bytes, and where each commit ends.
    fn segment(commits: &[Vec<Stored>]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (vec![], vec![]);
        for commit in commits {
            bytes.extend_from_slice(boundary_bytes());
            for event in commit {
                Record::Event(Box::new(event.clone())).write(&mut bytes);
            }
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn commits() -> impl Strategy<Value = Vec<Vec<Stored>>> {
        vec(vec(stored(), 1..4), 1..5)
    }

    proptest! {
        #[test]
        fn cut_anywhere_every_finished_commit_survives(commits in commits(), cut in any::<prop::sample::Index>()) {
            let (bytes, ends) = segment(&commits);
            let cut = cut.index(bytes.len() + 1);
            let (found, scan) = events(&bytes[..cut], true);
            let finished = ends.iter().filter(|end| **end <= cut).count();
            let safe: Vec<_> = commits[..finished].concat();
            prop_assert!(found.len() >= safe.len() && found[..safe.len()] == safe[..]);
            prop_assert!(found[..] == commits.concat()[..found.len()], "and what else there is was written");
            prop_assert_eq!(scan.damaged, 0);
        }

        #[test]
        fn garbage_behind_the_last_commit_is_cut_off(commits in commits(), garbage in vec(any::<u8>(), 1..64)) {
            let (mut bytes, ends) = segment(&commits);
            bytes.extend_from_slice(&garbage);
            let (_, scan) = events(&bytes, true);
            prop_assert_eq!(Some(&scan.end), ends.last());
        }

        #[test]
        fn damage_before_the_last_commit_loses_no_other_commit(
            commits in vec(vec(stored(), 1..4), 2..5),
            place in any::<prop::sample::Index>(),
            bit in 0..8,
        ) {
            let (mut bytes, ends) = segment(&commits);
            let place = place.index(ends[ends.len() - 2]);
            bytes[place] ^= 1_u8 << bit;
            let hit = ends.iter().position(|end| place < *end).expect("inside");
            let (found, _) = events(&bytes, true);
            for (number, commit) in commits.iter().enumerate() {
                if number != hit {
                    prop_assert!(commit.iter().all(|event| found.contains(event)), "commit {} is whole", number);
                }
            }
        }

        #[test]
        fn room_behind_the_last_commit_is_no_damage(commits in commits(), room in 1..5000_usize, last in any::<bool>()) {
            let (mut bytes, ends) = segment(&commits);
            bytes.resize(bytes.len() + room, 0);
            let (found, scan) = events(&bytes, last);
            prop_assert_eq!(found, commits.concat());
            prop_assert_eq!((Some(&scan.end), scan.damaged), (ends.last(), 0));
        }

        #[test]
        fn any_bytes_are_scanned_without_a_panic(bytes in vec(any::<u8>(), 0..400), last in any::<bool>()) {
            let (_, scan) = events(&bytes, last);
            prop_assert!(scan.end <= bytes.len() || scan.damaged > 0);
        }
    }
}
