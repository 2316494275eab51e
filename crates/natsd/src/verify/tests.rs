mod numbers;

use muster_config::EventFormat;
use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{
        Event,
        body::{SpoolGap, StatusChange, manager_event, wrapped},
        key::{CoSignature, KeyRecord, KeyStatus},
    },
};

use super::*;
use crate::{
    keys::{Keyring, Rules, create_if_missing},
    message::{Composer, Numbers},
    spool::record::{self, Mark},
};

const NOW: u64 = 1_795_243_200_000;

struct Node {
    composer: Composer,
    kid: String,
    _home: tempfile::TempDir,
    last: BTreeMap<Stream, u64>,
    next: u64,
}

impl Node {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("directory");
        let file = home.path().join("signing.nk");
        create_if_missing(&file).expect("makes a key");
        let (keyring, _) = Keyring::open(&file, home.path(), Rules::plain("mgr", 1), NOW).expect("opens");
        let kid = keyring.key_id().to_owned();
        let composer = Composer {
            prefix: "wazuh.xdr".to_owned(),
            node: "mgr".to_owned(),
            source: "wazuh-manager".to_owned(),
            version: "4.14.7".to_owned(),
            epoch: 1,
            history: false,
            format: EventFormat::Native,
            sealer: None,
            keyring: Some(keyring),
        };
        Self {
            composer,
            kid,
            _home: home,
            last: BTreeMap::new(),
            next: 1,
        }
    }

    fn say(&mut self, event: &Event) -> Message {
        let (seq, stream) = (self.next, event.kind.stream());
        self.next += 1;
        let prev = self.last.insert(stream, seq).unwrap_or(0);
        let mark = Mark {
            producer: "t".to_owned(),
            incarnation: 1,
            number: seq,
        };
        let stored = self.composer.compose(event, mark, Numbers { seq, prev }, None);
        Message {
            subject: stored.subject,
            headers: record::owned(stored.headers),
            body: stored.body,
            from_stream: true,
        }
    }

    fn change(&mut self) -> Message {
        let change = StatusChange {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            previous_status: AgentStatus::Active,
            current_status: AgentStatus::Disconnected,
            ip_address: "192.0.2.1",
            timestamp: NOW / 1000,
            reason: Reason::KeepaliveTimeout,
            missed_keepalives: 3,
            alert_level: 3,
        };
        self.say(&change.into_event(NOW))
    }

    fn gap(&mut self, seq: u64) -> Message {
        self.gap_of("MUSTER_STATE", &[(seq, seq)])
    }

    fn gap_of(&mut self, stream: &str, runs: &[(u64, u64)]) -> Message {
        let gap = SpoolGap {
            class: "P1",
            node: "mgr",
            epoch: self.composer.epoch,
            from_seq: runs[0].0,
            to_seq: runs[runs.len() - 1].1,
            count: 1,
            first_ts: 0,
            last_ts: 0,
            reason: "thinned",
            stream,
            prev_last_seq: None,
            producer: None,
            runs,
            spool_age: 0,
        };
        self.say(&gap.into_event(NOW))
    }

    /// As the node would announce its own key.
    fn record(&self) -> KeyRecord {
        KeyRecord::new(&self.kid, &self.composer.node, NOW, 1)
    }

    fn announce(&mut self, record: &KeyRecord) -> Message {
        let body = wrapped("key", record);
        self.say(&manager_event(Kind::KeyAnnouncement, "", NOW, 3, body))
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(Policy {
            pinned: [self.kid.clone()].into(),
            ..Policy::default()
        })
    }
}

fn step(verdict: &Verdict) -> &'static str {
    match &verdict.fate {
        Fate::Refuse { step, .. } => step,
        _ => "none",
    }
}

#[test]
fn signed_events_in_order_are_accepted_and_again_they_are_duplicates() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let messages: Vec<_> = (0..5).map(|_| node.change()).collect();
    for message in &messages {
        let verdict = verifier.check(message, NOW);
        assert_eq!(verdict.fate, Fate::Accept);
        let all = [
            "size",
            "version",
            "key",
            "signature",
            "subject",
            "identity",
            "time",
            "epoch",
            "sequence",
            "body",
            "gaps",
        ];
        assert_eq!(verdict.passed, all, "in the order of the documents");
    }
    assert!(
        messages
            .iter()
            .all(|message| verifier.check(message, NOW).fate == Fate::Duplicate)
    );
    assert_eq!(verifier.undeclared(), []);
}

