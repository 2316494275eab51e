//! Decompression of short messages, which is most of what opening them costs.
//!
//! A general decompressor is made for long streams: it builds large tables, which pay off over many symbols and not over
//! the hundred of a log line. Here tables are no larger than a message's longest usual code.
//!
//! **Invariant:** what comes out is what zlib would give, or nothing: the stream's own checksum is verified, and whoever
//! gets nothing asks zlib, whose word counts. So nothing here decides what is valid.

use super::seal::adler32;

/// Longer streams are better off with zlib.
pub(super) const MAX_STREAM_LEN: usize = 2048;
/// The longest code that deflate knows.
const MAX_CODE_LEN: usize = 15;
/// Codes up to this length are found in one look.
const MAX_TABLE_BITS: u32 = 9;
const TABLE_LEN: usize = 1 << MAX_TABLE_BITS;
const LITERALS: usize = 288;
const DISTANCES: usize = 32;
/// More a stream may not announce.
const MAX_LITERALS: usize = 286;
const END_OF_BLOCK: u16 = 256;
/// The order in which the lengths of the code of code lengths come.
const ORDER: [u8; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// Length and extra bits of each symbol from 257 on.
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// Distance and extra bits of each symbol.
const DISTANCE: [(u16, u8); 30] = [
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 1),
    (7, 1),
    (9, 2),
    (13, 2),
    (17, 3),
    (25, 3),
    (33, 4),
    (49, 4),
    (65, 5),
    (97, 5),
    (129, 6),
    (193, 6),
    (257, 7),
    (385, 7),
    (513, 8),
    (769, 8),
    (1025, 9),
    (1537, 9),
    (2049, 10),
    (3073, 10),
    (4097, 11),
    (6145, 11),
    (8193, 12),
    (12289, 12),
    (16385, 13),
    (24577, 13),
];

/// A prefix code: a table for short codes, and counts for the rest.
struct Code {
    /// `symbol << 4 | length` at every number that begins with the code, bits reversed; 0: longer, or none.
    table: Box<[u16; TABLE_LEN]>,
    bits: u32,
    count: [u16; MAX_CODE_LEN + 1],
    symbols: Box<[u16; LITERALS]>,
}

/// Decompresses short streams, one after the other, without allocating for any of them.
pub(super) struct Inflate {
    literals: Code,
    distances: Code,
}

impl Inflate {
    pub(super) fn new() -> Self {
        Self {
            literals: Code::new(),
            distances: Code::new(),
        }
    }

    /// The length of what the zlib stream holds, now in `out`; `None` if it is damaged, too long, or of a kind that is
    /// left to zlib.
    pub(super) fn inflate(&mut self, stream: &[u8], out: &mut [u8]) -> Option<usize> {
        let (header, deflated) = stream.split_first_chunk::<2>()?;
        let [method, flags] = *header;
        // Deflate with a window larger than any stream here; with a smaller one zlib refuses some distances.
        let is_deflate = method == 0x78 && flags & 0x20 == 0;
        if !is_deflate || u16::from_be_bytes(*header) % 31 != 0 {
            return None;
        }
        let mut bits = Bits::new(deflated);
        let mut len = 0;
        loop {
            let is_last = bits.take(1)? == 1;
            match bits.take(2)? {
                1 => self.read_fixed_codes()?,
                2 => self.read_codes(&mut bits)?,
                _ => return None,
            }
            len = self.read_block(&mut bits, out, len)?;
            if is_last {
                break;
            }
        }
        (adler32(out.get(..len)?) == bits.checksum()?).then_some(len)
    }

    fn read_fixed_codes(&mut self) -> Option<()> {
        let mut lengths = [8; LITERALS];
        lengths.get_mut(144..256)?.fill(9);
        lengths.get_mut(256..280)?.fill(7);
        self.literals.build(&lengths)?;
        self.distances.build(&[5; DISTANCES])
    }

