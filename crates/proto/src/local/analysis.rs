//! Events on their way to the analysis daemon: one datagram each, at `queue/sockets/queue` or `queue/ossec/queue`.
//!
//! ```text
//! from the agent   <queue char> ":" <location> ":" <message>
//! Wazuh layout     <queue char> ":" "[<id>] (<name>) <address>"   "->" <location> ":" <message> NUL
//! OSSEC layout     <queue char> ":" "(<name>) <address>"          "->" <location> ":" <message> NUL
//! ```
//!
//! In the Wazuh layout `|` is written `||` and `:` is written `|:`, in the agent's own location too, which the agent
//! has escaped itself and which goes on untouched. The OSSEC layout escapes nothing. The address is the registered
//! one, without prefix, not that of the peer.
//!
//! **Invariant:** what an agent says behind its queue character is passed on byte for byte up to its first NUL, or
//! not at all.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod line;
mod notice;
mod receive;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use thiserror::Error;

pub use self::{
    line::{write_line, write_own_line},
    notice::Notice,
    receive::{DatagramError, Origin, Received, parse},
};
use super::Layout;
use crate::{agent::AgentId, keys::address::RegisteredAddress};

/// The longest datagram, with its NUL. Longer events are cut.
pub const MAX_DATAGRAM_LEN: usize = 65_536;

/// Who an event is from, as every datagram of that agent says it. Made once for each agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    layout: Layout,
    /// Escaped, arrow included.
    text: Box<[u8]>,
}

impl Source {
    /// The source text of an agent.
    pub fn new(layout: Layout, id: &AgentId, name: &str, address: &RegisteredAddress) -> Self {
        let address = address.host_text();
        let text = match layout {
            Layout::Wazuh => format!("{}->", escape(&format!("[{id}] ({name}) {address}"))),
            Layout::Ossec => format!("({name}) {address}->"),
        };
        Self {
            layout,
            text: text.into_bytes().into(),
        }
    }

    /// The layout it was made for.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// Why an event is not passed on. The connection stays open for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotForwarded {
    /// The second byte is no colon, or there is none (1106).
    #[error("event does not begin with a queue character and a colon")]
    Malformed,
    /// The agent's log reader says that it is alive: dropped without a word.
    #[error("not an event but a sign of life")]
    SignOfLife,
}

/// Puts the datagram of an event behind what is in the buffer, or nothing.
pub fn write_event(out: &mut Vec<u8>, source: &Source, payload: &[u8]) -> Result<(), NotForwarded> {
    let payload = until_nul(payload);
    let [queue, b':', text @ ..] = payload else {
        return Err(NotForwarded::Malformed);
    };
    if text.starts_with(b"keepalive") || text.starts_with(b"ossec-keepalive:--MARK--") {
        return Err(NotForwarded::SignOfLife);
    }
    let room = MAX_DATAGRAM_LEN
        .saturating_sub(1)
        .saturating_sub(2)
        .saturating_sub(source.text.len());
    let text = text.get(..room).unwrap_or(text);
    out.reserve(source.text.len().saturating_add(text.len()).saturating_add(3));
    out.extend_from_slice(&[*queue, b':']);
    out.extend_from_slice(&source.text);
    out.extend_from_slice(text);
    out.push(0);
    Ok(())
}

/// `|` as `||` and `:` as `|:`, so that the first bare colon ends the location.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['|', ':']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len().saturating_add(16));
    for character in text.chars() {
        if matches!(character, '|' | ':') {
            escaped.push('|');
        }
        escaped.push(character);
    }
    Cow::Owned(escaped)
}

fn until_nul(text: &[u8]) -> &[u8] {
    memchr::memchr(0, text).and_then(|end| text.get(..end)).unwrap_or(text)
}