#[test]
fn whatever_is_changed_is_refused() {
    let mut node = Node::new();
    let message = node.change();
    let verifier = || node.verifier();
    let mut changed = message.clone();
    changed.subject = "wazuh.xdr.agent.002.status_change".to_owned();
    assert_eq!(step(&verifier().check(&changed, NOW)), "subject");
    let mut changed = message.clone();
    changed.body[5] ^= 1;
    assert_eq!(step(&verifier().check(&changed, NOW)), "signature");
    for (name, value) in [
        (header::SUBJECT, "wazuh.xdr.agent.002.status_change"),
        (header::MSG_ID, "mgr:1:9"),
        (header::TIME, "1795243200001"),
        (header::PREVIOUS, "7"),
        (header::CONTENT_TYPE, "text/plain"),
        (header::SIGNATURE, "AAAA"),
        (header::ALGORITHM, "none"),
    ] {
        let mut changed = message.clone();
        let header = changed
            .headers
            .iter_mut()
            .find(|(other, _)| other == name)
            .expect("is there");
        header.1 = value.to_owned();
        assert_eq!(step(&verifier().check(&changed, NOW)), "signature", "{name}");
    }
    for (name, value) in [(header::SEQUENCE, "9"), (header::EPOCH, "2"), (header::NODE, "other")] {
        let mut changed = message.clone();
        let header = changed
            .headers
            .iter_mut()
            .find(|(other, _)| other == name)
            .expect("is there");
        header.1 = value.to_owned();
        assert_eq!(step(&verifier().check(&changed, NOW)), "identity", "{name}");
    }
    for (name, value, refused) in [
        (header::TYPE, "manager.health", "subject"),
        (header::TYPE, "agent.connection", "subject"),
        (header::STATUS, "disconnected>active", "body"),
    ] {
        let mut changed = message.clone();
        let header = changed.headers.iter_mut().find(|(other, _)| other == name);
        header.expect("is there").1 = value.to_owned();
        assert_eq!(step(&verifier().check(&changed, NOW)), refused, "{name}: {value}");
    }
    for name in message.headers.iter().map(|(name, _)| name) {
        let mut changed = message.clone();
        changed.headers.retain(|(other, _)| other != name);
        let fate = verifier().check(&changed, NOW).fate;
        let not_needed = name == header::STATUS;
        assert_eq!(fate == Fate::Accept, not_needed, "{name}: {fate:?}");
    }
}

#[test]
fn events_in_every_format_are_accepted_and_an_envelope_with_another_id_is_not() {
    for format in [
        EventFormat::Cloudevents,
        EventFormat::CloudeventsStructured,
        EventFormat::Ocsf,
    ] {
        let mut node = Node::new();
        node.composer.format = format;
        let mut verifier = node.verifier();
        for message in [node.change(), node.gap(5), node.change()] {
            assert_eq!(verifier.check(&message, NOW).fate, Fate::Accept, "{format:?}");
        }
        let hole = Hole {
            run: 0,
            after: 4,
            upto: Some(5),
        };
        assert!(verifier.declared["mgr"].covers(Stream::State, hole), "{format:?}");
    }
    let mut node = Node::new();
    node.composer.format = EventFormat::CloudeventsStructured;
    node.composer.keyring = None;
    let mut message = node.change();
    let text = String::from_utf8(message.body).expect("UTF-8");
    message.body = text.replace("\"id\":\"mgr:1:1\"", "\"id\":\"mgr:1:2\"").into_bytes();
    let mut lax = Verifier::new(Policy {
        signed: false,
        ..Policy::default()
    });
    assert_eq!(step(&lax.check(&message, NOW)), "body");
}

#[test]
fn key_that_nobody_knows_is_refused() {
    let mut node = Node::new();
    let mut verifier = Verifier::new(Policy::default());
    assert_eq!(step(&verifier.check(&node.change(), NOW)), "key");
}

