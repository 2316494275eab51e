//! Where a message ends in a stream. Pure: bytes in, lines out.
//!
//! Two ways are known, and told apart message by message: a line ends with a line feed (or a NUL), and a message whose
//! length stands in front of it, `<digits> <`. Only with the `<` of a priority behind it is a number taken for a
//! length, so that lines which begin with a number stay lines.
//!
//! **Invariant:** no more than [`MAX_LINE_LEN`] bytes of a message are kept, whatever a sender announces or leaves
//! open; the rest of a longer one is passed over.

/// The longest message; of a longer one, so much is taken.
pub const MAX_LINE_LEN: usize = 65_000;
/// Digits of a length: more than [`MAX_LINE_LEN`] has.
const MAX_DIGITS: usize = 7;

/// The state of one stream.
#[derive(Debug, Default)]
pub struct Splitter {
    kept: Vec<u8>,
    skip: Skip,
}

/// What of a message that was too long is still to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Skip {
    #[default]
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// Up to the end of the line.
    Line,
}

/// How the next message is framed.
enum Frame {
    /// The first so many bytes are its head, and so many follow.
    Counted { head: usize, length: usize },
    /// A line.
    Line,
    /// More bytes will tell.
    Unknown,
}

impl Splitter {
    /// Takes what was read, and gives each message that is complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut message: impl FnMut(&[u8])) {
        loop {
            bytes = self.pass_over(bytes);
            if bytes.is_empty() {
                return;
            }
            // What fits beside what is kept; a message that needs more is too long.
            let room = (MAX_LINE_LEN + MAX_DIGITS + 2).saturating_sub(self.kept.len()).max(1);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.kept.extend_from_slice(now);
            bytes = later;
            self.take_complete(&mut message);
        }
    }

    /// The stream has ended: what is kept is a message too.
    pub fn finish(&mut self, mut message: impl FnMut(&[u8])) {
        let kept = std::mem::take(&mut self.kept);
        if !kept.is_empty() {
            message(kept.get(..MAX_LINE_LEN).unwrap_or(&kept));
        }
        self.skip = Skip::Nothing;
    }

    /// How much of an unfinished message is kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    fn pass_over<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        match self.skip {
            Skip::Nothing => bytes,
            Skip::Bytes(count) => {
                let passed = count.min(bytes.len());
                self.skip = match count - passed {
                    0 => Skip::Nothing,
                    left => Skip::Bytes(left),
                };
                bytes.get(passed..).unwrap_or_default()
            }
            Skip::Line => match end_of_line(bytes) {
                Some(end) => {
                    self.skip = Skip::Nothing;
                    bytes.get(end + 1..).unwrap_or_default()
                }
                None => &[],
            },
        }
    }

    fn take_complete(&mut self, message: &mut impl FnMut(&[u8])) {
        loop {
            let used = self.take_until_skip(message);
            if used > 0 {
                self.kept.drain(..used.min(self.kept.len()));
            }
            if self.skip == Skip::Nothing {
                return;
            }
            // What was read behind the beginning of a message that is too long belongs to it first.
            let kept = std::mem::take(&mut self.kept);
            self.kept = self.pass_over(&kept).to_vec();
            if self.kept.is_empty() {
                return;
            }
        }
    }

    /// Gives what is complete, up to a message that is too long. How many bytes that used.
    fn take_until_skip(&mut self, message: &mut impl FnMut(&[u8])) -> usize {
        let mut from = 0;
        while self.skip == Skip::Nothing {
            let rest = self.kept.get(from..).unwrap_or_default();
            let used = match frame(rest) {
                Frame::Unknown => None,
                Frame::Counted { head, length } => {
                    let taken = length.min(MAX_LINE_LEN);
                    rest.get(head..head + taken).map(|whole| {
                        message(whole);
                        if length > taken {
                            self.skip = Skip::Bytes(length - taken);
                        }
                        head + taken
                    })
                }
                Frame::Line => match end_of_line(rest) {
                    Some(end) => {
                        message(rest.get(..end.min(MAX_LINE_LEN)).unwrap_or_default());
                        Some(end + 1)
                    }
                    None if rest.len() >= MAX_LINE_LEN => {
                        message(rest.get(..MAX_LINE_LEN).unwrap_or_default());
                        self.skip = Skip::Line;
                        Some(rest.len())
                    }
                    None => None,
                },
            };
            match used {
                Some(used) => from += used,
                None => break,
            }
        }
        from
    }
}

