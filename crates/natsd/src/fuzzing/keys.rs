//! For the fuzzer: announcements of keys, true ones, made-up ones, and some of both; and a consumer who must tell.
//!
//! What must hold, whoever sends whatever in whichever order:
//!
//! * nothing is believed of a key that was never introduced by those whom the consumer trusts;
//! * nothing is believed of a revoked key from its time on, whatever is said afterwards;
//! * what is introduced and neither revoked nor narrowed is believed.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::event::{
    Kind, header,
    key::{CoSignature, KeyRecord, KeyStatus},
};
use nkeys::{KeyPair, KeyPairType};
use serde_json::json;

use super::{draw::Draw, story};
use crate::{
    signature,
    verify::{Fate, Message, Policy, Verifier},
};

const NODE: &str = "mgr";
const START_MS: u64 = 1_795_243_200_000;
const START_S: u64 = START_MS / 1000;
/// Longer stories teach nothing new, and cost time.
const MAX_STEPS: usize = 24;
/// Keys of the node; the ones behind them are a thief's.
const OURS: usize = 3;

/// Runs a story, and reads the input as a record. How many events were believed.
///
/// # Panics
/// Something does not hold.
pub fn keys(input: &[u8]) -> usize {
    if let Ok(record) = serde_json::from_slice::<KeyRecord>(input) {
        let text = serde_json::to_vec(&record).expect("a record is JSON");
        assert!(serde_json::from_slice::<KeyRecord>(&text).is_ok_and(|again| again == record));
        let statements = [record.introduction(), record.revocation()];
        assert!(
            statements[0] != statements[1] || statements[0].is_none(),
            "no statement is two"
        );
    }
    let mut draw = Draw::new(input);
    let mut stage = Stage::new(&mut draw);
    let mut steps = 0;
    while !draw.is_done() && steps < MAX_STEPS {
        steps += 1;
        stage.step(&mut draw);
    }
    stage.believed
}

struct Stage {
    trust: KeyPair,
    /// Ours, then the thief's. Each of ours introduces the next.
    keys: Vec<KeyPair>,
    /// Whether the consumer pins the trust key, and not the first key.
    trusts: bool,
    verifier: Verifier,
    /// What those whom the consumer trusts have said of our keys.
    said: Vec<KeyRecord>,
    /// Which keys the consumer must believe, as far as none was revoked or narrowed.
    heard: BTreeSet<usize>,
    /// Which it may believe, since something that was made up may have become what was said.
    mixed: BTreeSet<usize>,
    /// Unix seconds from which it must not.
    revoked: BTreeMap<usize, u64>,
    narrowed: bool,
    next: u64,
    believed: usize,
}

impl Stage {
    fn new(draw: &mut Draw<'_>) -> Self {
        let pair = |number: u8| KeyPair::new_from_raw(KeyPairType::User, [number; 32]).expect("a seed");
        let keys: Vec<_> = (1..=5).map(pair).collect();
        let (trust, trusts) = (pair(9), draw.flag());
        let (mut trust_keys, mut pinned) = (BTreeSet::new(), BTreeSet::new());
        if trusts {
            trust_keys.insert(trust.public_key());
        } else {
            pinned.insert(keys[0].public_key());
        }
        let verifier = Verifier::new(Policy {
            trust_keys,
            pinned,
            max_age_ms: None,
            ..Policy::default()
        });
        let mut stage = Self {
            trust,
            keys,
            trusts,
            verifier,
            said: Vec::new(),
            heard: BTreeSet::new(),
            mixed: BTreeSet::new(),
            revoked: BTreeMap::new(),
            narrowed: false,
            next: 1,
            believed: 0,
        };
        for place in 0..OURS {
            let record = stage.introduce(place);
            stage.said.push(record);
        }
        if !trusts {
            stage.heard.insert(0);
        }
        stage
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        match draw.below(6) {
            0 => {
                // As it is, whoever brings it.
                let place = draw.below(OURS);
                let record = self.said[place].clone();
                let by = draw.below(self.keys.len());
                self.deliver(&record, by, draw.flag());
                let known = self.trusts || place == 0 || self.heard.contains(&(place - 1));
                let parent_is_good = self.trusts || place == 0 || !self.revoked.contains_key(&(place - 1));
                if known && parent_is_good {
                    self.heard.insert(place);
                }
            }
            1 => {
                let place = draw.below(OURS);
                let since = START_S + u64::from(draw.byte());
                let mut record = self.said[place].clone();
                record.status = KeyStatus::Revoked;
                (record.revoked_at, record.compromised_since) = (Some(START_S), Some(since));
                record.revocation = Some(sign(&self.trust, record.revocation()));
                let by = draw.below(self.keys.len());
                let heard = self.deliver(&record, by, draw.flag());
                // Without a trust key, it is as good as the key that tells of it.
                if self.trusts || heard {
                    let before = self.revoked.entry(place).or_insert(since);
                    *before = since.min(*before);
                    if self.trusts {
                        self.heard.insert(place);
                    }
                }
                self.narrowed |= !self.trusts;
            }
            2 | 3 => {
                let record = self.made_up(draw);
                self.mixed
                    .extend((0..OURS).filter(|place| self.said[*place].kid == record.kid));
                let by = draw.below(self.keys.len());
                self.deliver(&record, by, draw.flag());
                self.narrowed |= by < OURS;
            }
            4 => {
                let mut record = self.said[draw.below(OURS)].clone();
                record.status = KeyStatus::Retired;
                record.not_after = Some(START_MS + u64::from(draw.u16()) * 100);
                let by = draw.below(OURS);
                self.deliver(&record, by, draw.flag());
                self.narrowed = true;
            }
            _ => self.event(draw),
        }
    }

