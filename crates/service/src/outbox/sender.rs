//! The thread that brings an outbox to natsd, for ever.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use muster_proto::ipc::{
    control::QueueStatus,
    events::{FromNatsd, ToNatsd},
};
use rusqlite::Connection as Database;
use thiserror::Error;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Bound, OutboxError, contents, delete_up_to, highest, read_behind, renew_incarnation};
use crate::ipc::{Connection, FrameReader, FrameWriter, IpcError};

/// How many events may be sent and not yet taken.
pub(super) const MAX_EVENTS_IN_FLIGHT: usize = 512;
/// How many bytes may be sent and not yet taken, except that one event always may.
pub(super) const MAX_BYTES_IN_FLIGHT: usize = 1024 * 1024;
/// How long natsd may hold events without taking any, before the connection is made anew.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);
/// How long natsd may take to say where it stands.
const RESUME_DEADLINE: Duration = Duration::from_secs(10);
/// How long the sender waits for another process that writes the database.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);
/// The first and the longest pause between two attempts to connect; each is up to a half longer, at random.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How old the numbers in the status may be.
const COUNT_PERIOD: Duration = Duration::from_secs(1);

/// Where from and where to.
#[derive(Clone, Debug)]
pub struct SenderOptions {
    /// The daemon's database, in which [`create`](super::create) was called.
    pub database: PathBuf,
    /// The daemon's short name.
    pub producer: &'static str,
    /// natsd's socket.
    pub socket: PathBuf,
}

/// A handle to the thread. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Sender {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    wake: Notify,
    connected: AtomicBool,
    waiting: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
    taken: AtomicU64,
    error: Mutex<Option<String>>,
}

/// How the outbox stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SenderStatus {
    /// Whether natsd takes events now.
    pub connected: bool,
    /// Events that wait, as counted at most a second ago.
    pub waiting: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events dropped since the outbox was created.
    pub dropped: u64,
    /// Events that natsd has taken since this process started.
    pub taken: u64,
    /// Why the last connection ended or was not made; `None` while connected.
    pub error: Option<String>,
}

impl SenderStatus {
    /// As a line of the daemon's status.
    pub fn queue(&self) -> QueueStatus {
        QueueStatus {
            name: "outbox".to_owned(),
            used: self.waiting,
            capacity: Bound::default().events,
            unit: "events".to_owned(),
            dropped: self.dropped,
        }
    }
}

