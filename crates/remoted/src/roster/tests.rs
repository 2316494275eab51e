//! Days of a fleet in milliseconds: a made-up clock, a courier that does as told, and agents that say what they are
//! told to say.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::{event::Kind, keys::file};
use serde_json::Value;

use super::*;
use crate::schedule::ProbeChoice;

const PEER: &str = "192.0.2.7:50000";
const WAZUH: &str = "Linux |w |6.1 |#1 |x86_64 [Debian GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7\nx merged.mg\n";
const OSSEC: &str = "Linux o 6.1 #1 x86_64 - OSSEC HIDS v4.2.0\nx merged.mg\n\nrandom";
const START: Times = Times {
    mono: Millis(50_000_000),
    wall_ms: 1_795_000_000_000,
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The page's own settings.
fn settings() -> RosterSettings {
    RosterSettings {
        policy: Policy {
            interval: s(60),
            timeout: s(180),
            max_missed: 3,
            sending: Some(Sending {
                probe: ProbeChoice::Auto,
                retry: s(30),
            }),
        },
        node: "mgr".to_owned(),
        keepalive_events: KeepaliveEvents::Off,
        escalation: false,
    }
}

fn quiet() -> RosterSettings {
    let silent = Policy {
        sending: None,
        ..settings().policy
    };
    RosterSettings {
        policy: silent,
        ..settings()
    }
}

/// A roster, its agents and its clock.
struct Stage {
    roster: Roster,
    now: Times,
    slots: BTreeMap<String, Arc<AgentSlot>>,
    out: Actions,
    /// Every message that was sent, with the seconds since the start.
    sent: Vec<(u64, String, String)>,
    /// Agents that nothing can be sent to.
    unreachable: BTreeSet<String>,
    /// Agents that answer requests.
    answering: BTreeSet<String>,
}

impl Stage {
    fn new(settings: RosterSettings) -> Self {
        Self::restored(settings, START, Vec::new())
    }

    fn restored(settings: RosterSettings, now: Times, rows: Vec<Row>) -> Self {
        Self {
            roster: Roster::new(settings, now, rows, 7),
            now,
            slots: BTreeMap::new(),
            out: Actions::default(),
            sent: Vec::new(),
            unreachable: BTreeSet::new(),
            answering: BTreeSet::new(),
        }
    }

    /// With these agents, and past the patience that follows a start.
    fn with_agents(settings: RosterSettings, ids: &[&str]) -> Self {
        let mut stage = Self::new(settings);
        stage.enroll(ids);
        stage.wait(s(181));
        stage
    }

    fn enroll(&mut self, ids: &[&str]) {
        let lines: Vec<String> = ids.iter().map(|id| format!("{id} agent-{id} any {id}")).collect();
        self.enroll_lines(&lines.join("\n"));
    }

    fn enroll_lines(&mut self, lines: &str) {
        let entries = file::parse(lines.as_bytes()).entries;
        let added: Vec<_> = entries.iter().map(|entry| Arc::new(AgentSlot::new(entry))).collect();
        self.slots
            .extend(added.iter().map(|slot| (slot.id.to_string(), Arc::clone(slot))));
        self.news(News::KeysReloaded {
            added,
            changed: Vec::new(),
            removed: Vec::new(),
        });
    }

    fn news(&mut self, news: News) {
        self.roster.on_news(self.now, news, &mut self.out);
        self.perform();
    }

    /// Sends what is to be sent, and lets agents answer.
    fn perform(&mut self) {
        for sent in std::mem::take(&mut self.out.sends) {
            let id = sent.slot.id.to_string();
            let text = String::from_utf8(sent.payload.clone()).unwrap();
            let reachable = !self.unreachable.contains(&id);
            let outcome = if reachable { Ok(()) } else { Err(SendError::NoRoute) };
            self.roster.on_sent(self.now, &sent, outcome, &mut self.out);
            if reachable {
                let counter = text
                    .strip_prefix("#!-req ")
                    .and_then(|rest| rest.strip_suffix(" agent getstate"));
                if let (Some(counter), true) = (counter.map(str::to_owned), self.answering.contains(&id)) {
                    self.answer(&id, &counter, b"{\"error\":0}");
                }
                self.sent.push((self.now.mono.since(START.mono).as_secs(), id, text));
            }
        }
    }

    fn answer(&mut self, id: &str, counter: &str, body: &[u8]) {
        let slot = self.hear(id);
        let (at, counter, body) = (self.now.mono, counter.to_owned(), body.to_vec());
        self.news(News::Answer {
            slot,
            at,
            counter,
            body,
        });
    }

    fn slot(&self, id: &str) -> Arc<AgentSlot> {
        Arc::clone(&self.slots[id])
    }

    /// What a worker does with every valid message.
    fn hear(&self, id: &str) -> Arc<AgentSlot> {
        let slot = self.slot(id);
        slot.hear(self.now.mono);
        slot
    }

    fn startup(&mut self, id: &str) {
        self.startup_with(
            id,
            StartupOutcome::Accepted {
                version: Some("v4.14.7".to_owned()),
            },
        );
    }

    fn startup_with(&mut self, id: &str, outcome: StartupOutcome) {
        let (slot, at) = (self.hear(id), self.now.mono);
        self.news(News::Startup {
            slot,
            at,
            peer: PEER.parse().unwrap(),
            protocol: Protocol::Tcp,
            outcome,
        });
    }

    fn keepalive(&mut self, id: &str, text: &str) {
        let (slot, at, keepalive) = (self.hear(id), self.now.mono, Box::new(Keepalive::parse(text)));
        if let Some(family) = keepalive.family() {
            slot.set_family(family);
        }
        let (peer, protocol, digest) = (PEER.parse().unwrap(), Protocol::Tcp, text.len() as u64);
        self.news(News::Keepalive {
            slot,
            at,
            peer,
            protocol,
            keepalive,
            digest,
        });
    }

    /// A plain event, told to the roster as a worker tells it.
    fn event(&mut self, id: &str) {
        let (slot, at) = (self.hear(id), self.now.mono);
        if slot.revival_is_news() {
            self.news(News::HeardAgain {
                slot,
                at,
                peer: PEER.parse().unwrap(),
                protocol: Protocol::Tcp,
            });
        }
    }

    fn shutdown(&mut self, id: &str) {
        let (slot, at) = (self.hear(id), self.now.mono);
        self.news(News::Shutdown { slot, at });
    }

    fn lose_connection(&mut self, id: &str) {
        let (slot, at) = (self.slot(id), self.now.mono);
        self.unreachable.insert(id.to_owned());
        self.news(News::ConnectionLost {
            slot,
            at,
            peer: PEER.parse().unwrap(),
        });
    }

    /// Both clocks go on, and ticks come as the keeper makes them.
    fn wait(&mut self, time: Duration) {
        let until = self.now.mono + time;
        while self.now.mono < until {
            let nap = self.now.mono + pulse::LONGEST_NAP;
            let next = self
                .roster
                .next_tick()
                .map_or(nap, |next| next.min(nap))
                .max(self.now.mono + Duration::from_millis(1));
            self.jump(next.min(until).since(self.now.mono));
        }
    }

    /// One tick after so much time.
    fn jump(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall_ms += time.as_millis() as u64;
        self.roster.on_tick(self.now, &mut self.out);
        self.perform();
    }

    /// `wait`, with all these agents sending a keepalive every `period`.
    fn live(&mut self, time: Duration, period: Duration, ids: &[&str], text: &str) {
        let mut left = time;
        while left >= period {
            self.wait(period);
            ids.iter().for_each(|id| self.keepalive(id, text));
            left -= period;
        }
        self.wait(left);
    }

    fn status(&self, id: &str) -> AgentStatus {
        let status = self.roster.agent(self.now, id).unwrap().status;
        assert_eq!(self.slots[id].status(), status, "slot and roster agree");
        status
    }

    fn info(&self, id: &str) -> AgentInfo {
        self.roster.agent(self.now, id).unwrap()
    }

    /// The changes told since the last call: `001 active>disconnected keepalive_timeout 8`.
    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.out.events)
            .iter()
            .filter(|event| event.kind == Kind::StatusChange)
            .map(told)
            .collect()
    }

    fn events(&mut self, kind: Kind) -> Vec<Event> {
        self.out.events.extract_if(.., |event| event.kind == kind).collect()
    }
}

