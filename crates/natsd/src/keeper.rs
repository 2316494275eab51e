//! The thread that makes events durable: it gives them their numbers, writes them to the spool together with whatever
//! else waits (one sync for all), and tells everybody.
//!
//! **Invariant:** a producer hears "taken" only behind the sync. An event whose number was taken before is passed over,
//! so that what is sent twice is spooled once.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use muster_proto::{
    event::{Event, Kind, Stream, body::manager_event},
    ipc::{control::PublishedEvent, events::NumberedEvent},
};
use muster_service::clock;
use serde::Serialize;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use crate::{
    message::{Composer, Numbers},
    sequence::Sequencer,
    spool::{
        Gap, Recovered, Spool, SpoolError,
        record::{Mark, Stored},
    },
};

/// Batches that may wait for the thread. When it is full the producers' connections are not read, and their outboxes
/// hold what follows.
pub(crate) const MAX_WAITING_BATCHES: usize = 256;
/// Events of one commit. More only make the first wait longer.
const MAX_COMMIT_EVENTS: usize = 8192;
/// Events that a slow follower may lag behind before it is left.
pub(crate) const MAX_FOLLOWER_LAG: usize = 4096;
/// How long the thread waits before it tries again what the disk refused.
const RETRY: Duration = Duration::from_secs(1);
/// How often the cursor is written and old segments go.
const TIDY: Duration = Duration::from_secs(1);
/// A manager's own event about itself matters as much as a medium alert.
const GAP_LEVEL: u8 = 8;

/// A producer's events, and where to say that they are safe.
pub(crate) struct Batch {
    pub(crate) producer: String,
    pub(crate) incarnation: u64,
    pub(crate) events: Vec<NumberedEvent>,
    /// Gets the highest number that is durable.
    pub(crate) taken: oneshot::Sender<u64>,
}

/// What the rest of the daemon shares with the thread.
#[derive(Debug)]
pub(crate) struct Shared {
    spool: Mutex<Spool>,
    /// Grows whenever something was committed.
    pub(crate) committed: watch::Sender<u64>,
    /// Every event as it is committed.
    pub(crate) followers: broadcast::Sender<Arc<PublishedEvent>>,
    /// Why nothing can be committed now.
    pub(crate) trouble: Mutex<Option<String>>,
    wake: Notify,
}

impl Shared {
    pub(crate) fn spool(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// The thread's own state.
pub(crate) struct Keeper {
    directory: PathBuf,
    shared: Arc<Shared>,
    composer: Composer,
    sequencer: Sequencer,
    last_of_stream: BTreeMap<Stream, u64>,
    batches: mpsc::Receiver<Batch>,
    /// Events of our own that wait for the next commit.
    own: Vec<Event>,
}

impl Keeper {
    pub(crate) fn new(
        directory: PathBuf,
        spool: Spool,
        recovered: Recovered,
        sequencer: Sequencer,
        composer: Composer,
    ) -> (Self, Arc<Shared>, mpsc::Sender<Batch>) {
        let (sender, batches) = mpsc::channel(MAX_WAITING_BATCHES);
        let shared = Arc::new(Shared {
            spool: Mutex::new(spool),
            committed: watch::Sender::new(0),
            followers: broadcast::Sender::new(MAX_FOLLOWER_LAG),
            trouble: Mutex::new(None),
            wake: Notify::new(),
        });
        let last_of_stream = recovered.last_of_stream;
        let keeper = Self {
            directory,
            shared: Arc::clone(&shared),
            composer,
            sequencer,
            last_of_stream,
            batches,
            own: Vec::new(),
        };
        (keeper, shared, sender)
    }

    /// Starts the thread. It ends when every sender of batches is gone, after the last commit.
    pub(crate) fn start(self) -> std::io::Result<thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || runtime.block_on(self.run()))
    }

    async fn run(mut self) {
        let mut tidy = tokio::time::interval(TIDY);
        loop {
            tokio::select! {
                batch = self.batches.recv() => match batch {
                    Some(first) => self.take(first).await,
                    None => break,
                },
                _ = tidy.tick() => self.tidy(),
                () = self.shared.wake.notified() => {}
            }
        }
        self.tidy();
        if let Err(error) = self.sequencer.close(&self.directory) {
            tracing::warn!(
                error = chain(&error),
                "cannot close the sequence; the next start leaves a hole in it"
            );
        }
    }

    fn tidy(&mut self) {
        let tidied = self.shared.spool().tidy(clock::unix_ms());
        if let Err(error) = tidied {
            tracing::error!(error = chain(&error), "cannot tidy the spool");
        }
    }

