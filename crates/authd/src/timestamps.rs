//! `queue/agents-timestamp`: registration times in the stock text, for stock programs that read them.
//!
//! ```text
//! 001 web-01 10.0.0.0/24 2026-11-21 06:30:00
//! ```
//!
//! Local time, one line an agent. The database is where this daemon looks; the text is read only for agents that the
//! database does not know, such as those of an imported home.

use std::{collections::HashMap, fmt::Write};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use muster_proto::{agent::AgentId, keys::file::KeyEntry};

use crate::registry::Registry;

/// Registration times by id, as Unix seconds. Lines that cannot be read are passed over.
pub fn parse(text: &str, zone: &TimeZone) -> HashMap<AgentId, i64> {
    text.lines().filter_map(|line| parse_line(line, zone)).collect()
}

fn parse_line(line: &str, zone: &TimeZone) -> Option<(AgentId, i64)> {
    // From the right: a name with a space must not shift the date.
    let mut fields = line.trim_end().rsplitn(3, ' ');
    let (time, date, front) = (fields.next()?, fields.next()?, fields.next()?);
    let civil: DateTime = format!("{date}T{time}").parse().ok()?;
    let at = civil.to_zoned(zone.clone()).ok()?.timestamp().as_second();
    let (id, _) = front.split_once(' ')?;
    Some((AgentId::new(id), at))
}

/// The text for all agents whose registration time is known.
pub fn format(registry: &Registry, zone: &TimeZone) -> String {
    let mut text = String::new();
    for entry in registry.keys.live() {
        match registry.registered.get(&entry.id) {
            Some(at) if *at > 0 => write_line(&mut text, entry, *at, zone),
            _ => {}
        }
    }
    text
}

fn write_line(text: &mut String, entry: &KeyEntry, at: i64, zone: &TimeZone) {
    if let Ok(at) = Timestamp::from_second(at) {
        let time = at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
        let _ = writeln!(text, "{} {} {} {time}", entry.id, entry.name, entry.address.text());
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::keys::file;

    use super::*;
    use crate::keystore::KeyStore;

    #[test]
    fn known_times_are_written_in_local_time_and_read_back() {
        let registry = Registry {
            keys: KeyStore::new(file::parse(b"001 a 10.0.0.0/24 k\n002 b any k\n003 c any k\n")),
            registered: [("001", 1_795_242_600), ("002", 0)]
                .map(|(id, at)| (AgentId::new(id), at))
                .into(),
            leases: None,
        };
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let text = format(&registry, &zone);
        assert_eq!(text, "001 a 10.0.0.0/24 2026-11-21 08:30:00\n");
        assert_eq!(
            parse(&text, &zone),
            HashMap::from([(AgentId::new("001"), 1_795_242_600)])
        );
    }

    #[test]
    fn what_is_no_line_is_passed_over() {
        for text in [
            "",
            "001",
            "001 a any",
            "001 a any 2026-13-01 00:00:00",
            "001 a any 2026-11-21 25:00:00",
            "\u{e9} ",
        ] {
            assert!(parse(text, &TimeZone::UTC).is_empty(), "{text}");
        }
    }
}
