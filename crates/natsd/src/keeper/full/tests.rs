use std::{collections::BTreeMap, path::Path, sync::Arc};

use muster_config::{EventFormat, SpoolFsync};
use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{
        Stream,
        body::{Enrollment, StatusChange, manager_event},
    },
    ipc::events::NumberedEvent,
};
use tokio::sync::oneshot;

use super::*;
use crate::{
    audit::Audit,
    keeper::Parts,
    message::Composer,
    sequence::{Elsewhere, Sequencer},
    spool::{Limits, SEGMENT_LEN, Spool, record},
    status::{Counters, Hearing, Link, Report},
    verify::{Fate, Message, Policy, Verifier},
};

const NODE: &str = "mgr-a";
/// Padding, so that a spool is full soon.
const BODY_LEN: usize = 8000;

/// A keeper, and a broker that takes what it is given.
pub(in crate::keeper) struct Stage {
    pub(in crate::keeper) keeper: Keeper,
    number: u64,
    /// What the broker has of each stream, in order.
    stored: BTreeMap<Stream, Vec<Message>>,
}

impl Stage {
    pub(in crate::keeper) fn new(directory: &Path) -> Self {
        let limits = Limits {
            max_bytes: 2 * SEGMENT_LEN,
            max_age_ms: u64::MAX / 4,
            sync: SpoolFsync::Never,
        };
        let (spool, recovered) = Spool::open(directory, limits).expect("a spool");
        let sequencer = Sequencer::open(directory, NODE, &recovered, Elsewhere::default(), 1).expect("a sequence");
        let composer = Composer {
            prefix: "wazuh.xdr".to_owned(),
            node: NODE.to_owned(),
            source: "wazuh-manager".to_owned(),
            version: "4.7.0".to_owned(),
            epoch: sequencer.epoch,
            history: false,
            format: EventFormat::Native,
            sealer: None,
            keyring: None,
        };
        let (keeper, _, _) = Keeper::new(Parts {
            spool,
            recovered,
            composer,
            audit: Some(Audit::open(&directory.join("audit.json"), NODE, sequencer.epoch).expect("a trail")),
            sequencer,
            report: Arc::new(Report::new(Link::Off, Hearing::Off)),
            counters: Arc::new(Counters::default()),
            roll: None,
            owners: None,
            alerts: None,
            first: Vec::new(),
        });
        Self {
            keeper,
            number: 0,
            stored: BTreeMap::new(),
        }
    }

    /// Events of a producer that makes nothing else.
    fn batch(&mut self, producer: &str, events: impl Iterator<Item = Event>) -> Batch {
        let events = events.map(|event| {
            self.number += 1;
            NumberedEvent {
                number: self.number,
                event,
            }
        });
        Batch {
            producer: producer.to_owned(),
            incarnation: 7,
            events: events.collect(),
            taken: oneshot::channel().0,
        }
    }

    /// What waits is published, and acknowledged.
    fn publish(&mut self) {
        for stream in Stream::ALL {
            let waiting = self.keeper.shared.spool().waiting(stream, 0, usize::MAX);
            for place in waiting {
                let event = place.read().expect("reads");
                self.stored.entry(stream).or_default().push(Message {
                    subject: event.subject,
                    headers: record::owned(event.headers),
                    body: event.body,
                    from_stream: true,
                });
                self.keeper.shared.acknowledge(stream, event.seq);
            }
        }
    }

    /// What is there of a stream but padding, and what a verifier misses that hears of gaps, or does not.
    fn missing(&self, with_gaps: bool) -> usize {
        let mut verifier = Verifier::new(Policy {
            signed: false,
            max_age_ms: None,
            ..Policy::default()
        });
        // The audit last, as from a stream of its own: which holes are declared is known in the end.
        for message in self.stored.values().flatten() {
            let is_gap = message.subject.contains(".manager.spool.");
            if with_gaps || !is_gap {
                let fate = verifier.check(message, 0).fate;
                assert!(!matches!(fate, Fate::Refuse { .. }), "{fate:?}");
            }
        }
        let missing = verifier.undeclared();
        let but_audit = missing
            .iter()
            .filter(|(_, stream, _)| with_gaps || *stream != Stream::Audit);
        but_audit.count()
    }

    fn dropped(&self) -> u64 {
        self.keeper.shared.spool().depth().dropped
    }
}

fn padded(kind: Kind, key: &str, level: u8) -> Event {
    let agent = serde_json::json!({"id": key});
    let body = json!({"agent": agent, "padding": "x".repeat(BODY_LEN)});
    manager_event(kind, key, clock::unix_ms(), level, body.to_string().into_bytes())
}

fn change(agent: u64) -> Event {
    let now = clock::unix_ms();
    let change = StatusChange {
        agent_id: &AgentId::new(&format!("{agent:03}")),
        agent_name: &"x".repeat(BODY_LEN),
        previous_status: AgentStatus::Active,
        current_status: AgentStatus::Disconnected,
        ip_address: "192.0.2.1",
        timestamp: now / 1000,
        reason: Reason::KeepaliveTimeout,
        missed_keepalives: 3,
        alert_level: 3,
    };
    change.into_event(now)
}

fn enrolled(agent: u64) -> Event {
    let now = clock::unix_ms();
    let enrollment = Enrollment {
        agent_id: &AgentId::new(&format!("{agent:03}")),
        agent_name: &"x".repeat(BODY_LEN),
        ip_address: "any",
        timestamp: now / 1000,
        action: "enrolled",
        reason: "new",
        replaced_agent_id: None,
        method: "tls",
        groups: &[],
        manager_node: NODE,
    };
    enrollment.into_event(Kind::Enrolled, now)
}

