//! One message: who sends it, how it is sealed, and what is inside.
//!
//! ```text
//! packet   = [ "!" id "!" ] sealed           the id only from agents without a fixed address of their own
//! sealed   = "#AES:" ciphertext              Wazuh AES: AES-256-CBC, the same IV every time, PKCS#7
//!          | "#AES:" iv ciphertext           OSSEC AES: the same with 16 random bytes as IV
//!          | ":" ciphertext                  Blowfish-CBC, the same IV every time, no padding of its own
//! clear    = 1..8 "!", zlib( message )       a multiple of 8 bytes
//! message  = md5hex( inner ) inner
//! inner    = 5 random digits, global (10 digits) ":" local (4 digits) ":" payload
//! ```
//!
//! [`split`] takes the packet apart without a key, [`Opener`] does the rest; [`Sealer`] goes the other way.
//!
//! **Invariant:** a payload leaves [`Opener::open`] only if the checksum inside the decrypted text is right, and
//! what a failure is called follows the stock order of checks exactly, since the answer to a wrong key (ask the key
//! source, close) is another than to a corrupt message (close).

mod inflate;
mod open;
mod seal;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    open::{CorruptKind, OpenError, Opened, Opener},
    seal::{Effort, SealError, Sealer},
};

/// The most digits that an id between `!` may have. Stock code has no limit; ids have three to eight digits.
pub const MAX_ID_LEN: usize = 64;

/// What stands before the ciphertext of both AES forms.
const AES_TOKEN: &[u8] = b"#AES:";
/// The IV of Wazuh's AES form, for every message.
const AES_IV: &[u8; 16] = b"FEDCBA0987654321";
/// The IV of Blowfish, for every message.
const BLOWFISH_IV: [u8; 8] = [0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10];
/// Length of the checksum in front of the inner text.
const CHECKSUM_LEN: usize = 32;
/// Random digits, global, colon, local, colon.
const INNER_HEADER_LEN: usize = 21;
/// The shortest message: an empty payload.
const MIN_MESSAGE_LEN: usize = CHECKSUM_LEN + INNER_HEADER_LEN;

/// How a message is sealed. An agent is answered in the form of its latest message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CryptoForm {
    /// AES-256 with the constant IV: Wazuh agents.
    WazuhAes,
    /// AES-256 with a random IV in front of the ciphertext: OSSEC 4 agents.
    OssecAes,
    /// Blowfish: OSSEC 3 agents, and all others by option.
    Blowfish,
}

impl CryptoForm {
    /// The word in logs, stores and event bodies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WazuhAes => "wazuh-aes",
            Self::OssecAes => "ossec-aes",
            Self::Blowfish => "blowfish",
        }
    }

    /// The form of a word, as a store gives it back.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::WazuhAes, Self::OssecAes, Self::Blowfish]
            .into_iter()
            .find(|form| form.as_str() == word)
    }
}

impl fmt::Display for CryptoForm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A packet, taken apart without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The digits between the two `!`, which may be none; `None` for a packet that does not begin with `!`, whose
    /// sender is known by its address only.
    pub id: Option<&'a str>,
    /// Token and ciphertext. Empty when nothing follows the id; find the agent first, then drop the message.
    pub sealed: &'a [u8],
}

/// Why a packet cannot be taken apart. Close the connection; nobody is asked for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// No second `!` directly behind the digits (1403, agent unknown).
    #[error("packet begins with `!` and no id follows")]
    Malformed,
    /// More than [`MAX_ID_LEN`] digits.
    #[error("packet has an id of more than {MAX_ID_LEN} digits")]
    IdTooLong,
}

/// Takes a packet apart.
///
/// ```
/// use muster_proto::transport::envelope::split;
///
/// let envelope = split(b"!001!#AES:...")?;
/// assert_eq!(envelope.id, Some("001"));
/// assert_eq!(envelope.sealed, b"#AES:...");
/// assert_eq!(split(b":...")?.id, None);
/// # Ok::<(), muster_proto::transport::envelope::EnvelopeError>(())
/// ```
pub fn split(packet: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    let Some(rest) = packet.strip_prefix(b"!") else {
        return Ok(Envelope {
            id: None,
            sealed: packet,
        });
    };
    let digits = rest
        .iter()
        .take(MAX_ID_LEN)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (id, rest) = rest.split_at_checked(digits).unwrap_or((&[], rest));
    match rest.split_first() {
        Some((b'!', sealed)) => {
            let id = std::str::from_utf8(id).map_err(|_| EnvelopeError::Malformed)?;
            Ok(Envelope { id: Some(id), sealed })
        }
        Some((byte, _)) if byte.is_ascii_digit() => Err(EnvelopeError::IdTooLong),
        _ => Err(EnvelopeError::Malformed),
    }
}

/// Whether a packet asks only whether somebody is there. It is answered with [`PONG`] before anything else, and
/// whatever follows the five bytes does not matter. Behind an id it is no ping but a malformed message.
pub fn is_ping(packet: &[u8]) -> bool {
    packet.starts_with(PING)
}

/// The question, in lower case only.
pub const PING: &[u8] = b"#ping";
/// The answer to a ping.
pub const PONG: &[u8] = b"#pong";
