//! `client.keys` on disk: read whole, and replaced whole, except that lines of new agents may be added behind the others.
//!
//! **Invariant:** the path leads to a complete file, the old one or the new one, and when [`KeyFileOnDisk::replace`] or
//! [`KeyFileOnDisk::append`] has returned, the new one survives a power cut.
//!
//! A file does not grow in an instant: the kernel lets it grow by what it has copied, page after page. Whoever reads
//! just then sees all lines or none if they end on the page on which they begin, and otherwise perhaps half a line. So
//! few lines are added only within a page. Many are added all the same, since replacing the file for each batch of a
//! flood costs more than half a line does for a moment, of an agent that does not have its key yet.
//!
//! A file that has grown is not yet what other programs expect: it keeps its inode, by which the stock reader notices a
//! second change within one second, and its order is not the stock one. So it has to be replaced some time later.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// The mode of a file that did not exist before. An existing file's mode is kept.
const NEW_FILE_MODE: u32 = 0o640;
/// The file that is written and then takes the place of the old one, beside it. A daemon that was killed may leave one
/// behind; the next write begins by removing it.
const NEW_SUFFIX: &str = ".muster-new";

/// The smallest page that any kernel has. Larger ones are multiples of it.
const PAGE: u64 = 4096;
/// As many lines are many.
const MANY_LINES: usize = 8;

/// The file, and how it looked when we last read or wrote it.
pub struct KeyFileOnDisk {
    path: PathBuf,
    stamp: Option<Stamp>,
    writer: Writer,
}

/// Who wrote what the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// Somebody else, or we at an earlier time.
    Other,
    /// We, whole.
    Us,
    /// We, and added lines since.
    UsAndGrown,
}

/// What changes when somebody writes a file. `None` stands for a file that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl KeyFileOnDisk {
    /// Reads the file. One that is not there is empty; one that is there and cannot be read is an error, since writing
    /// would then replace it by nothing.
    pub fn open(path: &Path) -> io::Result<(Self, Zeroizing<Vec<u8>>)> {
        let mut file = Self {
            path: path.to_owned(),
            stamp: None,
            writer: Writer::Other,
        };
        let bytes = file.read()?;
        Ok((file, bytes))
    }

    /// Reads the file and remembers how it looks.
    pub fn read(&mut self) -> io::Result<Zeroizing<Vec<u8>>> {
        self.writer = Writer::Other;
        let mut bytes = Zeroizing::new(Vec::new());
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.stamp = None;
                return Ok(bytes);
            }
            Err(error) => return Err(error),
        };
        // Before the bytes: a write that falls between the two shows at the next look.
        let stamp = Stamp::of(&file.metadata()?);
        file.read_to_end(&mut bytes)?;
        self.stamp = Some(stamp);
        Ok(bytes)
    }

    /// Whether somebody else has written it since.
    pub fn was_changed(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(self.stamp != Some(Stamp::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.stamp.is_some()),
            Err(error) => Err(error),
        }
    }

    /// Puts a new content in the place of the old one, durably, with the old one's mode and owner.
    pub fn replace(&mut self, content: &[u8]) -> io::Result<()> {
        let new = write_beside(&self.path, content)?;
        match fs::rename(&new, &self.path) {
            Ok(()) => {}
            // A single file that is mounted into a container cannot be renamed over.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                tracing::warn!(path = %self.path.display(), "cannot rename over the key file, writing it in place");
                let outcome = write_in_place(&self.path, content);
                let _ = fs::remove_file(&new);
                outcome?;
            }
            Err(error) => {
                let _ = fs::remove_file(&new);
                return Err(error);
            }
        }
        self.writer = Writer::Other;
        sync_directory(&self.path)?;
        self.stamp = Some(Stamp::of(&fs::metadata(&self.path)?));
        if matches!(content.last(), None | Some(b'\n')) {
            self.writer = Writer::Us;
        }
        Ok(())
    }

    /// Adds whole lines behind the others, durably. Returns whether that was done.
    ///
    /// If not, the file is as it was, and what it shall say has to be written whole. That is so when its last content is
    /// not ours, when somebody else has changed it, when the lines lie across the border of two pages and are few, and
    /// after an error.
    pub fn append(&mut self, lines: &[u8]) -> bool {
        let Some(old) = self.stamp.filter(|_| self.writer != Writer::Other) else {
            return false;
        };
        if !may_be_added(lines, old.size) {
            return false;
        }
        let Ok(mut file) = OpenOptions::new().append(true).open(&self.path) else {
            return false;
        };
        // Looked at after it was opened: this is the file that will grow.
        if !file.metadata().is_ok_and(|metadata| Stamp::of(&metadata) == old) {
            return false;
        }
        match self.grow(&mut file, lines, old) {
            Ok(stamp) => {
                self.stamp = Some(stamp);
                self.writer = Writer::UsAndGrown;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "cannot add to the key file, so it is replaced");
                self.shrink(&file, old);
                false
            }
        }
    }

    /// Writes, and looks whether this is what the file has grown by, and whether the path still leads to it.
    fn grow(&self, file: &mut File, lines: &[u8], old: Stamp) -> io::Result<Stamp> {
        // Not `write_all`: the rest would not follow at the same moment.
        if file.write(lines)? != lines.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        file.sync_data()?;
        let stamp = Stamp::of(&fs::metadata(&self.path)?);
        let size = old.size.saturating_add(lines.len() as u64);
        if (stamp.device, stamp.inode, stamp.size) == (old.device, old.inode, size) {
            Ok(stamp)
        } else {
            Err(io::Error::other("somebody else writes it"))
        }
    }

    /// Takes back what may have been added. If that fails, the file looks as if somebody else had changed it.
    fn shrink(&mut self, file: &File, old: Stamp) {
        let shrunk = || {
            file.set_len(old.size)?;
            file.sync_data()?;
            file.metadata()
        };
        match shrunk() {
            Ok(metadata) => self.stamp = Some(Stamp::of(&metadata)),
            Err(error) => tracing::warn!(%error, "cannot take back what was added to the key file"),
        }
    }

    /// Whether it has grown since it was last replaced.
    pub fn has_grown(&self) -> bool {
        self.writer == Writer::UsAndGrown
    }
}

