//! What `docs/threat-model.md` says of agents, local users and our own weakened daemons, tried.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    analysis::Analysis,
    daemon::Daemon,
    enroll::{self, Tls},
    home::Home,
    live::{Life, Live},
    wait::{self, SOON},
};

/// An ack must not wait for what others do.
const AT_ONCE: Duration = Duration::from_secs(8);
/// More than a daemon may grow by while somebody is at it.
const MAX_GROWTH_KIB: u64 = 64 * 1024;

/// An agent that must not notice anything.
fn witness(home: &Home) -> Result<Live> {
    let mut agent = Agent::new(home.enroll("witness")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let life = Life {
        keepalive: Duration::from_millis(100),
        reconnects: false,
        ..Life::default()
    };
    let witness = Live::start(agent, life);
    wait::until_true("the witness is acknowledged", SOON, || Ok(witness.acks() >= 3))?;
    witness.forget_waits();
    Ok(witness)
}

fn nobody_noticed(witness: Live) -> Result<()> {
    let acks = witness.acks();
    wait::until_true("the witness is acknowledged", SOON, || Ok(witness.acks() >= acks + 3))?;
    ensure!(
        witness.slowest_ack() < AT_ONCE,
        "an ack took {:?}",
        witness.slowest_ack()
    );
    witness.stop().context("the witness").map(drop)
}

/// Everything below a folder that is not a folder itself.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            // Files come and go while the daemons run.
            match fs::symlink_metadata(&path) {
                Ok(facts) if facts.is_dir() => folders.push(path),
                Ok(_) => found.push(path),
                Err(_) => {}
            }
        }
    }
    Ok(found)
}

#[test]
fn a_flood_of_events_from_one_agent_costs_no_other_its_acks() -> Result<()> {
    const FLOOD: Duration = Duration::from_secs(4);
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let witness = witness(&home)?;
    let floods: Vec<_> = ["loud-1", "loud-2"]
        .into_iter()
        .map(|name| -> Result<_> {
            let mut loud = Agent::new(home.enroll(name)?, Family::WazuhAes, Carrier::Tcp, home.port());
            loud.hello_until_heard(SOON)?;
            Ok(std::thread::spawn(move || -> Result<(Agent, usize)> {
                let end = Instant::now() + FLOOD;
                let mut sent = 0;
                while Instant::now() < end {
                    loud.event("1:/var/log/flood:event")?;
                    sent += 1;
                }
                // The flooder itself is not forgotten: its own keepalive is answered behind its events.
                loud.keepalive()?;
                Ok((loud, sent))
            }))
        })
        .collect::<Result<_>>()?;
    for flood in floods {
        let (loud, sent) = flood.join().map_err(|_| anyhow::anyhow!("a flood panicked"))??;
        ensure!(sent > 1000, "a flood of {sent} events is none");
        let text = format!("({}) any->/var/log/flood:event", loud.key.name);
        analysis.expect_count(&text, sent, 3 * SOON)?;
    }
    nobody_noticed(witness)
}

