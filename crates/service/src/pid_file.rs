//! Pid files as stock control scripts look for them, and the lock that keeps a second instance out.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    process,
};

use muster_proto::paths;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::signal::kill,
    unistd::Pid,
};
use thiserror::Error;

use crate::privileges::Identity;

/// What the kernel keeps of a program's name.
const MAX_COMM_LEN: usize = 15;

/// Why there is no pid file or lock.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PidFileError {
    /// Another process holds the lock.
    #[error("{daemon} is already running in this home{}", pid_suffix(.pid))]
    AlreadyRunning {
        /// The daemon's short name.
        daemon: String,
        /// The holder, if the file tells.
        pid: Option<u32>,
    },
    /// The file system said no.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn pid_suffix(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid}); stop it first"))
        .unwrap_or_default()
}

/// Held as long as the daemon lives; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct InstanceLock {
    _file: Flock<File>,
}

impl InstanceLock {
    /// Takes `var/run/<daemon>.lock` in the current directory, or says who has it.
    pub fn take(daemon: &str, owner: Option<&Identity>) -> Result<Self, PidFileError> {
        let path = Path::new(paths::RUN).join(format!("{daemon}.lock"));
        let cannot = |source| PidFileError::Write {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(cannot)?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, errno)| {
            if errno != Errno::EWOULDBLOCK {
                return cannot(errno.into());
            }
            let mut text = String::new();
            let pid = file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            PidFileError::AlreadyRunning {
                daemon: daemon.to_owned(),
                pid,
            }
        })?;
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", process::id()))
            .map_err(cannot)?;
        if let Some(owner) = owner {
            fchown(&*file, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).map_err(cannot)?;
        }
        Ok(Self { _file: file })
    }
}

/// `var/run/<name>-<pid>.pid`: there while the daemon serves, removed when this is dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes the file, mode 0640, and removes those of dead processes of the same name.
    pub fn create(name: &str) -> Result<Self, PidFileError> {
        for (pid, path) in all(Path::new(paths::RUN), name) {
            if !is_alive(pid) {
                let _ = fs::remove_file(path);
            }
        }
        let path = Path::new(paths::RUN).join(format!("{name}-{}.pid", process::id()));
        let write = || {
            // A file of an earlier process with our number must not lend us its mode or owner.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o640)
                .open(&path)?;
            writeln!(file, "{}", process::id())
        };
        write().map_err(|source| PidFileError::Write {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The pid of the process that serves under that name, by its pid file below `run` (`<home>/var/run`). A file whose
/// number now belongs to some other program does not count.
pub fn running(run: &Path, name: &str) -> Option<u32> {
    all(run, name)
        .into_iter()
        .map(|(pid, _)| pid)
        .find(|pid| is_alive(*pid) && runs_as(*pid, name))
}

/// Whether the kernel shows the process under that name, as far as it shows anything.
fn runs_as(pid: u32, name: &str) -> bool {
    let Ok(shown) = fs::read_to_string(format!("/proc/{pid}/comm")) else {
        return true;
    };
    let shown = shown.trim_end();
    name == shown || (shown.len() == MAX_COMM_LEN && name.starts_with(shown))
}

/// Whether a process of that number runs. One that has ended and only waits for its parent to notice does not.
pub fn is_alive(pid: u32) -> bool {
    let Ok(number) = i32::try_from(pid) else {
        return false;
    };
    // EPERM: it exists and belongs to somebody else.
    number > 0 && !matches!(kill(Pid::from_raw(number), None), Err(Errno::ESRCH)) && !has_ended(pid)
}

fn has_ended(pid: u32) -> bool {
    // `18145 (muster-natsd) Z 1 …`: the name may have anything in it, so the state is what follows the last bracket.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

fn all(run: &Path, name: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(run) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let pid = path
                .file_name()?
                .to_str()?
                .strip_prefix(name)?
                .strip_prefix('-')?
                .strip_suffix(".pid")?;
            Some((pid.parse().ok()?, path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_name() -> String {
        fs::read_to_string("/proc/self/comm")
            .expect("linux")
            .trim_end()
            .to_owned()
    }

    #[test]
    fn pid_files_are_found_by_exact_name() {
        let run = tempfile::tempdir().expect("directory");
        let (me, name) = (process::id(), own_name());
        fs::write(run.path().join(format!("{name}-{me}.pid")), "").expect("written");
        assert_eq!(running(run.path(), &name), Some(me));
        assert_eq!(running(run.path(), &name[1..]), None);
        assert_eq!(running(run.path(), &name[..name.len() - 1]), None);
    }

    #[test]
    fn pid_of_another_program_does_not_count_as_running() {
        let run = tempfile::tempdir().expect("directory");
        let me = process::id();
        fs::write(run.path().join(format!("muster-remoted-{me}.pid")), "").expect("written");
        assert_eq!(running(run.path(), "muster-remoted"), None);
    }

    #[test]
    fn process_that_waits_to_be_noticed_is_not_alive() {
        let mut child = process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdin(process::Stdio::piped())
            .spawn();
        let child = child.as_mut().expect("started");
        assert!(is_alive(child.id()));
        child.kill().expect("killed");
        // Not yet waited for, so that its number is still its own.
        while is_alive(child.id()) {
            std::thread::yield_now();
        }
        child.wait().expect("ended");
    }

    #[test]
    fn pid_of_a_dead_process_does_not_count_as_running() {
        let run = tempfile::tempdir().expect("directory");
        // Above the largest pid that a kernel gives out.
        fs::write(run.path().join("muster-x-4194305.pid"), "4194305\n").expect("written");
        assert_eq!(running(run.path(), "muster-x"), None);
        assert!(!is_alive(0));
        assert!(!is_alive(u32::MAX));
    }
}
