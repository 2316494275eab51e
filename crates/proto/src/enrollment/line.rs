//! Bytes of a connection to one request line.

use super::MAX_REQUEST_LEN;

/// Collects what a client sends until there is a line. It holds at most [`MAX_REQUEST_LEN`] bytes.
#[derive(Default)]
pub struct LineReader {
    received: zeroize::Zeroizing<Vec<u8>>,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Not yet a line.
    More,
    /// The text of the line: without its line feed, and only what stands before a NUL.
    Line(&'a [u8]),
    /// More than [`MAX_REQUEST_LEN`] bytes and no line feed among the first of them. The client is not worth an
    /// answer.
    TooLong,
}

impl LineReader {
    /// Takes the next bytes. What follows the line feed is not looked at.
    pub fn push(&mut self, bytes: &[u8]) -> Progress<'_> {
        let room = MAX_REQUEST_LEN.saturating_sub(self.received.len());
        let (taken, over) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        let line_feed = memchr::memchr(b'\n', taken).map(|at| self.received.len().saturating_add(at));
        self.received.extend_from_slice(taken);
        match line_feed {
            Some(end) => {
                let line = self.received.get(..end).unwrap_or_default();
                Progress::Line(line.split(|byte| *byte == 0).next().unwrap_or_default())
            }
            None if over.is_empty() => Progress::More,
            None => Progress::TooLong,
        }
    }

    /// Whether anything came at all: a client that connects and goes is no error.
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_ends_at_its_line_feed_and_what_follows_is_ignored() {
        assert_eq!(
            LineReader::default().push(b"OSSEC A:'a1'\r\nmore\n"),
            Progress::Line(b"OSSEC A:'a1'\r")
        );
    }

    #[test]
    fn the_text_ends_at_a_nul() {
        assert_eq!(
            LineReader::default().push(b"OSSEC A:'ab\0cd'\n"),
            Progress::Line(b"OSSEC A:'ab")
        );
    }

    #[test]
    fn the_longest_line_is_taken_and_one_byte_more_is_not() {
        let longest = vec![b'x'; MAX_REQUEST_LEN - 1];
        let mut reader = LineReader::default();
        assert_eq!(reader.push(&longest), Progress::More);
        assert_eq!(reader.push(b"\n"), Progress::Line(&longest));

        let mut reader = LineReader::default();
        reader.push(&longest);
        assert_eq!(reader.push(b"x"), Progress::More);
        assert_eq!(reader.push(b"\n"), Progress::TooLong);
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(
            bytes in prop::collection::vec(prop::sample::select(b"ab'\0\n".as_slice()), 1..60),
            cuts in prop::collection::vec(1usize..7, 1..60),
        ) {
            let mut whole = LineReader::default();
            let expected = match whole.push(&bytes) { Progress::Line(line) => Some(line.to_vec()), _ => None };
            let (mut pieces, mut rest, mut found) = (LineReader::default(), bytes.as_slice(), None);
            for cut in cuts.into_iter().cycle() {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                rest = behind;
                if let Progress::Line(line) = pieces.push(piece) {
                    found = Some(line.to_vec());
                    break;
                }
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
