//! Agents of every family enroll, talk, are seen, and are answered in the form that they used.

use std::time::Duration;

use anyhow::Result;
use muster_tests::{
    agent::{Agent, Carrier, Family},
    analysis::Analysis,
    enroll,
    home::Home,
    wait::SOON,
};

#[test]
fn every_family_enrolls_talks_and_is_answered_in_its_own_form() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let kinds = [
        (Family::WazuhAes, Carrier::Tcp, "wazuh-aes", "tcp"),
        (Family::WazuhAes, Carrier::Udp, "wazuh-aes", "udp"),
        (Family::WazuhBlowfish, Carrier::Tcp, "blowfish", "tcp"),
        (Family::WazuhBlowfish, Carrier::Udp, "blowfish", "udp"),
        (Family::Ossec3, Carrier::Udp, "blowfish", "udp"),
        (Family::Ossec4, Carrier::Udp, "ossec-aes", "udp"),
    ];
    for (place, (family, carrier, crypto, protocol)) in kinds.into_iter().enumerate() {
        let name = format!("web-{place}");
        let key = match family.is_ossec() {
            true => enroll::enroll_ossec(home.enroll_port(), &name)?,
            false => enroll::enroll(home.enroll_port(), &name)?,
        };
        let id = key.id.clone();
        assert_eq!((key.address.as_str(), key.key.len()), ("any", 64));
        let mut agent = Agent::new(key, family, carrier, home.port());
        agent.hello_until_heard(SOON)?;
        // Every receive checks that the answer came in the form of the agent.
        agent.keepalive()?;
        agent.event("1:/var/log/auth.log:Nov 21 08:03:10 web-01 sshd[4243]: Failed password for root")?;
        let expected = format!(
            "1:[{id}] ({name}) any->/var/log/auth.log:Nov 21 08:03:10 web-01 sshd[4243]: Failed password for root\0"
        );
        analysis.expect(expected.as_bytes(), SOON)?;
        let listed = home.wait_for_status(&id, "active", SOON)?;
        assert_eq!(listed["name"], name.as_str());
        assert_eq!(listed["ip"], "any");
        assert_eq!(listed["version"], family.version());
        assert_eq!(listed["crypto"], crypto, "{family:?}");
        assert_eq!(listed["protocol"], protocol);
        assert!(
            listed["last_heard"].as_u64().is_some_and(|time| time > 1_700_000_000),
            "{listed}"
        );
        if !family.is_ossec() {
            agent.goodbye()?;
            let text = format!("1:[{id}] ({name}) any->wazuh-remoted:ossec: Agent stopped: '{name}->any'.\0");
            analysis.expect(text.as_bytes(), SOON)?;
            let listed = home.wait_for_status(&id, "disconnected", SOON)?;
            assert_eq!(listed["reason"], "agent_stopped");
        }
    }
    Ok(())
}

/// What an agent says, and what the analysis daemon gets behind `1:[001] (web-01) any->`.
const EVENTS: [(&[u8], &[u8]); 10] = [
    (
        b"1:C|:\\x|| y:msg with : colon",
        b"1:[001] (web-01) any->C|:\\x|| y:msg with : colon\0",
    ),
    (
        b"1:noloc-no-second-colon",
        b"1:[001] (web-01) any->noloc-no-second-colon\0",
    ),
    (b"1::empty location", b"1:[001] (web-01) any->:empty location\0"),
    (b"1:", b"1:[001] (web-01) any->\0"),
    (b"1:a->b:m", b"1:[001] (web-01) any->a->b:m\0"),
    (b"1:a:new\nline", b"1:[001] (web-01) any->a:new\nline\0"),
    (b"1:a:before\0after", b"1:[001] (web-01) any->a:before\0"),
    (b"1:a:\xc3\xa9\xff\xfe", b"1:[001] (web-01) any->a:\xc3\xa9\xff\xfe\0"),
    (b"x:syslog:foo", b"x:[001] (web-01) any->syslog:foo\0"),
    (b"::a:b", b"::[001] (web-01) any->a:b\0"),
];

