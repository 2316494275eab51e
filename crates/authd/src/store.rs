//! The thread that owns the [`Ledger`], and the handle by which everybody else asks it.
//!
//! Requests that come while a write is under way wait in the queue and share the next one, so the number of writes
//! follows the speed of the disk and not the number of agents. Nobody hears "yes" before the write is durable.
//!
//! **The queue** holds [`QUEUE_LEN`] requests; who comes later waits for room, and the caps on connections bound how
//! many can wait.

mod keeper;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use muster_proto::{
    agent::AgentId,
    event::Event,
    ipc::control::{AgentGroups, GroupMode},
    keys::{Secret, file::KeyEntry},
};
use muster_service::outbox;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    change::Removal,
    counters::Counters,
    database::DatabaseError,
    keystore::Trace,
    leases::Block,
    ledger::Ledger,
    registry::{Ask, KnownLiveness, Method, Refused},
};
use keeper::Keeper;

/// Requests that may wait.
pub const QUEUE_LEN: usize = 2048;
/// What the store judges by. Changes on reload.
#[derive(Clone, Debug)]
pub struct StorePolicy {
    /// The manager's own name.
    pub manager_name: String,
    /// How many agents there may be; 0 = as many as come.
    pub max_agents: u32,
    /// What stays of agents that go.
    pub trace: Trace,
}

/// What became of a wish for a key.
#[derive(Debug, PartialEq, Eq)]
pub enum AddOutcome {
    /// Here it is.
    Granted {
        /// The new agent.
        entry: KeyEntry,
        /// Which change of the file it is in; see [`Store::changes`].
        generation: u64,
    },
    /// Ask again, with this agent's liveness.
    NeedsLiveness(AgentId),
    /// No.
    Refused(Refused),
    /// It could not be made durable.
    Failed,
}

/// What became of an order to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveOutcome {
    /// Done.
    Removed,
    /// There is no such agent.
    NotFound,
    /// It could not be made durable.
    Failed,
}

/// A page of agents with their groups, or why there is none.
pub type GroupsOutcome = Result<GroupsPage, DatabaseError>;

/// A page of agents with their groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupsPage {
    /// In the order of their ids as text.
    pub agents: Vec<AgentGroups>,
    /// Whether another page follows.
    pub more: bool,
    /// Grows whenever groups are changed, and is higher after a restart.
    pub version: u64,
}

enum Command {
    Add {
        ask: Box<Ask>,
        key: Option<Secret>,
        known: KnownLiveness,
        reply: oneshot::Sender<AddOutcome>,
    },
    Remove {
        id: AgentId,
        trace: Option<Trace>,
        why: (Removal, Method),
        reply: oneshot::Sender<RemoveOutcome>,
    },
    Withdraw {
        id: AgentId,
        key: Secret,
    },
    Get {
        id: AgentId,
        reply: oneshot::Sender<Option<KeyEntry>>,
    },
    Groups {
        after: Option<AgentId>,
        limit: usize,
        reply: oneshot::Sender<GroupsOutcome>,
    },
    SetGroups {
        agents: Vec<AgentId>,
        groups: Vec<String>,
        mode: GroupMode,
        reply: oneshot::Sender<GroupsOutcome>,
    },
    TakeBlock {
        block: Block,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Tell(Box<Event>),
    SetPolicy(StorePolicy),
    Stop,
}

/// A handle to the thread.
#[derive(Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
}

/// What others see of the thread without asking it.
#[derive(Default)]
struct Shared {
    agents: AtomicU64,
    owes_rows: AtomicBool,
    cannot_write: AtomicBool,
    /// Ids that are left, where they are leased; [`NOT_LEASED`] elsewhere.
    free_ids: AtomicU64,
    highest_number: AtomicU64,
}

/// New agents get any id that is free.
const NOT_LEASED: u64 = u64::MAX;

/// How the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// Agents with a key.
    pub agents: u64,
    /// Requests that wait.
    pub waiting: usize,
    /// Whether the last write of the key file failed.
    pub cannot_write: bool,
    /// Whether the database lags behind the file.
    pub owes_rows: bool,
    /// Ids that are left, where they are leased.
    pub free_ids: Option<u32>,
    /// The highest number that an agent has or had.
    pub highest_number: u32,
}