#[test]
fn hole_is_told_until_it_is_filled_or_declared() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let messages: Vec<_> = (0..6).map(|_| node.change()).collect();
    for place in [0, 2, 5] {
        assert_eq!(verifier.check(&messages[place], NOW).fate, Fate::Accept);
    }
    let holes = |verifier: &Verifier| {
        verifier
            .undeclared()
            .iter()
            .map(|(_, _, hole)| (hole.after, hole.upto.expect("an end")))
            .collect::<Vec<_>>()
    };
    assert_eq!(holes(&verifier), [(1, 2), (3, 5)]);
    assert_eq!(verifier.check(&messages[1], NOW).fate, Fate::Accept);
    assert_eq!(verifier.check(&messages[3], NOW).fate, Fate::Accept);
    assert_eq!(holes(&verifier), [(4, 5)]);
    let gap = node.gap(5);
    assert_eq!(verifier.check(&gap, NOW).fate, Fate::Accept);
    assert_eq!(holes(&verifier), []);
}

#[test]
fn late_events_are_legal_from_a_stream_when_they_say_so() {
    let mut node = Node::new();
    let mut message = node.change();
    let later = NOW + 3_600_000;
    assert_eq!(step(&node.verifier().check(&message, later)), "time");
    message.headers.push((header::DELAYED.to_owned(), "3600".to_owned()));
    assert_eq!(node.verifier().check(&message, later).fate, Fate::Accept);
    message.from_stream = false;
    assert_eq!(step(&node.verifier().check(&message, later)), "time");
    message.from_stream = true;
    let much_later = NOW + 80 * 3_600_000;
    assert_eq!(
        node.verifier().check(&message, much_later).fate,
        Fate::Accept,
        "status changes are never dropped for their age"
    );
    let mut keepalive = node.say(&manager_event(
        Kind::Keepalive,
        "001",
        NOW,
        0,
        b"{\"event\":{}}".to_vec(),
    ));
    keepalive.headers.push((header::DELAYED.to_owned(), "3600".to_owned()));
    assert_eq!(node.verifier().check(&keepalive, later).fate, Fate::Accept);
    assert_eq!(step(&node.verifier().check(&keepalive, much_later)), "time");
    let mut history = node.verifier();
    history.read_history(true);
    let verdict = history.check(&keepalive, much_later);
    assert!(
        verdict.fate == Fate::Accept && !verdict.passed.contains(&"time"),
        "{verdict:?}"
    );
}

#[test]
fn endless_restarts_and_made_up_nodes_cost_bounded_memory_and_nothing_old_comes_back() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let first = node.change();
    assert_eq!(verifier.check(&first, NOW).fate, Fate::Accept);
    for epoch in 2..100 {
        node.composer.epoch = epoch;
        let announced = node.announce(&node.record());
        assert_eq!(verifier.check(&announced, NOW).fate, Fate::Accept);
        assert_eq!(verifier.check(&node.change(), NOW).fate, Fate::Accept);
    }
    assert!(verifier.chains.values().all(|chain| chain.windows() <= MAX_EPOCHS));
    assert_eq!(step(&verifier.check(&first, NOW)), REPLAY);

    let mut trusting = Verifier::new(Policy {
        signed: false,
        ..Policy::default()
    });
    node.composer.keyring = None;
    for number in 0..=MAX_CHAINS {
        node.composer.node = format!("node-{number}");
        let fate = trusting.check(&node.change(), NOW).fate;
        assert_eq!(fate == Fate::Accept, number < MAX_CHAINS);
    }
    assert_eq!(trusting.chains.len(), MAX_CHAINS);
}

/// Refused for now: what is missing is an announcement.
fn waits(verdict: &Verdict, step: &str) -> bool {
    verdict.unannounced && matches!(&verdict.fate, Fate::Refuse { step: failed, .. } if *failed == step)
}

#[test]
fn later_epoch_is_believed_when_it_was_announced() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    assert_eq!(verifier.check(&node.change(), NOW).fate, Fate::Accept);
    node.composer.epoch = 2;
    let announced = node.announce(&node.record());
    let change = node.change();
    assert!(waits(&verifier.check(&change, NOW), "epoch"));
    assert_eq!(verifier.hear(&announced).fate, Fate::Accept, "out of another stream");
    assert_eq!(verifier.check(&change, NOW).fate, Fate::Accept);
}

