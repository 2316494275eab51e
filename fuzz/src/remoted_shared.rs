//! Shared files: what groups an agent has, what its file is, and the file on its way.
//!
//! The input is a story of agents that report, reconnect and get new keys, of a disk that changes, and of an authd that
//! knows the groups, is away, or says no. What must hold:
//!
//! * what an agent has received whole is a merged file that there was, byte for byte;
//! * no piece of a file looks like a message, and no more is under way than the limits say;
//! * when nothing is left to do, nothing asks to be woken at once;
//! * in the end, when everything works again, every agent has the file of its groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    agent::AgentId,
    ipc::control::AgentGroups,
    keys::file,
    shared::sum,
    transport::{
        control::{HEADER, ToAgent},
        keepalive::Family,
    },
};
use muster_remoted::{
    fuzzing,
    shared::{
        core::{Answer, Core, Look, ONLY_ASK, Options, Question, Registrar, Sign, Told},
        library::{Library, MergedFile},
        membership::{Guess, Reported},
        push::{Stopped, Taken},
        pushes::{Job, JobResult, Limits},
    },
    slot::{AgentSlot, ConnectionId, Millis, Route},
};

use super::draw::Draw;

/// Longer stories teach nothing new, and cost time.
const MAX_STEPS: usize = 120;
const AGENTS: usize = 5;
const GROUPS: [&str; 5] = ["default", "ossec", "web", "db", "missing"];
const LIMITS: Limits = Limits { active: 2, begun: 3 };

pub(super) fn shared(input: &[u8]) {
    let mut draw = Draw::new(input);
    let mut stage = Stage::new(&mut draw);
    let mut steps = 0;
    while !draw.is_done() && steps < MAX_STEPS {
        steps += 1;
        stage.step(&mut draw);
        stage.check();
    }
    stage.settle();
}

/// An agent, from its own side.
struct Agent {
    slot: Arc<AgentSlot>,
    is_there: bool,
    /// The sum of the file that it has.
    has: String,
    /// The file that it is getting: its sum, and what has come.
    getting: Option<(String, Vec<u8>)>,
    /// The push that was begun last for it.
    ticket: u64,
    /// Whether something of an older push came between.
    is_disturbed: bool,
}

struct Stage {
    core: Core,
    registrar: Registrar,
    /// The stock database knows the groups, and not authd.
    is_by_database: bool,
    now: Millis,
    sequence: u64,
    agents: [Agent; AGENTS],
    /// The files of the groups that there are.
    disk: BTreeMap<String, Vec<u8>>,
    /// Every sum that there ever was.
    sums: BTreeSet<String>,
    /// What authd knows, and its version.
    groups: BTreeMap<AgentId, Vec<String>>,
    version: u64,
    look: Option<Look>,
    question: Option<Question>,
    jobs: Vec<Job>,
}

impl Stage {
    fn new(draw: &mut Draw<'_>) -> Self {
        let choice = draw.byte();
        let now = Millis(1_000_000);
        let options = Options {
            look_every: Duration::from_secs(10),
            guess: if choice & 1 == 0 { Guess::Never } else { Guess::ByFile },
            limits: LIMITS,
            registrar: if choice & 2 == 0 {
                Registrar::Authd
            } else {
                Registrar::Nobody
            },
        };
        Self {
            core: Core::new(options, now),
            registrar: options.registrar,
            is_by_database: choice & 4 != 0,
            now,
            sequence: 0,
            agents: std::array::from_fn(|number| Agent {
                slot: slot(number, choice >> (number % 4) & 16 != 0),
                is_there: true,
                has: "x".to_owned(),
                getting: None,
                ticket: 0,
                is_disturbed: false,
            }),
            disk: BTreeMap::new(),
            sums: BTreeSet::new(),
            groups: BTreeMap::new(),
            version: 1,
            look: None,
            question: None,
            jobs: Vec::new(),
        }
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        let number = draw.below(AGENTS);
        match draw.below(16) {
            0..=3 => {
                let sum = match draw.below(6) {
                    0 => None,
                    1 => Some(draw.text()),
                    _ => Some(self.agents[number].has.clone()),
                };
                self.report(number, sum, draw.flag());
            }
            4 => self.move_to(number, draw.byte()),
            5 => {
                let agent = &mut self.agents[number];
                if let Some(Route::Tcp { connection, .. }) = agent.slot.route() {
                    fuzzing::unbind(&agent.slot, connection);
                    agent.getting = None;
                }
            }
            6 => self.break_off(number),
            7 => self.change_keys(number, draw.byte()),
            8 | 9 => self.ask_all(draw),
            10 | 11 => self.jobs(draw),
            12 => self.now = self.now + Duration::from_millis(u64::from(draw.u16())),
            13 => {
                let group = GROUPS[draw.below(GROUPS.len())];
                if draw.below(4) == 0 {
                    self.disk.remove(group);
                } else {
                    let content = [b"#group\n".as_slice(), &draw.bytes().repeat(1 + draw.below(40))].concat();
                    self.disk.insert(group.to_owned(), content);
                }
            }
            14 => {
                let count = draw.below(4);
                let groups = (0..count).map(|_| GROUPS[draw.below(GROUPS.len())].to_owned());
                let id = self.agents[number].slot.id.clone();
                let groups: BTreeSet<String> = groups.collect();
                self.groups.insert(id, groups.into_iter().collect());
                self.version += 1;
                self.core.on_prompt(self.now);
            }
            _ => self.core.on_missed_keys(),
        }
    }

