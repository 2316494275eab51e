//! The key-value bucket of agents: what no event tells of them is in it, and a bucket that is lost is filled again.

use std::time::Duration;

use anyhow::{Context, Result};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    nats::Nats,
    wait::{self, SOON},
};

const BUCKET: &str = "KV_agents";

fn provision(home: &Home) -> Result<()> {
    let made = std::process::Command::new(home.program("muster-natsd"))
        .args(["--home".as_ref(), home.path().as_os_str()])
        .args(["provision", "--share", "1"])
        .output()?;
    anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

#[test]
fn bucket_has_versions_and_systems_and_is_filled_again_after_a_loss() -> Result<()> {
    let nats = Nats::without_streams()?;
    let home = Home::publishing_to(&nats.url())?;
    home.set_in("nats", "<kv bucket=\"agents\"/>")?;
    provision(&home)?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    let known = home.wait_for_status("001", "active", SOON)?;
    // Started last: it has heard nothing of what came before but what is in the spool of its producers.
    let _natsd = home.start("natsd")?;
    let complete = |what: &str| {
        nats.wait_for(BUCKET, what, |stored| {
            let entry = stored.json().unwrap_or_default();
            stored.subject == "$KV.agents.001" && entry["version"].is_string() && entry["status"] == "active"
        })
    };
    let entry = complete("the agent is in the bucket")?.json()?;
    assert_eq!(entry["version"], known["version"]);
    assert_eq!(entry["os"]["name"], known["os"]["name"]);
    assert_eq!(entry["ip_address"], "127.0.0.1");
    assert_eq!(entry["merged_sum"], known["merged_sum"]);

    nats.delete_stream(BUCKET)?;
    provision(&home)?;
    agent.keepalive()?;
    home.enroll("web-02").context("a change that is written")?;
    complete("the agent is in the bucket again")?;
    Ok(())
}

#[test]
fn bucket_says_when_the_agent_was_heard_and_not_when_the_manager_wrote_to_it() -> Result<()> {
    let nats = Nats::without_streams()?;
    let home = Home::publishing_to(&nats.url())?;
    home.set_in("nats", "<kv bucket=\"agents\"/>")?;
    home.set_in("nats", "<keepalive_events>off</keepalive_events>")?;
    home.set_in(
        "remote",
        "<manager_keepalive><enabled>yes</enabled><interval>1</interval><timeout>600</timeout>\
         <max_missed>600</max_missed><retry_interval>1</retry_interval><probe>ack</probe></manager_keepalive>",
    )?;
    provision(&home)?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let _natsd = home.start("natsd")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status("001", "active", SOON)?;
    // Its own pace, without which a longer one is assumed.
    agent.keep_alive_for(Duration::from_secs(3), Duration::from_millis(400))?;
    // Whole seconds, of the last message that came and the last one that went out.
    let times = || -> Result<(u64, u64)> {
        let known = home.agent("001")?.context("the agent is known")?;
        let time = |name: &str| known[name].as_u64().unwrap_or(0);
        Ok((time("last_heard"), time("last_sent")))
    };
    let (first, _) = times()?;
    wait::until_true("the manager goes on sending", SOON, || Ok(times()?.1 > first + 1))?;
    agent.event("1:/var/log/syslog:an event is a sign of life")?;
    let heard = wait::until("the event was heard", SOON, || {
        let (heard, _) = times()?;
        Ok((heard > first).then_some(heard))
    })?;
    let written = |at: u64| {
        nats.wait_for(BUCKET, "the time is in the bucket", |stored| {
            stored.json().is_ok_and(|entry| entry["last_keepalive"] == at)
        })
    };
    written(heard)?;
    for stored in nats.stored(BUCKET)? {
        let time = stored.json()?["last_keepalive"].as_u64().unwrap_or(0);
        anyhow::ensure!(time <= first || time == heard, "{time} is none of the agent's own");
    }
    Ok(())
}
