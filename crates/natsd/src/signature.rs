//! What a signature covers, and how one is checked.
//!
//! Signed is a preamble of eight lines and then the body as sent, byte for byte: no canonical form of JSON is needed, and
//! a body cannot be taken to another subject, time or number. Sealing comes first, so that whoever cannot open a body
//! can still check it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use muster_proto::event::header;

const PREAMBLE: &str = "MUSTER1";

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
        let mut bytes = Vec::with_capacity(400 + body.len());
        bytes.extend_from_slice(PREAMBLE.as_bytes());
        for value in self.values() {
            bytes.push(b'\n');
            bytes.extend_from_slice(value.as_bytes());
        }
        bytes.extend_from_slice(b"\n\n");
        bytes.extend_from_slice(body);
        bytes
    }
}

/// A public key from its text: an nkey of type U.
pub fn public_key(key_id: &str) -> Option<VerifyingKey> {
    let (_, raw) = nkeys::from_public_key(key_id)
        .ok()
        .filter(|_| key_id.starts_with('U'))?;
    VerifyingKey::from_bytes(&raw).ok()
}

/// Whether a signature, as text, is that key's for these bytes.
pub fn verifies(key: &VerifyingKey, signed: &[u8], signature: &str) -> bool {
    let bytes = URL_SAFE_NO_PAD.decode(signature).ok();
    bytes
        .and_then(|bytes| Signature::from_slice(&bytes).ok())
        .is_some_and(|signature| key.verify_strict(signed, &signature).is_ok())
}

/// A signature as text.
pub(crate) fn text(signature: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(signature)
}
