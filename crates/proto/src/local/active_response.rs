//! Orders to agents, as local programs drop them at `queue/alerts/ar`: one datagram each, nothing comes back.
//!
//! ```text
//! Wazuh layout   "(" any ") [" any "] " <three flags> " " <agent id> " " <body>
//! OSSEC layout   "(" any ") " any " "   <three flags> " " <agent id> " " <body>
//! ```
//!
//! | flag | values |
//! | --- | --- |
//! | 1 | `A`: all agents, whatever the id |
//! | 2 | `R`: the agent that the event is from; `!`: not an active response but another control message |
//! | 3 | `S`: the agent with this id |
//!
//! Any other letter means no, in its column only. **Invariant:** the parser accepts exactly what stock remoted does,
//! its slips included, since an order that is read another way ends at another agent.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod text;

use std::borrow::Cow;

use thiserror::Error;

pub use self::text::to_text;
use super::Layout;
use crate::transport::control::ToAgent;

/// The id that stands for "no id" in orders to everybody.
const NO_ID: &str = "(null)";

/// An order, read or to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order<'a> {
    /// Who gets it.
    pub audience: Audience<'a>,
    /// What kind of message it becomes.
    pub kind: Kind,
    /// What the agent gets, up to the first NUL.
    pub body: &'a [u8],
}

/// Who gets an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience<'a> {
    /// Every agent heard within the disconnection time.
    Everyone,
    /// The agent that an event came from. Ids are compared as text: `1` is unknown (1320) where `001` is known.
    EventAgent(Cow<'a, str>),
    /// One agent.
    Agent(Cow<'a, str>),
    /// Nobody: dropped without a word.
    Nobody,
}

/// What kind of message an order becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An active response, `#!-execd <body>`.
    ActiveResponse,
    /// Any other control message, `#!-<body>`: `force_reconnect`, `syscheck restart`.
    Control,
}

/// The datagram is no order (1310).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed order: expected `(..) [..] <flags> <agent id> <body>`")]
pub struct OrderError;

impl<'a> Order<'a> {
    /// Reads a datagram. `None` for an empty one, which stock passes over in silence.
    pub fn parse(layout: Layout, datagram: &'a [u8]) -> Result<Option<Self>, OrderError> {
        let text = memchr::memchr(0, datagram)
            .and_then(|end| datagram.get(..end))
            .unwrap_or(datagram);
        if text.is_empty() {
            return Ok(None);
        }
        Self::parse_text(layout, text).map(Some).ok_or(OrderError)
    }

    fn parse_text(layout: Layout, text: &'a [u8]) -> Option<Self> {
        // Stock skips two bytes behind each bracket, and one behind the flags, without looking at them.
        let rest = text.get(memchr::memchr(b')', text)?..)?.get(2..)?;
        let rest = match layout {
            Layout::Wazuh => rest.get(memchr::memchr(b']', rest)?..)?.get(2..)?,
            Layout::Ossec => rest.get(memchr::memchr(b' ', rest)?..)?.get(1..)?,
        };
        let ([first, second, third, _], rest) = rest.split_first_chunk::<4>()?;
        let (id, body) = rest.split_at_checked(memchr::memchr(b' ', rest)?)?;
        let id = || String::from_utf8_lossy(id);
        Some(Self {
            audience: match (first, second, third) {
                (b'A', _, _) => Audience::Everyone,
                (_, _, b'S') => Audience::Agent(id()),
                (_, b'R', _) => Audience::EventAgent(id()),
                _ => Audience::Nobody,
            },
            kind: if *second == b'!' {
                Kind::Control
            } else {
                Kind::ActiveResponse
            },
            body: body.strip_prefix(b" ")?,
        })
    }

    /// The message that the audience gets.
    pub fn message(&self) -> ToAgent<'a> {
        match self.kind {
            Kind::ActiveResponse => ToAgent::Execd(self.body),
            Kind::Control => ToAgent::Other(self.body),
        }
    }

    /// The datagram, without a NUL. `sender` is what stands in the round brackets, by custom the program's trade:
    /// `msg_to_agent`, `local_source`. A sender with `)` in it cannot be read back.
    ///
    /// It is the same in both layouts.
    pub fn to_datagram(&self, sender: &str) -> Vec<u8> {
        // An order that is no active response has no room for `R`.
        let (flags, id) = match (self.kind, &self.audience) {
            (Kind::ActiveResponse, Audience::Everyone) => ("ANN", NO_ID),
            (Kind::ActiveResponse, Audience::EventAgent(id)) => ("NRN", id.as_ref()),
            (Kind::ActiveResponse, Audience::Agent(id)) => ("NNS", id.as_ref()),
            (Kind::ActiveResponse, Audience::Nobody) => ("NNN", NO_ID),
            (Kind::Control, Audience::Everyone) => ("A!N", NO_ID),
            (Kind::Control, Audience::EventAgent(id) | Audience::Agent(id)) => ("N!S", id.as_ref()),
            (Kind::Control, Audience::Nobody) => ("N!N", NO_ID),
        };
        let mut datagram = format!("({sender}) [] {flags} {id} ").into_bytes();
        datagram.extend_from_slice(self.body);
        datagram
    }
}

impl Audience<'_> {
    /// The id of the one agent that is meant, if it is one.
    pub fn agent_id(&self) -> Option<&str> {
        match self {
            Self::EventAgent(id) | Self::Agent(id) => Some(id),
            Self::Everyone | Self::Nobody => None,
        }
    }
}

#[cfg(test)]
mod tests;
