//! The account for people: a column for each part of the fleet, a row for each counter that counted anything.

use std::fmt::Write as _;

use super::{Part, Report, Tally, millis_as_seconds};

/// The report with this word in front.
pub(super) fn text(report: &Report, title: &str) -> String {
    let Report {
        standing,
        tally,
        elapsed_ms,
        groups,
    } = report;
    let mut text = format!(
        "{title} after {:.1} s: {} of {} agents connected, {} killed\n",
        millis_as_seconds(*elapsed_ms),
        standing.connected,
        standing.agents,
        standing.killed,
    );
    if standing.enroll_refused > 0 {
        let _ = writeln!(text, "  {} agents were refused a key", standing.enroll_refused);
    }
    let mut rows = vec![row("", groups, |part| part.name.clone(), "all".to_owned())];
    rows.push(row(
        "agents",
        groups,
        |part| part.members.to_string(),
        groups.iter().map(|part| part.members).sum::<usize>().to_string(),
    ));
    rows.push(row(
        "connected",
        groups,
        |part| part.members_connected.to_string(),
        groups
            .iter()
            .map(|part| part.members_connected)
            .sum::<usize>()
            .to_string(),
    ));
    let columns: Vec<Vec<(&str, u64)>> = groups.iter().map(|part| part.tally.counters()).collect();
    for (place, (name, total)) in tally.counters().into_iter().enumerate() {
        // What counted nothing is left out, but for what everybody wants to see.
        if total == 0 && !ALWAYS.contains(&name) {
            continue;
        }
        let mut cells = vec![name.replace('_', " ")];
        cells.extend(
            columns
                .iter()
                .map(|column| number(column.get(place).map_or(0, |cell| cell.1))),
        );
        cells.push(number(total));
        rows.push(cells);
    }
    for (name, of) in [
        (
            "startup to ack, ms: half / 99 % / all within",
            startups as fn(&Tally) -> String,
        ),
        ("keepalive to ack, ms: half / 99 % / all within", keepalives),
    ] {
        rows.push(row(name, groups, |part| of(&part.tally), of(tally)));
    }
    for line in aligned(&rows) {
        text.push_str("  ");
        text.push_str(&line);
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text
}

const ALWAYS: [&str; 8] = [
    "startups_sent",
    "startups_acked",
    "startups_refused",
    "keepalives_sent",
    "keepalives_acked",
    "events_made",
    "events_sent",
    "events_unsent",
];

fn row(name: &str, groups: &[Part], cell: impl Fn(&Part) -> String, total: String) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    cells.extend(groups.iter().map(cell));
    cells.push(total);
    cells
}

fn startups(tally: &Tally) -> String {
    waits(&tally.startup_wait)
}

fn keepalives(tally: &Tally) -> String {
    waits(&tally.keepalive_wait)
}

fn waits(waits: &super::Waits) -> String {
    if waits.count() == 0 {
        return "-".to_owned();
    }
    let millis = |wait: std::time::Duration| {
        let millis = wait.as_secs_f64() * 1000.0;
        if millis < 10.0 {
            format!("{millis:.1}")
        } else {
            format!("{millis:.0}")
        }
    };
    format!(
        "{}/{}/{}",
        millis(waits.percentile(50)),
        millis(waits.percentile(99)),
        millis(waits.longest())
    )
}

/// With a comma behind each thousand.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Names to the left, numbers to the right, columns as wide as their widest cell.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_rows_left_out() {
        let mut part = Part {
            name: "laptops".into(),
            members: 2,
            ..Part::default()
        };
        part.tally.events_sent = 1_234_567;
        let report = Report {
            tally: part.tally.clone(),
            groups: vec![part],
            ..Report::default()
        };
        let text = text(&report, "account");
        let line = |begin: &str| text.lines().find(|line| line.trim_start().starts_with(begin)).unwrap();
        assert!(line("events sent").ends_with("1,234,567  1,234,567"), "{text}");
        assert!(line("laptops").ends_with("laptops        all"), "{text}");
        assert!(!text.contains("oversized"), "{text}");
        assert_eq!(line("events sent").len(), line("events made").len());
    }
}
