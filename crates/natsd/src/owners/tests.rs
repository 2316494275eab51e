use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::body::{Connection, Enrollment, Keepalive, KeepaliveType, StatusChange},
};
use proptest::{collection::vec, prelude::*};

use super::*;

fn change(id: &str, from: AgentStatus, to: AgentStatus, at_ms: u64) -> Event {
    StatusChange {
        agent_id: &AgentId::new(id),
        agent_name: "web-01",
        previous_status: from,
        current_status: to,
        ip_address: "192.0.2.1",
        timestamp: at_ms / 1000,
        reason: Reason::Startup,
        missed_keepalives: 0,
        alert_level: 3,
    }
    .into_event(at_ms)
}

fn active(id: &str, at_ms: u64) -> Event {
    change(id, AgentStatus::Pending, AgentStatus::Active, at_ms)
}

fn gone(id: &str, at_ms: u64) -> Event {
    change(id, AgentStatus::Active, AgentStatus::Disconnected, at_ms)
}

fn keepalive(id: &str) -> Event {
    Keepalive {
        agent_id: &AgentId::new(id),
        agent_name: "web-01",
        ip_address: "192.0.2.1",
        timestamp: 1,
        event_type: KeepaliveType::KeepaliveSent,
        manager_node: "a",
        interval: 60,
    }
    .into_event(1000)
}

fn removed(id: &str) -> Event {
    Enrollment {
        agent_id: &AgentId::new(id),
        agent_name: "web-01",
        ip_address: "any",
        timestamp: 1,
        action: "removed",
        reason: "request",
        replaced_agent_id: None,
        method: "local",
        groups: &[],
        manager_node: "a",
    }
    .into_event(Kind::Removed, 1000)
}

fn holder(node: &str, since_ms: u64) -> Holder {
    Holder {
        node: node.to_owned(),
        epoch: 1,
        since_ms,
    }
}

fn owned(revision: &str) -> Admission {
    Admission::Owned(revision.to_owned())
}

/// A manager that has read an empty bucket.
fn manager(node: &str) -> Owners {
    let mut owners = Owners::new(node, 1);
    owners.begin_reading();
    owners.finish_reading();
    owners
}

/// One that has agent 001 with this revision.
fn owner(revision: u64) -> Owners {
    let mut owners = manager("a");
    assert_eq!(owners.admit(&active("001", 10)), owned("unconfirmed"));
    let put = owners.next().expect("a claim");
    assert_eq!((put.over, &put.holder), (0, &Some(holder("a", 10))));
    owners.settle(&put, Outcome::Written(revision));
    assert_eq!(owners.admit(&keepalive("001")), owned(&revision.to_string()));
    owners
}

#[test]
fn agent_that_becomes_active_is_claimed_over_whoever_had_it() {
    let mut owners = manager("b");
    owners.learn("001", 5, Some(&holder("a", 99_000)));
    assert_eq!(owners.admit(&keepalive("001")), Admission::Suppressed);
    let pending = change("001", AgentStatus::Disconnected, AgentStatus::Pending, 19);
    assert_eq!(owners.admit(&pending), Admission::Suppressed);
    // By its clock it is earlier than the other one's claim: it has seen that.
    assert_eq!(owners.admit(&active("001", 20)), owned("unconfirmed"));
    let put = owners.next().expect("a claim");
    assert_eq!((put.over, put.holder.clone()), (5, Some(holder("b", 20))));
    owners.settle(&put, Outcome::Written(6));
    assert_eq!(owners.admit(&keepalive("001")), owned("6"));
    assert_eq!(owners.take_partings(), []);
}

#[test]
fn newer_revision_of_another_manager_silences_and_lets_go() {
    let mut owners = owner(5);
    owners.learn("001", 6, Some(&holder("b", 3)));
    let lost = Connection {
        agent_id: &AgentId::new("001"),
        agent_name: "web-01",
        ip_address: "192.0.2.1",
        timestamp: 1,
        state: "lost",
        reason: Reason::ConnectionLost,
        detail: None,
        manager_node: "a",
        alert_level: 5,
    };
    for event in [gone("001", 30), keepalive("001"), lost.into_event(1)] {
        assert_eq!(owners.admit(&event), Admission::Suppressed, "{:?}", event.kind);
    }
    assert_eq!(
        owners.admit(&removed("001")),
        Admission::Free,
        "authd's word is its own"
    );
    assert_eq!(owners.take_partings(), [("001".to_owned(), 10)]);
    assert_eq!(owners.take_lost(), ["001"]);
    assert_eq!(owners.next(), None);
    assert_eq!(owners.admit(&active("001", 40)), owned("unconfirmed"));
    assert_eq!(owners.next().map(|put| put.over), Some(6), "it is back");
}

