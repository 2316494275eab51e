//! Steps of the wall clock: pure. Events carry its time, and consumers judge them by it.

/// Less than this is corrected now and then on any machine.
const STEP_MS: i64 = 5000;

/// Watches how far the wall clock is from one that never steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    offset_ms: Option<i64>,
}

impl Steps {
    /// Both clocks now. Gives how far the wall clock was stepped since the last time, if it was.
    pub(super) fn look(&mut self, wall_ms: u64, monotonic_ms: u64) -> Option<i64> {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let offset = signed(wall_ms).saturating_sub(signed(monotonic_ms));
        let before = self.offset_ms.replace(offset)?;
        let step = offset.saturating_sub(before);
        (step.saturating_abs() > STEP_MS).then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_more_than_five_seconds_count_in_both_directions() {
        let mut steps = Steps::default();
        assert_eq!(
            steps.look(1_000_000, 0),
            None,
            "the first time there is nothing to compare"
        );
        assert_eq!(steps.look(1_061_000, 60_000), None, "a second is none");
        assert_eq!(steps.look(1_068_001, 62_000), Some(5001));
        assert_eq!(steps.look(1_069_001, 63_000), None, "it is told once");
        assert_eq!(steps.look(470_001, 64_000), Some(-600_000));
    }

    #[test]
    fn drift_and_pauses_are_no_steps() {
        let mut steps = Steps::default();
        for second in 0..100_000_u64 {
            // Half a thousandth too fast, and an hour asleep now and then.
            let monotonic = second * 1000 + second / 1000 * 3_600_000;
            assert_eq!(steps.look(7_000_000 + monotonic + second / 2, monotonic), None);
        }
    }
}
