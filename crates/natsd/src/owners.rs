//! Which manager has which agent, where several share one fleet: a table that takes what happens and says what to do. Pure.
//!
//! There is one bucket for all managers, with an entry for each agent: whose it is. An agent that becomes active here is
//! claimed by compare-and-swap, so of two that claim it over the same revision one hears that it was too late. The
//! revision is the token: who has the higher one has the agent.
//!
//! **Invariant:** of an agent that is another manager's nothing is said here, until it is active here again.
//! **Invariant:** nothing is claimed, and no agent let go, before the bucket was read over the connection that there is.
//! **Invariant:** clocks are compared only where nobody knows who came last: when another claim was made while ours could
//! not be.

mod parting;
mod room;

use std::collections::{BTreeSet, HashMap};

use muster_proto::event::{Event, Kind, header, subject::token};
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    parting::run as let_go,
    room::{Reading, Room},
};

/// Agents that are known. Beyond it agents are nobody's; a fleet has no more.
const MAX_AGENTS: usize = 500_000;
/// The word in the header while nobody can be asked.
const UNCONFIRMED: &str = "unconfirmed";

/// What the bucket says of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// The manager that has it.
    pub(crate) node: String,
    /// Which start of its natsd claimed it.
    pub(crate) epoch: u64,
    /// Unix milliseconds at which the agent became active there, by the clock there.
    pub(crate) since_ms: u64,
}

/// Whose an agent is, by the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Whose {
    #[default]
    Nobodys,
    /// Ours, active since then.
    Ours(u64),
    /// Another manager's, active there since then.
    Others(u64),
}

/// An agent that became active here, and is not known to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    /// Unix milliseconds.
    since_ms: u64,
    /// The revision that there was then: who claimed over it was before us.
    over: u64,
}

#[derive(Debug, Default)]
struct Agent {
    whose: Whose,
    /// The revision that says so; 0 = there is none.
    revision: u64,
    /// Active here since then, in Unix milliseconds.
    here: Option<u64>,
    claim: Option<Claim>,
    /// It is no agent any more: its entry goes, if it is ours.
    removed: bool,
    /// Something is being written.
    under_way: bool,
    /// In which reading of the bucket the entry was seen.
    seen: u64,
}

impl Agent {
    fn is_foreign(&self) -> bool {
        matches!(self.whose, Whose::Others(_)) && self.claim.is_none()
    }
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is nothing that only an agent's owner says.
    Free,
    /// It goes out with this in its header.
    Owned(String),
    /// Another manager tells of this agent.
    Suppressed,
}

/// What is to be written over a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) id: String,
    /// 0 = there must be none.
    pub(crate) over: u64,
    /// Without one the entry goes.
    pub(crate) holder: Option<Holder>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It stands there, with this revision.
    Written(u64),
    /// Another revision was there.
    Overtaken,
    /// Nobody knows.
    Lost,
}

/// How many agents are whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ours, as far as the bucket says.
    pub(crate) owned: u64,
    /// Another manager's.
    pub(crate) foreign: u64,
    /// Active here, and not known to be ours.
    pub(crate) unconfirmed: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Owners {
    node: String,
    epoch: u64,
    agents: HashMap<String, Agent>,
    /// Whether the bucket was read over the connection that there is.
    asked: bool,
    reading: u64,
    /// Whose entries are to be written.
    due: BTreeSet<String>,
    /// Whose entries could not be written; tried again after a while.
    later: BTreeSet<String>,
    /// Agents that remoted is to let go, and since when they were here.
    partings: Vec<(String, u64)>,
    /// Agents that became another's.
    lost: BTreeSet<String>,
}

impl Owners {
    pub(crate) fn new(node: &str, epoch: u64) -> Self {
        Self {
            node: node.to_owned(),
            epoch,
            agents: HashMap::new(),
            asked: false,
            reading: 0,
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            partings: Vec::new(),
            lost: BTreeSet::new(),
        }
    }