#[test]
fn disconnection_before_another_claims_is_told_with_the_revision() {
    let mut owners = owner(5);
    assert_eq!(owners.admit(&gone("001", 30)), owned("5"));
    owners.learn("001", 6, Some(&holder("b", 40)));
    assert_eq!(owners.admit(&gone("001", 50)), Admission::Suppressed);
    assert_eq!(owners.take_partings(), [], "it is not here");
}

#[test]
fn while_nobody_can_be_asked_all_is_unconfirmed_and_what_was_anothers_stays_so() {
    let mut owners = owner(5);
    owners.learn("002", 6, Some(&holder("b", 40)));
    owners.lose_touch();
    assert_eq!(owners.admit(&keepalive("001")), owned("unconfirmed"));
    assert_eq!(owners.admit(&keepalive("002")), Admission::Suppressed);
    assert_eq!(owners.admit(&active("003", 50)), owned("unconfirmed"));
    assert_eq!(owners.next(), None);
    let counts = owners.counts();
    assert_eq!((counts.owned, counts.foreign, counts.unconfirmed), (1, 1, 2));
}

#[test]
fn agent_that_came_while_nats_was_away_is_claimed_unless_another_claimed_later() {
    for (revision, other_since, is_ours) in [(6, 20, true), (7, 20, true), (7, 40, false)] {
        let mut owners = manager("a");
        owners.learn("001", 6, Some(&holder("b", 20)));
        owners.lose_touch();
        owners.admit(&active("001", 30));
        owners.admit(&gone("001", 31));
        owners.begin_reading();
        owners.learn("001", revision, Some(&holder("b", other_since)));
        assert_eq!(owners.next(), None, "nothing is claimed before all is read");
        owners.finish_reading();
        assert_eq!(owners.next().map(|put| put.over), is_ours.then_some(revision));
        assert_eq!(owners.is_foreign("001"), !is_ours);
    }
}

#[test]
fn bucket_that_was_lost_gets_what_is_active_here() {
    let mut owners = owner(5);
    owners.admit(&active("002", 20));
    let put = owners.next().expect("a claim");
    owners.settle(&put, Outcome::Written(7));
    owners.admit(&gone("002", 30));
    owners.learn("003", 8, Some(&holder("b", 1)));
    owners.begin_reading();
    owners.finish_reading();
    let put = owners.next().expect("a claim");
    assert_eq!((put.id.as_str(), put.over), ("001", 0));
    assert_eq!(owners.next(), None, "002 is not here");
    assert_eq!(
        owners.admit(&gone("003", 40)),
        owned("unconfirmed"),
        "nobody says that it is another's"
    );
    // The new one counts from the beginning.
    owners.settle(&put, Outcome::Written(1));
    assert_eq!(owners.admit(&keepalive("001")), owned("1"));
}

#[test]
fn restarted_manager_keeps_what_is_its_own_and_lets_go_of_what_moved() {
    let mut owners = Owners::new("a", 2);
    // remoted may answer before or behind the broker.
    owners.found("001", 10);
    owners.found("002", 10);
    owners.begin_reading();
    owners.learn("001", 5, Some(&holder("a", 10)));
    owners.learn("002", 6, Some(&holder("b", 20)));
    owners.learn("003", 7, Some(&holder("b", 20)));
    assert_eq!(owners.admit(&gone("003", 30)), Admission::Suppressed);
    owners.finish_reading();
    owners.found("003", 10);
    owners.found("004", 10);
    assert_eq!(owners.next().map(|put| put.id), Some("004".to_owned()));
    assert_eq!(owners.next(), None);
    assert_eq!(owners.admit(&keepalive("001")), owned("5"));
    assert_eq!(owners.take_partings(), [("002".to_owned(), 10), ("003".to_owned(), 10)]);
}

