//! The audit trail: an append-only file of JSON lines in which each holds the SHA-256 of the one before, so that none can
//! be taken out or changed without breaking the chain behind it. Every minute the chain's head is signed.
//!
//! **It must never** hold a credential, a seed, an agent's key or a token.

mod check;
pub(crate) mod command;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::check::{Broken, Checker, Trail};
use crate::{aside::Aside, keys::Keyring};

/// Where it is, below the home.
pub(crate) const FILE: &str = "logs/natsd-audit.json";
/// The act that signs the line before.
const HEAD: &str = "head";

/// A file of this size is put aside and the next one begun.
const ROTATE_LEN: u64 = 16 * 1024 * 1024;
/// The longest line that is looked at when the chain is taken up again.
const MAX_LINE_LEN: u64 = 1024 * 1024;
/// How often the head is signed.
pub(crate) const HEAD_INTERVAL_MS: u64 = 60 * 1000;
/// Before the first line.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// See the module.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    file: File,
    length: u64,
    node: String,
    epoch: u64,
    /// SHA-256 of the last line, as hex.
    head: String,
    head_signed: String,
    head_signed_ms: u64,
    aside: Aside,
}

#[derive(Serialize)]
struct Line<'a> {
    time: u64,
    node: &'a str,
    epoch: u64,
    act: &'a str,
    detail: &'a Value,
    prev: &'a str,
}

impl Audit {
    /// Takes the chain up where the file ends.
    pub(crate) fn open(path: &Path, node: &str, epoch: u64) -> io::Result<Self> {
        let file = open(path)?;
        let head = last_line(path)?.map_or_else(|| GENESIS.to_owned(), |line| hash(&line));
        Ok(Self {
            path: path.to_owned(),
            length: file.metadata()?.len(),
            file,
            node: node.to_owned(),
            epoch,
            head_signed: head.clone(),
            head,
            head_signed_ms: 0,
            aside: Aside::default(),
        })
    }

    /// From now on the disk is waited for there.
    pub(crate) fn work_aside(&mut self, aside: Aside) {
        self.aside = aside;
    }

    /// Writes a line. Gives it without its end.
    pub(crate) fn write(&mut self, act: &str, detail: &Value, now_ms: u64) -> io::Result<Vec<u8>> {
        let line = Line {
            time: now_ms,
            node: &self.node,
            epoch: self.epoch,
            act,
            detail,
            prev: &self.head,
        };
        let line = serde_json::to_vec(&line).map_err(io::Error::other)?;
        let mut whole = line.clone();
        whole.push(b'\n');
        if let Err(error) = self.file.write_all(&whole) {
            // Half a line would hide the next one.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += u64::try_from(whole.len()).unwrap_or(0);
        self.head = hash(&line);
        Ok(line)
    }

    /// Signs the head if it has moved and the time has come, and begins a new file if this one is large. Gives the line, if
    /// one was written.
    pub(crate) fn tidy(&mut self, keyring: Option<&Keyring>, now_ms: u64) -> io::Result<Option<Vec<u8>>> {
        let mut line = None;
        let large = self.length >= ROTATE_LEN;
        let due = now_ms.saturating_sub(self.head_signed_ms) >= HEAD_INTERVAL_MS;
        if let Some(keyring) = keyring
            && self.head != self.head_signed
            && (due || large)
        {
            let signature = keyring.sign(self.head.as_bytes());
            let detail = serde_json::json!({"head": self.head, "kid": keyring.key_id(), "sig": signature});
            line = Some(self.write(HEAD, &detail, now_ms)?);
            let file = self.file.try_clone()?;
            drop(self.aside.run(move || {
                if let Err(error) = file.sync_data() {
                    tracing::error!(%error, "cannot sync the audit trail");
                }
            }));
            self.head_signed.clone_from(&self.head);
            self.head_signed_ms = now_ms;
        }
        if large {
            let aside = self.path.with_extension(format!("{now_ms}.json"));
            fs::rename(&self.path, aside)?;
            self.file = open(&self.path)?;
            self.length = 0;
        }
        Ok(line)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// The last whole line; what a crash cut short is no line.
fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LINE_LEN)))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE_LEN).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let cut = u64::try_from(tail.len().saturating_sub(end + 1)).unwrap_or(0);
    if cut > 0 && end > 0 {
        OpenOptions::new().write(true).open(path)?.set_len(length - cut)?;
    }
    let lines = &tail[..end];
    Ok(lines
        .rsplit(|byte| *byte == b'\n')
        .next()
        .filter(|line| !line.is_empty())
        .map(<[u8]>::to_vec))
}

fn hash(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The epoch of the last line, if that is this node's.
pub(crate) fn last_epoch(path: &Path, node: &str) -> Option<u64> {
    let line = last_line(path).ok()??;
    let line: Value = serde_json::from_slice(&line).ok()?;
    line["epoch"].as_u64().filter(|_| line["node"] == node)
}

/// Checks the chain of a file. Gives its lines and its head.
///
/// # Errors
/// When the file cannot be read, or a line does not follow from the one before.
pub fn check(path: &Path) -> Result<(u64, String), Broken> {
    let mut checker = Checker::without_keys();
    checker.file(path)?;
    let trail = checker.end();
    Ok((trail.lines, trail.head))
}

/// The SHA-256 of a file as it is now, for telling that it has changed; empty when it cannot be read.
pub(crate) fn fingerprint(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    if bytes.is_empty() {
        return String::new();
    }
    Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(path: &Path, count: u64) -> Audit {
        let mut audit = Audit::open(path, "n", 1).expect("opens");
        for number in 0..count {
            audit.write("test", &json!({"number": number}), number).expect("writes");
        }
        audit
    }

    #[test]
    fn chain_goes_on_across_restarts_and_a_torn_line() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("audit.json");
        written(&path, 3);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("opens")
            .write_all(b"{\"time\":")
            .expect("writes");
        let audit = written(&path, 2);
        assert_eq!(check(&path).expect("fits"), (5, audit.head));
    }

    #[test]
    fn last_line_tells_the_epoch_of_its_own_node() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("audit.json");
        assert_eq!(last_epoch(&path, "n"), None);
        written(&path, 3);
        assert_eq!((last_epoch(&path, "n"), last_epoch(&path, "m")), (Some(1), None));
    }

    #[test]
    fn changed_and_missing_lines_break_the_chain() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("audit.json");
        written(&path, 5);
        let text = fs::read_to_string(&path).expect("reads");
        fs::write(&path, text.replacen("\"number\":1", "\"number\":7", 1)).expect("writes");
        assert_eq!(check(&path).expect_err("changed").line, 3);
        let lines: Vec<_> = text.lines().collect();
        fs::write(&path, [lines[0], lines[2], ""].join("\n")).expect("writes");
        assert!(check(&path).is_err());
    }

    #[test]
    fn large_file_is_put_aside_and_the_chain_goes_on() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("audit.json");
        let mut audit = written(&path, 2);
        audit.length = ROTATE_LEN;
        let head = audit.head.clone();
        audit.tidy(None, 99).expect("tidies");
        audit.write("test", &json!({}), 100).expect("writes");
        assert!(path.with_extension("99.json").exists());
        let first = fs::read_to_string(&path).expect("reads");
        assert!(first.contains(&head), "{first}");
    }
}
