//! What agents of all families were recorded to say is said again, byte for byte and with their counters: each hello and
//! keepalive is acknowledged in the form that it came in, and each event reaches the analysis daemon unchanged.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    analysis::Analysis,
    enroll::{self, Tls},
    home::Home,
    wait::SOON,
    wire::Pair,
};

const SESSIONS: &str = include_str!("../fixtures/agent-sessions.txt");
const ACK: &[u8] = b"#!-agent ack ";

/// One recorded session.
struct Session {
    title: &'static str,
    family: Family,
    carrier: Carrier,
    /// What the agent asks to be registered with.
    wish: &'static str,
    messages: Vec<(Pair, String)>,
}

impl Session {
    fn parse(text: &'static str) -> Result<Self> {
        let mut lines = text.lines();
        let (words, title) = lines
            .next()
            .and_then(|line| line.strip_prefix('[')?.split_once("] "))
            .context("a heading")?;
        let words: Vec<_> = words.split(' ').collect();
        let [family, carrier, address] = words[..] else {
            bail!("{title}: three words in the heading");
        };
        let family = match family {
            "wazuh-aes" => Family::WazuhAes,
            "wazuh-blowfish" => Family::WazuhBlowfish,
            "ossec3" => Family::Ossec3,
            "ossec4" => Family::Ossec4,
            other => bail!("{other} is no family"),
        };
        Ok(Self {
            title,
            family,
            carrier: if carrier == "tcp" { Carrier::Tcp } else { Carrier::Udp },
            wish: if address == "host" { " IP:'src'" } else { "" },
            messages: lines.map(message).collect::<Result<_>>()?,
        })
    }

    fn key(&self, home: &Home, name: &str) -> Result<Key> {
        let request = format!("OSSEC A:'{name}'{}\n", self.wish);
        // As the families do: OSSEC's agents stop at TLS 1.2.
        let tls = if self.family.is_ossec() { Tls::Old } else { Tls::New };
        enroll::key_of(&enroll::ask(home.enroll_port(), tls, request.as_bytes())?)
    }
}

fn message(line: &str) -> Result<(Pair, String)> {
    let (counters, payload) = line.split_once(' ').context("counters and a payload")?;
    let (global, local) = counters.split_once(':').context("two counters")?;
    let pair = Pair {
        global: global.parse()?,
        local: local.parse()?,
    };
    Ok((pair, payload.replace("\\n", "\n").replace("\\s", " ")))
}

fn sessions() -> Result<Vec<Session>> {
    let blocks = SESSIONS.split("\n\n").map(str::trim_end);
    blocks
        .filter(|block| block.starts_with('['))
        .map(Session::parse)
        .collect()
}

#[test]
fn recorded_sessions_of_all_families_are_answered_and_forwarded() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut kinds = BTreeSet::new();
    for (place, session) in sessions()?.into_iter().enumerate() {
        kinds.insert(format!("{:?} {:?}", session.family, session.carrier));
        let name = format!("recorded-{place}");
        let key = session.key(&home, &name)?;
        let source = format!("[{}] ({name}) {}", key.id, key.address);
        let id = key.id.clone();
        let mut agent = Agent::new(key, session.family, session.carrier, home.port());
        agent.connect()?;
        let mut stopped = false;
        for (pair, payload) in &session.messages {
            let context = || format!("{}: {pair:?} {payload:?}", session.title);
            agent.pair = Pair {
                local: pair.local - 1,
                ..*pair
            };
            agent.send(payload.as_bytes())?;
            if let Some(control) = payload.strip_prefix("#!-") {
                stopped = control == "agent shutdown ";
                if !stopped && !control.starts_with("req ") {
                    let ack = agent.expect(ACK).with_context(context)?;
                    ensure!(ack.form == session.family.form(), "{}: {:?}", context(), ack.form);
                }
            } else if payload.contains("--MARK--") {
                // A sign of life of OSSEC's, and no line of any log.
                ensure!(analysis.texts_with("--MARK--").is_empty(), "{}", context());
            } else {
                let (queue, rest) = payload.split_at(1);
                let expected = format!("{queue}:{source}->{}\0", rest.trim_start_matches(':'));
                analysis.expect(expected.as_bytes(), SOON).with_context(context)?;
            }
        }
        let told = session.messages.iter().rev().find_map(|(_, payload)| {
            let (_, version) = payload.strip_prefix("#!-")?.split_once(" - ")?;
            version
                .split(['\n', '/'])
                .next()
                .map(|version| version.trim_end().to_owned())
        });
        let status = if stopped { "disconnected" } else { "active" };
        let row = home.wait_for_status(&id, status, SOON).context(session.title)?;
        assert_eq!(row["version"].as_str(), told.as_deref(), "{}", session.title);
        if stopped {
            let goodbye = format!(
                "1:{source}->wazuh-remoted:ossec: Agent stopped: '{name}->{}'.\0",
                agent.key.address
            );
            analysis.expect(goodbye.as_bytes(), SOON).context(session.title)?;
        }
    }
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    Ok(())
}
