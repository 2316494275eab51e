//! A stranger at 1514 or 1515 gets at most the documented text, and nobody else notices.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    analysis::Analysis,
    daemon::Daemon,
    enroll::{self, Tls},
    home::Home,
    live::{Life, Live},
    wait::{self, SOON},
    wire::{self, Form, Pair},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More than a daemon may grow by while strangers are at it.
const MAX_GROWTH_KIB: u64 = 64 * 1024;

/// A manager with one agent that must not notice anything.
struct Scene {
    witness: Live,
    remoted: Daemon,
    authd: Daemon,
    resident: (u64, u64),
    // Last, so that it is there for as long as anybody lives in it.
    home: Home,
}

impl Scene {
    fn new() -> Result<Self> {
        Self::of(Home::new()?)
    }

    fn of(home: Home) -> Result<Self> {
        let authd = home.start("authd")?;
        let remoted = home.start("remoted")?;
        let mut agent = Agent::new(home.enroll("witness")?, Family::WazuhAes, Carrier::Tcp, home.port());
        agent.hello_until_heard(SOON)?;
        let life = Life {
            keepalive: Duration::from_millis(100),
            reconnects: false,
            ..Life::default()
        };
        let witness = Live::start(agent, life);
        wait::until_true("the witness is acknowledged", SOON, || Ok(witness.acks() >= 3))?;
        let resident = (remoted.resident_kib()?, authd.resident_kib()?);
        Ok(Self {
            home,
            remoted,
            authd,
            witness,
            resident,
        })
    }

    fn tcp(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.home.port()))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(stream)
    }

    /// An agent with a key, of whom we know everything.
    fn agent(&self, name: &str) -> Result<Agent> {
        let mut agent = Agent::new(
            self.home.enroll(name)?,
            Family::WazuhAes,
            Carrier::Tcp,
            self.home.port(),
        );
        agent.hello_until_heard(SOON)?;
        Ok(agent)
    }

    /// Both daemons run, have not grown, and the witness was acknowledged all the time.
    fn nobody_noticed(mut self) -> Result<()> {
        let acks = self.witness.acks();
        wait::until_true("the witness is acknowledged", SOON, || {
            ensure!(!self.witness.has_ended(), "the witness lost its connection");
            Ok(self.witness.acks() >= acks + 3)
        })?;
        ensure!(
            self.witness.slowest_ack() < Duration::from_secs(8),
            "an ack took {:?}",
            self.witness.slowest_ack()
        );
        for (daemon, before) in [(&mut self.remoted, self.resident.0), (&mut self.authd, self.resident.1)] {
            ensure!(daemon.is_running()?, "{} ended:\n{}", daemon.name, daemon.log());
            ensure!(
                !daemon.log().contains("panicked"),
                "{} panicked:\n{}",
                daemon.name,
                daemon.log()
            );
            let now = daemon.resident_kib()?;
            ensure!(
                now < before + MAX_GROWTH_KIB,
                "{} grew from {before} to {now} KiB",
                daemon.name
            );
        }
        self.witness.stop().context("the witness")?;
        Ok(())
    }
}

/// The peer must close without having said a word.
fn expect_silent_close(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("the connection was not closed"),
    }
    ensure!(bytes.is_empty(), "a stranger got {}", bytes.escape_ascii());
    Ok(())
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&len.to_le_bytes(), message].concat()
}

#[test]
fn an_announced_length_above_the_limit_closes_and_the_limit_itself_does_not() -> Result<()> {
    let scene = Scene::new()?;
    for len in [65_537_u32, 1 << 24, u32::MAX] {
        let mut stream = scene.tcp()?;
        stream.write_all(&len.to_le_bytes())?;
        expect_silent_close(&mut stream)?;
    }
    let mut stream = scene.tcp()?;
    let mut ping = b"#ping".to_vec();
    ping.resize(65_536, b'x');
    stream.write_all(&framed(&ping))?;
    let mut pong = [0; 9];
    stream.read_exact(&mut pong)?;
    assert_eq!(&pong, b"\x05\0\0\0#pong");
    scene.nobody_noticed()
}

