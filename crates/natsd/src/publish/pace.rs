//! How fast a backlog may go to the broker: pure.

use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

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

    /// Whether an event that was made then may go now. Live events always may.
    pub(crate) fn may_go(&mut self, created_ms: u64, now_ms: u64, now: Instant) -> bool {
        if self.rate == 0 || now_ms.saturating_sub(created_ms) / 1000 <= LATE_S {
            return true;
        }
        if now.duration_since(self.second) >= SECOND {
            (self.second, self.left) = (now, self.rate);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    pub(crate) fn resume_at(&self, now: Instant) -> Option<Instant> {
        let next = self.second + SECOND;
        (self.rate > 0 && self.left == 0 && next > now).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_795_243_200_000;
    const OLD_MS: u64 = NOW_MS - 60_000;

    fn of_backlog(pace: &mut Pace, now: Instant) -> usize {
        (0..1000).take_while(|_| pace.may_go(OLD_MS, NOW_MS, now)).count()
    }

    #[test]
    fn backlog_goes_at_its_rate_each_second_and_live_events_at_once() {
        let mut pace = Pace::new(100);
        let begun = pace.second;
        for second in 0..5 {
            let now = begun + SECOND * second;
            assert_eq!(of_backlog(&mut pace, now), 100, "in second {second}");
            assert_eq!(pace.resume_at(now), Some(now + SECOND));
            assert_eq!(of_backlog(&mut pace, now + SECOND / 2), 0);
            assert!(
                pace.may_go(NOW_MS - 1000 * LATE_S, NOW_MS, now),
                "live events always may"
            );
        }
        assert_eq!(pace.resume_at(begun + SECOND * 9), None);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::new(0);
        let now = pace.second;
        assert_eq!(of_backlog(&mut pace, now), 1000);
        assert_eq!(pace.resume_at(now), None);
    }
}