#[test]
fn entry_of_a_removed_agent_goes_if_it_is_ours() {
    let mut owners = owner(5);
    owners.learn("002", 6, Some(&holder("b", 20)));
    owners.admit(&removed("001"));
    owners.admit(&removed("002"));
    let put = owners.next().expect("a deletion");
    assert_eq!((put.id.as_str(), put.over, &put.holder), ("001", 5, &None));
    assert_eq!(owners.next(), None);
    owners.settle(&put, Outcome::Written(7));
    owners.try_again();
    assert_eq!(owners.next(), None, "once");
    // The same id again: over the mark that the deletion left.
    owners.admit(&active("001", 30));
    assert_eq!(owners.next().map(|put| put.over), Some(7));
}

#[test]
fn claim_that_was_overtaken_waits_for_who_was_quicker() {
    let mut owners = manager("a");
    owners.admit(&active("001", 10));
    let put = owners.next().expect("a claim");
    owners.settle(&put, Outcome::Overtaken);
    assert_eq!(owners.next(), None);
    owners.learn("001", 1, Some(&holder("b", 11)));
    owners.try_again();
    assert_eq!(owners.next(), None);
    assert!(owners.is_foreign("001"));
    // The other way round: the other one was earlier, and only quicker.
    owners.admit(&active("001", 20));
    let put = owners.next().expect("a claim");
    owners.learn("001", 2, Some(&holder("c", 12)));
    owners.settle(&put, Outcome::Overtaken);
    assert_eq!(owners.next().map(|put| put.over), Some(2));
}

#[test]
fn claim_whose_answer_was_lost_is_found_in_the_bucket() {
    let mut owners = manager("a");
    owners.admit(&active("001", 10));
    let put = owners.next().expect("a claim");
    owners.settle(&put, Outcome::Lost);
    assert_eq!(owners.next(), None);
    owners.learn("001", 3, Some(&holder("a", 10)));
    owners.try_again();
    assert_eq!(owners.next(), None);
    assert_eq!(owners.admit(&keepalive("001")), owned("3"));
}

#[test]
fn what_is_no_agents_id_is_nobodys() {
    let mut owners = manager("a");
    for id in ["", "a.b", "*", ">", "x y"] {
        assert_eq!(owners.admit(&active(id, 1)), owned("unconfirmed"));
    }
    assert_eq!(owners.next(), None);
    assert_eq!(owners.counts(), Counts::default());
}

/// What may happen to a fleet of one agent and three managers.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The agent connects there.
    Connects(usize),
    /// A manager hears the next news of the bucket.
    Hears(usize),
    /// It begins a write.
    Begins(usize),
    /// The broker gets it.
    Arrives(usize),
    /// It hears what came of it.
    Settles(usize),
    /// The broker is gone for it, and what was under way is lost on either side of the broker.
    Parts(usize),
    /// It reads the bucket again.
    Reads(usize),
    /// Its natsd is restarted.
    Restarts(usize),
}

const NODES: [&str; 3] = ["a", "b", "c"];

struct Manager {
    owners: Owners,
    connected: bool,
    heard: usize,
    put: Option<Put>,
    outcome: Option<Outcome>,
    /// What remoted thinks: active since.
    active: Option<u64>,
}

struct Fleet {
    managers: Vec<Manager>,
    /// Every entry that there was, in order: who.
    log: Vec<Holder>,
    now_ms: u64,
    at: Option<usize>,
}

impl Fleet {
    fn new() -> Self {
        let manager = |node| Manager {
            owners: Owners::new(node, 1),
            connected: false,
            heard: 0,
            put: None,
            outcome: None,
            active: None,
        };
        Self {
            managers: NODES.map(manager).into(),
            log: Vec::new(),
            now_ms: 0,
            at: None,
        }
    }

