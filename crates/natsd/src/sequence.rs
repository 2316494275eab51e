//! Sequence and epoch: one counter over all events of this manager that never goes back.
//!
//! The state file holds a number up to which sequences are reserved. After a crash the counter goes on there, so that
//! it is above anything ever used, at the price of a hole of fewer than [`RESERVE`] numbers, which is declared: the
//! first event of an epoch says what the last sequence before it was.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::spool::{Recovered, SpoolError, slots::Slots};

/// How many numbers are reserved at a time.
pub(crate) const RESERVE: u64 = 4096;

const STATE: &str = "seq.state";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    node: String,
    epoch: u64,
    reserved_upto: u64,
}

/// Gives sequences out.
#[derive(Debug)]
pub(crate) struct Sequencer {
    slots: Slots,
    node: String,
    /// Which start of natsd this is.
    pub(crate) epoch: u64,
    /// The last sequence before this epoch that is known to have been used.
    pub(crate) known: u64,
    /// What the last sequence before this epoch may have been.
    pub(crate) before: u64,
    /// Whether the state file was lost.
    pub(crate) state_lost: bool,
    next: u64,
    reserved_upto: u64,
}

impl Sequencer {
    /// Goes on above everything that was ever used, as far as the state file, the cursor and the spool tell.
    pub(crate) fn open(directory: &Path, node: &str, recovered: &Recovered, now_s: u64) -> Result<Self, SpoolError> {
        let (slots, content) = Slots::open(&directory.join(STATE))?;
        let state = content.and_then(|content| serde_json::from_slice::<State>(&content).ok());
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
            slots,
            node: node.to_owned(),
            epoch,
            known: recovered.last_seq,
            before,
            state_lost: state.is_none() && !fresh,
            next: before + 1,
            reserved_upto: before,
        };
        sequencer.reserve()?;
        Ok(sequencer)
    }

    /// The next sequence. The reservation behind it is on the disk.
    pub(crate) fn next(&mut self) -> Result<u64, SpoolError> {
        if self.next > self.reserved_upto {
            self.reserve()?;
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
    pub(crate) fn close(&mut self) -> Result<(), SpoolError> {
        self.reserved_upto = self.last();
        self.write()
    }

    fn reserve(&mut self) -> Result<(), SpoolError> {
        let before = self.reserved_upto;
        self.reserved_upto = self.last() + RESERVE;
        self.write().inspect_err(|_| self.reserved_upto = before)
    }

    fn write(&mut self) -> Result<(), SpoolError> {
        let state = State {
            node: self.node.clone(),
            epoch: self.epoch,
            reserved_upto: self.reserved_upto,
        };
        // Two numbers and a text always serialise.
        self.slots.write(&serde_json::to_vec(&state).unwrap_or_default())
    }
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
                let next = sequencer.next().expect("next");
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
            first.next().expect("next");
        }
        first.close().expect("closes");
        let mut second = open(directory.path(), &Recovered::default());
        assert_eq!(second.next().expect("next"), 11);
        assert_eq!(
            (second.epoch, second.before, second.state_lost),
            (first.epoch + 1, 10, false)
        );
    }

    #[test]
    fn lost_or_damaged_state_goes_on_above_the_spool_in_a_later_epoch() {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::write(directory.path().join(STATE), b"{\"node\":\"node\",\"epoch\":3}").expect("writes");
        let recovered = Recovered {
            last_seq: 500,
            last_epoch: 3,
            ..Recovered::default()
        };
        let mut sequencer = open(directory.path(), &recovered);
        assert!(sequencer.state_lost && sequencer.epoch > 1_000_000_000);
        assert_eq!(sequencer.next().expect("next"), 501);
    }
}
