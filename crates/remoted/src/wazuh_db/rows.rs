//! What is to be written of which agent, decided without a socket.
//!
//! Of each agent only the latest counts: a keepalive takes the place of one that was not written yet, and what is
//! written is worked out when its turn comes. So no more waits than there are agents, however long the database is
//! away.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    agent::AgentId,
    local::wazuh_db::{
        Connection, Manager, StatusCode, update_agent_data, update_connection_status, update_keepalive,
        update_status_code,
    },
};

use crate::slot::{AgentSlot, Millis, News, Said, StartupOutcome};

/// How long news of an agent wait for more of it: its groups' file is looked up meanwhile.
const GATHER: Duration = Duration::from_millis(250);
/// The sum of an agent that has no merged file.
const NO_FILE: &str = "x";

/// All rows.
pub struct Rows {
    host: String,
    node: String,
    rows: HashMap<AgentId, Row>,
    due: VecDeque<(Millis, AgentId)>,
}

/// What is known of an agent's row.
#[derive(Default)]
struct Row {
    pending: Pending,
    is_queued: bool,
    /// What it said last.
    said: Option<Arc<Said>>,
    /// Whether it has the file of its groups, as far as that was looked at.
    synced: Option<bool>,
    /// What was written whole last.
    written: Option<Written>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    digest: u64,
    synced: bool,
}

/// What is to be written, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pending {
    refused: Option<(StatusCode, Option<String>)>,
    startup: bool,
    keepalive: bool,
    gone: Option<StatusCode>,
}

/// Commands about one agent, to be sent in their order.
#[derive(Debug)]
pub struct Job {
    /// Whose row.
    pub id: AgentId,
    /// The commands.
    pub commands: Vec<String>,
    pending: Pending,
    /// What is written whole when they are carried out.
    written: Option<Written>,
}

impl Rows {
    /// None yet. `host` and `node` name the manager.
    pub fn new(host: String, node: String) -> Self {
        Self {
            host,
            node,
            rows: HashMap::new(),
            due: VecDeque::new(),
        }
    }

    /// Agents with something to be written, and agents in all.
    pub fn sizes(&self) -> (usize, usize) {
        (self.due.len(), self.rows.len())
    }

    /// Hears what the roster hears.
    pub fn hear(&mut self, now: Millis, news: &News) {
        match news {
            News::Startup { slot, outcome, .. } => self.note(now, &slot.id, |row| {
                let pending = &mut row.pending;
                match outcome {
                    StartupOutcome::Accepted { .. } => {
                        *pending = Pending {
                            startup: true,
                            ..Pending::default()
                        }
                    }
                    StartupOutcome::RefusedVersion { version } => {
                        pending.refused = Some((StatusCode::InvalidVersion, Some(version.clone())));
                    }
                    StartupOutcome::NoVersion => pending.refused = Some((StatusCode::NoVersion, None)),
                }
            }),
            News::Keepalive { slot, said, .. } => self.note(now, &slot.id, |row| {
                row.said = Some(Arc::clone(said));
                row.pending.keepalive = true;
                row.pending.gone = None;
            }),
            News::Shutdown { slot, .. } => self.gone(now, slot, StatusCode::Shutdown),
            News::Shared { slot, shared } => {
                let Some(row) = self.rows.get_mut(&slot.id) else { return };
                row.synced = shared.synced;
                let differs = row.written.is_some_and(|written| Some(written.synced) != shared.synced);
                // A row that says somebody is there is only written of somebody who is.
                if differs && row.pending.gone.is_none() && slot.route().is_some() {
                    self.note(now, &slot.id, |row| row.pending.keepalive = true);
                }
            }
            News::KeysReloaded { changed, removed, .. } => {
                for slot in changed.iter().chain(removed) {
                    self.rows.remove(&slot.id);
                }
            }
            _ => {}
        }
    }

    /// An agent is gone.
    pub fn gone(&mut self, now: Millis, slot: &Arc<AgentSlot>, code: StatusCode) {
        self.note(now, &slot.id, |row| row.pending.gone = Some(code));
    }

    fn note(&mut self, now: Millis, id: &AgentId, change: impl FnOnce(&mut Row)) {
        // The database knows agents by number.
        if id.number().is_none() {
            return;
        }
        let row = self.rows.entry(id.clone()).or_default();
        change(row);
        if !mem::replace(&mut row.is_queued, true) {
            self.due.push_back((now + GATHER, id.clone()));
        }
    }

    /// The database may have been another since: whatever is written next is written whole.
    pub fn forget_written(&mut self) {
        self.rows.values_mut().for_each(|row| row.written = None);
    }

    /// When [`Rows::next`] has something again.
    pub fn next_due(&self) -> Option<Millis> {
        self.due.front().map(|(at, _)| *at)
    }

    /// What is written next, if it is time. [`Rows::done`] or [`Rows::failed`] follows.
    pub fn next(&mut self, now: Millis) -> Option<Job> {
        loop {
            if self.next_due()? > now {
                return None;
            }
            let (_, id) = self.due.pop_front()?;
            // It may have been removed, and have come back since.
            let Some(row) = self.rows.get_mut(&id).filter(|row| row.is_queued) else {
                continue;
            };
            row.is_queued = false;
            let pending = mem::take(&mut row.pending);
            let Some(number) = id.number() else { continue };
            let manager = Manager {
                host: &self.host,
                node: &self.node,
            };
            let commands = row.commands(number, &pending, manager);
            let written = row.wanted().filter(|_| pending.keepalive);
            return Some(Job {
                id,
                commands,
                pending,
                written,
            });
        }
    }

    /// All of it was answered.
    pub fn done(&mut self, job: &Job) {
        if let (Some(row), Some(written)) = (self.rows.get_mut(&job.id), job.written) {
            row.written = Some(written);
        }
    }

    /// The connection ended first: it is written again, unless there is something newer to be said.
    pub fn failed(&mut self, now: Millis, job: Job) {
        if !self.rows.contains_key(&job.id) {
            return;
        }
        let old = job.pending;
        self.note(now, &job.id, |row| {
            let new = &mut row.pending;
            // A startup or a goodbye since then says more.
            if !new.startup && new.gone.is_none() {
                new.startup = old.startup;
                new.gone = old.gone.filter(|_| !new.keepalive);
                new.keepalive |= old.keepalive;
            }
            new.refused = new.refused.take().or(old.refused);
        });
    }
}

impl Row {
    fn synced(&self) -> bool {
        let reported = self.said.as_ref().and_then(|said| said.merged_sum());
        self.synced
            .unwrap_or_else(|| reported.is_some_and(|sum| **sum != *NO_FILE))
    }

    fn wanted(&self) -> Option<Written> {
        Some(Written {
            digest: self.said.as_ref()?.digest(),
            synced: self.synced(),
        })
    }

    fn commands(&self, id: u32, pending: &Pending, manager: Manager<'_>) -> Vec<String> {
        let mut commands = Vec::new();
        if let Some((code, version)) = &pending.refused {
            commands.push(update_status_code(id, *code, version.as_deref()));
        }
        if pending.startup {
            commands.push(update_keepalive(id, Connection::Pending));
        }
        if pending.keepalive {
            let is_new = self.written.is_none() || self.written != self.wanted();
            commands.push(match &self.said {
                Some(said) if is_new => update_agent_data(id, &said.keepalive().fields(), manager, self.synced()),
                _ => update_keepalive(id, Connection::Active),
            });
        }
        if let Some(code) = pending.gone {
            commands.push(update_connection_status(id, Connection::Disconnected, code));
        }
        commands
    }
}

#[cfg(test)]
mod tests;
