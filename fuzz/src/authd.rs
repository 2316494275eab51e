//! authd's core: who gets a key, which ids are given, and the text of the file.
//!
//! The input is a story: asks of strangers and of local programs, removals, edits by hand, restarts. What must hold:
//!
//! * whoever is refused changes nothing;
//! * what is written reads back the same, so that the file can be the truth;
//! * ids are given once: a new one is above every one that the file ever named;
//! * nobody whom the rules keep is replaced, and a granted agent is there, alone under its id, its name and its address.

use std::collections::HashMap;

use muster_authd::{
    keystore::{KeyStore, Trace},
    merge::{Found, merge},
    reconcile::reconcile,
    registry::{Ask, GivesWay, KnownLiveness, Method, Policy, Refused, Registry, Verdict},
};
use muster_proto::{
    agent::{AgentId, AgentStatus},
    enrollment::{
        answer::{Answer, Granted},
        force::Rules,
        key_hash, name,
        request::{AddressWish, GivenAddress, Policy as Reading, Request},
    },
    ipc::control::Liveness,
    keys::{Secret, file},
    local::auth,
};

#[path = "draw.rs"]
mod draw;
use draw::Draw;

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[("authd", story)];

/// Longer stories teach nothing new, and cost time.
const MAX_STEPS: usize = 100;
const PASSWORD: &str = "open sesame";
const MANAGER: &str = "manager";
const NAMES: [&str; 5] = ["web-01", "web-02", "db", "manager", "a.b"];
const HOSTS: [&str; 6] = [
    "any",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.1/24",
    "2001:db8::1",
    "not an address",
];

fn story(input: &[u8]) {
    let mut draw = Draw::new(input);
    let mut stage = Stage::new(&mut draw);
    let mut steps = 0;
    while !draw.is_done() && steps < MAX_STEPS {
        steps += 1;
        stage.step(&mut draw);
        stage.check();
    }
}

struct Stage {
    registry: Registry,
    now: i64,
    max_agents: u32,
    has_password: bool,
    /// How many keys were made.
    keys: u32,
    /// The highest number that was ever given or read.
    highest: u32,
}

impl Stage {
    fn new(draw: &mut Draw<'_>) -> Self {
        let choice = draw.byte();
        let max_agents = u32::from(choice & 7);
        let file = file::parse(draw.bytes());
        let highest = file.highest_number;
        let keys = KeyStore::new(file);
        let registered = keys.live().iter().map(|entry| (entry.id.clone(), 0)).collect();
        Self {
            registry: Registry {
                keys,
                registered,
                leases: None,
            },
            now: 1_000_000,
            max_agents,
            has_password: choice & 8 != 0,
            keys: 0,
            highest,
        }
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        match draw.below(10) {
            0..=2 => {
                if let Some(ask) = self.remote_ask(draw) {
                    self.ask(&ask, draw);
                }
            }
            3 | 4 => {
                if let Some(ask) = local_ask(draw) {
                    self.ask(&ask, draw);
                }
            }
            5 => {
                let id = self.some_id(draw);
                let trace = if draw.flag() { Trace::Line } else { Trace::Nothing };
                let before = self.registry.keys.live().len();
                let was_there = self.registry.keys.get(id.as_str()).is_some();
                let gone = self.registry.remove(&id, trace);
                assert_eq!(gone.is_some(), was_there);
                assert_eq!(self.registry.keys.live().len(), before - usize::from(was_there));
            }
            6 => self.edit(draw),
            7 => self.now += i64::from(draw.u32()),
            8 => self.restart(),
            _ => self.registry.keys.forget_removed(),
        }
    }

    /// A request as it comes over the network: only what the parser admits gets to the registry.
    fn remote_ask(&self, draw: &mut Draw<'_>) -> Option<Ask> {
        let line = match draw.below(3) {
            0 => [b"OSSEC A:'", draw.bytes()].concat(),
            _ => {
                let mut line = format!("OSSEC A:'{}'", NAMES[draw.below(NAMES.len())]);
                if draw.flag() {
                    line += " G:'default'";
                }
                if draw.flag() {
                    line += &format!(" IP:'{}'", HOSTS[draw.below(HOSTS.len())]);
                }
                if draw.flag()
                    && let Some(entry) = self.registry.keys.live().first()
                {
                    line += &format!(" K:'{}'", key_hash(entry.id.as_str(), &entry.name, &entry.key));
                }
                line.into_bytes()
            }
        };
        // Whoever does not say the password is not even heard.
        let said = if self.has_password { draw.below(4) } else { 0 };
        let line = match said {
            0 => line,
            1 => [b"OSSEC PASS: wrong ".as_slice(), &line].concat(),
            _ => [b"OSSEC PASS: ".as_slice(), PASSWORD.as_bytes(), b" ", &line].concat(),
        };
        let password = self.has_password.then(|| Secret::new(PASSWORD.to_owned()));
        let reading = Reading {
            password: password.as_ref(),
            newest_version: None,
        };
        let request = Request::parse(&line, &reading).ok()?;
        assert!(!self.has_password || said > 1, "nobody gets in without the password");
        let address = match request.address {
            AddressWish::Unsaid => GivenAddress::any(),
            AddressWish::Source => GivenAddress::of_peer([10, 0, 0, 1].into()),
            AddressWish::Given(given) => given,
        };
        Some(Ask {
            name: request.name,
            address: Some(address),
            id: None,
            key_hash: request.key_hash,
            rules: rules(draw),
            groups: request.groups,
            method: Method::Remote,
            source: None,
        })
    }

