//! What strangers can do, and that it is not much.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{Home, answer};

/// The default.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn idle_connections_from_one_address_do_not_keep_it_out_for_ever() {
    let home =
        Home::new("<limits><max_connections>20</max_connections><handshake_timeout>6s</handshake_timeout></limits>");
    let _daemon = home.start();
    let idle: Vec<TcpStream> = (0..100).map(|_| home.tcp()).collect();
    // Those over the cap are closed at once, the others when their time is over.
    for mut tcp in idle {
        assert!(matches!(tcp.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    assert_eq!(home.counter("enrollment_connections_over_cap_total"), 80);
    assert_eq!(home.counter("enrollment_handshakes_failed_total"), 20);
    home.enroll("OSSEC A:'a1'");
}

#[test]
fn another_address_gets_a_place_while_one_holds_them_all() {
    let home = Home::new("<limits><max_connections>20</max_connections></limits>");
    home.write(
        "etc/ossec.conf",
        &home
            .read("etc/ossec.conf")
            .replace("<local_ip>127.0.0.1</local_ip>", ""),
    );
    let _daemon = home.start();
    let idle: Vec<TcpStream> = (0..20).map(|_| home.tcp()).collect();
    let mut tls = home.connect_from("127.0.0.2");
    tls.write_all(b"OSSEC A:'other'\n").expect("sent");
    assert!(answer(&mut tls).starts_with("OSSEC K:'001 other "));
    assert_eq!(home.counter("enrollment_connections_evicted_total"), 1);
    drop(idle);
}

#[test]
fn five_thousand_idle_connections_keep_no_other_address_out() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(soft.max(8000)), hard).expect("raised");
    let home = Home::new("");
    home.write(
        "etc/ossec.conf",
        &home
            .read("etc/ossec.conf")
            .replace("<local_ip>127.0.0.1</local_ip>", ""),
    );
    let daemon = home.start();
    let idle: Vec<TcpStream> = (0..5000).map(|_| home.tcp()).collect();
    let start = Instant::now();
    for number in 0..3 {
        let mut tls = home.connect_from("127.0.0.2");
        tls.write_all(format!("OSSEC A:'other-{number}'\n").as_bytes())
            .expect("sent");
        assert!(answer(&mut tls).starts_with("OSSEC K:'"));
    }
    assert!(
        start.elapsed() < HANDSHAKE_TIMEOUT,
        "they were not served before the idle ones went"
    );
    drop(idle);
    let memory = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).expect("read");
    let peak = memory
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 200_000, "{kib} KiB");
}

#[test]
fn an_address_that_comes_too_fast_is_closed_and_counted() {
    let home = Home::new("<limits><rate_per_address>1/s burst 5</rate_per_address></limits>");
    let daemon = home.start();
    let start = Instant::now();
    let closed = (0..20).filter(|_| home.try_connect().is_err()).count() as u64;
    let refilled = start.elapsed().as_secs() + 1;
    assert!(
        closed <= 15 && closed + refilled >= 15,
        "{closed} closed, {refilled} refilled"
    );
    assert_eq!(home.counter("enrollment_connections_rate_limited_total"), closed);
    assert_eq!(daemon.stop(), Some(0));
    assert!(home.events().contains(&"rejected rate_limited ".to_owned()));
}

#[test]
fn garbage_inside_and_outside_tls_hurts_nobody() {
    let home = Home::new("");
    let _daemon = home.start();
    for bytes in [
        &b"\x16\x03\x01\xff\xff"[..],
        &[0; 100],
        b"\x16\x03\x01\x00\x05hello",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        home.tcp().write_all(bytes).expect("sent");
    }
    for bytes in [
        &b"\xff\xfe\n"[..],
        b"OSSEC A:'\xff\xfe'\n",
        b"OSSEC A:'ab' G:'\xff'\n",
        b"'''''\n",
    ] {
        let mut tls = home.connect();
        tls.write_all(bytes).expect("sent");
        let mut text = Vec::new();
        tls.read_to_end(&mut text).expect("an answer");
        assert!(text.starts_with(b"ERROR: Invalid "), "{text:?}");
    }
    home.enroll("OSSEC A:'a1'");
}

#[test]
fn refusals_do_not_fill_the_outbox() {
    let home = Home::new("<use_password>yes</use_password>");
    home.write("etc/authd.pass", "secret\n");
    let daemon = home.start();
    for _ in 0..150 {
        home.request("OSSEC A:'a1'");
    }
    let dropped = home.counter("rejection_events_dropped_total");
    assert!(dropped > 0);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(home.events().len() as u64 + dropped, 150);
}

#[test]
fn many_local_clients_at_once_are_all_answered() {
    let home = Home::new("");
    let _daemon = home.start();
    std::thread::scope(|scope| {
        for client in 0..16 {
            let home = &home;
            scope.spawn(move || {
                for number in 0..10 {
                    let add = format!(r#"{{"function":"add","arguments":{{"name":"n{client}-{number}","ip":"any"}}}}"#);
                    assert!(home.local(&add).starts_with(r#"{"error":0"#));
                }
            });
        }
    });
    assert_eq!(home.keys().lines().count(), 160);
    let appends = home.counter("key_file_appends_total");
    assert!(appends > 0 && appends <= 160, "{appends}");
}
