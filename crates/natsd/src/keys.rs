//! The signing keys of this node: which one signs now, which comes next, which are over.
//!
//! The seed file has a line for each key, oldest first: its seed, or `revoked <public key> <unix seconds>`. A key that
//! appears in the file is announced at once, signed with the one before it, and signs itself after [`OVERLAP_MS`], so
//! that consumers know it by then. What became of each key is kept beside the spool and told on `manager.keys`.

use std::{fs, io, path::Path};

use muster_proto::event::{
    Event, Kind,
    body::{manager_event, wrapped},
};
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    signature::Signer,
    spool::{SpoolError, slots::Slots},
};

/// How long a new key is announced before it signs.
pub(crate) const OVERLAP_MS: u64 = 10 * 60 * 1000;
/// Keys that are remembered. The file beside the spool holds no more; older ones are in the stream.
const MAX_RECORDS: usize = 12;
const STATE: &str = "keys.state";
const KEY_CHANGE_LEVEL: u8 = 3;
const REVOKED_LEVEL: u8 = 12;

/// Why there is no key to sign with.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file.
    #[error("cannot read the signing key {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line of it.
    #[error("{path}:{line}: neither the seed of an nkey of type U (SU…) nor `revoked <key> <unix seconds>`")]
    Line {
        /// Which file.
        path: String,
        /// Which line.
        line: usize,
    },
    /// Nothing in it.
    #[error("{path} holds no key that may sign; `muster-control nats key new` makes one")]
    None {
        /// Which file.
        path: String,
    },
    /// The record beside the spool.
    #[error("cannot keep the record of signing keys")]
    State(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    /// It signs, or will.
    Active,
    /// It signs no more; what it has signed is still good.
    Retired,
    /// Nothing that it signed since `revoked_at` may be believed.
    Revoked,
}

/// A key as it is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The public nkey.
    pub kid: String,
    /// Whose it is.
    pub node: String,
    /// `ed25519`.
    pub alg: String,
    /// Unix milliseconds from which it signs.
    pub not_before: u64,
    /// Unix milliseconds until which it signed.
    pub not_after: Option<u64>,
    /// What became of it.
    pub status: KeyStatus,
    /// The key before it.
    pub prev_kid: Option<String>,
    /// The epoch in which it was announced.
    pub epoch_from: u64,
    /// Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<u64>,
}

/// The keys that a seed file holds.
pub struct KeyFile {
    keys: Vec<KeyPair>,
    revoked: Vec<(String, u64)>,
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("KeyFile")
            .field("keys", &self.public())
            .finish_non_exhaustive()
    }
}

impl KeyFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or a line makes no sense.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| KeyError::Read {
            path: name.clone(),
            source,
        })?;
        Self::parse(&Zeroizing::new(text), &name)
    }

    fn parse(text: &str, name: &str) -> Result<Self, KeyError> {
        let (mut keys, mut revoked) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let bad = || KeyError::Line {
                path: name.to_owned(),
                line: number + 1,
            };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(rest) = line.strip_prefix("revoked ") {
                let (key, at) = rest.split_once(' ').ok_or_else(bad)?;
                crate::signature::public_key(key).ok_or_else(bad)?;
                revoked.push((key.to_owned(), at.trim().parse().map_err(|_| bad())?));
            } else {
                let key = KeyPair::from_seed(line).map_err(|_| bad())?;
                if key.key_pair_type() != KeyPairType::User {
                    return Err(bad());
                }
                keys.push(key);
            }
        }
        Ok(Self { keys, revoked })
    }

    /// The public halves, oldest first.
    pub fn public(&self) -> Vec<String> {
        self.keys.iter().map(KeyPair::public_key).collect()
    }

    /// Which are revoked, and since when.
    pub fn revoked(&self) -> &[(String, u64)] {
        &self.revoked
    }
}

/// How an epoch has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// With the next start.
    Start,
    /// The state of the sequence was lost.
    StateLost,
}

impl Begun {
    fn reason(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::StateLost => "state_lost",
        }
    }
}

/// Signs.
pub(crate) struct Keyring {
    file: KeyFile,
    path: String,
    slots: Slots,
    records: Vec<KeyRecord>,
    node: String,
    epoch: u64,
    /// The public half of the signing key.
    active: String,
    signer: Option<Signer>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Keyring")
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// Reads the seed file and the record. The announcements are to be published.
    pub(crate) fn open(
        file: &Path,
        directory: &Path,
        node: &str,
        epoch: u64,
        begun: Begun,
        now_ms: u64,
    ) -> Result<(Self, Vec<Event>), KeyError> {
        let path = file.display().to_string();
        let file = KeyFile::read(file)?;
        let (slots, content) = Slots::open(&directory.join(STATE)).map_err(state)?;
        let records: Vec<KeyRecord> = content
            .and_then(|content| serde_json::from_slice(&content).ok())
            .unwrap_or_default();
        let mut ring = Self {
            file,
            path,
            slots,
            // Another node's keys, in a home that was copied, say nothing here.
            records: records.into_iter().filter(|record| record.node == node).collect(),
            node: node.to_owned(),
            epoch,
            active: String::new(),
            signer: None,
        };
        let mut events = ring.settle(now_ms)?;
        if events.is_empty() || begun == Begun::StateLost {
            let record = ring.records.iter().find(|record| record.kid == ring.active);
            events.extend(record.map(|record| announcement(record, begun.reason(), now_ms)));
        }
        Ok((ring, events))
    }

