//! What a manager has said of its own numbers: where they began anew, and which are lost.

use std::collections::BTreeMap;

use muster_proto::event::Stream;
use serde_json::Value;

use super::{MAX_HOLES, chain::Hole};

/// Losses of state that are remembered of a manager. The oldest go.
const MAX_STARTS: usize = 1000;

/// Where the numbers of an epoch began anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The first number.
    pub(super) first: u64,
    /// When that was announced, in Unix milliseconds.
    pub(super) since_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Declared {
    starts: BTreeMap<u64, Start>,
    lost: BTreeMap<(u64, Option<Stream>), Ranges>,
}

impl Declared {
    /// With this epoch the numbers have begun anew. Whether that is news.
    pub(super) fn begin(&mut self, epoch: u64, start: Start) -> bool {
        let known = self.starts.len();
        self.starts.entry(epoch).or_insert(start);
        let is_news = self.starts.len() > known;
        if self.starts.len() > MAX_STARTS
            && let Some((oldest, _)) = self.starts.pop_first()
        {
            self.lost.retain(|(run, _), _| *run != oldest);
        }
        is_news
    }

    /// The epoch with which the numbers began of which this one is, said in `epoch`; and the first of them.
    pub(super) fn run(&self, epoch: u64, number: u64) -> (u64, u64) {
        let before = self.starts.range(..=epoch).rev();
        let mut of = before.filter(|(_, start)| start.first <= number);
        of.next().map_or((0, 0), |(epoch, start)| (*epoch, start.first))
    }

    /// Where the numbers began last.
    pub(super) fn newest(&self) -> Option<(u64, Start)> {
        self.starts.last_key_value().map(|(epoch, start)| (*epoch, *start))
    }

    /// Takes in what the body of a gap says, told in `epoch`.
    pub(super) fn learn(&mut self, epoch: u64, gap: &Value) {
        let epoch = gap["epoch"].as_u64().map_or(epoch, |of| of.min(epoch));
        let stream = Stream::ALL.into_iter().find(|stream| gap["stream"] == stream.name());
        let (from, to) = (gap["from_seq"].as_u64(), gap["to_seq"].as_u64());
        let whole = from.zip(to).map(|ends| vec![ends]).unwrap_or_default();
        let runs = match stream {
            None => whole,
            Some(_) => match gap["runs"].as_array() {
                Some(runs) => runs
                    .iter()
                    .filter_map(|run| Some((run[0].as_u64()?, run[1].as_u64()?)))
                    .collect(),
                // What lies between the ends may be anything.
                None => whole
                    .into_iter()
                    .flat_map(|(from, to)| [(from, from), (to, to)])
                    .collect(),
            },
        };
        for (from, to) in runs {
            self.lose(epoch, stream, from, to);
        }
    }

    /// A range may lie on both sides of a place where numbers began anew.
    fn lose(&mut self, epoch: u64, stream: Option<Stream>, from: u64, mut to: u64) {
        while from <= to && to > 0 {
            let (run, first) = self.run(epoch, to);
            self.lost.entry((run, stream)).or_default().add(from.max(first), to);
            if first <= from || first == 0 {
                return;
            }
            to = first - 1;
        }
    }

    /// Whether every number of a hole is declared.
    pub(super) fn covers(&self, stream: Stream, hole: Hole) -> bool {
        let Some(upto) = hole.upto else { return false };
        let of = |stream| self.lost.get(&(hole.run, stream));
        let (stream, any) = (of(Some(stream)), of(None));
        let mut next = hole.after + 1;
        while next <= upto {
            let ends = [stream, any].map(|ranges| ranges.and_then(|ranges| ranges.end_of(next)));
            match ends.into_iter().flatten().max() {
                Some(end) => next = end.saturating_add(1),
                None => return false,
            }
        }
        true
    }
}

