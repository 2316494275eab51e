//! From a payload to sealed bytes.

use std::io::Write;

use cbc::{
    Encryptor,
    cipher::{
        BlockModeEncrypt, InnerIvInit, KeyIvInit,
        block_padding::{NoPadding, Pkcs7},
    },
};
use flate2::{Compress, Compression, FlushCompress, Status};
use thiserror::Error;

use super::{
    super::{
        MAX_MESSAGE_LEN, MAX_PAYLOAD_LEN,
        counter::{Counter, MAX_LOCAL},
        frame,
    },
    AES_IV, AES_TOKEN, BLOWFISH_IV, CHECKSUM_LEN, CryptoForm,
};
use crate::keys::cipher::{CipherKeys, md5_hex};

/// Up to here a message goes out as it is, in a zlib stream of one stored block: setting up the compressor costs
/// more time than it would save bytes. Acks, requests and most orders are shorter; pieces of files are longer.
const STORED_MESSAGE_LEN: usize = 256;
/// Room before the zlib stream for its padding.
const MAX_PADDING: usize = 8;
/// What a stored zlib stream adds: header, block header, checksum.
const STORED_OVERHEAD: usize = 11;
/// The most that deflate adds to what it cannot compress, with a margin.
const DEFLATE_SLACK: usize = 1024;
/// What a cipher adds at most: a block of padding, and an IV in front.
const CIPHER_SLACK: usize = 32;

/// Why a payload cannot be sent. All of these are mistakes of the caller or of an operator's order, not of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SealError {
    /// An empty payload says nothing, and stock senders refuse it.
    #[error("nothing to send")]
    Empty,
    /// The payload is longer than [`MAX_PAYLOAD_LEN`], or does not fit [`MAX_MESSAGE_LEN`] once sealed.
    #[error("payload of {len} bytes is too long to be sent; at most {MAX_PAYLOAD_LEN} fit")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The local counter has more than four digits.
    #[error("counter {local} does not fit four digits")]
    Counter {
        /// The number that does not fit.
        local: u32,
    },
}

/// How much work goes into making a message small. Every receiver takes them all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Short messages go uncompressed, long ones at zlib's usual level: what a manager wants.
    #[default]
    Balanced,
    /// The best level for everything, as stock agents do: what a simulated agent wants.
    Best,
}

/// Seals messages, one after the other, without allocating for any of them. Make one per thread.
pub struct Sealer {
    effort: Effort,
    deflate: Compress,
    message: Vec<u8>,
    /// [`MAX_PADDING`] bytes of room and then the zlib stream.
    packed: Box<[u8]>,
    /// TCP header, id, token, IV, ciphertext.
    out: Vec<u8>,
}

impl Sealer {
    /// A sealer with [`Effort::Balanced`].
    pub fn new() -> Self {
        Self::with_effort(Effort::Balanced)
    }

    /// Allocates the scratch space, 200 kB and the compressor.
    pub fn with_effort(effort: Effort) -> Self {
        let level = match effort {
            Effort::Balanced => Compression::default(),
            Effort::Best => Compression::best(),
        };
        Self {
            effort,
            deflate: Compress::new(level, true),
            message: Vec::with_capacity(MAX_MESSAGE_LEN),
            packed: vec![0; MAX_PADDING + MAX_MESSAGE_LEN + DEFLATE_SLACK].into(),
            out: Vec::with_capacity(MAX_MESSAGE_LEN + DEFLATE_SLACK),
        }
    }

