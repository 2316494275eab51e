//! What happens to requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{FakeAuthd, Home, KEY, PATIENCE, Service, agent, until};

#[test]
fn identical_requests_ask_the_service_once() {
    let home = Home::new("<socket>service.sock</socket>");
    let _authd = FakeAuthd::listen(&home);
    let service = Service::answering(&home, |_| {
        std::thread::park_timeout(Duration::from_millis(300));
        agent("114", "web-114", "any", KEY)
    });
    let _daemon = home.start();
    for _ in 0..3 {
        home.ask("id:114");
    }
    home.wait_for("keypoll_registered_total", 1);
    assert_eq!(home.counter("keypoll_requests_merged_total"), 2);
    assert_eq!(service.asked().len(), 1);
}

#[test]
fn who_is_not_found_is_not_asked_for_again_unless_the_cache_is_off() {
    for (option, asked) in [("", 1), ("<negative_cache>0s</negative_cache>", 2)] {
        let home = Home::new(&format!("<socket>service.sock</socket>{option}"));
        let _authd = FakeAuthd::listen(&home);
        let service = Service::answering(&home, |_| r#"{"error":4,"message":"No agent key found"}"#.to_owned());
        let _daemon = home.start();
        for _ in 0..2 {
            home.ask("id:001");
            until("the request has ended", || {
                home.counter("keypoll_not_found_total") + home.counter("keypoll_requests_remembered_total")
                    == home.counter("keypoll_requests_total")
            });
        }
        assert_eq!(service.asked().len(), asked);
    }
}

#[test]
fn what_is_no_request_is_dropped_and_said_and_reaches_no_source() {
    let home = Home::new("<socket>service.sock</socket>");
    let service = Service::answering(&home, |_| String::new());
    let _daemon = home.start();
    let long = format!("ip:{}", "1".repeat(65_000));
    for request in [
        "xx:1",
        "ID:1",
        "id:",
        "id:1 2",
        "id:101\n",
        "ip:$(reboot)",
        "ip:10.0.0.0/8",
        &long,
        "id:0",
    ] {
        home.ask(request);
    }
    home.ask("");
    home.wait_for("keypoll_requests_invalid_total", 9);
    assert!(service.asked().is_empty());
    let log = home.log();
    assert!(
        log.contains("Invalid request 'xx:1' received in Agent key request"),
        "{log}"
    );
    assert!(log.contains("'id:101\\n'"), "{log}");
    assert!(log.lines().all(|line| line.len() < 400));
}

#[test]
fn as_many_look_ups_run_as_there_are_threads() {
    let home = Home::new("<socket>service.sock</socket><threads>4</threads>");
    let _authd = FakeAuthd::listen(&home);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, peak) = (Arc::clone(&now), Arc::clone(&most));
    let _service = Service::answering(&home, move |request| {
        peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::park_timeout(Duration::from_millis(100));
        running.fetch_sub(1, Ordering::SeqCst);
        let id = &request[3..];
        agent(id, &format!("web-{id}"), "any", KEY)
    });
    let _daemon = home.start();
    for id in 101..121 {
        home.ask(format!("id:{id}"));
    }
    home.wait_for("keypoll_registered_total", 20);
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[test]
fn a_flood_of_made_up_ids_does_not_keep_an_agent_out() {
    let home = Home::new("<socket>service.sock</socket><queue_size>64</queue_size>");
    let _authd = FakeAuthd::listen(&home);
    // A hundred look-ups a second can be made.
    let _service = Service::answering(&home, |request| {
        std::thread::park_timeout(Duration::from_millis(10));
        match request {
            "id:001" => agent("001", "web-01", "any", KEY),
            _ => r#"{"error":4,"message":"No agent key found"}"#.to_owned(),
        }
    });
    let daemon = home.start();
    let began = Instant::now();
    let mut made_up = 1000;
    while home.counter("keypoll_registered_total") == 0 {
        assert!(began.elapsed() < PATIENCE, "the agent was not let in");
        for _ in 0..200 {
            made_up += 1;
            home.ask(format!("id:{made_up}"));
        }
        home.ask("id:001");
    }
    assert!(
        home.counter("keypoll_requests_queue_full_total") > 0,
        "there was no flood"
    );
    assert!(daemon.peak_memory_kib() < 100_000);
}

#[test]
fn a_service_that_is_away_is_left_alone_and_found_again() {
    let home = Home::new(
        "<socket>service.sock</socket><breaker_failures>3</breaker_failures><breaker_pause>1s</breaker_pause>",
    );
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    for id in 101..104 {
        home.ask(format!("id:{id}"));
    }
    home.wait_for("keypoll_source_failures_total", 3);
    until("the source counts as down", || !home.status().degraded.is_empty());
    home.ask("id:104");
    home.wait_for("keypoll_requests_source_down_total", 1);
    let _service = Service::answering(&home, |request| agent(&request[3..], "web", "any", KEY));
    until("the source is asked again", || {
        home.ask("id:105");
        home.counter("keypoll_registered_total") == 1
    });
    assert!(home.status().degraded.is_empty());
    let log = home.log();
    assert!(
        log.contains("the key source is down") && log.contains("the key source works again"),
        "{log}"
    );
}

#[test]
fn a_silent_service_is_given_up_after_the_timeout() {
    let home = Home::new("<socket>service.sock</socket><timeout>1</timeout>");
    let _service = Service::serving(&home, |_, _| std::thread::park_timeout(PATIENCE));
    let _daemon = home.start();
    let began = Instant::now();
    home.ask("id:001");
    home.wait_for("keypoll_timed_out_total", 1);
    assert!((Duration::from_secs(1)..Duration::from_secs(9)).contains(&began.elapsed()));
}

#[test]
fn the_socket_belongs_to_one_daemon_and_says_so() {
    let home = Home::new("<socket>service.sock</socket>");
    let path = home.path("queue/sockets/krequest");
    let _other = std::os::unix::net::UnixDatagram::bind(path).expect("bound");
    let output = home.start_in_vain();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("krequest: address in use"), "{said}");
}

#[test]
fn switched_off_it_does_not_start() {
    for blocks in [
        "<auth></auth>",
        "<auth><key_request><enabled>no</enabled><socket>s</socket></key_request></auth>",
    ] {
        let home = Home::empty();
        home.write_config(blocks);
        let output = home.start_in_vain();
        assert_eq!(output.status.code(), Some(78));
        assert!(String::from_utf8_lossy(&output.stderr).contains("key polling is switched off"));
        assert!(!home.path("queue/sockets/krequest").exists());
    }
}
