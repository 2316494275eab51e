//! Whose turn it is to send, so that a backlog of alerts does not hide status changes: pure.
//!
//! **Invariant:** while several streams have something to send, they send in the proportion of [`TURNS`], however few events
//! may be under way at a time: what ends for want of room goes on where it ended.

use muster_proto::event::Stream;

/// How many events of each stream are sent in turn.
pub(crate) const TURNS: [(Stream, usize); 6] = [
    (Stream::Audit, 8),
    (Stream::State, 8),
    (Stream::Alerts, 4),
    (Stream::Keepalive, 2),
    (Stream::Osquery, 1),
    (Stream::Archives, 1),
];

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Whose turn it is, as a place in [`TURNS`].
    place: usize,
    /// What it has sent in this turn.
    sent: usize,
    /// How many in a row had nothing to send.
    idle: usize,
}

impl Turns {
    /// Everybody may have something to send again.
    pub(crate) fn begin(&mut self) {
        self.idle = 0;
    }

    /// Who may send an event, as a place in [`TURNS`]; nobody when none has anything to send.
    pub(crate) fn next(&self) -> Option<usize> {
        (self.idle < TURNS.len()).then_some(self.place)
    }

    /// Whoever might send has done so, or had nothing.
    pub(crate) fn note(&mut self, has_sent: bool) {
        if has_sent {
            self.idle = 0;
            self.sent += 1;
        } else {
            self.idle += 1;
        }
        if !has_sent || self.sent >= TURNS[self.place].1 {
            self.place = (self.place + 1) % TURNS.len();
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends so many events of backlogs, at most so many of them at once, and counts them by stream.
    fn drain(backlog: &mut [usize; 6], most: usize, at_once: usize) -> [usize; 6] {
        let (mut turns, mut sent) = (Turns::default(), [0; 6]);
        loop {
            let left = most - sent.iter().sum::<usize>();
            if left == 0 {
                return sent;
            }
            turns.begin();
            let mut room = at_once.min(left);
            while room > 0 {
                let Some(place) = turns.next() else { return sent };
                let has = backlog[place] > 0;
                if has {
                    backlog[place] -= 1;
                    sent[place] += 1;
                    room -= 1;
                }
                turns.note(has);
            }
        }
    }

    #[test]
    fn backlogs_are_drained_in_their_proportion_however_little_room_there_is() {
        for at_once in [1, 3, 64, 240] {
            let mut backlog = [10_000; 6];
            let sent = drain(&mut backlog, 2400, at_once);
            assert_eq!(sent, [800, 800, 400, 200, 100, 100], "{at_once} at once");
        }
    }

    #[test]
    fn whoever_has_nothing_leaves_its_turn_to_the_others() {
        let mut backlog = [0, 10_000, 10_000, 0, 10_000, 0];
        assert_eq!(drain(&mut backlog, 1300, 7), [0, 800, 400, 0, 100, 0]);
        let mut backlog = [0, 0, 5, 0, 0, 2];
        assert_eq!(drain(&mut backlog, 100, 1), [0, 0, 5, 0, 0, 2], "all, and an end");
    }

    #[test]
    fn status_change_waits_for_few_of_a_million_alerts() {
        let mut backlog = [0, 0, 1_000_000, 0, 0, 0];
        let (mut turns, mut alerts) = (Turns::default(), 0);
        drain(&mut backlog, 1000, 16);
        turns.begin();
        while let Some(place) = turns.next() {
            if TURNS[place].0 == Stream::State {
                break;
            }
            let is_alert = TURNS[place].0 == Stream::Alerts;
            alerts += usize::from(is_alert);
            turns.note(is_alert);
        }
        assert!(alerts <= 4, "{alerts} went before it");
    }
}
