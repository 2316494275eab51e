//! Groups share files with their agents: merged here, pushed there, and told apart by their sums.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use md5::{Digest, Md5};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    enroll,
    home::Home,
    swarm::Swarm,
    wait::{self, SOON},
};

/// What one push brought.
struct Received {
    sum: String,
    content: Vec<u8>,
    /// Acknowledgements between its pieces.
    acks: usize,
    took: Duration,
}

/// Takes a file in, as agents do: between its head and its end there are pieces and acknowledgements and nothing else.
/// `meanwhile` is called behind each piece with their number so far.
fn receive_file(agent: &mut Agent, mut meanwhile: impl FnMut(&mut Agent, usize) -> Result<()>) -> Result<Received> {
    let begin = until_head(agent)?;
    let started = Instant::now();
    let (mut content, mut acks, mut pieces) = (Vec::new(), 0, 0);
    loop {
        let opened = agent.receive(SOON)?.context("the file has no end")?;
        match opened.payload.as_slice() {
            b"#!-close file " => break,
            b"#!-agent ack " => acks += 1,
            other if other.starts_with(b"#!-") => {
                bail!("{:?} destroys the file", String::from_utf8_lossy(other))
            }
            piece => {
                ensure!(piece.len() <= 900, "a piece of {} bytes", piece.len());
                content.extend_from_slice(piece);
                pieces += 1;
                meanwhile(agent, pieces)?;
            }
        }
    }
    let sum = hex(&Md5::digest(&content));
    ensure!(sum == begin, "the sum of what came is {sum}, not {begin}");
    Ok(Received {
        sum,
        content,
        acks,
        took: started.elapsed(),
    })
}

/// Waits for the head of a file: its sum.
fn until_head(agent: &mut Agent) -> Result<String> {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        let Some(opened) = agent.receive(Duration::from_millis(100))? else {
            continue;
        };
        let text = String::from_utf8_lossy(&opened.payload).into_owned();
        if let Some(head) = text.strip_prefix("#!-up file ") {
            let sum = head.strip_suffix(" merged.mg\n");
            return Ok(sum.with_context(|| format!("a head of {text:?}"))?.to_owned());
        }
    }
    bail!("{} was sent no file", agent.key.name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A keepalive of an agent that has the file of this sum.
fn keepalive_with(agent: &Agent, sum: &str) -> Vec<u8> {
    agent
        .keepalive_text()
        .replacen("x merged.mg", &format!("{sum} merged.mg"), 1)
        .into_bytes()
}

/// Text that no compression makes shorter, as far as text can be.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Anything but NUL, which cannot be pushed.
        (state % 255 + 1) as u8
    };
    (0..len).map(|_| byte()).collect()
}

/// Writes a file of a group, making the group if need be.
fn share(home: &Home, group: &str, name: &str, content: &[u8]) -> Result<()> {
    let directory = home.path().join("etc/shared").join(group);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(name), content)?;
    Ok(())
}

/// Waits until the list says that the agent has what it is to have.
fn until_synced(home: &Home, id: &str, groups: &[&str]) -> Result<()> {
    wait::until(&format!("agent {id} is in sync"), SOON, || {
        let agent = home.agent(id)?.context("no such agent")?;
        ensure!(
            agent["group_config_status"] != "synced" || agent["groups"] == serde_json::json!(groups),
            "{agent}"
        );
        Ok((agent["group_config_status"] == "synced").then_some(()))
    })
}

