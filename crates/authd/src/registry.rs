//! Who gets a key: the agents, since when they are registered, and the rules about those who stand in the way.
//!
//! Deciding and doing are apart: [`Registry::decide`] looks at everything and changes nothing; only when all checks
//! have passed does [`Registry::grant`] remove who gives way and add who comes.

use std::{collections::HashMap, net::IpAddr};

use muster_proto::{
    agent::AgentId,
    enrollment::{
        force::{Incumbent, Refusal, Rules},
        key_hash,
        request::GivenAddress,
    },
    ipc::control::Liveness,
    keys::{Secret, file::KeyEntry},
};

use crate::{
    keystore::{KeyStore, Trace},
    leases::Leases,
};

/// How an agent came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It asked on the enrollment port.
    Remote,
    /// A local program asked for it.
    Local,
    /// Its line was found in the file.
    File,
}

impl Method {
    /// The word in events and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remote => "tls",
            Self::Local => "local",
            Self::File => "file",
        }
    }
}

/// A wish for a key; its groups exist.
#[derive(Clone)]
pub struct Ask {
    /// The name.
    pub name: String,
    /// The address, or `None` when what was given is none.
    pub address: Option<GivenAddress>,
    /// The id that it shall have, instead of the next one.
    pub id: Option<AgentId>,
    /// The hash of the key line that the asker holds.
    pub key_hash: Option<String>,
    /// When an agent in the way gives way.
    pub rules: Rules,
    /// Its groups.
    pub groups: Vec<String>,
    /// How it was asked for.
    pub method: Method,
    /// From where, if over the network.
    pub source: Option<IpAddr>,
}

/// In what way an agent stands in the way of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clash {
    /// It has the same id.
    Id,
    /// It is registered for the same address.
    Address,
    /// It has the same name.
    Name,
}

impl Clash {
    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Id => "duplicate_id",
            Self::Address => "duplicate_ip",
            Self::Name => "duplicate_name",
        }
    }
}

/// What becomes of an [`Ask`].
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be granted, and these give way.
    Grant(Vec<GivesWay>),
    /// First somebody must say how this agent is connected.
    NeedsLiveness(AgentId),
    /// No.
    Refuse(Refused),
}

/// An agent that gives way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivesWay {
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// Why it has to.
    pub clash: Clash,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An agent stands in the way and stays.
    InTheWay {
        /// In what way.
        clash: Clash,
        /// Which one.
        id: AgentId,
        /// Why it stays.
        why: Refusal,
    },
    /// What was given is not an address.
    BadAddress,
    /// The name is the manager's own.
    ManagerName,
    /// There may be no more agents, or no id is left.
    Full,
}

/// What the decisions depend on besides the agents.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The manager's own name, which no agent may have.
    pub manager_name: &'a str,
    /// How many agents there may be; 0 = as many as come.
    pub max_agents: u32,
}

/// What is known about connections: `None` = nobody could be asked.
pub type KnownLiveness = HashMap<AgentId, Option<Liveness>>;

/// The agents and their registration times.
#[derive(Default)]
pub struct Registry {
    /// The agents.
    pub keys: KeyStore,
    /// Unix seconds of registration, by id. 0 = unknown, so long ago.
    pub registered: HashMap<AgentId, i64>,
    /// The ids that are ours to give, where several managers share a fleet. Without: all of them.
    pub leases: Option<Leases>,
}

impl Registry {
    /// Judges a wish at `now` (Unix seconds). Nothing changes.
    pub fn decide(&self, ask: &Ask, known: &KnownLiveness, policy: &Policy<'_>, now: i64) -> Verdict {
        match self.check(ask, known, policy, now) {
            Ok(gives_way) => Verdict::Grant(gives_way),
            Err(verdict) => verdict,
        }
    }

