//! Printing: data to standard output, and a reader who has gone is no error.

use std::io::{self, Write};

use jiff::{Timestamp, tz::TimeZone};
use muster_service::exit::{DONE, Exit};
use serde::Serialize;

/// Prints a line. When nobody reads on, the program ends quietly with 0.
pub(crate) fn line(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_ref())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Exit::quiet(DONE).into(),
        _ => anyhow::Error::new(error).context("writing to standard output"),
    })
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Says a word to the operator. That nobody listens is no error.
pub(crate) fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

/// A table: each column as wide as its widest cell, the last one as it is.
pub(crate) fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> anyhow::Result<()> {
    let head = head.map(str::to_owned);
    let rows = || std::iter::once(&head).chain(rows);
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        rows()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    });
    for row in rows() {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Unix seconds as local time, to the second.
pub(crate) fn time(seconds: u64) -> String {
    let timestamp = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    timestamp.map_or_else(
        || seconds.to_string(),
        |time| {
            time.to_zoned(TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        },
    )
}

/// A duration in its two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// What a stranger may have chosen, such as an agent's name, without what would move the cursor.
pub(crate) fn tame(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_has_its_two_largest_units() {
        let shown = [0, 59, 60, 3599, 3600, 90_000].map(duration);
        assert_eq!(
            shown,
            ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h"]
        );
    }

    #[test]
    fn escape_sequences_of_strangers_do_not_reach_the_terminal() {
        assert_eq!(tame("a\x1b[31mb\n"), "a\u{fffd}[31mb\u{fffd}");
    }
}
