//! The command line in `<exec_path>`, taken apart as stock does it: at spaces; double quotes group; a backslash takes the
//! next character as it is. There is no shell, so nothing else means anything.

use std::{
    env, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use thiserror::Error;

/// Where a program without a slash in its name is looked for, and what it finds as its own `PATH`.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and the arguments in front of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// As it was written; relative to the home when it has a slash.
    pub program: String,
    /// The configured arguments.
    pub arguments: Vec<String>,
}

/// Why a text is no command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandLineError {
    /// Nothing but spaces.
    #[error("<exec_path> names no program")]
    Empty,
    /// An odd number of quotes.
    #[error("<exec_path> has a quote that is not closed")]
    Quote,
}

impl CommandLine {
    /// Takes a text apart.
    pub fn parse(text: &str) -> Result<Self, CommandLineError> {
        let mut words = split(text)?.into_iter();
        let program = words
            .next()
            .filter(|program| !program.is_empty())
            .ok_or(CommandLineError::Empty)?;
        Ok(Self {
            program,
            arguments: words.collect(),
        })
    }

    /// The file that is run: the program as it is when it has a slash, else the first of that name in
    /// [`SEARCH_PATH`] that may be executed. `None` when there is none now.
    pub fn file(&self) -> Option<PathBuf> {
        if self.program.contains('/') {
            return Some(PathBuf::from(&self.program));
        }
        env::split_paths(SEARCH_PATH)
            .map(|folder| folder.join(&self.program))
            .find(|path| is_executable(path))
    }

    /// Ready to be started in the current directory, which is the home, in a group of its own, with `PATH`, `LANG` and
    /// `HOME` and nothing else in its environment. It reads nothing, writes into two pipes, and inherits no other
    /// descriptor, no signal mask, and our limits.
    ///
    /// # Errors
    /// There is no such program.
    pub fn command(&self, home: &Path) -> io::Result<Command> {
        let mut command = Command::new(self.file().ok_or(io::ErrorKind::NotFound)?);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LANG", "C.UTF-8")
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Ok(command)
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn split(text: &str) -> Result<Vec<String>, CommandLineError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                is_quoted = !is_quoted;
                // So that `""` is an empty word.
                word.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(word.take()),
            // A backslash at the very end is itself.
            '\\' => word.get_or_insert_default().push(letters.next().unwrap_or('\\')),
            other => word.get_or_insert_default().push(other),
        }
    }
    if is_quoted {
        return Err(CommandLineError::Quote);
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_at_spaces_outside_of_quotes() {
        for (text, expected) in [
            (
                "/usr/bin/python3 /path/script.py",
                vec!["/usr/bin/python3", "/path/script.py"],
            ),
            ("prog first \"second arg\"", vec!["prog", "first", "second arg"]),
            ("prog  a   b ", vec!["prog", "a", "b"]),
            ("my\\ prog a\\\"b \\\\", vec!["my prog", "a\"b", "\\"]),
            ("prog \"\" a\"b c\"d", vec!["prog", "", "ab cd"]),
            (
                "prog $(id) ; `id` | x > y 'a b'",
                vec!["prog", "$(id)", ";", "`id`", "|", "x", ">", "y", "'a", "b'"],
            ),
            ("prog\\", vec!["prog\\"]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_line_without_program_or_with_half_a_quote_is_refused() {
        for text in ["", "   ", "\"\" x"] {
            assert_eq!(CommandLine::parse(text), Err(CommandLineError::Empty), "{text}");
        }
        assert_eq!(CommandLine::parse("prog \"a"), Err(CommandLineError::Quote));
    }

    #[test]
    fn a_program_without_a_slash_is_looked_for_and_one_with_a_slash_is_not() {
        let file = |text| CommandLine::parse(text).unwrap().file();
        assert!(file("sh x").is_some_and(|path| path.is_absolute()));
        assert_eq!(file("no-such-program-here"), None);
        assert_eq!(file("etc/keypoll/pull.py"), Some(PathBuf::from("etc/keypoll/pull.py")));
    }
}
