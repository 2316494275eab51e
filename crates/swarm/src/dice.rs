//! Repeatable randomness: the same `--seed` picks the same agents, phases and padding.

/// A splitmix64 generator. Nothing secret hangs on it: the keys come from the manager.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// A generator that always gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another generator, independent of this one's later numbers.
    pub fn fork(&mut self) -> Self {
        Self(self.roll())
    }

    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll().checked_rem(bound).unwrap_or(0)
    }

    /// A length of time between things that happen by chance, once per unit on average: never more than 37.
    pub fn exponential(&mut self) -> f64 {
        // The upper 53 bits are as many as a fraction holds; one is added so that it is never zero.
        let fraction = ((self.roll() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -fraction.ln()
    }

    /// The random field of a message's inner header.
    pub fn field(&mut self) -> u16 {
        let [low, high, ..] = self.roll().to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// The initialisation vector of a message in OSSEC 4's form.
    pub fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (low, high) = bytes.split_at_mut(8);
        low.copy_from_slice(&self.roll().to_le_bytes());
        high.copy_from_slice(&self.roll().to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_numbers_and_a_fork_gives_others() {
        let (mut one, mut two) = (Dice::new(7), Dice::new(7));
        assert_eq!(one.roll(), two.roll());
        let mut fork = one.fork();
        assert_ne!(fork.roll(), one.roll());
    }

    #[test]
    fn chance_keeps_its_average() {
        let mut dice = Dice::new(1);
        let sum: f64 = (0..10_000).map(|_| dice.exponential()).sum();
        assert!((9_500.0..10_500.0).contains(&sum), "{sum}");
    }

    #[test]
    fn a_bound_of_zero_gives_zero() {
        assert_eq!(Dice::new(1).below(0), 0);
    }
}
