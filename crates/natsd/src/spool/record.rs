//! One record of the spool, as bytes.
//!
//! ```text
//! length u32 | crc32 u32 of the body | body
//! body = type u8, then for an event (all integers little-endian, texts behind a u16 length, the body behind a u32):
//!        flags u8 | kind u8 | class u8 | level u8 | seq u64 | epoch u64 | prev u64 | created_ms u64
//!        producer | incarnation u64 | number u64 | key | subject | count u16 of headers | name, value … | body
//! ```
//!
//! The bytes that reach the broker are made before the record is written: a replay days later needs no old key.
//! **Invariant:** reading never panics and never allocates more than the record's length, whatever is on the disk.

use std::borrow::Cow;

use muster_proto::event::{Class, Kind, header};
use thiserror::Error;

/// Length and checksum.
pub(crate) const HEADER_LEN: usize = 8;
/// The longest body of a record: the longest event, and room for headers.
pub(crate) const MAX_BODY_LEN: usize = 4 * 1024 * 1024;

/// Before an event's numbers: type, flags, kind, class, level.
const FIRST_BYTES: usize = 5;
/// Behind [`Stored::HEAD_LEN`], without texts and the body: the time, the source's two numbers, and six lengths.
const FIXED_LEN: usize = 8 + 8 + 8 + 2 + 2 + 2 + 2 + 4;
/// Room that is made at once for headers; an event seldom has more.
const USUAL_HEADERS: usize = 24;
const TYPE_EVENT: u8 = 1;
const TYPE_BOUNDARY: u8 = 2;
const TYPE_MARKS: u8 = 3;
/// Taken while nothing was published: kept for those who look back, never sent.
const FLAG_HISTORY: u8 = 1;

/// What a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// An event.
    Event(Box<Stored>),
    /// Everything before this was on the disk when what follows was begun.
    Boundary,
    /// How far each producer had been taken; at the head of each segment, so that older ones may go.
    Marks(Vec<Mark>),
}

/// The highest number taken from one outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) producer: String,
    pub(crate) incarnation: u64,
    pub(crate) number: u64,
}

/// A header's name. Most are among [`header::known`], and an event has a dozen of them.
pub(crate) type Name = Cow<'static, str>;

/// The headers as other parts of the house have them.
pub(crate) fn owned(headers: Vec<(Name, String)>) -> Vec<(String, String)> {
    let headers = headers.into_iter();
    headers.map(|(name, value)| (name.into_owned(), value)).collect()
}

/// An event as it will be, or was, published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) history: bool,
    pub(crate) kind: Kind,
    pub(crate) class: Class,
    pub(crate) alert_level: u8,
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    /// The sequence before this one in the same stream; 0 = none.
    pub(crate) prev: u64,
    pub(crate) created_ms: u64,
    /// Where it came from.
    pub(crate) source: Mark,
    /// The changing part of the subject.
    pub(crate) key: String,
    pub(crate) subject: String,
    pub(crate) headers: Vec<(Name, String)>,
    pub(crate) body: Vec<u8>,
}

/// An event's place among all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) seq: u64,
    /// The sequence before this one in the same stream; 0 = none.
    pub(crate) prev: u64,
    pub(crate) epoch: u64,
}

impl Numbers {
    pub(crate) fn of(event: &Stored) -> Self {
        Self {
            seq: event.seq,
            prev: event.prev,
            epoch: event.epoch,
        }
    }

