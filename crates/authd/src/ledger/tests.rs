use std::{fs, path::Path};

use muster_proto::enrollment::{force::Rules, request::GivenAddress};

use super::*;
use crate::registry::Refused;

const NOW_MS: u64 = 1_795_242_600_000;
const POLICY: Policy<'static> = Policy {
    manager_name: "vm",
    max_agents: 0,
};

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn try_open(&self) -> anyhow::Result<Ledger> {
        let places = Places {
            keys: self.path("client.keys"),
            database: self.path("enrollment.db"),
            timestamps: self.path("agents-timestamp"),
        };
        Ledger::open(&places, EventMaker { node: "mgr".to_owned() }, NOW_MS)
    }

    fn open(&self) -> Ledger {
        self.try_open().expect("opened")
    }

    fn keys(&self) -> String {
        fs::read_to_string(self.path("client.keys")).unwrap_or_default()
    }

    fn events(&self) -> Vec<String> {
        let database = rusqlite::Connection::open(self.path("enrollment.db")).expect("opened");
        let mut statement = database
            .prepare("SELECT event FROM outbox ORDER BY number")
            .expect("prepared");
        let blobs = statement
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .expect("queried");
        blobs.map(|blob| action_and_id(&blob.expect("blob"))).collect()
    }
}

fn action_and_id(blob: &[u8]) -> String {
    let text = String::from_utf8_lossy(blob);
    let value = |name: &str| {
        let (_, behind) = text.split_once(&format!("\"{name}\":\"")).expect("the field");
        behind.split('"').next().expect("a value").to_owned()
    };
    format!("{} {}", value("action"), value("agent_id"))
}

fn ask(name: &str, address: &str) -> Ask {
    Ask {
        name: name.to_owned(),
        address: GivenAddress::parse(address),
        id: None,
        key_hash: None,
        rules: Rules {
            disconnected_time: None,
            after_registration_time: 0,
            ..Rules::default()
        },
        groups: Vec::new(),
        method: Method::Remote,
        source: None,
    }
}

fn grant(ledger: &mut Ledger, batch: &mut Batch, ask: &Ask) -> KeyEntry {
    let Verdict::Grant(gives_way) = ledger.decide(ask, &KnownLiveness::new(), &POLICY, NOW_MS) else {
        panic!("refused")
    };
    let key = Secret::new(format!("key-of-{}", ask.name));
    ledger
        .grant(batch, ask, &gives_way, key, Trace::Line, NOW_MS)
        .expect("granted")
}

fn enroll(ledger: &mut Ledger, ask: &Ask) -> Result<KeyEntry, CommitError> {
    let mut batch = ledger.batch();
    let entry = grant(ledger, &mut batch, ask);
    ledger.commit(batch, Trace::Line).map(|_| entry)
}

/// Makes the next replacement of the key file fail, whoever runs the test.
fn break_writing(home: &Home) {
    fs::create_dir(home.path("client.keys.muster-new")).expect("made");
}

fn mend_writing(home: &Home) {
    fs::remove_dir(home.path("client.keys.muster-new")).expect("removed");
}

#[test]
fn a_granted_key_is_in_the_file_in_the_database_and_in_the_outbox() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("web-01", "10.3.0.0/255.255.0.0")).expect("committed");
    assert_eq!(home.keys(), "001 web-01 10.3.0.0/16 key-of-web-01\n");
    assert_eq!(home.events(), ["enrolled 001"]);
    drop(ledger);
    let again = home.open();
    assert_eq!(again.registry().registered[&AgentId::new("001")], 1_795_242_600);
    assert_eq!(home.events(), ["enrolled 001"], "a restart tells nothing twice");
}

#[test]
fn many_keys_of_one_batch_are_one_write() {
    let home = Home::new();
    let mut ledger = home.open();
    let mut batch = ledger.batch();
    for name in ["a1", "b1", "c1"] {
        grant(&mut ledger, &mut batch, &ask(name, "any"));
    }
    assert_eq!(home.keys(), "");
    ledger.commit(batch, Trace::Line).expect("committed");
    assert_eq!(
        home.keys(),
        "001 a1 any key-of-a1\n002 b1 any key-of-b1\n003 c1 any key-of-c1\n"
    );
}

