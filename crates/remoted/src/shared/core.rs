//! What follows from keepalives, from what authd says and from what lies on the disk: pure decisions, with time as an
//! argument.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    agent::AgentId,
    ipc::control::{AgentGroups, MAX_GROUP_CHANGES},
    shared::DEFAULT_GROUP,
};
use tracing::{debug, info, warn};

use super::{
    library::Library,
    membership::{Guess, Membership, Reported, Verdict, first_group},
    pushes::{Limits, Pushes},
};
use crate::{
    roster::agent::SharedState,
    slot::{AgentSlot, Millis},
};

/// Between two looks at the disk, however often somebody asks for one.
const LEAST_GAP: Duration = Duration::from_millis(500);
/// How long authd is left alone after it could not be reached; doubled each time, up to [`LONGEST_REST`].
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// Who says which groups agents have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registrar {
    /// authd.
    Authd,
    /// Nobody: authd is switched off here. Groups last as long as the process.
    Nobody,
}

/// How it is all done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often the disk is looked at.
    pub look_every: Duration,
    /// Whether files tell groups.
    pub guess: Guess,
    /// How many pushes at once.
    pub limits: Limits,
    /// Who knows groups.
    pub registrar: Registrar,
}

/// What is heard of agents.
#[derive(Clone, Debug)]
pub enum Sign {
    /// A keepalive came.
    Reported(Reported),
    /// The agent said hello or goodbye: what it was getting is lost.
    BrokenOff(AgentId),
    /// The key file was read.
    Keys {
        /// New slots of agents whose line has changed.
        changed: Vec<Arc<AgentSlot>>,
        /// Agents that are gone.
        removed: Vec<AgentId>,
    },
}

/// What authd is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether groups have changed.
    Version,
    /// The groups of all agents.
    All,
    /// To give these groups to agents that have none, and to say which ones all of them have.
    Assign(BTreeMap<String, Vec<AgentId>>),
    /// The same of the stock database. Agents at no group ([`ONLY_ASK`]) get none.
    Look(BTreeMap<String, Vec<AgentId>>),
}

/// The group of agents that are not to get one.
pub const ONLY_ASK: &str = "";

/// What authd says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Groups have this version.
    Version(u64),
    /// The groups of all agents.
    All {
        /// By agent.
        agents: Vec<AgentGroups>,
        /// Their version.
        version: u64,
    },
    /// The groups of the agents that were asked for.
    Assigned(Vec<AgentGroups>),
    /// There is no authd of ours here, but the stock database, which knows.
    Database,
    /// It does not do that, and why.
    Refused(String),
    /// It could not be reached.
    Away(String),
}

/// What the disk is to be looked at for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Groups that must be there.
    pub needed: BTreeSet<String>,
    /// Lists of several groups that agents have.
    pub lists: BTreeSet<Vec<String>>,
    /// Whether no agent has another one.
    pub are_all: bool,
}

/// What the roster is to be told.
pub type Told = (Arc<AgentSlot>, SharedState);

/// The state.
pub struct Core {
    options: Options,
    library: Library,
    membership: Membership,
    /// The pushes.
    pub pushes: Pushes,
    /// Agents whose groups are not known, with what they reported last.
    unknown: HashMap<AgentId, Reported>,
    needed: BTreeSet<String>,
    waits_for_library: bool,
    looked_for: Look,
    is_looking: bool,
    look_due: Millis,
    last_look: Millis,
    is_asking: bool,
    want_all: bool,
    want_version: bool,
    /// The stock database knows groups. It is asked at each keepalive, as stock does, since nobody says when they change.
    by_database: bool,
    version: Option<u64>,
    rest: Duration,
    ask_not_before: Millis,
    /// Why authd does not answer.
    away: Option<String>,
}

impl Core {
    /// Nothing known yet.
    pub fn new(options: Options, now: Millis) -> Self {
        let needed = BTreeSet::from([DEFAULT_GROUP.to_owned()]);
        Self {
            library: Library::default(),
            membership: Membership::default(),
            pushes: Pushes::new(options.limits),
            unknown: HashMap::new(),
            looked_for: Look {
                needed: needed.clone(),
                lists: BTreeSet::new(),
                are_all: false,
            },
            needed,
            waits_for_library: false,
            is_looking: false,
            look_due: now,
            last_look: Millis::NEVER,
            is_asking: false,
            want_all: options.registrar == Registrar::Authd,
            want_version: false,
            by_database: false,
            version: None,
            rest: REST,
            ask_not_before: now,
            away: None,
            options,
        }
    }

    /// How many groups have files.
    pub fn groups(&self) -> usize {
        self.library.groups.len()
    }

