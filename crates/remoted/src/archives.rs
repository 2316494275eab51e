//! Log lines as archive records to natsd, for sites without an analysis daemon.
//!
//! Archives are bulk: they travel from memory straight to natsd, which makes them durable and says so; none is ever
//! written here. What natsd has not taken yet is sent again on the next connection. The queue has a bound in records
//! and one in bytes; when it is full, records are dropped and counted. Nothing waits for this queue.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use muster_proto::{
    event::{
        Event, Kind,
        body::{Archive, ArchiveAgent, ArchiveManager, manager_event},
    },
    ipc::events::{FromNatsd, NumberedEvent, ToNatsd},
    local::{Layout, analysis},
};
use muster_service::ipc::{Connection, FrameReader, FrameWriter, IpcError};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::slot::AgentSlot;

/// How natsd knows the sender. Another name than the outbox's, since each has numbers of its own.
pub const PRODUCER: &str = "remoted-archives";
/// Records that may wait.
pub const QUEUE_RECORDS: usize = 65_536;
/// Bytes that may wait.
pub const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Records that may be sent and not yet taken.
const IN_FLIGHT: usize = 1024;
/// Records in one frame.
const BATCH: usize = 128;
/// Bytes in one frame, except that one record always may be.
const BATCH_BYTES: usize = 512 * 1024;
/// How long natsd may take to say where it stands.
const RESUME_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may hold records without taking any before the connection is made anew.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a stop waits for natsd to take what waits for it.
pub const LAST_RECORDS: Duration = Duration::from_secs(2);
/// The first wait before connecting again; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest one.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The way into the queue. Clones lead into the same one.
#[derive(Clone)]
pub struct Archives {
    lines: mpsc::Sender<Line>,
    bytes: Arc<AtomicUsize>,
}

/// An event as it came, and who sent it.
struct Line {
    slot: Arc<AgentSlot>,
    payload: Box<[u8]>,
    unix_ms: u64,
}

/// Where records go, and what stands in them.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// natsd's socket.
    pub socket: PathBuf,
    /// What this manager is called.
    pub manager: String,
    /// How the home's analysis daemon would be told of events.
    pub layout: Layout,
    /// A number that no other run has.
    pub incarnation: u64,
}

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

impl Archives {
    /// Starts the thread that brings records to natsd. When `stop` is cancelled it ends as soon as natsd has taken
    /// everything, or after [`LAST_RECORDS`]; what waits then is lost.
    pub fn start(options: ArchiveOptions, stop: CancellationToken) -> io::Result<(Self, JoinHandle<()>)> {
        let (sender, lines) = mpsc::channel(QUEUE_RECORDS);
        let bytes = Arc::<AtomicUsize>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let feed = Feed {
            options,
            lines,
            bytes: Arc::clone(&bytes),
            flying: VecDeque::new(),
            last: 0,
        };
        let thread = std::thread::Builder::new().name("archives".to_owned()).spawn(move || {
            runtime.block_on(async {
                let waiting = Arc::clone(&feed.bytes);
                let stopped = async {
                    stop.cancelled().await;
                    let _ = timeout(LAST_RECORDS, taken(&waiting)).await;
                };
                tokio::select! {
                    () = stopped => {}
                    () = feed.run() => {}
                }
            });
        })?;
        Ok((Self { lines: sender, bytes }, thread))
    }

