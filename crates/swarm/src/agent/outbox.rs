//! What an agent wants sent, in order, in one buffer that all agents share.

/// What a message is, for the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A startup.
    Startup,
    /// A keepalive.
    Keepalive,
    /// A goodbye.
    Shutdown,
    /// An answer to a request, or its acknowledgement.
    Answer,
    /// An event.
    Event,
}

/// Payloads one behind the other.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    ends: Vec<(usize, What)>,
}

impl Outbox {
    /// Adds a payload.
    pub fn push(&mut self, what: What, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        self.ends.push((self.bytes.len(), what));
    }

    /// Whether nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The payloads in order.
    pub fn payloads(&self) -> impl Iterator<Item = (What, &[u8])> {
        let mut begin = 0;
        self.ends.iter().map(move |(end, what)| {
            let payload = self.bytes.get(begin..*end).unwrap_or_default();
            begin = *end;
            (*what, payload)
        })
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}
