//! SIGKILL of each daemon in turn, under load: nothing that was acknowledged is lost.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    daemon::Daemon,
    enroll,
    home::Home,
    live::{Life, Live},
    nats::{Nats, STATE, Stored},
    wait::{self, SOON},
};

#[test]
fn every_key_that_authd_gave_out_survives_its_sigkill() -> Result<()> {
    const CLIENTS: usize = 4;
    const KILLS: usize = 4;
    const KEYS_BETWEEN_KILLS: usize = 15;
    let home = Home::new()?;
    let _remoted = home.start("remoted")?;
    let mut authd = Some(home.start("authd")?);
    let given = Mutex::new(Vec::<Key>::new());
    let (stop, number) = (AtomicBool::new(false), AtomicUsize::new(0));
    let count = || given.lock().unwrap_or_else(PoisonError::into_inner).len();
    thread::scope(|scope| -> Result<()> {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let name = format!("load-{}", number.fetch_add(1, Ordering::SeqCst));
                    match enroll::enroll(home.enroll_port(), &name) {
                        Ok(key) => given.lock().unwrap_or_else(PoisonError::into_inner).push(key),
                        // Killed in between, or not there yet.
                        Err(_) => thread::park_timeout(Duration::from_millis(20)),
                    }
                }
            });
        }
        let mut killing = || -> Result<()> {
            for _ in 0..KILLS {
                let before = count();
                wait::until_true("keys are given", SOON, || Ok(count() >= before + KEYS_BETWEEN_KILLS))?;
                authd.take().map_or(Ok(()), Daemon::kill)?;
                authd = Some(home.start("authd")?);
            }
            wait::until_true(
                "keys are given again",
                SOON,
                || Ok(count() > KILLS * KEYS_BETWEEN_KILLS),
            )
        };
        let outcome = killing();
        stop.store(true, Ordering::SeqCst);
        outcome
    })?;
    let given = given.into_inner().unwrap_or_else(PoisonError::into_inner);
    let stored = home.client_keys()?;
    let lines: Vec<&str> = stored.lines().collect();
    for key in &given {
        let line = format!("{} {} {} {}", key.id, key.name, key.address, key.key);
        ensure!(
            lines.contains(&line.as_str()),
            "{} was acknowledged and is not in client.keys",
            key.name
        );
    }
    let mut ids: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id was given twice");
    let last = given.last().context("keys were given")?;
    Agent::new(last.clone(), Family::WazuhAes, Carrier::Tcp, home.port()).hello_until_heard(SOON)
}

/// Lets agents come and go; each coming and going is a status change that must be told.
fn come_and_go(
    home: &Home,
    agents: &mut [Agent],
    rounds: usize,
    mut between: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    for round in 0..rounds {
        for agent in agents.iter_mut() {
            agent.hello_until_heard(SOON)?;
            agent.keepalive()?;
        }
        between(round)?;
        for agent in agents.iter_mut() {
            home.wait_for_status(&agent.key.id.clone(), "active", SOON)?;
            agent.goodbye()?;
        }
        for agent in agents.iter() {
            home.wait_for_status(&agent.key.id, "disconnected", SOON)?;
        }
    }
    Ok(())
}

/// The status changes of each agent, in the order of the stream.
fn changes(nats: &Nats) -> Result<HashMap<String, Vec<Stored>>> {
    let mut changes: HashMap<String, Vec<Stored>> = HashMap::new();
    for stored in nats.stored(STATE)? {
        if stored.subject.ends_with(".status_change") {
            let id = stored.subject.split('.').nth(3).context("no id")?.to_owned();
            changes.entry(id).or_default().push(stored);
        }
    }
    Ok(changes)
}

/// The same as [`check_chain`], and the agent said goodbye so many times.
fn check(changes: &[Stored], goodbyes: usize) -> Result<()> {
    check_chain(changes)?;
    let told = changes
        .iter()
        .filter(|change| change.body.contains("\"agent_stopped\""))
        .count();
    ensure!(told == goodbyes, "{told} of {goodbyes} goodbyes are told");
    Ok(())
}

/// Each change follows from the one before, and none is there twice.
fn check_chain(changes: &[Stored]) -> Result<()> {
    let (mut status, mut ids) = (3, Vec::new());
    for change in changes {
        let body = &change.json()?["status_change"];
        let told: Vec<&str> = changes.iter().map(|change| change.body.as_str()).collect();
        ensure!(
            body["previous_status"] == status,
            "{} does not follow: {told:#?}",
            change.body
        );
        status = body["current_status"].as_u64().context("no status")?;
        ids.push(change.headers.get("Nats-Msg-Id").cloned().context("no message id")?);
    }
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == all, "a change is stored twice");
    Ok(())
}

