//! The file of signing keys: a seed a line, oldest first, what is revoked, and what the trust key has signed.

use std::{fs, io, path::Path};

use muster_proto::event::key::KeyRecord;
use nkeys::{KeyPair, KeyPairType};
use thiserror::Error;
use zeroize::Zeroizing;

/// Seeds in the file: fewer than the records that are kept of keys.
pub(super) const MAX_SEEDS: usize = 8;

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
    #[error(
        "{path}:{line}: neither the seed of an nkey of type U (SU…) nor `revoked <key> <unix seconds> [<unix seconds>]` \
         nor `signed <announcement>`"
    )]
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
    /// Too much in it.
    #[error("{path} holds more than {MAX_SEEDS} seeds; `muster-control nats key retire` takes the old ones out")]
    TooMany {
        /// Which file.
        path: String,
    },
    /// The record beside the spool.
    #[error("cannot keep the record of signing keys")]
    State(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// That a key is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Which.
    pub kid: String,
    /// Unix seconds at which it was said.
    pub at: u64,
    /// Unix seconds from which on.
    pub since: u64,
}

/// The keys that a seed file holds.
pub struct KeyFile {
    /// With their public halves, which it takes a while to work out.
    pub(super) keys: Vec<(String, KeyPair)>,
    pub(super) revoked: Vec<Revoked>,
    /// What the trust key is said to have signed.
    pub(super) signed: Vec<KeyRecord>,
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

    pub(super) fn parse(text: &str, name: &str) -> Result<Self, KeyError> {
        let (mut keys, mut revoked, mut signed) = (Vec::new(), Vec::new(), Vec::new());
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
                revoked.push(revocation(rest).ok_or_else(bad)?);
            } else if let Some(rest) = line.strip_prefix("signed ") {
                signed.push(serde_json::from_str(rest).map_err(|_| bad())?);
            } else {
                let key = KeyPair::from_seed(line).map_err(|_| bad())?;
                if key.key_pair_type() != KeyPairType::User {
                    return Err(bad());
                }
                keys.push((key.public_key(), key));
            }
        }
        if keys.len() > MAX_SEEDS {
            return Err(KeyError::TooMany { path: name.to_owned() });
        }
        Ok(Self { keys, revoked, signed })
    }

    /// The public halves, oldest first.
    pub fn public(&self) -> Vec<String> {
        self.keys.iter().map(|(kid, _)| kid.clone()).collect()
    }

    /// Which are revoked, and since when.
    pub fn revoked(&self) -> &[Revoked] {
        &self.revoked
    }

    pub(super) fn pair(&self, kid: &str) -> Option<&KeyPair> {
        self.keys.iter().find(|(other, _)| other == kid).map(|(_, key)| key)
    }
}

/// `<key> <at> [<since>]`
fn revocation(text: &str) -> Option<Revoked> {
    let mut words = text.split_ascii_whitespace();
    let kid = words.next()?;
    crate::signature::public_key(kid)?;
    let at = words.next()?.parse().ok()?;
    let since = words.next().map_or(Ok(at), str::parse).ok()?;
    words.next().is_none().then(|| Revoked {
        kid: kid.to_owned(),
        at,
        since,
    })
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

    #[test]
    fn bad_line_is_named_by_its_number() {
        let account = KeyPair::new_account().seed().expect("seed");
        let kid = KeyPair::new_user().public_key();
        let many = format!("revoked {kid} 1 2 3");
        for text in [
            "x",
            "revoked U 1",
            "revoked x",
            "signed {}",
            "signed",
            account.as_str(),
            many.as_str(),
        ] {
            let error = KeyFile::parse(&format!("# a\n{text}"), "f").expect_err("is bad");
            assert!(error.to_string().starts_with("f:2:"), "{error}");
        }
    }

    #[test]
    fn revocation_has_one_time_or_two() {
        let kid = KeyPair::new_user().public_key();
        let file = KeyFile::parse(&format!("revoked {kid} 7\nrevoked {kid} 9 5"), "f").expect("parses");
        let times: Vec<_> = file.revoked().iter().map(|it| (it.at, it.since)).collect();
        assert_eq!(times, [(7, 7), (9, 5)]);
    }

    #[test]
    fn more_seeds_than_can_be_remembered_are_refused() {
        let line = || KeyPair::new_user().seed().expect("seed");
        let text: Vec<_> = (0..=MAX_SEEDS).map(|_| line()).collect();
        assert!(KeyFile::parse(&text[1..].join("\n"), "f").is_ok());
        let error = KeyFile::parse(&text.join("\n"), "f").expect_err("too many");
        assert!(error.to_string().contains("retire"), "{error}");
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
