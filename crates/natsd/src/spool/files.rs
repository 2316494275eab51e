//! The spool's files: segments `<number>.seg` in the order of their numbers.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::SpoolError;

const SUFFIX: &str = "seg";
/// What a small write takes besides, as zeros, when it reaches the end of the file: the next ones then only overwrite, and
/// the disk has no new length to note down with each, which waits for whatever else the file system is busy with.
const ROOM_LEN: usize = 512 * 1024;
/// Larger writes take no room: there are few of them.
const SMALL_LEN: usize = 4096;
/// Events are for the daemon alone.
const MODE: u32 = 0o640;

/// One segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: Arc<File>,
    pub(super) length: u64,
    /// Events in it that the broker has not acknowledged.
    pub(super) waiting: u64,
    /// When the newest event in it was made, in Unix milliseconds.
    pub(super) newest_ms: u64,
    /// How many commits went into it since it was opened.
    pub(super) commits: u64,
    /// Whether its file was full of zeros before.
    pub(super) made_ready: bool,
}

impl Segment {
    pub(super) fn create(directory: &Path, number: u64) -> Result<Self, SpoolError> {
        let path = path_of(directory, number);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&path);
        let file = file.map_err(failed("cannot create", &path))?;
        sync_directory(directory)?;
        Ok(Self {
            number,
            file: Arc::new(file),
            length: 0,
            waiting: 0,
            newest_ms: 0,
            commits: 0,
            made_ready: false,
        })
    }

    pub(super) fn open(directory: &Path, number: u64) -> Result<(Self, Vec<u8>), SpoolError> {
        let path = path_of(directory, number);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("cannot open", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("cannot read", &path))?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok((
            Self {
                number,
                file: Arc::new(file),
                length,
                waiting: 0,
                newest_ms: 0,
                commits: 0,
                made_ready: false,
            },
            bytes,
        ))
    }

    /// Appends, and waits for the disk. After a failure the segment is as it was.
    pub(super) fn append(&mut self, bytes: &[u8], sync: bool) -> Result<(), SpoolError> {
        self.writer().write(bytes, sync)?;
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// What writes behind the segment's present end.
    pub(super) fn writer(&self) -> Writer {
        Writer {
            file: Arc::clone(&self.file),
            start: self.length,
            name: self.name(),
        }
    }

    /// Zeros from here on, on the disk.
    pub(super) fn make_room(&self, start: u64, length: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.write_all_at(&zeros, start)?;
        self.file.sync_data()
    }

    pub(super) fn truncate(&mut self, length: u64) -> Result<(), SpoolError> {
        self.file.set_len(length).map_err(failed("cannot cut", &self.name()))?;
        self.length = length;
        Ok(())
    }

    /// All of its bytes.
    pub(super) fn read(&self) -> Result<Vec<u8>, SpoolError> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(usize::MAX)];
        self.file
            .read_exact_at(&mut bytes, 0)
            .map_err(failed("cannot read segment", &self.name()))?;
        Ok(bytes)
    }

    /// Puts other bytes into the segment's place, atomically.
    pub(super) fn replace(&mut self, directory: &Path, bytes: &[u8]) -> Result<(), SpoolError> {
        let path = path_of(directory, self.number);
        write_atomically(directory, &path, bytes)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("cannot open", &path))?;
        self.file = Arc::new(file);
        self.length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn name(&self) -> PathBuf {
        PathBuf::from(format!("{:012}.{SUFFIX}", self.number))
    }
}

/// Writes to the end of one segment, with the spool unlocked.
#[derive(Debug)]
pub(super) struct Writer {
    file: Arc<File>,
    start: u64,
    name: PathBuf,
}

impl Writer {
    pub(super) fn write(&self, bytes: &[u8], sync: bool) -> Result<(), SpoolError> {
        let sync = || if sync { self.file.sync_data() } else { Ok(()) };
        self.write_with_room(bytes).and_then(|()| sync()).map_err(|source| {
            // What was half written is cut off again; if even that fails, the next append overwrites it.
            let _ = self.file.set_len(self.start);
            SpoolError::Io {
                what: "cannot write segment",
                path: self.name.clone(),
                source,
            }
        })
    }
}

impl Writer {
    /// Nothing is written behind this any more: the rest of the room goes.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.file.set_len(self.start)
    }

    fn write_with_room(&self, bytes: &[u8]) -> io::Result<()> {
        let end = self
            .start
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if bytes.len() <= SMALL_LEN && end > self.file.metadata()?.len() {
            let mut whole = Vec::with_capacity(bytes.len() + ROOM_LEN);
            whole.extend_from_slice(bytes);
            whole.resize(bytes.len() + ROOM_LEN, 0);
            if self.file.write_all_at(&whole, self.start).is_ok() {
                return Ok(());
            }
            // The disk may have room for the events, if not for more.
        }
        self.file.write_all_at(bytes, self.start)
    }
}

pub(super) fn make_directory(directory: &Path) -> Result<(), SpoolError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(directory);
    made.map_err(failed("cannot create", directory))
}

/// The numbers of all segments, in order. Foreign files are left alone.
pub(super) fn segment_numbers(directory: &Path) -> Result<Vec<u64>, SpoolError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("cannot list", directory))? {
        let path = entry.map_err(failed("cannot list", directory))?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        match number {
            Some(number) if path.extension().is_some_and(|suffix| suffix == SUFFIX) => numbers.push(number),
            _ => tracing::debug!(path = %path.display(), "not a segment of the spool"),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn remove(directory: &Path, number: u64) -> Result<(), SpoolError> {
    let path = path_of(directory, number);
    fs::remove_file(&path).map_err(failed("cannot remove", &path))
}

/// What the disk below the folder has left for us.
pub(super) fn free_bytes(directory: &Path) -> Result<u64, SpoolError> {
    let disk = nix::sys::statvfs::statvfs(directory)
        .map_err(io::Error::from)
        .map_err(failed("cannot look at the disk of", directory))?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Writes beside the file, syncs, and renames.
fn write_atomically(directory: &Path, path: &Path, bytes: &[u8]) -> Result<(), SpoolError> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&beside, path)
    };
    write().map_err(failed("cannot write", path))?;
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> Result<(), SpoolError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("cannot sync", directory))
}

fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:012}.{SUFFIX}"))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { what, path, source }
}
