//! Which groups agents have, and what their keepalives mean for their files.
//!
//! authd owns the groups of agents; here is what it said. Whoever has none gets one at the first keepalive that names a
//! merged file: OSSEC agents a group of their own, the others `default`, or the group whose file they have already if
//! that is to be guessed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use muster_proto::{
    agent::AgentId,
    shared::{DEFAULT_GROUP, OSSEC_GROUP},
    transport::keepalive::Family,
};

use super::library::{Library, MergedFile};
use crate::{roster::agent::SharedState, slot::AgentSlot};

/// What a keepalive says about shared files.
#[derive(Clone, Debug)]
pub struct Reported {
    /// Who.
    pub slot: Arc<AgentSlot>,
    /// The sum of the file that it has, `x` when it has none; `None` when it does not say.
    pub sum: Option<Arc<str>>,
}

/// What follows from a keepalive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has what it is to have, or there is nothing for it.
    Agrees,
    /// It is to have this.
    Differs(Arc<MergedFile>),
    /// It has no group, or authd has yet to say which.
    Unknown,
}

/// The groups of agents, as far as they are known.
#[derive(Default)]
pub struct Membership {
    known: HashMap<AgentId, Known>,
}

struct Known {
    groups: Vec<String>,
    /// What the roster was told last.
    told: Option<bool>,
    /// They may have changed since they were asked for.
    stale: bool,
}

impl Known {
    fn new(groups: Vec<String>, told: Option<bool>) -> Self {
        Self {
            groups,
            told,
            stale: false,
        }
    }
}

impl Membership {
    /// Takes over what authd says of all agents.
    pub fn replace_all(&mut self, agents: impl Iterator<Item = (AgentId, Vec<String>)>) {
        let mut before = std::mem::take(&mut self.known);
        for (id, groups) in agents.filter(|(_, groups)| !groups.is_empty()) {
            let told = before
                .remove(&id)
                .filter(|known| known.groups == groups)
                .and_then(|known| known.told);
            self.known.insert(id, Known::new(groups, told));
        }
    }

    /// Takes over what authd says of one agent.
    pub fn set(&mut self, id: AgentId, groups: Vec<String>) {
        if groups.is_empty() {
            self.known.remove(&id);
        } else {
            let before = self.known.get(&id).filter(|known| known.groups == groups);
            let told = before.and_then(|known| known.told);
            self.known.insert(id, Known::new(groups, told));
        }
    }

    /// Nobody says when the agent's groups change: they count as unknown until they were asked for again.
    pub fn doubt(&mut self, id: &AgentId) {
        if let Some(known) = self.known.get_mut(id) {
            known.stale = true;
        }
    }

    /// The id is somebody else's now, or nobody's.
    pub fn forget(&mut self, id: &AgentId) {
        self.known.remove(id);
    }

    /// The lists of more than one group that agents have.
    pub fn lists(&self) -> BTreeSet<Vec<String>> {
        self.known
            .values()
            .filter(|known| known.groups.len() > 1)
            .map(|known| known.groups.clone())
            .collect()
    }

    /// What a keepalive means.
    pub fn judge(&self, library: &Library, reported: &Reported) -> Verdict {
        let Some(known) = self.known.get(&reported.slot.id).filter(|known| !known.stale) else {
            return Verdict::Unknown;
        };
        match library.of(&known.groups) {
            Some(file) if reported.sum.as_deref() != Some(&file.sum) => Verdict::Differs(Arc::clone(file)),
            // Also while its groups have no file: then there is nothing that it could lack.
            Some(_) | None => Verdict::Agrees,
        }
    }

    /// What the roster is to be told after a keepalive, if that is news to it. [`Membership::told`] follows when it was.
    pub fn news(&self, id: &AgentId, verdict: &Verdict) -> Option<SharedState> {
        let synced = match verdict {
            Verdict::Agrees => true,
            Verdict::Differs(_) => false,
            Verdict::Unknown => return None,
        };
        let known = self.known.get(id).filter(|known| known.told != Some(synced))?;
        Some(SharedState {
            groups: known.groups.clone(),
            synced: Some(synced),
        })
    }

    /// The roster was told.
    pub fn told(&mut self, id: &AgentId, shared: &SharedState) {
        if let Some(known) = self.known.get_mut(id) {
            known.told = shared.synced;
        }
    }
}

/// Whether files that agents have may tell their groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// They may: the stock option `guess_agent_group`.
    ByFile,
    /// They say nothing.
    Never,
}

