//! The two clocks. Cores take their values as arguments; only edges call these functions.

use std::{
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds on a clock that never steps and also counts while the machine sleeps (`CLOCK_BOOTTIME`), since the
/// first call in this process. For time-outs.
pub fn monotonic_ms() -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    let now = boot_ms();
    now.saturating_sub(*START.get_or_init(|| now))
}

/// Unix milliseconds. Can step either way. For what people and other machines read.
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Unix seconds.
pub fn unix_s() -> u64 {
    unix_ms() / 1000
}

fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every kernel since 2.6.39 has CLOCK_BOOTTIME");
    let (seconds, nanos) = (time.tv_sec(), time.tv_nsec());
    u64::try_from(seconds).unwrap_or(0) * 1000 + u64::try_from(nanos).unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_clock_starts_near_zero_and_never_goes_back() {
        let first = monotonic_ms();
        let second = monotonic_ms();
        assert!(first <= second);
        assert!(second < 60_000, "{second}");
    }
}
