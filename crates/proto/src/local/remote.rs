//! What local programs ask remoted at `queue/sockets/remote`: one request and one answer a connection, each behind a
//! u32 little-endian length.
//!
//! ```text
//! {"command":..,"parameters":{..}}   ->  {"error":N,"message":"..","data":{..}}
//! <agent id> " " <target> " " <data> ->  what the agent answers, or "err .."
//! anything else                      ->  closed without a word
//! ```
//!
//! **Invariant:** order and form of the members are those of stock, since its callers were written against them.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod command;
mod stats;

use thiserror::Error;

pub use self::{
    command::{AgentsWanted, Command, CommandError, MAX_AGENTS, Section, answer, failure},
    stats::{AgentStats, ControlBreakdown, Received, Sent, Stats},
};

/// The longest request and the longest answer.
pub const MAX_FRAME_LEN: usize = 65_536;

/// A request, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// JSON for remoted itself; give it to [`Command::parse`].
    Json(&'a [u8]),
    /// A request to an agent.
    Agent {
        /// Its id, compared as text: `1` is unknown where `001` is known.
        id: &'a str,
        /// Target, space, data: any bytes, or none.
        text: &'a [u8],
    },
    /// Neither: the connection is closed without an answer.
    Nothing,
}

impl<'a> Request<'a> {
    /// Reads the payload of a frame.
    pub fn parse(payload: &'a [u8]) -> Self {
        if payload.first() == Some(&b'{') {
            return Self::Json(payload);
        }
        let split = memchr::memchr(b' ', payload).and_then(|space| payload.split_at_checked(space));
        let Some((id, rest)) = split else { return Self::Nothing };
        match std::str::from_utf8(id) {
            Ok(id) => Self::Agent {
                id,
                text: rest.strip_prefix(b" ").unwrap_or_default(),
            },
            Err(_) => Self::Nothing,
        }
    }
}

/// Why an agent's answer does not come; the text is what the local program gets in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No turn came in time.
    #[error("err Internal error")]
    Internal,
    /// The agent is not connected, has been silent for too long, or does not know requests.
    #[error("err Cannot send request")]
    CannotSend,
    /// It did not say that it heard the request, or said nothing else again and again.
    #[error("err Maximum attempts exceeded")]
    MaximumAttempts,
    /// It heard the request and did not answer.
    #[error("err Response timeout")]
    Timeout,
}

/// A payload behind its length.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(payload.len().saturating_add(4));
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The length that a header announces, unless no payload is that long.
pub fn payload_len(header: [u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(header))
        .ok()
        .filter(|length| *length <= MAX_FRAME_LEN)
}

#[cfg(test)]
mod tests;