/// What an agent may say without the analysis daemon hearing of it.
const NO_EVENTS: [&[u8]; 6] = [
    b"1:keepalive",
    b"1:keepalived[1]: x",
    b"8:keepalive x",
    b"1",
    b"11:a:b",
    b"\0abc",
];

#[test]
fn events_arrive_byte_for_byte_and_in_order() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    for (event, _) in EVENTS {
        agent.send(event)?;
    }
    for event in NO_EVENTS {
        agent.send(event)?;
    }
    let long = vec![b'x'; 60_000];
    agent.send(&[b"1:big:".as_slice(), &long].concat())?;
    let last = [b"1:[001] (web-01) any->big:".as_slice(), &long, b"\0"].concat();
    analysis.expect(&last, SOON)?;
    let mut expected: Vec<&[u8]> = EVENTS.iter().map(|(_, datagram)| *datagram).collect();
    expected.push(&last);
    assert_eq!(analysis.datagrams(), expected);
    Ok(())
}

#[test]
fn an_agent_with_a_fixed_address_is_known_by_it_and_another_address_is_refused() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let answer = enroll::ask(
        home.enroll_port(),
        enroll::Tls::New,
        b"OSSEC A:'static' V:'v4.14.7' IP:'src'\n",
    )?;
    let key = enroll::key_of(&answer)?;
    assert_eq!(key.address, "127.0.0.1");
    let id = key.id.clone();
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.event("1:/var/log/syslog:static")?;
    analysis.expect(
        format!("1:[{id}] (static) 127.0.0.1->/var/log/syslog:static\0").as_bytes(),
        SOON,
    )?;

    let answer = enroll::ask(
        home.enroll_port(),
        enroll::Tls::New,
        b"OSSEC A:'elsewhere' IP:'192.0.2.7'\n",
    )?;
    let mut elsewhere = enroll::key_of(&answer)?;
    // It names itself, and is still not where it should be.
    "any".clone_into(&mut elsewhere.address);
    let mut stranger = Agent::new(elsewhere, Family::WazuhAes, Carrier::Tcp, home.port());
    stranger.connect()?;
    stranger.send(br#"#!-agent startup {"version":"v4.14.7"}"#)?;
    stranger.expect_close()
}

#[test]
fn a_ping_is_answered_without_a_key() -> Result<()> {
    let home = Home::new()?;
    let _remoted = home.start("remoted")?;
    let nobody = muster_tests::agent::Key {
        id: "001".into(),
        name: "nobody".into(),
        address: "any".into(),
        key: "none".into(),
    };
    for carrier in [Carrier::Tcp, Carrier::Udp] {
        let mut agent = Agent::new(nobody.clone(), Family::WazuhAes, carrier, home.port());
        agent.connect()?;
        agent.send_message(b"#ping")?;
        assert_eq!(agent.receive_message(SOON)?.as_deref(), Some(b"#pong".as_slice()));
    }
    Ok(())
}

#[test]
fn an_agent_newer_than_the_manager_is_refused_by_both_ports() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let answer = enroll::ask(home.enroll_port(), enroll::Tls::New, b"OSSEC A:'new' V:'v4.15.0'\n")?;
    assert_eq!(
        answer,
        "ERROR: Agent version must be lower or equal to manager version. Unable to add agent"
    );
    let key = home.enroll("old")?;
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    // On the same connection: until the manager has seen an old one close, a new one is refused for another reason.
    agent.send(br#"#!-agent startup {"version":"v4.15.0"}"#)?;
    agent.expect(br#"#!-err {"message":"Agent version must be lower or equal to manager version"}"#)?;
    agent.say_hello()
}

#[test]
fn the_manager_sends_its_own_keepalive_every_interval() -> Result<()> {
    let home = Home::new()?;
    home.set_in(
        "remote",
        "<manager_keepalive><enabled>yes</enabled><interval>1</interval><timeout>60</timeout>\
         <max_missed>60</max_missed><retry_interval>1</retry_interval><probe>ack</probe></manager_keepalive>",
    )?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    for _ in 0..3 {
        let heard = agent.receive(Duration::from_secs(5))?;
        assert_eq!(
            heard.map(|opened| opened.payload).as_deref(),
            Some(b"#!-agent ack ".as_slice())
        );
    }
    Ok(())
}
