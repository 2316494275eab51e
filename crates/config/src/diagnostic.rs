//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Worth a look; the configuration is used.
    Warning,
    /// The configuration is refused.
    Error,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters of the line it is about, at least 1.
    pub width: usize,
    /// Characters of `text` before the part it is about.
    pub indent: usize,
    /// The line itself. Of a very long one, the piece round the part it is about.
    pub text: String,
}

/// One problem. Printed as `path:line:col: message`, the line, and a caret below the part it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was given.
    pub path: String,
    /// Where in it; `None` when it is about the file or the settings as a whole.
    pub place: Option<Place>,
    /// What is wrong and, where we know it, the cure.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "",
        };
        let Some(place) = &self.place else {
            return write!(formatter, "{}: {word}{}", self.path, self.message);
        };
        let margin = " ".repeat(place.line.to_string().len());
        // The line's own tabs stand before the caret too, so that it lands below its word in every terminal.
        let indent: String = place
            .text
            .chars()
            .take(place.indent)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(
            formatter,
            "{}:{}:{}: {word}{}",
            self.path, place.line, place.column, self.message
        )?;
        writeln!(formatter, "{} | {}", place.line, place.text)?;
        write!(formatter, "{margin} | {indent}{}", "^".repeat(place.width.max(1)))
    }
}

/// All that is wrong with a configuration: at least one error, and the warnings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// The problems for which the configuration is refused.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0
            .iter()
            .filter(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
