//! Which keys are believed, of which manager, and for which time.
//!
//! A key is believed that was pinned; or that a pinned trust key vouches for; or, only if no trust key is pinned, that
//! a believed key of the same manager has introduced. Whatever else an announcement says can only narrow that, and is
//! never taken back: so an old announcement that a broker shows once more changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::event::{
    header,
    key::{CoSignature, KeyRecord, KeyStatus},
};

use super::{MAX_SKEW_MS, Policy};
use crate::signature::{public_key, verifies, vouches};

/// Keys that are remembered. Managers make a few in a year.
const MAX_KEYS: usize = 20_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    trusted: BTreeSet<String>,
    /// With the manager that each is for, as soon as that is known.
    pinned: BTreeMap<String, Option<String>>,
    introduced: BTreeMap<String, Introduced>,
    /// Unix seconds from which a key is not believed.
    revoked: BTreeMap<String, u64>,
    /// The highest epoch of each manager that is known.
    epochs: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Introduced {
    node: String,
    not_before: u64,
    not_after: Option<u64>,
}

/// Why a key is not believed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// There may still come an announcement of it.
    Unknown(&'static str),
    /// It never will be.
    Bad(&'static str),
}

impl Doubt {
    pub(crate) fn why(&self) -> &'static str {
        match self {
            Self::Unknown(why) | Self::Bad(why) => why,
        }
    }
}

impl Keys {
    pub(crate) fn new(policy: &Policy) -> Self {
        let of = |kid: &String| (kid.clone(), policy.nodes.get(kid).cloned());
        Self {
            trusted: policy.trust_keys.clone(),
            pinned: policy.pinned.iter().map(of).collect(),
            ..Self::default()
        }
    }

    /// Takes what an announcement proves by itself, whoever brought it.
    pub(crate) fn introduce(&mut self, record: &KeyRecord) {
        if record.alg != header::ED25519 || public_key(&record.kid).is_none() {
            return;
        }
        let room = self.introduced.len() < MAX_KEYS;
        if room
            && !self.introduced.contains_key(&record.kid)
            && (self.is_vouched_for(record) || self.is_chained(record))
        {
            self.insert(record);
        }
        if self.is_signed(record.revocation.as_ref(), record.revocation())
            && self.is_of(&record.kid, &record.node)
            && let Some(since) = record.compromised_since
        {
            self.revoke(&record.kid, since);
        }
    }

    /// Whether a key may have signed something of this manager that was made at this time.
    pub(crate) fn admit(&self, kid: &str, node: &str, time_ms: u64) -> Result<(), Doubt> {
        if let Some(key) = self.introduced.get(kid) {
            if key.node != node {
                return Err(Doubt::Bad("the key is another node's"));
            }
            if time_ms.saturating_add(MAX_SKEW_MS) < key.not_before {
                return Err(Doubt::Bad("the key was not yet valid"));
            }
            let until = key.not_after.map(|until| until.saturating_add(MAX_SKEW_MS));
            if until.is_some_and(|until| time_ms > until) {
                return Err(Doubt::Bad("the key was no longer valid"));
            }
        } else if let Some(of) = self.pinned.get(kid) {
            if of.as_ref().is_some_and(|of| of != node) {
                return Err(Doubt::Bad("the key is another node's"));
            }
        } else if self.trusted.is_empty() {
            return Err(Doubt::Unknown("nobody who is believed has announced the key"));
        } else {
            return Err(Doubt::Unknown("no trust key has vouched for the key"));
        }
        if self.is_revoked(kid, time_ms) {
            return Err(Doubt::Bad("the key is revoked"));
        }
        Ok(())
    }

    /// A key that is believed has signed for this manager. A pinned one belongs to the first.
    pub(super) fn bind(&mut self, kid: &str, node: &str) {
        if let Some(of @ None) = self.pinned.get_mut(kid) {
            *of = Some(node.to_owned());
        }
    }

