use muster_config::{EventFormat, Nats, SpoolFsync};
use muster_proto::{
    agent::AgentId,
    command::{Address, Outcome},
};

use super::*;
use crate::{
    command::{Doorkeeper, Enrollments, MAX_TICKETS, Service, gate::Signer},
    keeper::{Keeper, Parts},
    message::Composer,
    sequence::{Elsewhere, Sequencer},
    spool::{Limits, Spool},
    status::{Counters, Link, Report},
};

/// A commander whose keeper has no audit trail to write.
fn without_audit(directory: &std::path::Path) -> (Commander, Keeper, mpsc::Receiver<Ticket>) {
    let limits = Limits {
        max_bytes: 16 << 20,
        max_age_ms: u64::MAX,
        sync: SpoolFsync::Never,
    };
    let (spool, recovered) = Spool::open(directory, limits).expect("a spool");
    let sequencer = Sequencer::open(directory, "mgr-a", &recovered, Elsewhere::default(), 1).expect("a sequence");
    let nats = Nats::default();
    let (report, counters) = (
        Arc::new(Report::new(Link::Off, Hearing::Off)),
        Arc::new(Counters::default()),
    );
    let (keeper, shared, _) = Keeper::new(Parts {
        alerts: None,
        spool,
        recovered,
        composer: Composer {
            prefix: nats.subject_prefix.clone(),
            node: "mgr-a".to_owned(),
            source: String::new(),
            version: String::new(),
            epoch: sequencer.epoch,
            history: true,
            format: EventFormat::Native,
            sealer: None,
            keyring: None,
        },
        sequencer,
        audit: None,
        report: Arc::clone(&report),
        counters: Arc::clone(&counters),
        roll: None,
        owners: None,
        first: Vec::new(),
    });
    let (tickets, ordered) = mpsc::channel(MAX_TICKETS);
    let commander = Commander {
        gate: Doorkeeper::new(&nats, "mgr-a").expect("no keys"),
        service: Service::new(&nats.subject_prefix, "mgr-a", 1),
        nats,
        node: "mgr-a".to_owned(),
        epoch: 1,
        enrollments: Enrollments::new(shared.followers.clone(), tokio::runtime::Handle::current()),
        shared,
        report,
        counters,
        tickets,
    };
    (commander, keeper, ordered)
}

fn granted(verb: Verb) -> (Grant, Judgement) {
    let grant = Grant {
        address: Address {
            node: "mgr-a".to_owned(),
            verb,
            agent: verb.is_of_an_agent().then(|| AgentId::new("001")),
        },
        respond: None,
    };
    let judgement = Judgement {
        verb: Some(verb),
        signer: Some(Signer {
            id: "soc".to_owned(),
            key_id: "U".to_owned(),
        }),
        nonce: "0123456789abcdef".to_owned(),
        verdict: Ok(grant.clone()),
        heard: true,
    };
    (grant, judgement)
}

#[tokio::test]
async fn nothing_is_changed_that_cannot_be_written_down() {
    let directory = tempfile::tempdir().expect("directory");
    let (commander, keeper, _ordered) = without_audit(directory.path());
    let (grant, judgement) = granted(Verb::AgentRemove);
    // Nobody writes at all.
    let settled = commander.carry_out("s", &judgement, &grant).await;
    assert_eq!(settled.reason, Some("no_audit"));
    // Somebody tries, and cannot.
    let thread = keeper.start().expect("starts");
    let settled = commander.carry_out("s", &judgement, &grant).await;
    assert_eq!(settled.reason, Some("no_audit"));
    // What only reads gets as far as the daemons, of which none is here.
    let (grant, judgement) = granted(Verb::AgentStatus);
    let settled = commander.carry_out("s", &judgement, &grant).await;
    assert_eq!((settled.reason, settled.outcome), (None, Outcome::Failed));
    drop(commander);
    drop(thread);
}

#[tokio::test]
async fn orders_that_nobody_could_watch_are_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let (commander, _keeper, _ordered) = without_audit(directory.path());
    let _places: Vec<_> = (0..MAX_TICKETS)
        .map(|_| commander.tickets.clone().try_reserve_owned().expect("a place"))
        .collect();
    let (grant, judgement) = granted(Verb::AgentRestart);
    let settled = commander.carry_out("s", &judgement, &grant).await;
    assert_eq!(settled.reason, Some("busy"));
    let (grant, judgement) = granted(Verb::NodeStatus);
    let settled = commander.carry_out("s", &judgement, &grant).await;
    assert_eq!(settled.outcome, Outcome::Done, "questions need no place");
}