    /// Reads the seed file again.
    pub(crate) fn reload(&mut self, now_ms: u64) -> Result<Vec<Event>, KeyError> {
        let file = KeyFile::read(Path::new(&self.path))?;
        let before = std::mem::replace(&mut self.file, file);
        self.settle(now_ms).inspect_err(|_| self.file = before)
    }

    /// Puts the right key to work. Gives the announcements of what changed.
    pub(crate) fn settle(&mut self, now_ms: u64) -> Result<Vec<Event>, KeyError> {
        let mut news = Vec::new();
        for (kid, at) in &self.file.revoked {
            if let Some(record) = self.records.iter_mut().find(|record| record.kid == *kid)
                && record.status != KeyStatus::Revoked
            {
                record.status = KeyStatus::Revoked;
                record.revoked_at = Some(*at);
                record.not_after = Some(record.not_after.unwrap_or(now_ms).min(now_ms));
                news.push((kid.clone(), "revoked"));
            }
        }
        let revoked = |kid: &str| self.file.revoked.iter().any(|(revoked, _)| revoked == kid);
        let kids: Vec<_> = self.file.public().into_iter().filter(|kid| !revoked(kid)).collect();
        // The seed of an active key that is gone cannot announce its successor.
        let has_active = self.records.iter().any(|record| {
            record.status == KeyStatus::Active && record.not_before <= now_ms && kids.contains(&record.kid)
        });
        let mut first = !has_active;
        for kid in &kids {
            if self.records.iter().any(|record| record.kid == *kid) {
                continue;
            }
            let previous = self
                .records
                .iter()
                .rev()
                .find(|record| record.status == KeyStatus::Active);
            let record = KeyRecord {
                kid: kid.clone(),
                node: self.node.clone(),
                alg: muster_proto::event::header::ED25519.to_owned(),
                not_before: if first { now_ms } else { now_ms + OVERLAP_MS },
                not_after: None,
                status: KeyStatus::Active,
                prev_kid: previous.map(|record| record.kid.clone()),
                epoch_from: self.epoch,
                revoked_at: None,
            };
            first = false;
            news.push((kid.clone(), if previous.is_some() { "rotation" } else { "new" }));
            self.records.push(record);
        }
        let active = self.records.iter().rev().find(|record| {
            record.status == KeyStatus::Active && record.not_before <= now_ms && kids.contains(&record.kid)
        });
        let active = match active.or_else(|| self.records.iter().rev().find(|record| kids.contains(&record.kid))) {
            Some(record) => record.kid.clone(),
            None => {
                return Err(KeyError::None {
                    path: self.path.clone(),
                });
            }
        };
        if let Some(record) = self.records.iter_mut().find(|record| record.kid == active)
            && record.not_before > now_ms
        {
            // The one before it is gone: there is nobody to wait for.
            record.not_before = now_ms;
            // First of all: what follows is signed with it.
            news.insert(0, (active.clone(), "in_force"));
        }
        for record in &mut self.records {
            if record.status == KeyStatus::Active && record.kid != active && record.not_before <= now_ms {
                record.status = KeyStatus::Retired;
                record.not_after = Some(now_ms);
                news.push((record.kid.clone(), "retired"));
            }
        }
        if self.active != active || self.signer.is_none() {
            let key = self.file.keys.iter().find(|key| key.public_key() == active);
            self.signer = key.and_then(Signer::new);
            self.active = active;
        }
        if !news.is_empty() {
            let surplus = self.records.len().saturating_sub(MAX_RECORDS);
            self.records.drain(..surplus);
            let bytes = serde_json::to_vec(&self.records).map_err(|error| KeyError::State(Box::new(error)))?;
            self.slots.write(&bytes).map_err(state)?;
        }
        let events = news.into_iter().filter_map(|(kid, reason)| {
            let record = self.records.iter().find(|record| record.kid == kid)?;
            Some(announcement(record, reason, now_ms))
        });
        Ok(events.collect())
    }

    /// The public half of the key that signs.
    pub(crate) fn key_id(&self) -> &str {
        &self.active
    }

    /// Signs, as text.
    pub(crate) fn sign(&self, bytes: &[u8]) -> String {
        // A key from a seed can always sign.
        self.signer
            .as_ref()
            .map_or_else(String::new, |signer| signer.sign(bytes))
    }
}

fn state(error: SpoolError) -> KeyError {
    KeyError::State(Box::new(error))
}

#[derive(Serialize)]
struct Announced<'a> {
    #[serde(flatten)]
    record: &'a KeyRecord,
    reason: &'a str,
}

