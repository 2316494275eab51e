//! Descriptors that whoever started us left open: programs must not inherit them.
//!
//! What we open ourselves is closed on exec. What we were given is not, unless it came from the service manager, whose
//! sockets are marked when they are taken.

use std::{env, fs};

use nix::unistd::close;

/// The first descriptor that the service manager passes on.
const FIRST_PASSED: i32 = 3;

/// Closes every descriptor behind the first three, except sockets from the service manager. To be called first thing in
/// `main`, before anything of ours is open.
pub fn close_inherited() {
    let passed = number("LISTEN_FDS")
        .filter(|_| number("LISTEN_PID") == i32::try_from(std::process::id()).ok())
        .unwrap_or(0);
    let kept = FIRST_PASSED.saturating_add(passed);
    // Read to its end first: the folder itself is open while it is read.
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor >= kept) {
        // That of the folder is closed already.
        let _ = close(descriptor);
    }
}

fn number(variable: &str) -> Option<i32> {
    env::var(variable).ok()?.parse().ok()
}
