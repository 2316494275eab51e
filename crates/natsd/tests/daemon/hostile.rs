//! A broker that lies about keys: it has every right to write into streams and buckets, and nobody believes it.

use muster_natsd::verify::{Fate, Message, Policy, Verifier};
use muster_proto::event::{
    header,
    key::{CoSignature, KeyRecord, KeyStatus},
    preamble::Preamble,
};
use nkeys::KeyPair;
use serde_json::json;

use crate::{
    block_on, json, producer,
    trusted::{Trusted, sign},
    wait_for,
};

/// The message as this key would have signed it.
fn signed_anew(mut message: Message, key: &KeyPair, changes: &[(&str, String)]) -> Message {
    message
        .headers
        .retain(|(name, _)| name.starts_with("Muster-") || name == header::CONTENT_TYPE);
    let kid = key.public_key();
    for (name, value) in changes.iter().cloned().chain([(header::KEY_ID, kid)]) {
        message.headers.retain(|(other, _)| other != name);
        message.headers.push((name.to_owned(), value));
    }
    let of = |name: &str| message.header(name).unwrap_or_default().to_owned();
    let id = format!("{}:{}:{}", of(header::NODE), of(header::EPOCH), of(header::SEQUENCE));
    message.headers.push((header::MSG_ID.to_owned(), id));
    let preamble = Preamble::of(|name| message.header(name)).expect("all headers");
    let text = String::from_utf8(preamble.signed_bytes(&message.body)).expect("text");
    let sig = sign(key, Some(text)).sig;
    message.headers.retain(|(name, _)| name != header::SIGNATURE);
    message.headers.push((header::SIGNATURE.to_owned(), sig));
    message
}

/// The hostile key, as somebody would like it to be announced.
fn forged(model: &KeyRecord, hostile: &KeyPair) -> KeyRecord {
    let mut record = KeyRecord {
        kid: hostile.public_key(),
        prev_kid: Some(model.kid.clone()),
        ..model.clone()
    };
    record.prev_sig = Some(sign(hostile, record.introduction()).sig);
    record
}

#[test]
fn announcement_forged_in_the_bucket_and_on_the_subject_is_not_believed() {
    let site = Trusted::start();
    let mut producer = producer(&site.home);
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    site.home.wait_until_all_is_published();
    let (good, refused) = site.verify();
    // The first announcement and what followed it came before the trust key had signed; the bucket tells of it.
    assert!(good.status.success() && refused.is_empty(), "{good:?}");

    let hostile = KeyPair::new_user();
    let model = site.keys().remove(0).record;
    let announced = site.stream("MUSTER_AUDIT");
    let announced = announced
        .iter()
        .rfind(|message| message.subject.contains(".keys."))
        .expect("one")
        .clone();
    let change = site.stream("MUSTER_STATE").remove(0);
    let number = |number: u64| (header::SEQUENCE, number.to_string());
    let mut sent = Vec::new();
    // With the signature of the real one, with one of its own in the trust key's name, and with none.
    let borrowed = forged(&model, &hostile);
    let mut own = borrowed.clone();
    own.trust = Some(CoSignature {
        kid: site.trust.public_key(),
        sig: sign(&hostile, own.introduction()).sig,
    });
    let mut bare = borrowed.clone();
    bare.trust = None;
    for (place, record) in [borrowed, own, bare].iter().enumerate() {
        let mut message = announced.clone();
        message.body = json!({"key": record}).to_string().into_bytes();
        let seq = 1_000_000 + u64::try_from(place).expect("small");
        let message = signed_anew(message, &hostile, &[number(seq)]);
        site.store(&announced.subject, &message);
        site.store(&format!("$KV.muster_keys.mgr-a.{}", hostile.public_key()), &message);
        sent.push(message);
    }
    // An event of it; and the real key's record with words that the trust key has not signed.
    let event = signed_anew(change.clone(), &hostile, &[number(1_000_010)]);
    site.store(&change.subject, &event);
    let mut later = model.clone();
    later.status = KeyStatus::Revoked;
    (later.revoked_at, later.compromised_since) = (Some(1), Some(1));
    later.revocation = Some(sign(&hostile, later.revocation()));
    let mut message = announced.clone();
    message.body = json!({"key": later}).to_string().into_bytes();
    let message = signed_anew(message, &hostile, &[number(1_000_003)]);
    site.store(&announced.subject, &message);
    site.store(&format!("$KV.muster_keys.mgr-a.{}", model.kid), &message);

    producer.put(producer::change(2, 0));
    block_on(producer.hand_over_all());
    site.home.wait_until_all_is_published();
    let (output, refused) = site.verify();
    assert!(!output.status.success());
    let failed: Vec<_> = refused
        .iter()
        .map(|line| line["failed"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(failed, ["key"; 5], "the four announcements and the event: {refused:?}");
    assert!(
        refused.iter().all(|line| line["key"] == hostile.public_key()),
        "{refused:?}"
    );

    // A consumer who reads along comes to the same.
    let mut verifier = Verifier::new(Policy {
        trust_keys: [site.trust.public_key()].into(),
        max_age_ms: None,
        ..Policy::default()
    });
    for message in sent.iter().chain([&message, &event]) {
        assert!(matches!(verifier.hear(message).fate, Fate::Refuse { .. }));
        assert!(matches!(verifier.check(message, 0).fate, Fate::Refuse { .. }));
    }
    assert_eq!(verifier.hear(&announced).fate, Fate::Accept);
    assert_eq!(verifier.check(&change, 0).fate, Fate::Accept);
    assert!(matches!(
        verifier.check(&event, 0).fate,
        Fate::Refuse { step: "key", .. }
    ));
}

#[test]
fn old_announcement_that_the_broker_shows_again_takes_no_revocation_back() {
    let site = Trusted::start();
    let first = site.keys().remove(0).record;
    let entries = site.stream("KV_muster_keys");
    let old = entries
        .iter()
        .rfind(|message| json(message)["key"]["kid"] == first.kid.as_str());
    let old = old.expect("an entry").clone();
    let second = KeyPair::new_user();
    site.append(&format!("{}\n", second.seed().expect("a seed")));
    site.vouch();
    wait_for("the second key signs", || {
        site.keys()
            .iter()
            .any(|key| key.in_force && key.record.kid == second.public_key())
    });
    let mut revoked = site.keys().remove(0).record;
    revoked.status = KeyStatus::Revoked;
    (revoked.revoked_at, revoked.compromised_since) = (Some(first.not_before / 1000), Some(first.not_before / 1000));
    revoked.revocation = Some(sign(&site.trust, revoked.revocation()));
    site.append(&format!("signed {}\n", json!(revoked)));
    wait_for("the mirror has the revocation", || {
        site.stream("KV_muster_keys")
            .iter()
            .any(|message| json(message)["key"]["status"] == "revoked")
    });
    site.store(&format!("$KV.muster_keys.mgr-a.{}", first.kid), &old);
    let mut producer = producer(&site.home);
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    site.home.wait_until_all_is_published();
    let (output, refused) = site.verify();
    assert!(!output.status.success(), "what the first key has signed is refused");
    assert!(!refused.is_empty());
    for line in &refused {
        assert_eq!(
            (&line["failed"], &line["key"]),
            (&json!("key"), &json!(first.kid)),
            "{line}"
        );
    }
    let (state, by) = (site.stream("MUSTER_STATE"), second.public_key());
    assert_eq!(state[0].header(header::KEY_ID), Some(by.as_str()));
}