    fn ask(&mut self, ask: &Ask, draw: &mut Draw<'_>) {
        let policy = Policy {
            manager_name: MANAGER,
            max_agents: self.max_agents,
        };
        let mut known = KnownLiveness::new();
        let before = self.registry.keys.image();
        let times = self.registry.registered.clone();
        let verdict = loop {
            match self.registry.decide(ask, &known, &policy, self.now) {
                Verdict::NeedsLiveness(id) => {
                    assert!(
                        known.insert(id, liveness(draw, self.now)).is_none(),
                        "nobody is asked twice about one agent"
                    );
                }
                verdict => break verdict,
            }
        };
        let gives_way = match verdict {
            Verdict::Grant(gives_way) => gives_way,
            Verdict::Refuse(refused) => {
                assert!(
                    *self.registry.keys.image() == *before && self.registry.registered == times,
                    "a refusal changes nothing"
                );
                if let Refused::InTheWay { id, .. } = refused {
                    assert!(self.registry.keys.get(id.as_str()).is_some());
                }
                return;
            }
            Verdict::NeedsLiveness(_) => unreachable!("the loop goes on"),
        };
        assert!(ask.name != MANAGER, "nobody gets the manager's name");
        for agent in &gives_way {
            assert!(ask.rules.enabled, "nobody gives way when the rules are off");
            if ask.rules.disconnected_time.is_some() {
                let liveness = known
                    .get(&agent.id)
                    .copied()
                    .flatten()
                    .expect("somebody said how it is connected");
                assert!(matches!(
                    liveness.status,
                    AgentStatus::Disconnected | AgentStatus::NeverConnected
                ));
            }
        }
        let next = self.registry.keys.next_id();
        self.keys += 1;
        let key = Secret::new(format!("{:064x}", self.keys));
        let trace = if draw.flag() { Trace::Line } else { Trace::Nothing };
        let (entry, gone) = self
            .registry
            .grant(ask, &gives_way, key, trace, self.now)
            .expect("granted");
        assert!(gone.len() >= gives_way.len(), "whoever gives way goes");
        for entry in &gone {
            let named = |agent: &GivesWay| agent.id == entry.id && agent.name == entry.name;
            assert!(gives_way.iter().any(named), "nobody else goes");
        }
        assert_eq!(Some(&entry.id), ask.id.as_ref().or(next.as_ref()));
        if ask.id.is_none() {
            assert!(
                entry.id.number().is_some_and(|number| number > self.highest),
                "no id is given twice"
            );
        }
        self.highest = self.highest.max(entry.id.number().unwrap_or(0));
        let keys = &self.registry.keys;
        assert_eq!(keys.with_id(&entry.id).len(), 1);
        assert_eq!(keys.with_name(&entry.name).len(), 1);
        if !entry.address.is_any() {
            assert_eq!(keys.with_host(entry.address.host_text()).len(), 1);
        }
        if self.max_agents > 0 {
            assert!(keys.live().len() <= (self.max_agents as usize).max(keys.live().len() - 1));
        }
        // The agent can read what it is told.
        if name::is_valid(ask.name.as_bytes())
            && let Some(address) = &ask.address
        {
            let granted = Granted {
                id: entry.id.to_string(),
                name: ask.name.clone(),
                address: address.answer.clone(),
                key: entry.key.clone(),
            };
            assert!(Answer::parse(&granted.to_wire()) == Answer::Granted(granted));
        }
    }

