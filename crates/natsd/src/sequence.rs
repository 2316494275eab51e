//! Sequence and epoch: one counter over all events of this manager that never goes back.
//!
//! The state file holds a number up to which sequences are reserved. After a crash the counter goes on there, so that
//! it is above anything ever used, at the price of a hole of fewer than [`RESERVE`] numbers, which is declared: the
//! first event of an epoch says what the last sequence before it was.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::spool::{Recovered, SpoolError, write_atomically};

/// How many numbers are reserved at a time.
pub(crate) const RESERVE: u64 = 4096;

const STATE: &str = "seq.state";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    node: String,
    epoch: u64,
    reserved_upto: u64,
    /// CRC-32 of the other members, so that a damaged file is known for one.
    crc: u32,
}

impl State {
    fn sealed(mut self) -> Self {
        self.crc = self.checksum();
        self
    }

    fn checksum(&self) -> u32 {
        crc32fast::hash(format!("{}\n{}\n{}", self.node, self.epoch, self.reserved_upto).as_bytes())
    }
}

/// Gives sequences out.
#[derive(Debug)]
pub(crate) struct Sequencer {
    node: String,
    /// Which start of natsd this is.
    pub(crate) epoch: u64,
    /// What the last sequence before this epoch may have been.
    pub(crate) before: u64,
    /// Whether the state file was lost.
    pub(crate) state_lost: bool,
    next: u64,
    reserved_upto: u64,
}

impl Sequencer {
    /// Goes on above everything that was ever used, as far as the state file and the spool tell.
    pub(crate) fn open(directory: &Path, node: &str, recovered: &Recovered, now_s: u64) -> Result<Self, SpoolError> {
        let state = read(directory);
        let fresh = state.is_none() && recovered.last_seq == 0;
        let before = state
            .as_ref()
            .map_or(0, |state| state.reserved_upto)
            .max(recovered.last_seq);
        let epoch = match &state {
            Some(state) => state.epoch.max(recovered.last_epoch) + 1,
            // Nobody knows how many epochs there were; the time is above any count of starts.
            None => now_s.max(recovered.last_epoch) + 1,
        };
        let mut sequencer = Self {
            node: node.to_owned(),
            epoch,
            before,
            state_lost: state.is_none() && !fresh,
            next: before + 1,
            reserved_upto: before,
        };
        sequencer.reserve(directory)?;
        Ok(sequencer)
    }

    /// The next sequence. The reservation behind it is on the disk.
    pub(crate) fn next(&mut self, directory: &Path) -> Result<u64, SpoolError> {
        if self.next > self.reserved_upto {
            self.reserve(directory)?;
        }
        let sequence = self.next;
        self.next += 1;
        Ok(sequence)
    }

    /// The last one that was given out.
    pub(crate) fn last(&self) -> u64 {
        self.next - 1
    }

    /// Gives the rest of the reservation back, so that an orderly restart leaves no hole.
    pub(crate) fn close(&mut self, directory: &Path) -> Result<(), SpoolError> {
        self.reserved_upto = self.last();
        self.write(directory)
    }

    fn reserve(&mut self, directory: &Path) -> Result<(), SpoolError> {
        let before = self.reserved_upto;
        self.reserved_upto = self.last() + RESERVE;
        self.write(directory).inspect_err(|_| self.reserved_upto = before)
    }

    fn write(&self, directory: &Path) -> Result<(), SpoolError> {
        let state = State {
            node: self.node.clone(),
            epoch: self.epoch,
            reserved_upto: self.reserved_upto,
            crc: 0,
        }
        .sealed();
        // Two numbers and two texts always serialise.
        let bytes = serde_json::to_vec(&state).unwrap_or_default();
        write_atomically(directory, &directory.join(STATE), &bytes)
    }
}

fn read(directory: &Path) -> Option<State> {
    let bytes = fs::read(directory.join(STATE)).ok()?;
    let state: State = serde_json::from_slice(&bytes).ok()?;
    (state.crc == state.checksum()).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path, recovered: &Recovered) -> Sequencer {
        Sequencer::open(directory, "node", recovered, 1_795_243_200).expect("opens")
    }

    #[test]
    fn sequence_goes_on_above_anything_used_after_a_crash() {
        let directory = tempfile::tempdir().expect("directory");
        let mut highest = 0;
        for _ in 0..5 {
            let mut sequencer = open(directory.path(), &Recovered::default());
            for _ in 0..(RESERVE + 10) {
                let next = sequencer.next(directory.path()).expect("next");
                assert!(next > highest);
                highest = next;
            }
        }
    }

    #[test]
    fn orderly_restart_leaves_no_hole_and_begins_an_epoch() {
        let directory = tempfile::tempdir().expect("directory");
        let mut first = open(directory.path(), &Recovered::default());
        for _ in 0..10 {
            first.next(directory.path()).expect("next");
        }
        first.close(directory.path()).expect("closes");
        let mut second = open(directory.path(), &Recovered::default());
        assert_eq!(second.next(directory.path()).expect("next"), 11);
        assert_eq!(
            (second.epoch, second.before, second.state_lost),
            (first.epoch + 1, 10, false)
        );
    }

    #[test]
    fn lost_or_damaged_state_goes_on_above_the_spool_in_a_later_epoch() {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(
            directory.path().join(STATE),
            b"{\"node\":\"node\",\"epoch\":3,\"reserved_upto\":1,\"crc\":1}",
        )
        .expect("writes");
        let recovered = Recovered {
            last_seq: 500,
            last_epoch: 3,
            ..Recovered::default()
        };
        let mut sequencer = open(directory.path(), &recovered);
        assert!(sequencer.state_lost && sequencer.epoch > 1_000_000_000);
        assert_eq!(sequencer.next(directory.path()).expect("next"), 501);
    }
}
