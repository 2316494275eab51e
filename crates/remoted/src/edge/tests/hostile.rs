//! Strangers: what they cause, and what they do not.

use super::*;

/// An agent whose session must not be touched by any of this.
fn bystander(stage: &Stage) -> (Agent, Link) {
    let (mut agent, mut link) = (Agent::other(), stage.connect());
    agent.say(&mut link, STARTUP);
    assert_eq!(agent.hear(&mut link), ACK);
    (agent, link)
}

fn is_well((agent, link): &mut (Agent, Link)) {
    agent.say(link, KEEPALIVE);
    assert_eq!(agent.hear(link), ACK);
}

#[test]
fn every_refusal_causes_its_key_request_and_closes() {
    let stage = start();
    let mut wrong = Agent::new("001", "dyn", "wrong", Some("001"), CryptoForm::WazuhAes);
    let mut wrong_blowfish = Agent::new("001", "dyn", "wrong", Some("001"), CryptoForm::Blowfish);
    let mut right = Agent::dynamic();
    let valid = right.seal(STARTUP.as_bytes());
    let behind = |prefix: &str, rest: &[u8]| [prefix.as_bytes(), rest].concat();
    let sealed = valid.strip_prefix(b"!001!").unwrap();
    let rows: Vec<(Vec<u8>, Option<&str>)> = vec![
        (behind("!999!", sealed), Some("id:999")),
        (behind("!1!", sealed), Some("id:1")),
        (behind("!!", sealed), Some("id:")),
        (behind("!002!", sealed), Some("id:002")),
        (behind("!003!", sealed), Some("id:003")),
        (sealed.to_vec(), Some("ip:127.0.0.1")),
        (b"garbage".to_vec(), Some("ip:127.0.0.1")),
        (wrong.seal(b"1:a:b"), Some("id:001")),
        (wrong_blowfish.seal(b"1:a:b"), Some("id:001")),
        (b"!001!#AES:".to_vec(), Some("id:001")),
        (b"!001!#AES:abc".to_vec(), Some("id:001")),
        (b"!001!:".to_vec(), Some("id:001")),
        (b"!001!:abc".to_vec(), Some("id:001")),
        (b"!0a1!..".to_vec(), None),
        (b"!001".to_vec(), None),
        (b"!001!abcdef".to_vec(), None),
        (b"!001!#AESx..".to_vec(), None),
        (b"!001!#ping".to_vec(), None),
        (b"!001!".to_vec(), None),
    ];
    let mut expected = Vec::new();
    for (message, request) in &rows {
        let mut link = stage.connect();
        link.send(message);
        assert!(link.is_closed(), "{message:?}");
        expected.extend(request.map(str::to_owned));
        assert_eq!(stage.requests(), expected, "{message:?}");
    }
    // The empty message is one too, over TCP.
    let mut link = stage.connect();
    link.send(b"");
    assert!(link.is_closed());
    expected.push("ip:127.0.0.1".to_owned());
    assert_eq!(stage.requests(), expected);

    // The same over UDP, where nothing comes back.
    stage.requests.0.lock().unwrap().clear();
    let mut link = stage.datagrams();
    for (message, _) in &rows {
        link.send(message);
    }
    link.send(b"");
    link.send(b"#ping");
    assert_eq!(link.receive(), b"#pong", "the first and only answer");
    expected.pop();
    assert_eq!(stage.requests(), expected);
}

#[test]
fn after_a_message_that_closes_the_rest_is_not_read() {
    let mut stage = start();
    let mut agent = Agent::dynamic();
    let mut wrong = Agent::new("001", "dyn", "wrong", Some("001"), CryptoForm::WazuhAes);
    let mut segment = Vec::new();
    for message in [
        agent.seal(STARTUP.as_bytes()),
        wrong.seal(b"1:a:b"),
        agent.seal(STARTUP.as_bytes()),
    ] {
        frame::append(&mut segment, &message);
    }
    let mut link = stage.connect();
    link.send_raw(&segment);
    assert_eq!(agent.hear(&mut link), ACK);
    assert!(link.is_closed());
    assert!(matches!(stage.news(), News::Startup { .. }));
    let News::ConnectionLost { ending, .. } = stage.news() else {
        panic!("lost")
    };
    assert!(matches!(ending, Ending::Refused(_)), "{ending:?}");
    stage.no_news();
}

#[test]
fn length_over_the_limit_closes_and_the_largest_legal_one_does_not() {
    let stage = start();
    let mut bystander = bystander(&stage);
    for announced in [65_537_u32, u32::MAX] {
        let mut link = stage.connect();
        link.send_raw(&announced.to_le_bytes());
        assert!(link.is_closed());
    }
    let mut link = stage.connect();
    let mut ping = b"#ping".to_vec();
    ping.resize(65_536, b'.');
    link.send(&ping);
    assert_eq!(link.receive(), b"#pong");
    is_well(&mut bystander);
}

