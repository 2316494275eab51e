use std::fs;

use nkeys::KeyPair;

use super::*;
use crate::signature::{public_key, verifies, vouches};

const OVERLAP_MS: u64 = 600_000;

/// A seed file and the folder beside it.
struct Place {
    home: tempfile::TempDir,
    lines: Vec<String>,
    trust: Option<KeyPair>,
}

impl Place {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().expect("directory"),
            lines: Vec::new(),
            trust: None,
        }
    }

    fn with_trust_key() -> Self {
        Self {
            trust: Some(KeyPair::new_user()),
            ..Self::new()
        }
    }

    fn add(&mut self, line: String) {
        self.lines.push(line);
        fs::write(self.home.path().join("signing.nk"), self.lines.join("\n")).expect("writes");
    }

    /// Another seed; its public half.
    fn add_key(&mut self) -> String {
        let key = KeyPair::new_user();
        self.add(key.seed().expect("seed"));
        key.public_key()
    }

    fn open(&self, epoch: u64, begun: Begun, now_ms: u64) -> (Keyring, Vec<Event>) {
        let rules = Rules {
            node: "n".to_owned(),
            epoch,
            begun,
            begun_anew: Vec::new(),
            trust_key: self.trust.as_ref().map(KeyPair::public_key),
            overlap_ms: OVERLAP_MS,
        };
        let file = self.home.path().join("signing.nk");
        Keyring::open(&file, self.home.path(), rules, now_ms).expect("opens")
    }

    fn sign(&self, text: Option<String>) -> CoSignature {
        let trust = self.trust.as_ref().expect("a trust key");
        let sig = trust.sign(text.expect("a statement").as_bytes()).expect("signs");
        CoSignature {
            kid: trust.public_key(),
            sig: signature::text(&sig),
        }
    }

    /// The trust key vouches for a key, and the signature lies in the file.
    fn vouch(&mut self, ring: &Keyring, kid: &str) {
        let mut record = record(ring, kid);
        record.trust = Some(self.sign(record.introduction()));
        self.add(format!("signed {}", serde_json::to_string(&record).expect("JSON")));
    }
}

fn record(ring: &Keyring, kid: &str) -> KeyRecord {
    let keys = ring.describe();
    let key = keys.into_iter().find(|key| key.record.kid == kid);
    key.expect("a record").record
}

/// What is announced: the reason and the key.
fn news(events: &[Event]) -> Vec<(String, String)> {
    let of = |event: &Event| {
        let body: serde_json::Value = serde_json::from_slice(&event.body).expect("JSON");
        let text = |name: &str| body["key"][name].as_str().expect("a text").to_owned();
        (text("reason"), text("kid"))
    };
    events.iter().map(of).collect()
}

fn reasons(events: &[Event]) -> Vec<String> {
    news(events).into_iter().map(|(reason, _)| reason).collect()
}

#[test]
fn new_key_is_announced_by_the_old_one_and_signs_after_the_overlap() {
    let mut place = Place::new();
    let one = place.add_key();
    let (mut ring, events) = place.open(1, Begun::Start, 1000);
    assert_eq!(reasons(&events), ["new"]);
    assert_eq!(ring.key_id(), one);
    let two = place.add_key();
    assert_eq!(reasons(&ring.reload(2000).expect("reloads")), ["rotation"]);
    assert_eq!(ring.key_id(), one);
    assert_eq!(ring.settle(2000 + OVERLAP_MS - 1).expect("settles"), []);
    drop(ring);
    let (ring, events) = place.open(2, Begun::Start, 3000);
    assert_eq!(reasons(&events), ["start"]);
    drop(ring);
    let (mut ring, events) = place.open(3, Begun::StateLost, 3000);
    assert_eq!(reasons(&events), ["state_lost"]);
    assert_eq!(ring.key_id(), one, "across a restart too");
    assert_eq!(reasons(&ring.settle(2000 + OVERLAP_MS).expect("settles")), ["retired"]);
    assert_eq!(ring.key_id(), two);
    let key = public_key(ring.key_id()).expect("a key");
    assert!(verifies(&key, b"x", &ring.sign(b"x")));
    assert_eq!(record(&ring, &one).not_after, Some(2000 + OVERLAP_MS));
}

