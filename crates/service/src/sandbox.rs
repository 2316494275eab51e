//! The inner wall: which files a daemon may touch, enforced by landlock as far as the kernel knows it.
//!
//! Applied before any other thread exists, since it holds for the calling thread and those that it starts.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, path_beneath_rules,
};

/// The newest landlock whose file rules we use. Version 9 also governs connecting to Unix sockets, which their modes
/// already do.
const NEWEST: ABI = ABI::V5;

/// What any daemon must be able to read: libraries for name lookup, certificates of the system, time zones.
const SYSTEM: [&str; 8] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc",
    "/proc",
    "/run",
    "/dev",
    "/sys/devices/system/cpu",
];

/// Files and directories that a daemon needs after it has started. Paths are relative to the home or absolute; what does
/// not exist is left out, so directories must be made first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileAccess {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
}

impl FileAccess {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// It reads these, and what lies below them.
    #[must_use]
    pub fn read(mut self, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.read.extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// It reads, makes, changes and removes these, and what lies below them.
    #[must_use]
    pub fn write(mut self, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.write
            .extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }
}

/// Whether the kernel has landlock at all.
pub fn is_supported() -> bool {
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    strict
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .is_ok()
}

/// Restricts this thread and all that it starts. Says in the log how far the kernel went along.
pub fn restrict(access: &FileAccess) -> Result<(), RulesetError> {
    let everything = AccessFs::from_all(NEWEST);
    // Device nodes below /dev are written too: /dev/null by anything that discards output.
    let devices = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir;
    let status = Ruleset::default()
        .handle_access(everything)?
        .create()?
        .add_rules(path_beneath_rules(
            existing(SYSTEM.iter().map(Path::new)),
            AccessFs::from_read(NEWEST),
        ))?
        .add_rules(path_beneath_rules(existing([Path::new("/dev")]), devices))?
        .add_rules(path_beneath_rules(
            existing(access.read.iter().map(PathBuf::as_path)),
            AccessFs::from_read(NEWEST),
        ))?
        .add_rules(path_beneath_rules(
            existing(access.write.iter().map(PathBuf::as_path)),
            everything,
        ))?
        .restrict_self()?;
    let reached = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => format!("{effective_abi:?}"),
        other => format!("{other:?}"),
    };
    match status.ruleset {
        RulesetStatus::NotEnforced => {
            tracing::info!(
                landlock = reached,
                "the kernel has no landlock: file access is not restricted"
            );
        }
        how_far => tracing::debug!(landlock = reached, ?how_far, "file access is restricted"),
    }
    Ok(())
}

fn existing<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Vec<&'a Path> {
    paths.into_iter().filter(|path| path.exists()).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, io, thread};

    use super::*;

    #[test]
    fn only_listed_paths_stay_reachable_where_the_kernel_knows_landlock() {
        let directory = tempfile::tempdir().expect("directory");
        let (mine, yours) = (directory.path().join("mine"), directory.path().join("yours"));
        for path in [&mine, &yours] {
            fs::create_dir(path).expect("created");
            fs::write(path.join("f"), "x").expect("written");
        }
        let outcome = thread::spawn(move || {
            restrict(&FileAccess::new().write([&mine])).expect("restricted or not supported");
            fs::write(mine.join("g"), "x").expect("a listed directory can be written");
            fs::read(yours.join("f")).map_err(|error| error.kind())
        });
        match outcome.join().expect("no panic") {
            Err(kind) => assert_eq!(kind, io::ErrorKind::PermissionDenied),
            Ok(_) => assert!(!is_supported(), "the kernel has landlock, and yet the file was read"),
        }
    }
}