    /// From the first [`Stored::HEAD_LEN`] bytes of an event's record. The checksum is not looked at.
    pub(crate) fn read(head: &[u8]) -> Option<Self> {
        let mut reader = Reader(head.get(HEADER_LEN..)?);
        if reader.u8()? != TYPE_EVENT {
            return None;
        }
        reader.take(FIRST_BYTES - 1)?;
        let [seq, epoch, prev] = [reader.u64()?, reader.u64()?, reader.u64()?];
        Some(Self { seq, prev, epoch })
    }
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RecordError {
    /// The file ends inside the record.
    #[error("the record is cut short")]
    Short,
    /// The length field makes no sense.
    #[error("the record's length makes no sense")]
    Length,
    /// The bytes have changed since they were written.
    #[error("the record's checksum is wrong")]
    Checksum {
        /// Where the next record begins, if the length field is right.
        skip: usize,
    },
    /// The checksum is right, but this release cannot read it.
    #[error("the record is of a kind that this release does not know")]
    Unknown {
        /// Where the next record begins.
        skip: usize,
    },
}

impl Record {
    /// Appends the record's bytes.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Event(event) => event.write_record(out),
            Self::Boundary => write_framed(out, |out| out.push(TYPE_BOUNDARY)),
            Self::Marks(marks) => write_framed(out, |out| {
                out.push(TYPE_MARKS);
                for mark in marks {
                    mark.write(out);
                }
            }),
        }
    }

    /// Reads the record at the beginning of the bytes; gives also its whole length.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Self, usize), RecordError> {
        let mut header = Reader(bytes);
        let length = header.u32().ok_or(RecordError::Short)?;
        let checksum = header.u32().ok_or(RecordError::Short)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_BODY_LEN {
            return Err(RecordError::Length);
        }
        let body = header.0.get(..length).ok_or(RecordError::Short)?;
        let whole = HEADER_LEN + length;
        if crc32fast::hash(body) != checksum {
            return Err(RecordError::Checksum { skip: whole });
        }
        let record = Self::read_body(body).ok_or(RecordError::Unknown { skip: whole })?;
        Ok((record, whole))
    }

    fn read_body(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        match reader.u8()? {
            TYPE_EVENT => Stored::read(&mut reader).map(|event| Self::Event(Box::new(event))),
            TYPE_BOUNDARY => Some(Self::Boundary),
            TYPE_MARKS => {
                let mut marks = Vec::new();
                while !reader.0.is_empty() {
                    marks.push(Mark::read(&mut reader)?);
                }
                Some(Self::Marks(marks))
            }
            _ => None,
        }
    }
}

impl Mark {
    fn write(&self, out: &mut Vec<u8>) {
        write_text(out, &self.producer);
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            producer: reader.text()?,
            incarnation: reader.u64()?,
            number: reader.u64()?,
        })
    }
}

impl Stored {
    /// So many bytes of the record hold [`Numbers`].
    pub(crate) const HEAD_LEN: usize = HEADER_LEN + FIRST_BYTES + 3 * 8;