#[test]
fn a_batch_that_cannot_be_written_is_as_if_it_had_never_been() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "10.0.0.1")).expect("committed");
    let before = (home.keys(), ledger.registry().registered.clone(), home.events());

    break_writing(&home);
    let mut batch = ledger.batch();
    grant(&mut ledger, &mut batch, &ask("a1", "10.0.0.2"));
    grant(&mut ledger, &mut batch, &ask("b1", "any"));
    assert!(matches!(ledger.commit(batch, Trace::Line), Err(CommitError::File(_))));
    assert_eq!(
        (home.keys(), ledger.registry().registered.clone(), home.events()),
        before
    );
    assert_eq!(ledger.registry().keys.live().len(), 1);
    assert_eq!(ledger.registry().keys.removed().len(), 0);

    mend_writing(&home);
    assert_eq!(
        enroll(&mut ledger, &ask("b1", "any")).expect("committed").id.as_str(),
        "002"
    );
}

#[test]
fn a_replaced_agent_goes_and_its_successor_comes() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    assert_eq!(home.keys(), "002 a1 any key-of-a1\n001 !a1 any key-of-a1\n");
    assert_eq!(home.events(), ["enrolled 001", "removed 001", "enrolled 002"]);
}

#[test]
fn another_key_under_the_same_id_is_told_as_a_rotation_and_keeps_its_row() {
    let home = Home::new();
    let mut ledger = home.open();
    let wish = Ask {
        id: Some(AgentId::new("050")),
        ..ask("a1", "any")
    };
    enroll(&mut ledger, &wish).expect("committed");
    enroll(
        &mut ledger,
        &Ask {
            name: "b1".to_owned(),
            ..wish
        },
    )
    .expect("committed");
    assert_eq!(home.events(), ["enrolled 050", "key_rotated 050"]);
    drop(ledger);
    assert_eq!(home.open().registry().registered.len(), 1);
    assert_eq!(home.events().len(), 2);
}

#[test]
fn purging_drops_earlier_removed_lines_with_the_first_write() {
    let home = Home::new();
    fs::write(home.path("client.keys"), "001 a1 any k\n009 !old any k\n").expect("written");
    let mut ledger = home.open();
    assert!(home.keys().contains("!old"));
    let mut batch = ledger.batch();
    let why = (Removal::Asked, Method::Local);
    ledger
        .remove(&mut batch, &AgentId::new("001"), Trace::Nothing, why, NOW_MS)
        .expect("removed");
    ledger.commit(batch, Trace::Nothing).expect("committed");
    assert_eq!(home.keys(), "");
    assert_eq!(ledger.registry().keys.next_id(), Some(AgentId::new("010")));
}

#[test]
fn a_key_file_that_cannot_be_read_is_no_empty_key_file() {
    let home = Home::new();
    fs::create_dir(home.path("client.keys")).expect("made");
    let error = home.try_open().err().expect("refused");
    assert!(
        format!("{error:#}").contains("is not replaced by an empty one"),
        "{error:#}"
    );
}

#[test]
fn an_edit_by_hand_is_taken_over_before_the_next_write() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    fs::write(home.path("client.keys"), "001 a1 any key-of-a1\n020 hand any kk\n").expect("written");
    assert!(ledger.take_over_edits(NOW_MS).expect("looked"));
    assert!(!ledger.take_over_edits(NOW_MS).expect("looked"));
    assert_eq!(
        enroll(&mut ledger, &ask("b1", "any")).expect("committed").id.as_str(),
        "021"
    );
    assert_eq!(
        home.keys(),
        "001 a1 any key-of-a1\n020 hand any kk\n021 b1 any key-of-b1\n"
    );
    assert_eq!(home.events(), ["enrolled 001", "enrolled 020", "enrolled 021"]);
}

#[test]
fn a_file_that_was_emptied_is_restored_by_the_next_write() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    fs::write(home.path("client.keys"), "").expect("written");
    ledger.take_over_edits(NOW_MS).expect("looked");
    enroll(&mut ledger, &ask("b1", "any")).expect("committed");
    assert_eq!(home.keys(), "001 a1 any key-of-a1\n002 b1 any key-of-b1\n");
}

#[test]
fn what_happened_between_file_and_database_is_told_at_the_next_start() {
    let home = Home::new();
    enroll(&mut home.open(), &ask("a1", "any")).expect("committed");
    enroll(&mut home.open(), &ask("b1", "any")).expect("committed");
    fs::write(home.path("client.keys"), "002 b1 any key-of-b1\n003 c1 any kk\n").expect("written");
    home.open();
    let mut events = home.events().split_off(2);
    events.sort();
    assert_eq!(events, ["enrolled 003", "removed 001"]);
}

