//! `queue/sockets/auth`, seen from a local program: sessions of the stock daemon, replayed.

use std::io::{Read, Write};

use crate::support::{FakeRemoted, Home};

/// One session with the stock daemon: `>` what was sent, `<` what came back. Its head says how it was made.
const SESSION: &str = include_str!("fixtures/local-session.txt");

#[test]
fn a_session_with_the_stock_daemon_goes_the_same_way() {
    let home = Home::new("");
    let _remoted = FakeRemoted::start(&home, |_| None);
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .expect("a host name")
        .trim()
        .to_owned();
    let _daemon = home.start();
    let mut lines = SESSION
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut pairs = 0;
    while let (Some(sent), Some(expected)) = (lines.next(), lines.next()) {
        let sent = sent.strip_prefix("> ").expect("a request").replace("$HOST", &own);
        let expected = expected
            .strip_prefix("< ")
            .expect("an answer")
            .replace("$PORT", &home.port.to_string());
        assert_eq!(masked(&home.local(&sent)), expected, "{sent}");
        pairs += 1;
    }
    assert_eq!(lines.next(), None);
    assert!(pairs > 50, "{pairs}");
}

#[test]
fn an_agent_that_is_there_as_it_shall_be_is_left_alone() {
    let home = Home::new("");
    let _remoted = FakeRemoted::start(&home, |_| None);
    let _daemon = home.start();
    let ensure = |ip: &str, key: &str| {
        let force = r#"{"enabled":true,"key_mismatch":false,"disconnected_time":{"enabled":false,"value":0},"after_registration_time":0}"#;
        home.local(&format!(
            r#"{{"function":"ensure","arguments":{{"id":"7","name":"web","ip":"{ip}","key":"{key}","force":{force}}}}}"#
        ))
    };
    let is = |what: &str| format!(r#"{{"error":0,"data":{{"ensured":"{what}"}}}}"#);
    assert_eq!(ensure("10.3.0.0/16", "k1"), is("added"));
    let before = home.keys();
    assert_eq!(before, "007 web 10.3.0.0/16 k1\n");
    assert_eq!(ensure("10.3.0.0/255.255.0.0", "k1"), is("unchanged"));
    assert_eq!(home.keys(), before);
    assert_eq!(ensure("10.3.0.0/24", "k1"), is("replaced"));
    assert_eq!(ensure("10.3.0.0/24", "k2"), is("replaced"));
    assert_eq!(
        home.keys(),
        "007 web 10.3.0.0/24 k2\n007 !web 10.3.0.0 k1\n007 !web 10.3.0.0 k1\n"
    );
    let without_id = r#"{"function":"ensure","arguments":{"name":"web","ip":"any","key":"k"}}"#;
    assert_eq!(home.local(without_id), r#"{"error":9010,"message":"No such agent ID"}"#);
    let refused = r#"{"function":"ensure","arguments":{"id":"007","name":"web","ip":"any","key":"k"}}"#;
    assert_eq!(home.local(refused), r#"{"error":9012,"message":"Duplicate ID"}"#);
}

/// A generated key counts as its form.
fn masked(answer: &str) -> String {
    let Some((front, behind)) = answer.split_once("\"key\":\"") else {
        return answer.to_owned();
    };
    let (key, rest) = behind.split_once('"').expect("a quote");
    let is_generated = key.len() == 64 && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    format!("{front}\"key\":\"{}\"{rest}", if is_generated { "*" } else { key })
}

#[test]
fn the_order_of_the_file_is_the_stock_one() {
    let home = Home::new("");
    home.write(
        "etc/client.keys",
        "056 web-17 any k\n002 web-02 10.0.0.2 k2\n003 web-03 10.3.0.0/16 k3\n058 y1 any k\n059 y3 any k\n001 !web-01 any k\n050 !web-04 any k\n",
    );
    let _daemon = home.start();
    let remove = |id: &str, purge: &str| {
        home.local(&format!(
            r#"{{"function":"remove","arguments":{{"id":"{id}"{purge}}}}}"#
        ));
    };
    remove("002", "");
    assert_eq!(
        home.keys(),
        "056 web-17 any k\n059 y3 any k\n003 web-03 10.3.0.0/16 k3\n058 y1 any k\n001 !web-01 any k\n050 !web-04 any k\n002 !web-02 10.0.0.2 k2\n"
    );
    remove("003", "");
    remove("058", r#","purge":true"#);
    remove("056", r#","purge":"true""#);
    assert_eq!(
        home.keys(),
        "059 y3 any k\n001 !web-01 any k\n050 !web-04 any k\n002 !web-02 10.0.0.2 k2\n003 !web-03 10.3.0.0 k3\n056 !web-17 any k\n"
    );
}

#[test]
fn a_client_that_says_nothing_is_closed_after_a_second_and_holds_up_nobody() {
    let home = Home::new("");
    let _daemon = home.start();
    let (mut silent, mut half, mut empty) = (home.local_socket(), home.local_socket(), home.local_socket());
    half.write_all(&[20, 0, 0, 0, b'{']).expect("sent");
    empty.write_all(&[0, 0, 0, 0]).expect("sent");
    let start = std::time::Instant::now();
    assert_eq!(home.local("agentlist"), "err Unrecognized command");
    assert!(start.elapsed().as_millis() < 900, "another client had to wait");
    for socket in [&mut silent, &mut half, &mut empty] {
        assert!(matches!(socket.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_frame_over_the_cap_is_not_answered_and_the_longest_one_is() {
    let home = Home::new("");
    let _daemon = home.start();
    let mut socket = home.local_socket();
    socket.write_all(&65_537_u32.to_le_bytes()).expect("sent");
    assert!(matches!(socket.read(&mut [0; 1]), Ok(0) | Err(_)));
    let request = r#"{"function":"get","arguments":{}}"#;
    let longest = format!("{request}{}", " ".repeat(65_536 - request.len()));
    assert_eq!(home.local(&longest), r#"{"error":9010,"message":"No such agent ID"}"#);
}

#[test]
fn an_agent_replaced_under_its_own_id_can_be_replaced_again() {
    let home = Home::new("");
    let _daemon = home.start();
    let add = |name: &str| {
        home.local(&format!(
            r#"{{"function":"add","arguments":{{"name":"{name}","ip":"any","id":"050","force":{{"enabled":true,"key_mismatch":true,"disconnected_time":{{"enabled":false,"value":0}},"after_registration_time":0}}}}}}"#
        ))
    };
    for name in ["a1", "b1", "c1"] {
        assert!(add(name).starts_with(&format!(r#"{{"error":0,"data":{{"id":"050","name":"{name}""#)));
    }
    assert_eq!(
        home.events(),
        ["enrolled 050 a1", "key_rotated 050 b1", "key_rotated 050 c1"]
    );
}

#[test]
fn lines_added_by_hand_are_known_at_once_and_survive_the_next_write() {
    let home = Home::new("");
    let _daemon = home.start();
    home.enroll("OSSEC A:'a1'");
    home.write("etc/client.keys", &format!("{}020 hand any kk\n", home.keys()));
    assert_eq!(
        home.local(r#"{"function":"get","arguments":{"id":"020"}}"#),
        r#"{"error":0,"data":{"id":"020","name":"hand","ip":"any","key":"kk"}}"#
    );
    assert_eq!(home.enroll("OSSEC A:'a2'")[0], "021");
    assert!(home.keys().contains("020 hand any kk\n"));
    assert!(
        home.read("authd.log")
            .contains("somebody else has written the key file")
    );
}
