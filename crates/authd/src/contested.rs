//! Names that change hands again and again: two hosts with one name, each taking the other's place for ever.
//!
//! Both are let in, since the rules allow it; but somebody should know.

use std::collections::{HashMap, VecDeque};

/// So many replacements ...
const MANY: usize = 3;
/// ... within so many seconds are no accident.
const WINDOW: u64 = 3600;
/// As many names are watched. When all places hold recent names, further ones are not watched.
const MAX_NAMES: usize = 4096;

/// When names changed hands.
#[derive(Default)]
pub struct Contested {
    replaced_at: HashMap<String, VecDeque<u64>>,
}

impl Contested {
    /// A name changed hands at `now` (Unix seconds). `true` when that has happened too often; then its count begins
    /// anew.
    pub fn note(&mut self, name: &str, now: u64) -> bool {
        let is_recent = |time: &u64| now.saturating_sub(*time) < WINDOW;
        if self.replaced_at.len() >= MAX_NAMES {
            self.replaced_at.retain(|_, times| times.back().is_some_and(is_recent));
        }
        if self.replaced_at.len() >= MAX_NAMES && !self.replaced_at.contains_key(name) {
            return false;
        }
        let times = self.replaced_at.entry(name.to_owned()).or_default();
        times.retain(is_recent);
        times.push_back(now);
        let is_contested = times.len() >= MANY;
        if is_contested {
            self.replaced_at.remove(name);
        }
        is_contested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_replacements_within_an_hour_are_too_many() {
        let mut contested = Contested::default();
        assert!(!contested.note("a1", 0) && !contested.note("a1", 10) && !contested.note("b1", 10));
        assert!(contested.note("a1", 20));
        assert!(!contested.note("a1", 30), "the count has begun anew");
    }

    #[test]
    fn replacements_that_lie_far_apart_are_not() {
        let mut contested = Contested::default();
        assert!((0..10).all(|hour| !contested.note("a1", hour * WINDOW)));
    }

    #[test]
    fn the_table_stays_bounded() {
        let mut contested = Contested::default();
        for number in 0..MAX_NAMES + 10 {
            contested.note(&format!("n{number}"), 0);
        }
        assert_eq!(contested.replaced_at.len(), MAX_NAMES);
        contested.note("new", 2 * WINDOW);
        assert_eq!(contested.replaced_at.len(), 1);
    }
}
