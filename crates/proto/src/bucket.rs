//! Token buckets: so many at once, and so many a second in the long run.
//!
//! Time is a parameter; it must not run backwards, and if it does, no tokens are added.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// How much is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens added a second; 0 = no limit at all.
    pub per_second: u32,
    /// Tokens that a bucket holds, at least 1.
    pub burst: u32,
}

impl Rate {
    /// Everything passes.
    pub const UNLIMITED: Self = Self {
        per_second: 0,
        burst: 1,
    };

    fn capacity(self) -> u64 {
        u64::from(self.burst.max(1)).saturating_mul(NANOS)
    }
}

/// One token is this many units, so that a nanosecond adds `per_second` of them.
const NANOS: u64 = 1_000_000_000;

/// One bucket. It starts full.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    units: u64,
    filled_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            units: rate.capacity(),
            filled_at: now,
        }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        if rate.per_second == 0 {
            return true;
        }
        self.fill(rate, now);
        match self.units.checked_sub(NANOS) {
            Some(left) => {
                self.units = left;
                true
            }
            None => false,
        }
    }

    /// Gives a token back, for work that in the end was not done.
    pub fn give_back(&mut self, rate: Rate) {
        self.units = self.units.saturating_add(NANOS).min(rate.capacity());
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.units = self
            .units
            .saturating_add(nanos.saturating_mul(rate.per_second.into()))
            .min(rate.capacity());
        self.filled_at = self.filled_at.max(now);
    }

    fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now);
        self.units == rate.capacity()
    }
}

/// A bucket for each key, such as a source address.
///
/// At most `most` keys are remembered. Buckets that have filled up are forgotten first, which changes nothing; when
/// all are in use, new keys share one bucket, so that a flood from very many addresses is held to one address's rate
/// and known addresses are not.
#[derive(Debug)]
pub struct KeyedBuckets<K> {
    rate: Rate,
    most: usize,
    buckets: HashMap<K, TokenBucket>,
    shared: TokenBucket,
    swept_at: Instant,
}

/// A full table is searched for forgettable buckets at most this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

impl<K: Eq + Hash> KeyedBuckets<K> {
    /// No keys yet.
    pub fn new(rate: Rate, most: usize, now: Instant) -> Self {
        Self {
            rate,
            most,
            buckets: HashMap::new(),
            shared: TokenBucket::new(rate, now),
            swept_at: now,
        }
    }

    /// Changes the rate; buckets keep what they have.
    pub fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// Takes a token from a key's bucket if there is one.
    pub fn take(&mut self, key: K, now: Instant) -> bool {
        if self.rate.per_second == 0 {
            return true;
        }
        let rate = self.rate;
        if let Some(bucket) = self.buckets.get_mut(&key) {
            return bucket.take(rate, now);
        }
        if self.buckets.len() >= self.most {
            self.sweep(now);
        }
        if self.buckets.len() >= self.most {
            return self.shared.take(rate, now);
        }
        self.buckets
            .entry(key)
            .or_insert_with(|| TokenBucket::new(rate, now))
            .take(rate, now)
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept_at) < SWEEP_INTERVAL {
            return;
        }
        self.swept_at = now;
        let rate = self.rate;
        self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 3,
    };

    fn taken(bucket: &mut TokenBucket, tries: usize, now: Instant) -> usize {
        (0..tries).filter(|_| bucket.take(RATE, now)).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(RATE, start);
        assert_eq!(taken(&mut bucket, 10, start), 3);
        assert_eq!(taken(&mut bucket, 10, start + Duration::from_millis(99)), 0);
        assert_eq!(taken(&mut bucket, 10, start + Duration::from_millis(100)), 1);
        assert_eq!(taken(&mut bucket, 10, start + Duration::from_secs(3600)), 3);
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Rate::UNLIMITED, now);
        assert!((0..1000).all(|_| bucket.take(Rate::UNLIMITED, now)));
    }

    #[test]
    fn a_clock_that_runs_backwards_adds_nothing() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(RATE, start + Duration::from_secs(10));
        assert_eq!(taken(&mut bucket, 10, start + Duration::from_secs(10)), 3);
        assert_eq!(taken(&mut bucket, 10, start), 0);
        assert_eq!(taken(&mut bucket, 10, start + Duration::from_secs(10)), 0);
    }

    #[test]
    fn a_token_given_back_can_be_taken_again() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(RATE, start);
        assert_eq!(taken(&mut bucket, 3, start), 3);
        bucket.give_back(RATE);
        assert_eq!(taken(&mut bucket, 2, start), 1);
    }

    #[test]
    fn one_key_does_not_use_up_anothers_tokens() {
        let start = Instant::now();
        let mut buckets = KeyedBuckets::new(RATE, 10, start);
        assert_eq!((0..10).filter(|_| buckets.take("a", start)).count(), 3);
        assert!(buckets.take("b", start));
    }

    #[test]
    fn the_table_stays_bounded_and_strangers_share_a_bucket_when_it_is_full() {
        let start = Instant::now();
        let mut buckets = KeyedBuckets::new(RATE, 2, start);
        assert!(buckets.take(1, start) && buckets.take(2, start));
        assert_eq!((3..100).filter(|key| buckets.take(*key, start)).count(), 3);
        assert_eq!(buckets.len(), 2);
        assert!(buckets.take(1, start), "a known key keeps its own bucket");
        let later = start + Duration::from_secs(5);
        assert!(buckets.take(100, later));
        assert_eq!(buckets.len(), 1, "full buckets are forgotten");
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(gaps in prop::collection::vec(0u64..400, 1..200)) {
            let start = Instant::now();
            let (mut now, mut passed) = (start, 0u64);
            let mut bucket = TokenBucket::new(RATE, start);
            for gap in gaps {
                now += Duration::from_millis(gap);
                passed += u64::from(bucket.take(RATE, now));
            }
            let elapsed = now.duration_since(start).as_millis() as u64;
            prop_assert!(passed <= 3 + elapsed / 100);
        }
    }
}
