//! Events to the analysis daemon: what it gets, and what happens when it does not take it.

use muster_proto::ipc::events::{FromNatsd, ToNatsd};

use super::*;

#[test]
fn datagrams_are_those_of_the_stock_manager() {
    let stage = start();
    let analysis = stage.analysis();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    let rows: [(&[u8], &[u8]); 9] = [
        (
            b"1:/var/log/syslog:hello",
            b"1:[001] (dyn) any->/var/log/syslog:hello\0",
        ),
        (
            b"1:C|:\\x|| y:msg with : colon",
            b"1:[001] (dyn) any->C|:\\x|| y:msg with : colon\0",
        ),
        (
            b"1:noloc-no-second-colon",
            b"1:[001] (dyn) any->noloc-no-second-colon\0",
        ),
        (b"1::empty location", b"1:[001] (dyn) any->:empty location\0"),
        (b"1:", b"1:[001] (dyn) any->\0"),
        (b"1:a:before\0after", b"1:[001] (dyn) any->a:before\0"),
        (b"1:a: \xc3\xa9\xff\xfe", b"1:[001] (dyn) any->a: \xc3\xa9\xff\xfe\0"),
        (b"x:syslog:foo", b"x:[001] (dyn) any->syslog:foo\0"),
        (b"::a:b", b"::[001] (dyn) any->a:b\0"),
    ];
    for (said, passed_on) in rows {
        agent.say(&mut link, said);
        assert_eq!(receive(&analysis), passed_on);
    }
    // None of these is passed on, and the connection stays open.
    for said in ["1:keepalive", "8:keepalive x", "1", "11:a:b", "1 a:b", "#!x:y"] {
        agent.say(&mut link, said);
    }
    agent.say(&mut link, "1:a:last");
    assert_eq!(receive_text(&analysis), "1:[001] (dyn) any->a:last\0");
    assert_eq!(stage.edge.count(Tally::EventsMalformed), 4);
    assert_eq!(stage.edge.count(Tally::EventsMarker), 2);
}

#[test]
fn registered_addresses_stand_in_the_source() {
    let stage = start();
    let analysis = stage.analysis();
    let mut agent = Agent::new("003", "cidr", "k3", Some("003"), CryptoForm::WazuhAes);
    agent.say(
        &mut stage.datagrams_from("127.1.2.3:0", stage.udp),
        "1:/var/log/syslog:cidr",
    );
    assert_eq!(
        receive_text(&analysis),
        "1:[003] (cidr) 127.1.0.0->/var/log/syslog:cidr\0"
    );
    let mut agent = Agent::new("004", "v6", "k4", None, CryptoForm::WazuhAes);
    let to = SocketAddr::new("::1".parse().unwrap(), stage.udp.port());
    agent.say(&mut stage.datagrams_from("[::1]:0", to), "1:/v:six");
    assert_eq!(
        receive_text(&analysis),
        "1:[004] (v6) 0000|:0000|:0000|:0000|:0000|:0000|:0000|:0001->/v:six\0"
    );
}

#[test]
fn ossec_home_gets_its_own_words_at_its_own_socket() {
    let stage = Setting {
        analysis: Some("queue/ossec"),
        ..Setting::default()
    }
    .start();
    let analysis = UnixDatagram::bind(stage.home.path().join(paths::ANALYSIS_QUEUE_OSSEC)).unwrap();
    analysis.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, "1:/var/log/syslog:hello");
    assert_eq!(receive_text(&analysis), "1:(dyn) any->/var/log/syslog:hello\0");
}

#[test]
fn longest_event_arrives_whole() {
    let stage = start();
    let analysis = stage.analysis();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    let mut event = b"1:a:".to_vec();
    event.resize(65_408, b'x');
    agent.say(&mut link, &event);
    assert_eq!(
        receive(&analysis).len(),
        "1:[001] (dyn) any->a:".len() + event.len() - 4 + 1
    );
}