    /// Takes an event, if there is room.
    pub(crate) fn offer(&self, slot: &Arc<AgentSlot>, payload: &[u8], unix_ms: u64) -> Result<(), QueueFull> {
        if self.bytes.load(Ordering::Relaxed) >= QUEUE_BYTES {
            return Err(QueueFull);
        }
        let line = Line {
            slot: Arc::clone(slot),
            payload: payload.into(),
            unix_ms,
        };
        self.bytes.fetch_add(payload.len(), Ordering::Relaxed);
        self.lines.try_send(line).map_err(|_| {
            self.bytes.fetch_sub(payload.len(), Ordering::Relaxed);
            QueueFull
        })
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Waits until nothing waits.
async fn taken(waiting: &AtomicUsize) {
    while waiting.load(Ordering::Relaxed) > 0 {
        sleep(Duration::from_millis(10)).await;
    }
}

/// The sending side.
struct Feed {
    options: ArchiveOptions,
    lines: mpsc::Receiver<Line>,
    bytes: Arc<AtomicUsize>,
    /// Sent, or about to be, and not yet taken; with the bytes that each keeps from the queue.
    flying: VecDeque<(NumberedEvent, usize)>,
    /// The number given last.
    last: u64,
}

#[derive(Debug, Error)]
enum FeedError {
    #[error(transparent)]
    Ipc(#[from] IpcError),
    #[error("natsd closed the connection")]
    Closed,
    #[error("natsd says nothing")]
    Silent,
}

impl Feed {
    async fn run(mut self) {
        let mut retry = FIRST_RETRY;
        loop {
            let taken_before = self.last - self.flying.len() as u64;
            let Err(error) = self.deliver().await else { return };
            debug!(%error, "archive records wait for natsd");
            if self.last - self.flying.len() as u64 > taken_before {
                retry = FIRST_RETRY;
            }
            sleep(retry).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// One connection. Ends well only when no more records can come.
    async fn deliver(&mut self) -> Result<(), FeedError> {
        let connection = Connection::connect(&self.options.socket, PRODUCER).await?;
        let (mut reader, mut writer) = connection.into_split();
        let produce = ToNatsd::Produce {
            producer: PRODUCER.to_owned(),
            incarnation: self.options.incarnation,
        };
        writer.send(&produce).await?;
        match timeout(RESUME_DEADLINE, reader.receive())
            .await
            .map_err(|_| FeedError::Silent)??
        {
            Some(FromNatsd::Resume { taken } | FromNatsd::Taken { number: taken }) => self.landed(taken),
            None => return Err(FeedError::Closed),
        }
        info!("archive records go to natsd");
        self.send_from(0, &mut writer).await?;
        self.stream(&mut reader, &mut writer).await
    }

    async fn stream(&mut self, reader: &mut FrameReader, writer: &mut FrameWriter) -> Result<(), FeedError> {
        let mut lines = Vec::with_capacity(BATCH);
        loop {
            let room = IN_FLIGHT.saturating_sub(self.flying.len()).min(BATCH);
            let waits_for_natsd = !self.flying.is_empty();
            tokio::select! {
                biased;
                answer = reader.receive() => match answer? {
                    Some(FromNatsd::Taken { number } | FromNatsd::Resume { taken: number }) => self.landed(number),
                    None => return Err(FeedError::Closed),
                },
                count = self.lines.recv_many(&mut lines, room), if room > 0 => {
                    if count == 0 {
                        return Ok(());
                    }
                    let first = self.flying.len();
                    self.number(&mut lines);
                    self.send_from(first, writer).await?;
                }
                () = sleep(TAKE_DEADLINE), if waits_for_natsd => return Err(FeedError::Silent),
            }
        }
    }

    /// Makes records of lines. They are remembered before the first byte leaves: what a broken connection swallows is
    /// sent again.
    fn number(&mut self, lines: &mut Vec<Line>) {
        for line in lines.drain(..) {
            let bytes = line.payload.len();
            if let Some(event) = record(&line, &self.options) {
                self.last += 1;
                self.flying.push_back((
                    NumberedEvent {
                        number: self.last,
                        event,
                    },
                    bytes,
                ));
            } else {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Sends what is in flight from this place on.
    async fn send_from(&self, first: usize, writer: &mut FrameWriter) -> Result<(), FeedError> {
        let mut frame = Vec::new();
        let mut bytes = 0;
        for (event, _) in self.flying.iter().skip(first) {
            bytes += event.event.body.len();
            frame.push(event.clone());
            if bytes >= BATCH_BYTES || frame.len() >= BATCH {
                writer.send(&ToNatsd::Batch(std::mem::take(&mut frame))).await?;
                bytes = 0;
            }
        }
        if !frame.is_empty() {
            writer.send(&ToNatsd::Batch(frame)).await?;
        }
        Ok(())
    }

    fn landed(&mut self, taken: u64) {
        while let Some((event, bytes)) = self.flying.front()
            && event.number <= taken
        {
            self.bytes.fetch_sub(*bytes, Ordering::Relaxed);
            self.flying.pop_front();
        }
    }
}

/// The record of a line; none for what is no log line.
fn record(line: &Line, options: &ArchiveOptions) -> Option<Event> {
    let slot = &line.slot;
    let address = slot.address.host_text();
    // The way over the datagram keeps one reading of what an event is, escapes included.
    let mut datagram = Vec::with_capacity(line.payload.len() + 64);
    analysis::write_event(&mut datagram, slot.source(options.layout), &line.payload).ok()?;
    let event = analysis::parse(options.layout, &datagram).ok()?;
    let source = match options.layout {
        Layout::Wazuh => format!("[{}] ({}) {address}->", slot.id, slot.name),
        Layout::Ossec => format!("({}) {address}->", slot.name),
    };
    let location = event.location.get(source.len()..)?;
    let timestamp = i64::try_from(line.unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())?;
    let body = serde_json::to_vec(&Archive {
        timestamp: &timestamp
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%dT%H:%M:%S%.3f%z")
            .to_string(),
        agent: ArchiveAgent {
            id: slot.id.as_str(),
            name: &slot.name,
            ip: (!slot.address.is_any()).then_some(address),
        },
        manager: ArchiveManager { name: &options.manager },
        location: &String::from_utf8_lossy(location),
        full_log: &String::from_utf8_lossy(event.message),
    })
    .ok()?;
    Some(manager_event(Kind::Archive, slot.id.as_str(), line.unix_ms, 0, body))
}

#[cfg(test)]
mod tests;
