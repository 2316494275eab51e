//! Single values of scenarios and orders: times, rates, sizes, shares.

use std::{net::IpAddr, rc::Rc, time::Duration};

use crate::agent::Sizes;

/// A length of time: `500ms`, `20s`, `5m`, `2h`.
///
/// # Errors
///
/// What is wrong with it, and what it should look like.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{}` is not a time such as 500ms, 20s, 5m or 2h", text.escape_debug());
    let digits = text.find(|other: char| !other.is_ascii_digit() && other != '.');
    let (number, unit) = text.split_at_checked(digits.ok_or_else(wrong)?).ok_or_else(wrong)?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// The same, and longer than nothing.
///
/// # Errors
///
/// What is wrong with it, and what it should look like.
pub fn period(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time >= Duration::from_millis(1) => Ok(time),
        _ => Err(format!("`{}` should be 1ms or more", text.escape_debug())),
    }
}

/// So many a second: `50/s`, `12/m`, `100/h`.
///
/// # Errors
///
/// What is wrong with it, and what it should look like.
pub fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{}` is not a rate such as 50/s, 12/m or 100/h", text.escape_debug());
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let seconds = match unit.trim() {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let rate = number / seconds;
    // Slower than once in some years, or faster than the clock ticks, is a slip of the pen.
    if (1e-8..=1e9).contains(&rate) {
        Ok(rate)
    } else {
        Err(wrong())
    }
}

/// Bytes of events: `200`, `100..400`, or several of these with their shares: `200:90, 1000..4000:10`.
///
/// # Errors
///
/// What is wrong with it, and what it should look like.
pub fn sizes(text: &str) -> Result<Sizes, String> {
    let wrong = || {
        format!(
            "`{}` is not a size such as 200, 100..400 or 200:90, 1000..4000:10",
            text.escape_debug()
        )
    };
    let mut ranges = Vec::new();
    for part in list(text) {
        let (range, share) = match part.split_once(':') {
            Some((range, share)) => (range, share.trim().parse().map_err(|_| wrong())?),
            None => (part, 1),
        };
        let (least, most) = range.split_once("..").unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        ranges.push((number(least)?, number(most)?, share));
    }
    let sizes = Sizes::ranges(ranges).ok_or_else(wrong)?;
    let limit = muster_proto::transport::MAX_PAYLOAD_LEN;
    if sizes.largest() > limit {
        return Err(format!("`{}`: an event has {limit} bytes or less", text.escape_debug()));
    }
    Ok(sizes)
}

/// Versions with their shares: `4.14.7`, `4.9.2:1, 4.14.7:3`.
///
/// # Errors
///
/// What is wrong with it, and what it should look like.
pub fn versions(text: &str) -> Result<Vec<(Rc<str>, u32)>, String> {
    let wrong = || {
        format!(
            "`{}` is not a version such as 4.14.7 or 4.9.2:1, 4.14.7:3",
            text.escape_debug()
        )
    };
    let mut versions: Vec<(Rc<str>, u32)> = Vec::new();
    for part in list(text) {
        let (version, share) = part.split_once(':').unwrap_or((part, "1"));
        let version = version.trim().trim_start_matches('v');
        let share = share.trim().parse().map_err(|_| wrong())?;
        let plausible = version.starts_with(|first: char| first.is_ascii_digit())
            && version
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-'));
        if !plausible {
            return Err(wrong());
        }
        versions.push((version.into(), share));
    }
    let total = versions
        .iter()
        .try_fold(0_u32, |sum, (_, share)| sum.checked_add(*share));
    match total {
        None | Some(0) => Err(wrong()),
        Some(_) => Ok(versions),
    }
}

/// Source addresses: `127.0.0.2, 127.0.0.3`, or a run of them: `127.0.1.1..127.0.1.50`.
///
/// # Errors
///
/// What is wrong with it, and what it should look like.
pub fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let wrong = || {
        format!(
            "`{}` is not an address such as 127.0.0.2, nor a run such as 127.0.1.1..127.0.1.50",
            text.escape_debug()
        )
    };
    let mut addresses = Vec::new();
    for part in list(text) {
        if let Some((first, last)) = part.split_once("..") {
            let (first, last) = (v4(first).ok_or_else(wrong)?, v4(last).ok_or_else(wrong)?);
            if first > last || last - first >= MAX_RUN {
                return Err(format!("`{part}` should be a run of 1 to {MAX_RUN} addresses"));
            }
            addresses.extend((first..=last).map(|address| IpAddr::V4(address.into())));
        } else {
            addresses.push(part.parse().map_err(|_| wrong())?);
        }
    }
    if addresses.is_empty() {
        return Err(wrong());
    }
    Ok(addresses)
}

/// The longest run of addresses.
const MAX_RUN: u32 = 4096;

fn v4(text: &str) -> Option<u32> {
    text.trim().parse::<std::net::Ipv4Addr>().ok().map(u32::from)
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "20", "s", "1 s", "1d", "-1s", "1..2s", "99999999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(period("0s").is_err());
    }

    #[test]
    fn rates_have_units() {
        assert_eq!(rate("12/m"), Ok(0.2));
        for wrong in ["", "5", "0/s", "-1/s", "NaN/s", "5/d", "1e99/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_ranges_with_shares() {
        assert_eq!(sizes("200"), Ok(Sizes::fixed(200)));
        let two = sizes("100..300:3, 1000").unwrap();
        assert_eq!((two.largest(), two.mean()), (1000, 400.0));
        for wrong in ["", "x", "300..100", "200:0", "200:x", "70000", "1:4294967295,2:1"] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn versions_have_shares() {
        assert_eq!(
            versions("v4.9.2:1, 4.14.7:3"),
            Ok(vec![("4.9.2".into(), 1), ("4.14.7".into(), 3)])
        );
        for wrong in ["", "latest", "4.1:x", "4.1:0", "4.1\"}"] {
            assert!(versions(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_may_be_runs() {
        let run = addresses("127.0.0.254..127.0.1.1, ::1").unwrap();
        assert_eq!(run.len(), 5);
        assert_eq!(run[3], IpAddr::from([127, 0, 1, 1]));
        for wrong in ["", "localhost", "127.0.0.2..127.0.0.1", "10.0.0.0..11.0.0.0"] {
            assert!(addresses(wrong).is_err(), "{wrong}");
        }
    }
}