#[test]
fn registration_times_are_written_in_the_stock_form_and_restored_from_it() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    ledger.write_timestamps().expect("written");
    drop(ledger);
    let text = fs::read_to_string(home.path("agents-timestamp")).expect("read");
    assert!(text.starts_with("001 a1 any 2026-11-21 "), "{text}");
    remove_database(home.directory.path());
    assert_eq!(home.open().registry().registered[&AgentId::new("001")], 1_795_242_600);
}

fn inode(home: &Home) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(home.path("client.keys")).expect("metadata").ino()
}

#[test]
fn agents_that_only_come_are_added_to_the_file_and_survive_a_crash() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    assert!(!ledger.is_untidy(), "the first write is whole");
    let before = inode(&home);
    enroll(&mut ledger, &ask("b1", "any")).expect("committed");
    enroll(&mut ledger, &ask("c1", "any")).expect("committed");
    assert!(ledger.is_untidy());
    assert_eq!(inode(&home), before);
    let lines = "001 a1 any key-of-a1\n002 b1 any key-of-b1\n003 c1 any key-of-c1\n";
    assert_eq!(home.keys(), lines);
    // Nothing is written at its end: as after a crash.
    drop(ledger);
    let mut again = home.open();
    assert_eq!(again.registry().keys.live().len(), 3);
    assert_eq!(home.events(), ["enrolled 001", "enrolled 002", "enrolled 003"]);
    enroll(&mut again, &ask("d1", "any")).expect("committed");
    assert_ne!(inode(&home), before, "what was found at the start is replaced");
    assert_eq!(home.keys(), format!("{lines}004 d1 any key-of-d1\n"));
}

#[test]
fn an_agent_added_behind_removed_ones_moves_before_them_when_the_file_is_tidied() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    enroll(&mut ledger, &ask("b1", "any")).expect("committed");
    let gone = "001 !a1 any key-of-a1\n";
    assert_eq!(
        home.keys(),
        format!("002 a1 any key-of-a1\n{gone}003 b1 any key-of-b1\n")
    );
    assert!(ledger.is_untidy());
    ledger.tidy().expect("written");
    assert!(!ledger.is_untidy() && !ledger.take_over_edits(NOW_MS).expect("looked"));
    assert_eq!(
        home.keys(),
        format!("002 a1 any key-of-a1\n003 b1 any key-of-b1\n{gone}")
    );
}

#[test]
fn a_file_that_cannot_be_tidied_says_everything_and_goes_on_growing() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    enroll(&mut ledger, &ask("b1", "any")).expect("committed");
    break_writing(&home);
    ledger.tidy().expect_err("refused");
    assert!(ledger.is_untidy());
    enroll(&mut ledger, &ask("c1", "any")).expect("committed");
    assert_eq!(home.keys().lines().count(), 3);
    mend_writing(&home);
    ledger.tidy().expect("written");
    assert!(!ledger.is_untidy());
    assert_eq!(home.keys().lines().count(), 3);
}

#[test]
fn a_removal_behind_added_agents_replaces_the_file_and_one_that_fails_takes_none_of_them_away() {
    let home = Home::new();
    let mut ledger = home.open();
    for name in ["a1", "b1", "c1"] {
        enroll(&mut ledger, &ask(name, "any")).expect("committed");
    }
    let remove = |ledger: &mut Ledger| {
        let mut batch = ledger.batch();
        let why = (Removal::Asked, Method::Local);
        ledger
            .remove(&mut batch, &AgentId::new("001"), Trace::Line, why, NOW_MS)
            .expect("removed");
        ledger.commit(batch, Trace::Line)
    };
    break_writing(&home);
    let before = home.keys();
    remove(&mut ledger).expect_err("refused");
    assert_eq!((home.keys(), ledger.registry().keys.live().len()), (before, 3));
    mend_writing(&home);
    assert_eq!(remove(&mut ledger).expect("committed"), Wrote::Whole);
    assert_eq!(
        home.keys(),
        "003 c1 any key-of-c1\n002 b1 any key-of-b1\n001 !a1 any key-of-a1\n"
    );
}

