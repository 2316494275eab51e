//! A small file that is written again and again, and can be read after a crash or on a full disk.
//!
//! ```text
//! slot 0 | slot 1          each: magic u32 | generation u64 | length u32 | crc32 u32 of the rest | bytes, padded
//! ```
//!
//! The slots are written in turn, in place: the other one always holds the state before. A full disk does not matter,
//! since the file never grows; writing anew and renaming would need a free block each time.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::SpoolError;

/// One slot. A page, so that a write touches no other.
const SLOT_LEN: usize = 4096;
const HEADER_LEN: usize = 20;
const MAGIC: u32 = 0x3151_534d;
/// The longest content.
pub(crate) const MAX_LEN: usize = SLOT_LEN - HEADER_LEN;

/// See the module.
#[derive(Debug)]
pub(crate) struct Slots {
    path: PathBuf,
    file: File,
    generation: u64,
}

impl Slots {
    /// Opens or creates the file. Gives also what it holds, if it holds anything that is whole.
    pub(crate) fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), SpoolError> {
        let failed = |source| SpoolError::Io {
            what: "cannot open",
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path);
        let file = file.map_err(failed)?;
        let mut bytes = vec![0; 2 * SLOT_LEN];
        let read = read_up_to(&file, &mut bytes).map_err(failed)?;
        bytes.truncate(read);
        let newest = bytes
            .chunks(SLOT_LEN)
            .filter_map(read_slot)
            .max_by_key(|(generation, _)| *generation);
        if read < 2 * SLOT_LEN {
            // The blocks are taken now, while there may be room.
            let mut whole = bytes.clone();
            whole.resize(2 * SLOT_LEN, 0);
            file.write_all_at(&whole, 0)
                .and_then(|()| file.sync_all())
                .map_err(failed)?;
        }
        let slots = Self {
            path: path.to_owned(),
            file,
            generation: newest.as_ref().map_or(0, |(generation, _)| *generation),
        };
        Ok((slots, newest.map(|(_, content)| content)))
    }

    /// Replaces the content. After a failure the old one is still there.
    pub(crate) fn write(&mut self, content: &[u8]) -> Result<(), SpoolError> {
        let failed = |source| SpoolError::Io {
            what: "cannot write",
            path: self.path.clone(),
            source,
        };
        if content.len() > MAX_LEN {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the state is too long",
            )));
        }
        let generation = self.generation + 1;
        let mut slot = Vec::with_capacity(SLOT_LEN);
        slot.extend_from_slice(&MAGIC.to_le_bytes());
        slot.extend_from_slice(&generation.to_le_bytes());
        slot.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
        slot.extend_from_slice(&checksum(generation, content).to_le_bytes());
        slot.extend_from_slice(content);
        slot.resize(SLOT_LEN, 0);
        let offset = if generation.is_multiple_of(2) { 0 } else { SLOT_LEN };
        self.file
            .write_all_at(&slot, u64::try_from(offset).unwrap_or(0))
            .and_then(|()| self.file.sync_data())
            .map_err(failed)?;
        self.generation = generation;
        Ok(())
    }
}

fn read_up_to(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], u64::try_from(read).unwrap_or(u64::MAX))? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

fn read_slot(slot: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (magic, rest) = slot.split_first_chunk()?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let generation = u64::from_le_bytes(*generation);
    let content = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let whole = u32::from_le_bytes(*magic) == MAGIC && u32::from_le_bytes(*crc) == checksum(generation, content);
    whole.then(|| (generation, content.to_vec()))
}

fn checksum(generation: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn last_content_is_read_back_and_the_file_never_grows() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state");
        assert_eq!(Slots::open(&path).expect("opens").1, None);
        for round in 0..5_u8 {
            let (mut slots, _) = Slots::open(&path).expect("opens");
            slots.write(&[round; 10]).expect("writes");
            slots.write(&[round + 1; 11]).expect("writes");
            assert_eq!(Slots::open(&path).expect("opens").1, Some(vec![round + 1; 11]));
        }
        assert_eq!(path.metadata().expect("there").len(), 2 * SLOT_LEN as u64);
    }

    #[test]
    fn content_that_does_not_fit_is_refused_and_the_old_one_stays() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state");
        let (mut slots, _) = Slots::open(&path).expect("opens");
        slots.write(b"old").expect("writes");
        assert!(slots.write(&[0; MAX_LEN + 1]).is_err());
        assert_eq!(Slots::open(&path).expect("opens").1, Some(b"old".to_vec()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn damage_anywhere_in_the_last_slot_gives_the_content_before(at in 0..SLOT_LEN, length in 0..200_usize) {
            let directory = tempfile::tempdir().expect("directory");
            let path = directory.path().join("state");
            let (mut slots, _) = Slots::open(&path).expect("opens");
            slots.write(b"before").expect("writes");
            slots.write(b"after").expect("writes");
            let mut bytes = std::fs::read(&path).expect("reads");
            // The second write went into the first slot.
            let end = (at + length + 1).min(SLOT_LEN);
            bytes[at..end].fill(0xa5);
            std::fs::write(&path, &bytes).expect("writes");
            let read = Slots::open(&path).expect("opens").1;
            let untouched = at >= HEADER_LEN + b"after".len();
            prop_assert_eq!(read.as_deref(), Some(if untouched { &b"after"[..] } else { &b"before"[..] }));
        }
    }
}
