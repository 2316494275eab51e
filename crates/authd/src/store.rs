//! The thread that owns the [`Ledger`], and the handle by which everybody else asks it.
//!
//! Requests that come while a write is under way wait in the queue and share the next one, so the number of writes
//! follows the speed of the disk and not the number of agents. Nobody hears "yes" before the write is durable.
//!
//! **The queue** holds [`QUEUE_LEN`] requests; who comes later waits for room, and the caps on connections bound how
//! many can wait.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use muster_proto::{
    agent::AgentId,
    event::Event,
    keys::{Secret, file::KeyEntry},
};
use muster_service::{clock, outbox};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    change::Removal,
    counters::Counters,
    keystore::Trace,
    ledger::{Batch, Ledger},
    registry::{Ask, Clash, GivesWay, KnownLiveness, Method, Policy, Refused, Verdict},
};

/// Requests that may wait.
pub const QUEUE_LEN: usize = 2048;
/// Requests that share a write.
const MAX_BATCH: usize = 1024;
/// How often the key file is looked at for edits when nothing else happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How long after a change the stock text of registration times is written.
const TIMESTAMPS_DELAY: Duration = Duration::from_secs(2);

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
}

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
        let keeper = Keeper {
            ledger,
            policy,
            counters,
            outbox,
            generation,
            shared: Arc::clone(&shared),
            timestamps_due: None,
            is_stopping: false,
        };
        keeper.publish();
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
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreGone> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreGone)?;
        answer.await.map_err(|_| StoreGone)
    }
}

/// An answer that waits for its batch to be durable.
enum Waiting {
    Add(oneshot::Sender<AddOutcome>, AddOutcome),
    Remove(oneshot::Sender<RemoveOutcome>, RemoveOutcome),
    Get(oneshot::Sender<Option<KeyEntry>>, AgentId),
}

struct Keeper {
    ledger: Ledger,
    policy: StorePolicy,
    counters: Arc<Counters>,
    outbox: outbox::Sender,
    generation: watch::Sender<u64>,
    shared: Arc<Shared>,
    timestamps_due: Option<Instant>,
    is_stopping: bool,
}

impl Keeper {
    async fn work(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut look_due = Instant::now() + LOOK_INTERVAL;
        loop {
            let due = self.timestamps_due.map_or(look_due, |due| due.min(look_due));
            match tokio::time::timeout_at(due, queue.recv()).await {
                Ok(Some(first)) => {
                    let mut commands = vec![first];
                    while commands.len() < MAX_BATCH
                        && let Ok(next) = queue.try_recv()
                    {
                        commands.push(next);
                    }
                    self.run(commands);
                    if self.is_stopping {
                        break;
                    }
                }
                Ok(None) => break,
                Err(_) => {}
            }
            if look_due <= Instant::now() {
                look_due = Instant::now() + LOOK_INTERVAL;
                self.run(Vec::new());
            }
            if self.timestamps_due.is_some_and(|due| due <= Instant::now()) {
                self.write_timestamps();
            }
        }
        if self.timestamps_due.is_some() {
            self.write_timestamps();
        }
    }

    fn run(&mut self, commands: Vec<Command>) {
        let now_ms = clock::unix_ms();
        let may_write = self.take_over_edits(now_ms);
        let mut batch = self.ledger.batch();
        let waiting: Vec<_> = commands
            .into_iter()
            .filter_map(|command| self.apply(command, &mut batch, now_ms))
            .collect();
        let is_durable = if may_write {
            self.commit(batch)
        } else {
            self.refuse(&batch)
        };
        self.publish();
        let generation = *self.generation.borrow();
        waiting
            .into_iter()
            .for_each(|waiting| self.answer(waiting, is_durable, generation));
    }

    fn take_over_edits(&mut self, now_ms: u64) -> bool {
        match self.ledger.take_over_edits(now_ms) {
            Ok(false) => true,
            Ok(true) => {
                self.counters.key_file_edits_total.increment();
                self.changed();
                true
            }
            Err(error) => {
                tracing::error!(%error, "cannot look at the key file, so it is not replaced; mend its owner or mode");
                false
            }
        }
    }