    fn report(&mut self, number: usize, sum: Option<String>, is_told: bool) {
        let agent = &self.agents[number];
        if !agent.is_there {
            return;
        }
        let reported = Reported {
            slot: Arc::clone(&agent.slot),
            sum: sum.map(Arc::from),
        };
        let mut told = Vec::new();
        self.core.on_sign(self.now, Sign::Reported(reported), &mut told);
        self.tell(told, is_told);
    }

    fn tell(&mut self, told: Vec<Told>, is_told: bool) {
        for one in told {
            assert!(!one.1.groups.is_empty(), "whoever is told of has groups");
            if is_told {
                self.core.told(&one);
            }
        }
    }

    /// The agent is reached in another way; what it was getting is closed.
    fn move_to(&mut self, number: usize, choice: u8) {
        self.sequence += 1;
        let peer = ([10, 0, 0, 1], 40_000 + u16::from(choice >> 4)).into();
        let route = if choice & 1 == 0 {
            Route::Tcp {
                connection: ConnectionId::new(0, self.sequence),
                peer,
            }
        } else {
            Route::Udp {
                worker: 0,
                socket: 0,
                peer,
            }
        };
        let agent = &mut self.agents[number];
        if agent.slot.route() != Some(route) {
            agent.getting = None;
        }
        fuzzing::bind(&agent.slot, route);
    }

    fn break_off(&mut self, number: usize) {
        let agent = &mut self.agents[number];
        agent.getting = None;
        let sign = Sign::BrokenOff(agent.slot.id.clone());
        self.core.on_sign(self.now, sign, &mut Vec::new());
    }

    fn change_keys(&mut self, number: usize, choice: u8) {
        let agent = &mut self.agents[number];
        agent.getting = None;
        let before = Arc::clone(&agent.slot);
        agent.slot = slot(number, choice & 1 != 0);
        agent.is_there = choice & 2 == 0;
        let sign = if agent.is_there {
            Sign::Keys {
                changed: vec![Arc::clone(&agent.slot)],
                removed: Vec::new(),
            }
        } else {
            self.groups.remove(&before.id);
            Sign::Keys {
                changed: Vec::new(),
                removed: vec![before.id.clone()],
            }
        };
        self.core.on_sign(self.now, sign, &mut Vec::new());
        assert!(!before.receives_file(), "nothing is on its way to a key that is gone");
    }

    /// Disk and authd answer what they were asked, and are asked anew.
    fn ask_all(&mut self, draw: &mut Draw<'_>) {
        if let Some(look) = self.look.take() {
            let makes = draw.flag();
            self.answer_look(&look, makes);
        } else {
            self.look = self.core.next_look(self.now);
        }
        if let Some(question) = self.question.take() {
            let answer = match draw.below(6) {
                0 => Answer::Away("away".to_owned()),
                1 => Answer::Refused("no".to_owned()),
                _ => self.authd(&question),
            };
            let mut told = Vec::new();
            self.core.on_answer(self.now, &question, answer, &mut told);
            self.tell(told, draw.flag());
        } else {
            let mut told = Vec::new();
            self.question = self.core.next_question(self.now, &mut told);
            self.tell(told, true);
        }
    }

