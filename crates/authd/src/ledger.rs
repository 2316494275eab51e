//! Everything that is known of agents, in memory and on disk, and how the two change together.
//!
//! **Invariant:** what [`Ledger::commit`] has returned from with success survives a crash; what it has not is as if it
//! had never been asked for.

mod keys_text;

use std::{collections::HashMap, io, path::PathBuf};

use self::keys_text::KeysText;
pub use self::keys_text::Wrote;
use crate::{
    change::{Agent, Change, EventMaker, Removal},
    database::{Database, DatabaseError, Row},
    file::replace_lazily,
    keystore::{KeyStore, Trace},
    leases::{Block, Leases},
    merge::{Found, merge},
    reconcile::{Reconciled, reconcile},
    registry::{Ask, GivesWay, KnownLiveness, Method, Policy, Registry, Verdict},
    timestamps,
};
use anyhow::Context;
use jiff::tz::TimeZone;
use muster_proto::{
    agent::AgentId,
    event::Event,
    ipc::control::{AgentGroups, GroupMode},
    keys::{
        Secret,
        file::{self, KeyEntry, LineProblem},
    },
};

/// As many bad lines of a key file are named in the log; the rest is counted.
const PROBLEMS_NAMED: usize = 20;

/// Where things lie.
#[derive(Clone, Debug)]
pub struct Places {
    /// `etc/client.keys`
    pub keys: PathBuf,
    /// `queue/db/enrollment.db`
    pub database: PathBuf,
    /// `queue/agents-timestamp`
    pub timestamps: PathBuf,
}

/// Agents, their file, and their database.
pub struct Ledger {
    registry: Registry,
    text: KeysText,
    database: Database,
    /// A batch that is in the file and could not be put into the database. At most one: the next has to wait.
    owed: Option<Batch>,
    events: EventMaker,
    timestamps: PathBuf,
    zone: TimeZone,
}

/// Changes that are made durable together.
#[derive(Default)]
pub struct Batch {
    changes: Vec<Change>,
    events: Vec<Event>,
    highest_number: u32,
}

