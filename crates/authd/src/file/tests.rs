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

const OLD: &str = "001 a any k\n";
const NEW: &str = "002 b any k\n";

/// A file that we have written.
fn ours(path: &Path) -> KeyFileOnDisk {
    let (mut file, _) = KeyFileOnDisk::open(path).expect("opened");
    file.replace(OLD.as_bytes()).expect("written");
    file
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("metadata").ino()
}

fn append(file: &mut KeyFileOnDisk, lines: &str) -> bool {
    file.append(lines.as_bytes())
}

fn lines(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| format!("{number:03} n{number} any k\n")).collect()
}

#[test]
fn lines_are_added_to_the_same_file_until_it_is_replaced() {
    let (_directory, path) = home();
    let mut file = ours(&path);
    let before = inode(&path);
    assert!(!file.has_grown());
    assert!(append(&mut file, NEW) && append(&mut file, "003 c any k\n"));
    assert!(file.has_grown() && !file.was_changed().expect("looked"));
    let all = [OLD, NEW, "003 c any k\n"].concat();
    assert_eq!(
        (fs::read_to_string(&path).expect("read"), inode(&path)),
        (all.clone(), before)
    );
    file.replace(all.as_bytes()).expect("written");
    assert!(!file.has_grown());
    assert_ne!(inode(&path), before);
}

#[test]
fn few_lines_are_added_within_a_page_and_many_across_its_border() {
    let few = lines(1..MANY_LINES);
    let many = lines(1..MANY_LINES + 1);
    for (lines, room, may) in [
        (&few, few.len(), true),
        (&few, few.len() - 1, false),
        (&many, many.len() - 1, true),
        (&few, PAGE as usize, true),
    ] {
        let size = 3 * PAGE - room as u64;
        assert_eq!(may_be_added(lines.as_bytes(), size), may, "{} in {room}", lines.len());
    }
    for lines in ["", "001 a any k"] {
        assert!(!may_be_added(lines.as_bytes(), 0), "{lines:?} is no line");
    }
}

#[test]
fn half_a_line_is_one_that_ends_with_a_page_and_without_its_line_feed() {
    let page = PAGE as usize;
    let text = |length: usize| {
        let mut text = OLD.repeat(page);
        text.truncate(length);
        text.into_bytes()
    };
    let last = page / OLD.len() * OLD.len();
    assert_ne!(last, page, "the lines do not end with the page");
    assert_eq!(half_line(&text(page)), Some(last));
    assert_eq!(half_line(&text(page - 1)), None);
    let mut whole = text(page);
    whole[page - 1] = b'\n';
    assert_eq!(half_line(&whole), None);
    assert_eq!(half_line(b""), None);
}

#[test]
fn a_batch_of_a_flood_is_added_behind_what_is_there() {
    let (_directory, path) = home();
    let mut file = ours(&path);
    let batch = lines(2..500);
    assert!(append(&mut file, &batch));
    assert_eq!(fs::read_to_string(&path).expect("read"), [OLD, &batch].concat());
}

#[test]
fn nothing_is_added_to_what_another_has_written() {
    let (_directory, path) = home();
    fs::write(&path, OLD).expect("written");
    let (mut file, _) = KeyFileOnDisk::open(&path).expect("opened");
    assert!(!append(&mut file, NEW), "as it was found at the start");

    let mut file = ours(&path);
    fs::write(&path, "001 other any k\n").expect("written");
    assert!(!append(&mut file, NEW), "not yet read");
    file.read().expect("read");
    assert!(!append(&mut file, NEW), "read, but not ours");
    assert_eq!(fs::read_to_string(&path).expect("read"), "001 other any k\n");
    file.replace(OLD.as_bytes()).expect("written");
    assert!(append(&mut file, NEW));
}

#[test]
fn nothing_is_added_to_another_file_in_its_place_or_to_none() {
    let (directory, path) = home();
    let mut file = ours(&path);
    let other = directory.path().join("other");
    fs::write(&other, OLD).expect("written");
    fs::rename(&other, &path).expect("renamed");
    assert!(!append(&mut file, NEW));
    assert_eq!(fs::read_to_string(&path).expect("read"), OLD);
    fs::remove_file(&path).expect("removed");
    assert!(!append(&mut file, NEW));
    assert!(!path.exists());
}

#[test]
fn nothing_is_added_behind_half_a_line() {
    let (_directory, path) = home();
    let (mut file, _) = KeyFileOnDisk::open(&path).expect("opened");
    file.replace(b"001 a any k").expect("written");
    assert!(!append(&mut file, NEW));
    assert_eq!(fs::read(&path).expect("read"), b"001 a any k");
}

#[test]
fn what_was_added_can_be_taken_back() {
    let (_directory, path) = home();
    let mut file = ours(&path);
    let before = file.stamp.expect("a stamp");
    assert!(append(&mut file, NEW));
    let open = OpenOptions::new().append(true).open(&path).expect("opened");
    file.shrink(&open, before);
    assert_eq!(fs::read_to_string(&path).expect("read"), OLD);
    assert!(!file.was_changed().expect("looked"));
    assert!(append(&mut file, NEW));
}