impl Sender {
    /// Starts the thread. It ends when `stop` is cancelled; what is not yet taken waits for the next start.
    pub fn start(options: SenderOptions, stop: CancellationToken) -> io::Result<(Self, thread::JoinHandle<()>)> {
        let shared = Arc::new(Shared::default());
        let handle = Self {
            shared: Arc::clone(&shared),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // A thread of its own, because the database blocks.
        let thread = thread::Builder::new().name("outbox".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = deliver_for_ever(&options, &shared) => {}
                }
            });
        })?;
        Ok((handle, thread))
    }

    /// Something was appended and committed: send it now.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// How it stands.
    pub fn status(&self) -> SenderStatus {
        let shared = &self.shared;
        SenderStatus {
            connected: shared.connected.load(Ordering::Relaxed),
            waiting: shared.waiting.load(Ordering::Relaxed),
            bytes: shared.bytes.load(Ordering::Relaxed),
            dropped: shared.dropped.load(Ordering::Relaxed),
            taken: shared.taken.load(Ordering::Relaxed),
            error: shared.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

#[derive(Debug, Error)]
enum DeliveryError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Ipc(#[from] IpcError),
    #[error("natsd does not run")]
    NotThere,
    #[error("natsd closed the connection")]
    Closed,
    #[error("natsd broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("natsd took no event for {} s", TAKE_DEADLINE.as_secs())]
    TookNothing,
}

async fn deliver_for_ever(options: &SenderOptions, shared: &Shared) {
    let mut pause = PAUSES.0;
    loop {
        let error = match deliver(options, shared).await {
            Ok(never) => match never {},
            Err(error) => format!("{:#}", anyhow::Error::new(error)),
        };
        if shared.connected.swap(false, Ordering::Relaxed) {
            tracing::warn!(error, "lost natsd, events wait in the outbox");
            pause = PAUSES.0;
        }
        tracing::debug!(error, "cannot deliver events to natsd");
        *shared.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        let until = Instant::now() + pause + pause.mul_f64(jitter());
        // Appended events do not hurry it, but they are counted.
        while Instant::now() < until && timeout_at(until, shared.wake.notified()).await.is_ok() {
            sleep_until(until.min(Instant::now() + COUNT_PERIOD)).await;
            if let Ok(database) = open(options) {
                let _ = count(&database, shared);
            }
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Half a pause at most; where the system gives no randomness, none.
fn jitter() -> f64 {
    f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX) / 2.0
}

fn open(options: &SenderOptions) -> Result<Database, OutboxError> {
    let database = Database::open(&options.database)?;
    database.busy_timeout(BUSY_DEADLINE)?;
    // The daemon's own connection decides about durability; that a deletion is lost costs a second sending only.
    database.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(database)
}

fn count(database: &Database, shared: &Shared) -> Result<u64, OutboxError> {
    let now = contents(database)?;
    shared.waiting.store(now.events, Ordering::Relaxed);
    shared.bytes.store(now.bytes, Ordering::Relaxed);
    shared.dropped.store(now.dropped, Ordering::Relaxed);
    Ok(now.incarnation)
}

/// One connection, from hello to its end.
async fn deliver(options: &SenderOptions, shared: &Shared) -> Result<std::convert::Infallible, DeliveryError> {
    let mut database = open(options)?;
    let incarnation = count(&database, shared)?;
    let connection = match Connection::connect(&options.socket, options.producer).await {
        Err(IpcError::Io(error)) if is_absence(&error) => return Err(DeliveryError::NotThere),
        connected => connected?,
    };
    let (mut reader, mut writer) = connection.into_split();
    writer
        .send(&ToNatsd::Produce {
            producer: options.producer.to_owned(),
            incarnation,
        })
        .await?;
    let resume = timeout(RESUME_DEADLINE, reader.receive()).await;
    let taken = match resume.map_err(|_| IpcError::TooSlow("say where it stands"))?? {
        Some(FromNatsd::Resume { taken }) => taken,
        Some(FromNatsd::Taken { .. }) => return Err(DeliveryError::Protocol("events were taken before any was sent")),
        None => return Err(DeliveryError::Closed),
    };
    if taken > highest(&database)? {
        tracing::warn!(
            taken,
            "the outbox is older than what natsd has of it (a restored backup?): it begins anew"
        );
        renew_incarnation(&database)?;
        return Err(DeliveryError::Protocol("it knows numbers that were not given out yet"));
    }
    delete_up_to(&mut database, taken)?;
    count(&database, shared)?;
    shared.connected.store(true, Ordering::Relaxed);
    *shared.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    tracing::info!("connected to natsd");
    let window = Window {
        sent: taken,
        flying: VecDeque::new(),
        bytes: 0,
    };
    stream(&mut database, shared, window, &mut reader, &mut writer).await
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What was sent and is not taken yet.
struct Window {
    sent: u64,
    flying: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Window {
    fn room(&self) -> Option<(usize, usize)> {
        let events = MAX_EVENTS_IN_FLIGHT.saturating_sub(self.flying.len());
        let bytes = MAX_BYTES_IN_FLIGHT.saturating_sub(self.bytes);
        (events > 0 && bytes > 0).then_some((events, bytes))
    }

    fn launch(&mut self, number: u64, bytes: usize) {
        self.bytes += bytes;
        self.flying.push_back((number, bytes));
    }

    /// How many events that were.
    fn land(&mut self, up_to: u64) -> u64 {
        let mut landed = 0;
        while let Some(&(number, bytes)) = self.flying.front()
            && number <= up_to
        {
            self.flying.pop_front();
            self.bytes -= bytes;
            landed += 1;
        }
        landed
    }
}

async fn stream(
    database: &mut Database,
    shared: &Shared,
    mut window: Window,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<std::convert::Infallible, DeliveryError> {
    let mut counted = Instant::now();
    let mut took = Instant::now();
    loop {
        while let Some((events, bytes)) = window.room() {
            let batch = read_behind(database, window.sent, events, bytes)?;
            if batch.last == 0 {
                break;
            }
            window.sent = batch.last;
            if batch.events.is_empty() {
                continue;
            }
            if window.flying.is_empty() {
                took = Instant::now();
            }
            let mut numbered = Vec::with_capacity(batch.events.len());
            for (event, bytes) in batch.events {
                window.launch(event.number, bytes);
                numbered.push(event);
            }
            writer.send(&ToNatsd::Batch(numbered)).await?;
        }
        if counted.elapsed() >= COUNT_PERIOD {
            count(database, shared)?;
            counted = Instant::now();
        }
        let deadline = if window.flying.is_empty() {
            None
        } else {
            Some(took + TAKE_DEADLINE)
        };
        let expired = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = reader.receive() => match received? {
                Some(FromNatsd::Taken { number }) => {
                    let number = number.min(window.sent);
                    delete_up_to(database, number)?;
                    shared.taken.fetch_add(window.land(number), Ordering::Relaxed);
                    took = Instant::now();
                    // An outbox that has become empty is said to be empty at once.
                    if window.flying.is_empty() {
                        count(database, shared)?;
                    }
                }
                Some(FromNatsd::Resume { .. }) => return Err(DeliveryError::Protocol("it resumed twice")),
                None => return Err(DeliveryError::Closed),
            },
            () = shared.wake.notified() => {}
            () = expired => return Err(DeliveryError::TookNothing),
        }
    }
}