/// The group for an agent that has none.
pub fn first_group(library: &Library, reported: &Reported, guess: Guess) -> String {
    let guessed = reported
        .sum
        .as_deref()
        .filter(|_| guess == Guess::ByFile)
        .and_then(|sum| library.group_with(sum));
    let group = guessed.unwrap_or(match reported.slot.family() {
        Some(Family::Ossec) => OSSEC_GROUP,
        Some(Family::Wazuh) | None => DEFAULT_GROUP,
    });
    group.to_owned()
}

#[cfg(test)]
mod tests {
    use muster_proto::keys::file;

    use super::*;

    fn reported(id: &str, sum: Option<&str>, family: Family) -> Reported {
        let line = format!("{id} agent any {}\n", "k".repeat(64));
        let entry = file::parse(line.as_bytes()).entries.remove(0);
        let slot = Arc::new(AgentSlot::new(&entry));
        slot.set_family(family);
        Reported {
            slot,
            sum: sum.map(Arc::from),
        }
    }

    fn groups(list: &str) -> Vec<String> {
        list.split(',').map(str::to_owned).collect()
    }

    fn library() -> Library {
        let file = |text: &str| Arc::new(MergedFile::of(text.as_bytes().to_vec()));
        let mut library = Library::default();
        for group in ["default", "web"] {
            library.groups.insert(group.to_owned(), file(group));
        }
        library.lists.insert("default,web".to_owned(), file("both"));
        library
    }

    fn sum(text: &str) -> String {
        MergedFile::of(text.as_bytes().to_vec()).sum
    }

    #[test]
    fn sums_decide_and_no_sum_differs() {
        let (library, mut membership) = (library(), Membership::default());
        let of = |membership: &Membership, sum: Option<&str>| {
            membership.judge(&library, &reported("001", sum, Family::Wazuh))
        };
        assert_eq!(of(&membership, Some("x")), Verdict::Unknown);
        membership.set(AgentId::new("001"), groups("web"));
        let web = Arc::clone(&library.groups["web"]);
        assert_eq!(of(&membership, Some(&sum("web"))), Verdict::Agrees);
        assert_eq!(of(&membership, Some("x")), Verdict::Differs(Arc::clone(&web)));
        assert_eq!(of(&membership, None), Verdict::Differs(web));
        membership.set(AgentId::new("001"), groups("default,web"));
        assert_eq!(of(&membership, Some(&sum("both"))), Verdict::Agrees);
        // The order counts: it decides whose file wins.
        membership.set(AgentId::new("001"), groups("web,default"));
        assert_eq!(of(&membership, Some("x")), Verdict::Agrees);
        assert_eq!(membership.lists(), BTreeSet::from([groups("web,default")]));
    }

    #[test]
    fn doubted_groups_are_unknown_until_they_are_said_again() {
        let (library, mut membership) = (library(), Membership::default());
        let id = AgentId::new("001");
        let of = |membership: &Membership| membership.judge(&library, &reported("001", Some("x"), Family::Wazuh));
        membership.set(id.clone(), groups("web"));
        membership.doubt(&id);
        assert_eq!(of(&membership), Verdict::Unknown);
        membership.set(id, groups("web"));
        assert!(matches!(of(&membership), Verdict::Differs(_)));
    }

    #[test]
    fn the_roster_is_told_what_is_new() {
        let (library, mut membership) = (library(), Membership::default());
        let id = AgentId::new("001");
        membership.set(id.clone(), groups("web"));
        let verdict = membership.judge(&library, &reported("001", Some("x"), Family::Wazuh));
        let news = membership.news(&id, &verdict).expect("news");
        assert_eq!(
            (news.groups.as_slice(), news.word()),
            (groups("web").as_slice(), Some("not synced"))
        );
        membership.told(&id, &news);
        assert_eq!(membership.news(&id, &verdict), None);
        assert_eq!(
            membership.news(&id, &Verdict::Agrees).and_then(|news| news.word()),
            Some("synced")
        );
        membership.replace_all([(id.clone(), groups("web"))].into_iter());
        assert_eq!(membership.news(&id, &verdict), None);
        membership.replace_all([(id.clone(), groups("default"))].into_iter());
        assert!(membership.news(&id, &verdict).is_some());
    }

    #[test]
    fn first_group_follows_family_or_file() {
        let library = library();
        let first = |sum: &str, family, guess| first_group(&library, &reported("001", Some(sum), family), guess);
        assert_eq!(first("x", Family::Wazuh, Guess::Never), "default");
        assert_eq!(first("x", Family::Ossec, Guess::Never), "ossec");
        assert_eq!(first(&sum("web"), Family::Wazuh, Guess::ByFile), "web");
        assert_eq!(first(&sum("web"), Family::Wazuh, Guess::Never), "default");
        assert_eq!(first("x", Family::Wazuh, Guess::ByFile), "default");
    }
}
