//! A rate: `50/s burst 500`.

use super::{Kind, Special, number};
use crate::value::Rate;

/// `50/s burst 500`, `50/s`, or `off`.
pub(crate) fn rate() -> Special<Rate> {
    Special {
        accepts: "a rate such as '50/s burst 500', each number from 1 to 1000000, or 'off'",
        read: |text| parse_rate(text).into(),
        write: |rate| {
            Some(match rate.per_second {
                0 => "off".to_owned(),
                per_second => format!("{per_second}/s burst {}", rate.burst),
            })
        },
    }
}

fn parse_rate(text: &str) -> Option<Rate> {
    if text == "off" {
        return Some(Rate::OFF);
    }
    let (per_second, rest) = text.split_once("/s")?;
    let per_second = whole(per_second)?;
    let burst = match rest.trim_start().strip_prefix("burst ") {
        Some(burst) => whole(burst.trim_start())?,
        None if rest.is_empty() => per_second,
        None => return None,
    };
    Some(Rate { per_second, burst })
}

fn whole(text: &str) -> Option<u32> {
    match number(1, 1_000_000).read(text) {
        crate::kind::Reading::Value(value) => Some(value),
        _ => None,
    }
}