fn announcement(record: &KeyRecord, reason: &str, now_ms: u64) -> Event {
    let level = if record.status == KeyStatus::Revoked {
        REVOKED_LEVEL
    } else {
        KEY_CHANGE_LEVEL
    };
    let body = wrapped("key", &Announced { record, reason });
    manager_event(Kind::KeyAnnouncement, "", now_ms, level, body)
}

/// Makes a seed file with one new key, readable for the owner and the group, if there is none. Whether it did.
///
/// # Errors
/// When the file cannot be written.
pub fn create_if_missing(path: &Path) -> io::Result<bool> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    if let Some(parent) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o750).create(parent)?;
    }
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    };
    let seed = KeyPair::new_user().seed().map_err(io::Error::other)?;
    file.write_all(Zeroizing::new(format!("{seed}\n")).as_bytes())?;
    file.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, lines: &[String]) {
        fs::write(path, lines.join("\n")).expect("writes");
    }

    fn reasons(events: &[Event]) -> Vec<String> {
        let reason = |event: &Event| {
            let body: serde_json::Value = serde_json::from_slice(&event.body).expect("JSON");
            body["key"]["reason"].as_str().expect("a reason").to_owned()
        };
        events.iter().map(reason).collect()
    }

    #[test]
    fn new_key_is_announced_by_the_old_one_and_signs_after_the_overlap() {
        let home = tempfile::tempdir().expect("directory");
        let file = home.path().join("signing.nk");
        let (one, two) = (KeyPair::new_user(), KeyPair::new_user());
        let seeds = [one.seed().expect("seed"), two.seed().expect("seed")];
        write(&file, &seeds[..1]);
        let (mut ring, events) = Keyring::open(&file, home.path(), "n", 1, Begun::Start, 1000).expect("opens");
        assert_eq!(reasons(&events), ["new"]);
        assert_eq!(ring.key_id(), one.public_key());
        write(&file, &seeds);
        assert_eq!(reasons(&ring.reload(2000).expect("reloads")), ["rotation"]);
        assert_eq!(ring.key_id(), one.public_key());
        assert_eq!(ring.settle(2000 + OVERLAP_MS - 1).expect("settles"), []);
        drop(ring);
        let (ring, events) = Keyring::open(&file, home.path(), "n", 2, Begun::Start, 3000).expect("opens");
        assert_eq!(reasons(&events), ["start"]);
        drop(ring);
        let (mut ring, events) = Keyring::open(&file, home.path(), "n", 3, Begun::StateLost, 3000).expect("opens");
        assert_eq!(reasons(&events), ["state_lost"]);
        assert_eq!(ring.key_id(), one.public_key(), "across a restart too");
        assert_eq!(reasons(&ring.settle(2000 + OVERLAP_MS).expect("settles")), ["retired"]);
        assert_eq!(ring.key_id(), two.public_key());
        let key = crate::signature::public_key(ring.key_id()).expect("a key");
        assert!(crate::signature::verifies(&key, b"x", &ring.sign(b"x")));
    }

    #[test]
    fn revoked_key_never_signs_again_and_its_successor_signs_at_once() {
        let home = tempfile::tempdir().expect("directory");
        let file = home.path().join("signing.nk");
        let (one, two) = (KeyPair::new_user(), KeyPair::new_user());
        write(&file, &[one.seed().expect("seed")]);
        let (mut ring, _) = Keyring::open(&file, home.path(), "n", 1, Begun::Start, 1000).expect("opens");
        let revoked = format!("revoked {} 1", one.public_key());
        write(
            &file,
            &[one.seed().expect("seed"), two.seed().expect("seed"), revoked.clone()],
        );
        assert_eq!(reasons(&ring.reload(2000).expect("reloads")), ["revoked", "new"]);
        assert_eq!(ring.key_id(), two.public_key());
        write(&file, &[one.seed().expect("seed"), revoked]);
        assert!(ring.reload(3000).is_err(), "nothing is left that may sign");
        assert_eq!(ring.key_id(), two.public_key(), "and the old state is in force");
    }

    #[test]
    fn bad_line_is_named_by_its_number() {
        let account = KeyPair::new_account().seed().expect("seed");
        for text in ["x", "revoked U 1", "revoked x", account.as_str()] {
            let error = KeyFile::parse(&format!("# a\n{text}"), "f").expect_err("is bad");
            assert!(error.to_string().starts_with("f:2:"), "{error}");
        }
    }

    #[test]
    fn missing_file_is_made_with_one_key_and_kept() {
        let home = tempfile::tempdir().expect("directory");
        let file = home.path().join("etc/nats/signing.nk");
        assert!(create_if_missing(&file).expect("makes it"));
        let keys = KeyFile::read(&file).expect("reads").public();
        assert_eq!(keys.len(), 1);
        assert!(!create_if_missing(&file).expect("is there"));
        assert_eq!(KeyFile::read(&file).expect("reads").public(), keys);
    }
}