    fn read_codes(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        let literals = usize::try_from(bits.take(5)?).ok()?.checked_add(257)?;
        let distances = usize::try_from(bits.take(5)?).ok()?.checked_add(1)?;
        let used = usize::try_from(bits.take(4)?).ok()?.checked_add(4)?;
        if literals > MAX_LITERALS || distances > DISTANCE.len() {
            return None;
        }
        let mut lengths = [0_u8; 19];
        for place in ORDER.iter().take(used) {
            *lengths.get_mut(usize::from(*place))? = u8::try_from(bits.take(3)?).ok()?;
        }
        self.distances.build(&lengths)?;
        let mut lengths = [0_u8; LITERALS + DISTANCES];
        let total = literals.checked_add(distances)?;
        let lengths = lengths.get_mut(..total)?;
        let mut place = 0_usize;
        while place < total {
            let symbol = self.distances.read(bits)?;
            let (length, times) = match symbol {
                0..=15 => (u8::try_from(symbol).ok()?, 1),
                16 => (*lengths.get(place.checked_sub(1)?)?, bits.take(2)?.checked_add(3)?),
                17 => (0, bits.take(3)?.checked_add(3)?),
                _ => (0, bits.take(7)?.checked_add(11)?),
            };
            let end = place.checked_add(usize::try_from(times).ok()?)?;
            lengths.get_mut(place..end)?.fill(length);
            place = end;
        }
        let (of_literals, of_distances) = lengths.split_at_checked(literals)?;
        self.literals.build(of_literals)?;
        self.distances.build(of_distances)
    }

    fn read_block(&self, bits: &mut Bits<'_>, out: &mut [u8], mut len: usize) -> Option<usize> {
        loop {
            let symbol = self.literals.read(bits)?;
            if let Ok(byte) = u8::try_from(symbol) {
                *out.get_mut(len)? = byte;
                len = len.checked_add(1)?;
                continue;
            }
            if symbol == END_OF_BLOCK {
                return Some(len);
            }
            let (base, extra) = *LENGTHS.get(usize::from(symbol).checked_sub(257)?)?;
            let copied = usize::from(base).checked_add(usize::try_from(bits.take(u32::from(extra))?).ok()?)?;
            let (base, extra) = *DISTANCE.get(usize::from(self.distances.read(bits)?))?;
            let back = usize::from(base).checked_add(usize::try_from(bits.take(u32::from(extra))?).ok()?)?;
            let from = len.checked_sub(back)?;
            let end = len.checked_add(copied)?;
            let room = out.get_mut(..end)?;
            if back >= copied {
                room.copy_within(from..from.checked_add(copied)?, len);
            } else {
                for place in len..end {
                    let byte = *room.get(place.checked_sub(back)?)?;
                    *room.get_mut(place)? = byte;
                }
            }
            len = end;
        }
    }
}

impl Code {
    fn new() -> Self {
        Self {
            table: Box::new([0; TABLE_LEN]),
            bits: 0,
            count: [0; MAX_CODE_LEN + 1],
            symbols: Box::new([0; LITERALS]),
        }
    }

