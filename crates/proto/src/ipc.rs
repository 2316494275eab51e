//! Our own frames, between our own daemons. Sockets that stock daemons know never carry them.
//!
//! ```text
//! version u8 | length u32 little-endian | length bytes of bincode (standard configuration)
//! ```
//!
//! The client speaks first: a [`Hello`], answered by the server's [`Hello`]; then both use the highest version that
//! both know. Enums only grow at the end, and recorded frames of every published version stay in the tests, so that
//! daemons can be upgraded one at a time.
//!
//! * [`codec`]: frame and payload, with a cap before any allocation.
//! * [`control`]: what `queue/muster/<daemon>.ctl` carries.
//! * [`events`]: what `queue/muster/events` carries.

pub mod codec;
pub mod control;
pub mod events;

use serde::{Deserialize, Serialize};

/// The version that this build speaks best.
pub const VERSION: u8 = 1;
/// The oldest version that this build still speaks.
pub const OLDEST_VERSION: u8 = 1;

/// The first frame on every connection, in both directions. It is always framed with version 1's frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who speaks: `remoted`, `authd`, `natsd`, `control` …
    pub name: String,
    /// The release of the speaker, for messages to people.
    pub release: String,
    /// The oldest version of the frames that it knows.
    pub oldest: u8,
    /// The newest version of the frames that it knows.
    pub newest: u8,
}

impl Hello {
    /// What this build says of itself.
    pub fn ours(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            oldest: OLDEST_VERSION,
            newest: VERSION,
        }
    }

    /// The version that both sides use, or `None` when they have none in common.
    pub fn agree(&self, other: &Self) -> Option<u8> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}