    fn commit(&mut self, batch: Batch) -> bool {
        if batch.is_empty() {
            if let Err(error) = self.ledger.settle() {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "the database still lags behind"
                );
            }
            return true;
        }
        let changes_agents = batch.changes_agents();
        match self.ledger.commit(batch, self.policy.trace) {
            Ok(()) => {
                if changes_agents {
                    self.counters.key_file_writes_total.increment();
                    self.shared.cannot_write.store(false, Ordering::Relaxed);
                    self.changed();
                }
                self.outbox.wake();
                true
            }
            Err(error) => {
                self.counters.key_file_write_errors_total.increment();
                self.shared.cannot_write.store(true, Ordering::Relaxed);
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "cannot store a change, it is refused; is the disk full?"
                );
                false
            }
        }
    }

    /// The file cannot be looked at: nothing that changes agents may happen.
    fn refuse(&mut self, batch: &Batch) -> bool {
        self.shared.cannot_write.store(true, Ordering::Relaxed);
        self.ledger.abandon(batch);
        false
    }

    fn changed(&mut self) {
        self.generation
            .send_modify(|generation| *generation = generation.wrapping_add(1));
        self.timestamps_due.get_or_insert(Instant::now() + TIMESTAMPS_DELAY);
    }

    fn publish(&self) {
        let agents = u64::try_from(self.ledger.registry().keys.live().len()).unwrap_or(u64::MAX);
        self.shared.agents.store(agents, Ordering::Relaxed);
        self.shared.owes_rows.store(self.ledger.owes_rows(), Ordering::Relaxed);
    }

    fn apply(&mut self, command: Command, batch: &mut Batch, now_ms: u64) -> Option<Waiting> {
        match command {
            Command::Add { ask, key, known, reply } => {
                let outcome = self.add(&ask, key, &known, batch, now_ms);
                Some(Waiting::Add(reply, outcome))
            }
            Command::Remove { id, trace, why, reply } => {
                let trace = trace.unwrap_or(self.policy.trace);
                let outcome = match self.ledger.remove(batch, &id, trace, why, now_ms) {
                    Some(_) => RemoveOutcome::Removed,
                    None => RemoveOutcome::NotFound,
                };
                Some(Waiting::Remove(reply, outcome))
            }
            Command::Get { id, reply } => Some(Waiting::Get(reply, id)),
            Command::Withdraw { id, key } => {
                // Unless somebody has given this id another key meanwhile.
                let is_it = self
                    .ledger
                    .registry()
                    .keys
                    .get(id.as_str())
                    .is_some_and(|entry| entry.key == key);
                if is_it {
                    let why = (Removal::NotDelivered, Method::Remote);
                    self.ledger.remove(batch, &id, Trace::Nothing, why, now_ms);
                }
                None
            }
            Command::Tell(event) => {
                self.ledger.tell(batch, *event);
                None
            }
            Command::SetPolicy(policy) => {
                self.policy = policy;
                None
            }
            Command::Stop => {
                self.is_stopping = true;
                None
            }
        }
    }

    fn add(
        &mut self,
        ask: &Ask,
        key: Option<Secret>,
        known: &KnownLiveness,
        batch: &mut Batch,
        now_ms: u64,
    ) -> AddOutcome {
        let policy = Policy {
            manager_name: &self.policy.manager_name,
            max_agents: self.policy.max_agents,
        };
        let gives_way = match self.ledger.decide(ask, known, &policy, now_ms) {
            Verdict::Grant(gives_way) => gives_way,
            Verdict::NeedsLiveness(id) => return AddOutcome::NeedsLiveness(id),
            Verdict::Refuse(refused) => return AddOutcome::Refused(refused),
        };
        let Some(key) = key.or_else(new_key) else {
            return AddOutcome::Failed;
        };
        match self
            .ledger
            .grant(batch, ask, &gives_way, key, self.policy.trace, now_ms)
        {
            Some(entry) => {
                gives_way.iter().for_each(|agent| log_replaced(agent, ask));
                self.counters.agents_replaced_total.add(gives_way.len() as u64);
                AddOutcome::Granted { entry, generation: 0 }
            }
            None => AddOutcome::Failed,
        }
    }

    fn answer(&self, waiting: Waiting, is_durable: bool, generation: u64) {
        // Whoever has gone meanwhile needs no answer.
        match waiting {
            Waiting::Add(reply, AddOutcome::Granted { entry, .. }) => {
                let outcome = if is_durable {
                    AddOutcome::Granted { entry, generation }
                } else {
                    AddOutcome::Failed
                };
                let _ = reply.send(outcome);
            }
            Waiting::Add(reply, outcome) => {
                let _ = reply.send(outcome);
            }
            Waiting::Remove(reply, RemoveOutcome::Removed) => {
                if is_durable {
                    self.counters.agents_removed_total.increment();
                }
                let _ = reply.send(if is_durable {
                    RemoveOutcome::Removed
                } else {
                    RemoveOutcome::Failed
                });
            }
            Waiting::Remove(reply, outcome) => {
                let _ = reply.send(outcome);
            }
            Waiting::Get(reply, id) => {
                let _ = reply.send(self.ledger.registry().keys.get(id.as_str()).cloned());
            }
        }
    }

    fn write_timestamps(&mut self) {
        self.timestamps_due = None;
        if let Err(error) = self.ledger.write_timestamps() {
            tracing::warn!(%error, "cannot write queue/agents-timestamp; only stock programs miss it");
        }
    }
}

/// 64 hex digits, or `None` when the system gives no randomness.
fn new_key() -> Option<Secret> {
    use std::fmt::Write;

    let mut random = zeroize::Zeroizing::new([0_u8; 32]);
    if let Err(error) = getrandom::fill(random.as_mut()) {
        tracing::error!(%error, "the system gives no random numbers");
        return None;
    }
    let mut text = String::with_capacity(64);
    for byte in random.iter() {
        let _ = write!(text, "{byte:02x}");
    }
    Some(Secret::new(text))
}

fn log_replaced(agent: &GivesWay, ask: &Ask) {
    let GivesWay { id, name, clash } = agent;
    let what = clash_text(*clash, ask);
    tracing::info!("Duplicate {what}. Removing old agent '{name}' (id '{id}').");
}

/// As the stock log has it: only the address is named.
fn clash_text(clash: Clash, ask: &Ask) -> String {
    match clash {
        Clash::Id => "ID".to_owned(),
        Clash::Name => "name".to_owned(),
        Clash::Address => {
            let host = ask.address.as_ref().map_or("", |given| given.address.host_text());
            format!("IP '{host}'")
        }
    }
}