/// Why a batch was not made durable.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The key file.
    #[error("cannot write the key file")]
    File(#[source] io::Error),
    /// The database, before the file was touched.
    #[error("cannot write the enrollment database")]
    Database(#[source] DatabaseError),
}

impl Ledger {
    /// Reads the file and the database and makes them agree, at `now_ms` (Unix milliseconds).
    ///
    /// # Errors
    /// A file that is there and cannot be read, or a database that cannot be used: going on would lose what they hold.
    pub fn open(places: &Places, events: EventMaker, now_ms: u64) -> anyhow::Result<Self> {
        let mut text = KeysText::open(&places.keys).with_context(|| {
            format!(
                "reading {}; it is not replaced by an empty one, so mend its owner or mode",
                places.keys.display()
            )
        })?;
        let database = Database::open(&places.database).with_context(|| {
            format!(
                "opening {}; if it is damaged, move it away: agents keep their keys, unsent events are lost",
                places.database.display()
            )
        })?;
        let rows = database.rows().context("reading the enrollment database")?;
        text.leave_out_half_line(&rows);
        let parsed = file::parse(text.durable());
        report_problems(&parsed.problems);
        let mut ledger = Self {
            registry: Registry {
                keys: KeyStore::new(parsed),
                ..Registry::default()
            },
            text,
            database,
            owed: None,
            events,
            timestamps: places.timestamps.clone(),
            zone: TimeZone::system(),
        };
        ledger.reconcile(&rows, now_ms)?;
        Ok(ledger)
    }

    fn reconcile(&mut self, rows: &HashMap<AgentId, Row>, now_ms: u64) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.timestamps).unwrap_or_default();
        let Reconciled {
            registered,
            silent,
            changes,
        } = reconcile(
            self.registry.keys.live(),
            rows,
            &timestamps::parse(&text, &self.zone),
            seconds(now_ms),
        );
        self.registry.registered = registered;
        let events: Vec<_> = changes
            .iter()
            .map(|change| self.events.of_change(change, now_ms))
            .collect();
        self.database
            .import(&silent)
            .context("filling the enrollment database")?;
        self.database
            .stage(&changes, &events)
            .and_then(|transaction| Ok(transaction.commit()?))
            .context("bringing the enrollment database up to date")?;
        tracing::info!(
            agents = self.registry.keys.live().len(),
            removed = self.registry.keys.removed().len(),
            imported = silent.len(),
            changed_while_away = changes.len(),
            "agents are loaded"
        );
        Ok(())
    }

    /// From now on new agents get ids of blocks that are ours alone: those that were handed over before, and those that
    /// follow.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn give_only_leased_ids(&mut self) -> anyhow::Result<()> {
        let mut leases = Leases::default();
        for block in self.database.blocks().context("reading the blocks of ids")? {
            leases.add(block, &self.registry.keys).context("the blocks of ids")?;
        }
        self.registry.leases = Some(leases);
        Ok(())
    }

    /// Takes one more block of ids over, durably.
    ///
    /// # Errors
    /// Why not, for people. Nothing has changed.
    pub fn take_block(&mut self, block: Block) -> anyhow::Result<()> {
        let Some(leases) = &mut self.registry.leases else {
            anyhow::bail!("ids are not leased here; see <ownership ids>");
        };
        let mut with = leases.clone();
        with.add(block, &self.registry.keys)?;
        self.database.add_block(block)?;
        *leases = with;
        Ok(())
    }

    /// The agents.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The groups of agents; see [`Database::groups`].
    pub fn groups(&self, after: Option<&AgentId>, limit: usize) -> Result<(Vec<AgentGroups>, bool), DatabaseError> {
        self.database.groups(after, limit)
    }

    /// Changes the groups of agents, durably; see [`Database::set_groups`].
    pub fn set_groups(
        &mut self,
        agents: &[AgentId],
        groups: &[String],
        mode: GroupMode,
    ) -> Result<Vec<AgentGroups>, DatabaseError> {
        self.database.set_groups(agents, groups, mode)
    }

    /// Whether a batch is in the file only.
    pub fn owes_rows(&self) -> bool {
        self.owed.is_some()
    }

    /// Begins a batch.
    pub fn batch(&self) -> Batch {
        Batch {
            highest_number: self.registry.keys.highest_number(),
            ..Batch::default()
        }
    }

    /// Judges a wish; nothing changes.
    pub fn decide(&self, ask: &Ask, known: &KnownLiveness, policy: &Policy<'_>, now_ms: u64) -> Verdict {
        self.registry.decide(ask, known, policy, seconds(now_ms))
    }

    /// Gives a key to one who may have it, in memory and in the batch.
    pub fn grant(
        &mut self,
        batch: &mut Batch,
        ask: &Ask,
        gives_way: &[GivesWay],
        key: Secret,
        trace: Trace,
        now_ms: u64,
    ) -> Option<KeyEntry> {
        let now = seconds(now_ms);
        let times: Vec<i64> = gives_way
            .iter()
            .map(|agent| self.registry.registered.get(&agent.id).copied().unwrap_or(0))
            .collect();
        let (entry, gone) = self.registry.grant(ask, gives_way, key, trace, now)?;
        let keeps_id = gone.iter().any(|old| old.id == entry.id);
        for (old, registered_at) in gone.iter().zip(times) {
            let agent = Agent::of_line(old, ask.method, registered_at);
            let change = Change::Removed {
                agent,
                reason: Removal::Replaced,
            };
            // An id that lives on was not removed, as far as the world is concerned.
            let is_told = old.id != entry.id;
            batch.note(&self.events, change, is_told, now_ms);
        }
        let agent = Agent::granted(&entry, ask, gives_way, now);
        let change = if keeps_id {
            Change::KeyRotated(agent)
        } else {
            Change::Enrolled(agent)
        };
        batch.note(&self.events, change, true, now_ms);
        Some(entry)
    }

    /// Removes an agent, in memory and in the batch.
    pub fn remove(
        &mut self,
        batch: &mut Batch,
        id: &AgentId,
        trace: Trace,
        (reason, method): (Removal, Method),
        now_ms: u64,
    ) -> Option<KeyEntry> {
        let registered_at = self.registry.registered.get(id).copied().unwrap_or(0);
        let entry = self.registry.remove(id, trace)?;
        let agent = Agent::of_line(&entry, method, registered_at);
        batch.note(&self.events, Change::Removed { agent, reason }, true, now_ms);
        Some(entry)
    }

    /// Adds an event that changes no agent.
    pub fn tell(&self, batch: &mut Batch, event: Event) {
        batch.events.push(event);
    }

    /// Makes a batch durable, or takes it back.
    ///
    /// # Errors
    /// It was taken back: file, database and memory are as before, except that ids may be left out.
    pub fn commit(&mut self, batch: Batch, trace: Trace) -> Result<Wrote, CommitError> {
        let outcome = self.write(&batch, trace);
        match outcome {
            Ok((wrote, true)) => Ok(wrote),
            Ok((wrote, false)) => {
                self.owed = Some(batch);
                Ok(wrote)
            }
            Err(error) => {
                self.take_back(&batch);
                self.restore_file();
                Err(error)
            }
        }
    }

    /// A write can fail when the new file is already in place: in the last step, when its directory is synced.
    fn restore_file(&mut self) {
        if let Err(error) = self.text.restore() {
            tracing::error!(%error, "the key file may hold keys that were refused");
        }
    }

    /// Takes a batch back that may not be written at all.
    pub fn abandon(&mut self, batch: &Batch) {
        self.take_back(batch);
    }

    /// Puts what is owed into the database.
    pub fn settle(&mut self) -> Result<(), CommitError> {
        if let Some(owed) = self.owed.take() {
            let settled = self
                .database
                .stage(&owed.changes, &owed.events)
                .and_then(|transaction| Ok(transaction.commit()?));
            if let Err(error) = settled {
                self.owed = Some(owed);
                return Err(CommitError::Database(error));
            }
        }
        Ok(())
    }

    /// How the file was written, and whether the database was.
    fn write(&mut self, batch: &Batch, trace: Trace) -> Result<(Wrote, bool), CommitError> {
        let mut wrote = Wrote::Nothing;
        if batch.is_empty() {
            return Ok((wrote, true));
        }
        self.settle()?;
        let transaction = self
            .database
            .stage(&batch.changes, &batch.events)
            .map_err(CommitError::Database)?;
        if !batch.changes.is_empty() {
            if trace == Trace::Nothing {
                self.registry.keys.forget_removed();
            }
            wrote = self.text.write(&mut self.registry.keys).map_err(CommitError::File)?;
        }
        match transaction.commit() {
            Ok(()) => Ok((wrote, true)),
            Err(error) if batch.changes.is_empty() => Err(CommitError::Database(error.into())),
            Err(error) => {
                tracing::error!(%error, "cannot write the enrollment database, trying again with the next change");
                Ok((wrote, false))
            }
        }
    }

    /// Whether lines were added to the key file since it was last written whole. Then [`Ledger::tidy`] is due before long.
    pub fn is_untidy(&self) -> bool {
        self.text.has_grown()
    }

    /// Writes the key file whole, so that it has the stock order and another inode. Says nothing new.
    ///
    /// # Errors
    /// The file is as it was, and holds everything.
    pub fn tidy(&mut self) -> io::Result<()> {
        self.text.replace(&mut self.registry.keys)
    }

    fn take_back(&mut self, batch: &Batch) {
        if batch.changes.is_empty() {
            return;
        }
        self.registry.keys = KeyStore::new(file::parse(self.text.durable()));
        self.registry.keys.raise_highest_number(batch.highest_number);
        for change in batch.changes.iter().rev() {
            match change {
                Change::Enrolled(agent) | Change::KeyRotated(agent) | Change::Renamed(agent) => {
                    self.registry.registered.remove(&agent.id);
                }
                Change::Removed { agent, .. } => {
                    self.registry.registered.insert(agent.id.clone(), agent.registered_at);
                }
            }
        }
    }

    /// Takes over what somebody else wrote into the file. `Ok(true)`: something was.
    ///
    /// # Errors
    /// The file cannot be looked at; then it must not be replaced either.
    pub fn take_over_edits(&mut self, now_ms: u64) -> io::Result<bool> {
        let Some(bytes) = self.text.edited()? else {
            return Ok(false);
        };
        let found = Found {
            file: file::parse(&bytes),
            is_whole: bytes.is_empty() || bytes.ends_with(b"\n"),
        };
        report_problems(&found.file.problems);
        let merged = merge(&mut self.registry, found, seconds(now_ms));
        self.text.merged(&mut self.registry.keys);
        tracing::warn!(
            changes = merged.changes.len(),
            missing = merged.missing,
            "somebody else has written the key file; what it says is taken over, agents it leaves out are kept \
             (remove them with `muster-control agent remove`)"
        );
        let mut batch = self.batch();
        for change in merged.changes {
            batch.note(&self.events, change, true, now_ms);
        }
        let staged = self.settle().and_then(|()| {
            let transaction = self
                .database
                .stage(&batch.changes, &batch.events)
                .map_err(CommitError::Database)?;
            transaction
                .commit()
                .map_err(|error| CommitError::Database(error.into()))
        });
        if let Err(error) = staged {
            tracing::error!(
                error = format!("{:#}", anyhow::Error::new(error)),
                "an edit is not in the database yet"
            );
            match &mut self.owed {
                Some(owed) => {
                    owed.changes.append(&mut batch.changes);
                    owed.events.append(&mut batch.events);
                }
                None => self.owed = Some(batch),
            }
        }
        Ok(true)
    }

    /// Writes the stock text of registration times.
    pub fn write_timestamps(&self) -> io::Result<()> {
        replace_lazily(
            &self.timestamps,
            timestamps::format(&self.registry, &self.zone).as_bytes(),
        )
    }
}

impl Batch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty()
    }

    /// Whether agents come, go or change.
    pub fn changes_agents(&self) -> bool {
        !self.changes.is_empty()
    }

    fn note(&mut self, events: &EventMaker, change: Change, is_told: bool, now_ms: u64) {
        if is_told {
            self.events.push(events.of_change(&change, now_ms));
        }
        self.changes.push(change);
    }
}

fn report_problems(problems: &[LineProblem]) {
    for problem in problems.iter().take(PROBLEMS_NAMED) {
        tracing::warn!(line = problem.line_number, id = problem.id, reason = %problem.kind, "cannot read a line of the key file");
    }
    if problems.len() > PROBLEMS_NAMED {
        tracing::warn!(
            lines = problems.len(),
            "there are more lines of the key file that cannot be read"
        );
    }
}

fn seconds(now_ms: u64) -> i64 {
    i64::try_from(now_ms / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