/// Numbers as ranges that neither meet nor touch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// What does not fit is not remembered: then it counts as not declared.
    fn add(&mut self, mut from: u64, mut to: u64) {
        while let Some((begin, end)) = self.0.range(..=to.saturating_add(1)).next_back() {
            let (begin, end) = (*begin, *end);
            if end.saturating_add(1) < from {
                break;
            }
            self.0.remove(&begin);
            (from, to) = (from.min(begin), to.max(end));
        }
        if self.0.len() < MAX_HOLES {
            self.0.insert(from, to);
        }
    }

    /// The last number of the range that this one is in.
    fn end_of(&self, number: u64) -> Option<u64> {
        let (_, end) = self.0.range(..=number).next_back()?;
        (*end >= number).then_some(*end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    use super::*;

    fn hole(run: u64, after: u64, upto: u64) -> Hole {
        Hole {
            run,
            after,
            upto: Some(upto),
        }
    }

    fn gap(stream: &str, runs: &[(u64, u64)]) -> Value {
        json!({"stream": stream, "from_seq": 1, "to_seq": 1000, "runs": runs})
    }

    #[test]
    fn hole_is_declared_only_when_each_of_its_numbers_is() {
        let mut declared = Declared::default();
        declared.learn(1, &gap("MUSTER_STATE", &[(5, 9), (20, 30)]));
        let covers = |declared: &Declared, after, upto| declared.covers(Stream::State, hole(0, after, upto));
        assert!(covers(&declared, 4, 9) && covers(&declared, 6, 7) && covers(&declared, 19, 30));
        assert!(!covers(&declared, 3, 9), "the number 4 is nobody's");
        assert!(!covers(&declared, 4, 30), "what lies between two runs is not lost");
        assert!(!declared.covers(Stream::Alerts, hole(0, 4, 9)), "another stream's");
        declared.learn(1, &json!({"stream": "MUSTER_OSQUERY", "from_seq": 3, "to_seq": 9}));
        let of_osquery = |after, upto| declared.covers(Stream::Osquery, hole(0, after, upto));
        assert!(
            of_osquery(2, 3) && !of_osquery(2, 9),
            "without runs, only the ends are sure"
        );
        declared.learn(1, &json!({"stream": "-", "from_seq": 10, "to_seq": 19}));
        assert!(covers(&declared, 4, 30), "several records together");
        assert!(!declared.covers(
            Stream::State,
            Hole {
                upto: None,
                ..hole(0, 4, 9)
            }
        ));
    }

    #[test]
    fn what_is_declared_of_one_run_of_numbers_says_nothing_of_another() {
        let mut declared = Declared::default();
        declared.learn(1, &gap("MUSTER_STATE", &[(5, 9)]));
        declared.begin(7, Start { first: 1, since_ms: 0 });
        assert!(declared.covers(Stream::State, hole(0, 4, 9)));
        assert!(!declared.covers(Stream::State, hole(7, 4, 9)));
        declared.learn(8, &gap("MUSTER_STATE", &[(5, 6)]));
        assert!(declared.covers(Stream::State, hole(7, 4, 6)));
        // Here only the file with the numbers was lost: they went on.
        declared.begin(
            20,
            Start {
                first: 100,
                since_ms: 0,
            },
        );
        declared.learn(21, &gap("MUSTER_STATE", &[(90, 110)]));
        assert!(declared.covers(Stream::State, hole(7, 89, 99)));
        assert!(declared.covers(Stream::State, hole(20, 99, 110)));
        assert!(!declared.covers(Stream::State, hole(7, 89, 100)));
    }

    #[test]
    fn losses_of_state_and_ranges_take_bounded_memory() {
        let mut declared = Declared::default();
        for epoch in 1..5000 {
            declared.begin(epoch, Start { first: 1, since_ms: 0 });
        }
        assert_eq!(declared.starts.len(), MAX_STARTS);
        for end in [0, 1, u64::MAX] {
            declared.learn(u64::MAX, &json!({"stream": "-", "from_seq": 0, "to_seq": end}));
            declared.learn(u64::MAX, &gap("MUSTER_STATE", &[(end, 0), (0, end)]));
        }
    }

    proptest! {
        #[test]
        fn ranges_hold_the_numbers_that_were_added(added in vec((0..100_u64, 0..20_u64), 0..20)) {
            let (mut ranges, mut numbers) = (Ranges::default(), BTreeSet::new());
            for (from, length) in added {
                ranges.add(from, from + length);
                numbers.extend(from..=from + length);
            }
            for number in 0..130 {
                let end = (number..200).take_while(|number| numbers.contains(number)).last();
                prop_assert_eq!(ranges.end_of(number), end);
            }
        }
    }
}
