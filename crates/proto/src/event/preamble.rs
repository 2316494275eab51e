//! What a signature covers: eight lines, and then the body as sent, byte for byte.
//!
//! No canonical form of JSON is needed, and a body cannot be taken to another subject, time or number. Sealing comes
//! first, so that whoever cannot open a body can still check it. Requests over NATS and the replies to them are signed
//! in the same way; see [`command`](crate::command).

use super::header;

const FIRST_LINE: &str = "MUSTER1";

/// The values that the preamble binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble<'a> {
    /// `Muster-Subject`.
    pub subject: &'a str,
    /// `Nats-Msg-Id`; has node, epoch and sequence in it.
    pub message_id: &'a str,
    /// `Muster-Kid`.
    pub key_id: &'a str,
    /// `Muster-Time`.
    pub time: &'a str,
    /// `Muster-Prev`.
    pub previous: &'a str,
    /// `Content-Type`.
    pub content_type: &'a str,
    /// `Muster-Enc`, if there is one.
    pub sealed: Option<&'a str>,
}

impl<'a> Preamble<'a> {
    /// From the headers of a message, if none is missing and none has a line end in it.
    pub fn of(header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let preamble = Self {
            subject: header(header::SUBJECT)?,
            message_id: header(header::MSG_ID)?,
            key_id: header(header::KEY_ID)?,
            time: header(header::TIME)?,
            previous: header(header::PREVIOUS)?,
            content_type: header(header::CONTENT_TYPE)?,
            sealed: header(header::SEALED),
        };
        preamble.is_clean().then_some(preamble)
    }

    fn values(&self) -> [&'a str; 7] {
        let sealed = self.sealed.unwrap_or("-");
        [
            self.subject,
            self.message_id,
            self.key_id,
            self.time,
            self.previous,
            self.content_type,
            sealed,
        ]
    }

    fn is_clean(&self) -> bool {
        self.values().iter().all(|value| !value.contains(['\r', '\n']))
    }

    /// The bytes that are signed.
    pub fn signed_bytes(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(body.len().saturating_add(400));
        bytes.extend_from_slice(FIRST_LINE.as_bytes());
        for value in self.values() {
            bytes.push(b'\n');
            bytes.extend_from_slice(value.as_bytes());
        }
        bytes.extend_from_slice(b"\n\n");
        bytes.extend_from_slice(body);
        bytes
    }
}
