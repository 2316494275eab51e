//! The thread's side of the store: takes what waits, applies it, writes once, answers all.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use muster_proto::{
    agent::AgentId,
    ipc::control::{AgentGroups, GroupMode},
    keys::{Secret, file::KeyEntry},
};
use muster_service::{clock, outbox};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{AddOutcome, Command, GroupsPage, NOT_LEASED, RemoveOutcome, Shared, StorePolicy};
use crate::{
    change::Removal,
    contested::Contested,
    counters::Counters,
    keystore::Trace,
    ledger::{Batch, Ledger, Wrote},
    registry::{Ask, Clash, GivesWay, KnownLiveness, Method, Policy, Verdict},
};

/// Requests that share a write.
const MAX_BATCH: usize = 1024;
/// How often the key file is looked at for edits when nothing else happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How long after a change the stock text of registration times is written.
const TIMESTAMPS_DELAY: Duration = Duration::from_secs(2);

/// How long after the first lines were added to the key file it is written whole again. Stock programs that have not
/// noticed the lines do then.
const TIDY_DELAY: Duration = Duration::from_secs(2);
/// A large file takes time to write; it is not written whole for more than one part in so many of all time.
const TIDY_SHARE: u32 = 20;

/// An answer that waits for its batch to be durable.
enum Waiting {
    Add(oneshot::Sender<AddOutcome>, AddOutcome),
    Remove(oneshot::Sender<RemoveOutcome>, RemoveOutcome),
    Get(oneshot::Sender<Option<KeyEntry>>, AgentId),
}

pub(super) struct Keeper {
    ledger: Ledger,
    policy: StorePolicy,
    counters: Arc<Counters>,
    outbox: outbox::Sender,
    generation: watch::Sender<u64>,
    shared: Arc<Shared>,
    timestamps_due: Option<Instant>,
    tidy_due: Option<Instant>,
    tidy_delay: Duration,
    contested: Contested,
    /// Begins with the time, so that it is another one after a restart.
    groups_version: u64,
    is_stopping: bool,
}

impl Keeper {
    pub(super) fn new(
        ledger: Ledger,
        policy: StorePolicy,
        counters: Arc<Counters>,
        outbox: outbox::Sender,
        generation: watch::Sender<u64>,
        shared: Arc<Shared>,
    ) -> Self {
        let keeper = Self {
            ledger,
            policy,
            counters,
            outbox,
            generation,
            shared,
            timestamps_due: None,
            tidy_due: None,
            tidy_delay: TIDY_DELAY,
            contested: Contested::default(),
            groups_version: clock::unix_ms(),
            is_stopping: false,
        };
        keeper.publish();
        keeper
    }

    pub(super) async fn work(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut look_due = Instant::now() + LOOK_INTERVAL;
        loop {
            let others_due = [self.timestamps_due, self.tidy_due];
            let due = others_due.into_iter().flatten().fold(look_due, Instant::min);
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
            if self.tidy_due.is_some_and(|due| due <= Instant::now()) {
                self.tidy();
            }
        }
        if self.timestamps_due.is_some() {
            self.write_timestamps();
        }
        if self.tidy_due.is_some() {
            self.tidy();
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
            Ok(wrote) => {
                self.count(wrote);
                if changes_agents {
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

    fn count(&mut self, wrote: Wrote) {
        match wrote {
            Wrote::Nothing => {}
            Wrote::Added => {
                self.counters.key_file_appends_total.increment();
                self.tidy_due.get_or_insert(Instant::now() + self.tidy_delay);
            }
            Wrote::Whole => {
                self.counters.key_file_writes_total.increment();
                self.tidy_due = None;
            }
        }
    }

    /// Writes the key file whole if lines were added to it. Nothing is lost when that fails: it is tried again.
    fn tidy(&mut self) {
        self.tidy_due = None;
        let may_write = self.take_over_edits(clock::unix_ms());
        if !self.ledger.is_untidy() {
            return;
        }
        let began = Instant::now();
        let outcome = if may_write {
            self.ledger.tidy().map(|()| true)
        } else {
            Ok(false)
        };
        match outcome {
            Ok(true) => {
                self.count(Wrote::Whole);
                self.tidy_delay = TIDY_DELAY.max(began.elapsed() * TIDY_SHARE);
                return;
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot write the key file whole; it says everything, trying again"),
        }
        self.tidy_due = Some(Instant::now() + LOOK_INTERVAL);
    }

    /// The file cannot be looked at: nothing that changes agents may happen.
    fn refuse(&mut self, batch: &Batch) -> bool {
        self.shared.cannot_write.store(true, Ordering::Relaxed);
        self.ledger.abandon(batch);
        false
    }

    fn page(&self, agents: Vec<AgentGroups>, more: bool) -> GroupsPage {
        GroupsPage {
            agents,
            more,
            version: self.groups_version,
        }
    }

    /// Lets remoted be told that something has changed.
    fn announce(&self) {
        self.generation
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    fn changed(&mut self) {
        self.announce();
        self.timestamps_due.get_or_insert(Instant::now() + TIMESTAMPS_DELAY);
    }

    fn publish(&self) {
        let agents = u64::try_from(self.ledger.registry().keys.live().len()).unwrap_or(u64::MAX);
        self.shared.agents.store(agents, Ordering::Relaxed);
        let registry = self.ledger.registry();
        let free = registry
            .leases
            .as_ref()
            .map_or(NOT_LEASED, |leases| leases.free().into());
        self.shared.free_ids.store(free, Ordering::Relaxed);
        let highest = registry.keys.highest_number();
        self.shared.highest_number.store(highest.into(), Ordering::Relaxed);
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
            Command::Groups { after, limit, reply } => {
                let page = self
                    .ledger
                    .groups(after.as_ref(), limit)
                    .map(|(agents, more)| self.page(agents, more));
                let _ = reply.send(page);
                None
            }
            Command::SetGroups {
                agents,
                groups,
                mode,
                reply,
            } => {
                let changed = self.ledger.set_groups(&agents, &groups, mode);
                // Whoever gives a group to an agent without one learns it by the answer; all other changes must be
                // told to remoted.
                if changed.is_ok() && mode != GroupMode::EmptyOnly {
                    self.groups_version = self.groups_version.wrapping_add(1);
                    self.announce();
                }
                let _ = reply.send(changed.map(|agents| self.page(agents, false)));
                None
            }
            Command::TakeBlock { block, reply } => {
                let taken = self.ledger.take_block(block).map_err(|error| format!("{error:#}"));
                if taken.is_ok() {
                    tracing::info!(first = block.first, count = block.count, "a block of ids is ours");
                }
                let _ = reply.send(taken);
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
                for agent in &gives_way {
                    log_replaced(agent, ask);
                    self.watch_name(agent, now_ms);
                }
                self.counters.agents_replaced_total.add(gives_way.len() as u64);
                AddOutcome::Granted { entry, generation: 0 }
            }
            None => AddOutcome::Failed,
        }
    }

    fn watch_name(&mut self, agent: &GivesWay, now_ms: u64) {
        if agent.clash == Clash::Name && self.contested.note(&agent.name, now_ms / 1000) {
            tracing::warn!(
                name = agent.name,
                "an agent was replaced again and again within an hour: do two hosts have this name?"
            );
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
