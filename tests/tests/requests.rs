//! Local programs ask agents through `queue/sockets/remote`.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    live::{Life, Live},
    remote::{ask, ask_text},
    wait::SOON,
};
use serde_json::Value;

/// Answers take three seconds at most here, as in the recorded sessions.
fn home() -> Result<Home> {
    let home = Home::new()?;
    home.set_internal("remoted.response_timeout=3")?;
    // Nothing but what this test asks for goes to the agents.
    home.set_in("remote", "<manager_keepalive><enabled>no</enabled></manager_keepalive>")?;
    Ok(home)
}

fn connected(home: &Home, name: &str, family: Family, carrier: Carrier) -> Result<Agent> {
    let mut agent = Agent::new(home.enroll(name)?, family, carrier, home.port());
    agent.answers_requests = false;
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    Ok(agent)
}

/// Asks in a thread of its own; gives back what was answered, and after how long.
fn asking(home: &Home, request: &str) -> mpsc::Receiver<(Option<Vec<u8>>, Duration)> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let (path, request) = (home.path().to_owned(), request.as_bytes().to_vec());
    thread::spawn(move || {
        let begun = Instant::now();
        let answer = ask(&path, &request, 2 * SOON).expect("the socket is there");
        let _ = sender.send((answer, begun.elapsed()));
    });
    receiver
}

/// The next request that the agent gets: its number, and all behind it.
fn next_request(agent: &mut Agent) -> Result<(String, Vec<u8>)> {
    let opened = agent.receive(SOON)?.context("no request came")?;
    let rest = opened.payload.strip_prefix(b"#!-req ").context("something else came")?;
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b' ' | 0))
        .context("no end of the number")?;
    Ok((String::from_utf8_lossy(&rest[..end]).into_owned(), rest[end..].to_vec()))
}

fn answered(receiver: &mpsc::Receiver<(Option<Vec<u8>>, Duration)>) -> Result<(Option<Vec<u8>>, Duration)> {
    Ok(receiver.recv_timeout(2 * SOON)?)
}

#[test]
fn answers_come_back_byte_for_byte_whatever_they_are() -> Result<()> {
    let home = home()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = connected(&home, "tcp", Family::WazuhAes, Carrier::Tcp)?;
    let id = agent.key.id.clone();
    let large = vec![b'x'; 65_000];
    for (text, expected, reply) in [
        (
            "agent getstate",
            &b" agent getstate"[..],
            &br#"{"error":0,"data":"ok"}"#[..],
        ),
        ("agent", b" agent", b"a\0b \xff\xfe"),
        ("", b"\0", b""),
        ("com write 00 bin tail", b" com write 00 bin tail", &large),
    ] {
        let answer = asking(&home, &format!("{id} {text}"));
        let (number, rest) = next_request(&mut agent)?;
        assert_eq!(rest, expected);
        assert!(!number.starts_with('0') || number == "0", "{number} has a leading zero");
        agent.send(&[format!("#!-req {number} ").as_bytes(), reply].concat())?;
        let (answer, _) = answered(&answer)?;
        // A frame of no bytes is an answer too.
        assert_eq!(answer.unwrap_or_default(), reply);
        // Repeats are nobody's.
        agent.send(&[format!("#!-req {number} ").as_bytes(), reply].concat())?;
    }
    agent.keepalive()
}

#[test]
fn who_does_not_answer_over_tcp_is_given_up_as_recorded() -> Result<()> {
    let home = home()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = connected(&home, "tcp", Family::WazuhAes, Carrier::Tcp)?;
    let id = agent.key.id.clone();

    let answer = asking(&home, &format!("{id} agent getstate"));
    let (number, _) = next_request(&mut agent)?;
    // No space behind the number: no answer.
    agent.send(format!("#!-req {number}").as_bytes())?;
    let (text, after) = answered(&answer)?;
    assert_eq!(text.as_deref(), Some(&b"err Response timeout"[..]));
    assert!(after >= Duration::from_secs(3), "{after:?}");

    let answer = asking(&home, &format!("{id} agent getstate"));
    let (number, _) = next_request(&mut agent)?;
    for _ in 0..4 {
        agent.send(format!("#!-req {number} ack").as_bytes())?;
    }
    let (text, _) = answered(&answer)?;
    assert_eq!(text.as_deref(), Some(&b"err Maximum attempts exceeded"[..]));
    Ok(())
}