    fn answer_look(&mut self, look: &Look, makes: bool) {
        for group in look.needed.iter().filter(|_| makes) {
            self.disk.entry(group.clone()).or_insert_with(|| b"#made\n".to_vec());
        }
        let file = |content: &Vec<u8>| Arc::new(MergedFile::of(content.clone()));
        let library = Library {
            groups: self
                .disk
                .iter()
                .map(|(group, content)| (group.clone(), file(content)))
                .collect(),
            lists: look
                .lists
                .iter()
                .filter_map(|list| Some((list.join(","), file(&self.merged(list)?))))
                .collect(),
        };
        let files = library.groups.values().chain(library.lists.values());
        self.sums.extend(files.map(|file| file.sum.clone()));
        self.core.on_library(self.now, library);
    }

    /// The file of these groups.
    fn merged(&self, groups: &[String]) -> Option<Vec<u8>> {
        let parts: Option<Vec<_>> = groups.iter().map(|group| self.disk.get(group)).collect();
        parts
            .filter(|parts| !parts.is_empty())
            .map(|parts| parts.into_iter().flatten().copied().collect())
    }

    fn authd(&mut self, question: &Question) -> Answer {
        match question {
            Question::Version | Question::All | Question::Assign(_) if self.is_by_database => Answer::Database,
            Question::Version => Answer::Version(self.version),
            Question::All => Answer::All {
                agents: self.groups.iter().map(groups_of).collect(),
                version: self.version,
            },
            Question::Assign(wanted) | Question::Look(wanted) => {
                assert!(self.is_by_database || matches!(question, Question::Assign(_)));
                self.assign(wanted)
            }
        }
    }

    fn assign(&mut self, wanted: &BTreeMap<String, Vec<AgentId>>) -> Answer {
        let mut assigned = Vec::new();
        for (group, ids) in wanted {
            assert!(group != ONLY_ASK || self.is_by_database);
            for id in ids {
                if !self.agents.iter().any(|agent| agent.is_there && agent.slot.id == *id) {
                    continue;
                }
                let groups = self.groups.entry(id.clone()).or_default();
                if groups.is_empty() && group != ONLY_ASK {
                    groups.push(group.clone());
                    self.version += 1;
                }
                assigned.push(groups_of((id, groups)));
            }
        }
        Answer::Assigned(assigned)
    }

    fn take_jobs(&mut self) {
        while let Some(job) = self.core.pushes.next_job(self.now) {
            let agent = self.agents.iter_mut().find(|agent| Arc::ptr_eq(&agent.slot, &job.slot));
            let agent = agent.expect("a file goes to a key that is in force");
            assert!(job.ticket >= agent.ticket && agent.slot.route() == Some(job.route));
            agent.ticket = job.ticket;
            self.jobs.push(job);
        }
    }

    /// Workers take jobs, and do some.
    fn jobs(&mut self, draw: &mut Draw<'_>) {
        self.take_jobs();
        if self.jobs.is_empty() {
            return;
        }
        let job = self.jobs.swap_remove(draw.below(self.jobs.len().min(256)));
        let (count, stopped) = match draw.below(4) {
            0 => (draw.below(job.messages.len() + 1), Some(Stopped::Full)),
            1 => (draw.below(job.messages.len() + 1), Some(Stopped::Gone)),
            _ => (job.messages.len(), None),
        };
        self.deliver(&job, count, stopped);
    }

    fn deliver(&mut self, job: &Job, count: usize, stopped: Option<Stopped>) {
        let agent = self.agents.iter_mut().find(|agent| Arc::ptr_eq(&agent.slot, &job.slot));
        let agent = agent.filter(|agent| agent.slot.route() == Some(job.route));
        let taken = match &agent {
            Some(_) => Taken { count, stopped },
            None => Taken {
                count: 0,
                stopped: Some(Stopped::Gone),
            },
        };
        if let Some(agent) = agent {
            agent.is_disturbed |= job.ticket != agent.ticket;
            for message in job.messages.iter().take(count) {
                agent.hear(message, &self.sums);
            }
            if matches!(taken.stopped, Some(Stopped::Gone)) {
                agent.getting = None;
            }
        }
        let id = job.slot.id.clone();
        let ticket = job.ticket;
        self.core.pushes.on_result(self.now, &JobResult { id, ticket, taken });
    }

