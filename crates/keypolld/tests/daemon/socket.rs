//! A service on a socket.

use std::io::Write;

use muster_proto::{enrollment::force::Rules, local::auth::ErrorCode};

use crate::support::{FakeAuthd, Home, KEY, Service, agent, until};

const SOCKET: &str = "<socket>service.sock</socket>";

#[test]
fn the_service_sees_the_bare_text_and_its_agent_is_registered() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    let service = Service::answering(&home, |_| agent("001", "web-01", "10.3.0.0/16", KEY));
    let daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_registered_total", 1);
    assert_eq!(service.asked(), ["id:001"]);
    let adds = authd.adds();
    assert_eq!(adds.len(), 1);
    assert_eq!((adds[0].name.as_str(), adds[0].ip.as_str()), ("web-01", "10.3.0.0/16"));
    assert_eq!(adds[0].id.as_ref().map(|id| id.as_str()), Some("001"));
    assert_eq!(adds[0].key.as_ref().map(|key| key.expose()), Some(KEY));
    assert!(adds[0].force.is_none() && adds[0].key_hash.is_none() && adds[0].groups.is_empty());
    assert!(!home.log().contains(KEY), "the key is in the log");
    daemon.stop();
    let events = home.events();
    assert!(events[0].contains(r#"{"keypoll":{"lookup":"id","value":"001","outcome":"requested","duration_ms":0}}"#));
    assert!(events[1].contains(r#""outcome":"registered""#) && events[1].contains(r#""agent_id":"001""#));
    assert_eq!(events.len(), 2);
    assert!(!events.concat().contains(KEY));
}

#[test]
fn an_agent_is_found_by_its_address() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    let service = Service::answering(&home, |request| agent("007", "web-07", &request[3..], KEY));
    let _daemon = home.start();
    let full = "ip:2001:0DB8:0000:0000:0000:0000:0000:0001";
    home.ask("ip:192.168.1.100");
    home.wait_for("keypoll_registered_total", 1);
    home.ask(full);
    home.wait_for("keypoll_replaced_total", 1);
    assert_eq!(service.asked(), ["ip:192.168.1.100", full]);
    assert_eq!(authd.agents(), [format!("007 web-07 {} {KEY}", &full[3..])]);
}

#[test]
fn an_answer_in_pieces_and_text_behind_it_do_no_harm() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    let _service = Service::serving(&home, |_, stream| {
        let answer = agent("001", "web-01", "any", KEY);
        let (first, second) = answer.split_at(20);
        for piece in [first, second, "\nthank you } {"] {
            stream.write_all(piece.as_bytes()).expect("sent");
            std::thread::park_timeout(std::time::Duration::from_millis(100));
        }
    });
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_registered_total", 1);
    assert_eq!(authd.agents(), [format!("001 web-01 any {KEY}")]);
}

#[test]
fn nothing_is_registered_that_was_not_asked_for_or_cannot_be() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    let _service = Service::answering(&home, |request| match request {
        "id:101" => agent("902", "web-902", "any", KEY),
        "id:102" => agent("102", "bad name", "any", KEY),
        "id:103" => agent("103", "web-103", "any", "a b"),
        "id:104" => r#"{"error":4,"message":"no such agent"}"#.to_owned(),
        "id:105" => r#"{"error":"no","data":{}}"#.to_owned(),
        "id:106" => "Segmentation fault".to_owned(),
        "id:107" => r#"{"error":0,"data":{"id":107,"name":"x","ip":"any","key":"k"}}"#.to_owned(),
        "ip:10.0.0.1" => agent("001", "web-01", "10.0.0.2", KEY),
        _ => String::new(),
    });
    let _daemon = home.start();
    for request in [
        "id:101",
        "id:102",
        "id:103",
        "id:104",
        "id:105",
        "id:106",
        "id:107",
        "ip:10.0.0.1",
    ] {
        home.ask(request);
    }
    home.wait_for("keypoll_malformed_total", 5);
    home.wait_for("keypoll_other_agent_total", 2);
    home.wait_for("keypoll_not_found_total", 1);
    assert!(authd.agents().is_empty());
    assert!(!home.log().contains(KEY));
}

#[test]
fn an_agent_that_is_there_as_it_should_be_is_left_alone() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    authd.knows("001", "web-01", "any", KEY);
    authd.knows("002", "web-02", "10.3.0.0", KEY);
    authd.knows("003", "web-03", "any", "another key");
    let _service = Service::answering(&home, |request| match request {
        "id:001" => agent("001", "web-01", "any", KEY),
        "id:002" => agent("002", "web-02", "10.3.0.0/16", KEY),
        _ => agent("003", "web-03", "any", KEY),
    });
    let _daemon = home.start();
    for request in ["id:001", "id:002", "id:003"] {
        home.ask(request);
    }
    home.wait_for("keypoll_unchanged_total", 2);
    home.wait_for("keypoll_replaced_total", 1);
    assert_eq!(authd.adds().len(), 1);
}

#[test]
fn a_refusal_of_authd_is_said_and_remembered() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    authd.refuse_all(ErrorCode::DuplicateName);
    let service = Service::answering(&home, |_| agent("001", "web-01", "any", KEY));
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_refused_total", 1);
    home.ask("id:001");
    home.wait_for("keypoll_requests_remembered_total", 1);
    assert_eq!(service.asked().len(), 1);
    let log = home.log();
    assert!(
        log.contains("authd refuses: Duplicate name (9008); its log says which rule"),
        "{log}"
    );
    assert!(!log.contains(KEY));
}

#[test]
fn a_restart_of_authd_in_between_costs_nothing() {
    let home = Home::new(SOCKET);
    let service = Service::answering(&home, |_| agent("001", "web-01", "any", KEY));
    let _daemon = home.start();
    home.ask("id:001");
    until("the service is asked", || service.asked().len() == 1);
    let authd = FakeAuthd::listen(&home);
    home.wait_for("keypoll_registered_total", 1);
    assert_eq!(authd.agents().len(), 1);
}

#[test]
fn force_insert_of_the_older_block_means_what_it_meant() {
    for (option, enabled) in [
        ("<force_insert>yes</force_insert>", true),
        ("<force_insert>no</force_insert>", false),
        ("", true),
    ] {
        let home = Home::empty();
        home.write_config(&format!(
            "<wodle name=\"agent-key-polling\"><socket>service.sock</socket>{option}</wodle>"
        ));
        let authd = FakeAuthd::listen(&home);
        let _service = Service::answering(&home, |_| agent("001", "web-01", "any", KEY));
        let _daemon = home.start();
        home.ask("id:001");
        home.wait_for("keypoll_registered_total", 1);
        let rules = Rules {
            enabled,
            key_mismatch: false,
            disconnected_time: None,
            after_registration_time: 0,
        };
        assert_eq!(authd.adds()[0].force, Some(rules));
    }
}
