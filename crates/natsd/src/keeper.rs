//! The thread that makes events durable: it gives them their numbers, writes them to the spool together with whatever
//! else waits (one sync for all), and tells everybody.
//!
//! **Invariant:** a producer hears "taken" only behind the sync. An event whose number was taken before is passed over,
//! so that what is sent twice is spooled once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use muster_proto::{
    command::Unsigned,
    event::{
        Event, Kind, Stream,
        body::{Health, SpoolGap, manager_event, wrapped},
    },
    ipc::{control::PublishedEvent, events::NumberedEvent},
};
use muster_service::clock;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use crate::{
    audit::Audit,
    message::{Composer, Numbers},
    publish::kv::Roll,
    sequence::Sequencer,
    spool::{
        Gap, Recovered, Spool, SpoolError,
        record::{Mark, Stored},
    },
    status::{Counters, Report},
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
/// How often the manager's health is told.
const HEALTH_INTERVAL_MS: u64 = 30 * 1000;
/// Why the manager's health is told: it is time.
const PERIODIC: &str = "periodic";
/// Why the manager's health is told: somebody tests the way to the broker and back.
pub(crate) const PROBE: &str = "probe";
/// Acts and events of our own that may wait. Behind it, acts are only counted; they are rare.
const MAX_OWN: usize = 1024;
/// Bytes of one commit. More only make the first wait longer.
const MAX_COMMIT_BYTES: usize = 8 * 1024 * 1024;

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
    /// The latest state of each agent, if a key-value bucket mirrors it.
    roll: Option<Mutex<Roll>>,
    /// What the thread is to do besides.
    errands: Mutex<VecDeque<Errand>>,
    wake: Notify,
}

