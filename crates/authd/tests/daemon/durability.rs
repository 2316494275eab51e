//! What was answered is on the disk, and what is on the disk is not lost.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use crate::support::{FakeRemoted, Home};

/// Enrolls until the connection breaks; keeps what was answered.
fn enroll_until_killed(home: &Home, next: &AtomicU32, answered: &Mutex<Vec<String>>, enough: &std::sync::Barrier) {
    let mut own = 0;
    loop {
        let name = format!("agent-{}", next.fetch_add(1, Ordering::Relaxed));
        let Ok(mut tls) = home.try_connect() else { return };
        if tls.write_all(format!("OSSEC A:'{name}'\n").as_bytes()).is_err() {
            return;
        }
        let mut answer = Vec::new();
        let _ = tls.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let Some(line) = answer
            .strip_prefix("OSSEC K:'")
            .and_then(|rest| rest.strip_suffix('\''))
        else {
            return;
        };
        answered.lock().expect("not poisoned").push(line.to_owned());
        own += 1;
        if own == 10 {
            enough.wait();
        }
    }
}

#[test]
fn every_key_that_was_answered_survives_sigkill_under_load() {
    const CLIENTS: usize = 8;
    let home = Arc::new(Home::new(""));
    let daemon = home.start();
    let (next, answered) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
    let enough = Arc::new(std::sync::Barrier::new(CLIENTS + 1));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (home, next, answered, enough) = (
                Arc::clone(&home),
                Arc::clone(&next),
                Arc::clone(&answered),
                Arc::clone(&enough),
            );
            thread::spawn(move || enroll_until_killed(&home, &next, &answered, &enough))
        })
        .collect();
    enough.wait();
    daemon.kill();
    clients.into_iter().for_each(|client| client.join().expect("ended"));

    let answered = answered.lock().expect("not poisoned").clone();
    assert!(answered.len() >= CLIENTS * 10);
    let keys = home.keys();
    let lines: std::collections::HashSet<&str> = keys.lines().collect();
    for line in &answered {
        assert!(
            lines.contains(line.as_str()),
            "{line:.20} was answered and is not in the file"
        );
    }

    let daemon = home.start();
    let again = home.enroll("OSSEC A:'afterwards'");
    assert_eq!(
        again[0].parse::<usize>().expect("a number"),
        lines.len() + 1,
        "no id is used twice"
    );
    assert_eq!(daemon.stop(), Some(0));
    let events = home.events();
    for line in home.keys().lines() {
        let id = line.split(' ').next().expect("an id");
        let told = events
            .iter()
            .filter(|event| event.starts_with(&format!("enrolled {id} ")))
            .count();
        assert_eq!(told, 1, "{id} was told {told} times");
    }
}

#[test]
fn a_write_that_fails_refuses_and_loses_nothing() {
    let home = Home::new("");
    let daemon = home.start();
    home.enroll("OSSEC A:'a1'");
    // Nothing is added to a file that somebody else has written: it has to be replaced.
    home.write("etc/client.keys", &format!("# edited\n{}", home.keys()));
    let before = home.keys();
    // A directory where the new file is to be written: not even root gets past it.
    fs::create_dir(home.path("etc/client.keys.muster-new")).expect("made");
    assert_eq!(
        home.request("OSSEC A:'a2'"),
        "ERROR: Internal manager error adding agent: a2. Unable to add agent"
    );
    assert_eq!(
        home.local(r#"{"function":"add","arguments":{"name":"a2","ip":"any"}}"#),
        r#"{"error":9001,"message":"Internal error"}"#
    );
    assert_eq!(
        home.local(r#"{"function":"remove","arguments":{"id":"001"}}"#),
        r#"{"error":9001,"message":"Internal error"}"#
    );
    assert_eq!(home.keys(), before);
    let status = home.status();
    assert!(
        !status.ready && status.degraded[0].contains("cannot be written"),
        "{status:?}"
    );

    fs::remove_dir(home.path("etc/client.keys.muster-new")).expect("removed");
    assert_eq!(home.enroll("OSSEC A:'a2'")[0], "002");
    assert!(home.status().ready);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(home.events(), ["enrolled 001 a1", "enrolled 002 a2"]);
}

#[test]
fn a_key_file_that_cannot_be_read_keeps_the_daemon_from_starting() {
    let home = Home::new("");
    fs::create_dir(home.path("etc/client.keys")).expect("made");
    let (code, text) = home.start_in_vain();
    assert_eq!(code, Some(1));
    assert!(text.contains("it is not replaced by an empty one"), "{text}");
}

#[test]
fn the_mode_of_the_key_file_is_kept_and_a_new_one_is_0640() {
    let home = Home::new("");
    let _daemon = home.start();
    let mode = || fs::metadata(home.path("etc/client.keys")).expect("metadata").mode() & 0o7777;
    home.enroll("OSSEC A:'a1'");
    assert_eq!(mode(), 0o640);
    fs::set_permissions(home.path("etc/client.keys"), fs::Permissions::from_mode(0o600)).expect("set");
    home.enroll("OSSEC A:'a2'");
    assert_eq!(mode(), 0o600);
}

#[test]
fn registration_times_are_kept_for_stock_programs() {
    let home = Home::new("");
    let daemon = home.start();
    home.enroll("OSSEC A:'a1' IP:'10.0.0.0/24'");
    home.enroll("OSSEC A:'a2'");
    home.local(r#"{"function":"remove","arguments":{"id":"002"}}"#);
    assert_eq!(daemon.stop(), Some(0));
    let text = home.read("queue/agents-timestamp");
    let line = text.strip_suffix('\n').expect("one line");
    assert!(
        line.starts_with("001 a1 10.0.0.0/24 20") && line.len() == "001 a1 10.0.0.0/24 2026-11-21 06:30:00".len(),
        "{text}"
    );
}

#[test]
fn a_restart_knows_everything_again() {
    let home = Home::new("");
    assert_eq!(
        {
            let daemon = home.start();
            home.enroll("OSSEC A:'a1'");
            daemon.stop()
        },
        Some(0)
    );
    let _daemon = home.start();
    assert_eq!(
        home.request("OSSEC A:'a1'"),
        "ERROR: Duplicate agent name: a1. Unable to add agent"
    );
    assert_eq!(home.enroll("OSSEC A:'a2'")[0], "002");
}

#[test]
fn removed_lines_found_at_the_start_go_with_the_first_write_when_purging() {
    let home = Home::new("<purge>yes</purge>");
    home.write("etc/client.keys", "001 a1 any k\n009 !old any k\n");
    let _daemon = home.start();
    assert_eq!(home.enroll("OSSEC A:'a2'")[0], "010");
    assert_eq!(home.keys().lines().count(), 2);
    assert!(!home.keys().contains("!old"));
}

#[test]
fn remoted_is_told_of_every_change() {
    let home = Home::new("");
    let remoted = FakeRemoted::start(&home, |_| None);
    let _daemon = home.start();
    home.enroll("OSSEC A:'a1'");
    assert_eq!(remoted.told(), 1, "before the agent hears its key");
    home.local(r#"{"function":"add","arguments":{"name":"a2","ip":"any"}}"#);
    assert_eq!(remoted.told(), 2);
}
