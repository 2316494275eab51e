//! Two managers of one fleet: of each agent one of them tells, and it is the one that the agent came to last.

use std::fs;

use muster_natsd::verify::Message;
use muster_proto::event::{Kind, header};
use serde_json::Value;

use crate::{
    accepted, block_on,
    natsd::{Home, Natsd},
    permissions::Shipped,
    producer::{self, Producer},
    server::Server,
    verifier, wait_for,
};

const BUCKET: &str = "KV_agent_owner";
const AGENT: &str = "001";

struct Manager {
    node: &'static str,
    home: Home,
    producer: Producer,
    natsd: Option<Natsd>,
}

impl Manager {
    fn new(server: &Server, node: &'static str) -> Self {
        let home = Home::new(&format!(
            "<server_url>{}</server_url><node_name>{node}</node_name><reconnect_delay>1</reconnect_delay>\
             <publish ack_timeout=\"2s\"/><message_signing>yes</message_signing><ownership/>",
            server.url()
        ));
        let made = home.run(&["provision", "--share", "1"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let producer = Producer::new(home.path("queue/muster/events"), "remoted");
        let mut manager = Self {
            node,
            home,
            producer,
            natsd: None,
        };
        manager.start();
        manager
    }

    /// Waits until it knows who has which agent.
    fn start(&mut self) {
        let known = self.home.log().matches(KNOWN).count();
        self.natsd = Some(self.home.start());
        wait_for("the bucket is read", || self.home.log().matches(KNOWN).count() > known);
    }

    fn kill(&mut self) {
        self.natsd.take().expect("runs").kill();
    }

    /// The agent becomes active here.
    fn active(&mut self, place: u32) {
        assert!(!place.is_multiple_of(2));
        self.tell(producer::change(1, place));
    }

    /// It is not any more.
    fn gone(&mut self, place: u32) {
        assert!(place.is_multiple_of(2));
        self.tell(producer::change_of_level(1, place, 8));
    }

    fn tell(&mut self, event: muster_proto::event::Event) {
        self.producer.put(event);
        block_on(self.producer.hand_over_all());
    }

    fn fact(&self, name: &str) -> u64 {
        let facts = self.home.facts();
        facts.get(name).and_then(|value| value.parse().ok()).unwrap_or(u64::MAX)
    }

    fn owns(&self, count: u64) {
        wait_for(&format!("{} has {count} agents", self.node), || {
            self.fact("agents_owned") == count && self.fact("agents_unconfirmed") == 0
        });
    }

    fn lost(&self) {
        wait_for(&format!("{} knows that the agent is another's", self.node), || {
            self.fact("agents_foreign") == 1
        });
    }

    fn suppressed(&self) -> u64 {
        let counters = self.home.status().expect("answers").counters;
        let found = counters
            .into_iter()
            .find(|(name, _)| name.ends_with("events_suppressed_total"));
        found.expect("a counter").1
    }

    /// The places that it has told of, with what it said of its claim. Nothing is missing in its sequence.
    fn told(&self, server: &Server) -> Vec<(u64, String)> {
        self.home.wait_until_all_is_published();
        let (state, audit) = crate::state_and_audit(server);
        let ours = |messages: Vec<Message>| -> Vec<Message> {
            let is_ours = |message: &Message| message.header("Muster-Node") == Some(self.node);
            messages.into_iter().filter(is_ours).collect()
        };
        let mut verifier = verifier(&self.home);
        accepted(&mut verifier, &ours(audit));
        let state = ours(state);
        let told = accepted(&mut verifier, &state);
        let told = told
            .iter()
            .filter(|message| message.header("Muster-Type") == Some(Kind::StatusChange.type_name()))
            .map(|message| {
                let place = crate::json(message)["status_change"]["missed_keepalives"].as_u64();
                let owner = message.header(header::OWNER).expect("whose it is").to_owned();
                (place.expect("a place"), owner)
            });
        let told = told.collect();
        assert!(verifier.undeclared().is_empty(), "{:?}", verifier.undeclared());
        told
    }
}

/// What natsd says when it has read the bucket.
const KNOWN: &str = "it is known which manager has which agent";

/// The agent's entry and its revision.
fn entry(server: &Server) -> Option<(Value, u64)> {
    block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        let stream = jetstream.get_stream(BUCKET).await.ok()?;
        let subject = format!("$KV.agent_owner.{AGENT}");
        let raw = stream.get_last_raw_message_by_subject(&subject).await.ok()?;
        Some((serde_json::from_slice(&raw.payload).unwrap_or_default(), raw.sequence))
    })
}