    fn check(&self) {
        let (waiting, begun) = self.core.pushes.sizes();
        assert!(waiting <= AGENTS && begun <= LIMITS.begun);
        let receive = self.agents.iter().filter(|agent| agent.slot.receives_file()).count();
        assert_eq!(receive, begun, "those and only those get a file of whom it is said");
        assert!(self.jobs.len() <= LIMITS.active * MAX_STEPS);
    }

    /// Everything works from now on.
    fn settle(&mut self) {
        self.core.on_prompt(self.now);
        for number in 0..AGENTS {
            self.move_to(number, 2 * u8::try_from(number).unwrap_or(0));
            self.break_off(number);
        }
        for _ in 0..40 {
            self.now = self.now + Duration::from_secs(61);
            for number in 0..AGENTS {
                let has = self.agents[number].has.clone();
                self.report(number, Some(has), true);
            }
            self.run_dry();
        }
        for agent in self.agents.iter().filter(|agent| agent.is_there) {
            let id = &agent.slot.id;
            if self.registrar == Registrar::Nobody {
                let is_current = self.disk.values().any(|file| sum(file) == agent.has);
                assert!(is_current, "{id} has the file of some group in the end");
                continue;
            }
            let Some(groups) = self.groups.get(id) else { continue };
            if let Some(file) = self.merged(groups) {
                assert_eq!(agent.has, sum(&file), "{id} of {groups:?} has its file in the end");
            }
        }
    }

    fn run_dry(&mut self) {
        for _ in 0..1000 {
            let mut is_dry = true;
            if let Some(look) = self.look.take().or_else(|| self.core.next_look(self.now)) {
                is_dry = false;
                self.answer_look(&look, true);
            }
            let mut told = Vec::new();
            let asked = self.question.take();
            if let Some(question) = asked.or_else(|| self.core.next_question(self.now, &mut told)) {
                is_dry = false;
                let answer = self.authd(&question);
                self.core.on_answer(self.now, &question, answer, &mut told);
            }
            self.tell(told, true);
            self.take_jobs();
            for job in std::mem::take(&mut self.jobs) {
                is_dry = false;
                self.deliver(&job, job.messages.len(), None);
            }
            if is_dry {
                assert!(self.core.next_wake() > self.now, "nothing to do, and no rest");
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

impl Agent {
    /// What an agent does with what it is sent.
    fn hear(&mut self, message: &[u8], sums: &BTreeSet<String>) {
        match ToAgent::parse(message) {
            ToAgent::UpFile { md5 } => {
                self.getting = Some((md5.to_owned(), Vec::new()));
                self.is_disturbed = false;
            }
            ToAgent::CloseFile => {
                // What was begun in an earlier life of the connection is thrown away.
                let Some((said, content)) = self.getting.take() else {
                    return;
                };
                if sum(&content) == said {
                    assert!(sums.contains(&said), "a file that there never was");
                    self.has = said;
                } else {
                    assert!(self.is_disturbed, "what was received is the file");
                }
            }
            _ => {
                assert!(!message.starts_with(HEADER), "a piece that looks like a message");
                if let Some((_, content)) = &mut self.getting {
                    content.extend_from_slice(message);
                }
            }
        }
    }
}

fn slot(number: usize, is_ossec: bool) -> Arc<AgentSlot> {
    let line = format!("{number:03} agent-{number} any key-{number}\n");
    let file = file::parse(line.as_bytes());
    let slot = AgentSlot::new(file.entries.first().expect("a good line"));
    fuzzing::set_family(&slot, if is_ossec { Family::Ossec } else { Family::Wazuh });
    Arc::new(slot)
}

fn groups_of((id, groups): (&AgentId, &Vec<String>)) -> AgentGroups {
    AgentGroups {
        id: id.clone(),
        groups: groups.clone(),
    }
}