    async fn take(&mut self, first: Batch) {
        let mut count = first.events.len();
        let mut batches = vec![first];
        while count < MAX_COMMIT_EVENTS {
            let Ok(next) = self.batches.try_recv() else { break };
            count += next.events.len();
            batches.push(next);
        }
        loop {
            match self.commit(&batches) {
                Ok(()) => {
                    if self.shared.trouble().is_some() {
                        tracing::info!("the spool takes events again");
                        self.shared.set_trouble(None);
                    }
                    break;
                }
                Err(error) => {
                    let why = chain(&error);
                    if self.shared.trouble().as_ref() != Some(&why) {
                        tracing::error!(
                            error = why,
                            "the spool cannot take events; they wait at their producers"
                        );
                        self.shared.set_trouble(Some(why));
                    }
                    // Whoever sent them goes away after a while and sends them again; then there is nothing to commit.
                    if batches.iter().all(|batch| batch.taken.is_closed()) {
                        return;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        for batch in batches {
            let highest = batch.events.iter().map(|event| event.number).max().unwrap_or(0);
            // The connection may have ended meanwhile; the next one begins with how far we are.
            let _ = batch.taken.send(highest);
        }
    }

    fn commit(&mut self, batches: &[Batch]) -> Result<(), SpoolError> {
        let last_before = self.last_of_stream.clone();
        let committed = self.try_commit(batches);
        if committed.is_err() {
            // The numbers are used up, but no event has them.
            self.last_of_stream = last_before;
        }
        committed
    }

    fn try_commit(&mut self, batches: &[Batch]) -> Result<(), SpoolError> {
        let mut events = Vec::new();
        let mut taken: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        for batch in batches {
            let source = (batch.producer.as_str(), batch.incarnation);
            let known = match taken.get(&source) {
                Some(number) => *number,
                None => self.shared.spool().taken(source.0, source.1),
            };
            let mut highest = known;
            for event in &batch.events {
                if event.number > highest {
                    highest = event.number;
                    let mark = Mark {
                        producer: batch.producer.clone(),
                        incarnation: batch.incarnation,
                        number: event.number,
                    };
                    self.compose(&event.event, &mark, &mut events)?;
                }
            }
            taken.insert(source, highest);
        }
        let own = std::mem::take(&mut self.own);
        let nobody = Mark {
            producer: String::new(),
            incarnation: 0,
            number: 0,
        };
        for event in &own {
            self.compose(event, &nobody, &mut events)?;
        }
        if events.is_empty() {
            return Ok(());
        }
        let begun = self.shared.spool().begin_commit(&events, clock::unix_ms());
        let written = begun.and_then(|(mut commit, gaps)| {
            commit.write()?;
            self.shared.spool().finish_commit(commit, &events)?;
            Ok(gaps)
        });
        match written {
            Ok(gaps) => self.declare(&gaps),
            Err(error) => {
                self.own = own;
                return Err(error);
            }
        }
        self.tell(events);
        Ok(())
    }

    fn compose(&mut self, event: &Event, mark: &Mark, events: &mut Vec<Stored>) -> Result<(), SpoolError> {
        let stream = event.kind.stream();
        let numbers = self.number(stream)?;
        events.push(self.composer.compose(event, mark.clone(), numbers));
        if self.composer.has_copy(event) {
            let original = numbers.seq;
            let numbers = self.number(stream)?;
            events.extend(self.composer.copy(event, mark.clone(), original, numbers));
        }
        Ok(())
    }

    fn number(&mut self, stream: Stream) -> Result<Numbers, SpoolError> {
        let seq = self.sequencer.next(&self.directory)?;
        let prev = self.last_of_stream.insert(stream, seq).unwrap_or(0);
        Ok(Numbers { seq, prev })
    }

    /// What was dropped is told, as an event of our own in the next commit.
    fn declare(&mut self, gaps: &[Gap]) {
        let now = clock::unix_ms();
        for gap in gaps {
            tracing::warn!(
                stream = gap.stream.name(),
                from_seq = gap.from_seq,
                to_seq = gap.to_seq,
                count = gap.count,
                reason = gap.reason,
                "events were dropped from the spool"
            );
            let body = GapBody {
                spool: GapFields {
                    stream: gap.stream.name(),
                    class: gap.class,
                    node: &self.composer.node,
                    epoch: self.composer.epoch,
                    from_seq: gap.from_seq,
                    to_seq: gap.to_seq,
                    count: gap.count,
                    first_ts: gap.first_ms / 1000,
                    last_ts: gap.last_ms / 1000,
                    reason: gap.reason,
                },
            };
            // Names and numbers always serialise.
            let body = serde_json::to_vec(&body).unwrap_or_default();
            self.own.push(manager_event(Kind::SpoolGap, "", now, GAP_LEVEL, body));
        }
    }

    fn tell(&self, events: Vec<Stored>) {
        self.shared.committed.send_modify(|commits| *commits += 1);
        if self.shared.followers.receiver_count() > 0 {
            for event in events {
                // Followers that went away do not matter.
                let _ = self.shared.followers.send(Arc::new(published(event)));
            }
        }
    }
}

#[derive(Serialize)]
struct GapBody<'a> {
    spool: GapFields<'a>,
}

#[derive(Serialize)]
struct GapFields<'a> {
    stream: &'a str,
    class: muster_proto::event::Class,
    node: &'a str,
    epoch: u64,
    from_seq: u64,
    to_seq: u64,
    count: u64,
    first_ts: u64,
    last_ts: u64,
    reason: &'a str,
}

/// An event of the spool as followers see it.
pub(crate) fn published(stored: Stored) -> PublishedEvent {
    PublishedEvent {
        subject: stored.subject,
        sequence: stored.seq,
        producer: stored.source.producer,
        event: Event {
            kind: stored.kind,
            subject_key: stored.key,
            created_ms: stored.created_ms,
            alert_level: stored.alert_level,
            body: stored.body,
            headers: stored.headers,
        },
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
