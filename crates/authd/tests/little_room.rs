//! The key file where a file may not grow as it should. The limit holds for the whole process, so this test has one of its
//! own.

use muster_authd::file::KeyFileOnDisk;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};

const OLD: &str = "001 a any k\n";
const NEW: &str = "002 b any k\n";
/// What any file may have, in bytes.
const ROOM: u64 = 512;

#[test]
fn lines_for_which_there_is_no_room_leave_the_file_as_it_was() {
    // The signal would end the process before the call tells of it.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().expect("blocked");
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("client.keys");
    let read = || std::fs::read_to_string(&path).expect("read");
    let (mut file, _) = KeyFileOnDisk::open(&path).expect("opened");
    file.replace(OLD.as_bytes()).expect("written");
    let many: String = (2..200)
        .map(|number| format!("{number:03} n{number} any k\n"))
        .collect();

    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("a limit");
    setrlimit(Resource::RLIMIT_FSIZE, ROOM, hard).expect("set");
    assert!(!file.append(many.as_bytes()));
    assert_eq!(read(), OLD);
    assert!(!file.was_changed().expect("looked"));
    assert!(file.replace(many.as_bytes()).is_err());
    assert_eq!(read(), OLD);
    assert!(file.append(NEW.as_bytes()), "what has room is added");
    assert_eq!(read(), [OLD, NEW].concat());
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).expect("set back");
}
