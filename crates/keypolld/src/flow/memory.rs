//! Look-ups that are remembered until a time of their own, so many at most.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::lookup::Lookup;

/// A bounded set with expiry. When it is full the oldest entry is forgotten, which costs a look-up at worst.
#[derive(Debug)]
pub(super) struct Memory {
    most: usize,
    until: HashMap<Lookup, Instant>,
    /// In the order of remembering. An entry that was remembered again stands here twice; the map has its real end.
    order: VecDeque<Lookup>,
}

impl Memory {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            until: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(super) fn remember(&mut self, lookup: Lookup, time: Duration, now: Instant) {
        if time.is_zero() {
            return;
        }
        while self.order.len() >= self.most {
            let Some(oldest) = self.order.pop_front() else { break };
            self.until.remove(&oldest);
        }
        self.until.insert(lookup.clone(), now + time);
        self.order.push_back(lookup);
    }

    pub(super) fn knows(&mut self, lookup: &Lookup, now: Instant) -> bool {
        match self.until.get(lookup) {
            Some(until) if now < *until => true,
            Some(_) => {
                self.until.remove(lookup);
                false
            }
            None => false,
        }
    }

    /// Whether it was known; it is not any more.
    pub(super) fn take(&mut self, lookup: &Lookup, now: Instant) -> bool {
        self.until.remove(lookup).is_some_and(|until| now < until)
    }

    pub(super) fn forget_all(&mut self) {
        self.until.clear();
        self.order.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.until.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> Lookup {
        Lookup::new("id", &number.to_string()).unwrap()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_entry_is_known_until_its_time_is_over() {
        let start = Instant::now();
        let mut memory = Memory::new(10);
        memory.remember(id(1), MINUTE, start);
        assert!(memory.knows(&id(1), start + MINUTE - Duration::from_millis(1)));
        assert!(!memory.knows(&id(1), start + MINUTE));
        assert_eq!(memory.len(), 0);
    }

    #[test]
    fn no_time_is_no_memory() {
        let start = Instant::now();
        let mut memory = Memory::new(10);
        memory.remember(id(1), Duration::ZERO, start);
        assert!(!memory.knows(&id(1), start));
    }

    #[test]
    fn the_oldest_goes_when_it_is_full() {
        let start = Instant::now();
        let mut memory = Memory::new(3);
        for number in 1..=1000 {
            memory.remember(id(number), MINUTE, start);
            assert!(memory.len() <= 3 && memory.order.len() <= 3);
        }
        assert!(memory.knows(&id(998), start) && !memory.knows(&id(997), start));
    }

    #[test]
    fn what_is_remembered_again_and_again_stays_bounded() {
        let start = Instant::now();
        let mut memory = Memory::new(3);
        for _ in 0..1000 {
            memory.remember(id(1), MINUTE, start);
        }
        assert!(memory.knows(&id(1), start));
        assert!(memory.order.len() <= 3);
    }

    #[test]
    fn taking_is_knowing_once() {
        let start = Instant::now();
        let mut memory = Memory::new(3);
        memory.remember(id(1), MINUTE, start);
        assert!(memory.take(&id(1), start));
        assert!(!memory.take(&id(1), start));
    }
}