/// The thread has ended; the daemon is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has ended")]
pub struct StoreGone;

impl Store {
    /// Starts the thread. It ends at [`Store::stop`], and then sends on the receiver.
    pub fn start(
        ledger: Ledger,
        policy: StorePolicy,
        counters: Arc<Counters>,
        outbox: outbox::Sender,
    ) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (commands, queue) = mpsc::channel(QUEUE_LEN);
        let (generation, changes) = watch::channel(0);
        let (ended, end) = oneshot::channel();
        let shared = Arc::new(Shared::default());
        let keeper = Keeper::new(ledger, policy, counters, outbox, generation, Arc::clone(&shared));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        thread::Builder::new().name("store".to_owned()).spawn(move || {
            runtime.block_on(keeper.work(queue));
            let _ = ended.send(());
        })?;
        Ok((
            Self {
                commands,
                shared,
                changes,
            },
            end,
        ))
    }

    /// Asks for a key: `key`, or a new one.
    pub async fn add(&self, ask: Ask, key: Option<Secret>, known: KnownLiveness) -> Result<AddOutcome, StoreGone> {
        self.ask(|reply| Command::Add {
            ask: Box::new(ask),
            key,
            known,
            reply,
        })
        .await
    }

    /// Removes an agent, leaving the trace that the configuration says or this one.
    pub async fn remove(
        &self,
        id: AgentId,
        trace: Option<Trace>,
        why: (Removal, Method),
    ) -> Result<RemoveOutcome, StoreGone> {
        self.ask(|reply| Command::Remove { id, trace, why, reply }).await
    }

    /// Looks an agent up.
    pub async fn get(&self, id: AgentId) -> Result<Option<KeyEntry>, StoreGone> {
        self.ask(|reply| Command::Get { id, reply }).await
    }

    /// The groups of at most `limit` agents behind `after`.
    pub async fn groups(&self, after: Option<AgentId>, limit: usize) -> Result<GroupsOutcome, StoreGone> {
        self.ask(|reply| Command::Groups { after, limit, reply }).await
    }

    /// Changes the groups of agents, which exist; see [`crate::groups::check`].
    pub async fn set_groups(
        &self,
        agents: Vec<AgentId>,
        groups: Vec<String>,
        mode: GroupMode,
    ) -> Result<GroupsOutcome, StoreGone> {
        self.ask(|reply| Command::SetGroups {
            agents,
            groups,
            mode,
            reply,
        })
        .await
    }

    /// Takes over a block of ids.
    pub async fn take_block(&self, block: Block) -> Result<Result<(), String>, StoreGone> {
        self.ask(|reply| Command::TakeBlock { block, reply }).await
    }

    /// Takes a key back that could not be delivered.
    pub async fn withdraw(&self, entry: &KeyEntry) {
        let command = Command::Withdraw {
            id: entry.id.clone(),
            key: entry.key.clone(),
        };
        let _ = self.commands.send(command).await;
    }

    /// Puts an event into the outbox. When the queue is full it is dropped: returns whether it was taken.
    pub fn tell(&self, event: Event) -> bool {
        self.commands.try_send(Command::Tell(Box::new(event))).is_ok()
    }

    /// Replaces what is judged by.
    pub async fn set_policy(&self, policy: StorePolicy) {
        let _ = self.commands.send(Command::SetPolicy(policy)).await;
    }

    /// Ends the thread, behind everything that waits.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }

    /// The number of the last durable change of the file.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// How it is.
    pub fn status(&self) -> StoreStatus {
        StoreStatus {
            agents: self.shared.agents.load(Ordering::Relaxed),
            waiting: QUEUE_LEN.saturating_sub(self.commands.capacity()),
            cannot_write: self.shared.cannot_write.load(Ordering::Relaxed),
            owes_rows: self.shared.owes_rows.load(Ordering::Relaxed),
            free_ids: u32::try_from(self.shared.free_ids.load(Ordering::Relaxed)).ok(),
            highest_number: u32::try_from(self.shared.highest_number.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreGone> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreGone)?;
        answer.await.map_err(|_| StoreGone)
    }
}

#[cfg(test)]
mod tests;
