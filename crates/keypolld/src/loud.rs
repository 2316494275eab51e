//! Log lines that strangers can bring about: warnings while there are few of them.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use muster_proto::bucket::{Rate, TokenBucket};

/// Lines that may be said aloud.
const RATE: Rate = Rate {
    per_second: 1,
    burst: 100,
};

/// Says whether one more line may be a warning; otherwise it is for those who look.
#[derive(Debug)]
pub struct Loud(Mutex<TokenBucket>);

impl Loud {
    /// A hundred at once, then one a second.
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(TokenBucket::new(RATE, now)))
    }

    /// Whether the next line may be loud.
    pub fn may(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(RATE, now)
    }

    /// Logs it, as a warning if it may be one.
    pub fn say(&self, line: std::fmt::Arguments<'_>) {
        if self.may(Instant::now()) {
            tracing::warn!("{line}");
        } else {
            tracing::debug!("{line}");
        }
    }
}
