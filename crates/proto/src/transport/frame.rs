//! Messages on a TCP stream: `u32` little-endian length, then that many bytes, in both directions.
//!
//! A length above [`MAX_FRAME_LEN`] ends the connection; exactly that much is legal, and so is zero. Both readers
//! here look at the header before they keep anything, so an announced length never becomes an allocation.

use thiserror::Error;

use super::MAX_MESSAGE_LEN;

/// The largest length that a header may announce.
pub const MAX_FRAME_LEN: usize = MAX_MESSAGE_LEN;
/// Bytes before each message.
pub const HEADER_LEN: usize = 4;

/// Why a stream cannot be read on. There is no way to find the next message: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The header announces more than [`MAX_FRAME_LEN`].
    #[error("message of {announced} bytes is over the limit of {MAX_FRAME_LEN}")]
    TooLong {
        /// The length in the header.
        announced: u32,
    },
}

/// What the front of a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole message, and the bytes behind it.
    Message {
        /// The message without its header; may be empty.
        message: &'a [u8],
        /// What follows it.
        rest: &'a [u8],
    },
    /// Not a whole message yet: at least this many bytes are missing (never zero).
    Partial {
        /// How many more bytes it takes to know more.
        missing: usize,
    },
}

/// Looks at the front of what was read so far.
///
/// ```
/// use muster_proto::transport::frame::{Split, split};
///
/// let read = b"\x02\0\0\0hi\x01\0\0\0";
/// let Split::Message { message, rest } = split(read)? else { unreachable!() };
/// assert_eq!(message, b"hi");
/// assert_eq!(split(rest)?, Split::Partial { missing: 1 });
/// # Ok::<(), muster_proto::transport::frame::FrameError>(())
/// ```
pub fn split(buffer: &[u8]) -> Result<Split<'_>, FrameError> {
    let Some((field, rest)) = buffer.split_first_chunk::<HEADER_LEN>() else {
        return Ok(Split::Partial {
            missing: HEADER_LEN.saturating_sub(buffer.len()),
        });
    };
    let len = message_len(*field)?;
    Ok(match rest.split_at_checked(len) {
        Some((message, rest)) => Split::Message { message, rest },
        None => Split::Partial {
            missing: len.saturating_sub(rest.len()),
        },
    })
}

/// The length that a header announces.
pub fn message_len(field: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let announced = u32::from_le_bytes(field);
    match usize::try_from(announced) {
        Ok(len) if len <= MAX_FRAME_LEN => Ok(len),
        _ => Err(FrameError::TooLong { announced }),
    }
}

/// The header of a message of this length. Lengths come from messages that were capped when they were made.
pub fn header(len: usize) -> [u8; HEADER_LEN] {
    debug_assert!(len <= MAX_FRAME_LEN, "no message is longer than {MAX_FRAME_LEN} bytes");
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

/// Puts a message with its header behind what is already there.
pub fn append(out: &mut Vec<u8>, message: &[u8]) {
    out.extend_from_slice(&header(message.len()));
    out.extend_from_slice(message);
}

/// A buffer that takes bytes as they are read and gives whole messages back.
///
/// It grows to what was pushed and not yet taken: push one read, take messages until there is none, read again.
/// Then it never holds more than one message and one read, and nothing at all between messages.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Where the first byte not yet given out lies.
    taken: usize,
}

impl FrameReader {
    /// An empty reader, which owns no memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was read.
    pub fn push(&mut self, read: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(read);
    }

