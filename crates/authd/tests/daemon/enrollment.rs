//! Port 1515, seen from an agent.

use std::io::{Read, Write};

use crate::support::{Home, answer, client_config, tls12_config};
use muster_proto::ipc::control::{Request, Response};
use sha1::{Digest, Sha1};

const NO_FORCE_TIMES: &str = "<force><enabled>yes</enabled><key_mismatch>yes</key_mismatch>\
    <disconnected_time enabled=\"no\"/><after_registration_time>0</after_registration_time></force>";

fn refused(text: &str) -> String {
    format!("ERROR: {text}. Unable to add agent")
}

#[test]
fn a_name_is_enough_for_a_key() {
    let home = Home::new("");
    let _daemon = home.start();
    let key = home.enroll("OSSEC A:'web-01'");
    assert_eq!(key[..3], ["001", "web-01", "any"]);
    assert!(
        key[3].len() == 64 && key[3].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
        "{}",
        key[3]
    );
    assert_eq!(home.keys(), format!("{}\n", key.join(" ")));
    assert_eq!(home.events(), ["enrolled 001 web-01"]);
}

#[test]
fn clients_that_stop_at_tls_1_2_are_served() {
    let home = Home::new("");
    let _daemon = home.start();
    let mut tls = home.connect_with(tls12_config());
    tls.write_all(b"OSSEC A:'web-06'\n").expect("sent");
    assert!(answer(&mut tls).starts_with("OSSEC K:'001 web-06 any "));
}

#[test]
fn the_end_of_the_handshake_is_acknowledged_at_once() {
    let home = Home::new("");
    let _daemon = home.start();
    // An agent with Nagle's algorithm sends its request when the end of the handshake is acknowledged. A kernel that
    // waits does so for 40 ms, every time.
    let quickest = (0..20).map(|number| {
        let start = std::time::Instant::now();
        home.enroll(&format!("OSSEC A:'a{number}'"));
        start.elapsed()
    });
    let quickest = quickest.min().expect("twenty");
    assert!(quickest.as_millis() < 35, "{quickest:?}");
}

#[test]
fn both_families_are_served_when_ipv6_is_on() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        muster_test_skip::skipped("there is no IPv6 here");
        return;
    }
    let home = Home::new("<ipv6>yes</ipv6>");
    home.write(
        "etc/ossec.conf",
        &home
            .read("etc/ossec.conf")
            .replace("<local_ip>127.0.0.1</local_ip>", ""),
    );
    let _daemon = home.start();
    assert_eq!(home.enroll("OSSEC A:'a1' IP:'src'")[2], "127.0.0.1");
    let mut tls = home.connect_to("::1");
    tls.write_all(b"OSSEC A:'a2' IP:'src'\n").expect("sent");
    assert!(answer(&mut tls).starts_with("OSSEC K:'002 a2 0000:0000:0000:0000:0000:0000:0000:0001 "));
}

#[test]
fn addresses_are_given_taken_from_the_connection_or_any() {
    let home = Home::new("");
    let _daemon = home.start();
    for (line, in_answer, in_file) in [
        ("OSSEC A:'a1' IP:'src'", "127.0.0.1", "001 a1 127.0.0.1 "),
        (
            "OSSEC A:'a2' IP:'10.3.0.0/255.255.0.0'",
            "10.3.0.0/255.255.0.0",
            "002 a2 10.3.0.0/16 ",
        ),
        ("OSSEC A:'a3' IP:'10.6.6.6/32'", "10.6.6.6/32", "003 a3 10.6.6.6 "),
        (
            "OSSEC A:'a4' IP:'2001:db8::1'",
            "2001:0DB8:0000:0000:0000:0000:0000:0001",
            "004 a4 2001:0DB8:0000:0000:0000:0000:0000:0001 ",
        ),
        ("OSSEC A:'a5' IP:'!10.0.0.5'", "10.0.0.5", "005 a5 10.0.0.5 "),
        ("OSSEC A:'a6'", "any", "006 a6 any "),
    ] {
        assert_eq!(home.enroll(line)[2], in_answer, "{line}");
        assert!(home.keys().lines().any(|found| found.starts_with(in_file)), "{line}");
    }
}

