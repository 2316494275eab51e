//! `findings` beside the spool: a line for each finding that is opened, `+ <agent> <unix ms>`, and for each that is
//! closed, `- <agent>`. It is written anew when most of its lines say nothing any more.
//!
//! A disk that does not take it costs what it is for, and holds up no event.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::keeper::chain;

const NAME: &str = "findings";
const MODE: u32 = 0o640;
/// More than a journal that we have written can be long.
const MAX_LEN: u64 = 64 * 1024 * 1024;
/// Lines beyond twice the open findings that are worth no new file.
const SLACK: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
    /// Whether the last attempt to write failed, perhaps in the middle of a line.
    failed: bool,
}

impl Journal {
    /// The journal, and what it says is open.
    pub(super) fn open(directory: &Path, most: usize) -> (Self, BTreeMap<String, u64>) {
        let mut journal = Self {
            path: directory.join(NAME),
            file: None,
            lines: 0,
            failed: false,
        };
        let open = match journal.read() {
            Ok(bytes) => parse(&bytes, most),
            Err(error) => {
                journal.told("read", &error);
                BTreeMap::new()
            }
        };
        journal.rewrite(&open);
        (journal, open)
    }

    /// Findings are about to be told.
    pub(super) fn opened(&mut self, findings: &[(&String, u64)]) {
        if !findings.is_empty() {
            let lines = findings.iter().map(|(id, since)| format!("+ {id} {since}\n"));
            self.append(lines.collect(), findings.len());
        }
    }

    /// Their ends were told. `open` are those that are left.
    pub(super) fn closed(&mut self, ids: &[String], open: &BTreeMap<String, u64>) {
        if ids.is_empty() {
            return;
        }
        if self.lines > 2 * open.len() + SLACK {
            self.rewrite(open);
        } else {
            let lines = ids.iter().map(|id| format!("- {id}\n"));
            self.append(lines.collect(), ids.len());
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(MAX_LEN).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(bytes)
    }

    fn append(&mut self, lines: String, count: usize) {
        self.lines += count;
        // Ends what may have been torn.
        let lines = if self.failed { format!("\n{lines}") } else { lines };
        let mut write = || {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(MODE)
                    .open(&self.path)?,
            };
            file.write_all(lines.as_bytes())?;
            file.sync_data()?;
            Ok(file)
        };
        let written: io::Result<File> = write();
        match written {
            Ok(file) => (self.file, self.failed) = (Some(file), false),
            Err(error) => self.told("write", &error),
        }
    }

    fn rewrite(&mut self, open: &BTreeMap<String, u64>) {
        let beside = self.path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(MODE)
                .open(&beside)?;
            let lines = open.iter().map(|(id, since)| format!("+ {id} {since}\n"));
            file.write_all(lines.collect::<String>().as_bytes())?;
            file.sync_data()?;
            fs::rename(&beside, &self.path)?;
            Ok(file)
        };
        let written: io::Result<File> = write();
        match written {
            Ok(file) => (self.file, self.lines, self.failed) = (Some(file), open.len(), false),
            Err(error) => self.told("write", &error),
        }
    }

    fn told(&mut self, what: &str, error: &io::Error) {
        if !self.failed {
            let path = self.path.display();
            tracing::warn!(error = chain(error), %path, what, "findings may stay open when their agents are back");
        }
        self.failed = true;
    }
}

/// Lines that make no sense are passed over, such as one that was torn.
fn parse(bytes: &[u8], most: usize) -> BTreeMap<String, u64> {
    let mut open = BTreeMap::new();
    let text = String::from_utf8_lossy(bytes);
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next().map(str::parse), words.next()) {
            (Some("+"), Some(id), Some(Ok(since)), None) if open.len() < most => {
                open.insert(id.to_owned(), since);
            }
            (Some("-"), Some(id), None, None) => {
                open.remove(id);
            }
            _ => {}
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_and_foreign_lines_cost_only_themselves() {
        let open = parse(b"+ 001 5\n+ 002 6\nhello\n+ 003 x\n- 002\n\xff\n+ 004 7\n+ 005 8", 10);
        assert_eq!(open, BTreeMap::from([("001".to_owned(), 5), ("004".to_owned(), 7)]));
    }

    #[test]
    fn journal_of_many_comings_and_goings_stays_short() {
        let directory = tempfile::tempdir().expect("directory");
        let (mut journal, mut open) = Journal::open(directory.path(), 10);
        open.insert("9999".to_owned(), 1);
        journal.opened(&[(&"9999".to_owned(), 1)]);
        for place in 0..SLACK {
            let id = format!("{place:03}");
            journal.opened(&[(&id, 1)]);
            journal.closed(&[id], &open);
        }
        let length = fs::metadata(directory.path().join(NAME)).expect("is there").len();
        assert!(length < 16 * 1024, "{length} bytes");
        assert_eq!(Journal::open(directory.path(), 10).1, open);
    }

    #[test]
    fn folder_that_takes_no_file_is_told_and_stops_nothing() {
        let (mut journal, open) = Journal::open(Path::new("/nonexistent"), 10);
        assert!(open.is_empty());
        journal.opened(&[(&"001".to_owned(), 1)]);
        journal.closed(&["001".to_owned()], &open);
    }
}
