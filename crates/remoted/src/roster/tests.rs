//! Days of a fleet in milliseconds: a made-up clock, a courier that does as told, and agents that say what they are
//! told to say.

mod absence;
mod alerts;
mod anything;
mod life;
mod maintenance;
mod parting;
mod restart;
mod sending;
mod silence;

use std::collections::{BTreeMap, BTreeSet};

use muster_config::limits::ESCALATION;
use muster_proto::{
    agent::AgentStatus,
    event::{HIGH_ALERT_THRESHOLD, Kind},
    keys::file,
};
use serde_json::Value;

use super::*;
use crate::{
    monitor::MonitorSettings,
    schedule::{ProbeChoice, Sending},
    slot::{Ending, Protocol, StartupOutcome},
};

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
        keepalive_received: false,
        escalation: Vec::new(),
        monitor: MonitorSettings::default(),
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
            let text = String::from_utf8(sent.payload.to_vec()).unwrap();
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
        let (slot, at) = (self.hear(id), self.now.mono);
        let (peer, protocol, said) = (PEER.parse().unwrap(), Protocol::Tcp, slot.say(text));
        self.news(News::Keepalive {
            slot,
            at,
            peer,
            protocol,
            said,
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
            ending: Ending::ByPeer,
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

fn many(count: u32) -> Vec<String> {
    (1..=count).map(|number| format!("{number:03}")).collect()
}

const FOUR: &str = "001 agent-001 any 1\n002 agent-002 any 2\n003 agent-003 any 3\n004 agent-004 any 4";

/// One agent of each status.
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
