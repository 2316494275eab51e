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
