//! The number pair that every message carries, and the small files that keep it.
//!
//! A sender counts its messages: `local` runs 1..=9997, then `global` steps up. An agent counts for itself; the
//! manager has one pair for all agents. OSSEC agents refuse a pair that is not above the last one they saw, so the
//! manager's must never go back, whatever happened to it: see [`SenderCounter::resume`].

/// After this many messages `global` steps up and `local` begins again.
pub const LAST_LOCAL: u32 = 9997;
/// The largest `local` that fits the four digits of the wire.
pub const MAX_LOCAL: u32 = 9999;

/// The pair of one message. On the wire: ten digits, `:`, four digits, `:`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Counter {
    /// The slow number. Ten digits can say more than 32 bits; as in stock code only the low 32 bits count.
    pub global: u32,
    /// The fast number.
    pub local: u32,
}

impl Counter {
    /// Reads the text of a counter file, `<global>:<local>:`. What stands behind the second number may be anything:
    /// stock writers do not truncate, so the tail of a longer text may be left.
    ///
    /// `None` if there are not two numbers; stock readers then go on with 0:0.
    pub fn from_rids(text: &[u8]) -> Option<Self> {
        let (global, rest) = leading_number(text)?;
        let (local, _) = leading_number(rest.strip_prefix(b":")?)?;
        Some(Self { global, local })
    }

    /// The text of a counter file.
    pub fn to_rids(self) -> String {
        format!("{}:{}:", self.global, self.local)
    }
}

/// What a receiver that checks counters makes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Above the last one: take it, and remember it.
    Fresh,
    /// The same global number and no larger local one: drop the message (1407).
    Replay,
    /// A smaller global number. Stock treats it as a wrong key (1404), key request included.
    OlderGlobal,
}

/// Compares a message's pair with the last one taken from the same sender.
pub fn verify(saved: Counter, new: Counter) -> Verdict {
    if new > saved {
        Verdict::Fresh
    } else if new.global == saved.global {
        Verdict::Replay
    } else {
        Verdict::OlderGlobal
    }
}

/// The manager's own pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderCounter(Counter);

impl SenderCounter {
    /// Goes on behind the last pair that was used.
    pub fn resume(last: Counter) -> Self {
        Self(last)
    }

    /// Begins when the last pair is not known: at the time in seconds since 1970, which is above what any manager
    /// that began at zero can have reached, and leaves two thousand million steps of 9997 messages.
    pub fn begin_at(unix_seconds: u32) -> Self {
        Self(Counter {
            global: unix_seconds,
            local: 0,
        })
    }

    /// The pair of the next message.
    #[expect(clippy::should_implement_trait, reason = "a counter is not a sequence to loop over")]
    pub fn next(&mut self) -> Counter {
        let Counter { global, local } = self.0;
        self.0 = if local >= LAST_LOCAL {
            Counter {
                global: global.wrapping_add(1),
                local: 1,
            }
        } else {
            Counter {
                global,
                local: local.saturating_add(1),
            }
        };
        self.0
    }

    /// The pair of the last message.
    pub fn last(self) -> Counter {
        self.0
    }

    /// A pair that is at least `messages` messages ahead, to be stored before they are sent: whoever goes on from
    /// it after a crash is above everything that can have been sent.
    pub fn reserve(self, messages: u32) -> Counter {
        let Counter { global, local } = self.0;
        let ahead = u64::from(local).saturating_add(u64::from(messages));
        let last_local = u64::from(LAST_LOCAL);
        let Some(over) = ahead.checked_sub(last_local).filter(|over| *over > 0) else {
            return Counter {
                global,
                local: local.saturating_add(messages),
            };
        };
        let steps = over.div_ceil(last_local);
        let global = global.wrapping_add(u32::try_from(steps).unwrap_or(u32::MAX));
        let local = ahead.saturating_sub(steps.saturating_mul(last_local));
        Counter {
            global,
            local: u32::try_from(local).unwrap_or(LAST_LOCAL),
        }
    }
}