fn body(event: &Event) -> Value {
    serde_json::from_slice(&event.body).unwrap()
}

fn told(event: &Event) -> String {
    let body = body(event);
    let fields = &body["status_change"];
    let words = &event
        .headers
        .iter()
        .find(|(name, _)| name == "Muster-Status")
        .unwrap()
        .1;
    format!(
        "{} {words} {} {}",
        event.subject_key,
        fields["reason"].as_str().unwrap(),
        fields["alert_level"]
    )
}

#[test]
fn life_of_an_agent_is_told_in_order() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    assert_eq!(stage.status("001"), AgentStatus::NeverConnected);
    stage.startup("001");
    stage.wait(s(1));
    stage.keepalive("001", WAZUH);
    stage.live(s(600), s(20), &["001"], WAZUH);
    stage.wait(s(200));
    stage.startup("001");
    stage.keepalive("001", WAZUH);
    stage.wait(s(5));
    stage.shutdown("001");
    assert_eq!(
        stage.told(),
        [
            "001 never_connected>pending startup 3",
            "001 pending>active startup 3",
            "001 active>disconnected keepalive_timeout 8",
            "001 disconnected>pending startup 3",
            "001 pending>active reconnected 3",
            "001 active>disconnected agent_stopped 5",
        ]
    );
    assert_eq!(stage.out.notices[0].text, "ossec: Agent stopped: 'agent-001->any'.");
}

