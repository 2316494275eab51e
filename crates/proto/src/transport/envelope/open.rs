//! From sealed bytes to a payload.

use cbc::{
    Decryptor,
    cipher::{
        BlockModeDecrypt, InnerIvInit, KeyIvInit,
        block_padding::{NoPadding, Pkcs7},
    },
};
use flate2::{Decompress, FlushDecompress, Status};
use thiserror::Error;

use super::{
    super::{MAX_MESSAGE_LEN, counter::Counter},
    AES_IV, AES_TOKEN, BLOWFISH_IV, CHECKSUM_LEN, CryptoForm, INNER_HEADER_LEN, MIN_MESSAGE_LEN,
    inflate::{Inflate, MAX_STREAM_LEN},
};
use crate::keys::cipher::{CipherKeys, md5_hex};

/// Length of the IV in front of an OSSEC AES ciphertext, and of the noise it decrypts to.
const OSSEC_IV_LEN: usize = 16;

/// A message whose checksum was right.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'o> {
    /// How it was sealed: the form to answer in, and the hint for the next message.
    pub form: CryptoForm,
    /// The pair it carried; see [`verify`](super::super::counter::verify).
    pub counter: Counter,
    /// What was said. Empty is legal here.
    pub payload: &'o [u8],
}

/// Why a message does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It was not sealed with this key (1404): ask the key source, then close.
    #[error("wrong key or damaged ciphertext")]
    WrongKey,
    /// It was sealed with this key and is not right all the same, or is no message at all: close.
    #[error("corrupt message: {0}")]
    Corrupt(CorruptKind),
}

/// What is not right, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CorruptKind {
    /// Nothing behind the id.
    #[error("empty")]
    Empty,
    /// Neither `#AES:` nor `:` in front (1403).
    #[error("no cipher token")]
    Token,
    /// More ciphertext than fits a message. Framing and datagram sizes rule it out before.
    #[error("too long")]
    TooLong,
    /// The uncompressed form of long ago, which no living agent sends. Stock names it a wrong checksum (1406).
    #[error("uncompressed form is not supported")]
    Uncompressed,
    /// Not a whole zlib stream, or one of more than [`MAX_MESSAGE_LEN`] bytes (2202).
    #[error("does not decompress")]
    Inflate,
    /// Not even room for checksum and counters.
    #[error("too short")]
    TooShort,
    /// The checksum is another (1406).
    #[error("wrong checksum")]
    Checksum,
    /// The counters are not digits and colons (1403).
    #[error("malformed counters")]
    Counters,
}

impl CorruptKind {
    /// The number that stock logs give it, where they have one.
    pub fn log_number(self) -> Option<u16> {
        match self {
            Self::Empty | Self::TooShort | Self::TooLong => None,
            Self::Token | Self::Counters => Some(1403),
            Self::Uncompressed | Self::Checksum => Some(1406),
            Self::Inflate => Some(2202),
        }
    }
}

/// Opens messages, one after the other, without allocating for any of them. Make one per thread.
pub struct Opener {
    clear: Box<[u8]>,
    inflated: Box<[u8]>,
    inflate: Decompress,
    inflate_short: Inflate,
}

impl Opener {
    /// Allocates the scratch space, 128 kB and the decompressor.
    pub fn new() -> Self {
        Self {
            clear: vec![0; MAX_MESSAGE_LEN].into(),
            inflated: vec![0; MAX_MESSAGE_LEN].into(),
            inflate: Decompress::new(true),
            inflate_short: Inflate::new(),
        }
    }

