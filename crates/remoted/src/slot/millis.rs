//! The time that everything is decided by.

use std::{ops::Add, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds on the clock that neither steps nor stops while the machine sleeps (`CLOCK_BOOTTIME`).
///
/// The count begins when the machine does, so 0 is never a time that something happened at: it says *never*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// Before anything happened.
    pub const NEVER: Self = Self(0);

    /// The time now. Edges call this; cores are told.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC))
            .map_or(Duration::ZERO, Duration::from);
        Self(u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1))
    }

    /// How long ago `earlier` was; nothing when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Whether nothing happened yet.
    pub fn is_never(self) -> bool {
        self == Self::NEVER
    }
}

impl Add<Duration> for Millis {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}
