use super::*;

struct Stage {
    agent: Agent,
    out: Outbox,
    tally: Tally,
    begin: Instant,
    at: Duration,
    manager: u32,
}

impl Stage {
    fn new(kind: &str) -> Self {
        Self::with(kind, Habits::stock(Duration::from_secs(10)))
    }

    fn with(kind: &str, habits: Habits) -> Self {
        let kind = format!("{kind}=1").parse::<crate::mix::Mix>().unwrap().deal(1)[0];
        let identity = Identity {
            id: "001".into(),
            name: "web-01".into(),
            address: "any".into(),
            version: kind.family.version().into(),
        };
        Self {
            agent: Agent::new(Rc::new(identity), kind, Rc::new(habits), Dice::new(3)),
            out: Outbox::default(),
            tally: Tally::default(),
            begin: Instant::now(),
            at: Duration::ZERO,
            manager: 0,
        }
    }

    fn now(&self) -> Now {
        Now {
            at: self.begin + self.at,
            unix: 1_795_248_218,
        }
    }

    /// Connected, startup acknowledged, first texts taken.
    fn settled(mut self) -> Self {
        self.connect();
        self.hear(b"#!-agent ack ");
        self.sent();
        self
    }

    fn connect(&mut self) -> Vec<String> {
        let now = self.now();
        self.agent.connected(now, &mut self.out);
        self.sent()
    }

    fn hear(&mut self, payload: &[u8]) -> Option<Reconnect> {
        self.manager += 1;
        self.hear_with(
            Counter {
                global: 0,
                local: self.manager,
            },
            payload,
        )
    }

    fn hear_with(&mut self, counter: Counter, payload: &[u8]) -> Option<Reconnect> {
        let now = self.now();
        self.agent
            .received(now, counter, payload, &mut self.out, &mut self.tally)
    }

    fn pass(&mut self, time: Duration) -> Option<Reconnect> {
        self.at += time;
        let now = self.now();
        self.agent.due(now, Room::Some, &mut self.out, &mut self.tally)
    }

