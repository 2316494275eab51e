//! How long the manager makes agents wait: a histogram of fixed size, exact to an eighth.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

/// Parts of each doubling.
const STEPS: u32 = 8;
/// Doublings from one microsecond: the last begins at an hour and more.
const DOUBLINGS: usize = 33;
const BUCKETS: usize = DOUBLINGS * STEPS as usize;

/// Waits, by size.
#[derive(Clone, PartialEq, Eq)]
pub struct Waits {
    buckets: Box<[u64]>,
    longest_us: u64,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into(),
            longest_us: 0,
        }
    }
}

impl Waits {
    /// Counts one.
    pub fn note(&mut self, wait: Duration) {
        let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.longest_us = self.longest_us.max(micros);
        if let Some(bucket) = self.buckets.get_mut(place(micros)) {
            *bucket += 1;
        }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us)
    }

    /// What `percent` of 100 waits do not exceed, up to an eighth too long; zero when there are none.
    pub fn percentile(&self, percent: u64) -> Duration {
        let rank = self.count().saturating_mul(percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (place, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(end(place).min(self.longest_us));
            }
        }
        Duration::ZERO
    }

    /// Adds others to these.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
        self.longest_us = self.longest_us.max(other.longest_us);
    }
}

/// Which bucket: below eight microseconds each has its own, above there are eight to a doubling.
fn place(micros: u64) -> usize {
    let doublings = micros.max(1).ilog2();
    let place = if doublings < STEPS.ilog2() {
        micros
    } else {
        let shift = doublings - STEPS.ilog2();
        u64::from((shift + 1) * STEPS) + (micros >> shift) - u64::from(STEPS)
    };
    usize::try_from(place).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The largest number of a bucket.
fn end(place: usize) -> u64 {
    let place = u64::try_from(place).unwrap_or(u64::MAX);
    let (row, step) = (place / u64::from(STEPS), place % u64::from(STEPS));
    if row == 0 {
        step
    } else {
        ((u64::from(STEPS) + step + 1) << (row - 1)) - 1
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} up to {:?}", self.count(), self.longest())
    }
}

impl Serialize for Waits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = |wait: Duration| wait.as_secs_f64() * 1000.0;
        let mut fields = serializer.serialize_struct("Waits", 4)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("p50_ms", &millis(self.percentile(50)))?;
        fields.serialize_field("p99_ms", &millis(self.percentile(99)))?;
        fields.serialize_field("max_ms", &millis(self.longest()))?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_lies_in_its_bucket_and_the_bucket_is_narrow() {
        for micros in (0..10_000).chain([1 << 20, (1 << 30) + 12_345, 3_600_000_000]) {
            let bucket = place(micros);
            assert!(micros <= end(bucket), "{micros}");
            assert!(bucket == 0 || micros > end(bucket - 1), "{micros}");
            assert!(end(bucket) <= micros + micros / 8, "{micros}");
        }
        assert!(place(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_those_of_what_was_noted() {
        let mut waits = Waits::default();
        assert_eq!(waits.percentile(99), Duration::ZERO);
        for millis in 1..=100 {
            waits.note(Duration::from_millis(millis));
        }
        let half = waits.percentile(50);
        assert!(
            half >= Duration::from_millis(50) && half < Duration::from_millis(57),
            "{half:?}"
        );
        assert_eq!(waits.percentile(100), Duration::from_millis(100));
        let mut twice = waits.clone();
        twice.add(&waits);
        assert_eq!((twice.count(), twice.percentile(50)), (200, half));
    }
}