#[test]
fn timeout_is_noticed_within_a_tick_of_its_time() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(179));
    assert_eq!(stage.status("001"), AgentStatus::Active);
    stage.wait(Duration::from_millis(1100));
    assert_eq!(stage.status("001"), AgentStatus::Disconnected);
    let events = stage.events(Kind::StatusChange);
    let change = &body(events.last().unwrap())["status_change"];
    assert_eq!(
        (&change["missed_keepalives"], &change["alert_level"]),
        (&3.into(), &8.into())
    );
    assert_eq!(change["ip_address"], "192.0.2.7");
    assert_eq!(change["timestamp"], stage.info("001").since.unwrap());
}

#[test]
fn what_we_send_is_no_sign_of_life() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(182));
    assert_eq!(stage.sent.len(), 2, "{:?}", stage.sent);
    assert_eq!(stage.status("001"), AgentStatus::Disconnected);
    stage.wait(s(600));
    assert_eq!(stage.sent.len(), 2, "nothing is sent to an agent that is gone");
}

#[test]
fn any_valid_message_keeps_an_agent_and_brings_it_back() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.keepalive("001", WAZUH);
    stage.told();
    for _ in 0..20 {
        stage.wait(s(100));
        stage.event("001");
    }
    assert_eq!(stage.told(), [""; 0]);
    stage.wait(s(200));
    stage.event("001");
    stage.event("002");
    assert_eq!(
        stage.told(),
        [
            "001 active>disconnected keepalive_timeout 8",
            "001 disconnected>active reconnected 3",
            "002 never_connected>active startup 3"
        ]
    );
}

#[test]
fn plain_event_leaves_a_pending_agent_pending() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.startup("001");
    stage.event("001");
    assert_eq!(stage.status("001"), AgentStatus::Pending);
}

#[test]
fn pending_agent_that_falls_silent_is_disconnected_and_one_that_talks_is_told_of_once() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.startup("001");
    stage.startup("002");
    stage.told();
    for _ in 0..40 {
        stage.wait(s(10));
        stage.event("002");
    }
    assert_eq!(
        stage.told(),
        [
            "001 pending>disconnected stuck_pending 5",
            "002 pending>pending stuck_pending 5"
        ]
    );
    stage.wait(s(200));
    assert_eq!(stage.told(), ["002 pending>disconnected stuck_pending 5"]);
}