#[test]
fn own_lines_carry_the_agents_source() {
    let mut stage = start();
    let analysis = stage.analysis();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    let News::Startup { slot, .. } = stage.news() else {
        panic!("startup")
    };
    stage
        .edge
        .own_line(&slot, "wazuh-remoted", "ossec: Agent stopped: 'dyn->any'.")
        .unwrap();
    assert_eq!(
        receive_text(&analysis),
        "1:[001] (dyn) any->wazuh-remoted:ossec: Agent stopped: 'dyn->any'.\0"
    );
}

#[test]
fn order_is_kept_and_nothing_is_lost_when_the_reader_is_slower_than_the_agent() {
    const EVENTS: usize = 20_000;
    let stage = start();
    let analysis = stage.analysis();
    let mut agent = Agent::dynamic();
    let mut link = stage.connect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let filler = "x".repeat(400);
            for number in 0..EVENTS {
                agent.say(&mut link, format!("1:a:{number} {filler}"));
            }
        });
        for number in 0..EVENTS {
            let text = receive_text(&analysis);
            assert!(
                text.starts_with(&format!("1:[001] (dyn) any->a:{number} ")),
                "{number} is expected: {text:.40}"
            );
        }
    });
    // The reader may have the last ones before the worker has counted them.
    stage.wait_for(Tally::EventsForwarded, EVENTS as u64);
    assert_eq!(stage.edge.count(Tally::EventsForwarded), EVENTS as u64);
}

#[test]
fn acknowledgements_go_on_while_the_reader_sleeps_and_nothing_is_lost_when_it_wakes() {
    let mut stage = start();
    let analysis = stage.analysis();
    let mut busy = Agent::dynamic();
    let mut flood = stage.connect();
    let filler = "x".repeat(8000);
    // Sent from a thread of its own, since it is made to wait.
    let sender = std::thread::spawn(move || {
        let mut sent = 0_u64;
        for number in 0..3000 {
            busy.say(&mut flood, format!("1:a:{number} {filler}"));
            sent += 1;
        }
        (sent, flood)
    });
    stage.wait_for(Tally::Pauses, 1);

    let mut quiet = Agent::other();
    let mut link = stage.connect();
    for _ in 0..20 {
        let begun = Instant::now();
        quiet.say(&mut link, KEEPALIVE);
        assert_eq!(quiet.hear(&mut link), ACK);
        assert!(begun.elapsed() < Duration::from_secs(2), "an ack waits for nobody");
        while !matches!(stage.news(), News::Keepalive { .. }) {}
    }
    assert!(stage.edge.queues()[0].used >= 4 * 1024 * 1024);

    let mut received = 0;
    while received < 3000 {
        receive(&analysis);
        received += 1;
    }
    let (sent, _flood) = sender.join().unwrap();
    assert_eq!(sent, received);
    assert_eq!(stage.edge.queues()[0].dropped, 0);
}

#[test]
fn paused_agent_counts_as_alive() {
    let stage = start();
    let _asleep = stage.analysis();
    let mut busy = Agent::dynamic();
    let mut flood = stage.connect();
    let slot = Arc::clone(stage.edge.tables.borrow().by_id("001").unwrap());
    let (stop, stopped) = sync_channel::<()>(0);
    let sender = std::thread::spawn(move || {
        let Link::Tcp(stream) = &flood else { unreachable!() };
        stream.set_write_timeout(Some(SILENCE)).unwrap();
        let message = busy.seal(format!("1:a:{}", "x".repeat(60_000)).as_bytes());
        let mut framed = Vec::new();
        frame::append(&mut framed, &message);
        let Link::Tcp(stream) = &mut flood else { unreachable!() };
        // Ends when nothing more is read at the other side.
        while stream.write_all(&framed).is_ok() {}
        let _ = stopped.recv();
    });
    stage.wait_for(Tally::Pauses, 1);
    let paused = Millis::now();
    wait_until(|| slot.heard() > paused + Duration::from_secs(2));
    drop(stop);
    sender.join().unwrap();
}

