//! What is done while the disk takes nothing.
//!
//! Events are held in memory, as many as may be, and published from there. Their producers are told that they are safe
//! only when the broker has them, or the disk after all. **Invariant:** a producer is told of its events in their order.

use std::time::{Duration, Instant};

use muster_service::clock;
use serde_json::json;
use tokio::sync::oneshot;

use super::{Batch, Keeper, MAX_WAITING_BATCHES, chain, full::only_audit};
use crate::{
    alert::What,
    spool::{Gap, SpoolError, record::Stored},
};

/// The first and the longest pause before the disk is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How the disk is.
#[derive(Debug, Default)]
pub(super) struct Disk {
    failures: u32,
    /// It is not tried before.
    again: Option<Instant>,
    /// Whether events are held until then.
    holds: bool,
    /// Whether it is the spool that is full, and not the disk that fails.
    full: bool,
}

impl Disk {
    fn failed(&mut self, holds: bool, now: Instant) {
        let pause = PAUSES.0.saturating_mul(1 << self.failures.min(8)).min(PAUSES.1);
        self.failures = self.failures.saturating_add(1);
        self.again = Some(now + pause);
        self.holds = holds;
    }

    /// Whether the spool is full of what must not be dropped.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.again.is_none_or(|again| again <= now)
    }
}

/// A batch whose events are on the disk or held, and its producer was not told.
pub(super) struct Untold {
    producer: String,
    incarnation: u64,
    highest: u64,
    taken: oneshot::Sender<u64>,
}

impl From<Batch> for Untold {
    fn from(batch: Batch) -> Self {
        let highest = batch.events.iter().map(|event| event.number).max().unwrap_or(0);
        Self {
            producer: batch.producer,
            incarnation: batch.incarnation,
            highest,
            taken: batch.taken,
        }
    }
}

impl Keeper {
    /// Puts events on the disk, together with all that is held; if it does not take them, they are held as well.
    pub(super) fn store(&mut self, stored: Vec<Stored>) -> Result<Vec<Gap>, SpoolError> {
        let has_own_room = self.disk.full && (self.anyway || only_audit(&stored));
        if !self.disk.is_due(Instant::now()) && !has_own_room {
            let mut spool = self.shared.spool();
            if !self.disk.holds || !spool.may_hold(&stored) {
                return Err(SpoolError::Again);
            }
            spool.hold(stored);
            return Ok(Vec::new());
        }
        let mut spool = self.shared.spool();
        let mut all = spool.held();
        let held = all.len();
        all.extend(stored);
        let begun = if self.anyway {
            spool.begin_commit_anyway(&all).map(|commit| (commit, Vec::new()))
        } else {
            spool.begin_commit(&all, clock::unix_ms())
        };
        drop(spool);
        let written = begun.and_then(|(mut commit, gaps)| match commit.write() {
            Ok(()) => {
                self.shared.spool().finish_commit(commit, &all);
                Ok(gaps)
            }
            Err(error) => {
                self.shared.spool().tell_later(gaps);
                Err(error)
            }
        });
        let error = match written {
            Ok(gaps) => {
                if !has_own_room {
                    self.disk_works();
                }
                return Ok(gaps);
            }
            Err(error) => error,
        };
        all.drain(..held);
        let mut spool = self.shared.spool();
        // A spool that is full of what the broker does not take is no failure of the disk. Without a broker nothing is held.
        let is_disk = matches!(error, SpoolError::Io { .. }) && !self.composer.history;
        let holds = is_disk && spool.may_hold(&all);
        if holds {
            spool.hold(all);
        }
        drop(spool);
        self.disk_failed(&error, is_disk);
        if holds { Ok(Vec::new()) } else { Err(error) }
    }

    /// Nothing can be committed for now.
    pub(super) fn disk_failed(&mut self, error: &SpoolError, holds: bool) {
        self.disk.failed(holds, Instant::now());
        self.disk.full = matches!(error, SpoolError::Full { .. });
        let why = chain(error);
        if self.shared.trouble().as_ref() != Some(&why) {
            let consequence = if holds {
                "they are published from memory"
            } else {
                "they wait at their producers"
            };
            tracing::error!(error = why, consequence, "the spool cannot take events");
            self.tell_rules(What::SpoolFails, &json!({"why": why}));
            self.shared.set_trouble(Some(why));
        }
    }

    fn disk_works(&mut self) {
        if self.disk.failures > 0 {
            tracing::info!("the spool takes events again");
            self.disk = Disk::default();
            self.shared.set_trouble(None);
        }
    }

    /// Waits until trying again makes sense. What others ask for is done meanwhile, and what comes of which some has room of
    /// its own joins what waits.
    pub(super) async fn pause(&mut self, waiting: &mut Vec<Batch>) {
        let until = self.disk.again.unwrap_or_else(|| Instant::now() + PAUSES.0);
        let mut more = self.disk.full;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return,
                batch = self.batches.recv(), if more && waiting.len() < MAX_WAITING_BATCHES => {
                    more = batch.is_some();
                    waiting.extend(batch);
                    if waiting.last().is_some_and(Batch::only_audit) {
                        return;
                    }
                }
                () = self.shared.wake.notified() => {
                    let held = self.shared.spool().held_count();
                    self.run_errands();
                    self.tell();
                    // The broker has taken what was held: there is room again.
                    if held > 0 && self.shared.spool().held_count() == 0 {
                        return;
                    }
                }
            }
        }
    }

    /// What is held goes to the disk once it takes it.
    pub(super) fn try_disk_again(&mut self) {
        if self.disk.failures == 0 || !self.disk.is_due(Instant::now()) {
            return;
        }
        if self.disk.full {
            if self.shared.spool().could_take() {
                self.disk_works();
            }
            return;
        }
        if self.shared.spool().held_count() > 0 {
            // What fails is told where it fails.
            let _ = self.store(Vec::new());
            self.tell();
            return;
        }
        let tried = self.shared.spool().try_disk();
        match tried {
            Ok(()) => self.disk_works(),
            Err(error) => self.disk_failed(&error, self.disk.holds),
        }
    }

    /// Whether nothing of our own can be committed now, so that it need not be tried.
    pub(super) fn takes_nothing(&self) -> bool {
        !self.disk.holds && !self.disk.is_due(Instant::now())
    }

    /// Tells producers of what is safe.
    pub(super) fn tell(&mut self) {
        let mut spool = self.shared.spool();
        let is_safe = |batch: &mut Untold| spool.is_safe(&batch.producer, batch.incarnation, batch.highest);
        let safe: Vec<_> = self.untold.extract_if(.., is_safe).collect();
        let mut must_be_noted = false;
        for batch in &safe {
            must_be_noted |= spool.note_told(&batch.producer, batch.incarnation, batch.highest);
        }
        drop(spool);
        if must_be_noted {
            // Else the next start would miss these numbers. If it cannot be written, they are declared although they came.
            self.tidy_spool_at_last(clock::unix_ms());
        }
        for batch in safe {
            // The connection may have ended meanwhile; the next one begins with how far we are.
            let _ = batch.taken.send(batch.highest);
        }
        self.untold.retain(|batch| !batch.taken.is_closed());
    }
}
