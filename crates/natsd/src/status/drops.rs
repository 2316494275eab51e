//! Which events were lost since the start: pure.

use std::collections::VecDeque;

use serde_json::Value;

/// Ranges that are remembered; older ones are only counted.
const MAX_RANGES: usize = 8;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drops {
    pub(crate) ranges: u64,
    pub(crate) events: u64,
    /// In words, the newest last.
    pub(crate) latest: VecDeque<String>,
}

impl Drops {
    /// Takes the detail of an act `dropped`.
    pub(crate) fn note(&mut self, detail: &Value) {
        let number = |name: &str| detail[name].as_u64().unwrap_or(0);
        let text = |name: &str| detail[name].as_str().unwrap_or("-");
        let (count, reason) = (number("count"), text("reason"));
        self.ranges += 1;
        self.events += count;
        if self.latest.len() >= MAX_RANGES {
            self.latest.pop_front();
        }
        self.latest.push_back(match detail["producer"].as_str() {
            Some(producer) => format!("{count} events of {producer}: {reason}"),
            None => {
                let (stream, from, to) = (text("stream"), number("from_seq"), number("to_seq"));
                format!("{stream} {from} to {to}, {count} events: {reason}")
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn latest_ranges_are_told_in_words_and_all_are_counted() {
        let mut drops = Drops::default();
        for count in 0..100 {
            drops.note(&json!({"stream": "S", "from_seq": count, "to_seq": 200, "count": 2, "reason": "spool_full"}));
        }
        drops.note(&json!({"producer": "remoted", "count": 7, "reason": "outbox_full"}));
        assert_eq!((drops.ranges, drops.events, drops.latest.len()), (101, 207, MAX_RANGES));
        assert_eq!(drops.latest[6], "S 99 to 200, 2 events: spool_full");
        assert_eq!(drops.latest[7], "7 events of remoted: outbox_full");
    }
}