#[test]
fn truncated_frames_and_single_bytes_wait_without_cost() -> Result<()> {
    let scene = Scene::new()?;
    let mut open = Vec::new();
    for bytes in [
        &b"\x10"[..],
        b"\x10\0\0\0",
        b"\0\0\x01\0!001!#AES:abc",
        b"\xff\xff\0\0!0",
    ] {
        for _ in 0..50 {
            let mut stream = scene.tcp()?;
            stream.write_all(bytes)?;
            open.push(stream);
        }
    }
    scene.nobody_noticed()
}

#[test]
fn every_wrong_message_closes_its_own_connection_only() -> Result<()> {
    let scene = Scene::new()?;
    let analysis = Analysis::listen(scene.home.path())?;
    let key = scene.home.enroll("known")?;
    let derived = wire::derive(&key.id, &key.name, &key.key);
    let id = format!("!{}!", key.id).into_bytes();
    let pair = Pair { global: 1, local: 1 };
    let event = b"1:/var/log/wrong:must not arrive";
    let inner = wire::inner(pair, 1, event);
    let seal = |form: Form, clear: &[u8]| wire::encrypt(form, &derived, [7; 16], &wire::deflate(clear));
    let mut wrong_sum = inner.clone();
    wrong_sum[0] ^= 1;
    let mut no_colon = wire::inner(pair, 1, event);
    no_colon[32 + 15] = b'x';
    let mut no_colon = no_colon[32..].to_vec();
    no_colon.splice(0..0, wire::hex_md5(&no_colon).into_bytes());
    let stream = wire::deflate(&inner);
    let mut messages: Vec<(&str, Vec<u8>)> = vec![
        ("wrong checksum in Wazuh's AES", seal(Form::WazuhAes, &wrong_sum)),
        ("wrong checksum in OSSEC's AES", seal(Form::OssecAes, &wrong_sum)),
        ("wrong checksum in Blowfish", seal(Form::Blowfish, &wrong_sum)),
        ("no colon behind the counter", seal(Form::WazuhAes, &no_colon)),
        ("shorter than checksum and counters", seal(Form::WazuhAes, b"short")),
        (
            "a stream that ends early",
            wire::encrypt(Form::WazuhAes, &derived, [0; 16], &stream[..stream.len() / 2]),
        ),
        ("no token", b"abcdef".to_vec()),
        ("a token and nothing", b"#AES:".to_vec()),
        ("a token and half a block", b"#AES:abc".to_vec()),
        ("a colon and nothing", b":".to_vec()),
        ("blocks of nothing", [b"#AES:".as_slice(), &[0; 64]].concat()),
        ("nothing", Vec::new()),
    ];
    for (_, message) in &mut messages {
        message.splice(0..0, id.clone());
    }
    messages.extend([
        ("an id that is not known", b"!999!#AES:0123456789abcdef".to_vec()),
        ("an id without end", b"!001".to_vec()),
        ("an id with a letter", b"!0a1!#AES:0123456789abcdef".to_vec()),
        (
            "an id of 5,000 digits",
            [b"!".as_slice(), &[b'1'; 5000], b"!#AES:x"].concat(),
        ),
        ("an empty id", b"!!#AES:x".to_vec()),
        ("a ping behind an id", [id.as_slice(), b"#ping"].concat()),
        ("an empty message", Vec::new()),
        ("text", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
    ]);
    for (what, message) in &messages {
        let mut stream = scene.tcp()?;
        stream.write_all(&framed(message))?;
        expect_silent_close(&mut stream).with_context(|| (*what).to_owned())?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.send_to(message, ("127.0.0.1", scene.home.port()))?;
    }
    // The key itself was good all the time.
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, scene.home.port());
    agent.hello()?;
    agent.event("1:/var/log/right:arrives")?;
    analysis.expect_count("arrives", 1, SOON)?;
    assert_eq!(analysis.texts_with("must not arrive"), Vec::<String>::new());
    scene.nobody_noticed()
}