#[test]
fn udp_requests_are_sent_again_until_they_are_acknowledged() -> Result<()> {
    let home = home()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = connected(&home, "udp", Family::WazuhAes, Carrier::Udp)?;
    let id = agent.key.id.clone();

    let answer = asking(&home, &format!("{id} agent getstate"));
    let (number, _) = next_request(&mut agent)?;
    agent.send(format!("#!-req {number} {{}}").as_bytes())?;
    assert_eq!(answered(&answer)?.0.as_deref(), Some(&b"{}"[..]));
    agent.expect(format!("#!-req {number} ack").as_bytes())?;

    let answer = asking(&home, &format!("{id} agent getstate"));
    let mut numbers = Vec::new();
    for _ in 0..4 {
        numbers.push(next_request(&mut agent)?.0);
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
    let (text, after) = answered(&answer)?;
    assert_eq!(text.as_deref(), Some(&b"err Maximum attempts exceeded"[..]));
    assert!(after >= Duration::from_secs(4), "{after:?}");
    assert!(agent.receive(Duration::from_millis(300))?.is_none(), "a fifth one came");

    let answer = asking(&home, &format!("{id} agent getstate"));
    let (number, _) = next_request(&mut agent)?;
    agent.send(format!("#!-req {number} ack").as_bytes())?;
    let (text, _) = answered(&answer)?;
    assert_eq!(text.as_deref(), Some(&b"err Response timeout"[..]));
    Ok(())
}

#[test]
fn who_cannot_be_asked_is_refused_at_once_and_who_is_nobody_gets_no_word() -> Result<()> {
    let home = home()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut ossec = connected(&home, "ossec", Family::Ossec4, Carrier::Udp)?;
    let mut gone = connected(&home, "gone", Family::WazuhAes, Carrier::Tcp)?;
    let never = home.enroll("never")?;
    gone.vanish();
    muster_tests::wait::until_true("the connection is seen to be lost", SOON, || {
        Ok(ask_text(home.path(), &format!("{} agent getstate", gone.key.id), SOON)? == "err Cannot send request")
    })?;
    for id in [&ossec.key.id, &never.id] {
        let text = ask_text(home.path(), &format!("{id} agent getstate"), SOON)?;
        assert_eq!(text, "err Cannot send request", "{id}");
    }
    assert!(ossec.receive(Duration::from_millis(300))?.is_none(), "something came");
    for request in [
        &b"[1]"[..],
        b"",
        b"getstats",
        b"001",
        b"1 agent getstate",
        b"999 agent getstate",
    ] {
        let answer = ask(home.path(), request, SOON)?;
        assert_eq!(answer, None, "{}", String::from_utf8_lossy(request));
    }
    Ok(())
}

#[test]
fn control_asks_an_agent_and_prints_what_it_says() -> Result<()> {
    let home = home()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = connected(&home, "one", Family::WazuhAes, Carrier::Tcp)?;
    let id = agent.key.id.clone();
    agent.answers_requests = true;
    let agent = Live::start(agent, Life::default());
    // All behind the id is the request, so that options come before it.
    let answer = home.control(&["--output", "json", "agent", "request", &id, "agent", "getstate"])?;
    let answer: Value = serde_json::from_str(&answer)?;
    assert_eq!((&answer["id"], &answer["answer"]["error"]), (&id.into(), &0.into()));
    agent.stop()?.vanish();
    let output = home.run_control(&["agent", "request", "999", "agent", "getstate"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no agent 999"));
    Ok(())
}

#[test]
fn commands_tell_figures_configuration_and_groups() -> Result<()> {
    let home = home()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = connected(&home, "one", Family::WazuhAes, Carrier::Tcp)?;
    agent.event("1:/var/log/x:hello")?;
    let id: u32 = agent.key.id.parse()?;
    home.wait_for_status(&agent.key.id, "active", SOON)?;
    let command = |text: &str| -> Result<Value> { Ok(serde_json::from_str(&ask_text(home.path(), text, SOON)?)?) };

    let mut stats = Value::Null;
    muster_tests::wait::until_true("the event is counted", SOON, || {
        stats = command(r#"{"command":"getstats"}"#)?;
        Ok(stats["data"]["metrics"]["messages"]["received_breakdown"]["event"] == 1)
    })?;
    assert_eq!((&stats["error"], &stats["message"]), (&0.into(), &"ok".into()));
    let received = &stats["data"]["metrics"]["messages"]["received_breakdown"];
    // On a slow machine the agent says hello again before it hears the answer.
    let startups = received["control_breakdown"]["startup"].as_u64();
    assert!(startups.is_some_and(|startups| startups >= 1), "{stats}");
    assert_eq!(stats["data"]["metrics"]["tcp_sessions"], 1, "{stats}");

    let agents = command(&format!(
        r#"{{"command":"getagentsstats","parameters":{{"agents":[{id},99]}}}}"#
    ))?;
    let listed = agents["data"]["agents"].as_array().context("an array")?;
    assert_eq!(listed.len(), 1, "{agents}");
    assert_eq!(
        listed[0]["metrics"]["messages"]["received_breakdown"]["event"], 1,
        "{agents}"
    );
    let all = command(r#"{"command":"getagentsstats","parameters":{"agents":"all","last_id":0}}"#)?;
    assert_eq!(all["data"]["agents"][0]["id"], id, "{all}");

    let internal = command(r#"{"command":"getconfig","parameters":{"section":"internal"}}"#)?;
    assert_eq!(internal["data"]["internal"]["remoted"]["response_timeout"], 3);
    let remote = command(r#"{"command":"getconfig","parameters":{"section":"remote"}}"#)?;
    assert_eq!(remote["data"]["remote"][0]["port"], home.port().to_string());
    let group = command(r#"{"command":"assigngroup","parameters":{"agent":"777","md5":"x"}}"#)?;
    assert_eq!(group["data"]["group"], "default");
    let bad = ask_text(home.path(), "{bad", SOON)?;
    assert_eq!(bad, r#"{"error":2,"message":"Invalid JSON input","data":{}}"#);
    Ok(())
}