fn goodbyes(changes: &HashMap<String, Vec<Stored>>) -> usize {
    changes
        .values()
        .flatten()
        .filter(|change| change.body.contains("\"agent_stopped\""))
        .count()
}

fn fleet(home: &Home, count: usize) -> Result<Vec<Agent>> {
    (0..count)
        .map(|number| {
            let key = home.enroll(&format!("web-{number}"))?;
            Ok(Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port()))
        })
        .collect()
}

#[test]
fn every_status_change_is_told_once_and_in_order_whenever_natsd_is_killed() -> Result<()> {
    const AGENTS: usize = 8;
    const ROUNDS: usize = 6;
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut natsd = Some(home.start("natsd")?);
    let mut agents = fleet(&home, AGENTS)?;
    come_and_go(&home, &mut agents, ROUNDS, |round| {
        if round % 2 == 0 {
            natsd.take().map_or(Ok(()), Daemon::kill)?;
        } else {
            natsd = Some(home.start("natsd")?);
        }
        Ok(())
    })?;
    wait::until_true("every goodbye is told", 3 * SOON, || {
        Ok(goodbyes(&changes(&nats)?) >= AGENTS * ROUNDS)
    })?;
    let changes = changes(&nats)?;
    assert_eq!(changes.len(), AGENTS);
    changes.values().try_for_each(|changes| check(changes, ROUNDS))
}

#[test]
fn remoted_killed_under_load_forgets_nothing_it_has_shown_and_disconnects_nobody() -> Result<()> {
    const AGENTS: usize = 6;
    const KILLS: usize = 3;
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let mut remoted = home.start("remoted")?;
    let lives: Vec<Live> = fleet(&home, AGENTS)?
        .into_iter()
        .map(|mut agent| {
            agent.hello_until_heard(SOON)?;
            Ok(Live::start(
                agent,
                Life {
                    events: 20,
                    ..Life::default()
                },
            ))
        })
        .collect::<Result<_>>()?;
    for number in 1..=AGENTS {
        home.wait_for_status(&format!("{number:03}"), "active", SOON)?;
    }
    for _ in 0..KILLS {
        let acks: Vec<u64> = lives.iter().map(Live::acks).collect();
        remoted.kill()?;
        remoted = home.start("remoted")?;
        wait::until_true("every agent is acknowledged again", SOON, || {
            Ok(lives.iter().zip(&acks).all(|(live, acks)| live.acks() >= acks + 3))
        })?;
    }
    for number in 1..=AGENTS {
        home.wait_for_status(&format!("{number:03}"), "active", SOON)?;
    }
    for live in lives {
        live.stop()?.goodbye()?;
    }
    wait::until_true("every goodbye is told", SOON, || {
        Ok(goodbyes(&changes(&nats)?) >= AGENTS)
    })?;
    for (id, changes) in changes(&nats)? {
        check(&changes, 1).with_context(|| format!("agent {id}"))?;
        let lost = changes.iter().find(|change| change.body.contains("keepalive_timeout"));
        ensure!(
            lost.is_none(),
            "agent {id} was given up although it never stopped: {lost:?}"
        );
    }
    remoted.stop().map(drop)
}

#[test]
fn every_end_is_told_even_when_natsd_and_then_remoted_are_killed() -> Result<()> {
    const AGENTS: usize = 4;
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _authd = home.start("authd")?;
    let natsd = home.start("natsd")?;
    let remoted = home.start("remoted")?;
    let mut agents = fleet(&home, AGENTS)?;
    come_and_go(&home, &mut agents, 1, |_| Ok(()))?;
    natsd.kill()?;
    come_and_go(&home, &mut agents, 1, |_| Ok(()))?;
    remoted.kill()?;
    let _natsd = home.start("natsd")?;
    let _remoted = home.start("remoted")?;
    // A goodbye of the last moment may not have reached the disk: then the agent's time-out tells of its end.
    let ends = |changes: &[Stored]| {
        let ends = changes
            .iter()
            .filter(|change| change.body.contains(r#""current_status":1"#));
        ends.count()
    };
    wait::until_true("both ends of every agent are told", 2 * SOON, || {
        let changes = changes(&nats)?;
        Ok(changes.len() == AGENTS && changes.values().all(|changes| ends(changes) >= 2))
    })?;
    for (id, changes) in changes(&nats)? {
        check_chain(&changes).with_context(|| format!("agent {id}"))?;
        assert_eq!(ends(&changes), 2, "agent {id}");
        ensure!(
            changes.iter().any(|change| change.body.contains("\"agent_stopped\"")),
            "agent {id}: {changes:#?}"
        );
    }
    Ok(())
}