#[test]
fn messages_arrive_whole_however_they_are_cut() {
    let stage = start();
    let mut agent = Agent::dynamic();
    let mut link = stage.connect();
    let mut bytes = Vec::new();
    for payload in [STARTUP, KEEPALIVE, KEEPALIVE] {
        frame::append(&mut bytes, &agent.seal(payload.as_bytes()));
    }
    for byte in &bytes {
        link.send_raw(&[*byte]);
    }
    for _ in 0..3 {
        assert_eq!(agent.hear(&mut link), ACK);
    }
}

#[test]
fn message_that_is_never_finished_keeps_nobody_waiting() {
    let stage = start();
    let mut bystander = bystander(&stage);
    let mut links: Vec<_> = (0..50).map(|_| stage.connect()).collect();
    for link in &mut links {
        link.send_raw(&1000_u32.to_le_bytes());
        link.send_raw(b"!001!");
    }
    assert!(links[0].is_silent(), "neither answered nor closed");
    is_well(&mut bystander);
}

/// Says that it is over, also when a check fails: whoever floods would go on for ever.
struct Flood(std::sync::atomic::AtomicBool);

impl Flood {
    fn goes_on(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

struct EndOf<'f>(&'f Flood);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn flood_of_junk_costs_the_others_nothing_but_time() {
    // More than the kernel keeps of datagrams at a time.
    const BURST: usize = 500;
    let stage = start();
    let mut bystander = bystander(&stage);
    bystander.1.wait_for_up_to(Duration::from_secs(120));
    let flood = Flood(false.into());
    let bad = Agent::new("001", "dyn", "wrong", Some("001"), CryptoForm::WazuhAes).seal(&[b'x'; 500]);
    let refused = || stage.edge.count(Tally::RefusedKey);
    std::thread::scope(|scope| {
        let _end = EndOf(&flood);
        scope.spawn(|| {
            let mut datagrams = stage.datagrams();
            while flood.goes_on() {
                let before = refused();
                (0..BURST).for_each(|_| datagrams.send(&bad));
                // The next burst when this one is being worked on: a flood is what the daemon has to bear, not what the
                // machine can make.
                while flood.goes_on() && refused() == before {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        });
        scope.spawn(|| {
            while flood.goes_on() {
                let mut link = stage.connect();
                link.send(&bad);
                link.is_closed();
            }
        });
        for _ in 0..20 {
            let before = refused();
            is_well(&mut bystander);
            while refused() == before {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    });
    is_well(&mut bystander);
}

#[test]
fn idle_strangers_beyond_the_bound_make_room_and_agents_get_in() {
    let stage = Setting {
        workers: 1,
        ..Setting::default()
    }
    .remote(|remote| remote.limits.max_unidentified_per_address = 20)
    .start();
    let mut bystander = bystander(&stage);
    let mut idle: Vec<_> = (0..100).map(|_| stage.connect()).collect();
    stage.wait_for(Tally::ConnectionsEvicted, 80);
    assert!(idle[0].is_closed(), "the oldest goes first");
    assert!(idle[99].is_silent());
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    assert_eq!(agent.hear(&mut link), ACK);
    is_well(&mut bystander);
}

#[test]
fn stranger_who_never_says_anything_valid_is_closed_in_time() {
    let stage = Setting::default()
        .remote(|remote| remote.limits.identify_timeout = Duration::from_millis(200))
        .start();
    let mut bystander = bystander(&stage);
    let mut idle = stage.connect();
    idle.send(b"#ping");
    assert_eq!(idle.receive(), b"#pong");
    assert!(idle.is_closed());
    is_well(&mut bystander);
}

#[test]
fn half_sent_messages_of_strangers_are_bounded_in_all() {
    let stage = Setting {
        workers: 1,
        ..Setting::default()
    }
    .start();
    let mut bystander = bystander(&stage);
    let mut links = Vec::new();
    let half = vec![b'x'; 60_000];
    let mut closed = 0;
    for _ in 0..400 {
        let mut link = stage.connect();
        link.send_raw(&65_536_u32.to_le_bytes());
        let Link::Tcp(stream) = &mut link else { unreachable!() };
        if stream.write_all(&half).is_err() {
            closed += 1;
        }
        links.push(link);
    }
    stage.wait_for(Tally::ConnectionsClosed, 1);
    assert!(closed < 400);
    is_well(&mut bystander);
}

#[test]
fn connections_over_the_limit_are_closed_and_those_there_stay() {
    let stage = Setting {
        workers: 1,
        ..Setting::default()
    }
    .remote(|remote| remote.limits.max_connections = 1)
    .start();
    let mut bystander = bystander(&stage);
    assert!(stage.connect().is_closed());
    is_well(&mut bystander);
    assert_eq!(stage.edge.count(Tally::ConnectionsRefused), 1);
}

#[test]
fn cipher_that_is_not_accepted_is_refused_after_the_key_was_proved() {
    let stage = Setting::default()
        .remote(|remote| remote.crypto_accept = muster_config::CryptoAccept::Aes)
        .start();
    let mut agent = Agent::dynamic();
    agent.form = CryptoForm::Blowfish;
    let mut link = stage.connect();
    agent.say(&mut link, STARTUP);
    assert!(link.is_closed());
    assert_eq!(stage.edge.count(Tally::RefusedCipher), 1);
}