#[test]
fn copy_out_of_the_bucket_is_heard_and_no_other_message_is() {
    let mut node = Node::new();
    node.composer.epoch = 9;
    let mut copy = node.announce(&node.record());
    copy.subject = "$KV.muster_keys.mgr.x".to_owned();
    assert_eq!(node.verifier().hear(&copy).fate, Fate::Accept);
    let mut changed = copy.clone();
    changed.body.push(b' ');
    assert_eq!(step(&node.verifier().hear(&changed)), "signature");
    let mut moved = copy.clone();
    let header = moved.headers.iter_mut().find(|(name, _)| name == header::EPOCH);
    header.expect("is there").1 = "10".to_owned();
    assert_eq!(step(&node.verifier().hear(&moved)), "identity");
    assert_eq!(step(&node.verifier().hear(&node.change())), "announcement");
    let other = KeyRecord {
        node: "other".to_owned(),
        ..node.record()
    };
    let other = node.announce(&other);
    assert_eq!(step(&node.verifier().hear(&other)), "announcement");
    assert_eq!(step(&node.verifier().check(&other, NOW)), "announcement");
}

#[test]
fn who_pins_the_trust_key_believes_a_key_as_soon_as_it_is_co_signed() {
    let mut node = Node::new();
    let trust = nkeys::KeyPair::new_user();
    let mut verifier = Verifier::new(Policy {
        trust_keys: [trust.public_key()].into(),
        ..Policy::default()
    });
    let bare = node.announce(&node.record());
    let change = node.change();
    assert!(waits(&verifier.check(&bare, NOW), "key"), "it vouches for itself");
    assert!(waits(&verifier.check(&change, NOW), "key"));
    let mut record = node.record();
    let sign = |text: Option<String>| CoSignature {
        kid: trust.public_key(),
        sig: crate::signature::text(&trust.sign(text.expect("a statement").as_bytes()).expect("signs")),
    };
    record.trust = Some(sign(record.introduction()));
    let announced = node.announce(&record);
    let verdict = verifier.check(&announced, NOW);
    assert_eq!(verdict.fate, Fate::Accept);
    assert_eq!(verdict.passed.last(), Some(&"announcement"));
    assert_eq!(verifier.check(&change, NOW).fate, Fate::Accept);

    record.status = KeyStatus::Revoked;
    (record.revoked_at, record.compromised_since) = (Some(NOW / 1000), Some(NOW / 1000));
    let unsigned = node.announce(&record);
    assert_eq!(step(&verifier.check(&unsigned, NOW)), "announcement");
    assert_eq!(
        verifier.check(&node.change(), NOW).fate,
        Fate::Accept,
        "the thief's word counts for nothing"
    );
    record.revocation = Some(sign(record.revocation()));
    let signed = node.announce(&record);
    assert_eq!(
        step(&verifier.check(&signed, NOW)),
        "key",
        "and that is the end of this key"
    );
    assert_eq!(step(&verifier.check(&node.change(), NOW)), "key");
}

/// A message of an unsigned node, with another body. Only what the steps behind the signature say can refuse it.
fn bent(kind: Kind, key: &str, body: &Value) -> Verdict {
    let mut node = Node::new();
    node.composer.keyring = None;
    let message = node.say(&manager_event(kind, key, NOW, 0, body.to_string().into_bytes()));
    let mut lax = Verifier::new(Policy {
        signed: false,
        ..Policy::default()
    });
    lax.check(&message, NOW)
}

#[test]
fn body_that_speaks_of_another_number_node_or_agent_is_refused() {
    use serde_json::json;

    let fails = |kind, key: &str, body| step(&bent(kind, key, &body));
    let good = json!({"health": {"manager_node": "mgr"}, "security": {"sequence": 1}});
    assert_eq!(bent(Kind::Health, "", &good).fate, Fate::Accept);
    for sequence in [json!(2), json!("1"), json!(null)] {
        let body = json!({"health": {"manager_node": "mgr"}, "security": {"sequence": sequence}});
        assert_eq!(fails(Kind::Health, "", body), "body");
    }
    for (kind, key) in [
        (Kind::Health, ""),
        (Kind::Enrolled, "001"),
        (Kind::EnrollmentRejected, ""),
        (Kind::KeyPolling, "requested"),
        (Kind::Agentless, "host.type.ok"),
    ] {
        let of = |node: &str| json!({"x": {"manager_node": node}});
        assert_eq!(bent(kind, key, &of("mgr")).fate, Fate::Accept, "{kind:?}");
        assert_eq!(fails(kind, key, of("other")), "body", "{kind:?}");
    }
    assert_eq!(fails(Kind::Health, "", json!({"health": {"manager_node": 7}})), "body");
    for kind in [
        Kind::Keepalive,
        Kind::StatusChange,
        Kind::Connection,
        Kind::Enrolled,
        Kind::Removed,
        Kind::KeyRotated,
        Kind::Renamed,
        Kind::ControlResult,
    ] {
        let of = |agent: &str| json!({"x": {"agent_id": agent}});
        assert_eq!(bent(kind, "001", &of("001")).fate, Fate::Accept, "{kind:?}");
        for other in ["002", "wazuh", "agent", "manager", "keepalive", "status_change"] {
            assert_eq!(fails(kind, "001", of(other)), "body", "{kind:?} about {other}");
        }
        assert_eq!(fails(kind, "001", json!({"x": {"agent_id": 1}})), "body", "{kind:?}");
    }
    let foreign = json!({"agent": {"agent_id": "7", "manager_node": "host"}});
    assert_eq!(
        bent(Kind::RuleAlert, "001", &foreign).fate,
        Fate::Accept,
        "the ruleset's own"
    );
}