#[test]
fn source_address_is_registered_when_so_configured() {
    let home = Home::new("<use_source_ip>yes</use_source_ip>");
    let _daemon = home.start();
    assert_eq!(home.enroll("OSSEC A:'a1'")[2], "127.0.0.1");
    assert_eq!(home.enroll("OSSEC A:'a2' IP:'any'")[2], "any");
    assert_eq!(home.request("OSSEC A:'a3'"), refused("Duplicate IP: 127.0.0.1"));
}

#[test]
fn whoever_breaks_a_rule_is_told_which() {
    let home = Home::new("");
    let _daemon = home.start();
    for (line, text) in [
        ("", "Invalid request for new agent"),
        ("garbage", "Invalid request for new agent"),
        ("OSSEC PASS: secret OSSEC A:'web-01'", "Invalid request for new agent"),
        ("OSSEC A:'x'", "Invalid agent name: x"),
        (
            "OSSEC A:'web-01' V:'v9.9.9'",
            "Agent version must be lower or equal to manager version",
        ),
        ("OSSEC A:'web-01' G:'nosuch'", "Invalid group: nosuch"),
        ("OSSEC A:'web-01' G:'a:b'", "Invalid group name: a:b"),
        ("OSSEC A:'web-01' G:'..'", "Invalid group name: .."),
        ("OSSEC A:'web-01' G:'g1,nosuch'", "Invalid group: nosuch"),
        ("OSSEC A:'web-01' IP:'1.2.3'", "Invalid IP: 1.2.3"),
        ("OSSEC A:'web-01' K:'", "Unterminated key field"),
    ] {
        assert_eq!(home.request(line), refused(text), "{line}");
    }
    assert_eq!(home.keys(), "");
    let many: Vec<_> = (0..129).map(|number| format!("n{number}")).collect();
    for group in &many[..128] {
        std::fs::create_dir(home.path(&format!("etc/shared/{group}"))).expect("made");
    }
    let line = format!("OSSEC A:'web-01' G:'{}'", many.join(","));
    assert_eq!(home.request(&line), refused("Maximum multigroup reached: Limit is 128"));
    let long = "n".repeat(3000);
    assert_eq!(home.request(&format!("OSSEC A:'{long}'")).len(), 2068);
}

#[test]
fn groups_and_versions_are_accepted() {
    let home = Home::new("");
    let _daemon = home.start();
    home.enroll("OSSEC A:'web-01' V:'v4.14.7' G:'g1,g2,g1'");
    home.enroll("OSSEC A:'web-02' V:'Wazuh v3.13.6'");
    let home = Home::new("<agents><allow_higher_versions>yes</allow_higher_versions></agents>");
    let _daemon = home.start();
    home.enroll("OSSEC A:'web-01' V:'v9.9.9'");
}

#[test]
fn the_managers_own_name_is_nobodys() {
    let home = Home::new("");
    let daemon = home.start();
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .expect("a host name")
        .trim()
        .to_owned();
    assert_eq!(
        home.request(&format!("OSSEC A:'{own}'")),
        refused(&format!("Invalid agent name: {own}"))
    );
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(home.events(), [format!("rejected blocked_name {own}")]);
}

#[test]
fn a_name_registered_less_than_an_hour_ago_is_not_given_to_another() {
    let home = Home::new("<force><disconnected_time enabled=\"no\"/></force>");
    let daemon = home.start();
    home.enroll("OSSEC A:'web-01'");
    assert_eq!(
        home.request("OSSEC A:'web-01'"),
        refused("Duplicate agent name: web-01")
    );
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(home.events(), ["enrolled 001 web-01", "rejected duplicate_name web-01"]);
    assert!(
        home.read("authd.log")
            .contains("doesn't comply with the registration time to be removed.")
    );
}

#[test]
fn without_remoted_nobody_is_replaced_and_the_log_says_why() {
    let home = Home::new("");
    let _daemon = home.start();
    home.enroll("OSSEC A:'web-01'");
    assert_eq!(
        home.request("OSSEC A:'web-01'"),
        refused("Duplicate agent name: web-01")
    );
    let log = home.read("authd.log");
    assert!(log.contains("cannot ask remoted about agent '001'"), "{log}");
    assert!(log.contains("Failed to get agent-info for agent '001'"), "{log}");
}