#[test]
fn a_zip_bomb_from_an_agent_is_not_unpacked() -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = scene.agent("bomber")?;
    let derived = wire::derive(&agent.key.id, &agent.key.name, &agent.key.key);
    // 60 MB in less than 64 KiB.
    let bomb = wire::deflate(&vec![b'0'; 60_000_000]);
    ensure!(bomb.len() < 65_000, "{} bytes are no bomb", bomb.len());
    for form in [Form::WazuhAes, Form::OssecAes, Form::Blowfish] {
        for _ in 0..20 {
            agent.connect()?;
            let sealed = wire::encrypt(form, &derived, [1; 16], &bomb);
            agent.send_message(&[format!("!{}!", agent.key.id).as_bytes(), &sealed].concat())?;
            agent.expect_close()?;
        }
    }
    agent.hello_until_heard(SOON)?;
    scene.nobody_noticed()
}

#[test]
fn the_id_of_another_gives_nothing_and_does_not_disturb_its_owner() -> Result<()> {
    let scene = Scene::new()?;
    let mallory = scene.home.enroll("mallory")?;
    // Mallory's key under the witness's id and name: on TCP, on UDP, and by replaying nothing but the envelope.
    let forged = Key {
        id: "001".into(),
        name: "witness".into(),
        ..mallory
    };
    for carrier in [Carrier::Tcp, Carrier::Udp] {
        let mut agent = Agent::new(forged.clone(), Family::WazuhAes, carrier, scene.home.port());
        for _ in 0..10 {
            agent.connect()?;
            agent.send(br#"#!-agent startup {"version":"v4.14.7"}"#)?;
            agent.send(b"#!-agent shutdown ")?;
            if carrier == Carrier::Tcp {
                agent.expect_close()?;
            }
        }
    }
    assert_eq!(scene.home.wait_for_status("001", "active", SOON)?["status"], "active");
    scene.nobody_noticed()
}

#[test]
fn five_thousand_idle_connections_at_each_port_disturb_no_agent() -> Result<()> {
    const IDLE: usize = 5000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = u64::try_from(IDLE)? * 2 + 500;
    if soft < wanted {
        ensure!(
            hard >= wanted,
            "this test needs {wanted} open files, and only {hard} are allowed"
        );
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    let scene = Scene::new()?;
    let mut idle = Vec::new();
    for port in [scene.home.port(), scene.home.enroll_port()] {
        for _ in 0..IDLE {
            // Whether one of them is refused or closed is the daemon's own affair.
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                idle.push(stream);
            }
        }
    }
    ensure!(idle.len() > IDLE, "only {} connections were possible", idle.len());
    scene.nobody_noticed()
}

#[test]
fn a_flood_of_garbage_costs_no_agent_its_acks() -> Result<()> {
    const FLOOD: Duration = Duration::from_secs(3);
    let scene = Scene::new()?;
    let port = scene.home.port();
    let floods: Vec<_> = (0..2)
        .map(|seed: u8| {
            std::thread::spawn(move || -> Result<u64> {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                let end = Instant::now() + FLOOD;
                let mut sent = 0;
                let mut datagram = [seed; 700];
                datagram[..10].copy_from_slice(b"!001!#AES:");
                while Instant::now() < end {
                    for _ in 0..100 {
                        datagram[20..28].copy_from_slice(&u64::to_le_bytes(sent));
                        // What does not fit into the kernel's buffer is the stranger's loss.
                        let _ = socket.send_to(&datagram, ("127.0.0.1", port));
                        sent += 1;
                    }
                    let stream = TcpStream::connect(("127.0.0.1", port));
                    if let Ok(mut stream) = stream {
                        let _ = stream.write_all(&framed(&datagram));
                    }
                }
                Ok(sent)
            })
        })
        .collect();
    for flood in floods {
        let sent = flood.join().map_err(|_| anyhow::anyhow!("a flood panicked"))??;
        ensure!(sent > 1000, "a flood of {sent} datagrams is none");
    }
    scene.nobody_noticed()
}

#[test]
fn an_endless_handshake_is_closed_and_enrollment_goes_on_meanwhile() -> Result<()> {
    let home = Home::new()?;
    home.set_in(
        "auth",
        "<limits><handshake_timeout>2</handshake_timeout><read_timeout>2</read_timeout></limits>",
    )?;
    let scene = Scene::of(home)?;
    // The beginning of a TLS record that never ends, byte by byte.
    let mut slow = TcpStream::connect(("127.0.0.1", scene.home.enroll_port()))?;
    slow.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00])?;
    let begun = Instant::now();
    slow.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut byte = [0; 1];
    loop {
        ensure!(
            begun.elapsed() < SOON,
            "the handshake went on for {:?}",
            begun.elapsed()
        );
        match slow.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => bail!("a stranger got an answer to half a record"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if slow.write_all(&[0]).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    ensure!(begun.elapsed() >= Duration::from_secs(1), "closed too early");
    // A whole handshake and no request ends too, without a word.
    let mut silent = enroll::connect(scene.home.enroll_port(), Tls::New)?;
    silent.write_all(b"OSSEC A:'no-line-feed'")?;
    let mut answer = Vec::new();
    let _ = silent.read_to_end(&mut answer);
    assert_eq!(String::from_utf8_lossy(&answer), "");
    scene.home.enroll("meanwhile")?;
    scene.nobody_noticed()
}

#[test]
fn bad_requests_at_the_enrollment_port_get_the_documented_text() -> Result<()> {
    let home = Home::with(&[])?;
    let _authd = home.start("authd")?;
    let password = std::fs::read_to_string(home.path().join("etc/authd.pass"))?;
    let password = password.lines().next().context("an empty password file")?;
    let good = format!("OSSEC PASS: {password} ");
    let with = |rest: &str| format!("{good}{rest}\n").into_bytes();
    let long = "x".repeat(129);
    let invalid = |what: &str| format!("ERROR: {what}. Unable to add agent");
    let cases: Vec<(Vec<u8>, String)> = vec![
        (b"\n".to_vec(), invalid("Invalid password")),
        (b"OSSEC A:'web-01'\n".to_vec(), invalid("Invalid password")),
        (
            b"OSSEC PASS: wrong OSSEC A:'web-01'\n".to_vec(),
            invalid("Invalid password"),
        ),
        (
            format!("OSSEC PASS: {password}\n").into_bytes(),
            invalid("Invalid password"),
        ),
        (with("hello"), invalid("Invalid request for new agent")),
        (with("OSSEC A:'web-01"), invalid("Invalid request for new agent")),
        (with("OSSEC A:'x'"), invalid("Invalid agent name: x")),
        (with("OSSEC A:'bad name'"), invalid("Invalid agent name: bad name")),
        (
            with(&format!("OSSEC A:'{long}'")),
            invalid(&format!("Invalid agent name: {long}")),
        ),
        (
            with("OSSEC A:'web-01' V:'v4.14.7"),
            invalid("Unterminated version field"),
        ),
        (with("OSSEC A:'web-01' G:'nosuch'"), invalid("Invalid group: nosuch")),
        (
            with("OSSEC A:'web-01' IP:'10.1.2.300'"),
            invalid("Invalid IP: 10.1.2.300"),
        ),
        (with("OSSEC A:'web-01' K:'00"), invalid("Unterminated key field")),
    ];
    for (request, expected) in &cases {
        for tls in [Tls::New, Tls::Old] {
            let answer = enroll::ask(home.enroll_port(), tls, request)?;
            assert_eq!(answer, *expected, "{}", request.escape_ascii());
        }
    }
    assert_eq!(home.client_keys()?, "");
    // What is not TLS gets no text at all.
    let mut plain = TcpStream::connect(("127.0.0.1", home.enroll_port()))?;
    plain.set_read_timeout(Some(SOON))?;
    plain.write_all(b"OSSEC A:'web-01'\n")?;
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    ensure!(
        !answer.windows(5).any(|window| window == b"OSSEC"),
        "{}",
        answer.escape_ascii()
    );
    // An endless line is closed without a text, and nothing is kept of it.
    let mut endless = enroll::connect(home.enroll_port(), Tls::New)?;
    // More than the kernel's buffers take while the other side closes.
    const ENDLESS: usize = 50_000_000;
    let chunk = [b'x'; 16_384];
    let mut written = 0;
    while written < ENDLESS && endless.write_all(&chunk).is_ok() {
        written += chunk.len();
    }
    ensure!(written < ENDLESS, "a line of {written} bytes was taken");
    assert!(enroll::ask(home.enroll_port(), Tls::New, &with("OSSEC A:'web-01'"))?.starts_with("OSSEC K:'"));
    Ok(())
}
