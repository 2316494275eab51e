//! Hosts and devices without an agent send their lines over syslog.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::Result;
use muster_test_ports::Port;
use muster_tests::{
    analysis::Analysis,
    home::Home,
    wait::{self, SOON},
};

struct Stage {
    home: Home,
    analysis: Analysis,
    port: Port,
    _remoted: muster_tests::daemon::Daemon,
}

impl Stage {
    fn new(protocol: &str, options: &str) -> Result<Self> {
        let home = Home::new()?;
        let port = Port::free()?;
        home.add_config(&format!(
            "<remote><connection>syslog</connection><port>{}</port><protocol>{protocol}</protocol>\
             <local_ip>127.0.0.1</local_ip>{options}</remote>",
            port.number
        ))?;
        let analysis = Analysis::listen(home.path())?;
        let remoted = home.start("remoted")?;
        Ok(Self {
            home,
            analysis,
            port,
            _remoted: remoted,
        })
    }

    fn udp_from(&self, address: &str) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.connect(("127.0.0.1", self.port.number))?;
        Ok(socket)
    }
}

#[test]
fn datagrams_become_lines_and_strangers_are_only_counted() -> Result<()> {
    let stage = Stage::new(
        "udp",
        "<allowed-ips>127.0.0.0/8</allowed-ips><denied-ips>127.0.0.9</denied-ips>",
    )?;
    stage.udp_from("127.0.0.9")?.send(b"<13>from one that is denied")?;
    let sender = stage.udp_from("127.0.0.2")?;
    sender.send(b"<38>Nov 21 10:00:00 gw sshd[1]: Accepted password for root\n")?;
    sender.send(b"no priority: here\0and no more")?;
    sender.send(b"")?;
    stage.analysis.expect(
        b"2:127.0.0.2:Nov 21 10:00:00 gw sshd[1]: Accepted password for root\0",
        SOON,
    )?;
    stage.analysis.expect(b"2:127.0.0.2:no priority: here\0", SOON)?;
    assert_eq!(stage.analysis.texts_with("denied"), [""; 0]);
    wait::until_true("the stranger is counted", SOON, || {
        Ok(stage.home.counter("remoted", "remoted_syslog_denied_total")? == 1)
    })?;
    assert_eq!(stage.home.counter("remoted", "remoted_syslog_lines_total")?, 2);
    Ok(())
}

#[test]
fn streams_are_split_into_lines_and_counted_messages() -> Result<()> {
    let stage = Stage::new("tcp", "<allowed-ips>127.0.0.1</allowed-ips>")?;
    let mut stream = TcpStream::connect(("127.0.0.1", stage.port.number))?;
    stream.write_all(b"<13>one\r\n<13>tw")?;
    stream.flush()?;
    stage.analysis.expect(b"2:127.0.0.1:one\0", SOON)?;
    stream.write_all(b"o\n12 <13>thr\nee 411 <13>four 4 5")?;
    drop(stream);
    for line in ["two", "thr\nee 4", "four 4 "] {
        stage
            .analysis
            .expect(format!("2:127.0.0.1:{line}\0").as_bytes(), SOON)?;
    }
    // What a sender left unfinished is a line too.
    stage.analysis.expect(b"2:127.0.0.1:5\0", SOON)?;
    Ok(())
}

#[test]
fn connection_of_a_stranger_is_closed_unread() -> Result<()> {
    let stage = Stage::new("tcp", "<allowed-ips>127.0.0.2</allowed-ips>")?;
    let mut stream = TcpStream::connect(("127.0.0.1", stage.port.number))?;
    stream.set_read_timeout(Some(SOON))?;
    let _ = stream.write_all(b"let me in\n");
    let closed = match stream.read(&mut [0; 8]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(closed, "it was not closed");
    assert_eq!(stage.analysis.texts_with("let me in"), [""; 0]);
    Ok(())
}

#[test]
fn sender_that_falls_silent_is_an_event_and_its_return_is_another() -> Result<()> {
    let stage = Stage::new(
        "udp",
        "<allowed-ips>127.0.0.3</allowed-ips><silent_after>2s</silent_after>",
    )?;
    let _natsd = stage.home.start("natsd")?;
    let told = |reason: &'static str| {
        stage.home.follow_events(move |event| {
            let health = &event["body"]["health"];
            health["reason"] == reason && health["sender"] == "127.0.0.3"
        })
    };
    let silent = told("syslog_silent")?;
    assert_eq!(silent["body"]["health"]["alert_level"], 5, "{silent}");
    stage.udp_from("127.0.0.3")?.send(b"<13>here again")?;
    let back = told("syslog_back")?;
    let silent_for = back["body"]["health"]["silent_for"].as_u64();
    assert!(silent_for.is_some_and(|seconds| seconds >= 2), "{back}");
    Ok(())
}

#[test]
fn flood_of_lines_costs_no_agent_its_acknowledgement() -> Result<()> {
    use muster_tests::agent::{Agent, Carrier, Family};
    let stage = Stage::new("udp", "<allowed-ips>127.0.0.1</allowed-ips>")?;
    let _authd = stage.home.start("authd")?;
    let key = stage.home.enroll("quiet")?;
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, stage.home.port());
    agent.hello_until_heard(SOON)?;
    stage.analysis.pause();
    let sender = stage.udp_from("127.0.0.1")?;
    let line = [b'x'; 1000];
    for _ in 0..20_000 {
        // The kernel may have no room; that is no matter here.
        let _ = sender.send(&line);
    }
    let begun = std::time::Instant::now();
    agent.keepalive()?;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    stage.analysis.resume();
    stage
        .analysis
        .expect(&[b"2:127.0.0.1:", &line[..], b"\0"].concat(), SOON)
}