    /// Why authd does not say which groups agents have, if it does not.
    pub fn away(&self) -> Option<&str> {
        self.away.as_deref()
    }

    /// Something was heard of an agent. What the roster is to be told goes to `told`.
    pub fn on_sign(&mut self, now: Millis, sign: Sign, told: &mut Vec<Told>) {
        match sign {
            Sign::Reported(reported) => {
                if self.by_database {
                    self.membership.doubt(&reported.slot.id);
                }
                self.on_reported(now, reported, told);
            }
            Sign::BrokenOff(id) => self.pushes.on_broken_off(&id),
            Sign::Keys { changed, removed } => {
                for slot in &changed {
                    // The old slot had a push, perhaps, and the new one took over its mark.
                    self.forget(&slot.id);
                    slot.set_receives_file(false);
                }
                removed.iter().for_each(|id| self.forget(id));
            }
        }
    }

    /// Something about keys was not heard: what is known of groups may be of other agents by now.
    pub fn on_missed_keys(&mut self) {
        self.membership = Membership::default();
        self.want_all = self.options.registrar == Registrar::Authd;
    }

    /// Somebody says that files or groups may have changed.
    pub fn on_prompt(&mut self, now: Millis) {
        self.want_version = self.options.registrar == Registrar::Authd;
        self.look_soon(now);
    }

    fn forget(&mut self, id: &AgentId) {
        self.pushes.on_broken_off(id);
        self.membership.forget(id);
        self.unknown.remove(id);
    }

    fn on_reported(&mut self, now: Millis, reported: Reported, told: &mut Vec<Told>) {
        let verdict = self.membership.judge(&self.library, &reported);
        let id = &reported.slot.id;
        match &verdict {
            Verdict::Differs(file) => self.pushes.on_differs(now, &reported.slot, file),
            Verdict::Agrees => self.pushes.on_agrees(id),
            // Whoever does not even say that it has no file is not given a group.
            Verdict::Unknown if reported.sum.is_none() && !self.by_database => {}
            Verdict::Unknown => {
                self.unknown.insert(id.clone(), reported);
                return;
            }
        }
        if let Some(news) = self.membership.news(id, &verdict) {
            told.push((reported.slot, news));
        }
    }

    /// The roster was told.
    pub fn told(&mut self, (slot, shared): &Told) {
        self.membership.told(&slot.id, shared);
    }

    /// What the disk is to be looked at for now, if it is time.
    pub fn next_look(&mut self, now: Millis) -> Option<Look> {
        if self.is_looking || now < self.look_due {
            return None;
        }
        self.is_looking = true;
        self.last_look = now;
        self.look_due = now + self.options.look_every;
        self.looked_for = Look {
            needed: self.needed.clone(),
            lists: self.membership.lists(),
            are_all: self.version.is_some() && !self.want_all,
        };
        Some(self.looked_for.clone())
    }

    /// What was found there.
    pub fn on_library(&mut self, now: Millis, library: Library) {
        self.is_looking = false;
        self.waits_for_library = false;
        self.library = library;
        let (library, guess, needed) = (&self.library, self.options.guess, &self.looked_for.needed);
        self.unknown.retain(|id, reported| {
            let group = first_group(library, reported, guess);
            let cannot_be = needed.contains(&group) && !library.groups.contains_key(&group);
            if cannot_be {
                debug!(agent_id = %id, group, "agent gets no group: it does not exist");
            }
            !cannot_be
        });
        if self.membership.lists() != self.looked_for.lists {
            self.look_soon(now);
        }
    }

    fn look_soon(&mut self, now: Millis) {
        let soon = if self.last_look.is_never() {
            now
        } else {
            now.max(self.last_look + LEAST_GAP)
        };
        self.look_due = self.look_due.min(soon);
    }

    /// What authd is asked now, if anything.
    pub fn next_question(&mut self, now: Millis, told: &mut Vec<Told>) -> Option<Question> {
        if self.is_asking || now < self.ask_not_before {
            return None;
        }
        let question = if self.want_all {
            Question::All
        } else if self.want_version {
            self.want_version = false;
            Question::Version
        } else {
            let wanted = self.wanted(now);
            if wanted.is_empty() {
                return None;
            }
            if self.options.registrar == Registrar::Nobody {
                self.assign(now, granted(wanted), told);
                return None;
            }
            if self.by_database {
                Question::Look(wanted)
            } else {
                Question::Assign(wanted)
            }
        };
        self.is_asking = true;
        Some(question)
    }

