//! One stream's way to the broker: what is sent next, what is under way, when to wait. Pure.
//!
//! **Invariant:** events of a stream are sent in the order of their sequences, and after a failure nothing is sent
//! until all that is under way has come to an end; then everything that is not acknowledged is sent again in order.
//! **Invariant:** of one agent's status changes only one is under way, so that none overtakes another.
//! **Invariant:** one stream never takes the whole window, and behind a time-out only one of its events is under way.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use muster_proto::event::Stream;

/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// Failures in a row after which the stream counts as stuck.
pub(crate) const STUCK: u32 = 3;

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) stream: Stream,
    /// The highest sequence sent since the last rewind.
    sent: u64,
    /// What is under way, by sequence.
    under_way: BTreeMap<u64, UnderWay>,
    /// The agents whose next event must wait.
    busy: HashSet<String>,
    rewind: bool,
    failures: u32,
    resume_at: Option<Instant>,
}

#[derive(Debug)]
struct UnderWay {
    attempt: u64,
    key: Option<String>,
}

/// Whether the next event may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clearance {
    Go,
    /// Something that is under way must end first.
    Wait,
}

impl Lane {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            sent: 0,
            under_way: BTreeMap::new(),
            busy: HashSet::new(),
            rewind: false,
            failures: 0,
            resume_at: None,
        }
    }

    /// Behind which sequence to look for the next event, if anything may be sent now. `window` is what all lanes
    /// together may have under way.
    pub(crate) fn look_behind(&mut self, window: usize, now: Instant) -> Option<u64> {
        if self.rewind {
            if !self.under_way.is_empty() {
                return None;
            }
            self.rewind = false;
            self.sent = 0;
        }
        if self.resume_at.is_some_and(|resume| resume > now) {
            return None;
        }
        self.resume_at = None;
        let most = if self.failures > 0 {
            1
        } else {
            (window - window / 4).max(1)
        };
        (self.under_way.len() < most).then_some(self.sent)
    }

    /// Whether an event of this agent may follow what is under way.
    pub(crate) fn clearance(&self, key: &str) -> Clearance {
        if self.busy.contains(key) {
            Clearance::Wait
        } else {
            Clearance::Go
        }
    }

    /// An event was handed to the broker, for the `attempt`th time of all that were.
    pub(crate) fn sent(&mut self, seq: u64, attempt: u64, key: &str) {
        self.sent = seq;
        // Other streams have no order within an agent to keep.
        let key = (self.stream == Stream::State && !key.is_empty()).then(|| key.to_owned());
        if let Some(key) = &key {
            self.busy.insert(key.clone());
        }
        self.under_way.insert(seq, UnderWay { attempt, key });
    }

    /// Nothing is to be done now for events up to this one.
    pub(crate) fn pass(&mut self, seq: u64) {
        self.sent = self.sent.max(seq);
    }

    /// The broker has it.
    pub(crate) fn acknowledged(&mut self, seq: u64) {
        if self.end(seq) {
            self.failures = 0;
        }
    }

    /// Whether this attempt is still under way.
    pub(crate) fn waits_for(&self, seq: u64, attempt: u64) -> bool {
        self.under_way
            .get(&seq)
            .is_some_and(|under_way| under_way.attempt == attempt)
    }

    /// It did not arrive, or nobody knows.
    pub(crate) fn failed(&mut self, seq: u64, now: Instant) {
        self.end(seq);
        if !self.rewind {
            self.rewind = true;
            self.failures = self.failures.saturating_add(1);
            let doublings = self.failures.saturating_sub(1).min(16);
            let pause = PAUSES.0.saturating_mul(1 << doublings).min(PAUSES.1);
            self.resume_at = Some(now + pause);
        }
    }

    /// Everything that waits is sent again from the beginning, once what is under way has ended.
    pub(crate) fn rewind(&mut self) {
        self.rewind = true;
    }

    /// How many events are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Whether it has failed again and again.
    pub(crate) fn is_stuck(&self) -> bool {
        self.failures >= STUCK
    }

    /// When to look again, if it is waiting for a time.
    pub(crate) fn resume_at(&self) -> Option<Instant> {
        self.resume_at
    }

    fn end(&mut self, seq: u64) -> bool {
        let ended = self.under_way.remove(&seq);
        if let Some(key) = ended.as_ref().and_then(|under_way| under_way.key.as_ref()) {
            self.busy.remove(key);
        }
        ended.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = 8;

    #[test]
    fn failure_rewinds_once_everything_under_way_has_ended() {
        let now = Instant::now();
        let mut lane = Lane::new(Stream::Alerts);
        for seq in 1..=3 {
            lane.sent(seq, seq, "001");
        }
        lane.failed(1, now);
        lane.acknowledged(2);
        let later = now + PAUSES.0;
        assert_eq!(lane.look_behind(WINDOW, later), None, "3 is under way");
        lane.failed(3, now);
        assert_eq!(lane.look_behind(WINDOW, later), Some(0));
    }

    #[test]
    fn pause_doubles_up_to_its_limit_and_ends_with_a_success() {
        let mut now = Instant::now();
        let mut lane = Lane::new(Stream::Audit);
        let mut pauses = vec![];
        for attempt in 0..8 {
            lane.sent(1, attempt, "");
            lane.failed(1, now);
            let resume = lane.resume_at().expect("waits");
            pauses.push(resume - now);
            now = resume;
            assert_eq!(lane.look_behind(WINDOW, now), Some(0));
        }
        assert_eq!(pauses[..3], [250, 500, 1000].map(Duration::from_millis));
        assert_eq!(pauses[7], PAUSES.1);
        assert!(lane.is_stuck());
        lane.sent(1, 9, "");
        lane.acknowledged(1);
        assert!(!lane.is_stuck());
    }

    #[test]
    fn two_status_changes_of_one_agent_are_never_under_way_together() {
        let mut lane = Lane::new(Stream::State);
        lane.sent(1, 1, "001");
        assert_eq!(lane.clearance("001"), Clearance::Wait);
        assert_eq!(lane.clearance("002"), Clearance::Go);
        lane.acknowledged(1);
        assert_eq!(lane.clearance("001"), Clearance::Go);
        let mut alerts = Lane::new(Stream::Alerts);
        alerts.sent(1, 1, "001");
        assert_eq!(alerts.clearance("001"), Clearance::Go);
    }

    #[test]
    fn a_quarter_of_the_window_is_left_to_others_and_a_time_out_leaves_one() {
        let now = Instant::now();
        let mut lane = Lane::new(Stream::Alerts);
        for seq in 1..=6 {
            assert_eq!(lane.look_behind(WINDOW, now), Some(seq - 1));
            lane.sent(seq, seq, "");
        }
        assert_eq!(lane.look_behind(WINDOW, now), None);
        for seq in 1..=6 {
            lane.failed(seq, now);
        }
        let later = now + PAUSES.0;
        assert_eq!(lane.look_behind(WINDOW, later), Some(0));
        lane.sent(1, 7, "");
        assert_eq!(lane.look_behind(WINDOW, later), None, "one tries the way");
        lane.acknowledged(1);
        assert_eq!(lane.look_behind(WINDOW, later), Some(1));
    }

    #[test]
    fn late_time_out_of_an_earlier_attempt_is_nothing() {
        let mut lane = Lane::new(Stream::Alerts);
        lane.sent(1, 1, "");
        lane.failed(1, Instant::now());
        lane.sent(1, 2, "");
        assert!(!lane.waits_for(1, 1) && lane.waits_for(1, 2));
    }
}