fn places(told: &[(u64, String)]) -> Vec<u64> {
    told.iter().map(|(place, _)| *place).collect()
}

#[test]
fn manager_that_an_agent_left_does_not_tell_that_it_is_gone() {
    let server = Server::start();
    let (mut a, mut b) = (Manager::new(&server, "mgr-a"), Manager::new(&server, "mgr-b"));
    a.active(1);
    a.owns(1);
    b.lost();
    a.tell(producer::keepalive(1));
    let (value, revision) = entry(&server).expect("an entry");
    assert_eq!(value["node"], "mgr-a");
    // It comes to the other one, and only then the first misses it.
    b.active(3);
    b.owns(1);
    a.lost();
    a.gone(4);
    a.tell(producer::keepalive(1));
    assert_eq!(a.suppressed(), 2);
    b.gone(6);
    let (value, newer) = entry(&server).expect("an entry");
    assert!(value["node"] == "mgr-b" && newer > revision);
    let claimed = |place, revision: u64| (place, revision.to_string());
    assert_eq!(a.told(&server), [(1, "unconfirmed".to_owned())]);
    assert_eq!(b.told(&server), [(3, "unconfirmed".to_owned()), claimed(6, newer)]);
    // The other order: it is missed first, and that is told, and then it comes back to the first.
    a.active(7);
    a.owns(1);
    b.lost();
    b.gone(8);
    assert_eq!(places(&a.told(&server)), [1, 7]);
    assert_eq!(places(&b.told(&server)), [3, 6]);
    // Alerts are as silent as what they repeat.
    let alerts = crate::state_and_audit(&server).0;
    let alerts = alerts
        .iter()
        .filter(|message| message.subject.ends_with("agent_disconnected"));
    assert_eq!(alerts.count(), 1);
}

#[test]
fn agent_that_moves_while_nats_is_away_is_claimed_when_it_is_back() {
    let mut server = Server::start();
    let (mut a, mut b) = (Manager::new(&server, "mgr-a"), Manager::new(&server, "mgr-b"));
    a.active(1);
    a.owns(1);
    b.lost();
    server.kill();
    wait_for("both know that NATS is away", || {
        [&a, &b]
            .iter()
            .all(|manager| manager.home.facts()["nats"] == "disconnected")
    });
    b.active(3);
    a.gone(4);
    b.gone(6);
    b.active(7);
    server.restart();
    b.owns(1);
    a.lost();
    a.gone(8);
    b.gone(10);
    assert_eq!(entry(&server).expect("an entry").0["node"], "mgr-b");
    // Nobody could know better; the word in the header says so.
    let unconfirmed = |place| (place, "unconfirmed".to_owned());
    assert_eq!(a.told(&server), [1, 4].map(unconfirmed));
    let told = b.told(&server);
    assert_eq!(told[..3], [3, 6, 7].map(unconfirmed));
    assert_eq!(told[3], (10, entry(&server).expect("an entry").1.to_string()));
}

#[test]
fn restarted_loser_does_not_tell_what_waited_for_it() {
    let server = Server::start();
    let (mut a, mut b) = (Manager::new(&server, "mgr-a"), Manager::new(&server, "mgr-b"));
    a.active(1);
    a.owns(1);
    a.kill();
    // Its remoted goes on, and nobody takes what it has to say.
    a.producer.put(producer::change_of_level(1, 2, 8));
    b.active(3);
    b.owns(1);
    a.start();
    block_on(a.producer.hand_over_all());
    assert_eq!(a.suppressed(), 1);
    // What was passed over is not missed after another restart.
    a.kill();
    a.start();
    a.lost();
    a.tell(producer::enrollment(2));
    assert_eq!(places(&a.told(&server)), [1]);
    assert_eq!(places(&b.told(&server)), [3]);
    let (_, audit) = crate::state_and_audit(&server);
    let lost = audit.iter().filter(|message| {
        message.subject.ends_with("spool.mgr-a") && crate::json(message)["spool"]["reason"] == "outbox_full"
    });
    assert_eq!(lost.count(), 0);
}

