//! What natsd says of itself.

use std::sync::{Mutex, PoisonError};

muster_service::counters! {
    /// What went through since the start.
    pub(crate) struct Counters {
        /// Events that producers sent.
        events_received_total,
        /// Events that the broker has.
        events_published_total,
        /// Events that were sent again because no acknowledgement came.
        events_retried_total,
        /// Connections of producers that were refused or broken off.
        producers_refused_total,
        /// Times that the connection to the broker was made.
        nats_connections_total,
        /// Errors that the broker told, such as a missing permission.
        nats_errors_total,
        /// Followers that were left because they read too slowly.
        followers_dropped_total,
    }
}

/// How the connection to the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Publishing is switched off.
    Off,
    /// Not connected; why, as far as known.
    Down(String),
    /// Connected.
    Up,
}

/// The publisher's report to the status.
#[derive(Debug)]
pub(crate) struct Report {
    inner: Mutex<Facts>,
}

/// What the publisher knows.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) link: Link,
    pub(crate) server: String,
    /// Unix milliseconds of the last acknowledgement; 0 = none.
    pub(crate) last_ack_ms: u64,
    /// Failed attempts to connect since the last success.
    pub(crate) failures: u32,
    /// Streams that events go to without an acknowledgement, since the broker has no stream for them.
    pub(crate) without_stream: Vec<&'static str>,
    /// The last error that the broker told.
    pub(crate) last_error: Option<String>,
}

impl Report {
    pub(crate) fn new(link: Link) -> Self {
        let facts = Facts {
            link,
            server: String::new(),
            last_ack_ms: 0,
            failures: 0,
            without_stream: Vec::new(),
            last_error: None,
        };
        Self {
            inner: Mutex::new(facts),
        }
    }

    pub(crate) fn read(&self) -> Facts {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
