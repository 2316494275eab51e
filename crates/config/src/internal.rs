//! `internal_options.conf` and `local_internal_options.conf`: lines of `name=value`.
//!
//! Within a file the first line of a name counts, and the local file counts before the shipped one: so stock looks
//! them up.

use std::fmt::Write as _;

use crate::{
    catalog::{Catalog, Entry},
    kind::{Kind, Reading},
    limits::MAX_INTERNAL_OPTIONS,
    settings::Internal,
    source::{Report, Source, Span, quoted},
    suggest,
    walk::{Block, Need, Origin, Repeated, Walk},
};

/// The first parts of names of which we know all: an unknown one there is a slip.
const OUR_PREFIXES: [&str; 6] = ["remoted", "auth", "authd", "natsd", "keypolld", "agentlessd"];

/// Reads the files, of which an earlier one counts before a later one.
pub(crate) fn read(sources: &[Source], report: &mut Report) -> Internal {
    let mut lines = Vec::new();
    for source in sources {
        read_lines(source, &mut lines, report);
    }
    let mut reader = LineReader {
        lines: &lines,
        prefix: "",
        known: Vec::new(),
        report,
    };
    let mut internal = Internal::default();
    internal.walk(&mut reader);
    reader.report_unknown();
    internal
}

/// One option of a file.
struct Line<'s> {
    source: &'s Source,
    name: &'s str,
    name_span: Span,
    value: &'s str,
    value_span: Span,
}

fn read_lines<'s>(source: &'s Source, lines: &mut Vec<Line<'s>>, report: &mut Report) {
    let limit = lines.len() + MAX_INTERNAL_OPTIONS;
    let mut start = 0;
    for line in source.text.split_inclusive('\n') {
        let begin = start;
        start += line.len();
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let at = begin + (line.len() - line.trim_start().len());
        let Some((name, value)) = text.split_once('=') else {
            let message = format!(
                "{} is no option; write name=value, or '#' before a comment",
                quoted(text)
            );
            report.error(source, Span::new(at, at + text.len()), &message);
            continue;
        };
        if lines.len() >= limit {
            report.error(
                source,
                Span::new(at, at + text.len()),
                &format!("more than {MAX_INTERNAL_OPTIONS} options"),
            );
            return;
        }
        let end = at + text.len();
        let value_at = end - value.trim_start().len();
        let value = value.trim();
        let value_span = Span::new(value_at, (value_at + value.len()).max(value_at + 1));
        let name = name.trim_end();
        lines.push(Line {
            source,
            name,
            name_span: Span::new(at, at + name.len()),
            value,
            value_span,
        });
    }
}

/// Walks over lines.
struct LineReader<'l, 's, 'r> {
    lines: &'l [Line<'s>],
    prefix: &'static str,
    known: Vec<String>,
    report: &'r mut Report,
}

/// The name that an option has in the file.
fn line_name(prefix: &str, name: &str) -> String {
    if prefix == "debug" {
        format!("{name}.debug")
    } else {
        format!("{prefix}.{name}")
    }
}

impl LineReader<'_, '_, '_> {
    fn report_unknown(&mut self) {
        for line in self.lines {
            let prefix = line.name.split('.').next().unwrap_or_default();
            if self.known.iter().any(|known| known == line.name) || !OUR_PREFIXES.contains(&prefix) {
                continue;
            }
            let meant = suggest::nearest(line.name, self.known.iter().map(String::as_str));
            let cure = meant
                .map(|meant| format!("; did you mean {meant}?"))
                .unwrap_or_default();
            let message = format!("unknown internal option {} is ignored{cure}", quoted(line.name));
            self.report.warning(line.source, line.name_span, &message);
        }
    }
}

impl Walk for LineReader<'_, '_, '_> {
    fn option<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut T) {
        let name = line_name(self.prefix, name);
        let mut value = None;
        for line in self.lines.iter().filter(|line| line.name == name) {
            match kind.read(line.value) {
                Reading::Value(read) | Reading::Doubtful(read, _) => {
                    value.get_or_insert(read);
                }
                Reading::Refused | Reading::Because(_) => {
                    let message = format!("{name} must be {}, not {}", kind.accepts(), quoted(line.value));
                    self.report.error(line.source, line.value_span, &message);
                }
            }
        }
        if let Some(value) = value {
            *field = value;
        }
        self.known.push(name);
    }

    fn block<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut B) {
        self.prefix = name;
        field.walk(self);
    }

    fn unused(&mut self, names: &[&'static str]) {
        let prefix = self.prefix;
        self.known.extend(names.iter().map(|name| line_name(prefix, name)));
    }

    // Internal options are flat: these have no meaning there.
    fn attribute<T, K: Kind<T>>(&mut self, _: Origin, _: Need, _: &'static str, _: K, _: &mut T) {}
    fn text<T, K: Kind<T>>(&mut self, _: K, _: &mut T) {}
    fn list<T, K: Kind<T>>(&mut self, _: Origin, _: Need, _: &'static str, _: K, _: &mut Vec<T>) {}
    fn optional<B: Block>(&mut self, _: Origin, _: &'static str, _: Repeated, _: &mut Option<B>) {}
    fn blocks<B: Block>(&mut self, _: Origin, _: &'static str, _: &mut Vec<B>) {}
    fn old<T, K: Kind<T>>(&mut self, _: &'static str, _: K, _: &'static str) -> Option<T> {
        None
    }
}

/// Every internal option, under the name that it has in the file.
pub(crate) fn catalog() -> Vec<Entry> {
    let entries = Catalog::of::<Internal>()
        .into_iter()
        .filter(|entry| entry.path.contains('/'));
    entries
        .map(|entry| {
            let (prefix, name) = entry.path.split_once('/').unwrap_or_default();
            Entry {
                path: line_name(prefix, name),
                ..entry
            }
        })
        .collect()
}

/// The internal options that are in effect, as lines that read back to the same.
pub fn show_internal(internal: &Internal) -> String {
    let mut printer = LinePrinter {
        prefix: "",
        text: String::new(),
    };
    internal.clone().walk(&mut printer);
    printer.text
}

/// The walk that prints lines.
struct LinePrinter {
    prefix: &'static str,
    text: String,
}

impl Walk for LinePrinter {
    fn option<T, K: Kind<T>>(&mut self, _: Origin, _: Need, name: &'static str, kind: K, field: &mut T) {
        if let Some(value) = kind.write(field) {
            let _ = writeln!(self.text, "{}={value}", line_name(self.prefix, name));
        }
    }

    fn block<B: Block>(&mut self, _: Origin, name: &'static str, field: &mut B) {
        self.prefix = name;
        field.walk(self);
    }

    fn attribute<T, K: Kind<T>>(&mut self, _: Origin, _: Need, _: &'static str, _: K, _: &mut T) {}
    fn text<T, K: Kind<T>>(&mut self, _: K, _: &mut T) {}
    fn list<T, K: Kind<T>>(&mut self, _: Origin, _: Need, _: &'static str, _: K, _: &mut Vec<T>) {}
    fn optional<B: Block>(&mut self, _: Origin, _: &'static str, _: Repeated, _: &mut Option<B>) {}
    fn blocks<B: Block>(&mut self, _: Origin, _: &'static str, _: &mut Vec<B>) {}
    fn old<T, K: Kind<T>>(&mut self, _: &'static str, _: K, _: &'static str) -> Option<T> {
        None
    }
}