    /// Takes the next whole message, or `None` when more must be read.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, FrameError> {
        match split(self.buffer.get(self.taken..).unwrap_or_default())? {
            Split::Message { message, .. } => {
                let start = self.taken.saturating_add(HEADER_LEN);
                let end = start.saturating_add(message.len());
                self.taken = end;
                Ok(self.buffer.get(start..end))
            }
            Split::Partial { .. } => Ok(None),
        }
    }

    /// How many bytes were pushed and not yet given out.
    pub fn pending(&self) -> usize {
        self.buffer.len().saturating_sub(self.taken)
    }

    /// Gives memory back when nothing is pending, for connections that stay idle.
    pub fn release(&mut self) {
        if self.pending() == 0 {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append(&mut out, message);
        out
    }

    #[test]
    fn longest_legal_message_passes() {
        let bytes = framed(&vec![7; MAX_FRAME_LEN]);
        assert!(matches!(split(&bytes), Ok(Split::Message { message, rest: [] }) if message.len() == MAX_FRAME_LEN));
    }

    #[test]
    fn announced_length_over_the_limit_is_refused_before_the_message_is_there() {
        let announced = 65_537_u32;
        assert_eq!(split(&announced.to_le_bytes()), Err(FrameError::TooLong { announced }));
        assert_eq!(split(&[0xff; 4]), Err(FrameError::TooLong { announced: u32::MAX }));
        let mut reader = FrameReader::new();
        reader.push(&announced.to_le_bytes());
        assert_eq!(reader.next_message(), Err(FrameError::TooLong { announced }));
    }

    #[test]
    fn empty_message_is_a_message() {
        assert_eq!(
            split(&[0; 4]),
            Ok(Split::Message {
                message: &[],
                rest: &[]
            })
        );
    }

    #[test]
    fn partial_says_how_much_is_missing() {
        assert_eq!(split(b""), Ok(Split::Partial { missing: 4 }));
        assert_eq!(split(b"\x05\0\0"), Ok(Split::Partial { missing: 1 }));
        assert_eq!(split(b"\x05\0\0\0ab"), Ok(Split::Partial { missing: 3 }));
    }

    #[test]
    fn reader_gives_the_same_messages_whatever_the_pieces() {
        let mut stream = Vec::new();
        let messages: [&[u8]; 4] = [b"one", b"", b"three", &[9; 5000]];
        for message in messages {
            append(&mut stream, message);
        }
        for piece in [1, 3, 7, 4096, stream.len()] {
            let mut reader = FrameReader::new();
            let mut seen = Vec::new();
            for chunk in stream.chunks(piece) {
                reader.push(chunk);
                while let Some(message) = reader.next_message().expect("legal") {
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(seen, messages, "pieces of {piece}");
            assert_eq!(reader.pending(), 0);
        }
    }

    #[test]
    fn released_reader_owns_no_memory_and_a_pending_one_keeps_its_bytes() {
        let mut reader = FrameReader::new();
        reader.push(&framed(b"whole"));
        reader.next_message().expect("legal");
        reader.release();
        assert_eq!(reader.buffer.capacity(), 0);
        reader.push(b"\x02\0\0");
        reader.release();
        assert_eq!(reader.pending(), 3);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_streams_never_panic_and_end_alike_whatever_the_pieces(
            stream in proptest::collection::vec(
                proptest::prop_oneof![4 => proptest::strategy::Just(0_u8), 1 => 0..9_u8, 1 => proptest::num::u8::ANY],
                0..200,
            ),
            piece in 1..50_usize,
        ) {
            let mut whole = Vec::new();
            let mut rest = &stream[..];
            let error = loop {
                match split(rest) {
                    Ok(Split::Message { message, rest: behind }) => {
                        whole.push(message.to_vec());
                        rest = behind;
                    }
                    Ok(Split::Partial { missing }) => {
                        assert!(missing > 0);
                        break None;
                    }
                    Err(error) => break Some(error),
                }
            };
            let mut reader = FrameReader::new();
            let mut seen = Vec::new();
            let mut failed = None;
            for chunk in stream.chunks(piece) {
                reader.push(chunk);
                while let Some(message) = reader.next_message().unwrap_or_else(|error| {
                    failed = Some(error);
                    None
                }) {
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(seen, whole);
            assert_eq!(failed, error);
        }
    }
}