#[test]
fn who_holds_the_right_key_is_refused_another_and_who_does_not_is_not() {
    let home = Home::new(NO_FORCE_TIMES);
    let _daemon = home.start();
    let key = home.enroll("OSSEC A:'web-01'");
    let hash: String = Sha1::digest(format!("{}{}{}", key[0], key[1], key[3]))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let again = |hash: &str| home.request(&format!("OSSEC A:'web-01' K:'{hash}'"));
    assert_eq!(again(&hash), refused("Duplicate agent name: web-01"));
    assert!(again(&"0".repeat(40)).starts_with("OSSEC K:'002 web-01 any "));
    assert!(home.keys().ends_with(&format!("001 !web-01 any {}\n", key[3])));
    assert!(
        home.read("authd.log")
            .contains("Duplicate name. Removing old agent 'web-01' (id '001').")
    );
    assert_eq!(home.enroll("OSSEC A:'web-01'")[0], "003");
}

#[test]
fn an_address_of_another_agent_is_a_duplicate_whatever_its_prefix() {
    let home = Home::new("<force><disconnected_time enabled=\"no\"/></force>");
    let _daemon = home.start();
    home.enroll("OSSEC A:'a1' IP:'10.0.0.0/24'");
    assert_eq!(
        home.request("OSSEC A:'a2' IP:'10.0.0.0/24'"),
        refused("Duplicate IP: 10.0.0.0/24")
    );
    assert_eq!(
        home.request("OSSEC A:'a1' IP:'10.0.0.0'"),
        refused("Duplicate IP: 10.0.0.0")
    );
    assert_eq!(home.enroll("OSSEC A:'a2' IP:'10.0.0.1'")[0], "002");
}

#[test]
fn purging_leaves_no_line_of_a_replaced_agent() {
    let home = Home::new(&format!("<purge>yes</purge>{NO_FORCE_TIMES}"));
    let _daemon = home.start();
    home.enroll("OSSEC A:'web-01'");
    let key = home.enroll("OSSEC A:'web-01'");
    assert_eq!(home.keys(), format!("{}\n", key.join(" ")));
}

#[test]
fn a_password_is_asked_for_before_everything_else() {
    let home = Home::new("<use_password>yes</use_password>");
    home.write("etc/authd.pass", "secret\n");
    let daemon = home.start();
    for line in [
        "",
        "garbage",
        "OSSEC A:'x'",
        "OSSEC PASS: wrong OSSEC A:'web-04'",
        "OSSEC PASS: secretOSSEC A:'web-04'",
    ] {
        assert_eq!(home.request(line), refused("Invalid password"), "{line}");
    }
    assert_eq!(
        home.request("OSSEC PASS: secret nonsense"),
        refused("Invalid request for new agent")
    );
    assert_eq!(home.enroll("OSSEC PASS: secret OSSEC A:'web-04'")[0], "001");
    let log = home.read("authd.log");
    assert!(
        log.contains("Invalid password provided by 127.0.0.1. Closing connection."),
        "{log}"
    );
    assert!(!log.contains("secret"), "{log}");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(
        home.events()
            .iter()
            .filter(|event| event.starts_with("rejected bad_password"))
            .count(),
        5
    );
}