#[test]
fn ossec_agent_that_speaks_every_ten_minutes_does_not_flap() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.startup_with("001", StartupOutcome::Accepted { version: None });
    stage.keepalive("001", OSSEC);
    stage.told();
    stage.live(s(86_400), s(600), &["001"], OSSEC);
    assert_eq!(stage.told(), [""; 0]);
    assert!(
        stage.sent.iter().all(|(_, _, text)| text == "#!-agent ack "),
        "never a request"
    );
    assert!(stage.sent.len() > 1400, "one a minute: {}", stage.sent.len());
    let info = stage.info("001");
    assert_eq!((info.timeout, info.observed_interval), (Some(1830), Some(600)));
    stage.wait(s(1840));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn agent_that_answers_requests_is_judged_by_our_own_pace() {
    let hasty = Policy {
        interval: s(5),
        timeout: s(15),
        ..settings().policy
    };
    let mut stage = Stage::with_agents(
        RosterSettings {
            policy: hasty,
            ..settings()
        },
        &["001"],
    );
    stage.answering.insert("001".to_owned());
    stage.keepalive("001", WAZUH);
    assert_eq!(stage.info("001").timeout, Some(90), "not yet known to answer");
    stage.wait(s(60));
    assert_eq!(stage.info("001").timeout, Some(15));
    assert_eq!(stage.status("001"), AgentStatus::Active);
    stage.told();
    stage.answering.clear();
    stage.wait(s(16));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn agent_that_ignores_requests_gets_acks_until_it_starts_anew() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.live(s(300), s(20), &["001"], WAZUH);
    let texts: Vec<&str> = stage.sent.iter().map(|(_, _, text)| &text[..7]).collect();
    assert_eq!(texts, ["#!-req ", "#!-req ", "#!-agen", "#!-agen", "#!-agen"]);
    stage.sent.clear();
    stage.startup("001");
    stage.keepalive("001", WAZUH);
    stage.live(s(70), s(20), &["001"], WAZUH);
    assert!(stage.sent[0].2.starts_with("#!-req "), "{:?}", stage.sent);
}

#[test]
fn answer_over_udp_is_acknowledged_each_time_it_comes() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.keepalive("001", WAZUH);
    let slot = stage.hear("001");
    let (at, peer, keepalive) = (stage.now.mono, PEER.parse().unwrap(), Box::new(Keepalive::parse(WAZUH)));
    stage.news(News::Keepalive {
        slot,
        at,
        peer,
        protocol: Protocol::Udp,
        keepalive,
        digest: 1,
    });
    stage.wait(s(61));
    assert_eq!(stage.sent.last().unwrap().2, "#!-req 7 agent getstate");
    stage.sent.clear();
    stage.answer("001", "7", b"ack");
    stage.answer("001", "7", b"{}");
    stage.answer("001", "7", b"{}");
    stage.answer("001", "8", b"{}");
    let texts: Vec<&str> = stage.sent.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["#!-req 7 ack", "#!-req 7 ack"]);
    assert_eq!(stage.roster.counters().stray_answers_total.value(), 1);
}

#[test]
fn literal_keepalive_has_name_and_time() {
    let sending = Some(Sending {
        probe: ProbeChoice::Keepalive,
        retry: s(30),
    });
    let policy = Policy {
        sending,
        ..settings().policy
    };
    let mut stage = Stage::with_agents(RosterSettings { policy, ..settings() }, &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(61));
    let expected = format!("#!-agent keepalive agent-001 {}", START.wall_ms / 1000 + 181 + 60);
    assert_eq!(stage.sent[0].2, expected);
}

#[test]
fn keepalive_that_cannot_be_sent_is_told_and_tried_again_sooner() {
    let mut stage = Stage::with_agents(
        RosterSettings {
            keepalive_events: KeepaliveEvents::All,
            ..settings()
        },
        &["001"],
    );
    stage.keepalive("001", WAZUH);
    stage.live(s(61), s(20), &["001"], WAZUH);
    stage.unreachable.insert("001".to_owned());
    stage.live(s(151), s(20), &["001"], WAZUH);
    let events = stage.events(Kind::Keepalive);
    let types: Vec<String> = events
        .iter()
        .map(|event| body(event)["event"]["event_type"].to_string())
        .collect();
    assert_eq!(
        types,
        [
            "\"keepalive_sent\"",
            "\"keepalive_failed\"",
            "\"keepalive_failed\"",
            "\"keepalive_failed\"",
            "\"keepalive_failed\""
        ]
    );
    assert_eq!(
        String::from_utf8(events[0].body.clone()).unwrap(),
        format!(
            r#"{{"event":{{"agent_id":"001","agent_name":"agent-001","ip_address":"192.0.2.7","timestamp":{},"event_type":"keepalive_sent","manager_node":"mgr","interval":60}}}}"#,
            START.wall_ms / 1000 + 181 + 60
        )
    );
}

