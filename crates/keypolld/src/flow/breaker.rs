//! Leaving a source alone that is down.
//!
//! Only what says something about the source counts: it cannot be reached, cannot be started, or does not answer in
//! time. An answer of any kind, an error or nonsense too, shows that it works. Otherwise a stranger who sends ids that
//! the source dislikes could switch it off for everybody.

use std::time::{Duration, Instant};

/// When a source counts as down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRule {
    /// Failures in a row.
    pub failures: u32,
    /// How long it is left alone then.
    pub pause: Duration,
}

/// What one attempt says about a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered, whatever it was.
    Works,
    /// It could not be reached or started, or was silent for too long.
    Down,
}

/// What an attempt has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// The source counts as down from now on.
    WentDown,
    /// The source works again.
    CameBack,
}

/// One source.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// The pause is over, and one request finds out for all.
    Probing,
}

impl Breaker {
    /// Whether a request may go to the source now. After the pause one may; the others wait for what it finds.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                true
            }
            State::Open { .. } | State::Probing => false,
        }
    }

    /// What an admitted request has found; `None` = it did not get as far as this source.
    pub(super) fn report(&mut self, health: Option<Health>, rule: BreakerRule, now: Instant) -> Turn {
        match (health, self.state) {
            (Some(Health::Works), State::Closed) => {
                self.failures = 0;
                Turn::None
            }
            (Some(Health::Works), State::Open { .. } | State::Probing) => {
                *self = Self::default();
                Turn::CameBack
            }
            (Some(Health::Down), State::Closed) => {
                self.failures += 1;
                if self.failures < rule.failures {
                    return Turn::None;
                }
                self.state = State::Open {
                    until: now + rule.pause,
                };
                Turn::WentDown
            }
            (Some(Health::Down), State::Probing) => {
                self.state = State::Open {
                    until: now + rule.pause,
                };
                Turn::None
            }
            (None, State::Probing) => {
                // The next request may probe.
                self.state = State::Open { until: now };
                Turn::None
            }
            // Requests that were under way when it went down.
            (Some(Health::Down), State::Open { .. }) | (None, _) => Turn::None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: BreakerRule = BreakerRule {
        failures: 3,
        pause: Duration::from_secs(30),
    };
    const DOWN: Option<Health> = Some(Health::Down);
    const WORKS: Option<Health> = Some(Health::Works);

    fn broken(start: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.report(DOWN, RULE, start), Turn::None);
        assert_eq!(breaker.report(DOWN, RULE, start), Turn::None);
        assert_eq!(breaker.report(DOWN, RULE, start), Turn::WentDown);
        breaker
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            breaker.report(DOWN, RULE, start);
            breaker.report(DOWN, RULE, start);
            assert_eq!(breaker.report(WORKS, RULE, start), Turn::None);
        }
        assert!(breaker.admit(start));
    }

    #[test]
    fn a_source_that_is_down_is_left_alone_and_then_probed_once() {
        let start = Instant::now();
        let mut breaker = broken(start);
        assert!(!breaker.admit(start + Duration::from_secs(29)));
        let later = start + Duration::from_secs(30);
        assert!(breaker.admit(later));
        assert!(!breaker.admit(later));
        assert_eq!(breaker.report(DOWN, RULE, later), Turn::None);
        assert!(!breaker.admit(later + Duration::from_secs(29)));
        assert!(breaker.admit(later + Duration::from_secs(30)));
        assert_eq!(breaker.report(WORKS, RULE, later), Turn::CameBack);
        assert!(breaker.admit(later) && breaker.admit(later));
    }

    #[test]
    fn a_probe_that_went_elsewhere_leaves_the_next_one_free() {
        let start = Instant::now();
        let mut breaker = broken(start);
        let later = start + Duration::from_secs(30);
        assert!(breaker.admit(later));
        breaker.report(None, RULE, later);
        assert!(breaker.admit(later));
    }

    #[test]
    fn late_failures_do_not_prolong_the_pause_and_a_late_success_ends_it() {
        let start = Instant::now();
        let mut breaker = broken(start);
        breaker.report(DOWN, RULE, start + Duration::from_secs(20));
        assert!(breaker.admit(start + Duration::from_secs(30)));
        let mut breaker = broken(start);
        assert_eq!(breaker.report(WORKS, RULE, start), Turn::CameBack);
        assert!(breaker.is_closed());
    }
}