/// Something for the thread.
#[derive(Debug)]
pub(crate) enum Errand {
    /// An act for the audit trail.
    Note(&'static str, Value),
    /// The same, and say whether it stands there.
    Audit(&'static str, Value, oneshot::Sender<bool>),
    /// The headers of a reply, if there is a key to sign with.
    Sign(Unsigned, oneshot::Sender<Option<Vec<(&'static str, String)>>>),
    /// An event of our own.
    Event(Event),
    /// Tell how the manager is now, and not when it is time.
    Health,
    /// Read the signing keys again, and say what came of it.
    Keys(oneshot::Sender<Result<String, String>>),
}

impl Shared {
    pub(crate) fn spool(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest state of each agent, if anybody wants it.
    pub(crate) fn roll(&self) -> Option<MutexGuard<'_, Roll>> {
        let roll = self.roll.as_ref()?;
        Some(roll.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hands something to the thread. Whether there was room.
    pub(crate) fn send(&self, errand: Errand) -> bool {
        let mut errands = self.errands.lock().unwrap_or_else(PoisonError::into_inner);
        let room = errands.len() < MAX_OWN;
        if room {
            errands.push_back(errand);
        }
        drop(errands);
        self.wake.notify_one();
        room
    }

    /// Writes something security-relevant down.
    pub(crate) fn note(&self, act: &'static str, detail: Value) {
        if !self.send(Errand::Note(act, detail)) {
            tracing::warn!(act, "too many acts at once; this one is missing in the audit trail");
        }
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
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
    pub(crate) counters: Arc<Counters>,
    /// What a key-value bucket mirrors, if there is one.
    pub(crate) roll: Option<Roll>,
    /// What is to be published first, such as the key of this epoch.
    pub(crate) first: Vec<Event>,
}

/// The thread's own state.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    composer: Composer,
    sequencer: Sequencer,
    audit: Option<Audit>,
    report: Arc<Report>,
    counters: Arc<Counters>,
    last_of_stream: BTreeMap<Stream, u64>,
    batches: mpsc::Receiver<Batch>,
    /// Events of our own that wait for the next commit.
    own: Vec<Event>,
    health_ms: u64,
    received_before: u64,
}

impl Keeper {
    pub(crate) fn new(parts: Parts) -> (Self, Arc<Shared>, mpsc::Sender<Batch>) {
        let (sender, batches) = mpsc::channel(MAX_WAITING_BATCHES);
        let shared = Arc::new(Shared {
            spool: Mutex::new(parts.spool),
            committed: watch::Sender::new(0),
            followers: broadcast::Sender::new(MAX_FOLLOWER_LAG),
            trouble: Mutex::new(None),
            roll: parts.roll.map(Mutex::new),
            errands: Mutex::default(),
            wake: Notify::new(),
        });
        let mut keeper = Self {
            shared: Arc::clone(&shared),
            composer: parts.composer,
            sequencer: parts.sequencer,
            audit: parts.audit,
            report: parts.report,
            counters: parts.counters,
            last_of_stream: parts.recovered.last_of_stream,
            batches,
            own: Vec::new(),
            health_ms: 0,
            received_before: 0,
        };
        if !keeper.composer.history {
            keeper.begin_epoch(&parts.recovered.gaps);
            keeper.own.extend(parts.first);
        }
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
                () = self.shared.wake.notified() => self.run_errands(),
            }
        }
        self.audit_act("stopped", &json!({}));
        self.tidy();
        if let Err(error) = self.sequencer.close() {
            tracing::warn!(
                error = chain(&error),
                "cannot close the sequence; the next start leaves a hole in it"
            );
        }
    }

    /// The hole that a crash left in the sequence, and what the disk has damaged.
    fn begin_epoch(&mut self, gaps: &[Gap]) {
        let now = clock::unix_ms();
        self.declare(gaps);
        let first = self.sequencer.last() + 1;
        let hole = first - 1 - self.sequencer.known.min(first - 1);
        let gap = SpoolGap {
            class: "unknown",
            node: &self.composer.node,
            epoch: self.composer.epoch,
            from_seq: first - hole,
            to_seq: first - 1,
            count: hole,
            first_ts: 0,
            last_ts: now / 1000,
            reason: "restart",
            stream: "-",
            prev_last_seq: Some(self.sequencer.before),
        };
        self.own.push(gap.into_event(now));
        let detail = json!({"epoch": self.composer.epoch, "state_lost": self.sequencer.state_lost});
        self.audit_act("started", &detail);
    }

    fn tidy(&mut self) {
        let now = clock::unix_ms();
        self.run_errands();
        if !self.composer.history {
            self.settle_keys(now);
            self.tell_health(now);
            if let Some(audit) = &mut self.audit
                && let Err(error) = audit.tidy(self.composer.keyring.as_ref(), now)
            {
                tracing::error!(%error, "cannot tidy the audit trail");
            }
        }
        self.commit_own();
        let tidied = self.shared.spool().tidy(now);
        if let Err(error) = tidied {
            tracing::error!(error = chain(&error), "cannot tidy the spool");
        }
    }

    fn run_errands(&mut self) {
        let errands = std::mem::take(&mut *self.shared.errands.lock().unwrap_or_else(PoisonError::into_inner));
        for errand in errands {
            match errand {
                // Whoever asked may be gone, here and below.
                Errand::Audit(act, detail, answer) => drop(answer.send(self.audit_act(act, &detail))),
                Errand::Sign(unsigned, answer) => {
                    let keyring = self.composer.keyring.as_ref();
                    let signed = keyring.map(|ring| unsigned.sign(ring.key_id(), |bytes| ring.sign(bytes)));
                    drop(answer.send(signed));
                }
                Errand::Note(act, detail) => drop(self.audit_act(act, &detail)),
                Errand::Event(event) => self.own.push(event),
                Errand::Health => {
                    let now = clock::unix_ms();
                    let health = self.health(now, PROBE);
                    self.own.push(health);
                }
                Errand::Keys(answer) => {
                    let reloaded = self.reload_keys();
                    // Whoever asked may be gone.
                    let _ = answer.send(reloaded);
                }
            }
        }
        self.commit_own();
    }

    /// Commits what is our own, if anything is and the disk takes it.
    fn commit_own(&mut self) {
        if self.own.is_empty() {
            return;
        }
        match self.commit(&[]) {
            Ok(()) => self.shared.set_trouble(None),
            Err(error) => self.shared.set_trouble(Some(chain(&error))),
        }
        self.own.truncate(MAX_OWN);
    }

    fn reload_keys(&mut self) -> Result<String, String> {
        let Some(keyring) = &mut self.composer.keyring else {
            return Ok("events are not signed".to_owned());
        };
        let events = keyring.reload(clock::unix_ms()).map_err(|error| chain(&error))?;
        let count = events.len();
        self.announce(events);
        Ok(format!("signing keys read again, {count} announcements made"))
    }

    fn settle_keys(&mut self, now: u64) {
        let Some(keyring) = &mut self.composer.keyring else {
            return;
        };
        match keyring.settle(now) {
            Ok(events) => self.announce(events),
            Err(error) => tracing::error!(error = chain(&error), "cannot change the signing key"),
        }
    }

    fn announce(&mut self, events: Vec<Event>) {
        let detail = |event: &Event| serde_json::from_slice(&event.body).unwrap_or_default();
        let details: Vec<Value> = events.iter().map(detail).collect();
        self.own.extend(events);
        // Behind the announcements: the acts may be signed with the key that those tell of.
        for detail in details {
            self.audit_act("key", &detail["key"]);
        }
    }

    fn tell_health(&mut self, now: u64) {
        if now.saturating_sub(self.health_ms) < HEALTH_INTERVAL_MS {
            return;
        }
        let health = self.health(now, PERIODIC);
        self.own.push(health);
        (self.health_ms, self.received_before) = (now, self.counters.events_received_total.value());
    }

    fn health(&self, now: u64, reason: &str) -> Event {
        let received = self.counters.events_received_total.value();
        let seconds = match self.health_ms {
            0 => 0,
            before => now.saturating_sub(before) / 1000,
        };
        let rate = (received - self.received_before).checked_div(seconds).unwrap_or(0);
        let (depth, capacity) = {
            let spool = self.shared.spool();
            (spool.depth(), spool.capacity())
        };
        let mut degraded = self.report.degraded();
        degraded.extend(self.shared.trouble());
        let age = if depth.oldest_ms == 0 {
            0
        } else {
            now.saturating_sub(depth.oldest_ms) / 1000
        };
        let health = Health {
            manager_node: &self.composer.node,
            timestamp: now / 1000,
            reason,
            epoch: self.composer.epoch,
            seq: self.sequencer.last(),
            events_per_second: rate,
            spool_events: depth.waiting,
            spool_bytes: depth.bytes,
            spool_capacity: capacity,
            spool_age: age,
            last_ack: self.report.read().last_ack_ms / 1000,
            degraded: &degraded,
        };
        health.into_event(now)
    }

    /// A line of the audit trail, and its event. Whether it was written.
    fn audit_act(&mut self, act: &'static str, detail: &Value) -> bool {
        let Some(audit) = &mut self.audit else { return false };
        let now = clock::unix_ms();
        match audit.write(act, detail, now) {
            Ok(line) => {
                let line: Value = serde_json::from_slice(&line).unwrap_or_default();
                self.own
                    .push(manager_event(Kind::Audit, "", now, 0, wrapped("audit", &line)));
                true
            }
            Err(error) => {
                tracing::error!(%error, act, "cannot write to the audit trail");
                false
            }
        }
    }

    async fn take(&mut self, first: Batch) {
        let weigh = |batch: &Batch| batch.events.iter().map(|event| event.event.body.len()).sum::<usize>();
        let (mut count, mut bytes) = (first.events.len(), weigh(&first));
        let mut batches = vec![first];
        while count < MAX_COMMIT_EVENTS && bytes < MAX_COMMIT_BYTES {
            let Ok(next) = self.batches.try_recv() else { break };
            count += next.events.len();
            bytes += weigh(&next);
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
        let mut commit = Composed {
            shown: (self.shared.followers.receiver_count() > 0 || self.shared.roll.is_some()).then(Vec::new),
            stored: Vec::new(),
            acts: Vec::new(),
        };
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
                    commit.acts.extend(self.act_of(&event.event));
                    self.compose(&event.event, &mark, &mut commit)?;
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
            if let Err(error) = self.compose(event, &nobody, &mut commit) {
                self.own = own;
                return Err(error);
            }
        }
        if commit.stored.is_empty() {
            return Ok(());
        }
        let begun = self.shared.spool().begin_commit(&commit.stored, clock::unix_ms());
        let written = begun.and_then(|(mut bytes, gaps)| {
            bytes.write()?;
            self.shared.spool().finish_commit(bytes, &commit.stored);
            Ok(gaps)
        });
        match written {
            Ok(gaps) => self.declare(&gaps),
            Err(error) => {
                self.own = own;
                return Err(error);
            }
        }
        for (act, detail) in &commit.acts {
            self.audit_act(act, detail);
        }
        if let Some(mut roll) = self.shared.roll() {
            for event in commit.shown.iter().flatten() {
                roll.note(&event.event, event.sequence);
            }
        }
        self.shared.committed.send_modify(|commits| *commits += 1);
        for event in commit.shown.into_iter().flatten() {
            // Followers that went away do not matter.
            let _ = self.shared.followers.send(Arc::new(event));
        }
        Ok(())
    }

    /// Whoever got or lost a key is in the audit trail too.
    fn act_of(&self, event: &Event) -> Option<(&'static str, Value)> {
        self.audit.as_ref()?;
        let act = match event.kind {
            Kind::Enrolled => "enrolled",
            Kind::Removed => "removed",
            Kind::KeyRotated => "key_rotated",
            Kind::Renamed => "renamed",
            _ => return None,
        };
        let mut body: Value = serde_json::from_slice(&event.body).unwrap_or_default();
        Some((act, body["enrollment"].take()))
    }

    fn compose(&mut self, event: &Event, mark: &Mark, commit: &mut Composed) -> Result<(), SpoolError> {
        let original = self.compose_one(event, mark, None, commit)?;
        if let Some(copy) = event.disconnect_alert() {
            self.compose_one(&copy, mark, Some(original), commit)?;
        }
        Ok(())
    }

    fn compose_one(
        &mut self,
        event: &Event,
        mark: &Mark,
        copy_of: Option<u64>,
        commit: &mut Composed,
    ) -> Result<u64, SpoolError> {
        let numbers = self.number(event.kind.stream())?;
        let stored = self.composer.compose(event, mark.clone(), numbers, copy_of);
        if let Some(shown) = &mut commit.shown {
            // Followers on this machine see what was said before it was sealed or put into another form.
            shown.push(PublishedEvent {
                subject: stored.subject.clone(),
                sequence: stored.seq,
                producer: mark.producer.clone(),
                event: event.clone(),
            });
        }
        commit.stored.push(stored);
        Ok(numbers.seq)
    }

    fn number(&mut self, stream: Stream) -> Result<Numbers, SpoolError> {
        let seq = self.sequencer.next()?;
        let prev = self.last_of_stream.insert(stream, seq).unwrap_or(0);
        Ok(Numbers { seq, prev })
    }

    /// What was dropped is told, as an event of our own in the next commit.
    fn declare(&mut self, gaps: &[Gap]) {
        let now = clock::unix_ms();
        for gap in gaps {
            let stream = gap.stream.map_or("-", Stream::name);
            tracing::warn!(
                stream,
                from_seq = gap.from_seq,
                to_seq = gap.to_seq,
                count = gap.count,
                reason = gap.reason,
                "events were dropped from the spool"
            );
            let body = SpoolGap {
                class: gap.class.map_or("unknown", muster_proto::event::Class::as_str),
                node: &self.composer.node,
                epoch: self.composer.epoch,
                from_seq: gap.from_seq,
                to_seq: gap.to_seq,
                count: gap.count,
                first_ts: gap.first_ms / 1000,
                last_ts: gap.last_ms / 1000,
                reason: gap.reason,
                stream,
                prev_last_seq: None,
            };
            self.own.push(body.into_event(now));
            let detail = json!({
                "stream": stream, "from_seq": gap.from_seq, "to_seq": gap.to_seq, "count": gap.count, "reason": gap.reason
            });
            self.audit_act("dropped", &detail);
        }
    }
}

/// Events on their way into the spool.
struct Composed {
    stored: Vec<Stored>,
    /// As followers see them, if anybody wants to.
    shown: Option<Vec<PublishedEvent>>,
    /// What goes into the audit trail once they are safe.
    acts: Vec<(&'static str, Value)>,
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