#[test]
fn without_a_password_file_one_is_made_for_this_run() {
    let home = Home::new("<use_password>yes</use_password>");
    let _daemon = home.start();
    let log = home.read("authd.log");
    let (_, behind) = log
        .split_once("Random password chosen for agent authentication: ")
        .expect("in the log");
    let password = &behind[..32];
    assert!(password.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(home.request("OSSEC A:'web-01'"), refused("Invalid password"));
    home.enroll(&format!("OSSEC PASS: {password} OSSEC A:'web-01'"));
    assert!(!home.path("etc/authd.pass").exists());
}

#[test]
fn a_password_file_that_would_switch_the_check_off_keeps_the_daemon_from_starting() {
    let home = Home::new("<use_password>yes</use_password>");
    for content in ["", "\n", "a\n", "ab", "\nsecond line"] {
        home.write("etc/authd.pass", content);
        let (code, text) = home.start_in_vain();
        assert_eq!(code, Some(1), "{content:?}");
        assert!(text.contains("etc/authd.pass: "), "{text}");
    }
}

#[test]
fn a_request_may_come_in_pieces_and_with_more_behind_it() {
    let home = Home::new("");
    let _daemon = home.start();
    let mut tls = home.connect();
    for byte in b"OSSEC A:'web-01'\r\n" {
        tls.write_all(&[*byte]).expect("sent");
        tls.flush().expect("sent");
    }
    assert!(answer(&mut tls).starts_with("OSSEC K:'001 "));
    assert!(
        home.exchange(b"OSSEC A:'web-02'\nOSSEC A:'web-03'\n")
            .starts_with("OSSEC K:'002 web-02 ")
    );
    assert_eq!(
        home.exchange(b"OSSEC A:'ab\0cd'\n"),
        refused("Invalid request for new agent")
    );
    assert_eq!(home.keys().lines().count(), 2);
}

#[test]
fn the_longest_request_is_answered_and_a_longer_one_is_closed_without_a_word() {
    let home = Home::new("");
    let _daemon = home.start();
    let mut longest = vec![b'x'; 69_631];
    longest.push(b'\n');
    assert_eq!(home.exchange(&longest), refused("Invalid request for new agent"));
    let mut longer = vec![b'x'; 69_633];
    longer.push(b'\n');
    assert_eq!(home.exchange(&longer), "");
}

#[test]
fn who_is_silent_too_long_is_closed_without_a_word() {
    let home = Home::new("<limits><handshake_timeout>1s</handshake_timeout><read_timeout>1s</read_timeout></limits>");
    let _daemon = home.start();
    let mut tcp = home.tcp();
    assert_eq!(tcp.read(&mut [0; 10]).expect("closed"), 0, "no TLS");
    assert_eq!(home.exchange(b""), "", "no request");
    assert_eq!(home.exchange(b"OSSEC A:'web-01'"), "", "no line feed");
    assert_eq!(home.keys(), "");
}

#[test]
fn what_is_no_tls_is_reset_without_a_byte_and_others_are_served() {
    let home = Home::new("");
    let _daemon = home.start();
    let mut tcp = home.tcp();
    tcp.write_all(b"OSSEC A:'web-01'\n").expect("sent");
    let mut rest = Vec::new();
    let end = tcp.read_to_end(&mut rest).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(rest, b"", "not even an alert");
    assert_eq!(home.keys(), "");
    home.enroll("OSSEC A:'web-01'");
}

#[test]
fn an_agent_that_closes_right_after_reading_its_key_stays_enrolled() {
    let home = Home::new("");
    let _daemon = home.start();
    let mut tls = home.connect();
    tls.write_all(b"OSSEC A:'web-01'\n").expect("sent");
    let mut text = [0; 200];
    let count = tls.read(&mut text).expect("read");
    assert!(text[..count].starts_with(b"OSSEC K:'001 "));
    let socket = tls.sock;
    socket2::SockRef::from(&socket)
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("set");
    drop(socket);
    home.enroll("OSSEC A:'web-02'");
    assert_eq!(home.keys().lines().count(), 2);
}

#[test]
fn a_key_that_cannot_be_delivered_is_taken_back() {
    let home = Home::new("");
    std::fs::create_dir_all(home.path("queue/muster")).expect("made");
    // A remoted that never answers: the "yes" waits for it a moment, and in that moment the agent goes.
    let _deaf = std::os::unix::net::UnixListener::bind(home.path("queue/muster/remoted.ctl")).expect("bound");
    let daemon = home.start();
    // On a busy machine the moment may pass unused; then the next agent tries.
    let taken_back = (1..=20)
        .find(|number| goes_before_its_answer(&home, *number))
        .expect("one of twenty");
    let id = format!("{taken_back:03}");
    // A local request comes behind the order to take it back.
    home.local(r#"{"function":"get","arguments":{"id":"001"}}"#);
    assert!(!home.keys().contains(&format!("{id} ")), "{id} is still there");
    assert_eq!(daemon.stop(), Some(0));
    let told = home.events().split_off(taken_back as usize - 1);
    assert_eq!(
        told,
        [
            format!("enrolled {id} a{taken_back}"),
            format!("removed {id} a{taken_back}")
        ]
    );
}

/// Sends a request and resets the connection as soon as the key is in the file. Gives whether the daemon noticed.
fn goes_before_its_answer(home: &Home, number: u64) -> bool {
    let mut tls = home.connect();
    tls.write_all(format!("OSSEC A:'a{number}'\n").as_bytes())
        .expect("sent");
    tls.flush().expect("sent");
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !home.keys().contains(&format!(" a{number} ")) {
        assert!(std::time::Instant::now() < deadline, "nothing was written");
    }
    let socket = tls.sock;
    socket2::SockRef::from(&socket)
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("set");
    drop(socket);
    loop {
        let taken_back = home.counter("enrollments_not_delivered_total");
        if taken_back + home.counter("enrollments_total") == number {
            return taken_back > 0;
        }
        assert!(std::time::Instant::now() < deadline, "neither delivered nor taken back");
    }
}

#[test]
fn a_connection_without_a_request_is_no_error() {
    let home = Home::new("");
    let _daemon = home.start();
    drop(home.connect());
    home.enroll("OSSEC A:'web-01'");
    let log = home.read("authd.log");
    let is_loud = |line: &&str| line.contains("muster_authd") && !line.contains(" INFO ");
    assert_eq!(log.lines().find(is_loud), None);
}

#[test]
fn with_an_agent_ca_only_its_agents_come_in() {
    let ca = crate::support::Ca::new();
    let home = Home::new("<ssl_agent_ca>etc/agents.pem</ssl_agent_ca><ssl_verify_host>yes</ssl_verify_host>");
    home.write("etc/agents.pem", &ca.pem);
    let daemon = home.start();
    let mut tls = home.connect_with(client_config(Some(ca.sign("127.0.0.1"))));
    tls.write_all(b"OSSEC A:'web-01'\n").expect("sent");
    assert!(answer(&mut tls).starts_with("OSSEC K:'001 "));

    let stranger = crate::support::Ca::new();
    for config in [client_config(None), client_config(Some(stranger.sign("127.0.0.1")))] {
        assert!(is_shut_out(&home, config));
    }
    let mut tls = home.connect_with(client_config(Some(ca.sign("10.0.0.5"))));
    assert_eq!(answer(&mut tls), "", "its certificate names another address");
    assert_eq!(home.keys().lines().count(), 1);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(
        home.events()
            .iter()
            .filter(|event| event.starts_with("rejected bad_cert"))
            .count(),
        3
    );
}

/// In TLS 1.3 the client hears of its refused certificate only when it reads.
fn is_shut_out(home: &Home, config: rustls::ClientConfig) -> bool {
    let Ok(mut tls) = home.try_connect_with(config) else {
        return true;
    };
    let _ = tls.write_all(b"OSSEC A:'intruder'\n");
    let mut text = Vec::new();
    tls.read_to_end(&mut text).is_err() && text.is_empty()
}

#[test]
fn a_configuration_is_reloaded_and_a_bad_one_changes_nothing() {
    let home = Home::new("");
    let _daemon = home.start();
    home.enroll("OSSEC A:'a1'");
    home.write("etc/authd.pass", "secret\n");
    home.configure("<use_password>yes</use_password>");
    assert_eq!(
        home.ask(&Request::Reload),
        Response::Done("the configuration is in force".to_owned())
    );
    assert_eq!(home.request("OSSEC A:'a2'"), refused("Invalid password"));

    home.configure("<use_password>perhaps</use_password>");
    assert!(matches!(home.ask(&Request::Reload), Response::Failed(why) if why.contains("perhaps")));
    home.configure("<ssl_manager_cert>etc/nowhere.cert</ssl_manager_cert>");
    assert!(
        matches!(home.ask(&Request::Reload), Response::Failed(why) if why.contains("cannot read etc/nowhere.cert"))
    );
    assert_eq!(home.request("OSSEC A:'a2'"), refused("Invalid password"));
    home.enroll("OSSEC PASS: secret OSSEC A:'a2'");

    home.configure("<port>1</port>");
    let said = "the configuration is in force, but for port: restart authd";
    assert_eq!(home.ask(&Request::Reload), Response::Done(said.to_owned()));
    home.enroll("OSSEC A:'a3'");
}

#[test]
fn a_closed_port_leaves_the_local_socket_open() {
    let home = Home::new("<remote_enrollment>no</remote_enrollment>");
    let _daemon = home.start();
    assert!(std::net::TcpStream::connect(("127.0.0.1", home.port)).is_err());
    assert!(
        home.local(r#"{"function":"add","arguments":{"name":"a1","ip":"any"}}"#)
            .starts_with(r#"{"error":0"#)
    );
}

#[test]
fn a_daemon_without_an_auth_block_ends_at_once() {
    let home = Home::new("");
    home.write("etc/ossec.conf", "<ossec_config></ossec_config>\n");
    let (code, text) = home.start_in_vain();
    assert_eq!(code, Some(0));
    assert!(text.contains("enrollment is switched off"), "{text}");
}
