//! The analysis daemon's side of a datagram.

use std::borrow::Cow;

use thiserror::Error;

use super::until_nul;
use crate::local::Layout;

/// Shorter texts are no events.
const MIN_TEXT_LEN: usize = 4;

/// An event as the analysis daemon gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// `1` for log lines, `8` for files, and so on.
    pub queue: u8,
    /// Who and where, unescaped: `[001] (web-01) any->/var/log/syslog` from an agent, `wazuh-monitord` from a
    /// program on this machine.
    pub location: Cow<'a, [u8]>,
    /// What was said.
    pub message: &'a [u8],
}

/// The agent in a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Its id; the OSSEC layout has none.
    pub id: Option<&'a str>,
    /// Its name.
    pub name: &'a str,
    /// Its registered address.
    pub address: &'a str,
    /// Where on the agent.
    pub location: &'a [u8],
}

/// Why a datagram is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// Fewer than four bytes.
    #[error("datagram is too short for an event")]
    TooShort,
    /// The second byte is no colon.
    #[error("datagram does not begin with a queue character and a colon")]
    NoQueue,
    /// The location does not end.
    #[error("datagram has no colon behind its location")]
    NoMessage,
}

/// Reads a datagram, with or without its NUL.
pub fn parse(layout: Layout, datagram: &[u8]) -> Result<Received<'_>, DatagramError> {
    let text = until_nul(datagram);
    if text.len() < MIN_TEXT_LEN {
        return Err(DatagramError::TooShort);
    }
    let [queue, b':', text @ ..] = text else {
        return Err(DatagramError::NoQueue);
    };
    let end = match layout {
        Layout::Wazuh => bare_colon(text),
        Layout::Ossec => plain_colon(text),
    };
    let (location, message) = end
        .and_then(|end| text.split_at_checked(end))
        .ok_or(DatagramError::NoMessage)?;
    Ok(Received {
        queue: *queue,
        location: match layout {
            Layout::Wazuh => unescape(location),
            Layout::Ossec => Cow::Borrowed(location),
        },
        message: message.strip_prefix(b":").unwrap_or_default(),
    })
}

impl Received<'_> {
    /// The agent that the event is from, if it is not of this machine.
    pub fn origin(&self) -> Option<Origin<'_>> {
        let arrow = memchr::memmem::find(&self.location, b"->")?;
        let (source, location) = self.location.split_at_checked(arrow)?;
        let source = std::str::from_utf8(source).ok()?;
        let (id, source) = match source.strip_prefix('[') {
            Some(rest) => rest.split_once("] ").map(|(id, rest)| (Some(id), rest))?,
            None => (None, source),
        };
        let (name, address) = source.strip_prefix('(')?.split_once(") ")?;
        Some(Origin {
            id,
            name,
            address,
            location: location.strip_prefix(b"->")?,
        })
    }
}

/// The first colon that is not escaped.
fn bare_colon(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|byte| {
        let bare = *byte == b':' && !escaped;
        escaped = *byte == b'|' && !escaped;
        bare
    })
}

/// The first colon, for agents the first one behind the arrow: an IPv6 address is full of them.
fn plain_colon(text: &[u8]) -> Option<usize> {
    let skip = if text.starts_with(b"(") {
        memchr::memmem::find(text, b"->").unwrap_or(0)
    } else {
        0
    };
    let end = memchr::memchr(b':', text.get(skip..)?)?;
    skip.checked_add(end)
}

/// `||` as `|` and `|:` as `:`. Any other `|` stands for itself.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'|') {
        return Cow::Borrowed(text);
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = if *byte == b'|' {
            bytes.next_if(|next| matches!(next, b'|' | b':'))
        } else {
            None
        };
        plain.push(*escaped.unwrap_or(byte));
    }
    Cow::Owned(plain)
}
