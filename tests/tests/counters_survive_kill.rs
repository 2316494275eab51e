//! Message counters go on above everything that was used, whatever happens to remoted.

use anyhow::{Context, Result};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    analysis::Analysis,
    enroll,
    home::Home,
    wait::{self, SOON},
};

#[test]
fn ossec_agents_hear_the_manager_after_every_kill() -> Result<()> {
    for family in [Family::Ossec3, Family::Ossec4] {
        let home = Home::new()?;
        let _authd = home.start("authd")?;
        let mut remoted = home.start("remoted")?;
        let key = enroll::enroll_ossec(home.enroll_port(), "old")?;
        let mut agent = Agent::new(key, family, Carrier::Udp, home.port());
        agent.hello_until_heard(SOON)?;
        for _ in 0..3 {
            for _ in 0..50 {
                agent.keepalive()?;
            }
            let last = agent.manager_pair.context("the manager has spoken")?;
            remoted.kill()?;
            remoted = home.start("remoted")?;
            // The agent drops whatever does not count on; it would never see an ack.
            agent.keepalive()?;
            let now = agent.manager_pair.context("the manager has spoken")?;
            assert!(now > last, "{now:?} after {last:?}");
        }
        assert_eq!(agent.stale, 0, "{family:?} was sent counters that it had seen");
    }
    Ok(())
}

#[test]
fn a_message_seen_before_a_restart_is_not_taken_again_when_counters_are_checked() -> Result<()> {
    let home = Home::new()?;
    home.set_internal("remoted.verify_msg_id=1")?;
    home.set_internal("remoted.worker_pool=1")?;
    let analysis = Analysis::listen(home.path())?;
    let _authd = home.start("authd")?;
    let mut remoted = home.start("remoted")?;
    let key = enroll::enroll_ossec(home.enroll_port(), "old")?;
    let mut agent = Agent::new(key, Family::Ossec4, Carrier::Udp, home.port());
    agent.hello_until_heard(SOON)?;
    let event = agent.sealed(b"1:/var/log/auth.log:once");
    agent.send_message(&event)?;
    analysis.expect_count("once", 1, SOON)?;
    // Behind everything that a flush every so many messages could have left out.
    for _ in 0..5 {
        agent.keepalive()?;
    }
    agent.send_message(&event)?;
    agent.keepalive()?;
    remoted.stop()?;
    remoted = home.start("remoted")?;
    agent.send_message(&event)?;
    agent.keepalive()?;
    agent.event("1:/var/log/auth.log:later")?;
    analysis.expect_count("later", 1, SOON)?;
    assert_eq!(analysis.texts_with("once").len(), 1, "a replay was taken");
    let refused = wait::until("the replays are counted", SOON, || {
        let status = home.status("remoted")?;
        Ok(Some(status["counters"].to_string()).filter(|counters| counters.contains("replay")))
    })?;
    assert!(refused.contains("replay"));
    remoted.stop().map(drop)
}