#[test]
fn new_key_is_introduced_by_the_signature_of_the_one_before_it() {
    let mut place = Place::new();
    let one = place.add_key();
    let (mut ring, _) = place.open(1, Begun::Start, 1000);
    let kids = [place.add_key(), place.add_key()];
    ring.reload(2000).expect("reloads");
    for (kid, before) in kids.iter().zip([&one, &kids[0]]) {
        let record = record(&ring, kid);
        assert_eq!(record.prev_kid.as_ref(), Some(before));
        let text = record.introduction().expect("a statement");
        let by = public_key(before).expect("a key");
        let signature = record.prev_sig.expect("introduced");
        assert!(verifies(&by, text.as_bytes(), &signature));
    }
}

#[test]
fn revoked_key_never_signs_again_and_its_successor_signs_at_once() {
    let mut place = Place::new();
    let one = place.add_key();
    let (mut ring, _) = place.open(1, Begun::Start, 1000);
    let two = place.add_key();
    place.add(format!("revoked {one} 9 1"));
    let events = ring.reload(2000).expect("reloads");
    let expected = [("new".to_owned(), two.clone()), ("revoked".to_owned(), one.clone())];
    assert_eq!(news(&events), expected, "first of all who signs both");
    let told = record(&ring, &one);
    assert_eq!((told.revoked_at, told.compromised_since), (Some(9), Some(1)));
    assert_eq!(record(&ring, &two).prev_sig, None, "a revoked key introduces nobody");
    place.lines.remove(1);
    place.add(String::new());
    assert!(ring.reload(3000).is_err(), "nothing is left that may sign");
    assert_eq!(ring.key_id(), two, "and the old state is in force");
    assert_eq!(ring.settle(3000).expect("settles"), []);
}

#[test]
fn key_whose_predecessor_is_gone_signs_before_its_time_and_says_so() {
    let mut place = Place::new();
    let one = place.add_key();
    let (mut ring, _) = place.open(1, Begun::Start, 1000);
    let two = place.add_key();
    ring.reload(2000).expect("reloads");
    place.lines.remove(0);
    place.add(String::new());
    let events = ring.reload(3000).expect("reloads");
    let expected = [("in_force".to_owned(), two), ("retired".to_owned(), one)];
    assert_eq!(news(&events), expected);
}

#[test]
fn lost_record_puts_the_newest_key_in_force_and_keeps_what_the_trust_key_has_signed() {
    let mut place = Place::with_trust_key();
    let one = place.add_key();
    let (mut ring, _) = place.open(1, Begun::Start, 1000);
    place.vouch(&ring, &one);
    ring.reload(1500).expect("reloads");
    let two = place.add_key();
    ring.reload(2000).expect("reloads");
    place.vouch(&ring, &two);
    ring.reload(2500).expect("reloads");
    let before = record(&ring, &two);
    drop(ring);
    fs::remove_file(place.home.path().join(STATE)).expect("is there");
    let (ring, _) = place.open(77, Begun::StateLost, 99_000);
    assert_eq!(ring.key_id(), two);
    assert_eq!(record(&ring, &two), before);
    assert_eq!(ring.unvouched(), [] as [String; 0]);
}

#[test]
fn first_key_signs_without_the_trust_key_and_the_status_says_so_until_it_has_signed() {
    let mut place = Place::with_trust_key();
    let one = place.add_key();
    let (mut ring, events) = place.open(1, Begun::Start, 1000);
    assert_eq!(reasons(&events), ["new"]);
    let unvouched = ring.unvouched();
    assert!(unvouched.len() == 1 && unvouched[0].contains(&one), "{unvouched:?}");
    place.vouch(&ring, &one);
    let events = ring.reload(2000).expect("reloads");
    assert_eq!(reasons(&events), ["co_signed"]);
    assert_eq!(ring.unvouched(), [] as [String; 0]);
    let body: serde_json::Value = serde_json::from_slice(&events[0].body).expect("JSON");
    let told: KeyRecord = serde_json::from_value(body["key"].clone()).expect("a record");
    let trust = place.trust.as_ref().expect("a key").public_key();
    assert!(vouches(&trust, told.trust.as_ref(), told.introduction()));
    drop(ring);
    let (_, events) = place.open(2, Begun::Start, 3000);
    assert_eq!(reasons(&events), ["start"], "it is not news for ever");
}

