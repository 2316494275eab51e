//! The message counters, and the files in `queue/rids` that keep them.
//!
//! * [`SenderPair`]: the one pair of the manager, in every message that it sends. OSSEC agents refuse a pair that is not
//!   above the last one, so it must never go back, whatever kills the process: numbers are reserved in the file, and
//!   synced, before they are used.
//! * [`received`]: the last pair of each agent.
//!
//! Texts and places are the stock ones, so a home can change hands in both directions.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use muster_proto::transport::counter::{Counter, LAST_LOCAL};
use tracing::{info, warn};

pub mod received;

/// How many messages one write to the file pays for. A crash skips at most so many numbers: about ten steps of the
/// slow one, which has room for four thousand million.
pub const RESERVED_MESSAGES: u64 = 100_000;
/// A counter file has two numbers and two colons, and perhaps the tail of a longer text.
const MAX_FILE_LEN: u64 = 256;
const SENDER_FILE: &str = "sender_counter";

/// The manager's pair, shared by all workers. Taking the next one is one atomic addition; once in
/// [`RESERVED_MESSAGES`] it waits for the disk.
pub struct SenderPair {
    /// The place of the next pair when all pairs are counted through.
    next: AtomicU64,
    /// Pairs below this place are reserved in the file.
    reserved: AtomicU64,
    file: Mutex<SenderFile>,
    unreserved: AtomicBool,
}

struct SenderFile {
    path: PathBuf,
    /// The file that was last written, to notice another one renamed over it.
    inode: Option<u64>,
}

impl SenderPair {
    /// Goes on where the file ends. A file that is not there, or says nothing, was perhaps lost: then the slow number
    /// begins at the time in seconds, which is above all that any number of messages can have reached.
    pub fn open(directory: &Path, unix_seconds: u32) -> Self {
        let path = directory.join(SENDER_FILE);
        let last = match read_counter(&path) {
            Ok(Some(last)) => last,
            Ok(None) => {
                info!(path = %path.display(), global = unix_seconds, "no sender counter: it begins at the time");
                Counter {
                    global: unix_seconds,
                    local: 0,
                }
            }
            Err(error) => {
                warn!(%error, path = %path.display(), global = unix_seconds, "cannot read the sender counter: it begins at the time");
                Counter {
                    global: unix_seconds,
                    local: 0,
                }
            }
        };
        let next = place_behind(last);
        Self {
            next: AtomicU64::new(next),
            reserved: AtomicU64::new(next),
            file: Mutex::new(SenderFile {
                inode: inode_of(&path),
                path,
            }),
            unreserved: AtomicBool::new(false),
        }
    }

    /// The pair of the next message.
    pub fn next(&self) -> Counter {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        if place < self.reserved.load(Ordering::Acquire) {
            return pair_at(place);
        }
        self.reserve_for(place)
    }

    /// Whether the last reservation could not be written: a crash now would let the counter go back.
    pub fn is_unreserved(&self) -> bool {
        self.unreserved.load(Ordering::Relaxed)
    }

    /// Looks whether somebody put another file in place, and goes on above it. Lower numbers are not taken: agents
    /// that check would be deaf until they are overtaken.
    pub fn look_for_another_file(&self) {
        let mut file = self.lock();
        if file.take_replacement(&self.next) {
            let next = self.next.load(Ordering::Relaxed);
            self.store(&mut file, next + RESERVED_MESSAGES);
        }
    }

    /// Writes the pair that was used last, so that the next start skips nothing. Nothing may be sent after this.
    pub fn close(&self) {
        let mut file = self.lock();
        let next = self.next.load(Ordering::Relaxed);
        self.reserved.store(next, Ordering::Release);
        self.store(&mut file, next);
    }

    #[cold]
    fn reserve_for(&self, place: u64) -> Counter {
        let mut file = self.lock();
        let place = if file.take_replacement(&self.next) {
            self.next.fetch_add(1, Ordering::Relaxed)
        } else {
            place
        };
        if place >= self.reserved.load(Ordering::Acquire) {
            self.store(&mut file, place + RESERVED_MESSAGES);
        }
        pair_at(place)
    }

    /// Makes all places below `end` safe to use. When the disk refuses they are used all the same, since an agent
    /// without acknowledgements is worse off than one that may have to wait after a crash.
    fn store(&self, file: &mut SenderFile, end: u64) {
        let result = write_counter(&file.path, last_before(end), Durability::Synced);
        if let Err(error) = &result {
            warn!(%error, path = %file.path.display(), "cannot write the sender counter");
        }
        self.unreserved.store(result.is_err(), Ordering::Relaxed);
        file.inode = result.ok().or(file.inode);
        self.reserved.fetch_max(end, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, SenderFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SenderFile {
    /// Raises `next` above a file that was renamed over ours.
    fn take_replacement(&mut self, next: &AtomicU64) -> bool {
        let inode = inode_of(&self.path);
        if inode.is_none() || inode == self.inode {
            return false;
        }
        self.inode = inode;
        let Ok(Some(found)) = read_counter(&self.path) else {
            return false;
        };
        let behind = place_behind(found);
        let before = next.fetch_max(behind, Ordering::Relaxed);
        if behind > before {
            info!(
                global = found.global,
                local = found.local,
                "another sender counter was put in place: going on above it"
            );
        } else {
            warn!(
                global = found.global,
                local = found.local,
                "the sender counter put in place is lower: agents would not hear us, so it is not taken"
            );
        }
        true
    }
}

/// Whether a write must survive a power cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    Synced,
    Cached,
}

/// Reads a counter file; nothing when it is absent or does not hold two numbers.
pub(crate) fn read_counter(path: &Path) -> io::Result<Option<Counter>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE_LEN).read_to_end(&mut text)?;
    Ok(Counter::from_rids(&text))
}

/// Writes a counter file in place, and gives back its inode.
pub(crate) fn write_counter(path: &Path, counter: Counter, durability: Durability) -> io::Result<u64> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)?;
    let text = counter.to_rids();
    file.write_all_at(text.as_bytes(), 0)?;
    let metadata = file.metadata()?;
    if metadata.len() > text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    if durability == Durability::Synced {
        file.sync_all()?;
    }
    Ok(metadata.ino())
}

fn inode_of(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|metadata| metadata.ino())
}

/// Pairs counted through: `local` runs from 1 to [`LAST_LOCAL`].
fn place_behind(last: Counter) -> u64 {
    u64::from(last.global) * u64::from(LAST_LOCAL) + u64::from(last.local.min(LAST_LOCAL))
}

fn pair_at(place: u64) -> Counter {
    let locals = u64::from(LAST_LOCAL);
    // After 2^32 steps of the slow number it begins again at 0, as the ten digits on the wire would.
    let global = u32::try_from((place / locals) & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let local = u32::try_from(place % locals).unwrap_or(0) + 1;
    Counter { global, local }
}

/// The pair to store when everything below `end` may have been used.
fn last_before(end: u64) -> Counter {
    match end.checked_sub(1) {
        Some(last) => pair_at(last),
        None => Counter { global: 0, local: 0 },
    }
}

#[cfg(test)]
mod tests;
