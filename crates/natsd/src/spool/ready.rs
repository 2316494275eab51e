//! The next segment, made ready before it is needed.
//!
//! Its file is full of zeros that are on the disk. A commit that only overwrites them makes the disk write its own bytes
//! and no more; a file that grows has its new length noted down with each commit, which waits for whatever else the file
//! system is busy with. That takes a while, so it is done beside the commits, and one that cannot wait takes the file as
//! far as it has come.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    SEGMENT_LEN, SpoolError,
    files::{self, Segment},
};
use crate::aside::{Aside, Pending};

/// Zeros of a segment: its length, and the last commit reaches over it.
const ROOM_LEN: u64 = SEGMENT_LEN + 128 * 1024;
/// What is written before anybody who cannot wait is heard.
const STEP_LEN: u64 = 512 * 1024;
/// Commits of more bytes than this gain nothing from zeros, and pay for them.
const LARGE_COMMIT: u64 = 128 * 1024;
/// The share of the spool's limit that the files made ready may take besides.
const SHARE: u64 = 16;
/// The share of the disk's free bytes that they may take.
const FREE_SHARE: u64 = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ready {
    aside: Option<Aside>,
    /// The number of the segment that is being made.
    asked: u64,
    hurry: Arc<AtomicBool>,
    pending: Option<Pending<Result<Segment, SpoolError>>>,
    segment: Option<Segment>,
}

impl Ready {
    /// From now on segments are made, unless the spool is so small that it matters.
    pub(super) fn work_aside(&mut self, aside: Aside, max_bytes: u64) {
        self.aside = (max_bytes / SHARE >= ROOM_LEN).then_some(aside);
    }

    /// One that a run before has made and not used.
    pub(super) fn found(&mut self, segment: Segment) -> bool {
        let whole = self.segment.is_none() && segment.length >= ROOM_LEN;
        if whole {
            self.asked = segment.number;
            self.segment = Some(Segment {
                length: 0,
                made_ready: true,
                ..segment
            });
        }
        whole
    }

    /// Makes the segment of this number, once.
    pub(super) fn ask(&mut self, directory: &Path, number: u64, commit_len: u64) {
        let Some(aside) = &self.aside else { return };
        if self.asked >= number {
            return;
        }
        self.asked = number;
        self.hurry = Arc::default();
        let (hurry, directory) = (Arc::clone(&self.hurry), directory.to_owned());
        let room = if commit_len > LARGE_COMMIT { 0 } else { ROOM_LEN };
        self.pending = Some(aside.run(move || make(&directory, number, room, &hurry)));
    }

    /// Whether there is one with all its zeros.
    pub(super) fn has_room(&mut self) -> bool {
        if let Some(made) = self.pending.as_ref().and_then(Pending::finished) {
            self.settle(made);
        }
        self.segment.as_ref().is_some_and(|segment| segment.made_ready)
    }

    /// The segment, as far as it has come; none where none could be made.
    pub(super) fn take(&mut self) -> Option<Segment> {
        self.hurry.store(true, Ordering::Relaxed);
        if let Some(made) = self.pending.take().and_then(Pending::wait) {
            self.settle(made);
        }
        self.segment.take()
    }

    fn settle(&mut self, made: Result<Segment, SpoolError>) {
        self.pending = None;
        match made {
            Ok(segment) => self.segment = Some(segment),
            // The commit that needs one tries itself, and tells.
            Err(error) => tracing::debug!(error = crate::keeper::chain(&error), "cannot make a segment ready"),
        }
    }
}

fn make(directory: &Path, number: u64, room: u64, hurry: &AtomicBool) -> Result<Segment, SpoolError> {
    let room = if files::free_bytes(directory)? / FREE_SHARE < room {
        0
    } else {
        room
    };
    let segment = Segment::create(directory, number)?;
    let mut done = 0;
    while done < room && !hurry.load(Ordering::Relaxed) {
        let step = STEP_LEN.min(room - done);
        if segment.make_room(done, step).is_err() {
            break;
        }
        done += step;
    }
    Ok(Segment {
        made_ready: room > 0,
        ..segment
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(directory: &Path) -> Ready {
        let mut ready = Ready::default();
        ready.work_aside(Aside::default(), u64::MAX);
        ready.ask(directory, 7, 1000);
        ready
    }

    #[test]
    fn file_is_made_once_with_all_its_room() {
        let directory = tempfile::tempdir().expect("directory");
        let mut ready = ready(directory.path());
        ready.ask(directory.path(), 7, 1000);
        assert!(ready.has_room());
        let segment = ready.take().expect("made");
        assert_eq!((segment.number, segment.length, segment.made_ready), (7, 0, true));
        assert_eq!(segment.file.metadata().expect("there").len(), ROOM_LEN);
        assert!(!ready.has_room() && ready.take().is_none());
    }

    #[test]
    fn large_commits_get_a_file_without_zeros_and_small_spools_none() {
        let directory = tempfile::tempdir().expect("directory");
        let mut ready = Ready::default();
        ready.work_aside(Aside::default(), u64::MAX);
        ready.ask(directory.path(), 1, LARGE_COMMIT + 1);
        let segment = ready.take().expect("made");
        assert_eq!(segment.file.metadata().expect("there").len(), 0);
        let mut small = Ready::default();
        small.work_aside(Aside::default(), SHARE * ROOM_LEN - 1);
        small.ask(directory.path(), 2, 1000);
        assert!(small.take().is_none());
    }

    #[test]
    fn whoever_cannot_wait_gets_what_there_is() {
        let directory = tempfile::tempdir().expect("directory");
        let hurry = AtomicBool::new(true);
        let segment = make(directory.path(), 1, ROOM_LEN, &hurry).expect("made");
        assert_eq!(segment.file.metadata().expect("there").len(), 0);
    }

    #[test]
    fn where_none_can_be_made_there_is_none() {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::write(directory.path().join("000000000007.seg"), b"").expect("writes");
        assert!(ready(directory.path()).take().is_none());
    }
}