#[test]
fn rotation_waits_for_the_trust_key_and_then_for_the_overlap() {
    let mut place = Place::with_trust_key();
    let one = place.add_key();
    let (mut ring, _) = place.open(1, Begun::Start, 1000);
    place.vouch(&ring, &one);
    ring.reload(1000).expect("reloads");
    let two = place.add_key();
    assert_eq!(ring.reload(2000).expect("reloads"), [], "nobody hears of it yet");
    assert!(ring.unvouched()[0].contains("waits"), "{:?}", ring.unvouched());
    let long_after = 2000 + 9 * OVERLAP_MS;
    assert_eq!(ring.settle(long_after).expect("settles"), []);
    assert_eq!(ring.key_id(), one);
    place.vouch(&ring, &two);
    assert_eq!(reasons(&ring.reload(long_after).expect("reloads")), ["rotation"]);
    assert_eq!(ring.settle(long_after + OVERLAP_MS - 1).expect("settles"), []);
    let events = ring.settle(long_after + OVERLAP_MS).expect("settles");
    assert_eq!(news(&events), [("retired".to_owned(), one)]);
    assert_eq!(ring.key_id(), two);
}

#[test]
fn signatures_of_others_about_others_or_about_other_words_do_not_count() {
    let mut place = Place::with_trust_key();
    let one = place.add_key();
    let (mut ring, _) = place.open(1, Begun::Start, 1000);
    let good = {
        let mut record = record(&ring, &one);
        record.trust = Some(place.sign(record.introduction()));
        record
    };
    let stranger = KeyPair::new_user();
    let text = good.introduction().expect("a statement");
    let mut by_stranger = good.clone();
    by_stranger.trust = Some(CoSignature {
        kid: stranger.public_key(),
        sig: signature::text(&stranger.sign(text.as_bytes()).expect("signs")),
    });
    let mut in_the_name = by_stranger.clone();
    in_the_name.trust.as_mut().expect("is there").kid = place.trust.as_ref().expect("a key").public_key();
    let mut changed = good.clone();
    changed.epoch_from += 1;
    let mut of_other = good.clone();
    of_other.node = "m".to_owned();
    of_other.trust = Some(place.sign(of_other.introduction()));
    for bad in [by_stranger, in_the_name, changed, of_other] {
        place.add(format!("signed {}", serde_json::to_string(&bad).expect("JSON")));
        assert_eq!(ring.reload(2000).expect("reloads"), []);
        assert_eq!(ring.unvouched().len(), 1);
    }
    place.add(format!("signed {}", serde_json::to_string(&good).expect("JSON")));
    assert_eq!(reasons(&ring.reload(2000).expect("reloads")), ["co_signed"]);
}

#[test]
fn revocation_is_obeyed_at_once_and_told_when_the_trust_key_has_signed_it() {
    let mut place = Place::with_trust_key();
    let one = place.add_key();
    let (mut ring, _) = place.open(1, Begun::Start, 1000);
    place.vouch(&ring, &one);
    let two = place.add_key();
    ring.reload(1000).expect("reloads");
    place.vouch(&ring, &two);
    ring.reload(1000).expect("reloads");
    place.add(format!("revoked {one} 9 7"));
    assert_eq!(reasons(&ring.reload(2000).expect("reloads")), ["in_force"]);
    assert_eq!(ring.key_id(), two);
    assert!(ring.unvouched()[0].contains("revoked"), "{:?}", ring.unvouched());
    let mut told = record(&ring, &one);
    told.revocation = Some(place.sign(told.revocation()));
    place.add(format!("signed {}", serde_json::to_string(&told).expect("JSON")));
    let events = ring.reload(3000).expect("reloads");
    assert_eq!(news(&events), [("revoked".to_owned(), one)]);
    assert_eq!(ring.unvouched(), [] as [String; 0]);
}

#[test]
fn oldest_keys_without_seed_are_forgotten_and_no_other() {
    let mut place = Place::new();
    let mut kids = vec![place.add_key()];
    let (mut ring, _) = place.open(1, Begun::Start, 0);
    for round in 1..=2 * MAX_RECORDS {
        let now = u64::try_from(round).expect("small") * 2 * OVERLAP_MS;
        kids.push(place.add_key());
        if place.lines.len() > 3 {
            place.lines.remove(0);
            place.add(String::new());
            place.lines.pop();
        }
        ring.reload(now).expect("reloads");
        ring.settle(now + OVERLAP_MS).expect("settles");
        assert_eq!(Some(ring.key_id()), kids.last().map(String::as_str));
    }
    let kept: Vec<_> = ring.describe().into_iter().map(|key| key.record.kid).collect();
    assert_eq!(kept, kids[kids.len() - MAX_RECORDS..]);
}
