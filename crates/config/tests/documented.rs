//! `docs/configuration.md` and the page in section 5 know every option, with its default and its range.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::{collections::BTreeMap, fs};

use muster_config::{Entry, Origin, internal_options, options};

fn file(name: &str) -> String {
    let path = format!("{}/../../{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows of the tables, by section and option: their cells between the name and the meaning.
fn tables() -> BTreeMap<(String, String), Vec<String>> {
    let mut rows = BTreeMap::new();
    let mut section = String::new();
    for line in file("docs/configuration.md").lines() {
        if let Some(heading) = line.strip_prefix('#') {
            let parts: Vec<_> = heading
                .split('`')
                .filter_map(|part| part.strip_prefix('<')?.strip_suffix('>'))
                .collect();
            section = parts.join("/");
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row
                .trim_end_matches(" |")
                .splitn(5, " | ")
                .map(|cell| cell.trim().to_owned());
            let name = cells.next().unwrap().trim_end_matches('`').to_owned();
            let cells: Vec<_> = cells.collect();
            assert_eq!(cells.len(), 4, "{line}");
            assert!(
                rows.insert((section.clone(), name), cells).is_none(),
                "{line} is there twice"
            );
        }
    }
    rows
}

/// How a table says what an option takes: shorter than the error message, since the page explains the forms.
fn short(accepts: &str) -> String {
    let rate = "a rate such as '50/s burst 500', each number from 1 to 1000000, or 'off'";
    let mut text = accepts.replace(rate, "a rate, or 'off'");
    for (long, short) in [
        ("a time from ", ""),
        (", such as 30s, 5m, 1h, 1d", ""),
        ("a size from ", ""),
        (", such as 512MB", ""),
        ("a number of seconds from", "seconds,"),
        ("a number of minutes from", "minutes,"),
        ("a number from ", ""),
        (" without control characters", ""),
        (", relative to the home or absolute", ""),
        (" from 1 to ", " 1 to "),
    ] {
        text = text.replace(long, short);
    }
    text.replace('\'', "`")
}

fn check(entry: &Entry, section: &str, name: &str, rows: &mut BTreeMap<(String, String), Vec<String>>) {
    let Some(cells) = rows.remove(&(section.to_owned(), name.to_owned())) else {
        panic!(
            "docs/configuration.md has no row for {} in the section of {section}",
            entry.path
        );
    };
    let default = match entry.default.as_deref() {
        None => String::new(),
        Some("") => "empty".to_owned(),
        Some(default) => format!("`{default}`"),
    };
    let origin = if entry.origin == Origin::Stock { "stock" } else { "ours" };
    assert_eq!(
        cells[..3],
        [default, short(&entry.accepts), origin.to_owned()],
        "{}",
        entry.path
    );
    assert!(cells[3].len() > 10, "{}: what does it mean?", entry.path);
}

#[test]
fn the_page_has_every_option_and_no_other() {
    let mut rows = tables();
    let shared = |path: &str| path.starts_with("wodle/") && path != "wodle/force_insert";
    for entry in options()
        .iter()
        .filter(|entry| !entry.accepts.is_empty() && !shared(&entry.path))
    {
        let (section, name) = entry.path.rsplit_once(['/', '@']).unwrap();
        check(entry, section, name, &mut rows);
    }
    for entry in internal_options() {
        check(&entry, "", &entry.path, &mut rows);
    }
    assert_eq!(
        rows.keys().collect::<Vec<_>>(),
        Vec::<&(String, String)>::new(),
        "rows without an option"
    );
}

#[test]
fn both_homes_of_the_key_request_have_the_same_options() {
    let of = |parent: &str| -> Vec<_> {
        let entries = options()
            .into_iter()
            .filter(|entry| entry.path.starts_with(parent) && entry.name() != "force_insert");
        entries
            .map(|entry| (entry.name().to_owned(), entry.accepts, entry.default))
            .collect()
    };
    assert_eq!(of("auth/key_request/"), of("wodle/"));
}

#[test]
fn the_manual_page_names_every_option() {
    // Roff writes a hyphen that is one as "\-", and bold between "\fB" and "\fR".
    let page = file("man/ossec.conf.5")
        .replace("\\-", "-")
        .replace("\\fB", " ")
        .replace("\\fR", " ");
    for entry in options().iter().chain(&internal_options()) {
        let name = if entry.parent().is_some() {
            entry.name()
        } else {
            &entry.path
        };
        let has = page
            .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')))
            .any(|word| word == name);
        assert!(has, "man/ossec.conf.5 does not name {}", entry.path);
    }
}
