//! What happens to events when nobody takes them: first the senders wait, then events are dropped or the senders wait
//! on, as the operator chose. Pure: levels and times in, decisions out.

use std::time::Duration;

use muster_config::WhenFull;

use crate::slot::Millis;

/// The longest that reading is paused before `<when_full>` decides. An agent that cannot send for 60 s reconnects.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Senders wait from this many waiting bytes on, per worker.
pub(crate) const HIGH_MARK: usize = 4 * 1024 * 1024;
/// Agents that bring little are read on until here: they need not wait for those that bring much.
pub(crate) const QUIET_MARK: usize = 8 * 1024 * 1024;
/// And read again below this.
pub(crate) const LOW_MARK: usize = 2 * 1024 * 1024;
/// More never waits, whoever sends it: the room above the high mark is for what was read before its connection
/// was paused.
pub(crate) const CAP: usize = 16 * 1024 * 1024;

/// Whether senders must wait before they are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Read on.
    Open,
    /// Wait until the queue falls below the low mark, or until this time.
    PausedUntil(Millis),
    /// Wait until the queue falls below the low mark.
    Paused,
}

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Talker {
    /// One that brings little.
    Quiet,
    /// One that brings more than its share.
    Loud,
}

/// The state between the marks.
#[derive(Debug)]
pub(crate) struct Valve {
    when_full: WhenFull,
    full_since: Option<Millis>,
}

impl Valve {
    pub(crate) fn new(when_full: WhenFull) -> Self {
        Self {
            when_full,
            full_since: None,
        }
    }

    /// The queue holds so many bytes now. Says whether the senders that wait may go on.
    pub(crate) fn level(&mut self, bytes: usize, now: Millis) -> bool {
        if bytes >= HIGH_MARK {
            self.full_since.get_or_insert(now);
        } else if bytes < LOW_MARK {
            return self.full_since.take().is_some();
        }
        false
    }

    /// Whether a sender is read now.
    pub(crate) fn flow(&self, now: Millis) -> Flow {
        match (self.full_since, self.when_full) {
            (None, _) => Flow::Open,
            (Some(_), WhenFull::Block) => Flow::Paused,
            (Some(since), WhenFull::Drop) if now >= since + LONGEST_PAUSE => Flow::Open,
            (Some(since), WhenFull::Drop) => Flow::PausedUntil(since + LONGEST_PAUSE),
        }
    }

    /// Whether such an agent is read though others wait.
    pub(crate) fn lets_pass(&self, bytes: usize, talker: Talker) -> bool {
        talker == Talker::Quiet && bytes < QUIET_MARK
    }

    /// Whether one more event may wait. A sender that can be paused is taken at its word up to the cap while it is
    /// being paused; one that cannot, and everybody once the pause is over, only up to the high mark, or a little more
    /// when it brings little: what is lost then are the events of those that bring much.
    pub(crate) fn admits(&self, bytes: usize, can_wait: bool, talker: Talker, now: Millis) -> bool {
        let limit = match talker {
            _ if can_wait && self.flow(now) != Flow::Open => CAP,
            Talker::Quiet => QUIET_MARK,
            Talker::Loud => HIGH_MARK,
        };
        bytes < limit
    }

    /// Since when senders wait or lose events.
    pub(crate) fn full_since(&self) -> Option<Millis> {
        self.full_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Millis = Millis(1000);

    fn later(seconds: u64) -> Millis {
        START + Duration::from_secs(seconds)
    }

    #[test]
    fn senders_wait_from_the_high_mark_until_the_low_one() {
        let mut valve = Valve::new(WhenFull::Drop);
        assert!(!valve.level(HIGH_MARK - 1, START));
        assert_eq!(valve.flow(START), Flow::Open);
        valve.level(HIGH_MARK, START);
        assert_eq!(valve.flow(later(1)), Flow::PausedUntil(later(20)));
        assert!(!valve.level(LOW_MARK, later(2)));
        assert_eq!(valve.flow(later(2)), Flow::PausedUntil(later(20)));
        assert!(valve.level(LOW_MARK - 1, later(3)), "waiters are told");
        assert_eq!(valve.flow(later(3)), Flow::Open);
    }

    #[test]
    fn after_the_longest_pause_events_are_dropped_above_the_high_mark_and_taken_below() {
        let mut valve = Valve::new(WhenFull::Drop);
        valve.level(HIGH_MARK, START);
        assert!(valve.admits(HIGH_MARK, true, Talker::Loud, later(19)));
        assert_eq!(valve.flow(later(20)), Flow::Open);
        assert!(!valve.admits(HIGH_MARK, true, Talker::Loud, later(20)));
        assert!(valve.admits(HIGH_MARK - 1, true, Talker::Loud, later(20)));
    }

    #[test]
    fn block_never_lets_go_by_itself() {
        let mut valve = Valve::new(WhenFull::Block);
        valve.level(HIGH_MARK, START);
        assert_eq!(valve.flow(later(1_000_000)), Flow::Paused);
    }

    #[test]
    fn who_cannot_wait_is_dropped_at_the_high_mark_and_nobody_passes_the_cap() {
        let mut valve = Valve::new(WhenFull::Block);
        valve.level(HIGH_MARK, START);
        assert!(!valve.admits(HIGH_MARK, false, Talker::Loud, START));
        assert!(valve.admits(HIGH_MARK, true, Talker::Loud, START));
        assert!(!valve.admits(CAP, true, Talker::Loud, START));
    }

    #[test]
    fn who_brings_little_neither_waits_nor_loses_events_while_others_do() {
        let mut valve = Valve::new(WhenFull::Drop);
        valve.level(HIGH_MARK, START);
        assert!(valve.lets_pass(HIGH_MARK, Talker::Quiet) && !valve.lets_pass(HIGH_MARK, Talker::Loud));
        assert!(!valve.lets_pass(QUIET_MARK, Talker::Quiet));
        assert!(valve.admits(HIGH_MARK, false, Talker::Quiet, START));
        assert!(valve.admits(HIGH_MARK, true, Talker::Quiet, later(20)));
        assert!(!valve.admits(QUIET_MARK, true, Talker::Quiet, later(20)));
    }
}