    fn check(&self, ask: &Ask, known: &KnownLiveness, policy: &Policy<'_>, now: i64) -> Result<Vec<GivesWay>, Verdict> {
        let mut gives_way = Vec::new();
        let mut judge = |clash, holders: Vec<&KeyEntry>| {
            holders
                .into_iter()
                .try_for_each(|holder| self.judge(ask, holder, clash, known, now, &mut gives_way))
        };
        if let Some(id) = &ask.id {
            judge(Clash::Id, self.keys.with_id(id))?;
        }
        let address = ask.address.as_ref().ok_or(Verdict::Refuse(Refused::BadAddress))?;
        judge(Clash::Address, self.keys.with_host(address.address.host_text()))?;
        if ask.name == policy.manager_name {
            return Err(Verdict::Refuse(Refused::ManagerName));
        }
        judge(Clash::Name, self.keys.with_name(&ask.name))?;

        let left = self.keys.live().len().saturating_sub(gives_way.len());
        let is_full = policy.max_agents > 0 && left >= policy.max_agents as usize;
        if is_full || (ask.id.is_none() && self.next_id().is_none()) {
            return Err(Verdict::Refuse(Refused::Full));
        }
        Ok(gives_way)
    }

    fn judge(
        &self,
        ask: &Ask,
        holder: &KeyEntry,
        clash: Clash,
        known: &KnownLiveness,
        now: i64,
        gives_way: &mut Vec<GivesWay>,
    ) -> Result<(), Verdict> {
        if gives_way
            .iter()
            .any(|known| known.id == holder.id && known.name == holder.name)
        {
            return Ok(());
        }
        if ask.rules.needs_liveness() && !known.contains_key(&holder.id) {
            return Err(Verdict::NeedsLiveness(holder.id.clone()));
        }
        let incumbent = Incumbent {
            liveness: known.get(&holder.id).copied().flatten(),
            registered_at: self.registered.get(&holder.id).copied(),
            holds_same_key: ask
                .key_hash
                .as_deref()
                .is_some_and(|hash| hash == key_hash(holder.id.as_str(), &holder.name, &holder.key)),
        };
        match ask.rules.judge(&incumbent, now) {
            Ok(()) => gives_way.push(GivesWay {
                id: holder.id.clone(),
                name: holder.name.clone(),
                clash,
            }),
            Err(why) => {
                return Err(Verdict::Refuse(Refused::InTheWay {
                    clash,
                    id: holder.id.clone(),
                    why,
                }));
            }
        }
        Ok(())
    }

    /// Carries out a [`Verdict::Grant`]. Gives the new agent and those that went, or `None` when no id is left.
    pub fn grant(
        &mut self,
        ask: &Ask,
        gives_way: &[GivesWay],
        key: Secret,
        trace: Trace,
        now: i64,
    ) -> Option<(KeyEntry, Vec<KeyEntry>)> {
        let address = ask.address.as_ref()?.address.clone();
        let mut gone = Vec::new();
        for agent in gives_way {
            // A file made by hand may have the same line twice.
            while let Some(entry) = self.keys.remove_named(&agent.id, &agent.name, trace) {
                gone.push(entry);
            }
            self.forget_if_gone(&agent.id);
        }
        let id = ask.id.clone().or_else(|| self.next_id())?;
        if let Some(leases) = &mut self.leases {
            leases.took(&id);
        }
        let entry = KeyEntry {
            id,
            name: ask.name.clone(),
            address,
            key,
        };
        self.keys.add(entry.clone());
        self.registered.insert(entry.id.clone(), now);
        Some((entry, gone))
    }

    /// The id that the next new agent gets, if there is one left.
    pub fn next_id(&self) -> Option<AgentId> {
        match &self.leases {
            Some(leases) => leases.next_id(&self.keys),
            None => self.keys.next_id(),
        }
    }

    /// Removes an agent.
    pub fn remove(&mut self, id: &AgentId, trace: Trace) -> Option<KeyEntry> {
        let entry = self.keys.remove(id, trace)?;
        self.forget_if_gone(id);
        Some(entry)
    }

    fn forget_if_gone(&mut self, id: &AgentId) {
        if self.keys.get(id.as_str()).is_none() {
            self.registered.remove(id);
        }
    }
}

#[cfg(test)]
mod tests;