    /// Opens what [`split`](super::split) found behind the id. `hint` is the form of the agent's last message, if
    /// one is known: it is tried first, which saves work and never changes counter, payload or failure. (The form
    /// itself can differ for a message with 17 and more `!`, which reads right in both AES forms and which no agent
    /// sends.)
    pub fn open(
        &mut self,
        keys: &CipherKeys,
        sealed: &[u8],
        hint: Option<CryptoForm>,
    ) -> Result<Opened<'_>, OpenError> {
        let (form, counter, len) = if let Some(ciphertext) = sealed.strip_prefix(AES_TOKEN) {
            self.open_aes(keys, ciphertext, hint)?
        } else {
            match sealed.split_first() {
                Some((b':', ciphertext)) => self.open_blowfish(keys, ciphertext)?,
                Some(_) => return Err(OpenError::Corrupt(CorruptKind::Token)),
                None => return Err(OpenError::Corrupt(CorruptKind::Empty)),
            }
        };
        let payload = self.inflated.get(MIN_MESSAGE_LEN..len).unwrap_or_default();
        Ok(Opened { form, counter, payload })
    }

    /// The two AES forms have the same key and token. With the constant IV the one form decrypts to text that
    /// begins with `!`, the other to 16 bytes of noise and then such text, because in CBC a block depends on the
    /// ciphertext block before it and on nothing else. So one decryption serves both; which it was, the checksum
    /// says. If neither, the failure of the constant-IV form is the one to report: a Wazuh message with a bad
    /// checksum must not turn into a wrong key.
    fn open_aes(
        &mut self,
        keys: &CipherKeys,
        ciphertext: &[u8],
        hint: Option<CryptoForm>,
    ) -> Result<(CryptoForm, Counter, usize), OpenError> {
        let room = self
            .clear
            .get_mut(..ciphertext.len())
            .ok_or(OpenError::Corrupt(CorruptKind::TooLong))?;
        let clear = Decryptor::<aes::Aes256Dec>::new(keys.aes().into(), AES_IV.into())
            .decrypt_padded_b2b::<Pkcs7>(ciphertext, room)
            .map_err(|_| OpenError::WrongKey)?;
        let behind_iv = clear.get(OSSEC_IV_LEN..).filter(|behind| behind.first() == Some(&b'!'));

        let scratch = &mut Inflater {
            inflate: &mut self.inflate,
            inflate_short: &mut self.inflate_short,
            inflated: &mut self.inflated,
        };
        if hint == Some(CryptoForm::OssecAes)
            && let Some(Ok((counter, len))) = behind_iv.map(|behind| scratch.read(behind))
        {
            return Ok((CryptoForm::OssecAes, counter, len));
        }
        match scratch.read(clear) {
            Ok((counter, len)) => Ok((CryptoForm::WazuhAes, counter, len)),
            Err(error) => match behind_iv.map(|behind| scratch.read(behind)) {
                Some(Ok((counter, len))) => Ok((CryptoForm::OssecAes, counter, len)),
                _ => Err(error),
            },
        }
    }

    fn open_blowfish(
        &mut self,
        keys: &CipherKeys,
        ciphertext: &[u8],
    ) -> Result<(CryptoForm, Counter, usize), OpenError> {
        let room = self
            .clear
            .get_mut(..ciphertext.len())
            .ok_or(OpenError::Corrupt(CorruptKind::TooLong))?;
        let tables = keys.blowfish();
        let clear = Decryptor::inner_iv_init(tables.cipher(), &BLOWFISH_IV.into())
            .decrypt_padded_b2b::<NoPadding>(ciphertext, room)
            .map_err(|_| OpenError::WrongKey)?;
        let (counter, len) = Inflater {
            inflate: &mut self.inflate,
            inflate_short: &mut self.inflate_short,
            inflated: &mut self.inflated,
        }
        .read(clear)?;
        keys.keep_blowfish(tables);
        Ok((CryptoForm::Blowfish, counter, len))
    }
}

impl Default for Opener {
    fn default() -> Self {
        Self::new()
    }
}

/// The part of an [`Opener`] behind the cipher, so that the clear text can stay borrowed from the other.
struct Inflater<'o> {
    inflate: &'o mut Decompress,
    inflate_short: &'o mut Inflate,
    inflated: &'o mut [u8],
}

impl Inflater<'_> {
    /// Checks a clear text: its counters, and the length of the message that lies in `inflated` then.
    fn read(&mut self, clear: &[u8]) -> Result<(Counter, usize), OpenError> {
        match clear.first() {
            Some(b'!') => {}
            Some(b':') => return Err(OpenError::Corrupt(CorruptKind::Uncompressed)),
            _ => return Err(OpenError::WrongKey),
        }
        // A zlib stream never begins with `!`, so the number of them does not matter.
        let padding = clear.iter().take_while(|byte| **byte == b'!').count();
        let len = self
            .inflate(clear.get(padding..).unwrap_or_default())
            .map_err(OpenError::Corrupt)?;
        let message = self.inflated.get(..len).unwrap_or_default();
        Ok((check(message).map_err(OpenError::Corrupt)?, len))
    }

    fn inflate(&mut self, stream: &[u8]) -> Result<usize, CorruptKind> {
        if stream.len() <= MAX_STREAM_LEN
            && let Some(len) = self.inflate_short.inflate(stream, self.inflated)
        {
            return Ok(len);
        }
        self.inflate.reset(true);
        match self.inflate.decompress(stream, self.inflated, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => usize::try_from(self.inflate.total_out()).map_err(|_| CorruptKind::Inflate),
            _ => Err(CorruptKind::Inflate),
        }
    }
}

/// Checks a whole message and reads its counters.
fn check(message: &[u8]) -> Result<Counter, CorruptKind> {
    if message.len() < MIN_MESSAGE_LEN {
        return Err(CorruptKind::TooShort);
    }
    let (checksum, inner) = message.split_at_checked(CHECKSUM_LEN).ok_or(CorruptKind::TooShort)?;
    if md5_hex(&[inner]) != checksum {
        return Err(CorruptKind::Checksum);
    }
    let header: &[u8; INNER_HEADER_LEN] = inner.first_chunk().ok_or(CorruptKind::TooShort)?;
    let [_, _, _, _, _, global @ .., b':', a, b, c, d, b':'] = header else {
        return Err(CorruptKind::Counters);
    };
    let global = number(global).ok_or(CorruptKind::Counters)?;
    let local = number(&[*a, *b, *c, *d]).ok_or(CorruptKind::Counters)?;
    Ok(Counter { global, local })
}

/// Reads at most ten digits, of which the low 32 bits count.
#[expect(clippy::cast_possible_truncation, reason = "stock code keeps the low 32 bits too")]
fn number(digits: &[u8]) -> Option<u32> {
    let mut value: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')));
    }
    Some(value as u32)
}
