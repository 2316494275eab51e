//! One stream's way to the broker: what is sent next, what is under way, when to wait. Pure.
//!
//! **Invariant:** events of a stream are sent in the order of their sequences, and after a failure nothing is sent
//! until all that is under way has come to an end; then everything that is not acknowledged is sent again in order.
//! **Invariant:** of one agent's status changes only one is under way, so that none overtakes another.

use std::{
    collections::BTreeMap,
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
    /// What is under way, by sequence, with the agent whose next event must wait for it.
    under_way: BTreeMap<u64, Option<String>>,
    rewind: bool,
    failures: u32,
    resume_at: Option<Instant>,
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
            rewind: false,
            failures: 0,
            resume_at: None,
        }
    }

    /// Behind which sequence to look for the next event, if anything may be sent now.
    pub(crate) fn look_behind(&mut self, now: Instant) -> Option<u64> {
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
        Some(self.sent)
    }

    /// Whether an event of this agent may follow what is under way.
    pub(crate) fn clearance(&self, key: &str) -> Clearance {
        let one_at_a_time = self.stream == Stream::State;
        if one_at_a_time && self.under_way.values().any(|other| other.as_deref() == Some(key)) {
            Clearance::Wait
        } else {
            Clearance::Go
        }
    }

    /// An event was handed to the broker.
    pub(crate) fn sent(&mut self, seq: u64, key: &str) {
        self.sent = seq;
        self.under_way
            .insert(seq, (self.stream == Stream::State).then(|| key.to_owned()));
    }

    /// The broker has it.
    pub(crate) fn acknowledged(&mut self, seq: u64) {
        self.under_way.remove(&seq);
        self.failures = 0;
    }

    /// It did not arrive, or nobody knows.
    pub(crate) fn failed(&mut self, seq: u64, now: Instant) {
        self.under_way.remove(&seq);
        if !self.rewind {
            self.rewind = true;
            self.failures = self.failures.saturating_add(1);
            let doublings = self.failures.saturating_sub(1).min(16);
            let pause = PAUSES.0.saturating_mul(1 << doublings).min(PAUSES.1);
            self.resume_at = Some(now + pause);
        }
    }

    /// Whether it has failed again and again.
    pub(crate) fn is_stuck(&self) -> bool {
        self.failures >= STUCK
    }

    /// When to look again, if it is waiting for a time.
    pub(crate) fn resume_at(&self) -> Option<Instant> {
        self.resume_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_rewinds_once_everything_under_way_has_ended() {
        let now = Instant::now();
        let mut lane = Lane::new(Stream::Alerts);
        for seq in 1..=3 {
            lane.sent(seq, "001");
        }
        lane.failed(1, now);
        lane.acknowledged(2);
        let later = now + PAUSES.0;
        assert_eq!(lane.look_behind(later), None, "3 is under way");
        lane.failed(3, now);
        assert_eq!(lane.look_behind(later), Some(0));
    }

    #[test]
    fn pause_doubles_up_to_its_limit_and_ends_with_a_success() {
        let mut now = Instant::now();
        let mut lane = Lane::new(Stream::Audit);
        let mut pauses = vec![];
        for _ in 0..8 {
            lane.sent(1, "");
            lane.failed(1, now);
            let resume = lane.resume_at().expect("waits");
            pauses.push(resume - now);
            now = resume;
            assert_eq!(lane.look_behind(now), Some(0));
        }
        assert_eq!(pauses[..3], [250, 500, 1000].map(Duration::from_millis));
        assert_eq!(pauses[7], PAUSES.1);
        assert!(lane.is_stuck());
        lane.sent(1, "");
        lane.acknowledged(1);
        assert!(!lane.is_stuck());
    }

    #[test]
    fn two_status_changes_of_one_agent_are_never_under_way_together() {
        let mut lane = Lane::new(Stream::State);
        lane.sent(1, "001");
        assert_eq!(lane.clearance("001"), Clearance::Wait);
        assert_eq!(lane.clearance("002"), Clearance::Go);
        lane.acknowledged(1);
        assert_eq!(lane.clearance("001"), Clearance::Go);
        let mut alerts = Lane::new(Stream::Alerts);
        alerts.sent(1, "001");
        assert_eq!(alerts.clearance("001"), Clearance::Go);
    }
}
