//! Hello, keepalive, goodbye: over both carriers, in all forms.

use super::*;

fn whole_session(stage: &mut Stage, agent: &mut Agent, link: &mut Link, protocol: Protocol) {
    agent.say(link, STARTUP);
    assert_eq!(agent.hear(link), ACK);
    let News::Startup {
        slot,
        outcome,
        protocol: over,
        at,
        ..
    } = stage.news()
    else {
        panic!("startup")
    };
    assert_eq!(
        outcome,
        StartupOutcome::Accepted {
            version: Some("v4.14.7".to_owned())
        }
    );
    assert_eq!(over, protocol);
    assert_eq!(slot.heard(), at);
    assert_eq!(slot.form(), agent.form);

    agent.say(link, KEEPALIVE);
    assert_eq!(agent.hear(link), ACK);
    let News::Keepalive { said, .. } = stage.news() else {
        panic!("keepalive")
    };
    assert_eq!(said.keepalive().fields().version, Some("Wazuh v4.14.7"));
    assert_eq!(said.keepalive().fields().agent_ip, Some("127.0.0.1"));

    agent.say(link, KEEPALIVE);
    assert_eq!(agent.hear(link), ACK);
    let News::Keepalive { said: again, .. } = stage.news() else {
        panic!("keepalive")
    };
    assert!(Arc::ptr_eq(&again, &said), "the same text is kept once");

    let courier = stage.edge.courier();
    courier.send(&slot, b"#!-req 1f agent getstate").unwrap();
    assert_eq!(agent.hear(link), "#!-req 1f agent getstate");
    agent.say(link, b"#!-req 1f {\"error\":0}");
    let News::Answer { counter, body, .. } = stage.news() else {
        panic!("answer")
    };
    assert_eq!((counter.as_str(), body.as_slice()), ("1f", b"{\"error\":0}".as_slice()));

    let acks = slot.counts().of(crate::slot::Message::Ack);
    courier.send(&slot, ACK.as_bytes()).unwrap();
    assert_eq!(agent.hear(link), ACK);
    agent.say(link, "#!-agent shutdown ");
    assert!(matches!(stage.news(), News::Shutdown { .. }));
    assert!(link.is_silent(), "a goodbye is not acknowledged");
    assert_eq!(
        slot.counts().of(crate::slot::Message::Ack),
        acks + 1,
        "our own keepalive counts, too"
    );
}

#[test]
fn every_form_is_answered_in_kind_over_both_carriers() {
    let mut stage = start();
    for form in [CryptoForm::WazuhAes, CryptoForm::OssecAes, CryptoForm::Blowfish] {
        let mut agent = Agent::dynamic();
        agent.form = form;
        agent.counter = SenderCounter::begin_at(form as u32 * 10);
        let mut link = stage.connect();
        whole_session(&mut stage, &mut agent, &mut link, Protocol::Tcp);
        drop(link);
        stage.wait_for(Tally::ConnectionsClosed, stage.edge.count(Tally::ConnectionsAccepted));
        let mut link = stage.datagrams();
        whole_session(&mut stage, &mut agent, &mut link, Protocol::Udp);
    }
}

#[test]
fn agent_with_an_address_of_its_own_needs_no_id() {
    let mut stage = start();
    let mut agent = Agent::new("002", "stat", "k2", None, CryptoForm::WazuhAes);
    let mut link = stage.datagrams_from("127.0.0.2:0", stage.udp);
    whole_session(&mut stage, &mut agent, &mut link, Protocol::Udp);
    agent.prefix = Some("002");
    whole_session(&mut stage, &mut agent, &mut link, Protocol::Udp);
}

#[test]
fn network_and_ipv6_agents_are_found_by_their_ids() {
    let mut stage = start();
    let mut agent = Agent::new("003", "cidr", "k3", Some("003"), CryptoForm::WazuhAes);
    let mut link = stage.datagrams_from("127.1.2.3:0", stage.udp);
    whole_session(&mut stage, &mut agent, &mut link, Protocol::Udp);

    for prefix in [Some("004"), None] {
        let mut agent = Agent::new("004", "v6", "k4", prefix, CryptoForm::Blowfish);
        let to = SocketAddr::new("::1".parse().unwrap(), stage.udp.port());
        let mut link = stage.datagrams_from("[::1]:0", to);
        whole_session(&mut stage, &mut agent, &mut link, Protocol::Udp);
    }
}

#[test]
fn ping_is_answered_before_anything_is_known() {
    let stage = start();
    for mut link in [stage.connect(), stage.datagrams()] {
        for ping in [b"#ping".as_slice(), b"#ping and more"] {
            link.send(ping);
            assert_eq!(link.receive(), b"#pong");
        }
    }
}

#[test]
fn version_above_ours_is_refused_and_the_connection_stays() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, r#"#!-agent startup {"version":"v4.15.0"}"#);
    assert_eq!(
        agent.hear(&mut link),
        r##"#!-err {"message":"Agent version must be lower or equal to manager version"}"##
    );
    let News::Startup { outcome, slot, .. } = stage.news() else {
        panic!("startup")
    };
    assert_eq!(
        outcome,
        StartupOutcome::RefusedVersion {
            version: "v4.15.0".to_owned()
        }
    );
    assert!(slot.route().is_some(), "bound all the same");
    agent.say(&mut link, "#!-agent startup {}");
    assert_eq!(
        agent.hear(&mut link),
        r##"#!-err {"message":"Couldn't retrieve version"}"##
    );
    agent.say(&mut link, "#!-agent startup ");
    assert_eq!(agent.hear(&mut link), ACK);
}

