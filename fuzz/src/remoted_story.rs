//! remoted's two cores together: what a message means ([`session`]) and who is alive ([`Roster`]).
//!
//! The input is a story: agents with keys, strangers without, connections that come and go, clocks that move, key files
//! that change, restarts. What must hold:
//!
//! * whoever has not proved a key changes nothing at all;
//! * each change of a status is one event, and the events of an agent form a chain that ends at what holds now;
//! * nothing grows with the length of the story.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::draw::Draw;
use muster_config::{CryptoAccept, KeepaliveEvents, KeyConflict, ManagerVersion, Remote, Settings, limits::ESCALATION};
use muster_proto::{
    agent::AgentId,
    ipc::control::MaintenanceScope,
    keys::{cipher::CipherKeys, file},
    transport::{
        control::{HEADER, ToAgent},
        counter::{Counter, SenderCounter},
        envelope::{CryptoForm, Opener, Sealer},
    },
};
use muster_remoted::{
    fuzzing,
    keys::KeyTable,
    options,
    roster::{Actions, Roster, RosterSettings, Times, pulse},
    schedule::{Policy, ProbeChoice, Sending},
    session::{self, Binding, Origin, Ownership, Rules, Sender, Verify},
    slot::{AgentSlot, ConnectionId, Ending, Millis, News, Route, SendError},
    store::Row,
};

#[path = "remoted_checks.rs"]
mod checks;

/// Longer stories teach nothing new, and cost time.
const MAX_STEPS: usize = 150;
/// As many ticks of the clock in one story.
const MAX_TICKS: usize = 3000;

const IDS: [&str; 4] = ["001", "002", "003", "004"];
const ADDRESSES: [&str; 4] = ["any", "10.0.0.2", "10.1.0.0/16", "any"];
const SOURCES: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv4Addr::new(10, 0, 0, 2),
    Ipv4Addr::new(10, 1, 0, 3),
    Ipv4Addr::new(192, 0, 2, 9),
];
const FORMS: [CryptoForm; 3] = [CryptoForm::WazuhAes, CryptoForm::OssecAes, CryptoForm::Blowfish];
const WAZUH: &str =
    "#!-Linux |w |6.1 |#1 |x86_64 [Debian GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7\nx merged.mg\n";
const OSSEC: &str = "#!-Linux o 6.1 #1 x86_64 - OSSEC HIDS v4.2.0\nx merged.mg\n\nrandom";

pub(super) fn story(input: &[u8]) {
    let mut draw = Draw::new(input);
    let mut stage = Stage::new(&mut draw);
    stage.reload_keys(&mut draw, true);
    let mut steps = 0;
    while !draw.is_done() && steps < MAX_STEPS && stage.ticks < MAX_TICKS {
        steps += 1;
        stage.step(&mut draw);
        stage.check();
    }
}

/// What an agent is, apart from what the manager knows of it.
struct Agent {
    /// Which of its keys it has; the file may have another.
    key: u8,
    counter: SenderCounter,
    /// The number of the last request to it.
    request: Option<String>,
}

struct Stage {
    table: KeyTable,
    /// The lines of the file, by place in [`IDS`]: key and address; `None` = no line.
    lines: [Option<(u8, u8)>; IDS.len()],
    agents: [Agent; IDS.len()],
    rules: Rules,
    roster: Roster,
    settings: RosterSettings,
    now: Times,
    out: Actions,
    sequence: u64,
    /// Connections, their source, and the agents bound over them.
    connections: [Option<Connection>; 4],
    /// The last message that was admitted, and under which key.
    captured: Option<Vec<u8>>,
    opener: Opener,
    sealer: Sealer,
    ticks: usize,
    /// What a consumer of the events knows.
    told: BTreeMap<String, u64>,
    /// What a reader of the store knows.
    rows: BTreeMap<String, Row>,
}

struct Connection {
    id: ConnectionId,
    peer: SocketAddr,
    bound: Vec<(Arc<AgentSlot>, bool)>,
}

