//! Events on their way to natsd, kept in a small database of our own until it has taken them.
//!
//! A look-up changes nothing that we keep, so its event is not part of any other transaction. Writing happens in a thread
//! of its own, many events at a time: each transaction costs more than a hundred events do. The look-ups never wait for
//! it.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use muster_proto::{
    agent::AgentId,
    event::{Event, body::KeyPolling},
};
use muster_service::outbox::{self, Bound, OutboxError};
use rusqlite::Connection;

use crate::{counters::Counters, lookup::Lookup, outcome::Outcome};

/// Events that wait to be written. When there is no room they are dropped and counted.
const WAITING: usize = 8192;
/// Events in one transaction.
const BATCH: usize = 512;
/// How long the first event of a transaction waits for others.
const GATHER: Duration = Duration::from_millis(50);
/// How long we wait for the thread that sends.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);
/// Events that wait for natsd, at most. Strangers can bring them about, so the oldest go first.
const BOUND: Bound = Bound {
    events: 100_000,
    bytes: 64 * 1024 * 1024,
};

enum Order {
    Write(Told),
    End,
}

/// What is told of a look-up; made an event by the thread that writes.
struct Told {
    lookup: Lookup,
    outcome: &'static str,
    stage: &'static str,
    duration_ms: u64,
    agent: Option<AgentId>,
    now_ms: u64,
}

impl Told {
    fn into_event(self) -> Event {
        let body = KeyPolling {
            lookup: self.lookup.by().as_str(),
            value: self.lookup.value(),
            outcome: self.outcome,
            duration_ms: self.duration_ms,
            agent_id: self.agent.as_ref(),
        };
        body.into_event(self.stage, self.now_ms)
    }
}

/// Takes events.
#[derive(Clone, Debug)]
pub struct Events {
    sender: SyncSender<Order>,
    counters: Arc<Counters>,
    error: Arc<Mutex<Option<String>>>,
}

/// The database.
#[derive(Debug)]
pub struct Store(Connection);

impl Store {
    /// Opens it, or makes it.
    pub fn open(path: &Path) -> Result<Self, OutboxError> {
        let database = Connection::open(path)?;
        database.busy_timeout(BUSY_DEADLINE)?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        // What a power cut takes are events of the last moment.
        database.pragma_update(None, "synchronous", "NORMAL")?;
        outbox::create(&database)?;
        Ok(Self(database))
    }

    fn write(&mut self, batch: &[Event]) -> Result<(), OutboxError> {
        let transaction = self.0.transaction()?;
        outbox::append_all_within(&transaction, batch, BOUND)?;
        transaction.commit()?;
        Ok(())
    }
}

impl Events {
    /// Starts the thread. `written` is called behind every transaction.
    pub fn start(
        store: Store,
        counters: Arc<Counters>,
        written: impl Fn() + Send + 'static,
    ) -> io::Result<(Self, Writer)> {
        let (sender, receiver) = sync_channel(WAITING);
        let error = Arc::new(Mutex::new(None));
        let events = Self {
            sender,
            counters: Arc::clone(&counters),
            error: Arc::clone(&error),
        };
        let thread = thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || write_all(store, &receiver, &counters, &error, &written))?;
        let orders = events.sender.clone();
        Ok((events, Writer { orders, thread }))
    }

    /// A look-up begins.
    pub fn requested(&self, lookup: &Lookup, now_ms: u64) {
        self.put(Told {
            lookup: lookup.clone(),
            outcome: "requested",
            stage: "requested",
            duration_ms: 0,
            agent: None,
            now_ms,
        });
    }

    /// A look-up has ended.
    pub fn ended(&self, lookup: &Lookup, outcome: Outcome, duration_ms: u64, agent: Option<&AgentId>, now_ms: u64) {
        self.put(Told {
            lookup: lookup.clone(),
            outcome: outcome.as_str(),
            stage: outcome.stage(),
            duration_ms,
            agent: agent.cloned(),
            now_ms,
        });
    }

    /// Why the last writing failed; `None` when it did not.
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, told: Told) {
        if self.sender.try_send(Order::Write(told)).is_err() {
            self.counters.keypoll_events_dropped_total.increment();
        }
    }
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Lets it write what it was given, and waits for its end.
    pub fn finish(self) {
        // When it takes no orders, it has ended.
        let _ = self.orders.send(Order::End);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes events broke off");
        }
    }
}

fn write_all(
    mut store: Store,
    receiver: &Receiver<Order>,
    counters: &Counters,
    error: &Mutex<Option<String>>,
    written: &dyn Fn(),
) {
    let (mut goes_on, mut was_full) = (true, false);
    while goes_on && let Ok(first) = receiver.recv() {
        if !was_full && matches!(first, Order::Write(_)) {
            // The end of the daemon cuts it short.
            thread::park_timeout(GATHER);
        }
        let mut batch = Vec::new();
        for order in std::iter::once(first).chain(receiver.try_iter()) {
            match order {
                Order::Write(told) => batch.push(told.into_event()),
                Order::End => {
                    goes_on = false;
                    break;
                }
            }
            if batch.len() >= BATCH {
                break;
            }
        }
        was_full = batch.len() >= BATCH;
        if batch.is_empty() {
            continue;
        }
        let outcome = store.write(&batch);
        let mut error = error.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => {
                *error = None;
                written();
            }
            Err(why) => {
                counters
                    .keypoll_events_dropped_total
                    .add(u64::try_from(batch.len()).unwrap_or(u64::MAX));
                if error.is_none() {
                    tracing::error!(
                        error = crate::outcome::chain(&why),
                        "cannot keep events, they are dropped"
                    );
                }
                *error = Some(why.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_in_their_order_with_the_documented_body() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keypoll.db");
        let (events, writer) = Events::start(Store::open(&path).unwrap(), Arc::default(), || {}).unwrap();
        let lookup = Lookup::new("id", "001").unwrap();
        events.requested(&lookup, 1000);
        events.ended(&lookup, Outcome::Registered, 12, Some(&AgentId::new("001")), 1012);
        events.ended(&lookup, Outcome::NotFound, 3, None, 1013);
        writer.finish();
        let database = Connection::open(&path).unwrap();
        assert_eq!(outbox::contents(&database).unwrap().events, 3);
        let blobs: Vec<Vec<u8>> = database
            .prepare("SELECT event FROM outbox ORDER BY number")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let has = |blob: &[u8], text: &str| String::from_utf8_lossy(blob).contains(text);
        assert!(has(
            &blobs[0],
            r#"{"keypoll":{"lookup":"id","value":"001","outcome":"requested","duration_ms":0}}"#
        ));
        assert!(has(
            &blobs[1],
            r#"{"keypoll":{"lookup":"id","value":"001","outcome":"registered","duration_ms":12,"agent_id":"001"}}"#
        ));
        assert!(has(&blobs[2], r#""outcome":"not_found""#) && has(&blobs[2], "failed"));
    }
}
