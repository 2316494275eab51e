use nkeys::KeyPair;
use proptest::prelude::*;

use super::*;
use crate::signature::text;

const T: u64 = 1_795_243_200_000;

fn record(kid: &str, node: &str) -> KeyRecord {
    KeyRecord::new(kid, node, T, 1)
}

fn sign(key: &KeyPair, statement: Option<String>) -> CoSignature {
    let sig = key.sign(statement.expect("a statement").as_bytes()).expect("signs");
    CoSignature {
        kid: key.public_key(),
        sig: text(&sig),
    }
}

fn introduced_by(before: &KeyPair, kid: &str, node: &str) -> KeyRecord {
    let mut record = record(kid, node);
    record.prev_kid = Some(before.public_key());
    record.prev_sig = Some(sign(before, record.introduction()).sig);
    record
}

fn vouched(trust: &KeyPair, kid: &str, node: &str) -> KeyRecord {
    let mut record = record(kid, node);
    record.trust = Some(sign(trust, record.introduction()));
    record
}

fn revoked(mut record: KeyRecord, since: u64) -> KeyRecord {
    record.status = KeyStatus::Revoked;
    (record.revoked_at, record.compromised_since) = (Some(T / 1000), Some(since));
    record
}

/// Trusts these keys and pins those.
fn keys(trusted: &[&KeyPair], pinned: &[&KeyPair]) -> Keys {
    let kids = |keys: &[&KeyPair]| keys.iter().map(|key| key.public_key()).collect();
    Keys::new(&Policy {
        trust_keys: kids(trusted),
        pinned: kids(pinned),
        ..Policy::default()
    })
}

#[test]
fn chain_of_introductions_is_believed_in_any_order_of_hearing_that_ends_with_all() {
    let [one, two, three] = [(); 3].map(|()| KeyPair::new_user());
    let second = introduced_by(&one, &two.public_key(), "n");
    let third = introduced_by(&two, &three.public_key(), "n");
    let mut keys = keys(&[], &[&one]);
    keys.bind(&one.public_key(), "n");
    keys.introduce(&third);
    assert!(
        keys.admit(&three.public_key(), "n", T).is_err(),
        "its parent is unknown"
    );
    keys.introduce(&second);
    keys.introduce(&third);
    assert_eq!(keys.admit(&three.public_key(), "n", T), Ok(()));
    assert!(keys.admit(&three.public_key(), "m", T).is_err(), "only of that node");
}

#[test]
fn introduction_for_another_node_or_by_a_stranger_or_with_other_words_is_nothing() {
    let [one, two, stranger] = [(); 3].map(|()| KeyPair::new_user());
    let kid = two.public_key();
    let mut changed = introduced_by(&one, &kid, "n");
    changed.not_before -= 1;
    let mut named = introduced_by(&stranger, &kid, "n");
    named.prev_kid = Some(one.public_key());
    for bad in [
        introduced_by(&one, &kid, "m"),
        introduced_by(&stranger, &kid, "n"),
        changed,
        named,
        record(&kid, "n"),
    ] {
        let mut keys = keys(&[], &[&one]);
        keys.bind(&one.public_key(), "n");
        keys.introduce(&bad);
        assert!(matches!(keys.admit(&kid, "n", T), Err(Doubt::Unknown(_))), "{bad:?}");
        assert!(keys.learn(&bad).is_err());
    }
}

#[test]
fn with_a_trust_key_no_chain_counts() {
    let [trust, one, two] = [(); 3].map(|()| KeyPair::new_user());
    let chained = introduced_by(&one, &two.public_key(), "n");
    let mut keys = keys(&[&trust], &[&one]);
    keys.introduce(&chained);
    assert!(keys.admit(&two.public_key(), "n", T).is_err());
    assert_eq!(keys.learn(&chained), Err("no trust key vouches for the new key"));
    keys.introduce(&vouched(&one, &two.public_key(), "n"));
    assert!(
        keys.admit(&two.public_key(), "n", T).is_err(),
        "a signing key is no trust key"
    );
    keys.introduce(&vouched(&trust, &two.public_key(), "n"));
    assert_eq!(keys.admit(&two.public_key(), "n", T), Ok(()));
}

