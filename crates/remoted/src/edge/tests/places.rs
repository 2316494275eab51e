//! Where agents come from: load balancers, and two places at once.

use muster_config::KeyConflict;
use muster_proto::transport::proxy;

use super::*;
use crate::roster::conflict::{Conflict, Kept};

fn behind_load_balancers() -> Stage {
    Setting::default()
        .remote(|remote| remote.proxy_protocol = vec!["127.0.0.1/32".parse().unwrap()])
        .start()
}

fn write(link: &mut Link, bytes: &[u8]) {
    let Link::Tcp(stream) = link else { panic!("TCP") };
    stream.write_all(bytes).unwrap();
}

#[test]
fn agent_behind_a_load_balancer_comes_from_where_the_load_balancer_says() {
    let mut stage = behind_load_balancers();
    let source: SocketAddr = "198.51.100.7:4711".parse().unwrap();
    let mut link = stage.connect();
    // In two pieces: the header need not come in one.
    let header = proxy::header(source, "192.0.2.1:1514".parse().unwrap());
    let (one, two) = header.split_at(17);
    write(&mut link, one);
    std::thread::park_timeout(Duration::from_millis(20));
    write(&mut link, two);
    let mut agent = Agent::dynamic();
    agent.say(&mut link, STARTUP);
    assert_eq!(agent.hear(&mut link), ACK);
    let News::Startup { peer, .. } = stage.news() else {
        panic!("startup")
    };
    assert_eq!(peer, source);
}

#[test]
fn registered_address_is_compared_with_the_agents_not_the_load_balancers() {
    let stage = behind_load_balancers();
    let mut link = stage.connect();
    write(
        &mut link,
        &proxy::header("127.0.0.2:9".parse().unwrap(), "127.0.0.1:1514".parse().unwrap()),
    );
    let mut agent = Agent::new("002", "stat", "k2", None, CryptoForm::WazuhAes);
    agent.say(&mut link, STARTUP);
    assert_eq!(agent.hear(&mut link), ACK);
}

#[test]
fn load_balancer_without_a_header_is_closed_and_counted() {
    let stage = behind_load_balancers();
    let mut link = stage.connect();
    Agent::dynamic().say(&mut link, STARTUP);
    assert!(link.is_closed());
    assert_eq!(stage.edge.count(Tally::RefusedPreface), 1);
}

#[test]
fn header_of_somebody_who_is_no_load_balancer_is_not_believed() {
    let stage = start();
    let mut link = stage.connect();
    write(
        &mut link,
        &proxy::header("127.0.0.2:9".parse().unwrap(), "127.0.0.1:1514".parse().unwrap()),
    );
    assert!(link.is_closed());
}

fn conflict_of(stage: &mut Stage) -> Conflict {
    loop {
        if let News::KeyConflict { conflict, .. } = stage.news() {
            return conflict;
        }
    }
}

#[test]
fn second_user_of_a_key_is_told_with_both_addresses_and_a_stranger_is_not() {
    for (rule, kept) in [(KeyConflict::First, Kept::First), (KeyConflict::Newest, Kept::Newest)] {
        let mut stage = Setting::default().remote(|remote| remote.key_conflict = rule).start();
        let (mut first, mut link) = (Agent::dynamic(), stage.connect());
        first.say(&mut link, STARTUP);
        assert_eq!(first.hear(&mut link), ACK);

        let mut stranger = stage.connect();
        Agent::new("001", "dyn", "wrong", Some("001"), CryptoForm::WazuhAes).say(&mut stranger, STARTUP);
        assert!(stranger.is_closed());

        let (mut second, mut other) = (Agent::dynamic(), stage.connect());
        second.say(&mut other, STARTUP);
        let conflict = conflict_of(&mut stage);
        let address = |link: &Link| match link {
            Link::Tcp(stream) => stream.local_addr().unwrap().port(),
            Link::Udp(..) => panic!("TCP"),
        };
        assert_eq!(conflict.kept, kept);
        assert_eq!(
            (conflict.holder.port(), conflict.other.port()),
            (address(&link), address(&other))
        );
        let loser = if rule == KeyConflict::First {
            &mut other
        } else {
            &mut link
        };
        assert!(loser.is_closed());
    }
}

#[test]
fn agent_that_speaks_from_another_address_over_udp_is_told_with_both() {
    let mut stage = start();
    let (mut agent, mut here) = (Agent::dynamic(), stage.datagrams_from("127.0.0.1:0", stage.udp));
    agent.say(&mut here, STARTUP);
    assert_eq!(agent.hear(&mut here), ACK);
    let mut there = stage.datagrams_from("127.0.0.2:0", stage.udp);
    agent.say(&mut there, STARTUP);
    assert_eq!(agent.hear(&mut there), ACK);
    let conflict = conflict_of(&mut stage);
    assert_eq!(conflict.kept, Kept::Both);
    assert_eq!(
        [conflict.holder, conflict.other].map(|at| at.ip().to_canonical().to_string()),
        ["127.0.0.1", "127.0.0.2"]
    );
}
