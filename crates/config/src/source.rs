//! The text of a file, and how a part of it is found again by line and column.

use crate::diagnostic::{Diagnostic, Place, Severity};
use crate::limits::MAX_DIAGNOSTICS;

/// Characters of a line that are shown. A longer line is cut round the part in question.
const SHOWN_WIDTH: usize = 160;
/// Characters of a value that are repeated in a message.
const QUOTED_WIDTH: usize = 60;

/// Characters of a message. One that is longer repeats a name that is none.
const MESSAGE_WIDTH: usize = 600;

/// Elements whose text is a secret, ours and those of other daemons. A line that is shown shows stars instead.
const SECRET_ELEMENTS: [&str; 9] = [
    "password",
    "token",
    "key",
    "api_key",
    "hook_url",
    "secret_key",
    "access_key",
    "client_secret",
    "secret_content",
];

/// An element whose text is a secret if somebody put a user into it.
const URL_ELEMENT: &str = "server_url";

/// A part of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }
}

/// One file.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    /// Where each line begins.
    lines: Vec<usize>,
    /// The texts that no line shows, in order.
    secrets: Vec<Span>,
    /// Where the first bytes that are no UTF-8 were, if there were any. They became question marks.
    pub(crate) damage: Option<Span>,
}

impl Source {
    /// Takes a file's bytes. A byte order mark goes away; each byte that is no UTF-8 (old files have comments in
    /// other encodings) becomes a question mark, so that places stay what they were.
    pub(crate) fn new(path: &str, bytes: &[u8]) -> Self {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut text = String::with_capacity(bytes.len());
        let mut damage = None;
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            if !chunk.invalid().is_empty() {
                damage.get_or_insert(Span::new(text.len(), text.len() + 1));
                text.extend(std::iter::repeat_n('?', chunk.invalid().len()));
            }
        }
        let ends = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        let secrets = secrets(&text);
        Self {
            path: path.to_owned(),
            text,
            lines,
            secrets,
            damage,
        }
    }

    /// The place of a part, with its line. Of a part that covers several lines, the first.
    pub(crate) fn place(&self, span: Span) -> Place {
        let start = self.boundary(span.start);
        let line = self.line(Span::new(start, start));
        let begin = self.lines.get(line - 1).copied().unwrap_or(0);
        let rest = self.text.get(begin..).unwrap_or("");
        let text = rest.split('\n').next().unwrap_or("").trim_end_matches('\r');
        let before = self.text.get(begin..start).unwrap_or("").chars().count();
        let end = self.boundary(span.end.max(start)).min(begin + text.len());
        let width = self.text.get(start..end).unwrap_or("").chars().count().max(1);

        let skipped = if before + width > SHOWN_WIDTH {
            before.saturating_sub(SHOWN_WIDTH / 4)
        } else {
            0
        };
        // Only the shown part of the line is looked at closer: a line may be megabytes long.
        let from = if skipped == 0 {
            0
        } else {
            text.char_indices().nth(skipped).map_or(text.len(), |(at, _)| at)
        };
        let window = text.get(from..).unwrap_or("");
        let window_len = window
            .char_indices()
            .nth(SHOWN_WIDTH)
            .map_or(window.len(), |(at, _)| at);
        let (first, last) = (begin + from, begin + from + window_len);
        let secrets: Vec<_> = self
            .secrets
            .iter()
            .filter(|secret| secret.start < last && secret.end > first)
            .collect();
        let hidden = |at: usize| {
            secrets
                .iter()
                .any(|secret| (secret.start..secret.end).contains(&(first + at)))
        };
        let show = |(at, c)| if hidden(at) { '*' } else { printable(c) };
        let shown: String = window.char_indices().take(SHOWN_WIDTH).map(show).collect();
        let indent = before - skipped;
        Place {
            line,
            column: before + 1,
            width: width.min(SHOWN_WIDTH - indent.min(SHOWN_WIDTH - 1)),
            indent,
            text: shown,
        }
    }

    /// The line in which a part begins.
    pub(crate) fn line(&self, span: Span) -> usize {
        self.lines.partition_point(|&begin| begin <= span.start).max(1)
    }

    /// The next place from here on at which a character begins.
    fn boundary(&self, at: usize) -> usize {
        let at = at.min(self.text.len());
        (at..=self.text.len())
            .find(|&at| self.text.is_char_boundary(at))
            .unwrap_or(self.text.len())
    }
}