#[test]
fn connection_that_ends_without_goodbye_is_news_and_with_one_is_not() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    agent.hear(&mut link);
    let News::Startup { slot, peer, .. } = stage.news() else {
        panic!("startup")
    };
    drop(link);
    let News::ConnectionLost {
        slot: lost,
        peer: from,
        ending,
        ..
    } = stage.news()
    else {
        panic!("lost")
    };
    assert!(Arc::ptr_eq(&slot, &lost));
    assert_eq!((from, ending), (peer, Ending::ByPeer));
    assert_eq!(slot.route(), None);
    assert_eq!(
        stage.edge.courier().send(&slot, b"#!-agent ack "),
        Err(SendError::NoRoute)
    );

    let mut link = stage.connect();
    agent.say(&mut link, STARTUP);
    agent.hear(&mut link);
    stage.news();
    agent.say(&mut link, "#!-agent shutdown ");
    stage.news();
    drop(link);
    stage.no_news();
}

#[test]
fn event_from_an_agent_that_was_away_is_told_once() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, "1:/var/log/syslog:one");
    let News::HeardAgain { slot, .. } = stage.news() else {
        panic!("heard again")
    };
    agent.say(&mut link, "1:/var/log/syslog:two");
    stage.no_news();
    slot.set_status(AgentStatus::Disconnected);
    agent.say(&mut link, "1:/var/log/syslog:three");
    assert!(matches!(stage.news(), News::HeardAgain { .. }));
    slot.set_status(AgentStatus::Active);
    agent.say(&mut link, "1:/var/log/syslog:four");
    stage.no_news();
}

#[test]
fn connection_waits_for_a_roster_that_is_slow_and_tells_it_everything() {
    let mut stage = Setting {
        news: 1,
        ..Setting::default()
    }
    .start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    for _ in 0..50 {
        agent.say(&mut link, KEEPALIVE);
    }
    for _ in 0..50 {
        assert!(matches!(stage.news(), News::Keepalive { .. }));
    }
    for _ in 0..50 {
        assert_eq!(agent.hear(&mut link), ACK);
    }
}

#[test]
fn second_connection_of_an_agent_is_refused_while_the_first_is_heard() {
    let mut stage = start();
    let (mut agent, mut first) = (Agent::dynamic(), stage.connect());
    agent.say(&mut first, STARTUP);
    agent.hear(&mut first);
    stage.news();
    let mut second = stage.connect();
    agent.say(&mut second, STARTUP);
    assert!(second.is_closed());
    agent.say(&mut first, KEEPALIVE);
    assert_eq!(agent.hear(&mut first), ACK);
    assert_eq!(stage.edge.count(Tally::RefusedConflict), 1);
}

#[test]
fn newer_connection_takes_over_after_silence_but_only_with_the_right_key() {
    let mut stage = Setting::default()
        .remote(|remote| remote.connection_overtake_time = Duration::from_millis(200))
        .start();
    let (mut agent, mut first) = (Agent::dynamic(), stage.connect());
    agent.say(&mut first, STARTUP);
    agent.hear(&mut first);
    let News::Startup { slot, .. } = stage.news() else {
        panic!("startup")
    };
    wait_until(|| Millis::now().since(slot.heard()) > Duration::from_millis(200));

    let mut stranger = stage.connect();
    let mut forger = Agent::new("001", "dyn", "guessed", Some("001"), CryptoForm::WazuhAes);
    forger.say(&mut stranger, STARTUP);
    assert!(stranger.is_closed());
    assert!(slot.route().is_some(), "nothing happened to the agent");

    let mut second = stage.connect();
    agent.say(&mut second, STARTUP);
    assert_eq!(agent.hear(&mut second), ACK);
    assert!(first.is_closed());
    assert!(matches!(stage.news(), News::Startup { .. }));
    stage.no_news();
    assert_eq!(stage.edge.count(Tally::ConnectionsOvertaken), 1);
}

#[test]
fn counters_go_on_after_a_stop_and_are_kept_for_each_agent() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, KEEPALIVE);
    let first = link.receive();
    let first = agent.opener.open(&agent.keys, &first, None).unwrap().counter;
    stage.edge.stop();
    let home = stage.home;
    drop(stage.edge);
    assert_eq!(fs::read_to_string(home.path().join("queue/rids/001")).unwrap(), "7:1:");

    let stage = Setting::default().start_in(home);
    let mut link = stage.connect();
    agent.say(&mut link, KEEPALIVE);
    let second = link.receive();
    let second = agent.opener.open(&agent.keys, &second, None).unwrap().counter;
    assert_eq!((second.global, second.local), (first.global, first.local + 1));
}

#[test]
fn ossec_agent_is_held_to_its_counters_and_a_wazuh_agent_is_not() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.counter = SenderCounter::begin_at(0);
    for _ in 0..2 {
        let same = agent.seal(KEEPALIVE.as_bytes());
        link.send(&same);
        link.send(&same);
        agent.hear(&mut link);
        agent.hear(&mut link);
    }
    for _ in 0..4 {
        stage.news();
    }
    drop(link);
    stage.news();

    agent.form = CryptoForm::OssecAes;
    let mut link = stage.connect();
    let same = agent.seal(KEEPALIVE.as_bytes());
    link.send(&same);
    agent.hear(&mut link);
    link.send(&same);
    assert!(link.is_closed());
    assert_eq!(stage.edge.count(Tally::RefusedReplay), 1);
    assert!(stage.requests().is_empty(), "a replay asks nobody");
}