/// Whether these are lines that may be put behind a file of this size.
fn may_be_added(lines: &[u8], size: u64) -> bool {
    let ends = lines.iter().filter(|byte| **byte == b'\n').count();
    let room = PAGE - size % PAGE;
    lines.last() == Some(&b'\n') && (lines.len() as u64 <= room || ends >= MANY_LINES)
}

/// Where half a line begins, if the file looks as a daemon leaves it that is killed while it adds many lines: it ends with
/// a page, and without a line feed. A line that somebody has written without a line feed rarely ends there.
pub fn half_line(bytes: &[u8]) -> Option<usize> {
    let ends_with_page = !bytes.is_empty() && (bytes.len() as u64).is_multiple_of(PAGE);
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    (ends_with_page && end < bytes.len()).then_some(end)
}

/// Replaces a small file of ours in the same way. Its loss would be a nuisance and no more, so nothing is synced.
pub fn replace_lazily(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = beside(path);
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(NEW_FILE_MODE)
        .open(&new)?;
    file.write_all(content)?;
    if let Ok(old) = fs::metadata(path) {
        take_after(&file, &old)?;
    }
    fs::rename(&new, path)
}

fn write_beside(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let new = beside(path);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        match fs::metadata(path) {
            Ok(old) => take_after(&file, &old)?,
            Err(_) => file.set_permissions(fs::Permissions::from_mode(NEW_FILE_MODE))?,
        }
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(new),
        Err(error) => {
            let _ = fs::remove_file(&new);
            Err(error)
        }
    }
}

/// Owner, group and mode of another file, as far as we may set them. The mode comes last: a change of owner clears bits.
fn take_after(file: &File, old: &fs::Metadata) -> io::Result<()> {
    let ours = file.metadata()?;
    if (ours.uid(), ours.gid()) != (old.uid(), old.gid())
        && fchown(file, Some(old.uid()), Some(old.gid())).is_err()
        && let Err(error) = fchown(file, None, Some(old.gid()))
    {
        tracing::debug!(%error, gid = old.gid(), "cannot give the new file its old group");
    }
    file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))
}

fn write_in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(NEW_SUFFIX);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