#[test]
fn sampled_keepalives_are_one_in_so_many_and_every_failure() {
    let sampled = RosterSettings {
        keepalive_events: KeepaliveEvents::Sample(3),
        ..settings()
    };
    let mut stage = Stage::with_agents(sampled, &["001"]);
    stage.keepalive("001", WAZUH);
    stage.live(s(60 * 9 + 1), s(20), &["001"], WAZUH);
    assert_eq!(stage.events(Kind::Keepalive).len(), 3);
    stage.unreachable.insert("001".to_owned());
    stage.live(s(120), s(20), &["001"], WAZUH);
    assert!(stage.events(Kind::Keepalive).len() >= 3);
}

#[test]
fn lost_connection_is_told_once_and_changes_no_status() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.lose_connection("001");
    stage.lose_connection("001");
    assert_eq!(stage.status("001"), AgentStatus::Active);
    let events = stage.events(Kind::Connection);
    assert_eq!(events.len(), 1);
    assert_eq!(body(&events[0])["connection"]["reason"], "connection_lost");
    stage.keepalive("001", WAZUH);
    stage.lose_connection("001");
    assert_eq!(stage.events(Kind::Connection).len(), 1);
    stage.told();
    stage.wait(s(200));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn refused_startup_is_told_once_and_makes_nobody_pending() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.keepalive("002", WAZUH);
    stage.told();
    for _ in 0..3 {
        stage.startup_with(
            "001",
            StartupOutcome::RefusedVersion {
                version: "v5.0.0".to_owned(),
            },
        );
        stage.startup_with("002", StartupOutcome::NoVersion);
        stage.wait(s(10));
    }
    assert_eq!(
        stage.told(),
        [
            "001 never_connected>never_connected version_refused 3",
            "002 active>disconnected version_refused 3"
        ]
    );
    assert_eq!(stage.info("001").version.as_deref(), Some("Wazuh v5.0.0"));
}

#[test]
fn goodbye_of_an_agent_that_is_gone_already_is_no_second_change() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.shutdown("001");
    stage.told();
    stage.shutdown("001");
    assert_eq!(stage.told(), [""; 0]);
    assert_eq!(stage.out.notices.len(), 2);
}

#[test]
fn agent_labelled_critical_is_a_critical_loss() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", &WAZUH.replacen('\n', "\n\"criticality\":critical\n", 1));
    stage.told();
    stage.wait(s(200));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 12"]);
}

#[test]
fn agent_that_never_came_is_told_of_after_a_day() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.wait(s(86_000));
    assert_eq!(stage.told(), [""; 0]);
    stage.wait(s(100_000));
    assert_eq!(stage.told(), ["001 never_connected>never_connected never_connected 5"]);
}

#[test]
fn absence_is_said_again_after_an_hour_and_after_a_day_unless_that_is_off() {
    for (escalation, expected) in [(true, 2), (false, 0)] {
        let mut stage = Stage::with_agents(RosterSettings { escalation, ..quiet() }, &["001"]);
        stage.keepalive("001", WAZUH);
        stage.wait(s(181));
        stage.told();
        stage.wait(s(200_000));
        let told = stage.told();
        assert_eq!(told.len(), expected, "{told:?}");
        if escalation {
            assert_eq!(told[0], "001 disconnected>disconnected keepalive_timeout 9");
            assert_eq!(told[1], "001 disconnected>disconnected keepalive_timeout 10");
        }
    }
}

