//! Lines that come from no agent, on the same way as events.

use muster_proto::local::analysis::write_line;

use super::{Analysis, Mark, valve::Talker};
use crate::{edge::Tally, slot::Millis};

impl Analysis {
    /// Takes a line of a syslog sender, if there is room; what becomes of it is counted. `can_wait` says whether the
    /// sender can be paused.
    pub(crate) fn offer_line(&mut self, sender: &str, line: &[u8], can_wait: bool, now: Millis) {
        // Nobody knows how much of it is worth as much as an agent's, so it gives way first.
        if !self.valve.admits(self.backlog.bytes(), can_wait, Talker::Loud, now) {
            self.tallies.count(if self.is_down() {
                Tally::EventsDroppedNoReader
            } else {
                Tally::EventsDroppedFull
            });
            return;
        }
        let layout = self.target.layout;
        self.backlog.push(Talker::Loud, Mark::default(), |out| {
            write_line(out, layout, sender, line)
        });
        self.valve.level(self.backlog.bytes(), now);
    }
}
