//! What the status says of losses and rates, when it is degraded, and what the rules of this manager are told.

use std::{fs, os::unix::net::UnixDatagram};

use serde_json::{Value, json};

use crate::{PATIENCE, block_on, natsd::Home, producer, provisioned, server::Server, wait_for, wait_for_within};

/// The socket of an analysis daemon.
fn analysis(home: &Home) -> UnixDatagram {
    let path = home.path("queue/sockets/queue");
    fs::create_dir_all(path.parent().expect("a parent")).expect("makes the folder");
    let socket = UnixDatagram::bind(path).expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("sets");
    socket
}

/// The next line of natsd, without its location.
fn line(socket: &UnixDatagram) -> Value {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).expect("a datagram in time");
    let text = buffer[..length].strip_prefix(b"1:muster-natsd:").expect("the location");
    let text = text.strip_suffix(b"\0").expect("its end");
    serde_json::from_slice(text).expect("JSON")
}

fn put_too_large(home: &Home) {
    let mut producer = producer(home);
    producer.put(producer::change(1, 0));
    for place in 0..3 {
        let mut large = producer::change(1, place);
        large.body = format!("{{\"status_change\":{{\"x\":\"{}\"}}}}", "x".repeat(20_000)).into_bytes();
        producer.put(large);
    }
    producer.put(producer::change(1, 4));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
}

fn small_server() -> Server {
    Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\nmax_payload: 16KB\njetstream {{ store_dir: \"{}\" }}\n",
            store.display()
        )
    })
}

#[test]
fn lost_events_are_in_the_status_and_one_line_goes_to_the_rules() {
    let server = small_server();
    let home = provisioned(&server, "");
    let socket = analysis(&home);
    let natsd = home.start();
    put_too_large(&home);
    // The line may come before the last of them is known to be lost.
    let told = line(&socket)["muster"].clone();
    let expected = json!({
        "alert": "events_dropped", "daemon": "natsd", "node": "mgr-a", "reason": "too_large", "stream": "MUSTER_STATE",
        "producer": "-", "passed_over": 0, "count": told["count"],
    });
    assert_eq!(told, expected);
    wait_for("the status counts what was lost", || {
        home.facts().get("dropped_events").is_some_and(|count| count == "3")
    });
    let facts = home.facts();
    let latest = &facts["dropped_latest"];
    assert!(
        latest.starts_with("MUSTER_STATE ") && latest.ends_with(" events: too_large"),
        "{latest}"
    );
    assert_eq!(facts["published MUSTER_STATE"], "2");
    assert!(facts.contains_key("acknowledged_per_s MUSTER_STATE"));
    natsd.stop();
    socket.set_nonblocking(true).expect("sets");
    let further = std::iter::from_fn(|| socket.recv(&mut [0; 16]).ok()).count();
    assert_eq!(further, 0, "each kind is said once a minute");
}

#[test]
fn rules_hear_nothing_where_that_is_switched_off_and_a_missing_socket_stops_nobody() {
    let server = small_server();
    let home = provisioned(&server, "<local_alerts>no</local_alerts>");
    let socket = analysis(&home);
    let natsd = home.start();
    put_too_large(&home);
    natsd.stop();
    socket.set_nonblocking(true).expect("sets");
    assert!(socket.recv(&mut [0; 16]).is_err());

    let home = provisioned(&server, "");
    let natsd = home.start();
    put_too_large(&home);
    natsd.stop();
}

#[test]
fn state_is_degraded_behind_max_reconnects_failures_and_natsd_comes_back_all_the_same() {
    let mut server = Server::start();
    let home = |reconnects: u32| {
        // Both have the same name.
        provisioned(
            &server,
            &format!("<max_reconnects>{reconnects}</max_reconnects><kv enabled=\"no\"/>"),
        )
    };
    let (impatient, patient) = (home(2), home(100_000));
    server.kill();
    let natsds = [impatient.start(), patient.start()];
    wait_for("two failures in a row are degraded", || {
        let status = impatient.status().expect("answers");
        status.degraded.join("\n").contains("not connected to NATS")
    });
    wait_for("the other has failed more often", || {
        patient.facts()["failed_attempts"]
            .parse::<u32>()
            .is_ok_and(|failed| failed >= 4)
    });
    assert_eq!(patient.status().expect("answers").degraded, Vec::<String>::new());
    server.restart();
    // It goes on at its slow pace, which is half a minute.
    for home in [&patient, &impatient] {
        wait_for_within(4 * PATIENCE, "it is connected again", || {
            home.facts().get("nats").is_some_and(|nats| nats == "connected")
        });
        let mut producer = producer(home);
        producer.put(producer::change(1, 0));
        block_on(producer.hand_over_all());
        home.wait_until_all_is_published();
    }
    for natsd in natsds {
        natsd.stop();
    }
}