#[test]
fn flapping_agent_says_so_and_raises_one_alert_in_a_quarter_of_an_hour() {
    let hasty = Policy {
        interval: s(20),
        timeout: s(60),
        ..quiet().policy
    };
    let mut stage = Stage::with_agents(
        RosterSettings {
            policy: hasty,
            ..quiet()
        },
        &["001"],
    );
    for _ in 0..6 {
        stage.live(s(60), s(10), &["001"], WAZUH);
        stage.wait(s(62));
    }
    let gone: Vec<Event> = stage
        .events(Kind::StatusChange)
        .into_iter()
        .filter(|event| told(event).contains("timeout"))
        .collect();
    assert_eq!(gone.len(), 6);
    assert!(
        gone.iter().all(|event| told(event).ends_with(" 8")),
        "the level of the body stays"
    );
    assert_eq!(
        gone.iter()
            .filter(|event| event.alert_level >= HIGH_ALERT_THRESHOLD)
            .count(),
        2
    );
    let header = |event: &Event| {
        event
            .headers
            .iter()
            .find(|(name, _)| name == "Muster-Flapping")
            .cloned()
    };
    assert_eq!(header(&gone[1]), None);
    assert!(header(&gone[3]).is_some());
}

#[test]
fn quiet_restart_of_an_agent_is_no_flapping() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.shutdown("001");
    stage.startup("001");
    stage.keepalive("001", WAZUH);
    assert!(
        stage
            .events(Kind::StatusChange)
            .iter()
            .all(|event| event.headers.len() == 1)
    );
}

fn many(count: u32) -> Vec<String> {
    (1..=count).map(|number| format!("{number:03}")).collect()
}

#[test]
fn mass_expiry_is_one_summary_and_no_alarm_for_each() {
    let ids = many(50);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut stage = Stage::with_agents(quiet(), &ids);
    ids.iter().for_each(|id| stage.keepalive(id, WAZUH));
    stage.told();
    stage.live(s(260), s(20), &ids[20..], WAZUH);
    let health = stage.events(Kind::Health);
    assert_eq!(health.len(), 2);
    let (first, last) = (body(&health[0])["health"].clone(), body(&health[1])["health"].clone());
    assert_eq!(
        (&first["reason"], &first["count"], &first["confirmed"]),
        (&"mass_expiry".into(), &20.into(), &false.into())
    );
    assert_eq!(
        (&last["count"], &last["active_before"], &last["confirmed"]),
        (&20.into(), &50.into(), &true.into())
    );
    assert_eq!(first["network"], "192.0.2.7/32");
    let told = stage.told();
    assert_eq!(told.len(), 20, "each one is told");
    assert!(
        told.iter()
            .all(|line| line.ends_with("active>disconnected keepalive_timeout 5")),
        "{told:?}"
    );
    stage.wait(s(400));
    let told = stage.told();
    assert_eq!(told.len(), 30);
}

#[test]
fn nobody_is_disconnected_because_we_stood_still() {
    for stall in [s(100), s(3600), s(86_400)] {
        let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
        ["001", "002"].iter().for_each(|id| stage.keepalive(id, WAZUH));
        stage.wait(s(20));
        stage.told();
        stage.jump(stall);
        stage.wait(s(15));
        stage.keepalive("001", WAZUH);
        stage.wait(s(30));
        assert_eq!(stage.told(), [""; 0], "{stall:?}");
        stage.live(s(200), s(20), &["001"], WAZUH);
        assert_eq!(
            stage.told(),
            ["002 active>disconnected keepalive_timeout 8"],
            "{stall:?}"
        );
    }
}

#[test]
fn steps_of_the_wall_clock_decide_nothing() {
    for step in [-100_000_000_i64, 100_000_000] {
        let mut stage = Stage::with_agents(quiet(), &["001"]);
        stage.keepalive("001", WAZUH);
        stage.told();
        stage.now.wall_ms = stage.now.wall_ms.saturating_add_signed(step);
        stage.live(s(600), s(20), &["001"], WAZUH);
        assert_eq!(stage.told(), [""; 0]);
        let heard = stage.info("001").last_heard.unwrap();
        assert_eq!(heard, stage.now.wall_ms / 1000, "shown by the clock as it is now");
    }
}

/// What the store gives back after a restart, an hour later.
fn restarted(mut stage: Stage, settings: RosterSettings, lines: &str) -> Stage {
    let (rows, _) = stage.roster.take_rows(stage.now, usize::MAX);
    let now = Times {
        mono: stage.now.mono + s(3600),
        wall_ms: stage.now.wall_ms + 3_600_000,
    };
    let mut stage = Stage::restored(settings, now, rows);
    stage.enroll_lines(lines);
    stage
}

