//! `<escalation>`: when an absence that goes on is published again.

use std::time::Duration;

use crate::{
    kind::{Kind, Reading, Special, span},
    limits,
};

const DAY: u64 = 86_400;
/// Each time raises the level by one, and the scale has an end.
const MAX_TIMES: usize = 4;

/// The times since the agent went, rising; none for never.
pub(super) fn escalation() -> Special<Vec<Duration>> {
    Special {
        accepts: "'on', 'off' or up to 4 rising times from 1s to 30d, such as 1h,24h",
        read: |text| match text {
            "on" => Reading::Value(limits::ESCALATION.to_vec()),
            "off" => Reading::Value(Vec::new()),
            _ => times(text).into(),
        },
        write: |times| match times.as_slice() {
            [] => Some("off".to_owned()),
            times if times == limits::ESCALATION => Some("on".to_owned()),
            times => {
                let times: Option<Vec<String>> = times.iter().map(|time| time_kind().write(time)).collect();
                Some(times?.join(","))
            }
        },
    }
}

fn time_kind() -> impl Kind<Duration> {
    span(1, 30 * DAY)
}

fn times(text: &str) -> Option<Vec<Duration>> {
    let mut times = Vec::new();
    for part in text.split(',') {
        match time_kind().read(part.trim()) {
            Reading::Value(time) if times.len() < MAX_TIMES && times.last().is_none_or(|last| *last < time) => {
                times.push(time);
            }
            _ => return None,
        }
    }
    Some(times)
}