#[test]
fn an_edit_of_a_file_that_has_grown_is_taken_over_and_then_the_file_is_replaced() {
    let home = Home::new();
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("a1", "any")).expect("committed");
    enroll(&mut ledger, &ask("b1", "any")).expect("committed");
    // An editor that has read the file before the second agent came.
    fs::write(home.path("client.keys"), "001 a1 any key-of-a1\n020 hand any kk").expect("written");
    assert!(ledger.take_over_edits(NOW_MS).expect("looked"));
    assert!(!ledger.is_untidy());
    let mut batch = ledger.batch();
    grant(&mut ledger, &mut batch, &ask("c1", "any"));
    assert_eq!(ledger.commit(batch, Trace::Line).expect("committed"), Wrote::Whole);
    let mut lines: Vec<_> = home.keys().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "001 a1 any key-of-a1",
            "002 b1 any key-of-b1",
            "020 hand any kk",
            "021 c1 any key-of-c1"
        ]
    );
}

#[test]
fn half_a_line_at_the_end_swallows_no_agent() {
    let home = Home::new();
    fs::write(home.path("client.keys"), "001 a1 any key-of-a1\n002 b1 an").expect("written");
    let mut ledger = home.open();
    enroll(&mut ledger, &ask("c1", "any")).expect("committed");
    assert_eq!(home.keys(), "001 a1 any key-of-a1\n003 c1 any key-of-c1\n");
}

#[test]
fn half_a_line_that_a_killed_daemon_left_is_no_agent() {
    let home = Home::new();
    enroll(&mut home.open(), &ask("a1", "any")).expect("committed");
    let mut text = home.keys();
    for number in 2.. {
        text.push_str(&format!("{number:03} n{number} any key-of-n{number}\n"));
        if text.len() > 4096 {
            break;
        }
    }
    text.truncate(4096);
    let whole = text.lines().count() - 1;
    let half_id = text
        .lines()
        .last()
        .expect("a line")
        .split(' ')
        .next()
        .expect("an id")
        .to_owned();
    fs::write(home.path("client.keys"), &text).expect("written");
    let mut ledger = home.open();
    assert_eq!(ledger.registry().keys.live().len(), whole);
    let entry = enroll(&mut ledger, &ask("next", "any")).expect("committed");
    assert_eq!(entry.id.as_str(), half_id);
    assert_eq!(home.keys().lines().count(), whole + 1);
}

#[test]
fn purging_replaces_the_file_while_there_is_something_to_purge() {
    let home = Home::new();
    fs::write(home.path("client.keys"), "009 !old any k\n").expect("written");
    let mut ledger = home.open();
    let mut enroll = |name: &str| {
        let mut batch = ledger.batch();
        grant(&mut ledger, &mut batch, &ask(name, "any"));
        ledger.commit(batch, Trace::Nothing).expect("committed")
    };
    assert_eq!([enroll("a1"), enroll("b1")], [Wrote::Whole, Wrote::Added]);
    assert_eq!(home.keys(), "010 a1 any key-of-a1\n011 b1 any key-of-b1\n");
}

fn remove_database(directory: &Path) {
    for name in ["enrollment.db", "enrollment.db-wal", "enrollment.db-shm"] {
        let _ = fs::remove_file(directory.join(name));
    }
}

#[test]
fn leased_ids_are_given_from_blocks_that_outlive_a_restart_and_a_failed_write() {
    let home = Home::new();
    let leased = || {
        let mut ledger = home.open();
        ledger.give_only_leased_ids().expect("reads");
        ledger
    };
    let block = |first| Block { first, count: 2 };
    enroll(&mut home.open(), &ask("a1", "any")).expect("committed");
    let mut ledger = leased();
    let verdict = ledger.decide(&ask("b1", "any"), &KnownLiveness::new(), &POLICY, NOW_MS);
    assert_eq!(verdict, Verdict::Refuse(Refused::Full));
    ledger.take_block(block(300)).expect("fits");
    assert!(ledger.take_block(block(301)).is_err(), "one of them is in the other");
    break_writing(&home);
    enroll(&mut ledger, &ask("b1", "any")).expect_err("cannot be written");
    mend_writing(&home);
    assert_eq!(
        ledger.registry().next_id(),
        Some(AgentId::new("301")),
        "what was refused may be left out"
    );
    let mut ledger = leased();
    for id in ["300", "301"] {
        let entry = enroll(&mut ledger, &ask(&format!("new-{id}"), "any")).expect("committed");
        assert_eq!(entry.id.as_str(), id);
    }
    let mut ledger = leased();
    assert_eq!(ledger.registry().next_id(), None);
    ledger.take_block(block(500)).expect("fits");
    assert_eq!(ledger.registry().next_id(), Some(AgentId::new("500")));
    assert!(home.open().take_block(block(700)).is_err(), "ids are not leased there");
}
