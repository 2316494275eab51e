//! Whether we ourselves were there: while this process stood still nobody could be heard, so nobody may be given up
//! for it.

use std::time::Duration;

use crate::slot::Millis;

/// Ticks come at least this often, due or not.
pub const LONGEST_NAP: Duration = Duration::from_secs(1);
/// A tick that is later than this is a stall.
const TOLERATED: Duration = Duration::from_secs(1);

/// The beat of our own ticks.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    last: Millis,
    /// Until then nobody is disconnected for being silent.
    patient_until: Millis,
}

impl Pulse {
    /// The start of the process: patience for one whole time-out, so that a restart disconnects nobody by itself.
    pub fn start(now: Millis, timeout: Duration) -> Self {
        Self {
            last: now,
            patient_until: now + timeout,
        }
    }

    /// A tick. When it comes late, agents get as long as we were away, at most one interval, to be heard again. Says
    /// how late it was if that was a stall.
    pub fn beat(&mut self, now: Millis, interval: Duration) -> Option<Duration> {
        let late = now.since(self.last).saturating_sub(LONGEST_NAP);
        self.last = now;
        if late <= TOLERATED {
            return None;
        }
        self.patient_until = self.patient_until.max(now + late.min(interval));
        Some(late)
    }

    /// The earliest time at which somebody may be disconnected for being silent.
    pub fn patient_until(&self) -> Millis {
        self.patient_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    #[test]
    fn start_is_patient_for_a_whole_timeout() {
        let pulse = Pulse::start(Millis(5000), Duration::from_secs(180));
        assert_eq!(pulse.patient_until(), Millis(185_000));
    }

    #[test]
    fn stall_of_hours_gives_one_interval_and_a_short_one_as_long_as_it_was() {
        let mut pulse = Pulse::start(Millis(1000), Duration::ZERO);
        assert_eq!(pulse.beat(Millis(1900), INTERVAL), None);
        assert_eq!(pulse.beat(Millis(2900), INTERVAL), None);
        let hours = 4 * 3600 * 1000;
        assert!(pulse.beat(Millis(hours), INTERVAL).is_some());
        assert_eq!(pulse.patient_until(), Millis(hours + 60_000));
        let mut pulse = Pulse::start(Millis(1000), Duration::ZERO);
        assert_eq!(pulse.beat(Millis(12_000), INTERVAL), Some(Duration::from_secs(10)));
        assert_eq!(pulse.patient_until(), Millis(22_000));
    }
}
