//! How far the broker has acknowledged is written down now and then, beside the commits, and old segments go.

use super::{Keeper, chain};
use crate::{
    aside::{Aside, Pending},
    spool::{SpoolError, cursor::Tidying},
};

/// How often it is written down, when it is little.
const INTERVAL_MS: u64 = 5000;
/// How much is not little.
const NEWS: u64 = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tidy {
    pub(super) aside: Aside,
    pending: Option<Pending<Written>>,
    written_ms: u64,
    /// Why it cannot be done, as told.
    trouble: Option<String>,
}

#[derive(Debug)]
struct Written {
    tidying: Tidying,
    outcome: Result<(), SpoolError>,
}

impl Keeper {
    /// Without it events are sent again that the broker knows; so it is due when it is much, or was not done for a while.
    pub(super) fn tidy_spool(&mut self, now: u64) {
        let pending = self.tidy.pending.take();
        match pending.as_ref().map(Pending::finished) {
            Some(Some(written)) => self.finish_tidying(written, now),
            Some(None) => self.tidy.pending = pending,
            None => self.begin_tidying(now),
        }
    }

    /// The last time: waits for the disk.
    pub(super) fn tidy_spool_at_last(&mut self, now: u64) {
        if let Some(written) = self.tidy.pending.take().and_then(Pending::wait) {
            self.finish_tidying(written, now);
        }
        let tidying = self.shared.spool().begin_tidy();
        if let Some(mut tidying) = tidying {
            let outcome = tidying.write();
            self.finish_tidying(Written { tidying, outcome }, now);
        }
    }

    fn begin_tidying(&mut self, now: u64) {
        let tidying = self.shared.spool().begin_tidy();
        let Some(mut tidying) = tidying else { return };
        if tidying.news() >= NEWS || now.saturating_sub(self.tidy.written_ms) >= INTERVAL_MS {
            self.tidy.written_ms = now;
            self.tidy.pending = Some(self.tidy.aside.run(move || {
                let outcome = tidying.write();
                Written { tidying, outcome }
            }));
        } else {
            let outcome = Ok(());
            self.finish_tidying(Written { tidying, outcome }, now);
        }
    }

    fn finish_tidying(&mut self, written: Written, now: u64) {
        let finished = self.shared.spool().finish_tidy(written.tidying, now);
        match written.outcome.and(finished) {
            Ok(()) => self.tidy.trouble = None,
            Err(error) => {
                let why = chain(&error);
                if self.tidy.trouble.as_ref() != Some(&why) {
                    tracing::error!(error = why, "cannot tidy the spool");
                    self.tidy.trouble = Some(why);
                }
            }
        }
    }
}