#[test]
fn udp_events_that_find_no_room_are_counted_and_told_to_the_operator() {
    let stage = start();
    let _asleep = stage.analysis();
    let (mut agent, mut link) = (Agent::dynamic(), stage.datagrams());
    let event = agent.seal(format!("1:a:{}", "x".repeat(60_000)).as_bytes());
    wait_until(|| {
        link.send(&event);
        stage.edge.count(Tally::EventsDroppedFull) > 0
    });
    let slot = Arc::clone(stage.edge.tables.borrow().by_id("001").unwrap());
    assert!(slot.traffic().dropped > 0);
    assert!(stage.edge.queues()[0].dropped > 0);
}

#[test]
fn reader_that_comes_late_gets_what_waited() {
    let stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, "1:a:early");
    wait_until(|| {
        stage
            .edge
            .degraded()
            .iter()
            .any(|reason| reason.starts_with("nobody takes events"))
    });
    let analysis = stage.analysis();
    assert_eq!(receive_text(&analysis), "1:[001] (dyn) any->a:early\0");
    wait_until(|| stage.edge.degraded().is_empty());
}

#[test]
fn reader_that_restarts_loses_nothing_that_was_not_taken() {
    let stage = start();
    let analysis = stage.analysis();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, "1:a:one");
    receive(&analysis);
    drop(analysis);
    fs::remove_file(stage.home.path().join(paths::ANALYSIS_QUEUE)).unwrap();
    agent.say(&mut link, "1:a:two");
    stage.wait_for(Tally::Events, 2);
    let analysis = stage.analysis();
    assert_eq!(receive_text(&analysis), "1:[001] (dyn) any->a:two\0");
}

#[test]
fn wait_file_holds_events_back_until_it_goes() {
    let stage = start();
    let analysis = stage.analysis();
    let file = stage.home.path().join("queue/sockets/.wait");
    fs::write(&file, "").unwrap();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, "1:a:held");
    stage.wait_for(Tally::Events, 1);
    analysis.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(analysis.recv(&mut [0; 100]).is_err());
    fs::remove_file(file).unwrap();
    analysis.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(receive_text(&analysis), "1:[001] (dyn) any->a:held\0");
}

#[test]
fn archives_without_an_analysis_daemon_make_nobody_wait() {
    let home = tempfile::tempdir().unwrap();
    for directory in ["etc", "queue/muster", "queue/sockets"] {
        fs::create_dir_all(home.path().join(directory)).unwrap();
    }
    fs::write(home.path().join(paths::CLIENT_KEYS), KEYS).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let events = home.path().join(paths::EVENTS_SOCKET);
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(events).unwrap() });
    let stage = Setting::default()
        .remote(|remote| remote.archives = true)
        .start_in(home);
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, "1:/var/log/syslog:hello");
    let record = runtime.block_on(async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut natsd = muster_service::ipc::Connection::accept(stream, "natsd").await.unwrap();
        let _ = natsd.receive::<ToNatsd>().await.unwrap();
        natsd.send(&FromNatsd::Resume { taken: 0 }).await.unwrap();
        let Some(ToNatsd::Batch(events)) = natsd.receive().await.unwrap() else {
            panic!("a batch")
        };
        natsd.send(&FromNatsd::Taken { number: 1 }).await.unwrap();
        events.into_iter().next().unwrap()
    });
    assert_eq!((record.number, record.event.subject_key.as_str()), (1, "001"));
    assert!(
        String::from_utf8(record.event.body)
            .unwrap()
            .ends_with(r#""full_log":"hello"}"#)
    );
    assert!(stage.edge.degraded().is_empty(), "nobody misses the analysis daemon");
    // And when one comes, it gets events too.
    let analysis = stage.analysis();
    agent.say(&mut link, "1:/var/log/syslog:again");
    wait_until(|| {
        agent.say(&mut link, "1:/var/log/syslog:more");
        stage.edge.count(Tally::EventsForwarded) > 1
    });
    assert_eq!(receive_text(&analysis), "1:[001] (dyn) any->/var/log/syslog:hello\0");
}