impl Stage {
    fn new(draw: &mut Draw<'_>) -> Self {
        let choice = draw.byte();
        let remote = Remote {
            key_conflict: if choice & 1 == 0 {
                KeyConflict::First
            } else {
                KeyConflict::Newest
            },
            crypto_accept: [
                CryptoAccept::Both,
                CryptoAccept::Aes,
                CryptoAccept::Blowfish,
                CryptoAccept::Both,
            ][usize::from(choice >> 1 & 3)],
            allow_higher_versions: choice & 8 != 0,
            ..Remote::default()
        };
        let verify = if choice & 16 == 0 { Verify::Ossec } else { Verify::All };
        let settings = RosterSettings {
            policy: Policy {
                interval: Duration::from_secs(60),
                timeout: Duration::from_secs(180),
                max_missed: 3,
                sending: (choice & 32 == 0).then_some(Sending {
                    probe: ProbeChoice::Auto,
                    retry: Duration::from_secs(30),
                }),
            },
            keepalive_events: if choice & 64 == 0 {
                KeepaliveEvents::Off
            } else {
                KeepaliveEvents::All
            },
            escalation: if choice & 128 == 0 {
                Vec::new()
            } else {
                ESCALATION.to_vec()
            },
            ..options::roster_settings(&Settings::default(), "mgr")
        };
        let now = Times {
            mono: Millis(50_000_000),
            wall_ms: 1_795_000_000_000,
        };
        Self {
            table: KeyTable::default(),
            lines: [None; IDS.len()],
            agents: std::array::from_fn(|_| Agent {
                key: 0,
                counter: SenderCounter::default(),
                request: None,
            }),
            rules: Rules::new(&remote, ManagerVersion::default(), verify),
            roster: Roster::new(settings.clone(), now, Vec::new(), 7),
            settings,
            now,
            out: Actions::default(),
            sequence: 0,
            connections: [None, None, None, None],
            captured: None,
            opener: Opener::new(),
            sealer: Sealer::new(),
            ticks: 0,
            told: BTreeMap::new(),
            rows: BTreeMap::new(),
        }
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        let choice = draw.byte();
        match choice % 16 {
            0..=4 if choice >= 240 => self.maintain(draw),
            0..=4 => self.honest(draw),
            5 => {
                // Anything at all, from a stranger.
                let origin = self.origin(draw);
                let mut packet = if draw.flag() {
                    format!("!{}!", IDS[draw.below(IDS.len())]).into_bytes()
                } else {
                    Vec::new()
                };
                packet.extend_from_slice(draw.bytes());
                self.powerless(&origin, &packet);
            }
            6 => self.wrong_key(draw),
            7 => {
                // What somebody overheard, from anywhere.
                let origin = self.origin(draw);
                if let Some(packet) = self.captured.clone() {
                    self.handle(&origin, &packet);
                }
            }
            8 => {
                let place = draw.below(self.connections.len());
                self.close(place);
            }
            9 => self.reload_keys(draw, false),
            10 | 11 => self.wait(Duration::from_secs(u64::from(draw.byte()))),
            12 => self.tick_after(Duration::from_secs(u64::from(draw.u16()))),
            13 => {
                let step = i64::from(draw.u32()) - (1 << 31);
                self.now.wall_ms = self.now.wall_ms.saturating_add_signed(step);
            }
            14 => {
                let seconds = u64::from(draw.byte()) + 1;
                self.settings.policy.interval = Duration::from_secs(seconds);
                self.settings.policy.timeout = Duration::from_secs(3 * seconds);
                self.roster.reconfigure(self.now, self.settings.clone());
            }
            _ => self.restart(),
        }
    }

    /// A maintenance window is opened or ended.
    fn maintain(&mut self, draw: &mut Draw<'_>) {
        let scope = match draw.below(4) {
            0 => MaintenanceScope::All,
            1 => MaintenanceScope::Group("default".to_owned()),
            _ => MaintenanceScope::Agent(AgentId::new(IDS[draw.below(IDS.len())])),
        };
        let mut windows = self.roster.maintenance().clone();
        let changed = if draw.flag() {
            windows.stop(draw.flag().then_some(&scope))
        } else {
            let opened = windows.start(scope, u64::from(draw.u16()), self.now.wall_ms / 1000);
            opened.into_iter().collect()
        };
        self.roster
            .set_maintenance(self.now, windows, &changed, "maintenance_started");
    }

    /// A connection or a datagram.
    fn origin(&mut self, draw: &mut Draw<'_>) -> Origin {
        let choice = draw.byte();
        let source = SOURCES[usize::from(choice & 3)];
        let peer = SocketAddr::new(IpAddr::V4(source), 40_000 + u16::from(choice >> 2 & 1));
        if choice & 8 == 0 {
            let socket = usize::from(choice >> 4 & 1);
            return Origin {
                route: Route::Udp {
                    worker: 0,
                    socket,
                    peer,
                },
            };
        }
        let place = usize::from(choice >> 4 & 3);
        if self.connections[place].is_none() {
            self.sequence += 1;
            self.connections[place] = Some(Connection {
                id: ConnectionId::new(place & 1, self.sequence),
                peer,
                bound: Vec::new(),
            });
        }
        let connection = self.connections[place].as_ref().expect("just made");
        Origin {
            route: Route::Tcp {
                connection: connection.id,
                peer: connection.peer,
            },
        }
    }

