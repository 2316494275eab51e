//! The lines of `<signing_key>`, oldest first: seeds; `revoked <public key> <unix seconds> <unix seconds>`; and `signed
//! <announcement>` for what the trust key has signed.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::Path,
};

use anyhow::{Context as _, bail};
use muster_proto::event::key::KeyRecord;
use nkeys::{KeyPair, KeyPairType};
use zeroize::Zeroizing;

/// The daemon's group reads the seeds; nobody else.
const KEY_MODE: u32 = 0o640;

/// The lines of the file, seeds included.
pub(in crate::nats) struct KeyFile {
    lines: Vec<Zeroizing<String>>,
}

impl KeyFile {
    /// A missing file has no lines.
    pub(in crate::nats) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Zeroizing::default(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let lines = text
            .lines()
            .map(|line| Zeroizing::new(line.trim().to_owned()))
            .collect();
        Ok(Self { lines })
    }

    pub(in crate::nats) fn seeds(&self) -> Vec<&str> {
        let seeds = self.lines.iter().map(|line| line.as_str());
        seeds.filter(|line| line.starts_with("SU")).collect()
    }

    pub(in crate::nats) fn public(&self) -> anyhow::Result<Vec<String>> {
        let public = |seed: &&str| {
            let key = KeyPair::from_seed(seed).context("a seed in the file is damaged")?;
            Ok(key.public_key())
        };
        self.seeds().iter().map(public).collect()
    }

    pub(in crate::nats) fn revoked(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lines.iter().filter_map(|line| {
            let mut words = line.strip_prefix("revoked ")?.split_ascii_whitespace();
            Some((words.next()?, words.next()?.parse().ok()?))
        })
    }

    pub(in crate::nats) fn add(&mut self) -> anyhow::Result<String> {
        let key = KeyPair::new(KeyPairType::User);
        self.lines.push(Zeroizing::new(key.seed().context("making a key")?));
        Ok(key.public_key())
    }

    pub(in crate::nats) fn retire(&mut self) -> String {
        let newest = self.seeds().last().map(|seed| Zeroizing::new((*seed).to_owned()));
        let before = self.lines.len();
        self.lines
            .retain(|line| !line.starts_with("SU") || newest.as_ref().is_some_and(|newest| newest == line));
        format!("{} seeds taken out", before - self.lines.len())
    }

    pub(in crate::nats) fn revoke(&mut self, kid: &str, now: u64, since: u64) -> anyhow::Result<String> {
        if KeyPair::from_public_key(kid).is_err() || !kid.starts_with('U') {
            bail!("{kid} is no public key (U and 55 more letters and digits)");
        }
        let left = self
            .public()?
            .iter()
            .any(|other| other != kid && self.revoked().all(|(revoked, _)| revoked != other));
        if !left {
            bail!("no other key could sign; `rotate` first");
        }
        self.lines.push(Zeroizing::new(format!("revoked {kid} {now} {since}")));
        Ok(format!("{kid} is revoked, and not to be believed since {since}"))
    }

    /// What the trust key has signed, in the place of what it had signed of the same keys if that is in it too.
    pub(in crate::nats) fn import(&mut self, signed: Vec<KeyRecord>) -> anyhow::Result<String> {
        let count = signed.len();
        for record in signed {
            self.lines.retain(|line| {
                let before = line.strip_prefix("signed ");
                let before = before.and_then(|before| serde_json::from_str::<KeyRecord>(before).ok());
                before.is_none_or(|before| {
                    before.kid != record.kid
                        || (before.trust.is_some() && record.trust.is_none())
                        || (before.revocation.is_some() && record.revocation.is_none())
                })
            });
            let text = serde_json::to_string(&record)?;
            self.lines.push(Zeroizing::new(format!("signed {text}")));
        }
        Ok(format!("{count} signed statements taken in"))
    }

    /// Beside the file, then into its place, with its owner.
    pub(in crate::nats) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let beside = path.with_extension("new");
        let mut text = Zeroizing::new(String::new());
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        let write = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(KEY_MODE)
                .open(&beside)?;
            // The first key belongs to whom the directory belongs to.
            let directory = path.parent().unwrap_or(Path::new("."));
            let owner = path.metadata().or_else(|_| directory.metadata())?;
            if nix::unistd::geteuid().is_root() {
                chown(&beside, Some(owner.uid()), Some(owner.gid()))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_retired_and_revoked_keys_are_lines_of_the_file() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("signing.nk");
        let mut file = KeyFile::read(&path).expect("is missing");
        let (one, two) = (file.add().expect("adds"), file.add().expect("adds"));
        file.write(&path).expect("writes");
        let mut file = KeyFile::read(&path).expect("reads");
        assert_eq!(file.public().expect("seeds"), [one.clone(), two.clone()]);
        file.revoke(&one, 7, 5).expect("revokes");
        assert_eq!(file.revoked().collect::<Vec<_>>(), [(one.as_str(), 7)]);
        assert!(file.revoke(&two, 7, 7).is_err(), "nothing would be left to sign with");
        assert!(file.revoke("x", 7, 7).is_err());
        file.retire();
        assert_eq!(file.public().expect("seeds"), [two]);
        assert_eq!(file.revoked().count(), 1);
    }
}