fn leading_number(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits)?;
    Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(global: u32, local: u32) -> Counter {
        Counter { global, local }
    }

    #[test]
    fn local_runs_to_9997_and_begins_again_at_1() {
        let mut sender = SenderCounter::default();
        assert_eq!(sender.next(), pair(0, 1));
        for expected in 2..=9997 {
            assert_eq!(sender.next(), pair(0, expected));
        }
        assert_eq!(sender.next(), pair(1, 1));
    }

    #[test]
    fn sender_goes_on_behind_what_the_file_says() {
        let mut sender = SenderCounter::resume(pair(7000, 9995));
        assert_eq!(
            [sender.next(), sender.next(), sender.next()],
            [pair(7000, 9996), pair(7000, 9997), pair(7001, 1)]
        );
        let mut beyond = SenderCounter::resume(pair(3, 20_000));
        assert_eq!(beyond.next(), pair(4, 1));
    }

    #[test]
    fn file_text_reads_back_and_leftovers_do_not_matter() {
        assert_eq!(pair(7001, 1).to_rids(), "7001:1:");
        assert_eq!(Counter::from_rids(b"7001:1:"), Some(pair(7001, 1)));
        assert_eq!(Counter::from_rids(b"7001:1:97:"), Some(pair(7001, 1)));
        assert_eq!(Counter::from_rids(b"7001:1"), Some(pair(7001, 1)));
        assert_eq!(Counter::from_rids(b"4294967295:9999:\n"), Some(pair(u32::MAX, 9999)));
    }

    #[test]
    fn file_text_that_is_not_two_numbers_is_none() {
        for text in [
            &b""[..],
            b":",
            b"7:",
            b":7:",
            b"x:1:",
            b"7;1:",
            b"4294967296:1:",
            b"-1:1:",
            b"\xff:1:",
        ] {
            assert_eq!(Counter::from_rids(text), None, "{text:?}");
        }
    }

    #[test]
    fn verdicts_are_those_of_a_recorded_session() {
        let mut saved = pair(0, 0);
        for (new, expected) in [
            (pair(100, 5), Verdict::Fresh),
            (pair(100, 5), Verdict::Replay),
            (pair(100, 4), Verdict::Replay),
            (pair(100, 6), Verdict::Fresh),
            (pair(99, 9000), Verdict::OlderGlobal),
            (pair(101, 1), Verdict::Fresh),
            (pair(0, 0), Verdict::OlderGlobal),
            (pair(101, 2), Verdict::Fresh),
            (pair(u32::MAX, 9999), Verdict::Fresh),
            (pair(u32::MAX, 9999), Verdict::Replay),
            (pair(102, 1), Verdict::OlderGlobal),
        ] {
            let verdict = verify(saved, new);
            assert_eq!(verdict, expected, "{new:?} after {saved:?}");
            if verdict == Verdict::Fresh {
                saved = new;
            }
        }
    }

    #[test]
    fn reserved_pair_is_never_below_what_is_then_sent() {
        for start in [pair(0, 0), pair(0, 9990), pair(5, 9997), pair(5, 12_000)] {
            for messages in [0, 1, 6, 7, 8, 128, 9997, 9998, 25_000] {
                let sender = SenderCounter::resume(start);
                let reserved = sender.reserve(messages);
                let mut sent = sender;
                for _ in 0..messages {
                    let next = sent.next();
                    assert!(next <= reserved, "{next:?} above {reserved:?} from {start:?}");
                }
                assert!(reserved.global - start.global <= messages / LAST_LOCAL + 1, "wasteful");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_file_text_never_panics(text in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            if let Some(counter) = Counter::from_rids(&text) {
                assert_eq!(Counter::from_rids(counter.to_rids().as_bytes()), Some(counter));
            }
        }
    }
}