#[test]
fn what_an_agent_says_of_itself_is_data_whatever_it_says() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let remoted = home.start("remoted")?;
    let _natsd = home.start("natsd")?;
    let witness = witness(&home)?;
    let before = remoted.resident_kib()?;
    let key = home.enroll("liar")?;
    let id = key.id.clone();
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let labels = "#\"label\":\"x\x1b[2J\"\n".repeat(3000);
    for text in [
        "#!-Linux |\x1b[31mevil\x07 |6.1 |#1 |x86_64 [De\x1bbian|deb\x1bian: 12 (x)] - Wazuh v4.14.7\nx merged.mg\n"
            .to_owned(),
        format!("#!-Linux |w |6.1 |#1 |x86_64 [D|d: 1 (x)] - Wazuh v4.14.7\nx merged.mg\n{labels}"),
        format!(
            "#!-{} - Wazuh v{}\nx merged.mg\n",
            "u".repeat(20_000),
            "9".repeat(20_000)
        ),
        "#!-\",\"status\":\"disconnected\"} - Wazuh v4.14.7\n\"},{\"id\":\"000\"} merged.mg\n".to_owned(),
        "#!-\u{202e}\u{feff} - Wazuh v4.14.7\nx merged.mg\n\u{0}".to_owned(),
        "#!-\n\n\n".to_owned(),
    ] {
        agent.send(text.as_bytes())?;
        agent
            .expect(b"#!-agent ack ")
            .with_context(|| text.escape_default().to_string())?;
        let listed = home.wait_for_status(&id, "active", SOON)?;
        assert_eq!(listed["name"], "liar");
        assert_eq!(home.control_json(&["agent", "list"])?.as_array().map(Vec::len), Some(2));
        let shown = home.control(&["agent", "list"])?;
        ensure!(
            !shown.contains(|letter: char| letter.is_control() && letter != '\n'),
            "an agent reaches the operator's terminal: {shown:?}"
        );
    }
    // Names are checked before anybody is told of them.
    for name in [&b"a\x1b[31mb"[..], b"a\"},{\"b", b"a.b>*", b"\xff\xfe", b"../../etc"] {
        let request = [b"OSSEC A:'", name, b"'\n"].concat();
        let answer = enroll::ask(home.enroll_port(), Tls::New, &request).unwrap_or_default();
        ensure!(!answer.starts_with("OSSEC K:"), "{} got a key", name.escape_ascii());
    }
    agent.vanish();
    let event = home.follow_events(|event| event["subject"].as_str().is_some_and(|subject| subject.contains(&id)))?;
    ensure!(event.is_object(), "{event}");
    for file in files(&home.path().join("logs"))?.into_iter().chain(
        files(home.path())?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|end| end == "stderr")),
    ) {
        let log = fs::read(&file)?;
        let bad = log
            .split(|byte| *byte == b'\n')
            .find(|line| line.iter().any(u8::is_ascii_control));
        ensure!(
            bad.is_none(),
            "{} has control characters: {}",
            file.display(),
            bad.unwrap_or_default().escape_ascii()
        );
    }
    let now = remoted.resident_kib()?;
    ensure!(now < before + MAX_GROWTH_KIB, "remoted grew from {before} to {now} KiB");
    nobody_noticed(witness)
}

#[test]
fn a_second_place_with_the_same_key_is_refused_and_the_first_goes_on() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let key = home.enroll("stolen")?;
    let mut owner = Agent::new(key.clone(), Family::WazuhAes, Carrier::Tcp, home.port());
    owner.hello_until_heard(SOON)?;
    owner.keepalive()?;
    let mut thief = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    for payload in [
        &b"#!-agent startup "[..],
        b"1:/var/log/theft:must not arrive",
        b"#!-agent shutdown ",
    ] {
        thief.connect()?;
        thief.send(payload)?;
        thief.expect_close()?;
        owner.keepalive()?;
    }
    owner.event("1:/var/log/right:arrives")?;
    analysis.expect_count("arrives", 1, SOON)?;
    assert_eq!(analysis.texts_with("must not arrive"), Vec::<String>::new());
    home.wait_for_status("001", "active", SOON)?;
    Ok(())
}

/// A home in which all daemons run and something has happened.
fn busy_home() -> Result<(Home, Vec<Daemon>, Vec<String>)> {
    let home = Home::with(&[])?;
    let daemons = vec![home.start("authd")?, home.start("remoted")?, home.start("natsd")?];
    let password = fs::read_to_string(home.path().join("etc/authd.pass"))?;
    let password = password.lines().next().context("an empty password file")?.to_owned();
    let request = format!("OSSEC PASS: {password} OSSEC A:'web-01' V:'v4.14.7'\n");
    let key = enroll::key_of(&enroll::ask(home.enroll_port(), Tls::New, request.as_bytes())?)?;
    let secrets = vec![password, key.key.clone()];
    let id = key.id.clone();
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status(&id, "active", SOON)?;
    agent.goodbye()?;
    home.wait_for_status(&id, "disconnected", SOON)?;
    home.follow_events(|event| {
        event["subject"]
            .as_str()
            .is_some_and(|subject| subject.ends_with(".status_change"))
    })?;
    Ok((home, daemons, secrets))
}