#[test]
fn revocation_counts_from_its_time_on_and_for_ever() {
    let [trust, one] = [(); 2].map(|()| KeyPair::new_user());
    let kid = one.public_key();
    let mut keys = keys(&[&trust], &[]);
    let good = vouched(&trust, &kid, "n");
    keys.introduce(&good);
    let said = revoked(good.clone(), T / 1000 + 60);
    assert_eq!(keys.learn(&said), Err("no trust key has signed the revocation"));
    assert_eq!(keys.admit(&kid, "n", T + 90_000), Ok(()));
    let mut signed = said.clone();
    signed.revocation = Some(sign(&trust, said.revocation()));
    keys.introduce(&signed);
    assert_eq!(keys.learn(&signed), Ok(()));
    assert_eq!(keys.admit(&kid, "n", T + 59_999), Ok(()));
    assert_eq!(keys.admit(&kid, "n", T + 60_000), Err(Doubt::Bad("the key is revoked")));
    keys.introduce(&good);
    keys.learn(&good).expect("an old announcement");
    let mut later = revoked(good, T / 1000 + 600);
    later.revocation = Some(sign(&trust, later.revocation()));
    keys.introduce(&later);
    assert!(keys.admit(&kid, "n", T + 60_000).is_err(), "it is never taken back");
}

#[test]
fn revocation_that_comes_before_the_key_is_not_forgotten() {
    let [trust, one] = [(); 2].map(|()| KeyPair::new_user());
    let kid = one.public_key();
    let mut said = revoked(record(&kid, "n"), T / 1000);
    said.revocation = Some(sign(&trust, said.revocation()));
    let mut keys = keys(&[&trust], &[]);
    keys.introduce(&said);
    keys.introduce(&vouched(&trust, &kid, "n"));
    assert_eq!(keys.admit(&kid, "n", T), Err(Doubt::Bad("the key is revoked")));
}

#[test]
fn revoked_key_introduces_nobody() {
    let [one, two] = [(); 2].map(|()| KeyPair::new_user());
    let mut keys = keys(&[], &[&one]);
    keys.learn(&revoked(record(&one.public_key(), "n"), T / 1000))
        .expect("learns");
    keys.introduce(&introduced_by(&one, &two.public_key(), "n"));
    assert!(keys.admit(&two.public_key(), "n", T).is_err());
}

#[test]
fn pinned_key_belongs_to_the_manager_it_was_pinned_for_or_signs_for_first() {
    let one = KeyPair::new_user();
    let kid = one.public_key();
    let mut any = keys(&[], &[&one]);
    assert_eq!(any.admit(&kid, "n", 0), Ok(()));
    any.bind(&kid, "n");
    assert!(any.admit(&kid, "m", 0).is_err());
    assert!(any.learn(&record(&kid, "m")).is_err());
    let of = Keys::new(&Policy {
        pinned: [kid.clone()].into(),
        nodes: [(kid.clone(), "m".to_owned())].into(),
        ..Policy::default()
    });
    assert_eq!(of.admit(&kid, "m", 0), Ok(()));
    assert!(of.admit(&kid, "n", 0).is_err());
}

#[test]
fn validity_has_a_beginning_and_after_retirement_an_end() {
    let [trust, one] = [(); 2].map(|()| KeyPair::new_user());
    let kid = one.public_key();
    let mut keys = keys(&[&trust], &[]);
    let mut told = vouched(&trust, &kid, "n");
    keys.introduce(&told);
    assert!(keys.admit(&kid, "n", T - MAX_SKEW_MS - 1).is_err());
    assert_eq!(keys.admit(&kid, "n", T - MAX_SKEW_MS), Ok(()));
    told.status = KeyStatus::Retired;
    told.not_after = Some(T + 1000);
    keys.learn(&told).expect("learns");
    told.not_after = Some(T + 2000);
    keys.learn(&told).expect("learns");
    assert_eq!(keys.admit(&kid, "n", T + 1000 + MAX_SKEW_MS), Ok(()));
    assert!(keys.admit(&kid, "n", T + 1001 + MAX_SKEW_MS).is_err());
}

proptest! {
    /// Whatever a record says, only the trust key's signature under these very words makes its key believed.
    #[test]
    fn changed_record_is_never_believed(
        field in 0..6_usize,
        by in any::<u64>(),
        name in "[a-z]{1,4}",
        bit in 0..86_usize,
    ) {
        let trust = KeyPair::new_user();
        let (one, other) = (KeyPair::new_user(), KeyPair::new_user());
        let good = vouched(&trust, &one.public_key(), "n");
        let mut bad = good.clone();
        match field {
            0 => bad.kid = other.public_key(),
            1 => bad.node = name,
            2 => bad.not_before = by,
            3 => bad.epoch_from = by,
            4 => bad.prev_kid = Some(other.public_key()),
            _ => {
                if let Some(by) = &mut bad.trust {
                    let place = if by.sig.as_bytes()[bit] == b'A' { "Q" } else { "A" };
                    by.sig.replace_range(bit..=bit, place);
                }
            }
        }
        let mut keys = keys(&[&trust], &[]);
        keys.introduce(&bad);
        let believed = keys.admit(&bad.kid, &bad.node, u64::MAX).is_ok();
        prop_assert_eq!(believed, bad == good);
        keys.introduce(&good);
        prop_assert_eq!(keys.admit(&good.kid, "n", T), Ok(()));
    }
}
