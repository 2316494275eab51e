//! The signing keys of this node: which one signs now, which comes next, which are over.
//!
//! The seed file has a line for each key, oldest first: its seed; `revoked <public key> <unix seconds> [<since>]`; and
//! `signed <announcement>` for what the trust key has signed. A key that appears in the file is announced at once, signed
//! with the one before it, and signs itself after the overlap, so that consumers know it by then. What became of each key
//! is kept beside the spool and told on `manager.keys`.
//!
//! With a trust key, a new key waits until that one has vouched for it, and a revocation is told only when the trust key
//! has signed it. Only if there is no other key to sign with, one signs for which nobody vouches, and the status says so.

mod file;
mod state;

use std::path::{Path, PathBuf};

pub use muster_proto::event::key::{CoSignature, KeyRecord, KeyStatus};
use muster_proto::{
    event::{
        Event, Kind,
        body::{manager_event, wrapped},
        header,
    },
    ipc::control::SigningKey,
};
use serde::Serialize;

pub use self::file::{KeyError, KeyFile, Revoked, create_if_missing};
use self::state::Kept;
use crate::{
    signature::{self, Signer},
    spool::{SpoolError, slots::Slots},
};

/// Keys that are remembered. The file beside the spool holds no more; older ones are in the stream.
const MAX_RECORDS: usize = 10;
const _: () = assert!(MAX_RECORDS > file::MAX_SEEDS, "a key with a seed is never forgotten");
const STATE: &str = "keys.state";
const ALGORITHM: &str = header::ED25519;
/// Why a key is announced: its node no longer knows how far its numbers had gone.
const STATE_LOST: &str = "state_lost";
const KEY_CHANGE_LEVEL: u8 = 3;
const REVOKED_LEVEL: u8 = 12;

/// How an epoch has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// With the next start.
    Start,
    /// The state of the sequence was lost.
    StateLost,
}

/// Whose keys they are, and how they change.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) node: String,
    pub(crate) epoch: u64,
    pub(crate) begun: Begun,
    /// Epochs with which the numbers began anew, and their first ones.
    pub(crate) begun_anew: Vec<(u64, u64)>,
    /// The public half of the key that vouches for ours.
    pub(crate) trust_key: Option<String>,
    /// How long a new key is announced before it signs.
    pub(crate) overlap_ms: u64,
}

#[cfg(test)]
impl Rules {
    /// No trust key, and no waiting.
    pub(crate) fn plain(node: &str, epoch: u64) -> Self {
        Self {
            node: node.to_owned(),
            epoch,
            begun: Begun::Start,
            begun_anew: Vec::new(),
            trust_key: None,
            overlap_ms: 0,
        }
    }
}

