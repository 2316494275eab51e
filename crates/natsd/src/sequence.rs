//! Sequence and epoch: one counter over all events of this manager that never goes back.
//!
//! The state file holds a number up to which sequences are reserved. After a crash the counter goes on there, so that
//! it is above anything ever used, at the price of a hole of fewer than [`RESERVE`] numbers, which is declared: the
//! first event of an epoch says what the last sequence before it was.

use std::{io, path::Path};

use muster_proto::event::body::MAX_SEQUENCE;
use serde::{Deserialize, Serialize};

use crate::{
    aside::{Aside, Pending},
    spool::{Recovered, SpoolError, slots::Slots},
};

/// How many numbers are reserved at a time.
pub(crate) const RESERVE: u64 = 4096;

/// How many losses of the state are remembered.
const MAX_BEGUN: usize = 16;

const STATE: &str = "seq.state";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    node: String,
    epoch: u64,
    reserved_upto: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    begun: Vec<(u64, u64)>,
}

/// What is known of this node without the spool's directory, which may have been lost, or brought back from an old copy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Elsewhere {
    /// Whether there was a signing key before this start.
    pub(crate) had_key: bool,
    /// Its last epoch, as the bucket of names or the audit trail has it.
    pub(crate) epoch: Option<u64>,
}

/// A reservation that was written, or could not be.
#[derive(Debug)]
struct Reserved {
    slots: Slots,
    upto: u64,
    written: Result<(), SpoolError>,
}

/// Gives sequences out.
#[derive(Debug)]
pub(crate) struct Sequencer {
    /// Absent while the next reservation is written.
    slots: Option<Slots>,
    pending: Option<Pending<Reserved>>,
    aside: Aside,
    node: String,
    /// Which start of natsd this is.
    pub(crate) epoch: u64,
    /// The last sequence before this epoch that is known to have been used.
    pub(crate) known: u64,
    /// What the last sequence before this epoch may have been.
    pub(crate) before: u64,
    /// Whether it is not known how far the numbers had gone.
    pub(crate) state_lost: bool,
    /// Epochs with which the numbers began anew since it was so, and their first ones: at most [`MAX_BEGUN`], oldest first.
    pub(crate) begun: Vec<(u64, u64)>,
    next: u64,
    reserved_upto: u64,
}

impl Sequencer {
    /// Goes on above everything that was ever used, as far as the state file, the cursor and the spool tell. Where they do
    /// not tell it, or less than others know, the epoch is one that was never used.
    pub(crate) fn open(
        directory: &Path,
        node: &str,
        recovered: &Recovered,
        elsewhere: Elsewhere,
        now_s: u64,
    ) -> Result<Self, SpoolError> {
        let (slots, content) = Slots::open(&directory.join(STATE))?;
        let state = content.and_then(|content| serde_json::from_slice::<State>(&content).ok());
        let before = state
            .as_ref()
            .map_or(0, |state| state.reserved_upto)
            .max(recovered.last_seq);
        let known = state.as_ref().map_or(0, |state| state.epoch).max(recovered.last_epoch);
        let highest = known.max(elsewhere.epoch.unwrap_or(0));
        let fresh = state.is_none() && recovered.last_seq == 0 && !elsewhere.had_key && elsewhere.epoch.is_none();
        let state_lost = !fresh && (state.is_none() || highest > known);
        let epoch = if fresh || state_lost {
            // Nobody knows how many epochs there were; the time is above any count of starts.
            highest.max(now_s) + 1
        } else {
            highest + 1
        };
        let mut begun = state.map(|state| state.begun).unwrap_or_default();
        if state_lost {
            begun.push((epoch, before + 1));
            let surplus = begun.len().saturating_sub(MAX_BEGUN);
            begun.drain(..surplus);
        }
        let mut sequencer = Self {
            slots: Some(slots),
            pending: None,
            aside: Aside::default(),
            node: node.to_owned(),
            epoch,
            known: recovered.last_seq,
            before,
            state_lost,
            begun,
            next: before + 1,
            reserved_upto: before,
        };
        sequencer.reserve()?;
        Ok(sequencer)
    }

    /// From now on the next numbers are reserved there, before they are needed.
    pub(crate) fn work_aside(&mut self, aside: Aside) {
        self.aside = aside;
    }

    /// The next sequence. The reservation behind it is on the disk.
    pub(crate) fn next(&mut self) -> Result<u64, SpoolError> {
        if self.next > MAX_SEQUENCE {
            return Err(SpoolError::Exhausted);
        }
        if self.next + RESERVE / 2 > self.reserved_upto {
            self.reserve_ahead();
        }
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
        self.settle_pending();
        self.reserved_upto = self.last();
        self.write()
    }

    /// Waits for the disk.
    fn reserve(&mut self) -> Result<(), SpoolError> {
        self.settle_pending();
        if self.next <= self.reserved_upto {
            return Ok(());
        }
        let before = self.reserved_upto;
        self.reserved_upto = self.last() + RESERVE;
        self.write().inspect_err(|_| self.reserved_upto = before)
    }

