//! Whether an audit trail is whole: each line follows from the one before, across all its files, and the heads are signed
//! with keys of the manager.

use std::{
    fmt::Display,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;
use thiserror::Error;

use super::{GENESIS, HEAD, MAX_LINE_LEN, hash};
use crate::{
    keys::KeyRecord,
    signature::{public_key, verifies},
    verify::{Keys, Policy},
};

/// The first line that is wrong.
#[derive(Debug, Error)]
#[error("{}:{line}: {why}", file.display())]
pub struct Broken {
    /// The file.
    pub file: PathBuf,
    /// The number of the line, from 1 on; 0 where it is the file.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

/// What a trail that is whole holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// Lines of all files.
    pub lines: u64,
    /// Of those, how many stand behind the last signed head: of these nobody knows whether more came.
    pub unsigned: u64,
    /// Signed heads.
    pub heads: u64,
    /// The SHA-256 of the last line.
    pub head: String,
    /// Whether it begins with the first line ever, and not behind files that are not here.
    pub from_the_beginning: bool,
    /// Whether [`Checker::expect`]'s line is there.
    pub found: bool,
}

/// See the module. Give it the files in their order.
pub struct Checker {
    /// Nothing looks at no signatures.
    believed: Option<Keys>,
    expected: Option<String>,
    trail: Trail,
    /// Of the last line, if there was one.
    head: Option<String>,
}

impl Checker {
    /// Believes keys as consumers of events do.
    pub fn new(policy: &Policy) -> Self {
        Self {
            believed: Some(Keys::new(policy)),
            ..Self::without_keys()
        }
    }

    /// Looks at the chain only.
    pub fn without_keys() -> Self {
        Self {
            believed: None,
            expected: None,
            trail: Trail::default(),
            head: None,
        }
    }

    /// The SHA-256 of a line that must be there, as it is known from elsewhere.
    pub fn expect(&mut self, head: &str) {
        self.expected = Some(head.to_ascii_lowercase());
    }

    /// Goes on with the next file.
    ///
    /// # Errors
    /// The first line that is wrong, or the file if it cannot be read.
    pub fn file(&mut self, path: &Path) -> Result<(), Broken> {
        let broken = |line, why: &dyn Display| Broken {
            file: path.to_owned(),
            line,
            why: why.to_string(),
        };
        let mut file = BufReader::new(File::open(path).map_err(|error| broken(0, &error))?);
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let read = file.by_ref().take(MAX_LINE_LEN).read_until(b'\n', &mut bytes);
            if read.map_err(|error| broken(number, &error))? == 0 {
                break;
            }
            let Some(line) = bytes.strip_suffix(b"\n") else {
                return Err(broken(number, &"the line is cut short"));
            };
            self.line(line).map_err(|why| broken(number, &why))?;
        }
        Ok(())
    }

    /// What there was, behind the last file.
    pub fn end(self) -> Trail {
        Trail {
            head: self.head.unwrap_or_else(|| GENESIS.to_owned()),
            ..self.trail
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let value: Value = serde_json::from_slice(line).map_err(|error| format!("it is no JSON: {error}"))?;
        let prev = value["prev"].as_str().ok_or("it does not say what was before it")?;
        match &self.head {
            Some(head) if head == prev => {}
            Some(_) => return Err("it does not follow from the line before".to_owned()),
            None => self.trail.from_the_beginning = prev == GENESIS,
        }
        self.trail.lines += 1;
        self.trail.unsigned += 1;
        let (act, detail) = (value["act"].as_str(), &value["detail"]);
        if let Some(believed) = &mut self.believed {
            if act == Some("key")
                && let Ok(record) = serde_json::from_value::<KeyRecord>(detail.clone())
            {
                believed.introduce(&record);
            }
            if act == Some(HEAD) {
                let text = |name: &str| detail[name].as_str().unwrap_or_default();
                let (head, kid) = (text("head"), text("kid"));
                if head != prev {
                    return Err("the head that it signs is not that of the line before".to_owned());
                }
                let node = value["node"].as_str().unwrap_or_default();
                let time_ms = value["time"].as_u64().unwrap_or(0);
                believed
                    .admit(kid, node, time_ms)
                    .map_err(|doubt| format!("the head is signed with {kid}: {}", doubt.why()))?;
                let signed = public_key(kid).is_some_and(|key| verifies(&key, head.as_bytes(), text("sig")));
                if !signed {
                    return Err(format!("the signature is not that of {kid}"));
                }
            }
        }
        if act == Some(HEAD) {
            self.trail.heads += 1;
            self.trail.unsigned = 0;
        }
        let head = hash(line);
        self.trail.found |= self.expected.as_ref() == Some(&head);
        self.head = Some(head);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