/// The broker is away until the spool has dropped something, and comes back. All holes that are then seen are declared, and
/// without the declarations they are not.
fn full_of(made: impl Fn(u64) -> Event) {
    let directory = tempfile::tempdir().expect("directory");
    let mut stage = Stage::new(directory.path());
    let mut place = 0;
    let mut next = |stage: &mut Stage| {
        // Some of everything, and much of one.
        let events: Vec<_> = (0..40)
            .map(|_| {
                place += 1;
                match place % 40 {
                    1 => change(place % 3),
                    2 => enrolled(place),
                    3 => padded(Kind::RuleAlert, "009", 12),
                    _ => made(place),
                }
            })
            .collect();
        let batch = stage.batch("remoted", events.into_iter());
        stage.keeper.commit(&[batch]).expect("commits");
        stage.keeper.commit_own();
    };
    next(&mut stage);
    stage.publish();
    for _ in 0..2 {
        let before = stage.dropped();
        while stage.dropped() < before + 300 {
            next(&mut stage);
        }
        next(&mut stage);
        stage.publish();
    }
    stage.keeper.commit_own();
    stage.publish();
    assert_eq!(stage.missing(true), 0);
    assert!(stage.missing(false) > 0, "nothing was missing");
    let is_padded = |message: &Message| message.body.len() > BODY_LEN && !message.subject.contains(".manager.audit.");
    let gone = place - stored(&stage, is_padded);
    assert_eq!(gone, stage.dropped(), "each is there, or counted");
    let enrollments = stored(&stage, |message| message.subject.ends_with(".enrolled"));
    assert_eq!(enrollments, place / 40, "none of these is ever dropped");
}

fn stored(stage: &Stage, is: impl Fn(&Message) -> bool) -> u64 {
    let count = stage.stored.values().flatten().filter(|message| is(message)).count();
    u64::try_from(count).expect("small")
}

#[test]
fn spool_full_of_keepalives_declares_exactly_what_is_missing() {
    full_of(|place| padded(Kind::Health, "", u8::try_from(place % 2).expect("small")));
}

#[test]
fn spool_full_of_low_alerts_declares_exactly_what_is_missing() {
    full_of(|place| padded(Kind::RuleAlert, &format!("{:03}", place % 7), 3));
}

#[test]
fn spool_full_of_high_alerts_declares_exactly_what_is_missing() {
    full_of(|place| padded(Kind::RuleAlert, &format!("{:03}", place % 7), 12));
}

#[test]
fn spool_full_of_status_changes_declares_exactly_what_is_missing() {
    full_of(|place| change(place % 5));
}

#[test]
fn enrollments_find_room_where_status_changes_find_none_and_acts_stay_in_the_file_when_that_is_full_too() {
    let directory = tempfile::tempdir().expect("directory");
    let mut stage = Stage::new(directory.path());
    let mut place = 0;
    let mut batch = |stage: &mut Stage, producer: &str, made: fn(u64) -> Event| {
        let events: Vec<_> = (0..40).map(|count| made(place + count)).collect();
        place += 40;
        stage.batch(producer, events.into_iter())
    };
    // Changes of ever new agents must not be dropped.
    let refused = loop {
        let next = batch(&mut stage, "remoted", change);
        if stage.keeper.commit(std::slice::from_ref(&next)).is_err() {
            break next;
        }
    };
    assert!(stage.keeper.disk.is_full() && stage.keeper.shared.trouble().is_some());
    let mut waiting = vec![refused];
    let mut taken = 0;
    loop {
        waiting.push(batch(&mut stage, "authd", enrolled));
        stage.keeper.commit_audit(&mut waiting);
        if waiting.len() > 1 {
            break;
        }
        taken += 40;
    }
    assert!(taken > 100, "{taken} enrollments found room");
    assert_eq!(waiting[1].producer, "remoted", "it still waits");
    assert_eq!(stage.keeper.shared.audit_trouble(), None);
    for act in 1..=2 * MAX_OWN {
        assert!(stage.keeper.audit_act("test", &json!({"padding": "x".repeat(100)})));
        if act % 512 == 0 {
            stage.keeper.commit_own();
        }
    }
    assert!(stage.keeper.own.len() <= MAX_OWN + 1);
    let trouble = stage.keeper.shared.audit_trouble().expect("degraded");
    assert!(trouble.contains("in its file alone"), "{trouble}");
    let spilled = stage.keeper.counters.acts_spilled_total.value();
    assert!(spilled > 0);
    // The broker is back.
    stage.publish();
    stage.keeper.disk = crate::keeper::disk::Disk::default();
    stage.keeper.commit(&waiting).expect("there is room again");
    stage.keeper.commit_own();
    stage.keeper.commit_own();
    stage.publish();
    assert_eq!(stage.keeper.shared.audit_trouble(), None);
    assert_eq!(stage.missing(true), 0);
    assert_eq!(
        stored(&stage, |message| message.subject.ends_with(".enrolled")),
        taken + 40
    );
    let told = stage.stored[&Stream::Audit].iter().any(|message| {
        let body: serde_json::Value = serde_json::from_slice(&message.body).expect("JSON");
        body["spool"]["producer"] == "natsd" && body["spool"]["count"] == spilled
    });
    assert!(told, "how many acts are in the file alone");
    let trail = std::fs::read_to_string(directory.path().join("audit.json")).expect("reads");
    assert_eq!(
        trail.matches("\"act\":\"test\"").count(),
        2 * MAX_OWN,
        "the file has all"
    );
}
