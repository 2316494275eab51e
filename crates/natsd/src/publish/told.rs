//! Which of the errors that a broker repeats are news: pure.
//!
//! A right that is missing is told anew for each subject, so that what stands in quotation marks makes no difference.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long nothing more is said of a kind of error.
const QUIET: Duration = Duration::from_secs(60);
/// Kinds that are remembered; with more, all are forgotten.
const MAX_KINDS: usize = 32;

/// What was told, when, and how often it came since.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeMap<String, (Instant, u64)>);

impl Told {
    /// Takes it for told.
    pub(crate) fn note(&mut self, error: &str, now: Instant) {
        if self.0.len() >= MAX_KINDS {
            self.0.clear();
        }
        self.0.insert(kind(error).to_owned(), (now, 0));
    }

    /// How many of its kind were passed over since the last one that was told; nothing when this one is passed over, too.
    pub(crate) fn news(&mut self, error: &str, now: Instant) -> Option<u64> {
        let passed_over = match self.0.get_mut(kind(error)) {
            Some((at, passed_over)) if now.duration_since(*at) < QUIET => {
                *passed_over += 1;
                return None;
            }
            Some((_, passed_over)) => *passed_over,
            None => 0,
        };
        self.note(error, now);
        Some(passed_over)
    }
}

fn kind(error: &str) -> &str {
    error.split_once('"').map_or(error, |(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_of_error_is_told_once_a_minute_with_the_number_passed_over() {
        let now = Instant::now();
        let mut told = Told::default();
        assert_eq!(told.news("no right to publish to \"a.1\"", now), Some(0));
        assert_eq!(told.news("no right to publish to \"a.2\"", now), None);
        assert_eq!(told.news("expired", now), Some(0), "another kind");
        assert_eq!(told.news("no right to publish to \"a.3\"", now + QUIET / 2), None);
        assert_eq!(told.news("no right to publish to \"a.4\"", now + QUIET), Some(2));
        assert_eq!(told.news("no right to publish to \"a.5\"", now + QUIET), None);
    }

    #[test]
    fn endless_kinds_take_no_endless_memory() {
        let mut told = Told::default();
        for number in 0..1000 {
            told.news(&format!("error {number}"), Instant::now());
        }
        assert!(told.0.len() <= MAX_KINDS);
    }
}
