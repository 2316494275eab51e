//! How far the broker's clock is from ours: pure. Consumers compare the time in an event with their own.

/// What is worth telling.
pub(crate) const MUCH_MS: i64 = 5000;

/// Our clock before and behind the question at which the broker noted its own time. Gives how far the broker is ahead of
/// us, as little as fits.
pub(super) fn skew_ms(stamp: &str, before_ms: u64, after_ms: u64) -> Option<i64> {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let (broker, before, after) = (unix_ms(stamp)?, signed(before_ms), signed(after_ms));
    Some(if broker < before {
        broker - before
    } else {
        (broker - after).max(0)
    })
}

/// Unix milliseconds of a time such as `2026-11-21T16:30:00.123456789Z`.
fn unix_ms(stamp: &str) -> Option<i64> {
    let (date, time) = stamp.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let parts: Vec<i64> = text
            .split(by)
            .map(|part| part.parse::<u16>().ok().map(i64::from))
            .collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(whole, ':')?;
    let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse::<u16>().ok()?.into();
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March, so that the day of a leap year is the last of one.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_broker_writes_them() {
        assert_eq!(unix_ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_ms("2026-11-21T16:26:28.123456789Z"), Some(1_795_278_388_123));
        assert_eq!(unix_ms("2024-02-29T23:59:59.5Z"), Some(1_709_251_199_500));
        assert_eq!(unix_ms("2000-03-01T00:00:00.07Z"), Some(951_868_800_070));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "Z",
            "T",
            "2026-11-21",
            "2026-13-01T00:00:00Z",
            "2026-11-21T16:26Z",
            "2026-11-21T16:26:28.éZ",
        ] {
            assert_eq!(unix_ms(text), None, "{text}");
        }
    }

    #[test]
    fn what_the_way_there_and_back_may_explain_is_no_skew() {
        let stamp = "1970-01-01T00:00:10Z";
        assert_eq!(skew_ms(stamp, 9_000, 11_000), Some(0));
        assert_eq!(skew_ms(stamp, 2_000, 3_000), Some(7_000));
        assert_eq!(skew_ms(stamp, 70_000, 71_000), Some(-60_000));
    }
}
