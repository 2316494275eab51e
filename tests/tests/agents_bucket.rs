//! The key-value bucket of agents: what no event tells of them is in it, and a bucket that is lost is filled again.

use anyhow::{Context, Result};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    nats::Nats,
    wait::SOON,
};

const BUCKET: &str = "KV_agents";

#[test]
fn bucket_has_versions_and_systems_and_is_filled_again_after_a_loss() -> Result<()> {
    let nats = Nats::without_streams()?;
    let home = Home::publishing_to(&nats.url())?;
    home.set_in("nats", "<kv bucket=\"agents\"/>")?;
    let provision = || -> Result<()> {
        let made = std::process::Command::new(home.program("muster-natsd"))
            .args(["--home".as_ref(), home.path().as_os_str()])
            .args(["provision", "--share", "1"])
            .output()?;
        anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    };
    provision()?;
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
    provision()?;
    agent.keepalive()?;
    home.enroll("web-02").context("a change that is written")?;
    complete("the agent is in the bucket again")?;
    Ok(())
}
