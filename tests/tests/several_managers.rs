//! Two managers of one fleet, with the same keys: an agent that goes from one to the other is told of by one alone, and the
//! connection that it left behind is closed.

use std::fs;

use anyhow::{Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    daemon::Daemon,
    home::Home,
    nats::{Nats, STATE, Stored},
    wait::{self, SOON},
};

/// Nobody is given up while the story goes on, however slow the machine.
const PATIENT: &str = "<manager_keepalive>\
    <enabled>yes</enabled><interval>60</interval><timeout>600</timeout><max_missed>10</max_missed>\
    <retry_interval>30</retry_interval></manager_keepalive>";

struct Manager {
    node: &'static str,
    home: Home,
    daemons: Vec<Daemon>,
}

impl Manager {
    fn new(nats: &Nats, node: &'static str, ownership: &str) -> Result<Self> {
        let home = Home::publishing_to(&nats.url())?;
        home.set_in("nats", &format!("<node_name>{node}</node_name>"))?;
        home.set_in("nats", ownership)?;
        home.set_in("remote", PATIENT)?;
        Ok(Self {
            node,
            home,
            daemons: vec![],
        })
    }

    /// Makes the streams and buckets.
    fn provision(&self) -> Result<()> {
        let made = std::process::Command::new(self.home.program("muster-natsd"))
            .args(["--home".as_ref(), self.home.path().as_os_str()])
            .args(["provision", "--share", "1"])
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    fn start(&mut self, daemon: &str) -> Result<()> {
        self.daemons.push(self.home.start(daemon)?);
        Ok(())
    }

    /// A fact of its natsd.
    fn fact(&self, name: &str) -> Result<String> {
        let status = self.home.status("natsd")?;
        Ok(status["facts"][name].as_str().unwrap_or_default().to_owned())
    }

    fn wait_for(&self, name: &str, value: &str) -> Result<()> {
        let what = format!("{name} of {} is {value}", self.node);
        wait::until_true(&what, SOON, || Ok(self.fact(name)? == value))
    }

    /// Its remoted has let go of the agent, and says why.
    fn let_go(&self) -> Result<()> {
        let agent = self.home.wait_for_status("001", "disconnected", SOON)?;
        ensure!(agent["reason"] == "moved", "{agent}");
        Ok(())
    }
}

fn is_change(stored: &Stored, node: &str, words: &str) -> bool {
    let header = |name: &str| stored.headers.get(name).map(String::as_str);
    header("Muster-Node") == Some(node) && header("Muster-Status") == Some(words)
}

#[test]
fn agent_that_moves_between_managers_is_told_of_by_one_of_them() -> Result<()> {
    let nats = Nats::without_streams()?;
    let new = |node| Manager::new(&nats, node, "<ownership/>");
    let (mut a, mut b) = (new("mgr-a")?, new("mgr-b")?);
    a.provision()?;
    a.start("authd")?;
    let key = a.home.enroll("web-01")?;
    fs::write(b.home.path().join("etc/client.keys"), a.home.client_keys()?)?;
    for manager in [&mut a, &mut b] {
        manager.start("natsd")?;
        manager.start("remoted")?;
    }
    let mut at_a = Agent::new(key.clone(), Family::WazuhAes, Carrier::Tcp, a.home.port());
    at_a.hello_until_heard(SOON)?;
    at_a.keepalive()?;
    a.wait_for("agents_owned", "1")?;
    b.wait_for("agents_foreign", "1")?;

    // The old connection stays open: nobody told the first manager.
    let mut at_b = Agent::new(key, Family::WazuhAes, Carrier::Tcp, b.home.port());
    at_b.hello_until_heard(SOON)?;
    at_b.keepalive()?;
    b.wait_for("agents_owned", "1")?;
    a.wait_for("agents_foreign", "1")?;
    at_a.expect_close()?;
    a.let_go()?;
    b.home.wait_for_status("001", "active", SOON)?;
    nats.wait_for("KV_agents", "the bucket names the new manager", |stored| {
        let entry = stored.json().unwrap_or_default();
        stored.subject == "$KV.agents.001" && entry["manager_node"] == "mgr-b" && entry["status"] == "active"
    })?;

    // And back.
    at_a.hello_until_heard(SOON)?;
    at_a.keepalive()?;
    a.wait_for("agents_owned", "1")?;
    b.wait_for("agents_foreign", "1")?;
    at_b.expect_close()?;
    b.let_go()?;

    at_a.goodbye()?;
    nats.wait_for(STATE, "the end is told", |stored| {
        is_change(stored, "mgr-a", "active>disconnected")
    })?;
    let stored = nats.stored(STATE)?;
    let changes = |node: &str, words: &str| stored.iter().filter(|stored| is_change(stored, node, words)).count();
    ensure!(changes("mgr-a", "pending>active") == 2);
    ensure!(changes("mgr-b", "pending>active") == 1);
    ensure!(changes("mgr-a", "active>disconnected") == 1, "only the goodbye");
    ensure!(changes("mgr-b", "active>disconnected") == 0);
    ensure!(
        !stored
            .iter()
            .any(|stored| stored.subject.ends_with("agent_disconnected")),
        "there is nothing to be alarmed at"
    );
    Ok(())
}

#[test]
fn two_managers_never_give_the_same_id() -> Result<()> {
    let mut nats = Nats::without_streams()?;
    let new = |node| Manager::new(&nats, node, "<ownership ids=\"yes\"/>");
    let (mut a, mut b) = (new("mgr-a")?, new("mgr-b")?);
    a.provision()?;
    a.start("authd")?;
    let degraded = a.home.status("authd")?["degraded"].to_string();
    ensure!(degraded.contains("no id is left"), "{degraded}");
    ensure!(a.home.enroll("too-early").is_err(), "there are no ids to give");
    let leased = |manager: &Manager| {
        let what = format!("ids are leased to {}", manager.node);
        wait::until_true(&what, SOON, || {
            Ok(manager.home.status("authd")?["facts"]["leased_ids_left"] == "256")
        })
    };
    a.start("natsd")?;
    leased(&a)?;
    b.start("authd")?;
    b.start("natsd")?;
    leased(&b)?;
    let ids = |manager: &Manager, names: [&str; 2]| -> Result<Vec<String>> {
        names.iter().map(|name| Ok(manager.home.enroll(name)?.id)).collect()
    };
    ensure!(ids(&a, ["a-1", "a-2"])? == ["001", "002"]);
    ensure!(ids(&b, ["b-1", "b-2"])? == ["257", "258"]);
    // Nobody has to be asked for a block that is ours, not even after a restart.
    nats.kill()?;
    a.daemons.clear();
    a.start("authd")?;
    ensure!(ids(&a, ["a-3", "a-4"])? == ["003", "004"]);
    ensure!(ids(&b, ["b-3", "b-4"])? == ["259", "260"]);
    Ok(())
}