const FOUR: &str = "001 agent-001 any 1\n002 agent-002 any 2\n003 agent-003 any 3\n004 agent-004 any 4";

fn four() -> Stage {
    let mut stage = Stage::with_agents(quiet(), &[]);
    stage.enroll_lines(FOUR);
    stage.live(s(100), s(20), &["001"], WAZUH);
    stage.startup("002");
    stage.keepalive("003", OSSEC);
    stage.shutdown("003");
    stage.told();
    stage
}

#[test]
fn restart_changes_nothing_and_tells_nothing() {
    let before = four();
    let shown = before.info("001");
    let mut stage = restarted(before, quiet(), FOUR);
    for (id, status) in [
        ("001", AgentStatus::Active),
        ("002", AgentStatus::Pending),
        ("003", AgentStatus::Disconnected),
        ("004", AgentStatus::NeverConnected),
    ] {
        assert_eq!(stage.status(id), status);
    }
    let info = stage.info("001");
    assert_eq!(
        AgentInfo {
            crypto: info.crypto.clone(),
            ..info.clone()
        },
        AgentInfo { missed: 0, ..shown }
    );
    stage.wait(s(179));
    assert_eq!(
        stage.told(),
        [""; 0],
        "nobody is given up before a whole time-out has passed"
    );
    stage.wait(s(3));
    assert_eq!(
        stage.told(),
        [
            "001 active>disconnected keepalive_timeout 8",
            "002 pending>disconnected stuck_pending 5"
        ]
    );
}

#[test]
fn agent_that_comes_back_after_a_restart_was_never_away() {
    let mut stage = restarted(four(), settings(), FOUR);
    stage.wait(s(170));
    assert_eq!(stage.sent, [], "it has no place to send to before it was heard");
    stage.keepalive("001", WAZUH);
    stage.live(s(300), s(20), &["001"], WAZUH);
    assert!(stage.told().iter().all(|line| !line.starts_with("001")));
    assert!(!stage.sent.is_empty());
}

#[test]
fn key_removed_while_we_were_away_and_id_given_to_another_are_other_agents() {
    let mut stage = restarted(
        four(),
        quiet(),
        "001 newcomer any 9\n002 agent-002 any 2\n003 agent-003 any 3",
    );
    assert_eq!(stage.status("001"), AgentStatus::NeverConnected);
    assert_eq!(stage.roster.len(), 3);
    let (rows, gone) = stage.roster.take_rows(stage.now, usize::MAX);
    assert_eq!(gone, [AgentId::new("004")]);
    assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["001"]);
}

#[test]
fn empty_key_file_at_the_start_does_not_forget_the_fleet() {
    let mut stage = restarted(four(), quiet(), "");
    assert_eq!(stage.roster.take_rows(stage.now, usize::MAX).1, []);
    stage.enroll_lines(FOUR);
    assert_eq!(stage.status("001"), AgentStatus::Active);
}

#[test]
fn removed_key_ends_an_active_agent_and_says_why() {
    let mut stage = four();
    let removed = vec![stage.slot("001"), stage.slot("004")];
    stage.news(News::KeysReloaded {
        added: Vec::new(),
        changed: Vec::new(),
        removed,
    });
    assert_eq!(stage.told(), ["001 active>disconnected key_removed 3"]);
    assert_eq!(stage.roster.len(), 2);
    stage.keepalive("001", WAZUH);
    assert_eq!(stage.told(), [""; 0], "late news of a removed agent brings nobody back");
    assert_eq!(stage.roster.take_rows(stage.now, usize::MAX).1.len(), 2);
    stage.wait(s(600));
}

