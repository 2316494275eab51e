//! Each daemon is restarted alone while the others go on with their work.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    analysis::Analysis,
    home::Home,
    live::{Life, Live},
    nats::{Nats, STATE},
    wait::{self, SOON},
};

/// An agent that must not notice: it ends at the first lost connection.
const UNDISTURBED: Life = Life {
    keepalive: Duration::from_millis(200),
    events: 1,
    reconnects: false,
};

fn goes_on(live: &Live) -> Result<()> {
    let acks = live.acks();
    wait::until_true("the agent is acknowledged", SOON, || {
        ensure!(!live.has_ended(), "the agent lost its connection");
        Ok(live.acks() >= acks + 3)
    })
}

#[test]
fn agents_do_not_notice_a_restart_of_authd_or_natsd() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let analysis = Analysis::listen(home.path())?;
    let mut natsd = home.start("natsd")?;
    let mut authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    let live = Live::start(agent, UNDISTURBED);
    goes_on(&live)?;
    authd.stop()?;
    goes_on(&live)?;
    authd = home.start("authd")?;
    goes_on(&live)?;
    natsd.stop()?;
    goes_on(&live)?;
    natsd = home.start("natsd")?;
    goes_on(&live)?;
    // Both do their work again.
    let key = home.enroll("web-02")?;
    let subject = format!("wazuh.xdr.agent.{}.enrolled", key.id);
    nats.wait_for(STATE, "the enrollment is published", |stored| stored.subject == subject)?;
    let sent = live.events();
    live.stop()?;
    analysis.expect_count("(web-01) any->/var/log/live:", usize::try_from(sent)?, SOON)?;
    authd.stop()?;
    natsd.stop().map(drop)
}

#[test]
fn authd_and_natsd_work_on_while_remoted_is_restarted() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _natsd = home.start("natsd")?;
    let _authd = home.start("authd")?;
    let remoted = home.start("remoted")?;
    remoted.stop()?;
    let key = home.enroll("web-01")?;
    nats.wait_for(STATE, "the enrollment is published", |stored| {
        stored.subject == "wazuh.xdr.agent.001.enrolled"
    })?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status("001", "active", SOON).map(drop)
}

#[test]
fn muster_control_starts_restarts_and_stops_the_daemons() -> Result<()> {
    let home = Home::new()?;
    let stop = StopAtEnd(&home);
    home.control(&["start"])?;
    let pids = |home: &Home| -> Result<Vec<u64>> {
        ["authd", "remoted", "natsd"]
            .iter()
            .map(|daemon| {
                let status = home.status(daemon)?;
                ensure!(status["ready"] == true, "{status}");
                Ok(status["pid"].as_u64().unwrap_or(0))
            })
            .collect()
    };
    let first = pids(&home)?;
    home.control(&["restart", "remoted"])?;
    let second = pids(&home)?;
    assert_eq!((first[0], first[2]), (second[0], second[2]));
    assert_ne!(first[1], second[1]);
    let key = home.enroll("web-01")?;
    let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    home.control(&["reload"])?;
    agent.keepalive()?;
    home.control(&["stop"])?;
    drop(stop);
    let output = home.run_control(&["agent", "list"])?;
    assert_eq!(output.status.code(), Some(3), "the daemon cannot be reached");
    for pid in second {
        // Whoever inherits the ended processes may take a moment to bury them.
        wait::until_true("the process is gone", SOON, || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            Ok(status.is_empty() || status.contains("State:\tZ"))
        })?;
    }
    Ok(())
}

/// The daemons that `muster-control start` leaves behind must not outlive the test, however it ends.
struct StopAtEnd<'h>(&'h Home);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        let _ = self.0.run_control(&["stop"]);
    }
}
