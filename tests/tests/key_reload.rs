//! `client.keys` changes while agents talk: who is not concerned does not notice.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    home::Home,
    live::{Life, Live},
    wait::{self, SOON},
};

const UNDISTURBED: Life = Life {
    keepalive: Duration::from_millis(100),
    events: 0,
    reconnects: false,
};

#[test]
fn a_new_key_is_usable_at_once_and_others_do_not_notice() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("old")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let live = Live::start(agent, UNDISTURBED);
    for number in 0..20 {
        let key = home.enroll(&format!("new-{number}"))?;
        let enrolled = Instant::now();
        Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port()).hello_until_heard(SOON)?;
        let waited = enrolled.elapsed();
        ensure!(
            // Looking at the file every ten seconds would take longer for one of twenty.
            waited < Duration::from_secs(8),
            "key {number} was usable after {waited:?}"
        );
    }
    ensure!(!live.has_ended(), "the old agent lost its connection");
    live.stop().map(drop)
}

#[test]
fn a_removed_agent_is_refused_at_its_next_message_and_the_others_are_not() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut stays = Agent::new(home.enroll("stays")?, Family::WazuhAes, Carrier::Tcp, home.port());
    stays.hello_until_heard(SOON)?;
    let live = Live::start(stays, UNDISTURBED);
    let key = home.enroll("goes")?;
    let id = key.id.clone();
    let mut goes = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    goes.hello_until_heard(SOON)?;
    goes.keepalive()?;
    home.control(&["agent", "remove", &id])?;
    wait::until_true("the removed agent is refused", SOON, || Ok(goes.keepalive().is_err()))?;
    wait::until_true("it is not listed", SOON, || Ok(home.agent(&id)?.is_none()))?;
    ensure!(!live.has_ended(), "another agent lost its connection");
    live.stop().map(drop)
}

#[test]
fn a_key_file_changed_by_hand_is_read_on_reload_as_a_difference() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let stays = home.enroll("stays")?;
    let mut agent = Agent::new(stays, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let live = Live::start(agent, UNDISTURBED);
    let added = Key::from_line(&format!("777 by-hand any {}", "ab".repeat(32)))?;
    let path = home.path().join("etc/client.keys");
    let text = fs::read_to_string(&path)?;
    let line = format!("{} {} {} {}\n", added.id, added.name, added.address, added.key);
    fs::write(&path, format!("{text}{line}"))?;
    home.control(&["reload", "remoted"])?;
    Agent::new(added, Family::WazuhAes, Carrier::Tcp, home.port()).hello_until_heard(SOON)?;
    ensure!(!live.has_ended(), "another agent lost its connection");
    live.stop().map(drop)
}
