//! Our own keepalives, and whose pace counts.

use super::*;

#[test]
fn what_we_send_is_no_sign_of_life() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(182));
    assert_eq!(stage.sent.len(), 2, "{:?}", stage.sent);
    assert_eq!(stage.status("001"), AgentStatus::Disconnected);
    stage.wait(s(600));
    assert_eq!(stage.sent.len(), 2, "nothing is sent to an agent that is gone");
}

#[test]
fn ossec_agent_that_speaks_every_ten_minutes_does_not_flap() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.startup_with("001", StartupOutcome::Accepted { version: None });
    stage.keepalive("001", OSSEC);
    stage.told();
    stage.live(s(86_400), s(600), &["001"], OSSEC);
    assert_eq!(stage.told(), [""; 0]);
    assert!(
        stage.sent.iter().all(|(_, _, text)| text == "#!-agent ack "),
        "never a request"
    );
    assert!(stage.sent.len() > 1400, "one a minute: {}", stage.sent.len());
    let info = stage.info("001");
    assert_eq!((info.timeout, info.observed_interval), (Some(1830), Some(600)));
    stage.wait(s(1840));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn agent_that_answers_requests_is_judged_by_our_own_pace() {
    let hasty = Policy {
        interval: s(5),
        timeout: s(15),
        ..settings().policy
    };
    let mut stage = Stage::with_agents(
        RosterSettings {
            policy: hasty,
            ..settings()
        },
        &["001"],
    );
    stage.answering.insert("001".to_owned());
    stage.keepalive("001", WAZUH);
    assert_eq!(stage.info("001").timeout, Some(90), "not yet known to answer");
    stage.wait(s(60));
    assert_eq!(stage.info("001").timeout, Some(15));
    assert_eq!(stage.status("001"), AgentStatus::Active);
    stage.told();
    stage.answering.clear();
    stage.wait(s(16));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn agent_that_ignores_requests_gets_acks_until_it_starts_anew() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.live(s(300), s(20), &["001"], WAZUH);
    let texts: Vec<&str> = stage.sent.iter().map(|(_, _, text)| &text[..7]).collect();
    assert_eq!(texts, ["#!-req ", "#!-req ", "#!-agen", "#!-agen", "#!-agen"]);
    stage.sent.clear();
    stage.startup("001");
    stage.keepalive("001", WAZUH);
    stage.live(s(70), s(20), &["001"], WAZUH);
    assert!(stage.sent[0].2.starts_with("#!-req "), "{:?}", stage.sent);
}

#[test]
fn answer_over_udp_is_acknowledged_each_time_it_comes() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.keepalive("001", WAZUH);
    let slot = stage.hear("001");
    let (at, peer, said) = (stage.now.mono, PEER.parse().unwrap(), slot.say(WAZUH));
    stage.news(News::Keepalive {
        slot,
        at,
        peer,
        protocol: Protocol::Udp,
        said,
    });
    stage.wait(s(61));
    assert_eq!(stage.sent.last().unwrap().2, "#!-req 7 agent getstate");
    stage.sent.clear();
    stage.answer("001", "7", b"ack");
    stage.answer("001", "7", b"{}");
    stage.answer("001", "7", b"{}");
    stage.answer("001", "8", b"{}");
    let texts: Vec<&str> = stage.sent.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["#!-req 7 ack", "#!-req 7 ack"]);
    assert_eq!(stage.roster.counters().stray_answers_total.value(), 1);
}

#[test]
fn literal_keepalive_has_name_and_time() {
    let sending = Some(Sending {
        probe: ProbeChoice::Keepalive,
        retry: s(30),
    });
    let policy = Policy {
        sending,
        ..settings().policy
    };
    let mut stage = Stage::with_agents(RosterSettings { policy, ..settings() }, &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(61));
    let expected = format!("#!-agent keepalive agent-001 {}", START.wall_ms / 1000 + 181 + 60);
    assert_eq!(stage.sent[0].2, expected);
}

#[test]
fn keepalive_that_cannot_be_sent_is_told_and_tried_again_sooner() {
    let mut stage = Stage::with_agents(
        RosterSettings {
            keepalive_events: KeepaliveEvents::All,
            ..settings()
        },
        &["001"],
    );
    stage.keepalive("001", WAZUH);
    stage.live(s(61), s(20), &["001"], WAZUH);
    stage.unreachable.insert("001".to_owned());
    stage.live(s(151), s(20), &["001"], WAZUH);
    let events = stage.events(Kind::Keepalive);
    let types: Vec<String> = events
        .iter()
        .map(|event| body(event)["event"]["event_type"].to_string())
        .collect();
    assert_eq!(
        types,
        [
            "\"keepalive_sent\"",
            "\"keepalive_failed\"",
            "\"keepalive_failed\"",
            "\"keepalive_failed\"",
            "\"keepalive_failed\""
        ]
    );
    assert_eq!(
        String::from_utf8(events[0].body.clone()).unwrap(),
        format!(
            r#"{{"event":{{"agent_id":"001","agent_name":"agent-001","ip_address":"192.0.2.7","timestamp":{},"event_type":"keepalive_sent","manager_node":"mgr","interval":60}}}}"#,
            START.wall_ms / 1000 + 181 + 60
        )
    );
}

