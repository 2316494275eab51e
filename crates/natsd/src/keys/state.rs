//! What is remembered of each key, and what of it is on the disk beside the spool.

use muster_proto::event::key::{KeyRecord, KeyStatus};
use serde::{Deserialize, Serialize};

use super::ALGORITHM;

/// A key of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// As it is announced.
    pub(super) record: KeyRecord,
    /// Unix milliseconds from which it signs; nothing while it waits.
    pub(super) signs_from: Option<u64>,
    /// What was announced of it last, as [`Self::news`] has it.
    pub(super) told: Option<u64>,
}

impl Kept {
    /// All of it that is worth an announcement.
    pub(super) fn news(&self) -> u64 {
        let status = match self.record.status {
            KeyStatus::Active => 0,
            KeyStatus::Retired => 1,
            KeyStatus::Revoked => 2,
        };
        let since = self.record.compromised_since.unwrap_or(0);
        status
            | u64::from(self.record.trust.is_some()) << 2
            | u64::from(self.record.revocation.is_some()) << 3
            | since << 4
    }

    /// Whether its time to sign has come.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.signs_from.is_some_and(|from| from <= now_ms)
    }
}

/// A key without what is the same for all, and without what the trust key has signed: that is in the seed file. The slot
/// on the disk is a page.
#[derive(Serialize, Deserialize)]
struct Row(
    String,
    KeyStatus,
    u64,
    Option<u64>,
    Option<String>,
    u64,
    Option<u64>,
    Option<u64>,
    Option<String>,
    Option<u64>,
    Option<u64>,
);

#[derive(Serialize, Deserialize)]
struct State {
    node: String,
    keys: Vec<Row>,
}

/// As bytes for the disk.
pub(super) fn write(node: &str, keys: &[Kept]) -> Vec<u8> {
    let rows = keys.iter().cloned().map(
        |Kept {
             record,
             signs_from,
             told,
         }| {
            Row(
                record.kid,
                record.status,
                record.not_before,
                record.not_after,
                record.prev_kid,
                record.epoch_from,
                record.revoked_at,
                record.compromised_since,
                record.prev_sig,
                signs_from,
                told,
            )
        },
    );
    let state = State {
        node: node.to_owned(),
        keys: rows.collect(),
    };
    // Texts and numbers always serialise.
    serde_json::to_vec(&state).unwrap_or_default()
}

/// The keys of this node; another one's, in a home that was copied, say nothing here.
pub(super) fn read(bytes: &[u8], node: &str) -> Vec<Kept> {
    let state = serde_json::from_slice::<State>(bytes).ok();
    let rows = state.filter(|state| state.node == node).map(|state| state.keys);
    let kept = rows.unwrap_or_default().into_iter().map(|row| Kept {
        record: KeyRecord {
            kid: row.0,
            node: node.to_owned(),
            alg: ALGORITHM.to_owned(),
            not_before: row.2,
            not_after: row.3,
            status: row.1,
            prev_kid: row.4,
            epoch_from: row.5,
            revoked_at: row.6,
            compromised_since: row.7,
            prev_sig: row.8,
            trust: None,
            revocation: None,
        },
        signs_from: row.9,
        told: row.10,
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keys::MAX_RECORDS, spool::slots};

    #[test]
    fn as_many_keys_as_are_kept_fit_on_the_disk_and_are_read_again() {
        let long = || "U".repeat(56);
        let kept = Kept {
            record: KeyRecord {
                kid: long(),
                node: "n".repeat(64),
                alg: ALGORITHM.to_owned(),
                not_before: u64::MAX,
                not_after: Some(u64::MAX),
                status: KeyStatus::Retired,
                prev_kid: Some(long()),
                epoch_from: u64::MAX,
                revoked_at: Some(u64::MAX),
                compromised_since: Some(u64::MAX),
                prev_sig: Some("s".repeat(86)),
                trust: None,
                revocation: None,
            },
            signs_from: Some(u64::MAX),
            told: Some(u64::MAX),
        };
        let node = kept.record.node.clone();
        let all = vec![kept; MAX_RECORDS];
        let bytes = write(&node, &all);
        assert!(bytes.len() <= slots::MAX_LEN, "{}", bytes.len());
        assert_eq!(read(&bytes, &node), all);
        assert_eq!(read(&bytes, "other"), []);
    }
}