#[test]
fn agent_of_a_killed_manager_is_the_other_ones_at_once_and_stays_so() {
    let server = Server::start();
    let (mut a, mut b) = (Manager::new(&server, "mgr-a"), Manager::new(&server, "mgr-b"));
    a.active(1);
    a.owns(1);
    b.lost();
    a.kill();
    b.active(3);
    b.owns(1);
    a.start();
    a.lost();
    assert_eq!((a.fact("agents_owned"), b.fact("agents_owned")), (0, 1));
    a.gone(4);
    assert_eq!(places(&a.told(&server)), [1]);
    // And back, with all restarted.
    a.active(5);
    a.owns(1);
    b.lost();
    a.kill();
    b.kill();
    a.start();
    b.start();
    assert_eq!((a.fact("agents_owned"), b.fact("agents_foreign")), (1, 1));
    a.gone(6);
    let told = a.told(&server);
    assert_eq!(told.last(), Some(&(6, entry(&server).expect("an entry").1.to_string())));
}

#[test]
fn lost_bucket_gets_what_is_active_and_a_removed_agent_leaves_it() {
    let server = Server::start();
    let mut a = Manager::new(&server, "mgr-a");
    a.active(1);
    a.owns(1);
    let (claimed, _) = entry(&server).expect("an entry");
    block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        jetstream.delete_stream(BUCKET).await.expect("deletes");
    });
    a.active(3);
    wait_for("it says what it misses", || {
        let degraded = a.home.status().map(|status| status.degraded.join("\n"));
        degraded.is_some_and(|degraded| degraded.contains("does not say which manager"))
    });
    assert!(a.home.run(&["provision", "--share", "1"]).status.success());
    a.owns(1);
    let (again, _) = entry(&server).expect("an entry");
    assert_eq!((&again["node"], &again["epoch"]), (&claimed["node"], &claimed["epoch"]));
    let mut authd = Producer::new(a.home.path("queue/muster/events"), "authd");
    authd.put(producer::removal(1));
    block_on(authd.hand_over_all());
    wait_for("the entry goes", || {
        entry(&server).is_some_and(|(value, _)| value.is_null())
    });
    a.owns(0);
}

#[test]
fn without_the_option_nothing_of_it_is_seen() {
    let server = Server::start();
    let home = crate::provisioned(&server, "");
    let _natsd = home.start();
    let mut producer = crate::producer(&home);
    producer.put(producer::change(1, 1));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    let (state, _) = crate::state_and_audit(&server);
    assert!(state.len() == 1 && state[0].header(header::OWNER).is_none());
    assert!(!home.facts().contains_key("agents_owned"));
    assert!(
        !fs::read_to_string(home.path("stderr"))
            .expect("reads")
            .contains("which manager")
    );
}

/// With entries of [`ENTRY_LEN`], more than the broker sends before it asks whether we are there.
const FLEET: u64 = 3000;
const ENTRY_LEN: usize = 1000;

#[test]
fn shipped_rights_are_enough_to_read_a_large_bucket_and_to_claim() {
    for config in ["nats-server.conf", "nats-server-accounts.conf"] {
        let shipped = Shipped::with(config);
        let home = shipped.home("<ownership/>");
        shipped.provision(&home);
        block_on(async {
            let options = shipped.options(&shipped.administrator, "_INBOX");
            let client = shipped.server.client_with(options).await;
            for number in 0..FLEET {
                let holder = format!("{{\"node\":\"mgr-b\",\"epoch\":1,\"since_ms\":{number}}}");
                let holder = format!("{holder:ENTRY_LEN$}");
                let subject = format!("$KV.agent_owner.{number}");
                client.publish(subject, holder.into()).await.expect("publishes");
            }
            client.flush().await.expect("flushes");
        });
        let _natsd = home.start();
        let counts = || {
            let facts = home.facts();
            let count = |name: &str| facts.get(name).and_then(|count| count.parse::<u64>().ok());
            (count("agents_owned"), count("agents_foreign"))
        };
        wait_for("all is read", || counts() == (Some(0), Some(FLEET)));
        let mut producer = Producer::new(home.path("queue/muster/events"), "remoted");
        producer.put(producer::change(3001, 1));
        block_on(producer.hand_over_all());
        wait_for("an agent is claimed", || counts() == (Some(1), Some(FLEET)));
        let log = shipped.server.log();
        let refused: Vec<_> = log.lines().filter(|line| line.contains("agent_owner")).collect();
        assert_eq!(refused, [""; 0], "{config}");
    }
}
