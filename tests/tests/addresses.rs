//! Several listeners, IPv4 and IPv6, and agents registered with a host, a network or an IPv6 address.

use std::net::SocketAddr;

use anyhow::Result;
use muster_test_ports::Port;
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    analysis::Analysis,
    enroll::{self, Tls},
    home::Home,
    wait::SOON,
};

fn enroll_with(home: &Home, name: &str, address: &str) -> Result<Key> {
    let request = format!("OSSEC A:'{name}' V:'v4.14.7' IP:'{address}'\n");
    enroll::key_of(&enroll::ask(home.enroll_port(), Tls::New, request.as_bytes())?)
}

#[test]
fn agents_talk_to_every_listener_and_are_shown_by_their_registered_address() -> Result<()> {
    const LONG: &str = "0000:0000:0000:0000:0000:0000:0000:0001";
    let home = Home::new()?;
    let second = Port::free()?;
    home.add_config(&format!(
        "<remote><connection>secure</connection><port>{}</port><protocol>tcp,udp</protocol>\
         <ipv6>yes</ipv6><local_ip>::1</local_ip></remote>",
        second.number
    ))?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let (v4, v6): (SocketAddr, SocketAddr) = (
        ([127, 0, 0, 1], home.port()).into(),
        ([0, 0, 0, 0, 0, 0, 0, 1], second.number).into(),
    );
    let long_escaped = LONG.replace(':', "|:");
    for carrier in [Carrier::Tcp, Carrier::Udp] {
        // Registered address, what the key line has, where it talks to, what the analysis daemon sees.
        let cases = [
            ("any", "any", v4, "any"),
            ("any", "any", v6, "any"),
            ("127.0.0.0/8", "127.0.0.0/8", v4, "127.0.0.0"),
            ("127.0.0.1", "127.0.0.1", v4, "127.0.0.1"),
            ("::1", LONG, v6, long_escaped.as_str()),
        ];
        for (place, (asked, given, manager, shown)) in cases.into_iter().enumerate() {
            let name = format!("{carrier:?}-{place}");
            let key = enroll_with(&home, &name, asked)?;
            assert_eq!(key.address, given);
            let id = key.id.clone();
            let mut agent = Agent::new(key, Family::WazuhAes, carrier, 0).at(manager);
            agent.hello_until_heard(SOON)?;
            agent.keepalive()?;
            agent.event("1:/var/log/syslog:hello")?;
            let expected = format!("1:[{id}] ({name}) {shown}->/var/log/syslog:hello\0");
            analysis.expect(expected.as_bytes(), SOON)?;
            home.wait_for_status(&id, "active", SOON)?;
            agent.goodbye()?;
            home.wait_for_status(&id, "disconnected", SOON)?;
            // The next one may have the same address.
            home.control(&["agent", "remove", &id])?;
        }
    }
    Ok(())
}

#[test]
fn an_address_that_is_taken_is_refused_and_so_is_one_that_is_none() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    enroll_with(&home, "first", "10.1.2.3")?;
    let ask = |address: &str| -> Result<String> {
        let request = format!("OSSEC A:'second' V:'v4.14.7' IP:'{address}'\n");
        enroll::ask(home.enroll_port(), Tls::New, request.as_bytes())
    };
    assert_eq!(ask("10.1.2.3")?, "ERROR: Duplicate IP: 10.1.2.3. Unable to add agent");
    assert_eq!(ask("10.1.2")?, "ERROR: Invalid IP: 10.1.2. Unable to add agent");
    assert!(ask("10.1.2.4")?.starts_with("OSSEC K:'002 second 10.1.2.4 "));
    Ok(())
}