    /// Somebody edits the file.
    fn edit(&mut self, draw: &mut Draw<'_>) {
        let mut text = self.registry.keys.image().to_vec();
        let place = usize::from(draw.u16()) % (text.len() + 1);
        match draw.below(4) {
            0 => text.truncate(place),
            1 => drop(text.splice(place..place, draw.bytes().iter().copied())),
            2 => text.extend_from_slice(draw.bytes()),
            _ => text = draw.bytes().to_vec(),
        }
        let before = self.registry.keys.live().len();
        let file = file::parse(&text);
        let marked = file.removed.len();
        self.highest = self.highest.max(file.highest_number);
        let found = Found {
            file,
            is_whole: text.last().is_none_or(|last| *last == b'\n'),
        };
        merge(&mut self.registry, found, self.now);
        assert!(
            self.registry.keys.live().len() + marked >= before,
            "a line that is merely missing is not a removal"
        );
    }

    /// Another process reads what was written.
    fn restart(&mut self) {
        let keys = KeyStore::new(file::parse(&self.registry.keys.image()));
        let reconciled = reconcile(keys.live(), &HashMap::new(), &HashMap::new(), self.now);
        assert!(
            keys.live()
                .iter()
                .all(|entry| reconciled.registered.contains_key(&entry.id))
        );
        // A line that was removed without a trace, or an edit, may have had the highest number: the database keeps it.
        let mut keys = keys;
        keys.raise_highest_number(self.highest.min(muster_authd::keystore::HIGHEST_ID));
        self.registry.keys = keys;
        let now = self.now;
        let registered = &mut self.registry.registered;
        registered.retain(|id, _| reconciled.registered.contains_key(id));
        for id in reconciled.registered.into_keys() {
            registered.entry(id).or_insert(now);
        }
    }

    fn some_id(&self, draw: &mut Draw<'_>) -> AgentId {
        let place = draw.below(8);
        let live = self.registry.keys.live().get(place);
        live.map_or_else(
            || AgentId::from_number(u32::from(draw.byte())),
            |entry| entry.id.clone(),
        )
    }

    fn check(&mut self) {
        let image = self.registry.keys.image();
        let mut again = KeyStore::new(file::parse(&image));
        let keys = &self.registry.keys;
        assert!(
            again.live() == keys.live(),
            "what is written reads back: {}",
            image.escape_ascii()
        );
        assert!(
            again.removed() == keys.removed(),
            "removed lines read back: {}",
            image.escape_ascii()
        );
        assert!(*again.image() == *image, "and is written the same");
        for entry in keys.live() {
            assert!(
                self.registry.registered.contains_key(&entry.id),
                "{} was registered some time",
                entry.id
            );
            let known = keys.get(entry.id.as_str()).expect("found by id");
            assert!(known.id == entry.id);
            assert!(keys.with_id(&entry.id).contains(&entry));
            assert!(keys.with_name(&entry.name).contains(&entry));
            assert!(entry.address.is_any() || keys.with_host(entry.address.host_text()).contains(&entry));
        }
        assert!(
            self.registry.registered.len() <= keys.live().len(),
            "nothing is kept of those that are gone"
        );
        assert!(keys.highest_number() >= again.highest_number());
    }
}

fn local_ask(draw: &mut Draw<'_>) -> Option<Ask> {
    let add = if draw.flag() {
        match auth::Request::parse(draw.bytes()) {
            Ok(auth::Request::Add(add)) => *add,
            _ => return None,
        }
    } else {
        auth::Add {
            name: if draw.flag() {
                NAMES[draw.below(NAMES.len())].to_owned()
            } else {
                draw.text()
            },
            ip: HOSTS[draw.below(HOSTS.len())].to_owned(),
            id: draw.flag().then(|| draw.text()).and_then(|id| auth::new_id(&id)),
            key: None,
            groups: Vec::new(),
            key_hash: None,
            force: None,
        }
    };
    if !name::fits_a_key_line(&add.name) {
        return None;
    }
    Some(Ask {
        address: GivenAddress::parse(&add.ip),
        rules: add.force.unwrap_or_else(|| rules(draw)),
        name: add.name,
        id: add.id,
        key_hash: add.key_hash,
        groups: add.groups,
        method: Method::Local,
        source: None,
    })
}

fn rules(draw: &mut Draw<'_>) -> Rules {
    let choice = draw.byte();
    Rules {
        enabled: choice & 1 == 0,
        key_mismatch: choice & 2 == 0,
        disconnected_time: (choice & 4 == 0).then_some(i64::from(choice >> 4)),
        after_registration_time: if choice & 8 == 0 { 0 } else { 3600 },
    }
}

fn liveness(draw: &mut Draw<'_>, now: i64) -> Option<Liveness> {
    let choice = draw.byte();
    let status = AgentStatus::from_code(choice & 3)?;
    (choice & 4 == 0).then(|| Liveness {
        status,
        disconnected_at: u64::try_from(now).unwrap_or(0).saturating_sub(u64::from(choice >> 3)),
    })
}
