//! What stock's monitord tells the analysis daemon of agents that stay away.

use std::{fs, os::unix::fs::symlink, process::Command, time::Duration};

use anyhow::Result;
use muster_tests::{
    agent::{Agent, Carrier, Family},
    analysis::Analysis,
    home::Home,
    wait::{self, SOON},
};

fn silent_agent(home: &Home) -> Result<Agent> {
    let mut agent = Agent::new(home.enroll("gone")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keep_alive_for(Duration::from_secs(2), Duration::from_millis(400))?;
    home.wait_for_status(&agent.key.id, "active", SOON)?;
    agent.vanish();
    Ok(agent)
}

#[test]
fn agent_that_falls_silent_is_told_of_once() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let id = silent_agent(&home)?.key.id;
    let line = format!("1:[{id}] (gone) any->wazuh-monitord:ossec: Agent disconnected: 'gone-any'.\0");
    analysis.expect(line.as_bytes(), 3 * SOON)?;
    wait::holds("it is told once", Duration::from_secs(1), || {
        Ok(analysis.texts_with("Agent disconnected").len() == 1)
    })
}

#[test]
fn nothing_is_told_where_a_stock_monitord_does() -> Result<()> {
    let home = Home::new()?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    // A process of that name, as the kernel shows it.
    let program = home.path().join("wazuh-monitord");
    symlink("/bin/sleep", &program)?;
    let mut monitord = Command::new(&program).arg("600").spawn()?;
    fs::write(
        home.path()
            .join(format!("var/run/wazuh-monitord-{}.pid", monitord.id())),
        format!("{}\n", monitord.id()),
    )?;
    let told = silent_agent(&home).and_then(|agent| {
        home.wait_for_status(&agent.key.id, "disconnected", 3 * SOON)?;
        wait::holds("nothing is told", Duration::from_secs(1), || {
            Ok(analysis.texts_with("Agent disconnected").is_empty())
        })
    });
    monitord.kill()?;
    monitord.wait()?;
    told
}
