//! Events on their way from the daemon that made them to natsd.
//!
//! A producer says [`Hello`](super::Hello), then sends [`ToNatsd::Produce`] once and [`ToNatsd::Batch`] for ever;
//! natsd answers [`FromNatsd::Resume`] once and [`FromNatsd::Taken`] whenever it has made events durable. An event
//! that is not yet taken stays in the producer's outbox and is sent again on the next connection; natsd keeps the
//! highest number it has taken from each producer's incarnation beside its spool, so that an event sent twice is
//! spooled once.

use serde::{Deserialize, Serialize};

use crate::event::Event;

/// Frames from a producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNatsd {
    /// Who produces. Must be the first frame behind the hello.
    Produce {
        /// The daemon's short name.
        producer: String,
        /// Which outbox this is: drawn at random when the outbox was created, so that a lost and re-created outbox
        /// does not look like old numbers.
        incarnation: u64,
    },
    /// Events in the order of their numbers.
    Batch(Vec<NumberedEvent>),
}

/// Frames to a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNatsd {
    /// Everything up to this number of this incarnation is already durable; 0 = nothing.
    Resume {
        /// The highest number taken.
        taken: u64,
    },
    /// Everything up to this number is durable now (cumulative).
    Taken {
        /// The highest number taken.
        number: u64,
    },
}

/// An event and its place in the producer's outbox. Numbers start at 1 and only grow; holes are legal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedEvent {
    /// The place.
    pub number: u64,
    /// The event.
    pub event: Event,
}
