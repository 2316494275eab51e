//! Control messages: payloads that begin with `#!-`.
//!
//! Trailing spaces count: both sides compare `#!-agent ack ` and `#!-agent shutdown ` as whole strings, space and
//! all. Apart from answers to requests, control messages are text that ends at the first NUL.

mod from_agent;
mod pieces;
mod to_agent;

use std::fmt;

pub use self::{
    from_agent::{FromAgent, StartupVerdict, startup_verdict},
    pieces::{MAX_PIECE_LEN, Pieces},
    to_agent::ToAgent,
};

/// What every control message begins with; everything else is an event, or a piece of a file.
pub const HEADER: &[u8] = b"#!-";
/// An agent's hello; JSON with its version may follow.
pub const STARTUP: &[u8] = b"#!-agent startup ";
/// An agent's goodbye.
pub const SHUTDOWN: &[u8] = b"#!-agent shutdown ";
/// The manager's answer to hellos and keepalives, and harmless when nobody asked.
pub const ACK: &[u8] = b"#!-agent ack ";
/// The literal heartbeat of the manager, which stock agents log as unknown: name and time follow.
pub const MANAGER_KEEPALIVE: &[u8] = b"#!-agent keepalive ";
/// The manager's refusal of a hello; JSON with a message follows.
pub const REFUSAL: &[u8] = b"#!-err ";
/// Begins a file; checksum and name follow.
pub const UP_FILE: &[u8] = b"#!-up file ";
/// Ends a file.
pub const CLOSE_FILE: &[u8] = b"#!-close file ";
/// An active response; its text follows.
pub const EXECD: &[u8] = b"#!-execd ";
/// An order to connect anew.
pub const FORCE_RECONNECT: &[u8] = b"#!-force_reconnect";
/// An order to scan files and configuration.
pub const SYSCHECK_RESTART: &[u8] = b"#!-syscheck restart";
/// A request to an agent, and its answer; both go on with the request's number and a space.
pub const REQUEST: &[u8] = b"#!-req ";
/// What is said in place of an answer to say that the other side was heard.
pub const REQUEST_ACK: &[u8] = b"ack";

/// What a hello of too high a version is answered, in the words stock agents show to their operators.
pub const HIGHER_VERSION: &str = "Agent version must be lower or equal to manager version";
/// What a hello is answered that has JSON without a version.
pub const NO_VERSION: &str = "Couldn't retrieve version";

/// Whether a payload is a control message.
pub fn is_control(payload: &[u8]) -> bool {
    payload.starts_with(HEADER)
}

/// The number of a request: 32 random bits, written as lower-case hex without leading zeros.
///
/// It ties an answer to its question. An answer under a number that nobody waits for is dropped, which is also how
/// the repeats of UDP agents go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u32);

impl RequestId {
    /// Reads the text on the wire. Anything but the one spelling of a number is nobody's.
    pub fn from_text(text: &[u8]) -> Option<Self> {
        let digits = std::str::from_utf8(text).ok()?;
        let id = Self(u32::from_str_radix(digits, 16).ok()?);
        (id.to_string() == digits).then_some(id)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:x}", self.0)
    }
}

/// Text up to its first NUL, which is where it ends for the C programs on the other side.
fn until_nul(text: &[u8]) -> &[u8] {
    memchr::memchr(0, text).and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(test)]
mod tests;
