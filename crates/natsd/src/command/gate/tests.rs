use std::time::Duration;

use muster_config::ControlKey;
use muster_proto::{agent::AgentId, command::Unsigned};
use nkeys::KeyPair;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::signature::text;

const START: u64 = 1_795_243_200_000;
const NONCE: &str = "0123456789abcdef";

fn at(ms: u64) -> Now {
    // One beginning for all tests: instants only have differences.
    static BEGUN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    Now {
        unix_ms: START + ms,
        instant: *BEGUN + Duration::from_millis(ms),
    }
}

struct Desk {
    gate: Gate,
    key: KeyPair,
}

fn settings(key: &KeyPair, roles: &[ControlRole]) -> Nats {
    Nats {
        subject_prefix: "wazuh.xdr".to_owned(),
        control: Control {
            enabled: true,
            destroy: false,
            active_responses: vec!["firewall-drop600".to_owned()],
        },
        control_keys: vec![ControlKey {
            id: "soc".to_owned(),
            roles: roles.to_vec(),
            key: key.public_key(),
            ..ControlKey::default()
        }],
        ..Nats::default()
    }
}

fn desk(roles: &[ControlRole]) -> Desk {
    let key = KeyPair::new_user();
    let gate = Gate::new(&settings(&key, roles), "mgr-a", at(0)).expect("a key");
    Desk { gate, key }
}

fn acting() -> Desk {
    desk(&[ControlRole::Read, ControlRole::Act])
}

/// A request and what a test makes of it before and behind the signature.
struct Sent {
    subject: String,
    inbox: Option<String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Sent {
    fn header(&mut self, name: &str) -> &mut String {
        let found = self.headers.iter_mut().find(|(other, _)| other == name);
        &mut found.expect("the header").1
    }
}

fn sign(key: &KeyPair, subject: &str, nonce: &str, time_ms: u64, body: Vec<u8>) -> Sent {
    let unsigned = Unsigned {
        subject: subject.to_owned(),
        message_id: nonce.to_owned(),
        time_ms,
        body,
    };
    let headers = unsigned.sign(&key.public_key(), |bytes| text(&key.sign(bytes).expect("signs")));
    Sent {
        subject: subject.to_owned(),
        inbox: Some("_INBOX.soc.x".to_owned()),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        body: unsigned.body,
    }
}

/// Of an agent's verb, signed `ms` behind the start and good for 20 s.
fn request(key: &KeyPair, verb: &str, nonce: &str, ms: u64) -> Sent {
    let exp = (START + ms) / 1000 + 20;
    let body = json!({"exp": exp, "nonce": nonce}).to_string().into_bytes();
    sign(
        key,
        &format!("wazuh.xdr.control.mgr-a.agent.001.{verb}"),
        nonce,
        START + ms,
        body,
    )
}

impl Desk {
    fn judge(&mut self, sent: &Sent, ms: u64) -> Judgement {
        let headers: Vec<_> = sent
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let incoming = Incoming {
            subject: &sent.subject,
            inbox: sent.inbox.as_deref(),
            headers: &headers,
            body: &sent.body,
        };
        self.gate.judge(&incoming, at(ms))
    }