    /// Takes the code whose symbols have codes of these lengths; 0: none. Only codes that leave nothing over, or have a
    /// single symbol, are known here.
    fn build(&mut self, lengths: &[u8]) -> Option<()> {
        let mut count = [0_u16; MAX_CODE_LEN + 1];
        for length in lengths {
            let place = count.get_mut(usize::from(*length))?;
            *place = place.wrapping_add(1);
        }
        *count.first_mut()? = 0;
        // Where the symbols of each length begin, and the first code of that length.
        let (mut begin, mut next) = ([0_u16; MAX_CODE_LEN + 2], [0_u32; MAX_CODE_LEN + 1]);
        let (mut code, mut left, mut longest) = (0_u32, 1_i32, 0_u32);
        for length in 1..=MAX_CODE_LEN {
            let (number, before) = (*count.get(length)?, *begin.get(length)?);
            *begin.get_mut(length.wrapping_add(1))? = before.wrapping_add(number);
            *next.get_mut(length)? = code;
            code = code.wrapping_add(u32::from(number)) << 1;
            left = (left << 1).wrapping_sub(i32::from(number));
            if left < 0 {
                return None;
            }
            if number > 0 {
                longest = u32::try_from(length).ok()?;
            }
        }
        // As in zlib: a code that leaves something over has one symbol, of one bit, and is not that of code lengths.
        let is_single = longest == 1 && lengths.len() != ORDER.len();
        if left != 0 && !is_single {
            return None;
        }
        self.bits = longest.min(MAX_TABLE_BITS);
        let size = 1_usize << self.bits;
        let table = self.table.get_mut(..size)?;
        // A whole code fills the table but for places of longer ones.
        table.fill(0);
        for (symbol, length) in (0_u16..).zip(lengths) {
            let length = usize::from(*length);
            if length == 0 {
                continue;
            }
            let place = begin.get_mut(length)?;
            *self.symbols.get_mut(usize::from(*place))? = symbol;
            *place = place.wrapping_add(1);
            let short = u32::try_from(length).ok()?;
            if short <= self.bits {
                let code = next.get_mut(length)?;
                let reversed = code.reverse_bits() >> 32_u32.wrapping_sub(short);
                *code = code.wrapping_add(1);
                let entry = symbol << 4 | u16::try_from(length).ok()?;
                let first = usize::try_from(reversed).ok()?;
                for place in table.get_mut(first..)?.iter_mut().step_by(1 << length) {
                    *place = entry;
                }
            }
        }
        self.count = count;
        Some(())
    }

    fn read(&self, bits: &mut Bits<'_>) -> Option<u16> {
        bits.fill();
        let place = bits.held & !(u64::MAX << self.bits);
        let entry = *self.table.get(usize::try_from(place).ok()?)?;
        if entry != 0 {
            bits.drop(u32::from(entry & 15))?;
            return Some(entry >> 4);
        }
        self.read_long(bits)
    }

    /// Bit by bit: a code that is longer than the table's, or none.
    fn read_long(&self, bits: &mut Bits<'_>) -> Option<u16> {
        let (mut code, mut first, mut index) = (0_u32, 0_u32, 0_u32);
        for count in self.count.iter().skip(1) {
            code |= u32::try_from(bits.take(1)?).ok()?;
            let count = u32::from(*count);
            if let Some(place) = code.checked_sub(first).filter(|place| *place < count) {
                let place = usize::try_from(index.wrapping_add(place)).ok()?;
                return self.symbols.get(place).copied();
            }
            index = index.wrapping_add(count);
            first = first.wrapping_add(count) << 1;
            code <<= 1;
        }
        None
    }
}

/// Bits, the lowest of each byte first.
struct Bits<'s> {
    rest: &'s [u8],
    held: u64,
    /// How many of them are valid.
    count: u32,
}

impl<'s> Bits<'s> {
    fn new(rest: &'s [u8]) -> Self {
        Self {
            rest,
            held: 0,
            count: 0,
        }
    }

    /// Holds at least 32 bits, if there are so many.
    fn fill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some((chunk, rest)) = self.rest.split_first_chunk::<4>() {
            self.held |= u64::from(u32::from_le_bytes(*chunk)) << self.count;
            (self.rest, self.count) = (rest, self.count.wrapping_add(32));
            return;
        }
        while let Some((byte, rest)) = self.rest.split_first() {
            self.held |= u64::from(*byte) << self.count;
            (self.rest, self.count) = (rest, self.count.wrapping_add(8));
        }
    }

    fn drop(&mut self, number: u32) -> Option<()> {
        self.count = self.count.checked_sub(number)?;
        self.held >>= number;
        Some(())
    }

    /// At most 13 bits.
    fn take(&mut self, number: u32) -> Option<u64> {
        if self.count < number {
            self.fill();
        }
        let taken = self.held & !(u64::MAX << number);
        self.drop(number)?;
        Some(taken)
    }

    /// The four bytes behind the one that is begun.
    fn checksum(&mut self) -> Option<u32> {
        self.drop(self.count % 8)?;
        let mut sum = 0;
        for _ in 0..4 {
            sum = sum << 8 | u32::try_from(self.take(8)?).ok()?;
        }
        Some(sum)
    }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]
