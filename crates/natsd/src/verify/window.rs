//! Which of the last numbers were seen.

/// How many numbers below the highest are told apart.
pub(super) const SIZE: u64 = 65_536;
const WORDS: usize = 1024;

/// Whether a number came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    First,
    Before,
    /// Below the window: nobody knows.
    TooOld,
}

/// A sliding bitmap.
pub(super) struct Window {
    highest: u64,
    bits: Vec<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            highest: 0,
            bits: vec![0; WORDS],
        }
    }
}

impl Window {
    pub(super) fn look(&self, number: u64) -> Seen {
        if number > self.highest {
            return Seen::First;
        }
        if number.saturating_add(SIZE) <= self.highest {
            return Seen::TooOld;
        }
        let (word, bit) = place(number);
        if self.bits[word] & bit == 0 {
            Seen::First
        } else {
            Seen::Before
        }
    }

    pub(super) fn note(&mut self, number: u64) -> Seen {
        let seen = self.look(number);
        if seen != Seen::First {
            return seen;
        }
        if number > self.highest {
            if number - self.highest >= SIZE {
                self.bits.fill(0);
            } else {
                for between in self.highest + 1..=number {
                    let (word, bit) = place(between);
                    self.bits[word] &= !bit;
                }
            }
            self.highest = number;
        }
        let (word, bit) = place(number);
        self.bits[word] |= bit;
        seen
    }
}

fn place(number: u64) -> (usize, u64) {
    let within = number % SIZE;
    (usize::try_from(within / 64).unwrap_or(0), 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn tells_first_from_again_within_its_size(numbers in vec(prop_oneof![1..200_u64, 60_000..140_000_u64], 1..300)) {
            let (mut window, mut seen, mut highest) = (Window::default(), BTreeSet::new(), 0);
            for number in numbers {
                let expected = if number + SIZE <= highest {
                    Seen::TooOld
                } else if seen.insert(number) {
                    Seen::First
                } else {
                    Seen::Before
                };
                highest = highest.max(number);
                prop_assert_eq!(window.look(number), expected);
                prop_assert_eq!(window.note(number), expected);
            }
        }
    }
}
