//! Whether a worker that has nothing left to do waits a little before it looks again, so that one wake-up serves many
//! connections: to be woken costs as much as several messages.
//!
//! It waits only while messages come one by one, and so often that some will come meanwhile. A busy worker gathers
//! them while it works, and at a quiet one nothing would gather. A message is late by one such wait at most; time and
//! counts go in, the wait comes out.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::tally::{Tallies, Tally};

/// How long messages are counted before their rate is worked out.
const WINDOW: Duration = Duration::from_millis(20);
/// So many in one round, and the worker is busy.
const BUSY_ROUND: u64 = 32;
/// Waiting for more would save little.
const ENOUGH: f64 = 16.0;
/// Fewer are not waited for.
const WORTH_IT: f64 = 1.5;

/// What the waits of one worker hang on.
#[derive(Debug)]
pub(super) struct Gather {
    longest: Duration,
    /// When the counting began, and at what count.
    window: (Instant, u64),
    seen: u64,
    /// Messages a second, when they were last counted.
    rate: f64,
}

impl Gather {
    /// Waits of at most `longest`; zero: none.
    pub(super) fn new(longest: Duration, now: Instant) -> Self {
        Self {
            longest,
            window: (now, 0),
            seen: 0,
            rate: 0.0,
        }
    }

    /// The worker has nothing left to do, and has had so many messages in its life. How long it is to wait.
    pub(super) fn wait(&mut self, messages: u64, now: Instant) -> Option<Duration> {
        let round = messages.saturating_sub(std::mem::replace(&mut self.seen, messages));
        let (begun, before) = self.window;
        let counted = now.saturating_duration_since(begun);
        if counted >= WINDOW {
            self.rate = as_f64(messages.saturating_sub(before)) / counted.as_secs_f64();
            self.window = (now, messages);
        }
        if round == 0 || round >= BUSY_ROUND || self.rate * self.longest.as_secs_f64() < WORTH_IT {
            return None;
        }
        Some(self.longest.min(Duration::from_secs_f64(ENOUGH / self.rate)))
    }
}

/// What a worker's thread does before it waits for something to happen.
#[expect(
    clippy::disallowed_methods,
    reason = "the thread has nothing to do, and what comes meanwhile is what it waits for"
)]
pub(super) fn before_park(longest: Duration, tallies: Arc<Tallies>) -> impl Fn() + Send + Sync {
    let gather = Mutex::new(Gather::new(longest, Instant::now()));
    move || {
        let messages = tallies.read(Tally::MessagesReceived);
        let wait = gather
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait(messages, Instant::now());
        if let Some(wait) = wait {
            thread::sleep(wait);
        }
    }
}

fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(2);

    /// A worker that has `round` messages in each of its rounds, which come `every` so often. Its last wait.
    fn after_a_while(longest: Duration, round: u64, every: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let mut gather = Gather::new(longest, begun);
        let mut wait = None;
        for number in 1..=1000 {
            wait = gather.wait(u64::from(number) * round, begun + every * number);
        }
        wait
    }

    #[test]
    fn messages_that_come_one_by_one_and_often_are_waited_for() {
        assert_eq!(after_a_while(LONGEST, 1, Duration::from_millis(1)), Some(LONGEST));
    }

    #[test]
    fn messages_that_come_seldom_are_not_waited_for() {
        assert_eq!(after_a_while(LONGEST, 1, Duration::from_millis(10)), None);
    }

    #[test]
    fn more_messages_make_a_shorter_wait_and_many_none() {
        let wait = after_a_while(LONGEST, 10, Duration::from_micros(500)).unwrap();
        assert!(wait < LONGEST && wait > LONGEST / 4, "{wait:?}");
        assert_eq!(after_a_while(LONGEST, BUSY_ROUND, Duration::from_micros(500)), None);
    }

    #[test]
    fn wake_up_that_brought_no_message_is_not_followed_by_a_wait() {
        let begun = Instant::now();
        let mut gather = Gather::new(LONGEST, begun);
        assert_eq!(gather.wait(100, begun + WINDOW), None);
        assert_eq!(gather.wait(101, begun + WINDOW), Some(LONGEST));
        assert_eq!(gather.wait(101, begun + WINDOW), None);
    }

    #[test]
    fn silence_ends_the_waiting_at_once() {
        let begun = Instant::now();
        let mut gather = Gather::new(LONGEST, begun);
        gather.wait(31, begun + WINDOW);
        assert!(gather.wait(32, begun + WINDOW).is_some());
        assert_eq!(gather.wait(33, begun + Duration::from_secs(1)), None);
    }

    #[test]
    fn nothing_is_waited_for_when_the_option_says_so() {
        assert_eq!(after_a_while(Duration::ZERO, 1, Duration::from_millis(1)), None);
    }
}