mod tests {
    use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
    use proptest::prelude::*;

    use super::*;

    fn deflated(text: &[u8], level: u32) -> Vec<u8> {
        let mut out = vec![0; text.len() + 1024];
        let mut deflate = Compress::new(Compression::new(level), true);
        let status = deflate.compress(text, &mut out, FlushCompress::Finish).unwrap();
        assert_eq!(status, Status::StreamEnd);
        out.truncate(usize::try_from(deflate.total_out()).unwrap());
        out
    }

    fn by_zlib(stream: &[u8], room: usize) -> Option<Vec<u8>> {
        let (mut inflate, mut out) = (Decompress::new(true), vec![0; room]);
        let status = inflate.decompress(stream, &mut out, FlushDecompress::Finish);
        out.truncate(usize::try_from(inflate.total_out()).unwrap());
        matches!(status, Ok(Status::StreamEnd)).then_some(out)
    }

    fn by_us(stream: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; room];
        let len = Inflate::new().inflate(stream, &mut out)?;
        out.truncate(len);
        Some(out)
    }

    #[test]
    fn log_lines_are_not_left_to_zlib() {
        for text in [
            "1:/var/log/auth.log:sshd[4242]: Accepted publickey for root from 10.20.30.40 port 52144 ssh2",
            "short",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            &"0123456789abcdef".repeat(40),
        ] {
            let stream = deflated(text.as_bytes(), 9);
            assert_eq!(by_us(&stream, 4096).as_deref(), Some(text.as_bytes()));
        }
    }

    #[test]
    fn what_zlib_refuses_for_its_form_is_left_to_it() {
        let mut stream = deflated(b"0123456789 0123456789 0123456789", 9);
        assert!(by_us(&stream, 500).is_some());
        stream[..2].copy_from_slice(&[0x58, 0x85]);
        assert_eq!(by_us(&stream, 500), None, "a window of 8 KiB");
        let (mut literals, mut code) = ([0; LITERALS], Code::new());
        literals[7] = 3;
        assert_eq!(code.build(&literals), None, "one symbol of three bits");
        literals[7] = 1;
        assert_eq!(code.build(&literals), Some(()), "one symbol of one bit");
        let mut lengths = [0; ORDER.len()];
        lengths[7] = 1;
        assert_eq!(
            code.build(&lengths),
            None,
            "a code of code lengths that leaves something over"
        );
    }

    #[test]
    fn room_that_is_too_small_gives_nothing() {
        let stream = deflated(b"0123456789 0123456789 0123456789", 9);
        for room in 0..32 {
            assert_eq!(by_us(&stream, room), None);
        }
    }

    proptest! {
        #[test]
        fn streams_of_any_level_give_what_went_in_or_are_left_to_zlib(
            text in proptest::collection::vec(prop_oneof![97..105_u8, any::<u8>()], 0..1500), level in 0_u32..10,
        ) {
            if let Some(given) = by_us(&deflated(&text, level), 4096) {
                prop_assert_eq!(given, text);
            }
        }

        #[test]
        fn texts_of_few_letters_are_not_left_to_zlib(text in "[a-f ]{1,900}", level in 1_u32..10) {
            prop_assert_eq!(by_us(&deflated(text.as_bytes(), level), 4096), Some(text.into_bytes()));
        }

        #[test]
        fn damaged_streams_give_what_zlib_gives_or_nothing(
            text in "[a-z ]{1,400}", damage in proptest::collection::vec((0_usize..300, any::<u8>()), 1..4),
        ) {
            let mut stream = deflated(text.as_bytes(), 9);
            for (place, byte) in damage {
                let length = stream.len();
                stream[place % length] = byte;
            }
            if let Some(given) = by_us(&stream, 1000) {
                prop_assert_eq!(Some(given), by_zlib(&stream, 1000));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let stream = [&[0x78, 0x9c], bytes.as_slice()].concat();
            let _ = by_us(&stream, 500);
        }
    }
}