#[test]
fn changed_key_leaves_the_status_and_news_of_the_old_slot_count_no_more() {
    let mut stage = four();
    let (old, entry) = (
        stage.slot("001"),
        file::parse(b"001 renamed 10.0.0.0/8 99").entries.remove(0),
    );
    let new = Arc::new(AgentSlot::succeed(&entry, &old));
    stage.slots.insert("001".to_owned(), Arc::clone(&new));
    stage.news(News::KeysReloaded {
        added: Vec::new(),
        changed: vec![new],
        removed: Vec::new(),
    });
    assert_eq!(
        (stage.status("001"), stage.info("001").name.as_str()),
        (AgentStatus::Active, "renamed")
    );
    stage.news(News::Shutdown {
        slot: old,
        at: stage.now.mono,
    });
    assert_eq!(stage.status("001"), AgentStatus::Active);
    stage.wait(s(200));
    assert!(
        stage
            .told()
            .contains(&"001 active>disconnected keepalive_timeout 8".to_owned())
    );
}

#[test]
fn pages_are_in_the_order_of_numbers_and_say_whether_more_follow() {
    let mut stage = Stage::new(quiet());
    stage.enroll(&["1000", "002", "010", "abc", "001"]);
    let ids = |page: &[AgentInfo]| page.iter().map(|agent| agent.id.to_string()).collect::<Vec<_>>();
    let (page, more) = stage.roster.page(stage.now, None, 3);
    assert_eq!(
        (ids(&page), more),
        (vec!["001".to_owned(), "002".to_owned(), "010".to_owned()], true)
    );
    let (page, more) = stage.roster.page(stage.now, Some(&AgentId::new("005")), 10);
    assert_eq!(
        (ids(&page), more),
        (vec!["010".to_owned(), "1000".to_owned(), "abc".to_owned()], false)
    );
}

#[test]
fn row_is_stored_once_however_often_it_changed() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.roster.take_rows(stage.now, usize::MAX);
    stage.live(s(200), s(20), &["001"], WAZUH);
    let (rows, _) = stage.roster.take_rows(stage.now, usize::MAX);
    assert_eq!(rows.len(), 1);
    assert!(rows[0].inventory.is_some());
    stage.keepalive("001", WAZUH);
    let (rows, _) = stage.roster.take_rows(stage.now, usize::MAX);
    assert!(rows[0].inventory.is_none(), "what it says of itself has not changed");
}

#[test]
fn inventory_is_shown_as_the_agent_reports_it() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    let text = "Linux |w |6.1 |#1 |x86_64 [Debian GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7 / 0123\n\"a\":b\nabcd merged.mg\n#\"_agent_ip\":10.0.0.9\n";
    stage.keepalive("001", text);
    let info = stage.info("001");
    let os = info.os.unwrap();
    assert_eq!(
        (os.name.as_deref(), os.platform.as_deref()),
        (Some("Debian GNU/Linux"), Some("debian"))
    );
    assert_eq!(
        (info.merged_sum.as_deref(), info.config_sum.as_deref()),
        (Some("abcd"), Some("0123"))
    );
    assert_eq!(
        (info.reported_ip.as_deref(), info.labels),
        (Some("10.0.0.9"), vec!["\"a\":b".to_owned()])
    );
    assert_eq!(
        (info.peer.as_deref(), info.protocol.as_deref()),
        (Some(PEER), Some("tcp"))
    );
}

#[test]
fn new_settings_count_from_now_on() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.told();
    let shorter = Policy {
        interval: s(10),
        timeout: s(30),
        ..quiet().policy
    };
    stage.roster.reconfigure(
        stage.now,
        RosterSettings {
            policy: shorter,
            ..quiet()
        },
    );
    // It has not been watched yet, so it is taken for an agent that speaks every 20 s.
    stage.wait(s(91));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn a_day_of_thousands_of_agents_is_quiet_and_costs_what_is_due() {
    let ids = many(2000);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut stage = Stage::with_agents(settings(), &ids);
    stage.answering = ids.iter().map(|id| (*id).to_owned()).collect();
    ids.iter().for_each(|id| stage.keepalive(id, WAZUH));
    stage.told();
    stage.live(s(7200), s(600), &ids, WAZUH);
    assert_eq!(stage.told(), [""; 0], "answers to our requests are signs of life");
    let rounds = stage.sent.len() / ids.len();
    assert!((119..=120).contains(&rounds), "{rounds}");
    let minutes: BTreeSet<u64> = stage.sent.iter().map(|(second, _, _)| second / 60).collect();
    assert!(minutes.len() >= 119);
}