    /// The node's key of this number, as the node would announce it.
    fn introduce(&self, place: usize) -> KeyRecord {
        let mut record = KeyRecord::new(&self.keys[place].public_key(), NODE, START_MS, 1);
        if let Some(before) = place.checked_sub(1) {
            record.prev_kid = Some(self.keys[before].public_key());
            record.prev_sig = Some(sign(&self.keys[before], record.introduction()).sig);
        }
        record.trust = Some(sign(&self.trust, record.introduction()));
        record
    }

    /// A record with words and signatures of several others, and the thief's own.
    fn made_up(&self, draw: &mut Draw<'_>) -> KeyRecord {
        let mut record = self.said[draw.below(OURS)].clone();
        let other = &self.said[draw.below(OURS)];
        let thief = &self.keys[OURS + draw.below(self.keys.len() - OURS)];
        record.kid = thief.public_key();
        for _ in 0..draw.below(5) {
            match draw.below(9) {
                0 => record.kid.clone_from(&other.kid),
                1 => record.node = draw.text(),
                2 => record.not_before = u64::from(draw.u16()),
                3 => record.trust.clone_from(&other.trust),
                4 => record.prev_kid.clone_from(&other.prev_kid),
                5 => record.prev_sig = Some(sign(thief, record.introduction().or(Some(String::new()))).sig),
                6 => {
                    let mut by = sign(thief, record.introduction().or(Some(String::new())));
                    by.kid = self.trust.public_key();
                    record.trust = Some(by);
                }
                7 => record.alg = draw.text(),
                _ => record.prev_kid = Some(other.kid.clone()),
            }
        }
        record
    }

    /// An announcement, in the stream or in the bucket. Whether it was believed.
    fn deliver(&mut self, record: &KeyRecord, by: usize, in_stream: bool) -> bool {
        let body = json!({"key": record}).to_string().into_bytes();
        let subject = format!("wazuh.xdr.manager.keys.{NODE}");
        let message = self.message(Kind::KeyAnnouncement, &subject, START_MS, body, by);
        let verdict = if in_stream {
            self.verifier.check(&message, START_MS)
        } else {
            self.verifier.hear(&message)
        };
        let believed = verdict.fate == Fate::Accept;
        assert!(!believed || by < OURS, "a thief's announcement is believed");
        believed
    }

    /// An event that somebody has signed, and whether it may be believed.
    fn event(&mut self, draw: &mut Draw<'_>) {
        let by = draw.below(self.keys.len());
        let time_ms = START_MS + u64::from(draw.byte()) * 1000;
        let subject = format!("wazuh.xdr.manager.health.{NODE}");
        let message = self.message(Kind::Health, &subject, time_ms, b"{}".to_vec(), by);
        let believed = self.verifier.check(&message, START_MS).fate == Fate::Accept;
        let revoked = self.revoked.get(&by).is_some_and(|since| time_ms >= since * 1000);
        assert!(
            !believed || (by < OURS && !revoked),
            "believed and revoked, or a thief's: {by}"
        );
        assert!(
            !believed || self.narrowed || self.heard.contains(&by) || self.mixed.contains(&by),
            "believed, and nobody has introduced it: {by}"
        );
        if self.heard.contains(&by) && !revoked && !self.narrowed {
            assert!(believed, "introduced, and not believed: {by}");
        }
        self.believed += usize::from(believed);
    }

    fn message(&mut self, kind: Kind, subject: &str, time_ms: u64, body: Vec<u8>, by: usize) -> Message {
        let seq = self.next;
        self.next += 1;
        // One that was refused may be the one before it: nobody asks for it here.
        let headers = [
            (header::MSG_ID, format!("{NODE}:1:{seq}")),
            (header::CONTENT_TYPE, "application/json".to_owned()),
            (header::VERSION, header::CONTRACT.to_owned()),
            (header::TYPE, kind.type_name().to_owned()),
            (header::SUBJECT, subject.to_owned()),
            (header::NODE, NODE.to_owned()),
            (header::EPOCH, "1".to_owned()),
            (header::SEQUENCE, seq.to_string()),
            (header::PREVIOUS, (seq - 1).to_string()),
            (header::TIME, time_ms.to_string()),
        ];
        let message = Message {
            subject: subject.to_owned(),
            headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
            body,
            from_stream: true,
        };
        story::sign(message, &self.keys[by])
    }
}

fn sign(key: &KeyPair, text: Option<String>) -> CoSignature {
    let sig = key.sign(text.expect("a statement").as_bytes()).expect("signs");
    CoSignature {
        kid: key.public_key(),
        sig: signature::text(&sig),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn stories_hold(input in vec(any::<u8>(), 0..120)) {
            keys(&input);
        }
    }

    #[test]
    fn introduced_key_is_believed_through_the_harness() {
        // Pinned: an event of the first key; then the second, introduced, and an event of it.
        let input = [0_u8, 5, 0, 0, 0, 1, 0, 1, 5, 1, 0];
        assert_eq!(keys(&input), 2);
        // With the trust key: nothing of the first; then it is introduced, by a thief's message too.
        let input = [1_u8, 5, 0, 0, 0, 0, 4, 0, 5, 0, 0];
        assert_eq!(keys(&input), 1);
    }
}