#[test]
fn a_secret_stands_in_its_own_file_and_nowhere_else() -> Result<()> {
    let (home, daemons, secrets) = busy_home()?;
    // Logs, databases, spool and outboxes included, and after a stop what is written at the end too.
    for daemon in daemons {
        daemon.stop()?;
    }
    let mut holders = BTreeSet::new();
    for path in files(home.path())? {
        let Ok(bytes) = fs::read(&path) else { continue };
        if secrets
            .iter()
            .any(|secret| bytes.windows(secret.len()).any(|window| window == secret.as_bytes()))
        {
            holders.insert(path.strip_prefix(home.path())?.display().to_string());
        }
    }
    let expected = ["etc/authd.pass", "etc/client.keys"].map(str::to_owned);
    assert_eq!(holders, BTreeSet::from(expected));
    Ok(())
}

#[test]
fn nobody_outside_the_group_can_open_a_socket_a_secret_or_a_database() -> Result<()> {
    let (home, _daemons, _) = busy_home()?;
    let mut sockets = 0;
    for path in files(home.path())? {
        let Ok(facts) = fs::symlink_metadata(&path) else {
            continue;
        };
        let below = path.strip_prefix(home.path())?;
        // What the test itself makes there.
        let is_ours = below.components().count() > 1;
        if !is_ours || facts.is_symlink() {
            continue;
        }
        let mode = facts.permissions().mode() & 0o777;
        ensure!(mode & 0o002 == 0, "anybody may write {} ({mode:o})", below.display());
        let is_socket = facts.file_type().is_socket();
        sockets += usize::from(is_socket);
        let secret = ["etc/client.keys", "etc/authd.pass", "etc/sslmanager.key"]
            .iter()
            .any(|name| below == Path::new(name));
        if is_socket || secret || below.starts_with("queue/db") || below.starts_with("queue/spool") {
            ensure!(mode & 0o007 == 0, "anybody may open {} ({mode:o})", below.display());
        }
        if is_socket {
            ensure!(mode == 0o660, "{} has mode {mode:o}", below.display());
        }
    }
    ensure!(sockets >= 5, "only {sockets} sockets were found");
    Ok(())
}

#[test]
fn garbage_at_our_own_sockets_ends_its_own_connection_only() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let _natsd = home.start("natsd")?;
    let witness = witness(&home)?;
    let folders = ["queue/muster", "queue/sockets"].map(|folder| home.path().join(folder));
    let mut tried = 0;
    for path in folders
        .iter()
        .map(|folder| files(folder))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        if !fs::symlink_metadata(&path)?.file_type().is_socket() {
            continue;
        }
        for bytes in [
            &b"\x01\xff\xff\xff\xff"[..],
            b"\xff\xff\xff\xff",
            b"\x01\x04\0\0\0\xff\xff\xff\xff",
            b"\x01\xff\xff\x1f\0half a frame",
            b"{\"function\":\"add\"",
            b"",
        ] {
            // Those of datagrams are tried with the protocols that they belong to.
            let Ok(mut stream) = UnixStream::connect(&path) else {
                continue;
            };
            tried += 1;
            stream.set_read_timeout(Some(SOON))?;
            // The other side may have closed before it has read everything.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            match stream.take(1 << 20).read_to_end(&mut answer) {
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                    return Err(error).with_context(|| format!("{} keeps a broken connection", path.display()));
                }
                _ => {}
            }
        }
    }
    ensure!(tried >= 20, "only {tried} connections could be tried");
    for daemon in ["authd", "remoted", "natsd"] {
        assert_eq!(home.status(daemon)?["ready"], true, "{daemon}");
    }
    nobody_noticed(witness)
}
