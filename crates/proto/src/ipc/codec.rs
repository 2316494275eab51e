//! Frame and payload of our own messages. The only place that knows bincode.
//!
//! ```
//! use muster_proto::ipc::{Hello, codec};
//!
//! let bytes = codec::encode(1, &Hello::ours("remoted"))?;
//! let (frame, used) = codec::split(&bytes, codec::MAX_PAYLOAD_LEN)?.expect("one whole frame");
//! assert_eq!(used, bytes.len());
//! let hello: Hello = codec::decode(frame.payload)?;
//! assert_eq!(hello.name, "remoted");
//! # Ok::<(), codec::CodecError>(())
//! ```

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Version byte and length.
pub const HEADER_LEN: usize = 5;
/// The largest payload that any of our sockets takes: one event of the largest body, with room for its headers.
pub const MAX_PAYLOAD_LEN: usize = 2 * 1024 * 1024;

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The peer announced more than this socket takes.
    #[error("frame of {announced} bytes is over the limit of {limit}")]
    TooLong {
        /// Length in the header.
        announced: usize,
        /// What this reader takes.
        limit: usize,
    },
    /// The payload is not what it should be.
    #[error("frame does not decode: {0}")]
    Malformed(String),
    /// Bytes are left over behind the value.
    #[error("frame has {0} bytes behind its value")]
    Trailing(usize),
}

/// One frame, borrowed from the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The version that the payload is written in.
    pub version: u8,
    /// The bincode bytes.
    pub payload: &'a [u8],
}

/// Writes a whole frame.
pub fn encode<T: Serialize>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![version, 0, 0, 0, 0];
    bincode::serde::encode_into_std_write(value, &mut bytes, configuration())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    let announced = bytes.len().saturating_sub(HEADER_LEN);
    let length = u32::try_from(announced)
        .ok()
        .filter(|_| announced <= MAX_PAYLOAD_LEN)
        .ok_or(CodecError::TooLong {
            announced,
            limit: MAX_PAYLOAD_LEN,
        })?;
    if let Some(field) = bytes.get_mut(1..HEADER_LEN) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    Ok(bytes)
}

/// Takes the first frame off a buffer: the frame and how many bytes it used, or `None` while more must be read.
pub fn split(buffer: &[u8], limit: usize) -> Result<Option<(Frame<'_>, usize)>, CodecError> {
    let Some((&[version, a, b, c, d], rest)) = buffer.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let announced = payload_len([a, b, c, d], limit)?;
    Ok(rest
        .get(..announced)
        .map(|payload| (Frame { version, payload }, HEADER_LEN.saturating_add(announced))))
}

/// The payload length that a header's length field announces, if it is within the limit.
pub fn payload_len(field: [u8; 4], limit: usize) -> Result<usize, CodecError> {
    let announced = usize::try_from(u32::from_le_bytes(field)).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(CodecError::TooLong { announced, limit });
    }
    Ok(announced)
}

/// Reads a payload, which must be one value and nothing else.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(payload, configuration())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    match payload.len().saturating_sub(used) {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}

fn configuration() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_PAYLOAD_LEN>,
> {
    bincode::config::standard().with_limit::<MAX_PAYLOAD_LEN>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::Hello;

    #[test]
    fn announced_length_over_the_limit_is_refused_before_the_payload_is_there() {
        assert_eq!(
            split(&[1, 0xff, 0xff, 0xff, 0x7f], 100),
            Err(CodecError::TooLong {
                announced: 0x7fff_ffff,
                limit: 100
            })
        );
    }

    #[test]
    fn half_a_frame_is_not_an_error() {
        let bytes = encode(1, &Hello::ours("x")).expect("encodes");
        for length in 0..bytes.len() {
            assert_eq!(split(&bytes[..length], 1000), Ok(None));
        }
    }

    #[test]
    fn bytes_behind_the_value_are_refused() {
        let mut bytes = encode(1, &Hello::ours("x")).expect("encodes");
        bytes.push(0);
        assert_eq!(decode::<Hello>(&bytes[HEADER_LEN..]), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn hostile_length_inside_the_payload_is_an_error() {
        // A string that claims 2^60 bytes.
        let payload = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10];
        assert!(matches!(decode::<String>(&payload), Err(CodecError::Malformed(_))));
    }
}