    /// Takes an event in, and says what becomes of it.
    pub(crate) fn admit(&mut self, event: &Event) -> Admission {
        let id = &event.subject_key;
        match event.kind {
            Kind::StatusChange => self.changes(id, event),
            Kind::Connection | Kind::Keepalive => {}
            Kind::Removed => {
                self.remove(id);
                return Admission::Free;
            }
            _ => return Admission::Free,
        }
        match self.agents.get(id) {
            Some(agent) if agent.is_foreign() => Admission::Suppressed,
            Some(Agent {
                whose: Whose::Ours(_),
                revision,
                ..
            }) if self.asked => Admission::Owned(revision.to_string()),
            _ => Admission::Owned(UNCONFIRMED.to_owned()),
        }
    }

    /// remoted says that an agent is active here, since before we began to listen.
    pub(crate) fn found(&mut self, id: &str, since_ms: u64) {
        let Some(agent) = self.agent(id) else { return };
        if agent.here.is_none() {
            agent.here = Some(since_ms);
            agent.claim = agent.claim.or(Some(Claim { since_ms, over: 0 }));
            self.resolve(id);
        }
    }

    /// Whether an agent is another manager's.
    pub(crate) fn is_foreign(&self, id: &str) -> bool {
        self.agents.get(id).is_some_and(Agent::is_foreign)
    }

    /// The bucket is read from the beginning.
    pub(crate) fn begin_reading(&mut self) {
        self.lose_touch();
        self.reading += 1;
    }

    /// An entry, as the bucket has it; none, if it was deleted.
    pub(crate) fn learn(&mut self, id: &str, revision: u64, holder: Option<&Holder>) {
        let whose = match holder {
            Some(holder) if holder.node == self.node => Whose::Ours(holder.since_ms),
            Some(holder) => Whose::Others(holder.since_ms),
            None => Whose::Nobodys,
        };
        let (asked, reading) = (self.asked, self.reading);
        let Some(agent) = self.agent(id) else { return };
        // The first in a reading counts also where it is lower: the bucket may be another one.
        if agent.seen == reading && revision <= agent.revision {
            return;
        }
        if revision < agent.revision {
            // It is another bucket, and what stood in the old one is no measure.
            agent.claim = agent.claim.map(|claim| Claim { over: 0, ..claim });
        }
        (agent.whose, agent.revision, agent.seen) = (whose, revision, reading);
        if asked {
            self.resolve(id);
        }
    }

    /// All that is in the bucket was read; what comes from here on is new.
    pub(crate) fn finish_reading(&mut self) {
        self.asked = true;
        let reading = self.reading;
        self.agents.retain(|_, agent| {
            if agent.seen != reading {
                // The bucket has lost it, or never had it.
                (agent.whose, agent.revision, agent.removed) = (Whose::Nobodys, 0, false);
                let again = agent.here.map(|since_ms| Claim { since_ms, over: 0 });
                agent.claim = agent.claim.or(again);
            }
            agent.revision > 0 || agent.here.is_some() || agent.claim.is_some()
        });
        let ids: Vec<String> = self.agents.keys().cloned().collect();
        for id in ids {
            self.resolve(&id);
        }
    }

    /// The bucket cannot be asked any more.
    pub(crate) fn lose_touch(&mut self) {
        self.asked = false;
        self.due.clear();
        self.later.clear();
        self.agents.values_mut().for_each(|agent| agent.under_way = false);
    }

    /// The next entry to write.
    pub(crate) fn next(&mut self) -> Option<Put> {
        while let Some(id) = self.due.pop_first() {
            let Some(agent) = self.agents.get_mut(&id) else {
                continue;
            };
            let over = agent.revision;
            let holder = match (agent.claim, agent.removed) {
                (Some(claim), _) => Some(Holder {
                    node: self.node.clone(),
                    epoch: self.epoch,
                    since_ms: claim.since_ms,
                }),
                (None, true) => None,
                (None, false) => continue,
            };
            agent.under_way = true;
            return Some(Put { id, over, holder });
        }
        None
    }

    /// What came of an entry that was to be written.
    pub(crate) fn settle(&mut self, put: &Put, outcome: Outcome) {
        let reading = self.reading;
        let Some(agent) = self.agents.get_mut(&put.id) else {
            return;
        };
        agent.under_way = false;
        match outcome {
            Outcome::Written(revision) if revision >= agent.revision => {
                let whose = put.holder.as_ref().map(|holder| Whose::Ours(holder.since_ms));
                (agent.whose, agent.revision, agent.seen) = (whose.unwrap_or_default(), revision, reading);
            }
            // Who wrote behind us saw that we had it.
            Outcome::Written(_) => {
                if agent.claim.map(|claim| claim.since_ms) == put.holder.as_ref().map(|holder| holder.since_ms) {
                    agent.claim = None;
                    self.part(&put.id);
                    return;
                }
            }
            Outcome::Overtaken if agent.revision != put.over => {}
            Outcome::Overtaken | Outcome::Lost => {
                // What stands there is told by and by.
                self.later.insert(put.id.clone());
                return;
            }
        }
        self.resolve(&put.id);
    }

