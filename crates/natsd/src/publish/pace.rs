//! How fast a backlog may go to the broker: pure.

use std::time::{Duration, Instant};

use muster_service::clock;

use crate::spool::record::Stored;

/// From this age on an event says how late it is.
pub(crate) const LATE_S: u64 = 5;

/// How fast a backlog may go, to protect the broker.
pub(crate) struct Pace {
    rate: u32,
    second: Instant,
    left: u32,
}

impl Pace {
    pub(crate) fn new(rate: u32) -> Self {
        Self {
            rate,
            second: Instant::now(),
            left: rate,
        }
    }

    /// Live events always may.
    pub(crate) fn may_go(&mut self, event: &Stored, now: Instant) -> bool {
        if self.rate == 0 || clock::unix_ms().saturating_sub(event.created_ms) / 1000 <= LATE_S {
            return true;
        }
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.left) = (now, self.rate);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    pub(crate) fn resume_at(&self, now: Instant) -> Option<Instant> {
        let next = self.second + Duration::from_secs(1);
        (self.rate > 0 && self.left == 0 && next > now).then_some(next)
    }
}