    fn reserve_ahead(&mut self) {
        if let Some(reserved) = self.pending.as_ref().and_then(Pending::finished) {
            self.settle(reserved);
            return;
        }
        let Some(mut slots) = self.slots.take() else { return };
        let upto = self.last() + RESERVE;
        let state = self.state(upto);
        self.pending = Some(self.aside.run(move || {
            let written = slots.write(&state);
            Reserved { slots, upto, written }
        }));
    }

    fn settle_pending(&mut self) {
        if let Some(reserved) = self.pending.take().and_then(Pending::wait) {
            self.settle(reserved);
        }
    }

    fn settle(&mut self, reserved: Reserved) {
        self.pending = None;
        self.slots = Some(reserved.slots);
        // What could not be written is tried again, at the latest when the numbers have run out.
        if reserved.written.is_ok() {
            self.reserved_upto = reserved.upto;
        }
    }

    fn write(&mut self) -> Result<(), SpoolError> {
        let state = self.state(self.reserved_upto);
        match &mut self.slots {
            Some(slots) => slots.write(&state),
            None => Err(SpoolError::Io {
                what: "cannot write",
                path: STATE.into(),
                source: io::Error::other("the thread that writes it has broken off"),
            }),
        }
    }

    fn state(&self, reserved_upto: u64) -> Vec<u8> {
        let state = State {
            node: self.node.clone(),
            epoch: self.epoch,
            reserved_upto,
            begun: self.begun.clone(),
        };
        // Numbers and a text always serialise.
        serde_json::to_vec(&state).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_that_a_reader_of_json_would_not_keep_is_not_given_out() {
        let directory = tempfile::tempdir().expect("directory");
        let recovered = Recovered {
            last_seq: MAX_SEQUENCE - 1,
            ..Recovered::default()
        };
        let mut sequencer = open(directory.path(), &recovered);
        let given: Vec<_> = std::iter::from_fn(|| sequencer.next().ok()).take(3).collect();
        assert!(
            given.iter().all(|number| *number <= MAX_SEQUENCE) && given.len() < 3,
            "{given:?}"
        );
    }

    const NOW_S: u64 = 1_795_243_200;

    fn open(directory: &Path, recovered: &Recovered) -> Sequencer {
        knowing(directory, recovered, Elsewhere::default())
    }

    fn knowing(directory: &Path, recovered: &Recovered, elsewhere: Elsewhere) -> Sequencer {
        Sequencer::open(directory, "node", recovered, elsewhere, NOW_S).expect("opens")
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

    #[test]
    fn empty_directory_of_a_node_that_is_not_new_begins_an_epoch_above_all_and_says_so() {
        let opened = |had_key, epoch| {
            let directory = tempfile::tempdir().expect("directory");
            let elsewhere = Elsewhere { had_key, epoch };
            let mut sequencer = knowing(directory.path(), &Recovered::default(), elsewhere);
            assert_eq!(sequencer.next().expect("next"), 1);
            (sequencer.state_lost, sequencer.epoch)
        };
        assert_eq!(opened(false, None), (false, NOW_S + 1), "the first start ever");
        assert_eq!(opened(true, None), (true, NOW_S + 1));
        assert_eq!(opened(false, Some(7)), (true, NOW_S + 1));
        assert_eq!(opened(true, Some(NOW_S + 9)), (true, NOW_S + 10), "the clock went back");
    }

    #[test]
    fn directory_from_an_old_copy_is_known_by_the_epoch_that_the_bucket_has() {
        let directory = tempfile::tempdir().expect("directory");
        let epoch = open(directory.path(), &Recovered::default()).epoch;
        let again = |known| {
            let elsewhere = Elsewhere {
                had_key: true,
                epoch: Some(known),
            };
            let mut sequencer = knowing(directory.path(), &Recovered::default(), elsewhere);
            sequencer.close().expect("closes");
            (sequencer.state_lost, sequencer.epoch)
        };
        assert_eq!(again(epoch), (false, epoch + 1));
        assert_eq!(again(epoch + 5), (true, epoch + 6));
        assert_eq!(again(epoch + 6), (false, epoch + 7), "it is known now");
        let begun = open(directory.path(), &Recovered::default()).begun;
        assert_eq!(begun, [(epoch + 6, RESERVE + 1)], "and where the numbers began");
        for epoch in 10..30 {
            again(NOW_S + 10 * epoch);
        }
        let sequencer = open(directory.path(), &Recovered::default());
        assert_eq!(sequencer.begun.len(), MAX_BEGUN);
        let longest = vec![(u64::MAX, u64::MAX); MAX_BEGUN];
        assert!(serde_json::to_vec(&longest).expect("JSON").len() < crate::spool::slots::MAX_LEN / 2);
    }
}
