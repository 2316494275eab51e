//! `client.keys` on disk: read whole, replaced whole.
//!
//! **Invariant:** at every instant the path leads to a complete file, the old one or the new one, and when
//! [`KeyFileOnDisk::replace`] has returned, the new one survives a power cut.

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

/// The file, and how it looked when we last read or wrote it.
pub struct KeyFileOnDisk {
    path: PathBuf,
    stamp: Option<Stamp>,
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
        };
        let bytes = file.read()?;
        Ok((file, bytes))
    }

    /// Reads the file and remembers how it looks.
    pub fn read(&mut self) -> io::Result<Zeroizing<Vec<u8>>> {
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
        sync_directory(&self.path)?;
        self.stamp = Some(Stamp::of(&fs::metadata(&self.path)?));
        Ok(())
    }
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
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("client.keys");
        (directory, path)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").mode() & 0o777
    }

    #[test]
    fn a_missing_file_is_empty_and_made_with_0640() {
        let (directory, path) = home();
        let (mut file, bytes) = KeyFileOnDisk::open(&path).expect("opened");
        assert!(bytes.is_empty() && !file.was_changed().expect("looked"));
        file.replace(b"001 a any k\n").expect("written");
        assert_eq!(
            (fs::read(&path).expect("read"), mode(&path)),
            (b"001 a any k\n".to_vec(), 0o640)
        );
        assert_eq!(
            fs::read_dir(directory.path()).expect("listed").count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn the_mode_of_an_existing_file_is_kept_and_the_inode_is_new() {
        let (_directory, path) = home();
        fs::write(&path, "x").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        let inode = fs::metadata(&path).expect("metadata").ino();
        let (mut file, _) = KeyFileOnDisk::open(&path).expect("opened");
        file.replace(b"y").expect("written");
        assert_eq!(mode(&path), 0o600);
        assert_ne!(fs::metadata(&path).expect("metadata").ino(), inode);
    }

    #[test]
    fn our_own_write_is_no_change_and_anothers_is() {
        let (_directory, path) = home();
        let (mut file, _) = KeyFileOnDisk::open(&path).expect("opened");
        file.replace(b"001 a any k\n").expect("written");
        assert!(!file.was_changed().expect("looked"));
        fs::write(&path, "001 a any k\n002 b any k\n").expect("written");
        assert!(file.was_changed().expect("looked"));
        file.read().expect("read");
        assert!(!file.was_changed().expect("looked"));
        fs::remove_file(&path).expect("removed");
        assert!(file.was_changed().expect("looked"));
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let (directory, path) = home();
        let (mut file, _) = KeyFileOnDisk::open(&path).expect("opened");
        file.replace(b"old").expect("written");
        // A directory in the way of the new file: not even root gets past it.
        fs::create_dir(directory.path().join("client.keys.muster-new")).expect("made");
        assert!(file.replace(b"new").is_err());
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert!(!file.was_changed().expect("looked"));
    }

    #[test]
    fn what_a_killed_daemon_left_is_in_nobodys_way() {
        let (_directory, path) = home();
        fs::write(beside(&path), "half").expect("written");
        let (mut file, _) = KeyFileOnDisk::open(&path).expect("opened");
        file.replace(b"new").expect("written");
        assert!(!beside(&path).exists());
    }
}
