//! The thread that makes events durable: it gives them their numbers, writes them to the spool together with whatever
//! else waits (one sync for all), and tells everybody.
//!
//! **Invariant:** a producer hears "taken" only behind the sync. An event whose number was taken before is passed over,
//! so that what is sent twice is spooled once.

mod commit;
mod disk;
mod findings;
mod full;
mod own;
mod shared;
mod steps;
mod tidy;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
    thread,
    time::{Duration, Instant},
};

use muster_proto::{
    event::{Event, Stream},
    ipc::events::NumberedEvent,
};
use muster_service::clock;
use serde_json::json;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

pub(crate) use self::{
    commit::published,
    shared::{Audited, Errand, Shared},
};
use self::{
    disk::{Disk, Untold},
    findings::Findings,
    steps::Steps,
    tidy::Tidy,
};
use crate::{
    alert::Alerts,
    aside::Aside,
    audit::Audit,
    message::Composer,
    owners::Room,
    publish::kv::Roll,
    sequence::Sequencer,
    spool::{Recovered, Spool},
    status::{Counters, Report},
};

/// Batches that may wait for the thread. When it is full the producers' connections are not read, and their outboxes
/// hold what follows.
pub(crate) const MAX_WAITING_BATCHES: usize = 256;
/// Events of one commit. More only make the first wait longer.
const MAX_COMMIT_EVENTS: usize = 8192;
/// Bytes of one commit. More only make the first wait longer.
const MAX_COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// Events that a slow follower may lag behind before it is left.
pub(crate) const MAX_FOLLOWER_LAG: usize = 4096;
/// How often the cursor is written and old segments go.
const TIDY: Duration = Duration::from_secs(1);
/// Why the manager's health is told: somebody tests the way to the broker and back.
pub(crate) const PROBE: &str = "probe";

/// A producer's events, and where to say that they are safe.
pub(crate) struct Batch {
    pub(crate) producer: String,
    pub(crate) incarnation: u64,
    pub(crate) events: Vec<NumberedEvent>,
    /// Gets the highest number that is durable.
    pub(crate) taken: oneshot::Sender<u64>,
}

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) spool: Spool,
    pub(crate) recovered: Recovered,
    pub(crate) sequencer: Sequencer,
    pub(crate) composer: Composer,
    /// The audit trail, if one is kept.
    pub(crate) audit: Option<Audit>,
    pub(crate) report: Arc<Report>,
    /// The way to the rules of this manager, if there is one.
    pub(crate) alerts: Option<Alerts>,
    pub(crate) counters: Arc<Counters>,
    /// What a key-value bucket mirrors, if there is one.
    pub(crate) roll: Option<Roll>,
    /// Which manager has which agent, if several share a fleet.
    pub(crate) owners: Option<Arc<Room>>,
    /// What is to be published first, such as the key of this epoch.
    pub(crate) first: Vec<Event>,
}

/// The thread's own state.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    composer: Composer,
    findings: Findings,
    sequencer: Sequencer,
    audit: Option<Audit>,
    report: Arc<Report>,
    alerts: Option<Alerts>,
    counters: Arc<Counters>,
    last_of_stream: BTreeMap<Stream, u64>,
    batches: mpsc::Receiver<Batch>,
    /// Events of our own that wait for the next commit.
    own: Vec<Event>,
    health_ms: u64,
    tidy: Tidy,
    disk: Disk,
    /// Whether what is committed goes in however full the spool is.
    anyway: bool,
    /// Batches whose producers were not yet told.
    untold: Vec<Untold>,
    steps: Steps,
    received_before: u64,
}

impl Keeper {
    pub(crate) fn new(parts: Parts) -> (Self, Arc<Shared>, mpsc::Sender<Batch>) {
        let (sender, batches) = mpsc::channel(MAX_WAITING_BATCHES);
        let findings = Findings::open(parts.composer.format, parts.spool.directory());
        let shared = Arc::new(Shared {
            spool: Mutex::new(parts.spool),
            committed: watch::Sender::new(0),
            followers: broadcast::Sender::new(MAX_FOLLOWER_LAG),
            trouble: Mutex::new(None),
            audit_trouble: Mutex::new(None),
            spilled: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            roll: parts.roll.map(Mutex::new),
            owners: parts.owners,
            queues: Mutex::default(),
            announced: Mutex::default(),
            errands: Mutex::default(),
            wake: Notify::new(),
        });
        let mut keeper = Self {
            shared: Arc::clone(&shared),
            findings,
            composer: parts.composer,
            sequencer: parts.sequencer,
            audit: parts.audit,
            report: parts.report,
            alerts: parts.alerts,
            counters: parts.counters,
            last_of_stream: parts.recovered.last_of_stream,
            batches,
            own: Vec::new(),
            health_ms: 0,
            tidy: Tidy::default(),
            disk: Disk::default(),
            anyway: false,
            untold: Vec::new(),
            steps: Steps::default(),
            received_before: 0,
        };
        if !keeper.composer.history {
            // Who reads in order knows the key and the epoch before anything is signed with it.
            keeper.own.extend(parts.first);
            keeper.begin_epoch(&parts.recovered.gaps);
        }
        (keeper, shared, sender)
    }

    /// Starts the thread. It ends when every sender of batches is gone, after the last commit.
    pub(crate) fn start(mut self) -> std::io::Result<thread::JoinHandle<()>> {
        // Two, since making a segment takes longer than the small files may wait.
        let (segments, notes) = (Aside::start("segments")?, Aside::start("notes")?);
        self.shared.spool().work_aside(segments);
        self.sequencer.work_aside(notes.clone());
        if let Some(audit) = &mut self.audit {
            audit.work_aside(notes.clone());
        }
        self.tidy.aside = notes;
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
                () = self.shared.wake.notified() => {
                    self.run_errands();
                    self.tell();
                }
            }
        }
        self.audit_act("stopped", &json!({}));
        self.tidy();
        self.tidy_spool_at_last(clock::unix_ms());
        if let Err(error) = self.sequencer.close() {
            tracing::warn!(
                error = chain(&error),
                "cannot close the sequence; the next start leaves a hole in it"
            );
        }
    }

    async fn take(&mut self, first: Batch) {
        let weigh = |batch: &Batch| batch.events.iter().map(|event| event.event.body.len()).sum::<usize>();
        let (mut count, mut bytes) = (first.events.len(), weigh(&first));
        let mut batches = vec![first];
        let gathers = self.shared.spool().gathers();
        while gathers && count < MAX_COMMIT_EVENTS && bytes < MAX_COMMIT_BYTES {
            let Ok(next) = self.batches.try_recv() else { break };
            count += next.events.len();
            bytes += weigh(&next);
            batches.push(next);
        }
        loop {
            let again = !self.disk.is_full() || self.disk.is_due(Instant::now());
            if again && self.commit(&batches).is_ok() {
                break;
            }
            if self.disk.is_full() {
                self.commit_audit(&mut batches);
            }
            // Whoever sent them goes away after a while and sends them again; then there is nothing to commit.
            if batches.iter().all(|batch| batch.taken.is_closed()) {
                return;
            }
            self.pause(&mut batches).await;
        }
        self.untold.extend(batches.into_iter().map(Untold::from));
        self.tell();
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
