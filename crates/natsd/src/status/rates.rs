//! How much was published lately, for each stream: pure.

use muster_proto::event::Stream;

/// How far back the rates look, in seconds.
const SPAN_S: u64 = 60;
const SLOTS: usize = 60;
const STREAMS: usize = Stream::ALL.len();

/// What one stream took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    published: u64,
    acknowledged: u64,
}

/// The last minute, second by second, and all since the start.
#[derive(Clone, Debug)]
pub(crate) struct Rates {
    /// The second that each slot is of, and what each stream took in it.
    slots: Vec<(u64, [Count; STREAMS])>,
    since_s: u64,
    totals: [Count; STREAMS],
}

/// What a stream takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    pub(crate) stream: Stream,
    /// Events a second.
    pub(crate) published: f64,
    /// Those of them that a stream of the broker has acknowledged.
    pub(crate) acknowledged: f64,
    /// Events since the start.
    pub(crate) total: u64,
}

impl Rates {
    /// `now_s` in seconds of a clock that never goes back, here and below.
    pub(crate) fn new(now_s: u64) -> Self {
        Self {
            slots: vec![Default::default(); SLOTS],
            since_s: now_s,
            totals: Default::default(),
        }
    }

    /// An event is done with: the broker has acknowledged it, or read it where it has no stream.
    pub(crate) fn published(&mut self, stream: Stream, acknowledged: bool, now_s: u64) {
        let place = usize::try_from(now_s % SPAN_S).unwrap_or(0);
        let Some(slot) = self.slots.get_mut(place) else { return };
        if slot.0 != now_s {
            *slot = (now_s, Default::default());
        }
        let index = usize::from(stream.code());
        for counts in [&mut slot.1, &mut self.totals] {
            if let Some(count) = counts.get_mut(index) {
                count.published += 1;
                count.acknowledged += u64::from(acknowledged);
            }
        }
    }

    /// Those streams that anything was published to, in their order.
    pub(crate) fn read(&self, now_s: u64) -> Vec<Rate> {
        let span = now_s.saturating_sub(self.since_s).clamp(1, SPAN_S);
        let recent = self
            .slots
            .iter()
            .filter(|(second, _)| *second < now_s && now_s - *second <= span);
        let recent: Vec<_> = recent.map(|(_, counts)| counts).collect();
        let per_second = |index: usize, of: fn(&Count) -> u64| {
            let sum: u64 = recent.iter().filter_map(|counts| counts.get(index)).map(of).sum();
            let tenths = sum * 10 / span;
            f64::from(u32::try_from(tenths).unwrap_or(u32::MAX)) / 10.0
        };
        let streams = Stream::ALL.into_iter().zip(self.totals).enumerate();
        let used = streams.filter(|(_, (_, total))| total.published > 0);
        used.map(|(index, (stream, total))| Rate {
            stream,
            published: per_second(index, |count| count.published),
            acknowledged: per_second(index, |count| count.acknowledged),
            total: total.published,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_that_of_the_last_minute_without_the_second_that_goes_on() {
        let mut rates = Rates::new(1000);
        assert_eq!(rates.read(1000), []);
        rates.published(Stream::Audit, true, 1000);
        for second in 1000..1120 {
            for number in 0..10 {
                rates.published(Stream::State, number < 4, second);
            }
        }
        let read = rates.read(1120);
        assert_eq!(read[0].stream, Stream::State);
        assert_eq!(
            (read[0].published, read[0].acknowledged, read[0].total),
            (10.0, 4.0, 1200)
        );
        assert_eq!(
            (read[1].stream, read[1].published, read[1].total),
            (Stream::Audit, 0.0, 1)
        );
        let later = rates.read(1150);
        assert_eq!(later[0].published, 5.0);
        assert_eq!(rates.read(9999)[0].published, 0.0);
    }

    #[test]
    fn daemon_that_has_just_started_is_not_told_slower_than_it_is() {
        let mut rates = Rates::new(5);
        for _ in 0..30 {
            rates.published(Stream::State, true, 5);
        }
        assert_eq!(rates.read(6)[0].published, 30.0);
        assert_eq!(rates.read(8)[0].published, 10.0);
    }
}