    /// Agents by the groups that they shall have, as far as those groups exist.
    fn wanted(&mut self, now: Millis) -> BTreeMap<String, Vec<AgentId>> {
        let mut wanted: BTreeMap<String, Vec<AgentId>> = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for (id, reported) in self.unknown.iter().take(MAX_GROUP_CHANGES) {
            if reported.sum.is_none() {
                wanted.entry(ONLY_ASK.to_owned()).or_default().push(id.clone());
                continue;
            }
            let group = first_group(&self.library, reported, self.options.guess);
            if self.library.groups.contains_key(&group) {
                wanted.entry(group).or_default().push(id.clone());
            } else {
                missing.insert(group);
            }
        }
        // Nothing can be asked before the disk was looked at again.
        self.waits_for_library = wanted.is_empty() && !missing.is_empty();
        let before = self.needed.len();
        self.needed.append(&mut missing);
        if self.needed.len() > before {
            self.look_soon(now);
        }
        wanted
    }

    /// What authd said to the last question.
    pub fn on_answer(&mut self, now: Millis, question: &Question, answer: Answer, told: &mut Vec<Told>) {
        self.is_asking = false;
        if let Answer::Away(why) = answer {
            return self.on_away(now, question, why);
        }
        self.rest = REST;
        if self.away.take().is_some() {
            info!("authd says again which groups agents have");
        }
        match answer {
            Answer::Database => {
                if !std::mem::replace(&mut self.by_database, true) {
                    info!("the stock database says which groups agents have");
                }
                self.want_all = false;
                self.want_version = false;
                self.version = None;
            }
            Answer::Version(version) => self.want_all |= self.version != Some(version),
            Answer::All { agents, version } => {
                self.by_database = false;
                self.want_all = false;
                self.version = Some(version);
                self.membership
                    .replace_all(agents.into_iter().map(|agent| (agent.id, agent.groups)));
                self.judge_again(now, told);
                if self.membership.lists() != self.looked_for.lists {
                    self.look_soon(now);
                }
            }
            Answer::Assigned(agents) => {
                self.assign(now, agents, told);
                // Those that authd does not know are asked for again with their next keepalives.
                self.forget_asked(question);
            }
            Answer::Refused(why) => {
                warn!(reason = why, "authd gives agents no group");
                self.want_all = false;
                self.forget_asked(question);
                self.ask_not_before = now + self.rest;
            }
            Answer::Away(_) => {}
        }
    }

    fn on_away(&mut self, now: Millis, question: &Question, why: String) {
        self.ask_not_before = now + self.rest;
        self.rest = (self.rest * 2).min(LONGEST_REST);
        self.want_version |= *question == Question::Version;
        if std::mem::take(&mut self.by_database) {
            // Whoever is there next says which groups agents have.
            self.want_all = true;
            self.unknown.retain(|_, reported| reported.sum.is_some());
        }
        if self.away.is_none() {
            info!(
                error = why,
                "authd does not say which groups agents have: new agents wait for shared files"
            );
        }
        self.away = Some(why);
    }

    fn assign(&mut self, now: Millis, agents: Vec<AgentGroups>, told: &mut Vec<Told>) {
        for AgentGroups { id, groups } in agents {
            self.membership.set(id.clone(), groups);
            if let Some(reported) = self.unknown.remove(&id) {
                self.on_reported(now, reported, told);
            }
        }
    }

    fn judge_again(&mut self, now: Millis, told: &mut Vec<Told>) {
        for reported in std::mem::take(&mut self.unknown).into_values() {
            self.on_reported(now, reported, told);
        }
    }

    fn forget_asked(&mut self, question: &Question) {
        if let Question::Assign(wanted) | Question::Look(wanted) = question {
            for id in wanted.values().flatten() {
                self.unknown.remove(id);
            }
        }
    }

    /// When something is to be done although nothing is heard.
    pub fn next_wake(&self) -> Millis {
        let look = (!self.is_looking).then_some(self.look_due);
        let wants = self.want_all || self.want_version || !(self.unknown.is_empty() || self.waits_for_library);
        let ask = (!self.is_asking && wants).then_some(self.ask_not_before);
        [look, ask, self.pushes.next_wake()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.look_due)
    }
}

/// Everybody gets what is wanted for it.
fn granted(wanted: BTreeMap<String, Vec<AgentId>>) -> Vec<AgentGroups> {
    let of_group = |(group, ids): (String, Vec<AgentId>)| {
        ids.into_iter().map(move |id| AgentGroups {
            id,
            groups: vec![group.clone()],
        })
    };
    wanted.into_iter().flat_map(of_group).collect()
}

#[cfg(test)]
mod tests;