/// A configuration file is text from outside: what it says must not steer the terminal that shows it.
fn printable(c: char) -> char {
    let turns_text_round = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if turns_text_round || (c.is_control() && c != '\t') {
        '\u{fffd}'
    } else {
        c
    }
}

/// Where secrets stand, found by their elements' names: this must also work in a file that is no XML.
fn secrets(text: &str) -> Vec<Span> {
    let mut found = Vec::new();
    for name in SECRET_ELEMENTS.into_iter().chain([URL_ELEMENT]) {
        let (start_tag, end_tag) = (format!("<{name}>"), format!("</{name}>"));
        let mut from = 0;
        while let Some(at) = text.get(from..).and_then(|rest| rest.find(&start_tag)) {
            let start = from + at + start_tag.len();
            let length = text.get(start..).and_then(|rest| rest.find(&end_tag));
            let end = length.map_or(text.len(), |length| start + length);
            let secret = text.get(start..end).unwrap_or_default();
            if name != URL_ELEMENT || secret.contains('@') {
                found.push(Span::new(start, end));
            }
            from = end;
        }
    }
    found
}

/// A value as messages repeat it: in quotes, cut, without control characters.
pub(crate) fn quoted(value: &str) -> String {
    let mut shown: String = value.chars().take(QUOTED_WIDTH).map(printable).collect();
    if value.chars().nth(QUOTED_WIDTH).is_some() {
        shown.push('…');
    }
    format!("'{shown}'")
}

/// All that was found so far. Only so many problems are kept: a file that is no configuration at all would give one a
/// line.
#[derive(Default)]
pub(crate) struct Report {
    kept: Vec<Diagnostic>,
    errors: usize,
    left_out: usize,
}

impl Report {
    pub(crate) fn error(&mut self, source: &Source, span: Span, message: &str) {
        self.add(Severity::Error, source, span, message);
    }

    pub(crate) fn warning(&mut self, source: &Source, span: Span, message: &str) {
        self.add(Severity::Warning, source, span, message);
    }

    pub(crate) fn add(&mut self, severity: Severity, source: &Source, span: Span, message: &str) {
        let place = || Some(source.place(span));
        self.push(severity, &source.path, place, message);
    }

    /// A problem of a file as a whole.
    pub(crate) fn file(&mut self, severity: Severity, path: &str, message: &str) {
        self.push(severity, path, || None, message);
    }

    fn push(&mut self, severity: Severity, path: &str, place: impl Fn() -> Option<Place>, message: &str) {
        self.errors += usize::from(severity == Severity::Error);
        // The first error is kept even behind a crowd of warnings, since it is the reason for the refusal.
        if self.kept.len() >= MAX_DIAGNOSTICS && !(severity == Severity::Error && self.errors == 1) {
            self.left_out += 1;
            return;
        }
        // A message repeats names from the file, which may be anything.
        let message = message.chars().take(MESSAGE_WIDTH).map(printable).collect();
        self.kept.push(Diagnostic {
            severity,
            path: path.to_owned(),
            place: place(),
            message,
        });
    }

    /// Whether a further warning would only be counted, so that it needs no thought.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.len() >= MAX_DIAGNOSTICS
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// The problems in the order of files and lines.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        let mut files: Vec<String> = Vec::new();
        for diagnostic in &self.kept {
            if !files.contains(&diagnostic.path) {
                files.push(diagnostic.path.clone());
            }
        }
        let position = |diagnostic: &Diagnostic| {
            let file = files.iter().position(|file| *file == diagnostic.path);
            (file, diagnostic.place.as_ref().map(|place| (place.line, place.column)))
        };
        self.kept.sort_by_key(position);
        if self.left_out > 0 {
            let severity = if self.errors > 0 {
                Severity::Error
            } else {
                Severity::Warning
            };
            let path = self.kept.last().map(|last| last.path.clone()).unwrap_or_default();
            let message = format!("{} more problems are not shown", self.left_out);
            self.kept.push(Diagnostic {
                severity,
                path,
                place: None,
                message,
            });
        }
        self.kept
    }
}
