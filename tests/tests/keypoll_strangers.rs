//! Strangers who send forged packets: they cause no more look-ups than they may, and keep nobody out.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixListener,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    home::Home,
    wait::{SOON, until_true},
};

/// A service that knows one agent and takes ten milliseconds to say so; what it was asked.
fn service(path: &Path, agent: Key) -> Result<Arc<Mutex<Vec<String>>>> {
    let listener = UnixListener::bind(path)?;
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = Arc::clone(&asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut buffer = [0; 128];
            let length = stream.read(&mut buffer).unwrap_or(0);
            let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
            thread::park_timeout(Duration::from_millis(10));
            let Key { id, name, address, key } = &agent;
            let answer = if request == format!("id:{id}") {
                format!(r#"{{"error":0,"data":{{"id":"{id}","name":"{name}","ip":"{address}","key":"{key}"}}}}"#)
            } else {
                r#"{"error":4,"message":"No agent key found"}"#.to_owned()
            };
            let _ = stream.write_all(answer.as_bytes());
            log.lock().expect("no panic").push(request);
        }
    });
    Ok(asked)
}

fn forged(id: u32) -> Vec<u8> {
    [format!("!{id}!#AES:").as_bytes(), &[0x5a; 64]].concat()
}

#[test]
fn a_flood_of_forged_packets_is_held_to_its_rate_and_keeps_no_agent_out() -> Result<()> {
    let home = Home::new()?;
    home.set_in(
        "auth",
        "<key_request><socket>queue/sockets/source</socket><queue_size>64</queue_size>\
         <rate_per_address>5/s burst 20</rate_per_address></key_request>",
    )?;
    let key = Key {
        id: "001".to_owned(),
        name: "web-01".to_owned(),
        address: "any".to_owned(),
        key: "k".repeat(64),
    };
    fs::create_dir_all(home.path().join("queue/sockets"))?;
    let asked = service(&home.path().join("queue/sockets/source"), key.clone())?;
    let _authd = home.start("authd")?;
    let _keypolld = home.start("keypolld")?;
    let remoted = home.start("remoted")?;
    until_true("remoted has found keypolld", SOON, || {
        Ok(remoted.log().contains("keys of unknown agents are asked for"))
    })?;

    let manager = SocketAddr::from(([127, 0, 0, 1], home.port()));
    let began = Instant::now();
    // Two addresses over UDP, and connections from the agents' own network over TCP.
    let sockets = [UdpSocket::bind("127.0.0.2:0")?, UdpSocket::bind("127.0.0.3:0")?];
    for id in 10_000..14_000 {
        sockets[id as usize % 2].send_to(&forged(id), manager)?;
        if id % 40 == 0 {
            let mut stream = TcpStream::connect(manager)?;
            let packet = forged(50_000 + id);
            stream.write_all(&u32::try_from(packet.len())?.to_le_bytes())?;
            stream.write_all(&packet)?;
        }
    }
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Udp, home.port());
    agent.hello_until_heard(SOON)?;
    let let_in = began.elapsed();
    ensure!(let_in < Duration::from_secs(10), "it took {let_in:?}");

    until_true("what may be looked up was", SOON, || {
        // Each was looked up, or had no need to be.
        let mut accounted = 0;
        for counter in [
            "keypoll_lookups_total",
            "keypoll_requests_merged_total",
            "keypoll_requests_remembered_total",
            "keypoll_requests_rate_limited_total",
            "keypoll_requests_queue_full_total",
        ] {
            accounted += home.counter("keypolld", counter)?;
        }
        Ok(accounted == home.counter("keypolld", "keypoll_requests_total")?)
    })?;
    let elapsed = began.elapsed().as_secs() + 1;
    let asked = asked.lock().expect("no panic").len();
    // Three sources over two carriers, each with its burst and its rate.
    let allowed = 4 * (20 + 5 * usize::try_from(elapsed)?);
    ensure!(
        (20..=allowed).contains(&asked),
        "{asked} look-ups in {elapsed} s, {allowed} allowed"
    );
    ensure!(home.counter("remoted", "remoted_key_requests_rate_limited_total")? > 3000);
    Ok(())
}

#[test]
fn remoted_finds_keypolld_again_whichever_was_restarted() -> Result<()> {
    let home = Home::new()?;
    home.set_in(
        "auth",
        "<key_request><socket>queue/sockets/source</socket></key_request>",
    )?;
    let agent = |number: u32| Key {
        id: format!("{number:03}"),
        name: format!("web-{number}"),
        address: "any".to_owned(),
        key: "k".repeat(64),
    };
    let _authd = home.start("authd")?;
    let mut remoted = home.start("remoted")?;
    for number in 1..4 {
        let path = home.path().join("queue/sockets/source");
        let _ = fs::remove_file(&path);
        let _asked = service(&path, agent(number))?;
        let keypolld = home.start("keypolld")?;
        let mut agent = Agent::new(agent(number), Family::WazuhAes, Carrier::Tcp, home.port());
        agent.hello_until_heard(SOON)?;
        keypolld.kill()?;
        if number == 2 {
            remoted.kill()?;
            remoted = home.start("remoted")?;
        }
    }
    remoted.stop().map(drop)
}