    /// What could not be written is tried again.
    pub(crate) fn try_again(&mut self) {
        for id in std::mem::take(&mut self.later) {
            self.resolve(&id);
        }
    }

    /// Whether there is something to write.
    pub(crate) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether there are agents that remoted is to let go.
    pub(crate) fn has_partings(&self) -> bool {
        !self.partings.is_empty()
    }

    /// Agents that remoted is to let go, with the Unix milliseconds since when they were active here.
    pub(crate) fn take_partings(&mut self) -> Vec<(String, u64)> {
        let partings = std::mem::take(&mut self.partings);
        partings.into_iter().filter(|(id, _)| self.is_foreign(id)).collect()
    }

    /// Agents that became another manager's since this was asked.
    pub(crate) fn take_lost(&mut self) -> Vec<String> {
        let lost = std::mem::take(&mut self.lost);
        lost.into_iter().filter(|id| self.is_foreign(id)).collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for agent in self.agents.values() {
            let is_ours = matches!(agent.whose, Whose::Ours(_));
            counts.owned += u64::from(is_ours);
            counts.foreign += u64::from(agent.is_foreign());
            counts.unconfirmed += u64::from(agent.here.is_some() && !(is_ours && self.asked));
        }
        counts
    }

    fn changes(&mut self, id: &str, event: &Event) {
        let words = event.headers.iter().find(|(name, _)| name == header::STATUS);
        match words.and_then(|(_, words)| words.split_once('>')) {
            Some((from, "active")) if from != "active" => self.active(id, event.created_ms),
            Some((_, "disconnected")) => {
                if let Some(agent) = self.agents.get_mut(id) {
                    agent.here = None;
                }
            }
            _ => {}
        }
    }

    fn active(&mut self, id: &str, since_ms: u64) {
        let Some(agent) = self.agent(id) else { return };
        agent.here = Some(since_ms);
        agent.removed = false;
        agent.claim = Some(Claim {
            since_ms,
            over: agent.revision,
        });
        self.resolve(id);
    }

    fn remove(&mut self, id: &str) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        (agent.here, agent.claim) = (None, None);
        agent.removed = true;
        self.resolve(id);
    }

    /// The entry of an agent; none for what is no agent's id, and when there are too many.
    fn agent(&mut self, id: &str) -> Option<&mut Agent> {
        if !self.agents.contains_key(id) {
            if self.agents.len() >= MAX_AGENTS || token(id) != id {
                return None;
            }
            self.agents.insert(id.to_owned(), Agent::default());
        }
        self.agents.get_mut(id)
    }

    /// What follows from what is known of an agent.
    fn resolve(&mut self, id: &str) {
        let Some(agent) = self.agents.get_mut(id).filter(|_| self.asked) else {
            return;
        };
        if agent.under_way {
            return;
        }
        match (agent.claim, agent.whose) {
            (Some(claim), Whose::Ours(since_ms)) if claim.since_ms <= since_ms => agent.claim = None,
            (Some(claim), Whose::Others(since_ms)) if agent.revision != claim.over && claim.since_ms <= since_ms => {
                agent.claim = None;
                self.part(id);
            }
            (Some(_), _) => drop(self.due.insert(id.to_owned())),
            (None, Whose::Ours(_)) if agent.removed => drop(self.due.insert(id.to_owned())),
            (None, Whose::Others(_)) => self.part(id),
            (None, _) => {}
        }
    }

    /// An agent is another manager's.
    fn part(&mut self, id: &str) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        agent.removed = false;
        if let Some(since_ms) = agent.here.take() {
            self.partings.push((id.to_owned(), since_ms));
        }
        self.lost.insert(id.to_owned());
    }
}

#[cfg(test)]
mod tests;
