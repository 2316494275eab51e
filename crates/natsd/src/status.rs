//! What natsd says of itself.

pub(crate) mod drops;
pub(crate) mod rates;

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use muster_proto::{event::Stream, ipc::control::SigningKey};
use muster_service::clock;

use self::{
    drops::Drops,
    rates::{Rate, Rates},
};
use crate::{
    keys::Keyring,
    publish::{drift::Drift, skew::MUCH_MS},
};

muster_service::counters! {
    /// What went through since the start.
    pub(crate) struct Counters {
        /// Events that producers sent.
        events_received_total,
        /// Events that the broker has.
        events_published_total,
        /// Events that went out without an acknowledgement, since the broker has no stream for them.
        events_unacknowledged_total,
        /// Events of agents that are another manager's; nobody hears of them.
        events_suppressed_total,
        /// Events that can never be published, such as those that are too large for the broker.
        events_given_up_total,
        /// Acts that stand in the audit trail's file alone, since the spool took nothing.
        acts_spilled_total,
        /// Events that had been acknowledged, and were sent again since the broker had lost them.
        events_rewound_total,
        /// Entries written to the key-value bucket.
        kv_writes_total,
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
        /// Requests that came over NATS.
        control_requests_total,
        /// Those of them that were refused.
        control_refused_total,
        /// Those that were passed over without an answer, since there were too many.
        control_dropped_total,
    }
}

/// Failed attempts in a row behind which the state is degraded, where `<max_reconnects>` names no number.
const PATIENCE: u32 = 3;

fn seconds() -> u64 {
    clock::monotonic_ms() / 1000
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

/// Whether requests over NATS are heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hearing {
    /// Switched off.
    Off,
    /// Not now, and why.
    Down(String),
    /// Yes.
    Up,
}

impl Hearing {
    /// Why not.
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Down(why) => why,
            Self::Off | Self::Up => "",
        }
    }
}

/// Whether the name of this manager is ours alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nobody looks after it.
    Unfenced,
    /// Yes.
    Held,
    /// Another manager has it; nothing is published.
    Taken(String),
}

/// The publisher's report to the status.
#[derive(Debug)]
pub(crate) struct Report {
    inner: Mutex<Facts>,
    rates: Mutex<Rates>,
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
    /// How many of them in a row are nothing out of the ordinary.
    pub(crate) patience: u32,
    /// What was lost since the start.
    pub(crate) drops: Drops,
    /// Streams that events go to without an acknowledgement, since the broker has no stream for them.
    pub(crate) without_stream: Vec<&'static str>,
    /// Streams whose events wait in the spool until the broker has one.
    pub(crate) waiting_for_stream: Vec<&'static str>,
    /// Streams whose events the broker does not acknowledge, and why.
    pub(crate) stuck: BTreeMap<&'static str, String>,
    /// The last error that the broker told.
    pub(crate) last_error: Option<String>,
    /// The last round trip of an acknowledgement, in microseconds.
    pub(crate) round_trip_us: u64,
    /// Whether the name of this manager is ours alone.
    pub(crate) claim: Claim,
    /// How far the broker's clock is ahead of ours, in milliseconds, where that is known.
    pub(crate) skew_ms: Option<i64>,
    /// Whether requests over NATS are heard.
    pub(crate) hearing: Hearing,
    /// A stream that takes requests, and so answers them in our place.
    pub(crate) captured: Option<String>,
    /// What streams and buckets are like.
    pub(crate) drift: Drift,
    /// Whether it is a fault when there are no buckets.
    pub(crate) wants_buckets: bool,
    /// The signing keys.
    pub(crate) keys: Vec<SigningKey>,
    /// What the trust key should have signed, in words.
    pub(crate) unvouched: Vec<String>,
}

impl Report {
    pub(crate) fn new(link: Link, hearing: Hearing) -> Self {
        let facts = Facts {
            link,
            server: String::new(),
            last_ack_ms: 0,
            failures: 0,
            patience: PATIENCE,
            drops: Drops::default(),
            without_stream: Vec::new(),
            waiting_for_stream: Vec::new(),
            stuck: BTreeMap::new(),
            last_error: None,
            round_trip_us: 0,
            claim: Claim::Unfenced,
            skew_ms: None,
            hearing,
            captured: None,
            drift: Drift::default(),
            wants_buckets: false,
            keys: Vec::new(),
            unvouched: Vec::new(),
        };
        Self {
            inner: Mutex::new(facts),
            rates: Mutex::new(Rates::new(seconds())),
        }
    }

    /// What is worse than it should be, in words.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let facts = self.read();
        let mut degraded = facts.unvouched.clone();
        if let Link::Down(why) = &facts.link
            && facts.failures >= facts.patience
        {
            let failures = facts.failures;
            degraded.push(format!(
                "not connected to NATS ({why}, {failures} attempts failed); events wait in the spool"
            ));
        }
        if facts.link == Link::Up {
            if let Claim::Taken(why) = &facts.claim {
                degraded.push(format!("nothing is published, events wait in the spool: {why}"));
            }
            if let Some(skew) = facts.skew_ms.filter(|skew| skew.abs() > MUCH_MS) {
                let side = if skew > 0 { "ahead of" } else { "behind" };
                degraded.push(format!(
                    "the broker's clock is {} s {side} ours; set the clocks, or consumers refuse events",
                    skew.abs() / 1000
                ));
            }
            for (stream, why) in &facts.stuck {
                degraded.push(format!("events of {stream} wait: {why}"));
            }
            if let Hearing::Down(why) = &facts.hearing {
                degraded.push(format!("requests over NATS are not heard: {why}"));
            }
            if let Some(stream) = &facts.captured {
                degraded.push(format!(
                    "the stream {stream} takes requests over NATS and answers them in our place; take <prefix>.control out of it"
                ));
            }
            for (stream, differs) in &facts.drift.differs {
                let differs = differs.join(", ");
                degraded.push(format!(
                    "the stream {stream} is not as provisioned: {differs}; `muster-natsd provision --update` shows and mends it"
                ));
            }
            for bucket in facts.drift.missing_buckets.iter().filter(|_| facts.wants_buckets) {
                degraded.push(format!(
                    "the broker has no bucket {bucket}; `muster-natsd provision` makes it"
                ));
            }
            for stream in &facts.without_stream {
                degraded.push(format!(
                    "the broker has no JetStream, and so no stream like {stream}: those events are sent without an acknowledgement; \
                     <publish mode=\"core\"/> says that this is meant"
                ));
            }
            for stream in &facts.waiting_for_stream {
                degraded.push(format!(
                    "the broker has no stream that takes the events of {stream}: whoever listens hears them, and they wait in the spool; \
                     `muster-natsd provision` makes it"
                ));
            }
        }
        degraded
    }

    /// What became of the signing keys.
    pub(crate) fn tell_keys(&self, keyring: Option<&Keyring>) {
        if let Some(keyring) = keyring {
            self.change(|facts| (facts.keys, facts.unvouched) = (keyring.describe(), keyring.unvouched()));
        }
    }

    /// An event is done with, and whether a stream has acknowledged it.
    pub(crate) fn published(&self, stream: Stream, acknowledged: bool) {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.published(stream, acknowledged, seconds());
    }

    /// What each stream took in the last minute.
    pub(crate) fn rates(&self) -> Vec<Rate> {
        self.rates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(seconds())
    }

    pub(crate) fn read(&self) -> Facts {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
