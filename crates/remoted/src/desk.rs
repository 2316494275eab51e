//! The roster's desk: news come in, time passes, messages and events go out, rows are handed to the store. All that the
//! roster decides is decided in [`crate::roster`]; here is the waiting.
//!
//! What happens when something is full:
//! * *news* ([`NEWS_QUEUE`]): a TCP connection waits with its next message, news over UDP are dropped and counted; the
//!   agents have their acknowledgements already.
//! * *events that the store has not taken* ([`FULL`]): news and ticks wait until it takes them, which is a matter of
//!   milliseconds. When the store cannot be written at all (a full disk), they go on: keepalive events are dropped, and
//!   beyond [`OVERFULL`] all events are; each is counted and the status says so.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_proto::{
    event::{Event, Kind},
    ipc::control::QueueStatus,
};
use muster_service::clock;
use tokio::{
    sync::{
        mpsc::{self, OwnedPermit},
        watch,
    },
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    roster::{Actions, Roster, Times, pulse::LONGEST_NAP},
    slot::{AgentSlot, Courier, Millis, News},
    store::{Batch, Writer, WriterStatus},
};

/// News that may wait for the roster.
pub const NEWS_QUEUE: usize = 4096;
/// News that are taken in one go, before time gets its turn.
const NEWS_AT_ONCE: usize = 256;
/// How long news are left to gather after a handful was taken: waking for each would cost more than all that it leads
/// to. Nobody waits for the roster, acknowledgements least of all.
const BREATH: Duration = Duration::from_millis(25);
/// How long a keepalive's event may wait for others.
const GATHER_EVENTS: Duration = Duration::from_millis(100);
/// How long a row that says no more than "heard" may wait for others.
const GATHER_ROWS: Duration = Duration::from_millis(500);
/// Rows that are not kept waiting for more, and are written in one go.
const ROWS_AT_ONCE: usize = 2000;
/// Events that may wait for the store.
const FULL: usize = 20_000;
/// How long an answer about agents waits for the disk.
const SETTLE_DEADLINE: Duration = Duration::from_millis(500);
/// Events that may wait for a store that cannot be written.
const OVERFULL: usize = 200_000;