    fn honest(&mut self, draw: &mut Draw<'_>) {
        let origin = self.origin(draw);
        let place = draw.below(IDS.len());
        let form = FORMS[draw.below(FORMS.len())];
        let payload = match draw.below(12) {
            0 => b"#!-agent startup ".to_vec(),
            1 => br##"#!-agent startup {"version":"v4.14.7"}"##.to_vec(),
            2 => br##"#!-agent startup {"version":"v99.0.0"}"##.to_vec(),
            3 => WAZUH.as_bytes().to_vec(),
            4 => OSSEC.as_bytes().to_vec(),
            5 => b"#!-agent shutdown ".to_vec(),
            6 | 7 => b"1:/var/log/syslog:something happened".to_vec(),
            8 => {
                let request = self.agents[place].request.clone().unwrap_or_default();
                format!("#!-req {request} {{}}").into_bytes()
            }
            9 => [HEADER, draw.bytes()].concat(),
            _ => draw.bytes().to_vec(),
        };
        let agent = &mut self.agents[place];
        let counter = match draw.below(8) {
            7 => Counter {
                global: u32::from(draw.u16()),
                local: u32::from(draw.byte()),
            },
            _ => agent.counter.next(),
        };
        let keys = keys_of(place, agent.key);
        let prefix = format!("!{}!", IDS[place]);
        let Ok(sealed) = self.sealer.seal(&keys, form, counter, 1, [9; 16], &payload, None) else {
            return;
        };
        // Agents with an address of their own send no id.
        let packet = if draw.below(4) == 0 {
            sealed.to_vec()
        } else {
            [prefix.as_bytes(), sealed].concat()
        };
        let owns_line = self.lines[place].is_some_and(|(key, _)| key == agent.key);
        if owns_line {
            if self.handle(&origin, &packet) {
                self.captured = Some(packet);
            }
        } else {
            self.powerless(&origin, &packet);
        }
    }

    /// Sealed by somebody who has another agent's key, or none that is known.
    fn wrong_key(&mut self, draw: &mut Draw<'_>) {
        let origin = self.origin(draw);
        let (victim, other) = (draw.below(IDS.len()), draw.byte());
        let form = FORMS[draw.below(FORMS.len())];
        let keys = CipherKeys::derive(IDS[victim], &name_of(victim), &format!("stolen-{other}"));
        let counter = Counter {
            global: u32::MAX,
            local: 1,
        };
        let payload: &[u8] = if draw.flag() {
            b"#!-agent shutdown "
        } else {
            WAZUH.as_bytes()
        };
        let Ok(sealed) = self
            .sealer
            .seal(&keys, form, counter, 1, [9; 16], payload, Some(IDS[victim]))
        else {
            return;
        };
        let packet = sealed.to_vec();
        self.powerless(&origin, &packet);
    }

    /// What a worker does with a message. Says whether it was admitted; if not, its connection is closed.
    fn handle(&mut self, origin: &Origin, packet: &[u8]) -> bool {
        let now = self.now.mono;
        let Ok(sender) = session::identify(&self.table, origin.peer().ip(), packet) else {
            return false;
        };
        let Sender::Agent { slot, named, sealed } = sender else {
            return false;
        };
        let slot = Arc::clone(slot);
        let ownership = session::ownership(&slot, origin, now, &self.rules);
        let opened = match self.opener.open(&slot.keys, sealed, Some(slot.form())) {
            Ok(opened) => opened,
            Err(error) => {
                let _ = session::refusal_of(error, named, ownership);
                return false;
            }
        };
        let proof = (opened.form, opened.counter);
        if session::admit(&slot, proof, named, ownership, &self.rules, |_| None).is_err() {
            return false;
        }
        assert_ne!(ownership, Ownership::Taken);
        fuzzing::proved(&slot, now, opened.form);
        if let Ownership::Overtakes(owner) = ownership {
            fuzzing::unbind(&slot, owner);
        }
        let decision = session::decide(&slot, opened.payload, origin, now, &self.rules);
        assert!(
            decision.reply.is_none() || decision.binding == Binding::Bind,
            "whoever is answered is bound"
        );
        assert!(decision.event.is_none() || decision.reply.is_none());
        if decision.binding == Binding::Bind {
            fuzzing::bind(&slot, origin.route);
        }
        if decision.binding != Binding::Keep {
            let goodbye = decision.binding == Binding::Goodbye;
            let connection = origin.connection();
            let memory = self
                .connections
                .iter_mut()
                .flatten()
                .find(|memory| Some(memory.id) == connection);
            if let Some(memory) = memory {
                match memory.bound.iter_mut().find(|(bound, _)| Arc::ptr_eq(bound, &slot)) {
                    Some((_, said)) => *said = goodbye,
                    None => memory.bound.push((Arc::clone(&slot), goodbye)),
                }
            }
        }
        if let Some(News::Keepalive { said, .. }) = &decision.news
            && let Some(family) = said.keepalive().fields().family()
        {
            fuzzing::set_family(&slot, family);
        }
        if let Some(news) = decision.news {
            self.tell(news);
        }
        true
    }

