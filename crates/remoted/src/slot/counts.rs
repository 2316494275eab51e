//! Messages from one agent and to it, by kind. Kept for every agent, so the numbers are small and may wrap.

use std::sync::atomic::{AtomicU32, Ordering};

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A keepalive from it.
    Keepalive,
    /// An answer from it.
    Answer,
    /// A goodbye from it.
    Shutdown,
    /// A hello from it.
    Startup,
    /// A control message from it that says nothing we know.
    Unknown,
    /// An acknowledgement to it.
    Ack,
    /// An order to it.
    Order,
    /// A request to it.
    Request,
    /// An SCA request to it.
    Sca,
    /// A piece of a file to it.
    Shared,
    /// A message to it that could not be sent.
    Lost,
}

/// The counts.
#[derive(Debug, Default)]
pub struct Counts([AtomicU32; Message::Lost as usize + 1]);

impl Counts {
    /// One more.
    pub fn add(&self, message: Message) {
        if let Some(place) = self.0.get(message as usize) {
            place.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many so far.
    pub fn of(&self, message: Message) -> u64 {
        self.0
            .get(message as usize)
            .map_or(0, |place| place.load(Ordering::Relaxed).into())
    }
}