    fn sent(&mut self) -> Vec<String> {
        for (what, _) in self.out.payloads() {
            self.tally.sent(what);
        }
        let texts = self
            .out
            .payloads()
            .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
            .collect();
        self.out.clear();
        texts
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn nothing_but_the_startup_is_sent_before_its_ack() {
    let mut stage = Stage::new("wazuh-aes-tcp");
    assert_eq!(stage.connect(), [r#"#!-agent startup {"version":"v4.14.7"}"#]);
    assert_eq!(stage.pass(5 * SECOND), None);
    assert!(stage.sent().is_empty());
    stage.hear(b"#!-agent ack ");
    let sent = stage.sent();
    assert_eq!(sent[0], "1:wazuh-agent:ossec: Agent started: 'web-01->any'.");
    assert!(sent[1].starts_with("#!-Linux |web-01 |"), "{sent:?}");
    assert!(
        sent[1].ends_with(" - Wazuh v4.14.7\nx merged.mg\n#\"_agent_ip\":127.0.0.1\n"),
        "{sent:?}"
    );
}

#[test]
fn an_ack_without_its_trailing_space_ends_a_wazuh_handshake_and_not_an_ossec_one() {
    let mut wazuh = Stage::new("wazuh-aes-tcp");
    wazuh.connect();
    assert_eq!(wazuh.hear(b"#!-agent ack"), Some(Reconnect::Later));
    let mut ossec = Stage::new("ossec3");
    assert_eq!(ossec.connect(), ["#!-agent startup "]);
    assert_eq!(ossec.hear(b"#!-agent ack"), None);
    assert_eq!(ossec.hear(b"#!-agent ack "), None);
    assert!(ossec.agent.is_connected());
}

#[test]
fn a_refused_startup_is_counted_and_tried_again_later() {
    let mut stage = Stage::new("wazuh-aes-udp");
    stage.connect();
    let answer = br#"#!-err {"message":"Agent version must be lower or equal to manager version"}"#;
    assert_eq!(stage.hear(answer), Some(Reconnect::Later));
    assert_eq!(stage.tally.startups_refused, 1);
}

#[test]
fn ossec_agents_repeat_their_startup_until_it_is_acknowledged() {
    let mut stage = Stage::new("ossec4");
    stage.connect();
    assert_eq!(stage.pass(10 * SECOND), None);
    assert_eq!(stage.sent(), ["#!-agent startup "]);
    assert_eq!(stage.tally.startups_unanswered, 1);
}

#[test]
fn keepalives_come_once_a_period_and_their_acks_are_told_from_unasked_ones() {
    let mut stage = Stage::new("wazuh-aes-tcp").settled();
    for _ in 0..3 {
        // Heard all the while, so the manager is never given up.
        stage.hear(b"#!-agent ack ");
        stage.pass(10 * SECOND);
    }
    assert_eq!(stage.sent().len(), 3);
    stage.hear(b"#!-agent ack ");
    stage.hear(b"#!-agent ack ");
    let Tally {
        keepalives_sent,
        keepalives_acked,
        unasked_acks,
        ..
    } = stage.tally;
    assert_eq!((keepalives_sent, keepalives_acked, unasked_acks), (4, 4, 1));
}

#[test]
fn a_silent_manager_is_given_up_after_three_periods() {
    let mut stage = Stage::new("wazuh-aes-tcp").settled();
    assert_eq!(stage.pass(29 * SECOND), None);
    assert_eq!(stage.pass(SECOND), Some(Reconnect::Now));
    assert_eq!(stage.tally.manager_lost, 1);
}

#[test]
fn a_request_is_answered_like_a_wazuh_agent_does() {
    let mut stage = Stage::new("wazuh-aes-tcp").settled();
    stage.hear(b"#!-req c8fddc3c agent getstate");
    let sent = stage.sent();
    assert_eq!(sent.len(), 1);
    let answer = sent[0].strip_prefix("#!-req c8fddc3c ").unwrap();
    let value: serde_json::Value = serde_json::from_str(answer).unwrap();
    assert_eq!(value["error"], 0);
    assert_eq!(value["data"]["status"], "connected");
    assert_eq!(value["data"]["last_ack"], "2026-11-21 08:03:38");
}

#[test]
fn over_udp_the_request_is_acknowledged_first_and_the_answer_repeated_until_it_is() {
    let mut stage = Stage::new("wazuh-blowfish-udp").settled();
    stage.hear(b"#!-req 7 agent getstate");
    let sent = stage.sent();
    assert_eq!(sent[0], "#!-req 7 ack");
    stage.pass(SECOND);
    assert_eq!(stage.sent(), sent[1..]);
    stage.hear(b"#!-req 7 ack");
    stage.pass(SECOND);
    assert!(stage.sent().is_empty());
    assert_eq!((stage.tally.requests_answered, stage.tally.answers_repeated), (1, 1));
}

#[test]
fn an_answer_that_nobody_acknowledges_is_sent_four_times_in_all() {
    let mut stage = Stage::new("wazuh-aes-udp").settled();
    stage.hear(b"#!-req 7 agent getstate");
    stage.sent();
    let mut repeats = 0;
    for _ in 0..8 {
        stage.pass(SECOND);
        repeats += stage.sent().iter().filter(|text| text.starts_with("#!-req")).count();
    }
    assert_eq!(repeats, 3);
}

#[test]
fn ossec_agents_never_answer_a_request() {
    let mut stage = Stage::new("ossec4").settled();
    stage.hear(b"#!-req 7 agent getstate");
    assert!(stage.sent().is_empty());
    assert_eq!(stage.tally.unknown_messages, 1);
}

#[test]
fn a_pushed_file_is_summed_and_the_next_keepalive_reports_it() {
    let mut stage = Stage::new("wazuh-aes-tcp").settled();
    // The MD5 of `#default` and a line feed.
    let sum = "ccbc6422b66b712e3a586e025fb0029a";
    stage.hear(format!("#!-up file {sum} merged.mg\n").as_bytes());
    stage.hear(b"#def");
    stage.hear(b"#!-agent ack ");
    stage.hear(b"ault\n");
    stage.hear(b"#!-close file ");
    assert_eq!((stage.tally.pushes_taken, stage.tally.pushes_broken), (1, 0));
    stage.pass(10 * SECOND);
    assert!(stage.sent()[0].contains(&format!("\n{sum} merged.mg\n")));
}

#[test]
fn an_unknown_message_inside_a_push_destroys_it() {
    let mut stage = Stage::new("ossec3").settled();
    stage.hear(b"#!-up file 00 merged.mg\n");
    stage.hear(b"#!-agent keepalive web-01 1795248218");
    stage.hear(b"piece");
    stage.hear(b"#!-close file ");
    assert_eq!((stage.tally.pushes_taken, stage.tally.pushes_broken), (0, 1));
}

#[test]
fn force_reconnect_is_obeyed_by_wazuh_agents_only() {
    assert_eq!(
        Stage::new("wazuh-aes-tcp").settled().hear(b"#!-force_reconnect"),
        Some(Reconnect::Now)
    );
    assert_eq!(Stage::new("ossec4").settled().hear(b"#!-force_reconnect"), None);
}

#[test]
fn only_ossec_agents_drop_messages_whose_counter_goes_back() {
    let back = Counter { global: 0, local: 0 };
    let mut ossec = Stage::new("ossec3").settled();
    ossec.hear_with(back, b"#!-agent ack ");
    assert_eq!((ossec.tally.stale_counters, ossec.tally.keepalives_acked), (1, 0));
    let mut wazuh = Stage::new("wazuh-blowfish-udp").settled();
    wazuh.hear_with(back, b"#!-agent ack ");
    assert_eq!((wazuh.tally.stale_counters, wazuh.tally.keepalives_acked), (0, 1));
}

#[test]
fn goodbye_is_said_by_wazuh_agents_only() {
    let mut wazuh = Stage::new("wazuh-aes-tcp").settled();
    wazuh.agent.goodbye(&mut wazuh.out);
    assert_eq!(wazuh.sent(), ["#!-agent shutdown "]);
    let mut ossec = Stage::new("ossec3").settled();
    ossec.agent.goodbye(&mut ossec.out);
    assert!(ossec.sent().is_empty());
}

#[test]
fn events_keep_their_rate_and_wait_while_there_is_no_room() {
    let mut habits = Habits::stock(Duration::from_secs(1000));
    habits.events = Some(EventLoad::even(Duration::from_millis(100), 120));
    let mut stage = Stage::with("wazuh-aes-tcp", habits).settled();
    stage.at += SECOND;
    let now = stage.now();
    stage.agent.due(now, Room::None, &mut stage.out, &mut stage.tally);
    let events = |texts: Vec<String>| {
        texts
            .into_iter()
            .filter(|text| text.starts_with("1:"))
            .collect::<Vec<_>>()
    };
    assert!(events(stage.sent()).is_empty());
    stage.agent.due(now, Room::Some, &mut stage.out, &mut stage.tally);
    let sent = events(stage.sent());
    // The first one falls anywhere in the first tenth of a second.
    assert_eq!(sent.len(), 10);
    assert!(sent.iter().all(|text| text.len() == 120));
    assert!(
        sent[9].starts_with("1:/var/log/syslog:web-01 swarm[1]: event 10 of web-01 "),
        "{}",
        sent[9]
    );
}

#[test]
fn an_event_smaller_than_its_fixed_text_is_that_text() {
    let load = EventLoad::even(SECOND, 1);
    let text = load.text("a", 1, &mut Dice::new(1));
    assert_eq!(text, b"1:/var/log/syslog:a swarm[1]: event 1 of a ");
}

#[test]
fn a_connection_that_ends_inside_a_push_counts_as_a_broken_push() {
    let mut stage = Stage::new("wazuh-aes-tcp").settled();
    stage.hear(b"#!-up file 00 merged.mg\n");
    stage.agent.disconnected(&mut stage.tally);
    assert_eq!(stage.tally.pushes_broken, 1);
    assert_eq!(stage.agent.next_due(), None);
}

#[test]
fn a_version_of_its_own_is_said_at_startup_and_in_keepalives() {
    let mut stage = Stage::new("wazuh-aes-tcp");
    let identity = Identity {
        version: "4.9.2".into(),
        ..stage.agent.identity().clone()
    };
    stage.agent = Agent::new(
        Rc::new(identity),
        stage.agent.kind(),
        Rc::new(Habits::stock(SECOND)),
        Dice::new(1),
    );
    assert_eq!(stage.connect(), [r#"#!-agent startup {"version":"v4.9.2"}"#]);
    stage.hear(b"#!-agent ack ");
    assert!(stage.sent()[1].contains(" - Wazuh v4.9.2\n"));
}

#[test]
fn a_flood_ends_at_its_time_and_ordinary_events_go_on() {
    let mut habits = Habits::stock(1000 * SECOND);
    habits.events = Some(EventLoad::even(SECOND, 120));
    let mut stage = Stage::with("wazuh-aes-tcp", habits).settled();
    let events = |stage: &mut Stage| stage.sent().iter().filter(|text| text.starts_with("1:/")).count();
    let until = stage.now().at + SECOND;
    stage
        .agent
        .flood(stage.begin, EventLoad::even(Duration::from_millis(100), 50), until);
    stage.pass(Duration::from_millis(950));
    assert_eq!(events(&mut stage), 10);
    stage.pass(SECOND);
    assert_eq!(events(&mut stage), 0);
    for _ in 0..10 {
        stage.pass(SECOND);
    }
    assert_eq!(events(&mut stage), 10);
}

#[test]
fn a_flood_without_pause_makes_few_events_at_a_time() {
    let mut stage = Stage::new("wazuh-aes-udp").settled();
    let until = stage.begin + 10 * SECOND;
    stage
        .agent
        .flood(stage.begin, EventLoad::even(Duration::from_nanos(1), 50), until);
    stage.pass(SECOND);
    let sent = stage.sent();
    assert_eq!(
        sent.iter().filter(|text| text.starts_with("1:")).count(),
        MAX_EVENTS_AT_ONCE
    );
}

#[test]
fn sizes_and_moments_follow_their_distribution() {
    let load = EventLoad {
        every: SECOND,
        rhythm: Rhythm::Random,
        sizes: crate::scenario::words::sizes("100:90, 1000..2000:10").unwrap(),
    };
    let mut dice = Dice::new(1);
    let sizes: Vec<usize> = (0..2000)
        .map(|number| load.text("a", number, &mut dice).len())
        .collect();
    let small = sizes.iter().filter(|size| **size == 100).count();
    assert!((1700..1900).contains(&small), "{small}");
    assert!(sizes.iter().all(|size| *size == 100 || (1000..=2000).contains(size)));
    let mut habits = Habits::stock(100_000 * SECOND);
    habits.events = Some(load);
    let mut stage = Stage::with("wazuh-aes-tcp", habits).settled();
    let mut counts = Vec::new();
    for _ in 0..1000 {
        stage.pass(SECOND);
        counts.push(stage.sent().len());
    }
    let all: usize = counts.iter().sum();
    assert!((900..1100).contains(&all), "{all}");
    assert!(counts.contains(&0) && counts.contains(&3), "as if by chance");
}

#[test]
fn an_agent_that_reads_nothing_gives_nobody_up() {
    let mut stage = Stage::new("wazuh-aes-tcp").settled();
    stage.agent.deafen();
    for _ in 0..10 {
        assert_eq!(stage.pass(10 * SECOND), None);
    }
    stage.sent();
    assert!(stage.tally.keepalives_sent >= 9);
}

#[test]
fn waits_for_acks_are_noted() {
    let mut stage = Stage::new("wazuh-aes-tcp");
    stage.connect();
    stage.at += SECOND;
    stage.hear(b"#!-agent ack ");
    stage.at += 2 * SECOND;
    stage.hear(b"#!-agent ack ");
    assert_eq!(stage.tally.startup_wait.longest(), SECOND);
    assert_eq!(
        (stage.tally.keepalive_wait.count(), stage.tally.keepalive_wait.longest()),
        (1, 2 * SECOND)
    );
}

#[test]
fn a_file_is_kept_by_agents_that_keep_files() {
    let sum = "ccbc6422b66b712e3a586e025fb0029a";
    for keeps_files in [false, true] {
        let habits = Habits {
            keeps_files,
            ..Habits::stock(SECOND)
        };
        let mut stage = Stage::with("wazuh-aes-tcp", habits).settled();
        stage.hear(format!("#!-up file {sum} merged.mg\n").as_bytes());
        stage.hear(b"#default\n");
        stage.hear(b"#!-close file ");
        let content = stage.agent.take_file().map(|file| file.content);
        assert_eq!(content, keeps_files.then(|| b"#default\n".to_vec()));
        assert_eq!(stage.tally.push_messages, 3);
    }
}