    fn close(&mut self, place: usize) {
        let Some(connection) = self.connections[place].take() else {
            return;
        };
        for (slot, goodbye) in connection.bound {
            let current = self
                .table
                .by_id(slot.id.as_str())
                .filter(|current| !Arc::ptr_eq(current, &slot))
                .cloned();
            let mut lost = fuzzing::unbind(&slot, connection.id);
            if let Some(current) = &current {
                lost |= fuzzing::unbind(current, connection.id);
            }
            if lost && !goodbye {
                self.tell(News::ConnectionLost {
                    slot: current.unwrap_or(slot),
                    at: self.now.mono,
                    peer: connection.peer,
                    ending: Ending::ByPeer,
                });
            }
        }
    }

    /// The file of now becomes the table; agents mostly learn of their new keys.
    fn reload_keys(&mut self, draw: &mut Draw<'_>, all: bool) {
        for place in 0..IDS.len() {
            let choice = draw.byte();
            self.lines[place] = (all || choice & 7 != 0).then_some((choice >> 3 & 1, choice >> 4 & 3));
            if choice & 128 == 0
                && let Some((key, _)) = self.lines[place]
            {
                self.agents[place].key = key;
            }
        }
        self.load_table(draw.bytes());
    }

    fn load_table(&mut self, garbage: &[u8]) {
        let mut text = String::new();
        for (place, line) in self.lines.iter().enumerate() {
            if let Some((key, address)) = line {
                let name = name_of(place);
                text += &format!(
                    "{} {name} {} key-{place}-{key}\n",
                    IDS[place],
                    ADDRESSES[usize::from(*address)]
                );
            }
        }
        // Half a line of somebody's editor; it must not become an agent.
        let garbage: Vec<u8> = garbage.iter().copied().filter(|byte| *byte != b'\n').collect();
        let text = [text.as_bytes(), b"#", &garbage].concat();
        let (table, changes) = self.table.next(&file::parse(&text));
        self.table = table;
        assert!(self.table.len() <= IDS.len());
        let gone: Vec<String> = changes.removed.iter().map(|slot| slot.id.to_string()).collect();
        self.tell(News::KeysReloaded {
            added: changes.added,
            changed: changes.changed,
            removed: changes.removed,
        });
        self.hear_events();
        for id in gone {
            assert!(
                matches!(self.told.remove(&id), None | Some(1 | 3)),
                "whoever goes was told to be gone"
            );
        }
    }

    fn tell(&mut self, news: News) {
        self.roster.on_news(self.now, news, &mut self.out);
        self.perform();
    }

    fn perform(&mut self) {
        let sends = std::mem::take(&mut self.out.sends);
        assert!(sends.len() <= 2 * IDS.len(), "{} messages at once", sends.len());
        for sent in sends {
            let text = String::from_utf8_lossy(&sent.payload).into_owned();
            let _ = ToAgent::parse(&sent.payload);
            let place = IDS.iter().position(|id| *id == sent.slot.id.as_str());
            let outcome = if sent.slot.route().is_some() {
                Ok(())
            } else {
                Err(SendError::NoRoute)
            };
            if let (Ok(()), Some(place), Some(rest)) = (&outcome, place, text.strip_prefix("#!-req ")) {
                self.agents[place].request = rest.split(' ').next().map(str::to_owned);
            }
            self.roster.on_sent(self.now, &sent, outcome, &mut self.out);
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now.mono + time;
        while self.now.mono < until && self.ticks < MAX_TICKS {
            let nap = self.now.mono + pulse::LONGEST_NAP;
            let next = self.roster.next_tick().map_or(nap, |next| next.min(nap));
            let next = next.max(self.now.mono + Duration::from_millis(1)).min(until);
            self.tick_after(next.since(self.now.mono));
        }
    }

    fn tick_after(&mut self, time: Duration) {
        self.ticks += 1;
        self.now.mono = self.now.mono + time;
        self.now.wall_ms = self
            .now
            .wall_ms
            .saturating_add(u64::try_from(time.as_millis()).unwrap_or(0));
        self.roster.on_tick(self.now, &mut self.out);
        self.perform();
        self.hear_events();
    }

    /// Another process goes on with what was stored.
    fn restart(&mut self) {
        self.check();
        let rows = self.rows.values().cloned().collect();
        self.roster = Roster::new(self.settings.clone(), self.now, rows, 7);
        self.connections = [None, None, None, None];
        self.table = KeyTable::default();
        // Without any key nobody can be told of; the next reload tells of those that are gone.
        self.load_table(b"");
    }
}

fn name_of(place: usize) -> String {
    format!("agent-{place}")
}

fn keys_of(place: usize, key: u8) -> CipherKeys {
    CipherKeys::derive(IDS[place], &name_of(place), &format!("key-{place}-{key}"))
}
