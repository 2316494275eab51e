//! What a look at a home finds.

use std::os::unix::fs::symlink;

use muster_proto::shared::unpack;
use tempfile::TempDir;

use super::*;

struct Home {
    directory: TempDir,
    scanner: Scanner,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        fs::create_dir_all(directory.path().join(paths::SHARED)).expect("made");
        let scanner = Scanner::new(directory.path(), Merging::Ours);
        Self { directory, scanner }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(&format!("etc/shared/{path}"));
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    }

    fn look(&mut self, lists: &[&str]) -> Library {
        let lists = lists
            .iter()
            .map(|list| list.split(',').map(str::to_owned).collect())
            .collect();
        self.scanner.look(&BTreeSet::new(), &lists, true)
    }
}

fn names(file: &MergedFile) -> Vec<String> {
    let unpacked = unpack(&file.content).expect("a merged file");
    unpacked.files.iter().map(|(path, _)| (*path).to_owned()).collect()
}

#[test]
fn a_group_is_found_with_everything_that_can_be_pushed() {
    let mut home = Home::new();
    home.write("ar.conf", b"order\n");
    home.write("web/agent.conf", b"<agent_config>\n</agent_config>\n");
    home.write("web/z.txt", b"z");
    home.write("web/sub/deep/d.txt", b"D\n");
    home.write("web/sub/s.txt", b"S\n");
    home.write("web/empty.txt", b"");
    home.write("web/.hidden", b"no");
    home.write("web/.hid/x", b"no");
    home.write("web/nul.bin", b"a\0b");
    home.write("web/merged.mg.old", b"no");
    symlink(home.path("etc/shared/web/z.txt"), home.path("etc/shared/web/link.txt")).expect("linked");
    symlink(home.path("etc/shared/web"), home.path("etc/shared/web/round")).expect("linked");
    let library = home.look(&[]);
    let file = &library.groups["web"];
    assert_eq!(
        names(file),
        [
            "ar.conf",
            "agent.conf",
            "empty.txt",
            "link.txt",
            "sub/deep/d.txt",
            "sub/s.txt",
            "z.txt"
        ]
    );
    assert_eq!(
        fs::read(home.path("etc/shared/web/merged.mg")).expect("a copy"),
        file.content
    );
    assert_eq!(
        fs::metadata(home.path("etc/shared/web/merged.mg.new")).ok().map(|_| ()),
        None
    );
}

#[test]
fn the_copy_is_rewritten_only_when_its_sum_changes() {
    let mut home = Home::new();
    home.write("web/a.txt", b"one");
    let first = home.look(&[]);
    let copy = home.path("etc/shared/web/merged.mg");
    let inode = |path: &Path| fs::metadata(path).expect("there").ino();
    let before = inode(&copy);
    // Another file with the same bytes in its place.
    home.write("web/a.txt.new", b"one");
    fs::rename(home.path("etc/shared/web/a.txt.new"), home.path("etc/shared/web/a.txt")).expect("renamed");
    let second = home.look(&[]);
    assert!(Arc::ptr_eq(&first.groups["web"], &second.groups["web"]));
    assert_eq!(inode(&copy), before);
    home.write("web/a.txt", b"two");
    let third = home.look(&[]);
    assert_ne!(third.groups["web"].sum, first.groups["web"].sum);
    assert_ne!(inode(&copy), before);
}

#[test]
fn groups_and_files_that_come_and_go_are_noticed() {
    let mut home = Home::new();
    home.write("web/a.txt", b"a");
    assert_eq!(home.look(&[]).groups.len(), 1);
    home.write("db/b.txt", b"b");
    home.write("web/b.txt", b"b");
    let library = home.look(&[]);
    assert_eq!(names(&library.groups["web"]), ["agent.conf", "a.txt", "b.txt"]);
    assert_eq!(names(&library.groups["db"]), ["agent.conf", "b.txt"]);
    fs::remove_dir_all(home.path("etc/shared/db")).expect("removed");
    fs::remove_file(home.path("etc/shared/web/a.txt")).expect("removed");
    let library = home.look(&[]);
    assert_eq!(names(&library.groups["web"]), ["agent.conf", "b.txt"]);
    assert!(!library.groups.contains_key("db"));
}

#[test]
fn a_list_of_groups_has_its_own_directory_while_somebody_has_it() {
    let mut home = Home::new();
    home.write("default/agent.conf", b"one\n");
    home.write("default/x.txt", b"default");
    home.write("web/agent.conf", b"two\n");
    home.write("web/x.txt", b"web");
    let library = home.look(&["default,web", "web,nosuch"]);
    assert_eq!(library.lists.len(), 1);
    let file = &library.lists["default,web"];
    assert!(
        file.content
            .starts_with(b"#5288d400\n!86 agent.conf\n<!-- Source file: default/agent.conf -->\none\n")
    );
    assert!(file.content.ends_with(b"!3 x.txt\nweb"));
    let copy = home.path("var/multigroups/5288d400/merged.mg");
    assert_eq!(fs::read(&copy).expect("a copy"), file.content);
    home.write("web/x.txt", b"other");
    assert!(
        home.look(&["default,web"]).lists["default,web"]
            .content
            .ends_with(b"other")
    );
    assert!(home.look(&[]).lists.is_empty());
    assert!(!home.path("var/multigroups/5288d400").exists());
}

#[test]
fn a_needed_group_is_made() {
    let mut home = Home::new();
    let needed = BTreeSet::from(["ossec".to_owned()]);
    let library = home.scanner.look(&needed, &BTreeSet::new(), true);
    assert_eq!(
        library.groups["ossec"].content,
        b"#ossec\n!30 agent.conf\n<agent_config></agent_config>\n"
    );
    assert!(home.path("etc/shared/ossec/agent.conf").exists());
}

#[test]
fn what_others_have_merged_is_taken_as_it_is() {
    let mut home = Home::new();
    home.scanner = Scanner::new(home.directory.path(), Merging::Theirs);
    home.write("web/merged.mg", b"#web\n!1 a\nx");
    home.write("web/b.txt", b"not in it");
    home.write("empty/b.txt", b"nothing merged");
    let library = home.look(&[]);
    assert_eq!(library.groups["web"].content, b"#web\n!1 a\nx");
    assert!(!library.groups.contains_key("empty"));
}

#[test]
fn a_home_without_shared_files_has_none() {
    let directory = tempfile::tempdir().expect("directory");
    let mut scanner = Scanner::new(directory.path(), Merging::Ours);
    let library = scanner.look(&BTreeSet::new(), &BTreeSet::new(), true);
    assert!(library.groups.is_empty() && library.lists.is_empty());
}

#[test]
fn links_that_lead_out_are_left_out() {
    let mut home = Home::new();
    home.write("web/a.txt", b"a");
    fs::write(home.path("etc/client.keys"), b"001 agent any secret\n").expect("written");
    symlink("../../client.keys", home.path("etc/shared/web/keys.txt")).expect("linked");
    symlink(home.path("etc"), home.path("etc/shared/evil")).expect("linked");
    symlink("../client.keys", home.path("etc/shared/ar.conf")).expect("linked");
    let library = home.look(&[]);
    assert_eq!(names(&library.groups["web"]), ["agent.conf", "a.txt"]);
    assert_eq!(library.groups.len(), 1);
}