/// Lines about agents, for the analysis daemon.
pub type OwnLine = Box<dyn Fn(&Arc<AgentSlot>, &'static str, &str) + Send>;

/// What the desk works with.
pub struct DeskParts {
    /// From the workers and the key watcher. The desk is done when all of them are.
    pub news: mpsc::Receiver<News>,
    /// To the agents.
    pub courier: Arc<dyn Courier>,
    /// To the analysis daemon.
    pub own_line: OwnLine,
    /// Who hears what the roster hears, just before it. Must not wait.
    pub listener: Box<dyn Fn(&News) + Send>,
    /// To the store.
    pub writer: Writer,
    /// The time.
    pub clock: Arc<Clock>,
}

/// What others may look at while the desk is at work.
#[derive(Clone)]
pub struct Window {
    roster: Arc<Mutex<Roster>>,
    clock: Arc<Clock>,
    queue: Arc<Queue>,
    writer: watch::Receiver<WriterStatus>,
}

#[derive(Default)]
struct Queue {
    /// Batches given to the store.
    batches: AtomicU64,
    waiting: AtomicU64,
    dropped: AtomicU64,
}

/// The desk itself.
pub struct Desk {
    parts: DeskParts,
    window: Window,
    out: Actions,
    /// Events that the store has not taken.
    backlog: Vec<Event>,
    /// Something waits for the store that should not wait.
    hurry: bool,
    /// Since when something waits for the store.
    gathering_since: Option<Instant>,
    next_tick: Millis,
}

/// Both clocks.
///
/// What the wall clock shows is worked out from the monotonic one, so that a moment is the same second whenever it is
/// asked for; only a step of the wall clock is followed.
pub struct Clock {
    /// Unix milliseconds at the monotonic clock's zero.
    offset: AtomicI64,
}

/// A difference that two readings one after the other cannot make.
const STEP_MS: u64 = 50;

impl Clock {
    /// The clocks as they are now.
    pub fn start() -> Self {
        let offset = signed(clock::unix_ms()) - signed(Millis::now().0);
        Self {
            offset: AtomicI64::new(offset),
        }
    }

    /// What they show.
    pub fn now(&self) -> Times {
        self.shown(Millis::now(), clock::unix_ms())
    }

    fn shown(&self, mono: Millis, wall_ms: u64) -> Times {
        let measured = signed(wall_ms) - signed(mono.0);
        let mut offset = self.offset.load(Ordering::Relaxed);
        if measured.abs_diff(offset) > STEP_MS {
            self.offset.store(measured, Ordering::Relaxed);
            offset = measured;
        }
        Times {
            mono,
            wall_ms: mono.0.saturating_add_signed(offset),
        }
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Window {
    /// The time, as the roster knows it.
    pub fn now(&self) -> Times {
        self.clock.now()
    }

    /// The roster. Hold it for a moment only.
    pub fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the writing of the store goes.
    pub fn writer(&self) -> WriterStatus {
        self.writer.borrow().clone()
    }

    /// Waits until the statuses that the roster shows now are on the disk, so that whoever was told of one can rely on
    /// it whatever happens next. A store that cannot be written is not waited for, and a slow one not for long.
    pub async fn settle(&self) {
        let pending = u64::from(self.roster().has_unstored_changes());
        let batches = self.queue.batches.load(Ordering::Relaxed) + pending;
        let mut writer = self.writer.clone();
        let settled = writer.wait_for(|status| status.batches >= batches || status.error.is_some());
        let _ = timeout(SETTLE_DEADLINE, settled).await;
    }

    /// Events between roster and store.
    pub fn queue(&self) -> QueueStatus {
        QueueStatus {
            name: "store".to_owned(),
            used: self.queue.waiting.load(Ordering::Relaxed),
            capacity: OVERFULL as u64,
            unit: "events".to_owned(),
            dropped: self.queue.dropped.load(Ordering::Relaxed),
        }
    }
}

impl Desk {
    /// A desk for this roster.
    pub fn new(roster: Roster, parts: DeskParts) -> Self {
        let window = Window {
            roster: Arc::new(Mutex::new(roster)),
            clock: Arc::clone(&parts.clock),
            queue: Arc::default(),
            writer: parts.writer.watch(),
        };
        Self {
            parts,
            window,
            out: Actions::default(),
            backlog: Vec::new(),
            hurry: false,
            gathering_since: None,
            next_tick: Millis::NEVER,
        }
    }

    /// For the control socket.
    pub fn window(&self) -> Window {
        self.window.clone()
    }

    /// Works until all who bring news are gone, then stores what is left.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut inbox = Vec::with_capacity(NEWS_AT_ONCE);
        loop {
            let open = self.backlog.len() < FULL || self.window.writer.borrow().error.is_some();
            let now = Instant::now();
            let tick_at = open.then(|| now + self.next_tick.since(Millis::now()));
            let store_at = self.store_at(now);
            let store = store_at.is_some_and(|at| at <= now);
            // Waiting for room needs no clock, waiting until enough is gathered does.
            let wake_at = tick_at.into_iter().chain(store_at.filter(|_| !store)).min();
            let turn = tokio::select! {
                room = self.parts.writer.room(), if store => Turn::Store(room),
                count = self.parts.news.recv_many(&mut inbox, NEWS_AT_ONCE), if open => Turn::News(count),
                () = sleep_until(wake_at.unwrap_or(now)), if wake_at.is_some() => Turn::Time,
            };
            let breathe = matches!(turn, Turn::News(count) if count < NEWS_AT_ONCE);
            match turn {
                Turn::Store(Some(room)) => {
                    room.send(self.batch());
                }
                Turn::Store(None) => anyhow::bail!("the store's thread is gone"),
                Turn::News(0) => break,
                Turn::News(_) => inbox.drain(..).for_each(|news| self.take(news)),
                Turn::Time => {}
            }
            if open {
                self.tick();
            }
            self.look();
            if breathe {
                sleep(BREATH).await;
            }
        }
        self.finish().await
    }

    /// When there is something for the store: at once if an event other than a keepalive waits, else when enough was
    /// gathered.
    fn store_at(&self, now: Instant) -> Option<Instant> {
        if self.hurry {
            return Some(now);
        }
        let gather = if self.backlog.is_empty() {
            GATHER_ROWS
        } else {
            GATHER_EVENTS
        };
        self.gathering_since.map(|since| since + gather)
    }

    /// All that the store is to write now.
    fn batch(&mut self) -> Batch {
        let (rows, gone) = self.window.roster().take_rows(self.window.now(), ROWS_AT_ONCE);
        self.gathering_since = None;
        self.hurry = false;
        self.window.queue.batches.fetch_add(1, Ordering::Relaxed);
        Batch {
            rows,
            gone,
            events: std::mem::take(&mut self.backlog),
        }
    }

    fn take(&mut self, news: News) {
        (self.parts.listener)(&news);
        self.window.roster().on_news(self.window.now(), news, &mut self.out);
        self.perform();
    }

    fn tick(&mut self) {
        let now = self.window.now();
        if now.mono < self.next_tick {
            return;
        }
        let mut roster = self.window.roster();
        roster.on_tick(now, &mut self.out);
        let nap = now.mono + LONGEST_NAP;
        self.next_tick = roster.next_tick().map_or(nap, |next| next.min(nap));
        drop(roster);
        self.perform();
    }

    /// Carries out what the roster wants done.
    fn perform(&mut self) {
        let mut sends = std::mem::take(&mut self.out.sends);
        for sent in sends.drain(..) {
            let outcome = self.parts.courier.send(&sent.slot, &sent.payload);
            self.window
                .roster()
                .on_sent(self.window.now(), &sent, outcome, &mut self.out);
        }
        // Its room is used again.
        self.out.sends = sends;
        for notice in self.out.notices.drain(..) {
            (self.parts.own_line)(&notice.slot, notice.location, &notice.text);
        }
        let failing = self.backlog.len() >= FULL && self.window.writer.borrow().error.is_some();
        for event in self.out.events.drain(..) {
            if failing && (event.kind == Kind::Keepalive || self.backlog.len() >= OVERFULL) {
                self.window.queue.dropped.fetch_add(1, Ordering::Relaxed);
            } else {
                self.hurry |= event.kind != Kind::Keepalive;
                self.backlog.push(event);
            }
        }
    }

    fn look(&mut self) {
        self.window
            .queue
            .waiting
            .store(self.backlog.len() as u64, Ordering::Relaxed);
        let something = !self.backlog.is_empty() || self.window.roster().unstored() > 0;
        if something && self.gathering_since.is_none() {
            self.gathering_since = Some(Instant::now());
        }
        // The wheel may have been armed for something sooner.
        if let Some(next) = self.window.roster().next_tick() {
            self.next_tick = self.next_tick.min(next);
        }
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        while self.window.roster().unstored() > 0 || !self.backlog.is_empty() {
            let Some(room) = self.parts.writer.room().await else {
                break;
            };
            room.send(self.batch());
        }
        self.parts.writer.finish().await;
        Ok(())
    }
}

/// Whose turn it is.
enum Turn {
    /// The store has room.
    Store(Option<OwnedPermit<Batch>>),
    /// So many news came; none when nobody is left to bring any.
    News(usize),
    /// Time has passed.
    Time,
}

#[cfg(test)]
mod tests;
