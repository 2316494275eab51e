//! The trace that an event belongs to, in the form of W3C Trace Context: made where the event is made, and the same
//! whatever happens to it on its way.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Ids of traces need be unique, not secret: they are drawn from a generator that the system's random numbers have
/// begun, so that an event costs no system call.
struct Ids {
    seeds: [u64; 3],
    drawn: AtomicU64,
}

/// The golden ratio, which visits all numbers before it repeats one.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Ids {
    fn seeded(bytes: [u8; 24]) -> Self {
        let mut seeds = [0; 3];
        for (seed, chunk) in seeds.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *seed = u64::from_le_bytes(*chunk);
        }
        Self {
            seeds,
            drawn: AtomicU64::new(0),
        }
    }

    /// A new trace of one event, to be recorded by whoever follows it.
    fn traceparent(&self) -> String {
        let [high, low, span] = self.seeds;
        let place = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(STEP);
        // Zero is no id.
        let span = mixed(span.wrapping_add(place)).max(1);
        let (high, low) = (mixed(high.wrapping_add(place)), mixed(low.wrapping_add(place)).max(1));
        format!("00-{high:016x}{low:016x}-{span:016x}-01")
    }
}

/// A number that no two others give (the finisher of SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The value of the header `traceparent` for an event that has none yet.
pub fn traceparent() -> String {
    static IDS: OnceLock<Ids> = OnceLock::new();
    let ids = IDS.get_or_init(|| {
        let mut seed = [0; 24];
        if getrandom::fill(&mut seed).is_err() {
            // Without random numbers nothing else works either; the time and the process tell ours from others.
            seed[..8].copy_from_slice(&crate::clock::unix_ms().to_le_bytes());
            seed[8..12].copy_from_slice(&std::process::id().to_le_bytes());
        }
        Ids::seeded(seed)
    });
    ids.traceparent()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_event_has_a_trace_of_its_own_in_the_form_of_the_standard() {
        let made: Vec<String> = (0..10_000).map(|_| traceparent()).collect();
        for text in &made {
            let fields: Vec<&str> = text.split('-').collect();
            assert_eq!(
                fields.iter().map(|field| field.len()).collect::<Vec<_>>(),
                [2, 32, 16, 2]
            );
            assert!(
                text.bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
            );
            assert!(fields[1..3].iter().all(|id| id.bytes().any(|digit| digit != b'0')));
        }
        let traces: HashSet<&str> = made.iter().map(|text| &text[3..35]).collect();
        assert_eq!(traces.len(), made.len());
    }

    #[test]
    fn two_processes_share_no_ids() {
        let (one, other) = (Ids::seeded([1; 24]), Ids::seeded([2; 24]));
        let ids = |ids: &Ids| (0..1000).map(|_| ids.traceparent()).collect::<HashSet<_>>();
        assert!(ids(&one).is_disjoint(&ids(&other)));
    }
}
