//! Processes that left their group behind: a program that starts a session of its own is out of reach of the signal
//! that ends its group. The daemon asks the kernel to be given such orphans, and ends them.
//!
//! **Invariant:** a process that [`Group`](super::group::Group) has started and not yet taken leave of is never touched.

use std::{
    collections::HashSet,
    fs,
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// Held while a program is being started: between its first moment and [`expect`] nobody may look for strays.
static STARTING: RwLock<()> = RwLock::new(());
/// Leaders of groups.
static EXPECTED: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// From now on orphans of our programs become our own children. For daemons only: it concerns the whole process.
pub fn adopt() {
    if let Err(error) = prctl::set_child_subreaper(true) {
        tracing::warn!(%error, "cannot adopt processes that programs leave behind");
    }
}

/// To be held from before a start until behind [`expect`]. Several may be.
pub(super) fn starting() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// This process is somebody's business.
pub(super) fn expect(leader: Pid) {
    with_expected(|expected| {
        expected.insert(leader.as_raw());
    });
}

/// It is nobody's any more.
pub(super) fn forget(leader: Pid) {
    with_expected(|expected| {
        expected.remove(&leader.as_raw());
    });
}

/// Kills every child that nobody expects, and takes the end of those that have ended. How many were still alive. Waits for
/// starts that are half done, which takes a few milliseconds.
pub fn sweep() -> usize {
    let _no_starts = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    let children = children();
    let strays: Vec<Pid> = with_expected(|expected| {
        let strays = children.iter().filter(|child| !expected.contains(child));
        strays.map(|child| Pid::from_raw(*child)).collect()
    });
    let mut alive = 0;
    for stray in strays {
        let ended = |result: nix::Result<_>| !matches!(result, Ok(nix::sys::wait::WaitStatus::StillAlive));
        if ended(waitpid(stray, Some(WaitPidFlag::WNOHANG))) {
            continue;
        }
        alive += 1;
        let _ = kill(stray, Signal::SIGKILL);
        // If its end takes longer, the next sweep takes it.
        let _ = waitpid(stray, Some(WaitPidFlag::WNOHANG));
    }
    alive
}

/// The ids of our children. Empty where the kernel does not tell.
fn children() -> Vec<i32> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

fn with_expected<T>(act: impl FnOnce(&mut HashSet<i32>) -> T) -> T {
    let mut expected = EXPECTED.lock().unwrap_or_else(PoisonError::into_inner);
    act(expected.get_or_insert_default())
}