    /// How long the record is.
    pub(crate) fn record_len(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4);
        let texts = self.source.producer.len() + self.key.len() + self.subject.len();
        Self::HEAD_LEN + FIXED_LEN + texts + headers.sum::<usize>() + self.body.len()
    }

    /// Appends the event as a whole record.
    pub(crate) fn write_record(&self, out: &mut Vec<u8>) {
        write_framed(out, |out| self.write(out));
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(TYPE_EVENT);
        out.push(if self.history { FLAG_HISTORY } else { 0 });
        out.extend_from_slice(&[
            place(&Kind::ALL, &self.kind),
            place(&Class::ALL, &self.class),
            self.alert_level,
        ]);
        for number in [self.seq, self.epoch, self.prev, self.created_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        self.source.write(out);
        write_text(out, &self.key);
        write_text(out, &self.subject);
        out.extend_from_slice(&u16::try_from(self.headers.len()).unwrap_or(u16::MAX).to_le_bytes());
        for (name, value) in self.headers.iter().take(usize::from(u16::MAX)) {
            write_text(out, name);
            write_text(out, value);
        }
        out.extend_from_slice(&u32::try_from(self.body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.body);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let history = reader.u8()? & FLAG_HISTORY != 0;
        let kind = *Kind::ALL.get(usize::from(reader.u8()?))?;
        let class = *Class::ALL.get(usize::from(reader.u8()?))?;
        let alert_level = reader.u8()?;
        let [seq, epoch, prev, created_ms] = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        let source = Mark::read(reader)?;
        let (key, subject) = (reader.text()?, reader.text()?);
        let count = reader.u16()?;
        let mut headers = Vec::with_capacity(usize::from(count).min(USUAL_HEADERS));
        for _ in 0..count {
            headers.push((reader.name()?, reader.text()?));
        }
        let length = usize::try_from(reader.u32()?).ok()?;
        let body = reader.take(length)?.to_vec();
        Some(Self {
            history,
            kind,
            class,
            alert_level,
            seq,
            epoch,
            prev,
            created_ms,
            source,
            key,
            subject,
            headers,
            body,
        })
    }
}

fn write_framed(out: &mut Vec<u8>, write_body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    write_body(out);
    let (header, body) = out[start..].split_at_mut(HEADER_LEN);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

fn place<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter()
        .position(|other| other == one)
        .and_then(|place| u8::try_from(place).ok())
        .unwrap_or(u8::MAX)
}

/// A text of more than 65,535 bytes is cut; subjects, keys and headers have a few hundred.
fn write_text(out: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.floor_char_boundary(usize::from(u16::MAX))];
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(text);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn str(&mut self) -> Option<&'a str> {
        let length = self.u16()?;
        str::from_utf8(self.take(usize::from(length))?).ok()
    }

    fn text(&mut self) -> Option<String> {
        self.str().map(str::to_owned)
    }

    fn name(&mut self) -> Option<Name> {
        let name = self.str()?;
        Some(header::known(name).map_or_else(|| Cow::Owned(name.to_owned()), Cow::Borrowed))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    pub(in crate::spool) fn stored() -> impl Strategy<Value = Stored> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        let texts = (".{0,20}", "[a-z.]{0,20}", "[a-z]{1,8}");
        let rest = (
            0..Kind::ALL.len(),
            0..Class::ALL.len(),
            any::<u8>(),
            any::<bool>(),
            any::<(u64, u64)>(),
        );
        (
            numbers,
            texts,
            rest,
            vec(
                (
                    prop_oneof!["[A-Z]{1,4}", Just(header::TIME.to_owned())].prop_map(Name::from),
                    ".{0,9}",
                ),
                0..4,
            ),
            vec(any::<u8>(), 0..200),
        )
            .prop_map(
                |((seq, epoch, prev, created_ms), (key, subject, producer), rest, headers, body)| {
                    let (kind, class, alert_level, history, (incarnation, number)) = rest;
                    Stored {
                        history,
                        kind: Kind::ALL[kind],
                        class: Class::ALL[class],
                        alert_level,
                        seq,
                        epoch,
                        prev,
                        created_ms,
                        source: Mark {
                            producer,
                            incarnation,
                            number,
                        },
                        key,
                        subject,
                        headers,
                        body,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn record_reads_back_as_written(stored in stored()) {
            let record = Record::Event(Box::new(stored));
            let mut bytes = vec![];
            record.write(&mut bytes);
            let length = bytes.len();
            bytes.extend_from_slice(b"what follows");
            prop_assert_eq!(Record::read(&bytes), Ok((record, length)));
        }

        #[test]
        fn length_and_numbers_are_known_without_reading_all_of_it(stored in stored()) {
            let mut bytes = vec![];
            stored.write_record(&mut bytes);
            prop_assert_eq!(bytes.len(), stored.record_len());
            prop_assert_eq!(Numbers::read(&bytes[..Stored::HEAD_LEN]), Some(Numbers::of(&stored)));
        }

        #[test]
        fn record_cut_anywhere_is_short(stored in stored(), cut in any::<prop::sample::Index>()) {
            let mut bytes = vec![];
            Record::Event(Box::new(stored)).write(&mut bytes);
            let cut = cut.index(bytes.len());
            prop_assert_eq!(Record::read(&bytes[..cut]), Err(RecordError::Short));
        }

        #[test]
        fn flipped_bit_is_noticed(stored in stored(), place in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = vec![];
            Record::Event(Box::new(stored)).write(&mut bytes);
            let place = place.index(bytes.len());
            bytes[place] ^= 1_u8 << bit;
            prop_assert!(Record::read(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
            let _ = Record::read(&bytes);
            let _ = Record::read_body(&bytes);
        }
    }

    #[test]
    fn marks_and_boundary_read_back() {
        let mark = Mark {
            producer: "remoted".to_owned(),
            incarnation: 7,
            number: 9,
        };
        for record in [
            Record::Boundary,
            Record::Marks(vec![]),
            Record::Marks(vec![mark.clone(), mark]),
        ] {
            let mut bytes = vec![];
            record.write(&mut bytes);
            assert_eq!(Record::read(&bytes), Ok((record, bytes.len())));
        }
    }
}