#[test]
fn every_family_gets_the_file_of_its_group() -> Result<()> {
    let home = Home::new()?;
    let big = noise(20_000);
    for group in ["default", "ossec"] {
        share(&home, group, "big.txt", &big)?;
    }
    share(&home, "default", "nul.bin", b"a\0b")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let kinds = [
        (Family::WazuhAes, Carrier::Tcp),
        (Family::WazuhAes, Carrier::Udp),
        (Family::WazuhBlowfish, Carrier::Tcp),
        (Family::WazuhBlowfish, Carrier::Udp),
        (Family::Ossec3, Carrier::Udp),
        (Family::Ossec4, Carrier::Udp),
    ];
    for (place, (family, carrier)) in kinds.into_iter().enumerate() {
        let name = format!("web-{place}");
        let key = match family.is_ossec() {
            true => enroll::enroll_ossec(home.enroll_port(), &name)?,
            false => enroll::enroll(home.enroll_port(), &name)?,
        };
        let id = key.id.clone();
        let mut agent = Agent::new(key, family, carrier, home.port());
        agent.takes_files = false;
        agent.hello_until_heard(SOON)?;
        agent.keepalive()?;
        // Every receive checks the form, and that OSSEC agents get no datagram that they cannot read.
        let file = receive_file(&mut agent, |_, _| Ok(()))?;
        let group = if family.is_ossec() { "ossec" } else { "default" };
        let expected = [
            format!("#{group}\n").into_bytes(),
            if family.is_ossec() {
                b"!30 agent.conf\n<agent_config></agent_config>\n".to_vec()
            } else {
                default_conf(&home)?
            },
            b"!20000 big.txt\n".to_vec(),
            big.clone(),
        ]
        .concat();
        assert_eq!(file.content, expected, "{family:?}");
        let copy = home.path().join(format!("etc/shared/{group}/merged.mg"));
        assert_eq!(fs::read(copy)?, file.content);

        wait::until("the agent is listed as not in sync", SOON, || {
            let listed = home.agent(&id)?.context("not listed")?;
            ensure!(listed["group_config_status"] != "synced", "{listed}");
            Ok((listed["group_config_status"] == "not synced").then_some(()))
        })?;
        agent.send(&keepalive_with(&agent, &file.sum))?;
        until_synced(&home, &id, &[group])?;
        agent.listen_for(Duration::from_millis(100))?;
        let taken = home.counter("remoted", "remoted_pushes_done_total")?;
        assert_eq!(taken, place as u64 + 1);
        agent.vanish();
    }
    Ok(())
}

/// What a new home's `agent.conf` is in a merged file; the empty one when it has none.
fn default_conf(home: &Home) -> Result<Vec<u8>> {
    let content = fs::read(home.path().join("etc/shared/default/agent.conf"))
        .unwrap_or_else(|_| b"<agent_config></agent_config>\n".to_vec());
    Ok([format!("!{} agent.conf\n", content.len()).into_bytes(), content].concat())
}

#[test]
fn keepalives_during_a_push_are_acknowledged_and_do_not_begin_it_anew() -> Result<()> {
    let home = Home::new()?;
    share(&home, "default", "big.txt", &noise(62_000))?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Udp, home.port());
    agent.takes_files = false;
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    let text = agent.keepalive_text().into_bytes();
    let file = receive_file(&mut agent, |agent, pieces| match pieces {
        10 | 31 | 32 | 62 => agent.send(&text),
        _ => Ok(()),
    })?;
    assert!(file.acks >= 3, "{} acknowledgements", file.acks);
    // 70 pieces, and a pause of a second after each 31.
    assert!(file.took >= Duration::from_millis(1900), "{:?}", file.took);
    agent.send(&keepalive_with(&agent, &file.sum))?;
    until_synced(&home, &agent.key.id, &["default"])?;
    assert_eq!(home.counter("remoted", "remoted_pushes_begun_total")?, 1);
    Ok(())
}

#[test]
fn a_changed_file_is_pushed_with_the_next_keepalive() -> Result<()> {
    let home = Home::new()?;
    home.set_internal("remoted.shared_reload=1")?;
    share(&home, "default", "list.txt", b"one\n")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.takes_files = false;
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    let first = receive_file(&mut agent, |_, _| Ok(()))?;
    assert!(first.content.ends_with(b"!4 list.txt\none\n"));
    share(&home, "default", "list.txt", b"two\n")?;
    let text = keepalive_with(&agent, &first.sum);
    let copy = home.path().join("etc/shared/default/merged.mg");
    wait::until("the file is merged again", SOON, || {
        Ok(fs::read(&copy)?.ends_with(b"two\n").then_some(()))
    })?;
    agent.send(&text)?;
    let second = receive_file(&mut agent, |_, _| Ok(()))?;
    assert!(second.content.ends_with(b"!4 list.txt\ntwo\n"));
    Ok(())
}