#[test]
fn sampled_keepalives_are_one_in_so_many_and_every_failure() {
    let sampled = RosterSettings {
        keepalive_events: KeepaliveEvents::Sample(3),
        ..settings()
    };
    let mut stage = Stage::with_agents(sampled, &["001"]);
    stage.keepalive("001", WAZUH);
    stage.live(s(60 * 9 + 1), s(20), &["001"], WAZUH);
    assert_eq!(stage.events(Kind::Keepalive).len(), 3);
    stage.unreachable.insert("001".to_owned());
    stage.live(s(120), s(20), &["001"], WAZUH);
    assert!(stage.events(Kind::Keepalive).len() >= 3);
}

#[test]
fn new_settings_count_from_now_on() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.told();
    let shorter = Policy {
        interval: s(10),
        timeout: s(30),
        ..quiet().policy
    };
    stage.roster.reconfigure(
        stage.now,
        RosterSettings {
            policy: shorter,
            ..quiet()
        },
    );
    // It has not been watched yet, so it is taken for an agent that speaks every 20 s.
    stage.wait(s(91));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn a_day_of_thousands_of_agents_is_quiet_and_costs_what_is_due() {
    let ids = many(2000);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut stage = Stage::with_agents(settings(), &ids);
    stage.answering = ids.iter().map(|id| (*id).to_owned()).collect();
    ids.iter().for_each(|id| stage.keepalive(id, WAZUH));
    stage.told();
    stage.live(s(7200), s(600), &ids, WAZUH);
    assert_eq!(stage.told(), [""; 0], "answers to our requests are signs of life");
    let rounds = stage.sent.len() / ids.len();
    assert!((119..=120).contains(&rounds), "{rounds}");
    let minutes: BTreeSet<u64> = stage.sent.iter().map(|(second, _, _)| second / 60).collect();
    assert!(minutes.len() >= 119);
}

#[test]
fn slow_agent_that_stops_answering_is_given_up_once_and_not_for_ever() {
    let mut stage = Stage::with_agents(settings(), &["001"]);
    stage.answering.insert("001".to_owned());
    stage.keepalive("001", WAZUH);
    stage.live(s(1800), s(600), &["001"], WAZUH);
    stage.told();
    stage.answering.clear();
    stage.live(s(7200), s(600), &["001"], WAZUH);
    assert_eq!(
        stage.told(),
        [
            "001 active>disconnected keepalive_timeout 8",
            "001 disconnected>active reconnected 3"
        ]
    );
}

#[test]
fn those_that_were_heard_of_late_are_told_with_their_own_times_and_nobody_else() {
    let mut stage = Stage::with_agents(settings(), &["001", "002", "003"]);
    stage.keepalive("001", WAZUH);
    let first = stage.now.wall_ms / 1000;
    stage.wait(s(100));
    stage.keepalive("002", WAZUH);
    stage.wait(s(50));
    assert_eq!(stage.sent.len(), 2, "we send all the while: {:?}", stage.sent);
    let heard = |stage: &Stage, within: Duration| {
        let (agents, next) = stage.roster.heard(stage.now, within, None);
        assert_eq!(next, None);
        let told = agents
            .iter()
            .map(|heard| (heard.id.to_string(), heard.at - first, heard.interval));
        told.collect::<Vec<_>>()
    };
    assert_eq!(heard(&stage, s(49)), []);
    assert_eq!(heard(&stage, s(51)), [("002".to_owned(), 100, 60)]);
    assert_eq!(
        heard(&stage, s(151)),
        [("001".to_owned(), 0, 60), ("002".to_owned(), 100, 60)]
    );
    let (behind, _) = stage.roster.heard(stage.now, s(151), Some(&AgentId::new("001")));
    assert_eq!(behind.len(), 1);
}

#[test]
fn keepalives_of_agents_are_events_where_that_is_wanted_and_once_in_an_interval() {
    let wanted = RosterSettings {
        keepalive_received: true,
        ..settings()
    };
    for (settings, expected) in [(settings(), 0), (wanted, 10)] {
        let mut stage = Stage::with_agents(settings, &["001"]);
        let begun = stage.now.wall_ms / 1000;
        stage.live(s(600), s(10), &["001"], WAZUH);
        let events = stage.events(Kind::Keepalive);
        let bodies: Vec<Value> = events.iter().map(|event| body(event)["event"].take()).collect();
        assert_eq!(bodies.len(), expected, "{bodies:?}");
        for (place, body) in bodies.iter().enumerate() {
            assert_eq!(body["event_type"], "keepalive_received");
            assert_eq!((&body["interval"], &body["agent_id"]), (&60.into(), &"001".into()));
            let time = body["timestamp"].as_u64().unwrap() - begun;
            assert!(time >= 60 * place as u64, "{time} {place}");
        }
    }
}

#[test]
fn fleet_is_told_in_pages_that_leave_nobody_out() {
    let ids: Vec<String> = (1..=4001).map(|number| format!("{number:03}")).collect();
    let mut stage = Stage::new(quiet());
    stage.enroll(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    stage.keepalive("001", WAZUH);
    stage.keepalive("3999", WAZUH);
    stage.keepalive("4001", WAZUH);
    let (mut after, mut told) = (None, Vec::new());
    for page in 0..3 {
        let (agents, next) = stage.roster.heard(stage.now, s(1), after.as_ref());
        told.extend(agents.into_iter().map(|heard| heard.id.to_string()));
        assert_eq!(next.is_none(), page == 2);
        after = next;
    }
    assert_eq!(told, ["001", "3999", "4001"]);
}