#[test]
fn headers_that_are_many_large_or_there_twice_are_refused_first() {
    let mut node = Node::new();
    let message = node.change();
    let with = |name: &str, value: &str| {
        let mut changed = message.clone();
        changed.headers.push((name.to_owned(), value.to_owned()));
        node.verifier().check(&changed, NOW)
    };
    assert_eq!(with("Nats-Time-Stamp", "x").fate, Fate::Accept, "a server's own");
    assert_eq!(step(&with("X", &"x".repeat(MAX_HEADERS_LEN))), "size");
    for (name, value) in &message.headers {
        let refused = with(name, value);
        assert_eq!((step(&refused), refused.passed.len()), ("size", 0), "{name} twice");
        assert_eq!(
            step(&with(&name.to_uppercase(), value)),
            "size",
            "{name} in other letters"
        );
    }
    let mut many = message.clone();
    many.headers
        .extend((0..MAX_HEADERS).map(|number| (format!("X-{number}"), String::new())));
    assert_eq!(step(&node.verifier().check(&many, NOW)), "size");
    let mut large = message.clone();
    large.body = vec![b' '; MAX_BODY_LEN + 1];
    assert_eq!(step(&node.verifier().check(&large, NOW)), "size");
}

#[test]
fn message_that_names_itself_or_a_later_one_as_the_one_before_is_refused() {
    let mut node = Node::new();
    node.next = 7;
    node.last.insert(Stream::State, 7);
    assert_eq!(step(&node.verifier().check(&node.change(), NOW)), "identity");
}

#[test]
fn event_under_the_subject_of_another_node_is_refused() {
    let mut node = Node::new();
    node.composer.keyring = None;
    let lax = || {
        Verifier::new(Policy {
            signed: false,
            ..Policy::default()
        })
    };
    for (kind, key) in [
        (Kind::Health, ""),
        (Kind::Audit, ""),
        (Kind::EnrollmentRejected, ""),
        (Kind::KeyPolling, "failed"),
    ] {
        let mut message = node.say(&manager_event(kind, key, NOW, 0, b"{}".to_vec()));
        assert_eq!(lax().check(&message, NOW).fate, Fate::Accept);
        message.subject = message.subject.replace(".mgr", ".other");
        let header = message.headers.iter_mut().find(|(name, _)| name == header::SUBJECT);
        header.expect("is there").1.clone_from(&message.subject);
        assert_eq!(step(&lax().check(&message, NOW)), "subject", "{kind:?}");
    }
}

#[test]
fn number_is_looked_at_before_the_box_and_the_body() {
    let mut node = Node::new();
    node.composer.keyring = None;
    let mut lax = Verifier::new(Policy {
        signed: false,
        recipient: Some(XKey::new()),
        ..Policy::default()
    });
    let message = node.change();
    let mut sealed = message.clone();
    sealed
        .headers
        .push((header::SEALED.to_owned(), "xkv1;from=X;to=y".to_owned()));
    assert_eq!(step(&lax.check(&sealed, NOW)), "seal");
    let mut garbled = message.clone();
    garbled.body = b"{".to_vec();
    assert_eq!(step(&lax.check(&garbled, NOW)), "body");
    assert_eq!(
        lax.check(&message, NOW).fate,
        Fate::Accept,
        "what was refused has not used the number up"
    );
    for changed in [&sealed, &garbled] {
        assert_eq!(lax.check(changed, NOW).fate, Fate::Duplicate);
    }
}
