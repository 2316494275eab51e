//! How much of the machine programs may use. The limits are set on this process, which is modest, and inherited by
//! whatever it starts: so there is no moment without them, and nothing to do for each start.
//!
//! Time is not among them, since every program has a deadline and is ended with its whole group.

use std::{fs, os::unix::fs::MetadataExt};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::geteuid,
};

/// Processes and threads that all programs together may have beyond those of their user when the daemon starts. Root is
/// not held to it.
const PROCESSES: u64 = 512;

/// Sets the limits. One that cannot be set is said and does without: the service manager may have set its own.
pub fn apply(memory: u64) {
    // A core file would hold keys.
    set(Resource::RLIMIT_CORE, 0);
    set_memory(memory);
    if !geteuid().is_root() {
        set(Resource::RLIMIT_NPROC, own_processes().saturating_add(PROCESSES));
    }
}

/// The memory that one process may write to, its own and that which it shares with nobody; 0 = no limit.
pub fn set_memory(bytes: u64) {
    let bytes = if bytes == 0 {
        nix::sys::resource::RLIM_INFINITY
    } else {
        bytes
    };
    set(Resource::RLIMIT_DATA, bytes);
}

fn set(resource: Resource, wanted: u64) {
    let result = getrlimit(resource).and_then(|(_, most)| setrlimit(resource, wanted.min(most), most));
    if let Err(error) = result {
        tracing::warn!(%error, limit = ?resource, "cannot limit what programs use");
    }
}

/// Processes and threads of our user, as far as we see them.
fn own_processes() -> u64 {
    let own = geteuid().as_raw();
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let tasks = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        (entry.metadata().ok()?.uid() == own).then_some(())?;
        Some(fs::read_dir(entry.path().join("task")).map_or(1, Iterator::count))
    });
    u64::try_from(tasks.sum::<usize>()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_find_at_least_ourselves() {
        assert!(own_processes() >= 1);
    }
}