    fn refusal(&mut self, sent: &Sent, ms: u64) -> Refusal {
        self.judge(sent, ms).verdict.expect_err("is refused")
    }
}

const LATER: u64 = 60_000;

#[test]
fn signed_request_of_a_listed_key_is_granted_with_who_asked_what() {
    let mut desk = acting();
    let sent = request(&desk.key, "restart", NONCE, LATER);
    let judgement = desk.judge(&sent, LATER + 100);
    let grant = judgement.verdict.expect("granted");
    assert_eq!(grant.address.verb, Verb::AgentRestart);
    assert_eq!(grant.address.agent, Some(AgentId::new("001")));
    assert_eq!(judgement.signer.expect("a signer").id, "soc");
    assert_eq!(judgement.nonce, NONCE);
    assert!(judgement.heard);
}

#[test]
fn a_permission_alone_gives_nothing_without_a_signature() {
    let mut desk = acting();
    let mut sent = request(&desk.key, "restart", NONCE, LATER);
    sent.headers.clear();
    assert_eq!(desk.refusal(&sent, LATER), Refusal::Unsigned);
    let judgement = desk.judge(&sent, LATER);
    assert_eq!((judgement.signer, judgement.nonce.as_str()), (None, ""));
}

#[test]
fn whatever_is_changed_behind_the_signature_breaks_it() {
    let mut desk = acting();
    let key = KeyPair::from_seed(&desk.key.seed().expect("a seed")).expect("the same key");
    let fresh = || request(&key, "restart", NONCE, LATER);
    let mut sent = fresh();
    sent.body = sent
        .body
        .iter()
        .map(|byte| if *byte == b'f' { b'e' } else { *byte })
        .collect();
    assert_eq!(desk.refusal(&sent, LATER), Refusal::BadSignature);
    let mut sent = fresh();
    *sent.header(header::TIME) = (START + LATER + 1).to_string();
    assert_eq!(desk.refusal(&sent, LATER), Refusal::BadSignature);
    let mut sent = fresh();
    *sent.header(header::MSG_ID) = "another-nonce-0000".to_owned();
    assert_eq!(desk.refusal(&sent, LATER), Refusal::BadSignature);
    let mut sent = fresh();
    *sent.header(header::SIGNATURE) = "AAAA".to_owned();
    assert_eq!(desk.refusal(&sent, LATER), Refusal::BadSignature);
    let mut sent = fresh();
    sent.subject = sent.subject.replace("001", "002");
    assert_eq!(desk.refusal(&sent, LATER), Refusal::WrongSubject);
    let subject = sent.subject.clone();
    *sent.header(header::SUBJECT) = subject;
    assert_eq!(desk.refusal(&sent, LATER), Refusal::BadSignature);
    assert!(
        desk.judge(&fresh(), LATER).verdict.is_ok(),
        "the original was not used up"
    );
}

#[test]
fn key_that_is_not_listed_is_refused_even_when_its_signature_fits() {
    let mut desk = acting();
    let sent = request(&KeyPair::new_user(), "restart", NONCE, LATER);
    assert_eq!(desk.refusal(&sent, LATER), Refusal::UnknownKey);
}

#[test]
fn request_is_worth_nothing_from_its_expiry_on() {
    let mut desk = acting();
    let sent = request(&desk.key, "restart", NONCE, LATER);
    assert_eq!(desk.refusal(&sent, LATER + 20_000), Refusal::Expired);
    assert_eq!(
        desk.refusal(&sent, LATER),
        Refusal::Expired,
        "nor when the clock is set back"
    );
}

#[test]
fn request_may_not_live_longer_than_half_a_minute() {
    let mut desk = acting();
    let body = |exp: u64| json!({"exp": exp, "nonce": NONCE}).to_string().into_bytes();
    let subject = "wazuh.xdr.control.mgr-a.agent.001.restart";
    let (time, second) = (START + LATER, (START + LATER) / 1000);
    let sent = sign(&desk.key, subject, NONCE, time, body(second + 31));
    assert_eq!(desk.refusal(&sent, LATER), Refusal::TooLongLived);
    let sent = sign(&desk.key, subject, NONCE, time, body(u64::MAX));
    assert_eq!(desk.refusal(&sent, LATER), Refusal::TooLongLived);
    let sent = sign(&desk.key, subject, NONCE, time, body(second + 30));
    assert!(desk.judge(&sent, LATER).verdict.is_ok());
}

#[test]
fn request_from_the_future_is_refused_but_for_a_little_skew() {
    let mut desk = acting();
    let sent = request(&desk.key, "restart", NONCE, LATER);
    assert_eq!(desk.refusal(&sent, LATER - SKEW_MS - 1), Refusal::FromTheFuture);
    assert!(desk.judge(&sent, LATER - SKEW_MS).verdict.is_ok());
}

#[test]
fn nonce_is_good_once_and_another_key_may_use_it_too() {
    let mut desk = acting();
    let sent = request(&desk.key, "restart", NONCE, LATER);
    assert!(desk.judge(&sent, LATER).verdict.is_ok());
    assert_eq!(desk.refusal(&sent, LATER + 1), Refusal::Replayed);
    let again = request(&desk.key, "reload", NONCE, LATER + 6000);
    assert_eq!(desk.refusal(&again, LATER + 6000), Refusal::Replayed, "another verb");
    let other = KeyPair::new_user();
    let mut both = settings(&desk.key, &[ControlRole::Act]);
    both.control_keys
        .extend(settings(&other, &[ControlRole::Act]).control_keys);
    desk.gate.configure(&both, at(LATER)).expect("keys");
    let others = request(&other, "restart", NONCE, LATER);
    assert!(desk.judge(&others, LATER).verdict.is_ok());
    assert_eq!(
        desk.refusal(&sent, LATER + 2),
        Refusal::Replayed,
        "also behind a reload"
    );
}

#[test]
fn nonces_are_forgotten_only_when_their_requests_have_expired() {
    let mut desk = acting();
    let sent = request(&desk.key, "restart", NONCE, LATER);
    assert!(desk.judge(&sent, LATER).verdict.is_ok());
    assert_eq!(desk.refusal(&sent, LATER + 19_999), Refusal::Replayed);
    assert_eq!(desk.refusal(&sent, LATER + 40_000), Refusal::Expired);
    assert_eq!(desk.gate.nonces.len(), 0);
}

#[test]
fn what_an_earlier_process_may_have_granted_is_refused() {
    let mut desk = acting();
    for ms in [0, SKEW_MS] {
        let sent = request(&desk.key, "restart", NONCE, ms);
        assert_eq!(desk.refusal(&sent, 1000), Refusal::BeforeStart, "{ms}");
    }
    let sent = request(&desk.key, "restart", NONCE, SKEW_MS + 1);
    assert!(desk.judge(&sent, SKEW_MS + 1).verdict.is_ok());
}

#[test]
fn role_must_be_listed_and_none_includes_another() {
    for (roles, verb) in [
        (&[ControlRole::Read][..], "restart"),
        (&[ControlRole::Act], "status"),
        (&[ControlRole::Read, ControlRole::Act], "remove"),
    ] {
        let mut desk = desk(roles);
        let sent = request(&desk.key, verb, NONCE, LATER);
        let judgement = desk.judge(&sent, LATER);
        assert_eq!(judgement.verdict, Err(Refusal::Role), "{verb}");
        assert!(judgement.signer.is_some(), "it is known who has tried");
    }
}

#[test]
fn agents_are_removed_only_when_that_is_switched_on() {
    let mut desk = desk(&[ControlRole::Destroy]);
    let sent = request(&desk.key, "remove", NONCE, LATER);
    assert_eq!(desk.refusal(&sent, LATER), Refusal::DestroyOff);
    let mut on = settings(&desk.key, &[ControlRole::Destroy]);
    on.control.destroy = true;
    desk.gate.configure(&on, at(LATER)).expect("a key");
    let sent = request(&desk.key, "remove", "another-nonce-0000", LATER);
    assert!(desk.judge(&sent, LATER).verdict.is_ok());
}

#[test]
fn key_that_is_taken_out_is_refused_from_the_reload_on() {
    let mut desk = acting();
    let without = Nats {
        control_keys: Vec::new(),
        ..settings(&desk.key, &[])
    };
    desk.gate.configure(&without, at(LATER)).expect("no keys");
    let sent = request(&desk.key, "restart", NONCE, LATER);
    assert_eq!(desk.refusal(&sent, LATER), Refusal::UnknownKey);
}

#[test]
fn rate_is_each_keys_own_and_comes_back_with_time() {
    let mut desk = acting();
    let mut granted = 0;
    for number in 0..30 {
        let sent = request(&desk.key, "status", &format!("nonce-{number:012}"), LATER);
        match desk.judge(&sent, LATER).verdict {
            Ok(_) => granted += 1,
            Err(refusal) => assert_eq!(refusal, Refusal::OverRate),
        }
    }
    assert_eq!(granted, 20, "the burst");
    let sent = request(&desk.key, "status", "nonce-much-later", LATER + 1000);
    assert!(desk.judge(&sent, LATER + 1000).verdict.is_ok());
}

#[test]
fn overheard_request_does_not_use_up_its_owners_rate() {
    let mut desk = acting();
    let sent = request(&desk.key, "status", NONCE, LATER);
    assert!(desk.judge(&sent, LATER).verdict.is_ok());
    for _ in 0..100 {
        assert_eq!(desk.refusal(&sent, LATER), Refusal::Replayed);
    }
    let sent = request(&desk.key, "status", "another-nonce-0000", LATER);
    assert!(desk.judge(&sent, LATER).verdict.is_ok());
}

#[test]
fn flood_of_strangers_is_counted_and_not_written_down() {
    let mut desk = acting();
    let mut sent = request(&desk.key, "restart", NONCE, LATER);
    sent.headers.clear();
    let heard = (0..1000).filter(|_| desk.judge(&sent, LATER).heard).count();
    assert_eq!(heard, 30);
    let good = request(&desk.key, "restart", NONCE, LATER);
    assert!(desk.judge(&good, LATER).verdict.is_ok(), "and keeps no operator out");
}

#[test]
fn signatures_are_checked_only_so_often() {
    let mut desk = acting();
    let mut sent = request(&desk.key, "restart", NONCE, LATER);
    *sent.header(header::TIME) = (START + LATER + 1).to_string();
    let refusals: Vec<_> = (0..500).map(|_| desk.refusal(&sent, LATER)).collect();
    let checked = refusals.iter().filter(|refusal| **refusal == Refusal::BadSignature);
    assert_eq!(checked.count(), 400);
    assert!(refusals.contains(&Refusal::Busy));
}

#[test]
fn other_managers_requests_are_refused() {
    let mut desk = acting();
    let body = json!({"exp": (START + LATER) / 1000 + 20, "nonce": NONCE}).to_string();
    let subject = "wazuh.xdr.control.mgr-b.agent.001.restart";
    let sent = sign(&desk.key, subject, NONCE, START + LATER, body.clone().into_bytes());
    assert_eq!(desk.refusal(&sent, LATER), Refusal::OtherManager);
    let mut moved = sent;
    moved.subject = moved.subject.replace("mgr-b", "mgr-a");
    assert_eq!(desk.refusal(&moved, LATER), Refusal::WrongSubject);
    let subject = "wazuh.xdr.control.any.agent.001.restart";
    let sent = sign(&desk.key, subject, NONCE, START + LATER, body.into_bytes());
    assert!(desk.judge(&sent, LATER).verdict.is_ok(), "any is for us too");
}

#[test]
fn reply_goes_to_an_inbox_that_is_not_ours_and_nowhere_else() {
    let mut desk = acting();
    let mut sent = request(&desk.key, "status", NONCE, LATER);
    for inbox in [
        "$KV.agents.001",
        "$JS.API.STREAM.DELETE.MUSTER_STATE",
        "wazuh.xdr.agent.001.status_change",
        "wazuh.xdr.control.mgr-b.agent.001.restart",
        "_INBOX.natsd.abc.a.0.1",
        "_INBOX.natsd",
        "",
    ] {
        sent.inbox = Some(inbox.to_owned());
        assert_eq!(desk.refusal(&sent, LATER), Refusal::Inbox, "{inbox}");
    }
    for (place, inbox) in [Some("_INBOX.abc.1"), Some("_INBOX.natsd2.x"), Some("_R_.abc"), None]
        .into_iter()
        .enumerate()
    {
        let mut sent = request(&desk.key, "status", &format!("nonce-of-the-{place:04}"), LATER);
        sent.inbox = inbox.map(str::to_owned);
        assert!(desk.judge(&sent, LATER).verdict.is_ok(), "{inbox:?}");
    }
}

#[test]
fn unknown_verbs_and_ids_that_are_none_are_refused() {
    let mut desk = acting();
    let sent = request(&desk.key, "explode", NONCE, LATER);
    assert_eq!(desk.refusal(&sent, LATER), Refusal::UnknownVerb);
    for id in ["all", "-1", "000000001", "1;reboot"] {
        let mut sent = request(&desk.key, "restart", NONCE, LATER);
        sent.subject = format!("wazuh.xdr.control.mgr-a.agent.{id}.restart");
        assert_eq!(desk.refusal(&sent, LATER), Refusal::Subject, "{id}");
    }
}

#[test]
fn oversize_is_refused_before_anything_is_read() {
    let mut desk = acting();
    let mut sent = request(&desk.key, "restart", NONCE, LATER);
    sent.body.resize(MAX_BODY_LEN + 1, b' ');
    assert_eq!(desk.refusal(&sent, LATER), Refusal::Oversize);
    let mut sent = request(&desk.key, "restart", NONCE, LATER);
    sent.headers.push(("x".to_owned(), "x".repeat(MAX_HEADER_LEN + 1)));
    assert_eq!(desk.refusal(&sent, LATER), Refusal::Oversize);
}

#[test]
fn signed_body_must_be_a_request_and_nothing_else() {
    let mut desk = acting();
    let subject = "wazuh.xdr.control.mgr-a.agent.001.restart";
    let exp = (START + LATER) / 1000 + 20;
    for body in [
        json!("x"),
        json!({"nonce": NONCE}),
        json!({"exp": exp, "nonce": "short"}),
        json!({"exp": exp, "nonce": "another-nonce-0000"}),
        json!({"exp": -1, "nonce": NONCE}),
        json!({"exp": exp, "nonce": NONCE, "extra": 1}),
        json!({"exp": exp, "nonce": NONCE, "arguments": {"x": 1}}),
    ] {
        let sent = sign(&desk.key, subject, NONCE, START + LATER, body.to_string().into_bytes());
        assert_eq!(desk.refusal(&sent, LATER), Refusal::Body, "{body}");
    }
}

#[test]
fn only_listed_active_responses_are_granted() {
    let mut desk = acting();
    let subject = "wazuh.xdr.control.mgr-a.agent.001.ar";
    let exp = (START + LATER) / 1000 + 20;
    let mut ask = |arguments: Value, nonce: &str| {
        let body = json!({"exp": exp, "nonce": nonce, "arguments": arguments}).to_string();
        let sent = sign(&desk.key, subject, nonce, START + LATER, body.into_bytes());
        desk.judge(&sent, LATER).verdict
    };
    let good = json!({"command": "firewall-drop600", "extra_args": ["a b"], "alert": {"data": {"srcip": "192.0.2.7"}}});
    let grant = ask(good, "nonce-of-the-good-one").expect("granted");
    assert_eq!(grant.respond.expect("a response").extra_args, ["a b"]);
    for (place, (arguments, refusal)) in [
        (json!({"command": "restart-wazuh0"}), Refusal::NotListed),
        (json!({"command": "firewall-drop600 "}), Refusal::NotListed),
        (json!({}), Refusal::Body),
        (json!({"command": 7}), Refusal::Body),
        (json!({"command": "firewall-drop600", "extra_args": "a"}), Refusal::Body),
        (
            json!({"command": "firewall-drop600", "extra_args": ["a\n"]}),
            Refusal::Body,
        ),
        (json!({"command": "firewall-drop600", "alert": []}), Refusal::Body),
        (json!({"command": "firewall-drop600", "then": "x"}), Refusal::Body),
    ]
    .into_iter()
    .enumerate()
    {
        let verdict = ask(arguments.clone(), &format!("nonce-of-the-{place:04}"));
        assert_eq!(verdict, Err(refusal), "{arguments}");
    }
}

#[test]
fn key_whose_checksum_does_not_fit_is_named() {
    let mut bad = settings(&KeyPair::new_user(), &[]);
    bad.control_keys[0].key = format!("U{}", "A".repeat(55));
    let error = Gate::new(&bad, "mgr-a", at(0)).expect_err("is no key");
    assert!(error.to_string().contains("\"soc\""), "{error}");
}

proptest! {
    #[test]
    fn garbage_is_never_granted(
        subject in ".{0,80}", names in prop::collection::vec("(Muster|Nats)-[A-Za-z-]{1,8}", 0..8), value in ".{0,40}",
        body in prop::collection::vec(any::<u8>(), 0..200), ms in 0_u64..100_000,
    ) {
        let mut desk = acting();
        let headers = names.into_iter().map(|name| (name, value.clone())).collect();
        let sent = Sent { subject, inbox: None, headers, body };
        prop_assert!(desk.judge(&sent, ms).verdict.is_err());
    }
}