    /// Takes an announcement in that a believed key of the same manager has signed.
    pub(super) fn learn(&mut self, record: &KeyRecord) -> Result<(), &'static str> {
        let since = record.compromised_since.or(record.revoked_at).unwrap_or(0);
        let is_revoked = record.status == KeyStatus::Revoked;
        if is_revoked && self.trusted.is_empty() && self.is_of(&record.kid, &record.node) {
            self.revoke(&record.kid, since);
        }
        if !self.introduced.contains_key(&record.kid) && self.pinned.contains_key(&record.kid) {
            if !self.is_of(&record.kid, &record.node) {
                return Err("it announces another node's key");
            }
            self.bind(&record.kid, &record.node);
            self.insert(record);
        }
        let Some(key) = self.introduced.get_mut(&record.kid) else {
            return match record.status {
                KeyStatus::Active if self.trusted.is_empty() => Err("no key that is believed introduces the new one"),
                KeyStatus::Active => Err("no trust key vouches for the new key"),
                // Who does not believe it need not stop to.
                KeyStatus::Retired | KeyStatus::Revoked => Ok(()),
            };
        };
        if key.node != record.node {
            return Err("it announces another node's key");
        }
        if let Some(until) = record.not_after {
            key.not_after = Some(key.not_after.map_or(until, |before| before.min(until)));
        }
        if is_revoked && self.revoked.get(&record.kid).is_none_or(|before| *before > since) {
            return Err("no trust key has signed the revocation");
        }
        Ok(())
    }

    /// The highest epoch of a manager that is known.
    pub(super) fn epoch(&self, node: &str) -> Option<u64> {
        self.epochs.get(node).copied()
    }

    /// An epoch was announced, or is the first that is seen.
    pub(super) fn know_epoch(&mut self, node: &str, epoch: u64) {
        if self.epochs.len() < MAX_KEYS || self.epochs.contains_key(node) {
            let known = self.epochs.entry(node.to_owned()).or_default();
            *known = epoch.max(*known);
        }
    }

    fn insert(&mut self, record: &KeyRecord) {
        let introduced = Introduced {
            node: record.node.clone(),
            // Whoever pins a key has said that all of it is good.
            not_before: if self.pinned.contains_key(&record.kid) {
                0
            } else {
                record.not_before
            },
            not_after: None,
        };
        self.introduced.insert(record.kid.clone(), introduced);
    }

    fn revoke(&mut self, kid: &str, since: u64) {
        if self.revoked.len() < MAX_KEYS || self.revoked.contains_key(kid) {
            let before = self.revoked.entry(kid.to_owned()).or_insert(since);
            *before = since.min(*before);
        }
    }

    fn is_revoked(&self, kid: &str, time_ms: u64) -> bool {
        let since = self.revoked.get(kid);
        since.is_some_and(|since| time_ms >= since.saturating_mul(1000))
    }

    /// Whether nothing says that the key is another manager's.
    fn is_of(&self, kid: &str, node: &str) -> bool {
        let introduced = self.introduced.get(kid).map(|key| &key.node);
        let of = introduced.or_else(|| self.pinned.get(kid).and_then(Option::as_ref));
        of.is_none_or(|of| of == node)
    }

    fn is_vouched_for(&self, record: &KeyRecord) -> bool {
        self.is_signed(record.trust.as_ref(), record.introduction())
    }

    /// Whether a trust key has signed the text.
    fn is_signed(&self, by: Option<&CoSignature>, text: Option<String>) -> bool {
        let trusted = by.and_then(|by| self.trusted.get(&by.kid));
        trusted.is_some_and(|trusted| vouches(trusted, by, text))
    }

    /// Whether a believed key of the same manager introduces it.
    fn is_chained(&self, record: &KeyRecord) -> bool {
        let (Some(before), Some(signature), Some(text)) = (&record.prev_kid, &record.prev_sig, record.introduction())
        else {
            return false;
        };
        self.trusted.is_empty()
            && self.admit(before, &record.node, record.not_before).is_ok()
            && public_key(before).is_some_and(|key| verifies(&key, text.as_bytes(), signature))
    }
}

#[cfg(test)]
mod tests;
