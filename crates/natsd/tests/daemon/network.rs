//! Networks that swallow, cut and delay what they carry, between natsd and a server that is well.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use crate::{
    PATIENCE, accepted, block_on, json,
    natsd::{Home, Natsd},
    producer::{self, Producer},
    proxy::Proxy,
    server::Server,
    state_and_audit, verifier, wait_for,
};

/// A natsd that reaches its server by way of the network, and somebody who makes events.
struct Far {
    // It ends before its home does.
    _natsd: Natsd,
    server: Server,
    network: Proxy,
    home: Home,
    producer: Producer,
}

impl Far {
    fn start() -> Self {
        let server = Server::start();
        let network = Proxy::before(server.port);
        let home = Home::new(&format!(
            "<server_url>{}</server_url><node_name>mgr-a</node_name><reconnect_delay>1</reconnect_delay>\
             <message_signing>yes</message_signing><publish mode=\"jetstream\" ack_timeout=\"2s\"/>",
            network.url()
        ));
        let made = home.run(&["provision", "--share", "1"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let natsd = home.start();
        let producer = crate::producer(&home);
        let mut far = Self {
            _natsd: natsd,
            server,
            network,
            home,
            producer,
        };
        far.put(0..3);
        far.home.wait_until_all_is_published();
        far
    }

    /// Changes of several agents: of each, only one is under way at a time.
    fn put(&mut self, places: Range<u32>) {
        for place in places {
            self.producer.put(producer::change(place % 7, place));
        }
        block_on(self.producer.hand_over_all());
    }

    fn told(&self, what: &str) -> usize {
        self.home.log().matches(what).count()
    }

    /// Each place from 0 on, once, signed; no hole that is not declared.
    fn check(&self, count: u64) {
        let (state, audit) = state_and_audit(&self.server);
        let mut verifier = verifier(&self.home);
        accepted(&mut verifier, &audit);
        let places = accepted(&mut verifier, &state);
        let places = places.iter().map(|message| {
            json(message)["status_change"]["missed_keepalives"]
                .as_u64()
                .expect("a place")
        });
        let mut places: Vec<_> = places.collect();
        // Agents have an order each, and none among them.
        places.sort_unstable();
        assert_eq!(places, (0..count).collect::<Vec<_>>());
        assert_eq!(verifier.undeclared(), []);
    }
}

#[test]
fn connection_that_is_half_open_is_given_up_and_the_next_one_carries_all() {
    let mut far = Far::start();
    far.network.swallow();
    let connections = far.network.accepted();
    far.put(3..50);
    // The broker is asked whether it is there every ten seconds, and is given another ten to answer.
    let begun = Instant::now();
    while far.network.accepted() == connections {
        assert!(begun.elapsed() < 2 * PATIENCE, "it is not given up: {}", far.home.log());
        wait_for("natsd answers", || far.home.status().is_some());
    }
    far.home.wait_until_all_is_published();
    far.check(50);
    assert!(far.told("connection to NATS is lost") <= 1, "{}", far.home.log());
    wait_for("nothing is degraded", || {
        far.home.status().is_some_and(|status| status.degraded.is_empty())
    });
}

#[test]
fn connection_cut_within_a_frame_costs_and_doubles_nothing() {
    let mut far = Far::start();
    let mut place = 3;
    // Within the command, within the headers, within the body, and behind some events.
    for bytes in [5, 60, 400, 1100, 5000] {
        let connections = far.network.accepted();
        far.network.cut_after(bytes);
        far.put(place..place + 20);
        place += 20;
        wait_for("natsd connects again", || far.network.accepted() > connections);
        far.home.wait_until_all_is_published();
    }
    far.check(u64::from(place));
}

#[test]
fn slow_network_only_takes_longer() {
    let mut far = Far::start();
    far.network.delay(Duration::from_millis(150));
    far.put(3..100);
    far.home.wait_until_all_is_published();
    far.network.delay(Duration::ZERO);
    far.check(100);
    assert_eq!(far.told("connection to NATS is lost"), 0, "{}", far.home.log());
}