/// Signs.
pub(crate) struct Keyring {
    file: KeyFile,
    path: PathBuf,
    slots: Slots,
    /// Oldest first.
    keys: Vec<Kept>,
    rules: Rules,
    /// The public half of the signing key.
    active: String,
    signer: Option<Signer>,
    /// What is on the disk.
    written: Vec<u8>,
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
        rules: Rules,
        now_ms: u64,
    ) -> Result<(Self, Vec<Event>), KeyError> {
        let (slots, content) = Slots::open(&directory.join(STATE)).map_err(failed)?;
        let written = content.unwrap_or_default();
        let mut ring = Self {
            file: KeyFile::read(file)?,
            path: file.to_owned(),
            slots,
            keys: state::read(&written, &rules.node),
            rules,
            active: String::new(),
            signer: None,
            written,
        };
        let mut news = ring.change(now_ms)?;
        let begun = match ring.rules.begun {
            Begun::Start => "start",
            Begun::StateLost => STATE_LOST,
        };
        // Each epoch is announced with its key, and that first of all.
        if ring.rules.begun == Begun::StateLost || news.first().is_none_or(|(kid, _)| *kid != ring.active) {
            news.insert(0, (ring.active.clone(), begun));
        }
        let events = ring.announcements(news, now_ms);
        Ok((ring, events))
    }

    /// Reads the seed file again.
    pub(crate) fn reload(&mut self, now_ms: u64) -> Result<Vec<Event>, KeyError> {
        let file = KeyFile::read(&self.path)?;
        let before = (std::mem::replace(&mut self.file, file), self.keys.clone());
        match self.change(now_ms) {
            Ok(news) => Ok(self.announcements(news, now_ms)),
            Err(error) => {
                (self.file, self.keys) = before;
                Err(error)
            }
        }
    }

    /// Puts the right key to work. Gives the announcements of what changed.
    pub(crate) fn settle(&mut self, now_ms: u64) -> Result<Vec<Event>, KeyError> {
        let before = self.keys.clone();
        match self.change(now_ms) {
            Ok(news) => Ok(self.announcements(news, now_ms)),
            Err(error) => {
                self.keys = before;
                Err(error)
            }
        }
    }

    /// What has changed, and what is to be announced of it.
    fn change(&mut self, now_ms: u64) -> Result<Vec<(String, &'static str)>, KeyError> {
        self.take_in(now_ms);
        self.revoke(now_ms);
        self.take_over_signatures(now_ms);
        let (active, hurried) = self.choose(now_ms)?;
        self.plan(now_ms);
        for place in 0..active {
            let key = &mut self.keys[place];
            if key.record.status == KeyStatus::Active {
                key.record.status = KeyStatus::Retired;
                key.record.not_after = Some(now_ms);
            }
        }
        let kid = self.keys[active].record.kid.clone();
        let news = self.news(&kid, hurried);
        self.forget_the_oldest();
        let bytes = state::write(&self.rules.node, &self.keys);
        if bytes != self.written {
            self.slots.write(&bytes).map_err(failed)?;
            self.written = bytes;
        }
        if self.active != kid || self.signer.is_none() {
            self.signer = self.file.pair(&kid).and_then(Signer::new);
            self.active = kid;
        }
        Ok(news)
    }

    /// Seeds that are new get a record, which the key before them signs.
    fn take_in(&mut self, now_ms: u64) {
        for kid in self.file.public() {
            if self.keys.iter().any(|key| key.record.kid == kid) || self.is_revoked_in_file(&kid) {
                continue;
            }
            let introduces = |key: &&Kept| self.may_sign(key) && !self.is_revoked_in_file(&key.record.kid);
            let previous = self.keys.iter().rev().find(introduces);
            let mut record = KeyRecord {
                kid,
                node: self.rules.node.clone(),
                alg: ALGORITHM.to_owned(),
                not_before: now_ms,
                not_after: None,
                status: KeyStatus::Active,
                prev_kid: previous.map(|key| key.record.kid.clone()),
                epoch_from: self.rules.epoch,
                revoked_at: None,
                compromised_since: None,
                prev_sig: None,
                trust: None,
                revocation: None,
            };
            let pair = record.prev_kid.as_ref().and_then(|kid| self.file.pair(kid));
            record.prev_sig = pair
                .zip(record.introduction())
                .and_then(|(pair, text)| pair.sign(text.as_bytes()).ok())
                .map(|signature| signature::text(&signature));
            self.keys.push(Kept {
                record,
                signs_from: None,
                told: None,
            });
        }
    }

    fn is_revoked_in_file(&self, kid: &str) -> bool {
        self.file.revoked.iter().any(|revoked| revoked.kid == kid)
    }

    /// What the file says of revoked keys.
    fn revoke(&mut self, now_ms: u64) {
        for Revoked { kid, at, since } in &self.file.revoked {
            if let Some(key) = self.keys.iter_mut().find(|key| key.record.kid == *kid) {
                let record = &mut key.record;
                record.not_after = Some(record.not_after.unwrap_or(now_ms).min(now_ms));
                record.status = KeyStatus::Revoked;
                (record.revoked_at, record.compromised_since) = (Some(*at), Some(*since));
            }
        }
    }

    /// What the trust key has signed, as far as it is about our keys.
    fn take_over_signatures(&mut self, now_ms: u64) {
        for key in &mut self.keys {
            (key.record.trust, key.record.revocation) = (None, None);
        }
        let Some(trusted) = &self.rules.trust_key else { return };
        for signed in &self.file.signed {
            let key = self.keys.iter_mut().find(|key| key.record.kid == signed.kid);
            let Some(key) = key.filter(|key| key.record.node == signed.node) else {
                continue;
            };
            let record = &mut key.record;
            if record.trust.is_none() && signature::vouches(trusted, signed.trust.as_ref(), signed.introduction()) {
                // The record beside the spool may have been lost since.
                record.alg.clone_from(&signed.alg);
                record.prev_kid.clone_from(&signed.prev_kid);
                record.prev_sig.clone_from(&signed.prev_sig);
                (record.not_before, record.epoch_from) = (signed.not_before, signed.epoch_from);
                record.trust.clone_from(&signed.trust);
            }
            if signature::vouches(trusted, signed.revocation.as_ref(), signed.revocation()) {
                record.not_after = Some(record.not_after.unwrap_or(now_ms).min(now_ms));
                record.status = KeyStatus::Revoked;
                (record.revoked_at, record.compromised_since) = (signed.revoked_at, signed.compromised_since);
                record.revocation.clone_from(&signed.revocation);
            }
        }
    }

    /// Whether it is one of those that can be chosen, when its time has come.
    fn may_sign(&self, key: &Kept) -> bool {
        key.record.status == KeyStatus::Active && self.file.pair(&key.record.kid).is_some()
    }

    fn is_vouched_for(&self, key: &Kept) -> bool {
        self.rules.trust_key.is_none() || key.record.trust.is_some()
    }

    /// The place of the key that signs, and whether it does so before its time since there is no other.
    fn choose(&mut self, now_ms: u64) -> Result<(usize, bool), KeyError> {
        let newest = |wanted: &dyn Fn(&Kept) -> bool| {
            let wanted = |key: &Kept| self.may_sign(key) && wanted(key);
            self.keys.iter().rposition(wanted)
        };
        let due = |key: &Kept| key.is_due(now_ms);
        let vouched = |key: &Kept| self.is_vouched_for(key);
        if let Some(place) = newest(&|key| due(key) && vouched(key)).or_else(|| newest(&due)) {
            return Ok((place, false));
        }
        let place = newest(&vouched).or_else(|| newest(&|_| true));
        let place = place.ok_or_else(|| KeyError::None {
            path: self.path.display().to_string(),
        })?;
        self.keys[place].signs_from = Some(now_ms);
        Ok((place, true))
    }

    /// When the keys that wait will sign.
    fn plan(&mut self, now_ms: u64) {
        for place in 0..self.keys.len() {
            let key = &self.keys[place];
            if key.signs_from.is_none() && self.may_sign(key) && self.is_vouched_for(key) {
                self.keys[place].signs_from = Some(now_ms.saturating_add(self.rules.overlap_ms));
            }
        }
    }

    /// What has not yet been announced, and why it is: first what is about the key that signs the announcements.
    fn news(&mut self, active: &str, hurried: bool) -> Vec<(String, &'static str)> {
        let trusts = self.rules.trust_key.is_some();
        let mut news = Vec::new();
        for key in &mut self.keys {
            let (record, now) = (&key.record, key.news());
            let is_active = record.kid == active;
            let is_for_all = match record.status {
                KeyStatus::Active => !trusts || is_active || record.trust.is_some(),
                KeyStatus::Retired => !trusts || key.told.is_some(),
                KeyStatus::Revoked => !trusts || record.revocation.is_some(),
            };
            let before = key.told.unwrap_or_default();
            let reason = match key.told {
                _ if !is_for_all || key.told == Some(now) => (is_active && hurried).then_some("in_force"),
                None if record.status == KeyStatus::Active && record.prev_kid.is_none() => Some("new"),
                None if record.status == KeyStatus::Active => Some("rotation"),
                _ if record.status == KeyStatus::Revoked => Some("revoked"),
                _ if now & 3 != before & 3 => Some("retired"),
                _ if now > before => Some("co_signed"),
                // The trust key is another one: there is nothing good to tell.
                _ => None,
            };
            if is_for_all {
                key.told = Some(now);
            }
            if let Some(reason) = reason {
                let place = if is_active { 0 } else { news.len() };
                news.insert(place, (record.kid.clone(), reason));
            }
        }
        news
    }

    /// Keys without a seed go first; there are always enough of them.
    fn forget_the_oldest(&mut self) {
        while self.keys.len() > MAX_RECORDS {
            let oldest = self
                .keys
                .iter()
                .position(|key| self.file.pair(&key.record.kid).is_none());
            self.keys.remove(oldest.unwrap_or(0));
        }
    }

    fn announcements(&self, news: Vec<(String, &'static str)>, now_ms: u64) -> Vec<Event> {
        let events = news.into_iter().filter_map(|(kid, reason)| {
            let key = self.keys.iter().find(|key| key.record.kid == kid)?;
            Some(announcement(&key.record, reason, &self.rules.begun_anew, now_ms))
        });
        events.collect()
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

    /// All keys that are remembered, for those who may ask.
    pub(crate) fn describe(&self) -> Vec<SigningKey> {
        let describe = |key: &Kept| SigningKey {
            record: key.record.clone(),
            in_force: key.record.kid == self.active,
            signs_from: key.signs_from,
        };
        self.keys.iter().map(describe).collect()
    }

    /// What the trust key has not signed and should, in words.
    pub(crate) fn unvouched(&self) -> Vec<String> {
        if self.rules.trust_key.is_none() {
            return Vec::new();
        }
        let said = self.keys.iter().filter_map(|key| {
            let KeyRecord { kid, status, .. } = &key.record;
            Some(match status {
                KeyStatus::Active if key.record.trust.is_some() => return None,
                KeyStatus::Active if *kid == self.active => format!(
                    "the trust key has not signed {kid}, which signs the events: who pins the trust key refuses them \
                     (muster-control nats key statement)"
                ),
                KeyStatus::Active => format!(
                    "the new signing key {kid} waits for the trust key's signature (muster-control nats key statement)"
                ),
                KeyStatus::Revoked if key.record.revocation.is_none() => format!(
                    "the trust key has not signed that {kid} is revoked: nobody else knows it (muster-control nats key \
                     statement)"
                ),
                KeyStatus::Revoked | KeyStatus::Retired => return None,
            })
        });
        said.collect()
    }
}

fn failed(error: SpoolError) -> KeyError {
    KeyError::State(Box::new(error))
}

#[derive(Serialize)]
struct Announced<'a> {
    #[serde(flatten)]
    record: &'a KeyRecord,
    reason: &'a str,
    /// All of them each time: a consumer that comes late may hear only of the last start.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    begun: &'a [(u64, u64)],
}

fn announcement(record: &KeyRecord, reason: &str, begun: &[(u64, u64)], now_ms: u64) -> Event {
    let level = if record.status == KeyStatus::Revoked {
        REVOKED_LEVEL
    } else {
        KEY_CHANGE_LEVEL
    };
    let body = wrapped("key", &Announced { record, reason, begun });
    manager_event(Kind::KeyAnnouncement, "", now_ms, level, body)
}

#[cfg(test)]
mod tests;
