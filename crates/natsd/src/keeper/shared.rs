//! What the rest of the daemon shares with the thread: the spool, and what it is asked to do.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use muster_proto::{
    command::Unsigned,
    event::{Event, Stream, body::QueueFill},
    ipc::control::PublishedEvent,
};
use serde_json::Value;
use tokio::sync::{Notify, broadcast, oneshot, watch};

use crate::{
    owners::{Owners, Room},
    publish::kv::Roll,
    spool::{Spool, record::Stored},
};

/// Acts and events of our own that may wait. Behind it, acts are only counted, and told as so many; they are rare.
pub(super) const MAX_OWN: usize = 1024;

/// What the rest of the daemon shares with the thread.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) spool: Mutex<Spool>,
    /// Grows whenever something was committed.
    pub(crate) committed: watch::Sender<u64>,
    /// Every event as it is committed.
    pub(crate) followers: broadcast::Sender<Arc<PublishedEvent>>,
    /// Why nothing can be committed now.
    pub(crate) trouble: Mutex<Option<String>>,
    /// Why the audit trail cannot be written.
    pub(super) audit_trouble: Mutex<Option<String>>,
    /// Acts that stand in the audit trail's file and could not be spooled.
    pub(super) spilled: AtomicU64,
    /// Acts that came faster than they could be written down.
    pub(super) missed: AtomicU64,
    /// The latest state of each agent, if a key-value bucket mirrors it.
    pub(super) roll: Option<Mutex<Roll>>,
    /// Which manager has which agent, if several share a fleet.
    pub(crate) owners: Option<Arc<Room>>,
    /// How full the queues of all daemons are.
    pub(super) queues: Mutex<Vec<QueueFill>>,
    /// The newest announcement of each signing key, by key.
    pub(super) announced: Mutex<BTreeMap<String, Stored>>,
    /// What the thread is to do besides.
    pub(super) errands: Mutex<VecDeque<Errand>>,
    pub(super) wake: Notify,
}

/// Something for the thread.
#[derive(Debug)]
pub(crate) enum Errand {
    /// An act for the audit trail.
    Note(&'static str, Value),
    /// The same, and say whether it stands there; with the headers of a reply, if one is to be signed.
    Audit(&'static str, Value, Option<Unsigned>, oneshot::Sender<Audited>),
    /// An event of our own.
    Event(Event),
    /// Tell how the manager is now, and not when it is time.
    Health,
    /// Read the signing keys again, and say what came of it.
    Keys(oneshot::Sender<Result<String, String>>),
}

/// What came of [`Errand::Audit`].
#[derive(Debug, Default)]
pub(crate) struct Audited {
    /// Whether the line stands in the file.
    pub(crate) written: bool,
    /// The headers of the reply.
    pub(crate) reply: Option<Vec<(&'static str, String)>>,
}

impl Shared {
    /// How full the queues of all daemons were when they were asked last.
    pub(super) fn queues(&self) -> Vec<QueueFill> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_queues(&self, fills: Vec<QueueFill>) {
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner) = fills;
    }

    pub(crate) fn spool(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker has an event.
    pub(crate) fn acknowledge(&self, stream: Stream, seq: u64) {
        let was_held = self.spool().acknowledge(stream, seq);
        if was_held {
            // Its producer may be waiting for that.
            self.wake.notify_one();
        }
    }

    /// An event can never be published; the keeper tells of it.
    pub(crate) fn give_up(&self, stream: Stream, seq: u64, reason: &'static str) {
        self.spool().give_up(stream, seq, reason);
        self.wake.notify_one();
    }

    /// The latest state of each agent, if anybody wants it.
    pub(crate) fn roll(&self) -> Option<MutexGuard<'_, Roll>> {
        let roll = self.roll.as_ref()?;
        Some(roll.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Which manager has which agent, if several share a fleet. Who wants the roll as well takes it behind this.
    pub(crate) fn owners(&self) -> Option<MutexGuard<'_, Owners>> {
        self.owners.as_ref().map(|room| room.owners())
    }

    /// Agents that became another manager's are told of there.
    pub(crate) fn forget_lost(&self, owners: &mut Owners) {
        let lost = owners.take_lost();
        if let Some(mut roll) = self.roll().filter(|_| !lost.is_empty()) {
            lost.iter().for_each(|id| roll.forget(id));
        }
    }

    /// The newest announcement of each signing key, by key.
    pub(crate) fn announced(&self) -> BTreeMap<String, Stored> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps an announcement for [`Self::announced`].
    pub(super) fn announce(&self, event: &Event, stored: &Stored) {
        let body: Value = serde_json::from_slice(&event.body).unwrap_or_default();
        if let Some(kid) = body["key"]["kid"].as_str() {
            let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
            announced.insert(kid.to_owned(), stored.clone());
        }
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
            self.missed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(act, "too many acts at once; this one is missing in the audit trail");
        }
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is wrong with the audit trail.
    pub(crate) fn audit_trouble(&self) -> Option<String> {
        let trouble = self.audit_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone().or_else(|| match self.spilled.load(Ordering::Relaxed) {
            0 => None,
            count => Some(format!(
                "the spool takes nothing, and {count} acts of the audit trail are in its file alone; make room for the spool"
            )),
        })
    }

    /// So many acts more stand in the audit trail's file alone.
    pub(super) fn spill(&self, acts: u64) {
        self.spilled.fetch_add(acts, Ordering::Relaxed);
    }

    /// How many those are; from now on they count as told.
    pub(super) fn take_spilled(&self) -> u64 {
        self.spilled.swap(0, Ordering::Relaxed)
    }

    /// How many acts came faster than they could be written down; from now on they count as told.
    pub(super) fn take_missed(&self) -> u64 {
        self.missed.swap(0, Ordering::Relaxed)
    }

    pub(super) fn set_audit_trouble(&self, trouble: Option<String>) {
        *self.audit_trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}