#[test]
fn an_agent_that_comes_back_during_a_push_gets_the_whole_file() -> Result<()> {
    let home = Home::new()?;
    share(&home, "default", "big.txt", &noise(62_000))?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    for (place, carrier) in [Carrier::Udp, Carrier::Tcp].into_iter().enumerate() {
        let key = home.enroll(&format!("web-{place}"))?;
        let mut agent = Agent::new(key, Family::WazuhAes, carrier, home.port());
        agent.takes_files = false;
        agent.hello_until_heard(SOON)?;
        agent.keepalive()?;
        until_head(&mut agent)?;
        for _ in 0..20 {
            agent.receive(SOON)?.context("the push stopped")?;
        }
        agent.hello_until_heard(SOON)?;
        agent.keepalive()?;
        let file = receive_file(&mut agent, |_, _| Ok(()))?;
        assert!(file.content.starts_with(b"#default\n"));
        agent.send(&keepalive_with(&agent, &file.sum))?;
        until_synced(&home, &agent.key.id, &["default"])?;
    }
    Ok(())
}

#[test]
fn an_agent_of_two_groups_gets_the_files_of_both() -> Result<()> {
    let home = Home::new()?;
    home.control(&["group", "create", "web"])?;
    share(&home, "default", "x.txt", b"default")?;
    share(&home, "web", "x.txt", b"web")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.takes_files = false;
    let id = agent.key.id.clone();
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    let file = receive_file(&mut agent, |_, _| Ok(()))?;
    assert!(file.content.ends_with(b"!7 x.txt\ndefault"));

    home.control(&["group", "assign", "default,web", &id])?;
    let copy = home.path().join("var/multigroups/5288d400/merged.mg");
    wait::until("the groups' file is there", SOON, || Ok(copy.is_file().then_some(())))?;
    agent.send(&keepalive_with(&agent, &file.sum))?;
    let both = receive_file(&mut agent, |_, _| Ok(()))?;
    assert!(both.content.starts_with(b"#5288d400\n"));
    assert!(both.content.ends_with(b"!3 x.txt\nweb"));
    assert_eq!(fs::read(&copy)?, both.content);
    agent.send(&keepalive_with(&agent, &both.sum))?;
    until_synced(&home, &id, &["default", "web"])?;

    let groups = home.control_json(&["group", "list"])?;
    let web = groups
        .as_array()
        .and_then(|groups| groups.iter().find(|group| group["name"] == "web"));
    assert_eq!(web.context("no group web")?["agents"], 1);
    let files = home.control_json(&["group", "files", "web"])?;
    assert_eq!(files[1]["path"], "x.txt");
    assert_eq!(files[1]["size"], 3);

    home.control(&["group", "delete", "web"])?;
    wait::until("the groups' file is gone", SOON, || Ok((!copy.exists()).then_some(())))?;
    agent.send(&keepalive_with(&agent, &both.sum))?;
    let alone = receive_file(&mut agent, |_, _| Ok(()))?;
    assert_eq!(alone.sum, file.sum);
    Ok(())
}

#[test]
fn a_mixed_fleet_gets_a_large_file_each_once() -> Result<()> {
    let home = Home::new()?;
    for group in ["default", "ossec"] {
        share(&home, group, "big.txt", &noise(40_000))?;
    }
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mix = "wazuh-aes-tcp=30,wazuh-blowfish-udp=10,ossec3=5,ossec4=5";
    let fleet = Swarm::start(&home, &["--mix", mix, "--notify-time", "1"])?;
    wait::until_true("everybody is in sync", 2 * SOON, || {
        let list = home.control_json(&["agent", "list"])?;
        let agents = list.as_array().context("agent list is no array")?;
        let synced = agents.iter().filter(|agent| agent["group_config_status"] == "synced");
        Ok(synced.count() == 50)
    })?;
    let account = fleet.stop(SOON)?;
    assert_eq!(account["pushes_taken"], 50, "{account:#}");
    for zero in ["pushes_broken", "oversized", "unknown_messages", "undecodable"] {
        assert_eq!(account[zero], 0, "{zero} in {account:#}");
    }
    Ok(())
}
