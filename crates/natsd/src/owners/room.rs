//! The table, as the threads of the daemon share it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use muster_proto::event::Event;

use super::{Admission, Owners, Put};

/// How far the bucket was read over the connection that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Not yet, or there is no connection.
    Unread,
    /// It was.
    Read,
    /// It cannot be, and why.
    Unreadable(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Room {
    /// The bucket's name.
    pub(crate) bucket: String,
    owners: Mutex<Owners>,
    pub(crate) reading: watch::Sender<Reading>,
    /// There may be something to write.
    pub(crate) due: Notify,
    /// There may be agents to let go.
    pub(crate) partings: Notify,
}

impl Room {
    pub(crate) fn new(bucket: &str, node: &str, epoch: u64) -> Self {
        Self {
            bucket: bucket.to_owned(),
            owners: Mutex::new(Owners::new(node, epoch)),
            reading: watch::Sender::new(Reading::Unread),
            due: Notify::new(),
            partings: Notify::new(),
        }
    }

    pub(crate) fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event in, and says what becomes of it.
    pub(crate) fn admit(&self, event: &Event) -> Admission {
        let mut owners = self.owners();
        let admission = owners.admit(event);
        if owners.has_due() {
            self.due.notify_one();
        }
        admission
    }

    /// The next entry to write.
    pub(crate) fn next(&self) -> Option<Put> {
        self.owners().next()
    }

    /// There may be something to write, or an agent to let go.
    pub(crate) fn wake(&self) {
        self.due.notify_one();
        self.partings.notify_one();
    }

    /// Whether it is not known yet what the bucket says, or whether it can be read.
    pub(crate) fn is_unread(&self) -> bool {
        *self.reading.borrow() == Reading::Unread
    }

    /// What is worse than it should be, in words.
    pub(crate) fn degraded(&self) -> Option<String> {
        match &*self.reading.borrow() {
            Reading::Unreadable(why) => Some(format!(
                "the bucket {} does not say which manager has which agent ({why}); events of agents are unconfirmed",
                self.bucket
            )),
            Reading::Unread | Reading::Read => None,
        }
    }

    /// The connection is over.
    pub(crate) fn lose_touch(&self) {
        self.owners().lose_touch();
        self.reading.send_replace(Reading::Unread);
    }

    /// Waits until the bucket was read, or cannot be, but no longer than this.
    pub(crate) async fn wait_until_read(&self, longest: Duration) {
        let mut reading = self.reading.subscribe();
        // In vain: then events go out unconfirmed.
        let _ = timeout(longest, reading.wait_for(|reading| *reading != Reading::Unread)).await;
    }
}