    fn go(&mut self, step: Step) {
        self.now_ms += 1;
        let now = self.now_ms;
        match step {
            Step::Connects(place) => {
                let manager = &mut self.managers[place];
                // An agent that comes says hello, and then is active, whatever was thought of it.
                manager.active = Some(now);
                manager.owners.admit(&active("001", now));
                self.at = Some(place);
            }
            Step::Hears(place) => {
                let manager = &mut self.managers[place];
                if let Some(holder) = self.log.get(manager.heard).filter(|_| manager.connected) {
                    manager.heard += 1;
                    let revision = u64::try_from(manager.heard).expect("a number");
                    manager.owners.learn("001", revision, Some(holder));
                }
            }
            Step::Begins(place) => {
                let manager = &mut self.managers[place];
                if manager.put.is_none() && manager.connected {
                    manager.put = manager.owners.next();
                }
            }
            Step::Arrives(place) => {
                let manager = &mut self.managers[place];
                let newest = u64::try_from(self.log.len()).expect("a number");
                if let (Some(put), None) = (&manager.put, manager.outcome) {
                    let fits = put.over == newest;
                    self.log.extend(put.holder.clone().filter(|_| fits));
                    manager.outcome = Some(if fits {
                        Outcome::Written(newest + 1)
                    } else {
                        Outcome::Overtaken
                    });
                }
            }
            Step::Settles(place) => {
                let manager = &mut self.managers[place];
                if manager.outcome.is_some()
                    && let Some((put, outcome)) = manager.put.take().zip(manager.outcome.take())
                {
                    manager.owners.settle(&put, outcome);
                }
            }
            Step::Parts(place) => {
                let manager = &mut self.managers[place];
                (manager.connected, manager.put, manager.outcome) = (false, None, None);
                manager.owners.lose_touch();
            }
            Step::Reads(place) => {
                self.go(Step::Parts(place));
                let manager = &mut self.managers[place];
                manager.connected = true;
                manager.owners.begin_reading();
                manager.heard = self.log.len();
                if let Some(holder) = self.log.last() {
                    let revision = u64::try_from(self.log.len()).expect("a number");
                    manager.owners.learn("001", revision, Some(holder));
                }
                manager.owners.finish_reading();
            }
            Step::Restarts(place) => {
                self.go(Step::Parts(place));
                let manager = &mut self.managers[place];
                manager.owners = Owners::new(NODES[place], 2);
                if let Some(since) = manager.active {
                    manager.owners.found("001", since);
                }
            }
        }
        for manager in &mut self.managers {
            for (_, since) in manager.owners.take_partings() {
                if manager.active.is_some_and(|active| active <= since) {
                    manager.active = None;
                }
            }
        }
    }

    /// Everything that is under way comes to its end.
    fn settle(&mut self) {
        for place in 0..NODES.len() {
            if !self.managers[place].connected {
                self.go(Step::Reads(place));
            }
        }
        for _ in 0..40 {
            for place in 0..NODES.len() {
                for step in [
                    Step::Begins(place),
                    Step::Arrives(place),
                    Step::Settles(place),
                    Step::Hears(place),
                ] {
                    self.go(step);
                }
                self.managers[place].owners.try_again();
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    (0..NODES.len(), 0..16_u8).prop_map(|(place, what)| match what {
        0..=3 => Step::Connects(place),
        4..=6 => Step::Hears(place),
        7..=8 => Step::Begins(place),
        9..=10 => Step::Arrives(place),
        11..=12 => Step::Settles(place),
        13 => Step::Parts(place),
        14 => Step::Reads(place),
        _ => Step::Restarts(place),
    })
}

proptest! {
    #[test]
    fn whatever_happens_the_manager_that_the_agent_came_to_last_ends_up_with_it_alone(steps in vec(step(), 0..60)) {
        let mut fleet = Fleet::new();
        for step in steps {
            fleet.go(step);
        }
        fleet.settle();
        for (place, manager) in fleet.managers.iter_mut().enumerate() {
            let told = manager.owners.admit(&keepalive("001"));
            let revision = fleet.log.len().to_string();
            match fleet.at {
                Some(at) if at == place => prop_assert_eq!(told, Admission::Owned(revision)),
                Some(_) => {
                    prop_assert_eq!(told, Admission::Suppressed, "{} told of it", NODES[place]);
                    prop_assert_eq!(manager.active, None, "{} kept it", NODES[place]);
                }
                None => prop_assert_eq!(told, Admission::Owned("unconfirmed".to_owned())),
            }
        }
    }
}
