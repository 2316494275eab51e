//! Local programs order agents about through `queue/alerts/ar` and `queue/alerts/cfgarq`.

use std::time::Duration;

use anyhow::Result;
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    remote::drop_at,
    wait::{self, SOON},
};

const AR: &str = "queue/alerts/ar";
const JSON: &str =
    r#"{"version":1,"origin":{"module":"api"},"command":"restart-wazuh0","parameters":{"extra_args":[],"alert":{}}}"#;
const TEXT: &str = "restart-ossec0 - null (from_the_server) (no_rule_id)";

struct Fleet {
    home: Home,
    tcp: Agent,
    udp: Agent,
    ossec: Agent,
    _daemons: [muster_tests::daemon::Daemon; 2],
}

impl Fleet {
    fn new() -> Result<Self> {
        let home = Home::new()?;
        home.set_in("remote", "<manager_keepalive><enabled>no</enabled></manager_keepalive>")?;
        let daemons = [home.start("authd")?, home.start("remoted")?];
        let connected = |name, family, carrier| -> Result<Agent> {
            let mut agent = Agent::new(home.enroll(name)?, family, carrier, home.port());
            agent.hello_until_heard(SOON)?;
            agent.keepalive()?;
            Ok(agent)
        };
        Ok(Self {
            tcp: connected("tcp", Family::WazuhAes, Carrier::Tcp)?,
            udp: connected("udp", Family::WazuhBlowfish, Carrier::Udp)?,
            ossec: connected("ossec", Family::Ossec3, Carrier::Udp)?,
            home,
            _daemons: daemons,
        })
    }

    fn order(&self, order: &str) -> Result<()> {
        drop_at(self.home.path(), AR, order.as_bytes())
    }
}

#[test]
fn order_reaches_its_agent_alone_or_everybody() -> Result<()> {
    let mut fleet = Fleet::new()?;
    let id = fleet.tcp.key.id.clone();
    for flags in ["NRN", "NNS", "NRS"] {
        fleet.order(&format!("(local_source) [] {flags} {id} {{json}}"))?;
        fleet.tcp.expect(b"#!-execd {json}")?;
    }
    fleet.order(&format!("(msg_to_agent) [] N!S {id} force_reconnect"))?;
    fleet.tcp.expect(b"#!-force_reconnect")?;
    fleet.order(&format!("(msg_to_agent) [] N!S {id} syscheck restart\0"))?;
    fleet.tcp.expect(b"#!-syscheck restart")?;
    let quiet = Duration::from_millis(300);
    assert!(fleet.udp.receive(quiet)?.is_none(), "another agent got it too");

    fleet.order("(local_source) [] ANN (null) body")?;
    for agent in [&mut fleet.tcp, &mut fleet.udp, &mut fleet.ossec] {
        agent.expect(b"#!-execd body")?;
    }
    fleet.order("(msg_to_agent) [] A!N (null) force_reconnect")?;
    for agent in [&mut fleet.tcp, &mut fleet.udp] {
        agent.expect(b"#!-force_reconnect")?;
    }
    assert!(fleet.ossec.receive(quiet)?.is_none(), "it would log that as unknown");
    Ok(())
}

#[test]
fn agents_without_json_get_the_text_of_the_same_order() -> Result<()> {
    let mut fleet = Fleet::new()?;
    fleet.order(&format!(
        "(msg_to_agent) [] ANN (null) {JSON} - null (from_the_server) (no_rule_id)"
    ))?;
    fleet.ossec.expect(format!("#!-execd {TEXT}").as_bytes())?;
    for agent in [&mut fleet.tcp, &mut fleet.udp] {
        agent.expect(format!("#!-execd {JSON} - null (from_the_server) (no_rule_id)").as_bytes())?;
    }
    Ok(())
}

#[test]
fn bad_orders_are_counted_and_disturb_nobody() -> Result<()> {
    let mut fleet = Fleet::new()?;
    let id = fleet.tcp.key.id.clone();
    for bad in [
        "plain text".to_owned(),
        "(a)".to_owned(),
        "(a) [] NNS".to_owned(),
        format!("(a) [] NNS {id}"),
        "(a) [] NNS 999 body".to_owned(),
        "(a) [] NNS 1 body".to_owned(),
        format!("(a) [] NNN {id} body"),
        format!("(a) [] nns {id} body"),
    ] {
        fleet.order(&bad)?;
    }
    drop_at(fleet.home.path(), AR, b"")?;
    drop_at(fleet.home.path(), AR, &[0xff; 4000])?;
    fleet.order(&format!("(a) [] NNS {id} last"))?;
    let first = fleet.tcp.receive(SOON)?.map(|opened| opened.payload);
    assert_eq!(first.as_deref(), Some(&b"#!-execd last"[..]));
    let counter = |name: &str| fleet.home.counter("remoted", name);
    wait::until_true("bad orders are counted", SOON, || {
        Ok(counter("remoted_orders_malformed_total")? == 5 && counter("remoted_orders_unknown_agent_total")? == 2)
    })?;
    assert_eq!(counter("remoted_orders_sent_total")?, 1);
    Ok(())
}

#[test]
fn sca_requests_are_passed_on_and_nothing_else_is() -> Result<()> {
    let mut fleet = Fleet::new()?;
    let id = fleet.tcp.key.id.clone();
    let socket = "queue/alerts/cfgarq";
    drop_at(fleet.home.path(), socket, format!("{id}:force_reconnect").as_bytes())?;
    drop_at(fleet.home.path(), socket, format!("{id}:sca-dump abc\0").as_bytes())?;
    let first = fleet.tcp.receive(SOON)?.map(|opened| opened.payload);
    assert_eq!(first.as_deref(), Some(&b"#!-sca-dump abc"[..]));
    Ok(())
}

#[test]
fn control_orders_one_agent_or_all_and_says_who_cannot_be_ordered() -> Result<()> {
    let mut fleet = Fleet::new()?;
    let (tcp, ossec) = (fleet.tcp.key.id.clone(), fleet.ossec.key.id.clone());
    fleet.home.wait_for_status(&tcp, "active", SOON)?;
    fleet.home.wait_for_status(&ossec, "active", SOON)?;
    fleet.home.control(&["agent", "reconnect", &tcp])?;
    fleet.tcp.expect(b"#!-force_reconnect")?;
    fleet.home.control(&["agent", "restart", &ossec])?;
    fleet.ossec.expect(format!("#!-execd {TEXT}").as_bytes())?;
    fleet.home.control(&["agent", "restart", "--all"])?;
    fleet.ossec.expect(format!("#!-execd {TEXT}").as_bytes())?;
    let order = fleet
        .tcp
        .receive(SOON)?
        .map(|opened| opened.payload)
        .unwrap_or_default();
    assert!(
        order.starts_with(br#"#!-execd {"version":1,"#),
        "{}",
        String::from_utf8_lossy(&order)
    );
    for (id, why) in [(ossec.as_str(), "OSSEC"), ("999", "no such agent")] {
        let output = fleet.home.run_control(&["agent", "reconnect", id])?;
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why), "{said}");
    }
    Ok(())
}

#[test]
fn agent_that_fell_silent_gets_no_order() -> Result<()> {
    let home = Home::new()?;
    home.add_config("<global><agents_disconnection_time>1s</agents_disconnection_time></global>")?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("silent")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.answers_requests = false;
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    let id = agent.key.id.clone();
    wait::until_true("it is left out", SOON, || {
        drop_at(home.path(), AR, format!("(a) [] NNS {id} body").as_bytes())?;
        Ok(home.counter("remoted", "remoted_orders_away_total")? > 0)
    })
}