fn end_of_line(bytes: &[u8]) -> Option<usize> {
    memchr::memchr2(b'\n', 0, bytes)
}

fn frame(bytes: &[u8]) -> Frame {
    let digits = bytes
        .iter()
        .take(MAX_DIGITS + 1)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if digits > MAX_DIGITS || digits == 0 && !bytes.is_empty() || bytes.first() == Some(&b'0') {
        return Frame::Line;
    }
    match (bytes.get(digits), bytes.get(digits + 1)) {
        (None, _) | (Some(b' '), None) => Frame::Unknown,
        (Some(b' '), Some(b'<')) => bytes
            .get(..digits)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .map_or(Frame::Line, |length| Frame::Counted {
                head: digits + 1,
                length,
            }),
        _ => Frame::Line,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut messages) = (Splitter::default(), Vec::new());
        let mut take = |message: &[u8]| messages.push(String::from_utf8_lossy(message).into_owned());
        for piece in pieces {
            splitter.feed(piece, &mut take);
        }
        splitter.finish(take);
        messages
    }

    #[test]
    fn lines_and_counted_messages_may_follow_each_other() {
        for (stream, expected) in [
            ("<1>a\n<2>b\n", &["<1>a", "<2>b"][..]),
            ("4 <1>a4 <2>b", &["<1>a", "<2>b"]),
            ("6 <1>a\nb<2>c\n", &["<1>a\nb", "<2>c"]),
            ("<1>a\n4 <2>b<3>c\n", &["<1>a", "<2>b", "<3>c"]),
            ("12 monkeys\n123\n\n", &["12 monkeys", "123", ""]),
            ("no end", &["no end"]),
            ("0 <1>a\n", &["0 <1>a"]),
            ("12345678 <1>a\n", &["12345678 <1>a"]),
            ("99 <1>cut off", &["99 <1>cut off"]),
        ] {
            assert_eq!(split(&[stream.as_bytes()]), expected, "{stream:?}");
            let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            assert_eq!(split(&bytes), expected, "{stream:?}, byte by byte");
        }
    }

    #[test]
    fn of_a_message_that_is_too_long_the_beginning_is_taken_and_the_next_one_is_whole() {
        let long = "x".repeat(200_000);
        for stream in [
            format!("{long}\nnext\n"),
            format!("{} <{}next\n", long.len(), &long[1..]),
        ] {
            for size in [1000, 16_384, 70_000, 300_000] {
                let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
                let messages = split(&pieces);
                assert_eq!(messages.len(), 2, "in pieces of {size}");
                assert_eq!((messages[0].len(), messages[1].as_str()), (MAX_LINE_LEN, "next"));
            }
        }
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_pieces_do_not_matter(
            stream in "([a-z<>0-9 ]{0,12}\n|[0-9]{1,3} <[a-z]{0,9}|x{0,9})*",
            size in 1_usize..40,
        ) {
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            prop_assert_eq!(split(&pieces), split(&[stream.as_bytes()]));
        }

        #[test]
        fn nothing_makes_it_keep_more_than_a_message(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..20_000), 0..12)) {
            let mut splitter = Splitter::default();
            for piece in &pieces {
                splitter.feed(piece, |message| assert!(message.len() <= MAX_LINE_LEN));
                prop_assert!(splitter.kept() <= MAX_LINE_LEN + MAX_DIGITS + 2);
            }
        }
    }
}