    /// Seals a payload. `random` makes equal payloads look different; `iv` is used by [`CryptoForm::OssecAes`] only
    /// and must be unpredictable there. An agent without a fixed address puts its id in front; a manager never does.
    ///
    /// The result has no TCP header; [`Sealer::framed`] gives the same message with one.
    #[expect(
        clippy::too_many_arguments,
        reason = "every value of the wire, and none has a default"
    )]
    pub fn seal(
        &mut self,
        keys: &CipherKeys,
        form: CryptoForm,
        counter: Counter,
        random: u16,
        iv: [u8; 16],
        payload: &[u8],
        id_prefix: Option<&str>,
    ) -> Result<&[u8], SealError> {
        if payload.is_empty() {
            return Err(SealError::Empty);
        }
        if payload.len() > MAX_PAYLOAD_LEN {
            return Err(SealError::TooLong { len: payload.len() });
        }
        if counter.local > MAX_LOCAL {
            return Err(SealError::Counter { local: counter.local });
        }
        self.write_message(counter, random, payload);
        let packed = if self.effort == Effort::Balanced && self.message.len() <= STORED_MESSAGE_LEN {
            self.store()
        } else {
            self.deflate()
        };
        let packed = packed.ok_or(SealError::TooLong { len: payload.len() })?;
        self.encrypt(keys, form, iv, packed, id_prefix)
            .ok_or(SealError::TooLong { len: payload.len() })?;
        Ok(self.sealed())
    }

    /// Seals a zlib stream made by somebody else, so that two implementations can be compared byte for byte.
    pub fn seal_stream(
        &mut self,
        keys: &CipherKeys,
        form: CryptoForm,
        iv: [u8; 16],
        stream: &[u8],
        id_prefix: Option<&str>,
    ) -> Result<&[u8], SealError> {
        let too_long = SealError::TooLong { len: stream.len() };
        let room = self
            .packed
            .get_mut(MAX_PADDING..)
            .and_then(|room| room.get_mut(..stream.len()));
        room.ok_or(too_long)?.copy_from_slice(stream);
        self.encrypt(keys, form, iv, stream.len(), id_prefix).ok_or(too_long)?;
        Ok(self.sealed())
    }

    /// The message sealed last, with its TCP header. Empty before the first one and after a failed one.
    pub fn framed(&self) -> &[u8] {
        &self.out
    }

    fn sealed(&self) -> &[u8] {
        self.out.get(frame::HEADER_LEN..).unwrap_or_default()
    }

    fn write_message(&mut self, counter: Counter, random: u16, payload: &[u8]) {
        let message = &mut self.message;
        message.clear();
        message.resize(CHECKSUM_LEN, 0);
        // Writing to a Vec cannot fail.
        let _ = write!(message, "{random:05}{:010}:{:04}:", counter.global, counter.local);
        message.extend_from_slice(payload);
        if let Some((checksum, inner)) = message.split_first_chunk_mut::<CHECKSUM_LEN>() {
            *checksum = md5_hex(&[inner]);
        }
    }

    /// Wraps the message in a zlib stream of one stored block.
    fn store(&mut self) -> Option<usize> {
        let len = u16::try_from(self.message.len()).ok()?;
        let total = self.message.len().checked_add(STORED_OVERHEAD)?;
        let mut room = self.packed.get_mut(MAX_PADDING..)?.get_mut(..total)?;
        let [low, high] = len.to_le_bytes();
        // zlib header for "fastest", then: last block, stored, its length and the complement of that.
        room.write_all(&[0x78, 0x01, 0x01, low, high, !low, !high]).ok()?;
        room.write_all(&self.message).ok()?;
        room.write_all(&adler32(&self.message).to_be_bytes()).ok()?;
        Some(total)
    }

    fn deflate(&mut self) -> Option<usize> {
        self.deflate.reset();
        let room = self.packed.get_mut(MAX_PADDING..)?;
        match self.deflate.compress(&self.message, room, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => usize::try_from(self.deflate.total_out()).ok(),
            _ => None,
        }
    }

    /// Pads the zlib stream that lies in `packed`, encrypts it and puts everything else in front.
    /// `None` if the result is too long for a message.
    fn encrypt(
        &mut self,
        keys: &CipherKeys,
        form: CryptoForm,
        iv: [u8; 16],
        stream_len: usize,
        id_prefix: Option<&str>,
    ) -> Option<()> {
        self.out.clear();
        let padding = padding_len(stream_len);
        let start = MAX_PADDING.checked_sub(padding)?;
        self.packed.get_mut(start..MAX_PADDING)?.fill(b'!');
        let clear = self.packed.get(start..MAX_PADDING.checked_add(stream_len)?)?;

        let out = &mut self.out;
        out.extend_from_slice(&[0; frame::HEADER_LEN]);
        if let Some(id) = id_prefix {
            out.push(b'!');
            out.extend_from_slice(id.as_bytes());
            out.push(b'!');
        }
        match form {
            CryptoForm::WazuhAes => out.extend_from_slice(AES_TOKEN),
            CryptoForm::OssecAes => {
                out.extend_from_slice(AES_TOKEN);
                out.extend_from_slice(&iv);
            }
            CryptoForm::Blowfish => out.push(b':'),
        }
        let ciphertext = out.len();
        out.resize(ciphertext.checked_add(clear.len())?.checked_add(CIPHER_SLACK)?, 0);
        let room = out.get_mut(ciphertext..)?;
        let written = match form {
            CryptoForm::WazuhAes => encrypt_aes(keys, AES_IV, clear, room)?,
            CryptoForm::OssecAes => encrypt_aes(keys, &iv, clear, room)?,
            CryptoForm::Blowfish => {
                let tables = keys.blowfish();
                let written = Encryptor::inner_iv_init(tables.cipher(), &BLOWFISH_IV.into())
                    .encrypt_padded_b2b::<NoPadding>(clear, room)
                    .ok()?
                    .len();
                keys.keep_blowfish(tables);
                written
            }
        };
        out.truncate(ciphertext.checked_add(written)?);
        let len = out.len().checked_sub(frame::HEADER_LEN)?;
        if len > MAX_MESSAGE_LEN {
            out.clear();
            return None;
        }
        *out.first_chunk_mut()? = frame::header(len);
        Some(())
    }
}

impl Default for Sealer {
    fn default() -> Self {
        Self::new()
    }
}

fn encrypt_aes(keys: &CipherKeys, iv: &[u8; 16], clear: &[u8], room: &mut [u8]) -> Option<usize> {
    let written = Encryptor::<aes::Aes256Enc>::new(keys.aes().into(), iv.into())
        .encrypt_padded_b2b::<Pkcs7>(clear, room)
        .ok()?;
    Some(written.len())
}

/// How many `!` go before a zlib stream: to the next multiple of 8, and 8 when it already is one.
fn padding_len(stream_len: usize) -> usize {
    MAX_PADDING.saturating_sub(stream_len % MAX_PADDING)
}

/// The checksum at the end of a zlib stream (RFC 1950).
pub(super) fn adler32(data: &[u8]) -> u32 {
    const BASE: u32 = 65_521;
    // The most bytes for which the sums stay within 32 bits.
    const RUN: usize = 5552;
    let (mut a, mut b): (u32, u32) = (1, 0);
    for run in data.chunks(RUN) {
        for byte in run {
            a = a.wrapping_add(u32::from(*byte));
            b = b.wrapping_add(a);
        }
        a %= BASE;
        b %= BASE;
    }
    (b << 16) | a
}
