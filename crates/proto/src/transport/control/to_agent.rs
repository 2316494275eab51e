//! What the manager says.

use std::{borrow::Cow, io::Write};

use serde_json::{Value, json};

use super::{
    ACK, CLOSE_FILE, EXECD, FORCE_RECONNECT, HEADER, MANAGER_KEEPALIVE, REFUSAL, REQUEST, REQUEST_ACK, RequestId,
    SYSCHECK_RESTART, UP_FILE, until_nul,
};

/// The only file there is to push.
const MERGED: &[u8] = b" merged.mg\n";

/// A message to an agent.
///
/// Between a hello and its acknowledgement nothing but [`Ack`](Self::Ack) and [`Refusal`](Self::Refusal) may go to an
/// agent, and between [`UpFile`](Self::UpFile) and [`CloseFile`](Self::CloseFile) nothing it may not know: an OSSEC
/// agent drops the file for a request, every stock agent for a [`Keepalive`](Self::Keepalive).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent<'a> {
    /// Heard.
    Ack,
    /// A hello was refused, and why.
    Refusal(Cow<'a, str>),
    /// A merged file with this MD5 sum (32 lower-case hex digits) begins.
    UpFile {
        /// The sum of the whole file.
        md5: &'a str,
    },
    /// A piece of that file, without any header. See [`Pieces`](super::Pieces).
    Piece(&'a [u8]),
    /// The file is complete.
    CloseFile,
    /// An active response: JSON for agents from 4.2 on, text for older and for OSSEC ones.
    Execd(&'a [u8]),
    /// Connect anew.
    ForceReconnect,
    /// Scan files and configuration.
    SyscheckRestart,
    /// A request: target, space, data. Any bytes; without target and data a NUL stands in their place, as in stock.
    Request {
        /// The number that the answer will carry.
        id: RequestId,
        /// Target and data.
        text: &'a [u8],
    },
    /// The answer to a request has arrived (UDP only).
    RequestAck(RequestId),
    /// The manager is alive. Stock agents log it as unknown; [`Ack`](Self::Ack) does the same in silence.
    Keepalive {
        /// The agent's name.
        name: &'a str,
        /// Seconds since 1970.
        unix_seconds: u64,
    },
    /// Any other control message, without its `#!-`: orders that are passed on unread, such as `sca-dump ..`.
    Other(&'a [u8]),
}

impl<'a> ToAgent<'a> {
    /// The payload.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        self.write(&mut payload);
        payload
    }

    /// Puts the payload behind what is in the buffer.
    pub fn write(&self, payload: &mut Vec<u8>) {
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| payload.extend_from_slice(part));
        match self {
            Self::Ack => put(&[ACK]),
            Self::Refusal(message) => put(&[REFUSAL, json!({ "message": message }).to_string().as_bytes()]),
            Self::UpFile { md5 } => put(&[UP_FILE, md5.as_bytes(), MERGED]),
            Self::Piece(piece) => put(&[piece]),
            Self::CloseFile => put(&[CLOSE_FILE]),
            Self::Execd(body) => put(&[EXECD, body]),
            Self::ForceReconnect => put(&[FORCE_RECONNECT]),
            Self::SyscheckRestart => put(&[SYSCHECK_RESTART]),
            Self::Other(body) => put(&[HEADER, body]),
            // Writing to a Vec cannot fail.
            Self::Request { id, text: [] } => {
                put(&[REQUEST]);
                let _ = write!(payload, "{id}\0");
            }
            Self::Request { id, text } => {
                put(&[REQUEST]);
                let _ = write!(payload, "{id} ");
                payload.extend_from_slice(text);
            }
            Self::RequestAck(id) => Self::Request {
                id: *id,
                text: REQUEST_ACK,
            }
            .write(payload),
            Self::Keepalive { name, unix_seconds } => {
                put(&[MANAGER_KEEPALIVE]);
                let _ = write!(payload, "{name} {unix_seconds}");
            }
        }
    }

    /// Reads a payload, as an agent does.
    ///
    /// What an agent would log as unknown is [`Other`](Self::Other).
    pub fn parse(payload: &'a [u8]) -> Self {
        if !payload.starts_with(HEADER) {
            return Self::Piece(payload);
        }
        if let Some(rest) = payload.strip_prefix(REQUEST)
            && let Some(request) = parse_request(rest)
        {
            return request;
        }
        let payload = until_nul(payload);
        match payload {
            ACK => return Self::Ack,
            CLOSE_FILE => return Self::CloseFile,
            FORCE_RECONNECT => return Self::ForceReconnect,
            SYSCHECK_RESTART => return Self::SyscheckRestart,
            _ => {}
        }
        Self::parse_with_text(payload).unwrap_or(Self::Other(payload.strip_prefix(HEADER).unwrap_or_default()))
    }

    fn parse_with_text(payload: &'a [u8]) -> Option<Self> {
        if let Some(body) = payload.strip_prefix(EXECD) {
            return Some(Self::Execd(body));
        }
        if let Some(json) = payload.strip_prefix(REFUSAL) {
            return refusal(json);
        }
        if let Some(file) = payload.strip_prefix(UP_FILE) {
            return Some(Self::UpFile {
                md5: std::str::from_utf8(file.strip_suffix(MERGED)?).ok()?,
            });
        }
        let (name, time) = std::str::from_utf8(payload.strip_prefix(MANAGER_KEEPALIVE)?)
            .ok()?
            .rsplit_once(' ')?;
        Some(Self::Keepalive {
            name,
            unix_seconds: time.parse().ok()?,
        })
    }
}

fn refusal(json: &[u8]) -> Option<ToAgent<'_>> {
    match serde_json::from_slice::<Value>(json).ok()?.get_mut("message")?.take() {
        Value::String(message) => Some(ToAgent::Refusal(message.into())),
        _ => None,
    }
}

fn parse_request(rest: &[u8]) -> Option<ToAgent<'_>> {
    let end = memchr::memchr2(b' ', 0, rest)?;
    let (number, text) = rest.split_at_checked(end)?;
    let id = RequestId::from_text(number)?;
    Some(match text.get(1..)? {
        REQUEST_ACK => ToAgent::RequestAck(id),
        text => ToAgent::Request { id, text },
    })
}
