//! Numbers, times and sizes.

use std::time::Duration;

use super::{Kind, Reading};

/// A whole number.
pub(crate) struct Number {
    min: u64,
    max: u64,
}

/// A whole number in decimal digits, from `min` to `max`.
pub(crate) fn number(min: u64, max: u64) -> Number {
    Number { min, max }
}

impl Number {
    fn parse(&self, text: &str) -> Option<u64> {
        digits(text).filter(|number| (self.min..=self.max).contains(number))
    }
}

/// Nothing but digits: no sign, no spaces, as Rust's own parser would take `+1`.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

macro_rules! number_kinds {
    ($($whole:ty),*) => {$(
        impl Kind<$whole> for Number {
            fn accepts(&self) -> String {
                format!("a number from {} to {}", self.min, self.max)
            }

            fn read(&self, text: &str) -> Reading<$whole> {
                self.parse(text).and_then(|number| <$whole>::try_from(number).ok()).into()
            }

            fn write(&self, value: &$whole) -> Option<String> {
                Some(value.to_string())
            }
        }
    )*};
}

number_kinds!(u8, u16, u32, u64, usize);

/// Units of time, the largest first, with their seconds.
const UNITS: [(char, u64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// A time.
pub(crate) struct Span {
    min: u64,
    max: u64,
    form: Form,
}

/// How a time is written.
enum Form {
    /// `<n>` in seconds or `<n>[s|m|h|d|w]`.
    Units,
    /// `<n>`, each of so many seconds.
    Plain(u64),
}

/// A time in stock's form `<n>[s|m|h|d|w]`, from `min` to `max` seconds.
pub(crate) fn span(min: u64, max: u64) -> Span {
    Span {
        min,
        max,
        form: Form::Units,
    }
}

/// A time as a plain number of seconds.
pub(crate) fn seconds(min: u64, max: u64) -> Span {
    Span {
        min,
        max,
        form: Form::Plain(1),
    }
}

/// A time as a plain number of minutes, from `min` to `max` minutes.
pub(crate) fn minutes(min: u64, max: u64) -> Span {
    Span {
        min: min * 60,
        max: max * 60,
        form: Form::Plain(60),
    }
}

impl Kind<Duration> for Span {
    fn accepts(&self) -> String {
        match self.form {
            Form::Units => {
                format!(
                    "a time from {} to {}, such as 30s, 5m, 1h, 1d",
                    with_unit(self.min),
                    with_unit(self.max)
                )
            }
            Form::Plain(60) => format!("a number of minutes from {} to {}", self.min / 60, self.max / 60),
            Form::Plain(unit) => format!("a number of seconds from {} to {}", self.min / unit, self.max / unit),
        }
    }

    fn read(&self, text: &str) -> Reading<Duration> {
        let seconds = match self.form {
            Form::Plain(unit) => digits(text).and_then(|number| number.checked_mul(unit)),
            Form::Units => {
                let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
                let number = unit.map_or(text, |_| text.get(..text.len() - 1).unwrap_or(""));
                digits(number).and_then(|number| number.checked_mul(unit.map_or(1, |(_, seconds)| *seconds)))
            }
        };
        seconds
            .filter(|seconds| (self.min..=self.max).contains(seconds))
            .map(Duration::from_secs)
            .into()
    }

    fn write(&self, value: &Duration) -> Option<String> {
        Some(match self.form {
            Form::Units => with_unit(value.as_secs()),
            Form::Plain(unit) => (value.as_secs() / unit).to_string(),
        })
    }
}

/// Seconds in the largest unit that loses nothing.
fn with_unit(seconds: u64) -> String {
    let unit = UNITS
        .iter()
        .find(|(_, unit)| seconds != 0 && seconds.is_multiple_of(*unit));
    unit.map_or_else(
        || format!("{seconds}s"),
        |(letter, unit)| format!("{}{letter}", seconds / unit),
    )
}

/// Units of size, the largest first.
const SIZES: [(&str, u32); 5] = [("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10), ("B", 0)];

/// A size.
pub(crate) struct Bytes {
    min: u64,
    max: u64,
}

/// A size in the form `<n>[B|KB|MB|GB|TB]`, with or without the `B`, in powers of 1024.
pub(crate) fn bytes(min: u64, max: u64) -> Bytes {
    Bytes { min, max }
}

impl Kind<u64> for Bytes {
    fn accepts(&self) -> String {
        format!(
            "a size from {} to {}, such as 512MB",
            with_size(self.min),
            with_size(self.max)
        )
    }

    fn read(&self, text: &str) -> Reading<u64> {
        let text = text.to_ascii_uppercase();
        let (number, shift) = SIZES
            .iter()
            .find_map(|(name, shift)| {
                let short = name.trim_end_matches('B');
                let number = text
                    .strip_suffix(name)
                    .or_else(|| text.strip_suffix(short).filter(|_| !short.is_empty()));
                number.map(|number| (number, *shift))
            })
            .unwrap_or((&text, 0));
        digits(number.trim_end())
            .and_then(|number| number.checked_mul(1 << shift))
            .filter(|bytes| (self.min..=self.max).contains(bytes))
            .into()
    }

    fn write(&self, value: &u64) -> Option<String> {
        Some(with_size(*value))
    }
}

/// Bytes in the largest unit that loses nothing.
fn with_size(bytes: u64) -> String {
    let size = SIZES
        .iter()
        .find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    size.map_or_else(
        || format!("{bytes}B"),
        |(name, shift)| format!("{}{name}", bytes >> shift),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> Option<u64> {
        match span(1, 31_536_000).read(text) {
            Reading::Value(value) => Some(value.as_secs()),
            _ => None,
        }
    }

    #[test]
    fn times_take_stock_units_and_plain_seconds() {
        let cases = [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("1h", 3600),
            ("2d", 172_800),
            ("1w", 604_800),
        ];
        for (text, seconds) in cases {
            assert_eq!(time(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn times_refuse_signs_fractions_other_units_and_overflow() {
        for text in [
            "",
            "s",
            "-5",
            "+5",
            "1.5h",
            "5 m",
            "5M",
            "1y",
            "5mm",
            "0",
            "99999999999999999999w",
            "30000000000d",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_take_units_in_powers_of_1024() {
        let cases = [
            ("1024", 1024),
            ("1KB", 1024),
            ("1k", 1024),
            ("5 MB", 5 << 20),
            ("1GB", 1 << 30),
            ("7B", 7),
        ];
        for (text, size) in cases {
            assert_eq!(bytes(1, 1 << 40).read(text), Reading::Value(size), "{text}");
        }
        for text in ["", "B", "KB", "1.5GB", "-1", "1PB", "99999999999TB"] {
            assert_eq!(bytes(1, 1 << 40).read(text), Reading::Refused, "{text}");
        }
    }

    #[test]
    fn a_number_beyond_its_type_is_refused_even_within_the_range() {
        let kind = number(0, 100_000);
        assert_eq!(<Number as Kind<u16>>::read(&kind, "70000"), Reading::Refused);
        assert_eq!(<Number as Kind<u32>>::read(&kind, "70000"), Reading::Value(70_000));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds_ in 1u64..100_000_000, size in 1u64..1 << 40) {
            let duration = Duration::from_secs(seconds_);
            let kind = span(1, 100_000_000);
            prop_assert_eq!(kind.read(&kind.write(&duration).unwrap()), Reading::Value(duration));
            let kind = bytes(1, 1 << 40);
            prop_assert_eq!(kind.read(&kind.write(&size).unwrap()), Reading::Value(size));
        }
    }
}
