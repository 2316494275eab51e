//! An operator asks a manager over NATS: signed, answered, written down.

use std::{fs, path::PathBuf, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    nats::{Nats, STATE},
    wait::{self, SOON},
};
use serde_json::{Value, json};

/// What a manager with requests switched on needs beside its server.
struct Desk {
    home: Home,
    nats: Nats,
    key: PathBuf,
    _daemons: Vec<muster_tests::daemon::Daemon>,
}

impl Desk {
    fn open(roles: &str, control: &str) -> Result<Self> {
        let nats = Nats::start()?;
        let home = Home::publishing_to(&nats.url())?;
        let key = home.path().join("operator.nk");
        let made = home.control(&["nats", "request-key", &key.display().to_string()])?;
        let public = made.trim();
        for element in [
            "<node_name>mgr-a</node_name>",
            "<message_signing>yes</message_signing>",
            "<audit_logging>yes</audit_logging>",
            control,
            &format!("<control_key id=\"operator\" roles=\"{roles}\">{public}</control_key>"),
        ] {
            home.set_in("nats", element)?;
        }
        let daemons = vec![home.start("natsd")?, home.start("authd")?, home.start("remoted")?];
        let desk = Self {
            home,
            nats,
            key,
            _daemons: daemons,
        };
        // What may have been asked of an earlier process is refused for some seconds.
        wait::until_true("requests are taken", SOON, || {
            let asked = desk.ask(&["agents.summary"])?;
            Ok(asked.reply.is_some_and(|reply| reply["reason"] != "before_start"))
        })?;
        Ok(desk)
    }

    /// `muster-control nats request` with these arguments.
    fn ask(&self, arguments: &[&str]) -> Result<Asked> {
        let key = self.key.display().to_string();
        let mut all = vec!["--output", "json", "nats", "request", "--key", &key];
        all.extend_from_slice(arguments);
        if !arguments.contains(&"--timeout") {
            all.extend(["--timeout", "5"]);
        }
        let Output { status, stdout, stderr } = self.home.run_control(&all)?;
        Ok(Asked {
            code: status.code().context("no exit code")?,
            reply: serde_json::from_slice(&stdout).ok(),
            told: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// What the audit trail has of requests: act and detail.
    fn trail(&self) -> Result<Vec<(String, Value)>> {
        let text = fs::read_to_string(self.home.path().join("logs/natsd-audit.json"))?;
        let mut lines = Vec::new();
        for line in text.lines() {
            let mut line: Value = serde_json::from_str(line)?;
            let act = line["act"].as_str().context("no act")?.to_owned();
            if act.starts_with("control") {
                lines.push((act, line["detail"].take()));
            }
        }
        Ok(lines)
    }

    fn wait_for_result(&self, agent: &str, ticket: &Value) -> Result<Value> {
        let subject = format!("wazuh.xdr.agent.{agent}.control_result");
        let result = self.nats.wait_for(STATE, "the result is published", |stored| {
            stored.subject == subject
                && stored
                    .json()
                    .is_ok_and(|body| body["control_result"]["ticket"] == *ticket)
        })?;
        Ok(result.json()?["control_result"].take())
    }
}

struct Asked {
    code: i32,
    reply: Option<Value>,
    told: String,
}

impl Asked {
    fn reply(&self) -> Result<&Value> {
        self.reply.as_ref().with_context(|| format!("no reply: {}", self.told))
    }
}

fn connected(home: &Home, name: &str, family: Family) -> Result<Agent> {
    let mut agent = Agent::new(home.enroll(name)?, family, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status(&agent.key.id, "active", SOON)?;
    Ok(agent)
}

#[test]
fn an_agent_is_restarted_by_an_operator_far_away() -> Result<()> {
    let desk = Desk::open("read,act", "<control enabled=\"yes\"/>")?;
    let mut web = connected(&desk.home, "web-01", Family::WazuhAes)?;
    let mut db = connected(&desk.home, "db-01", Family::WazuhAes)?;
    let id = web.key.id.clone();

    let asked = desk.ask(&["agents.summary"])?;
    let summary = &asked.reply()?["data"];
    assert_eq!(
        (&summary["total"], &summary["status"]["active"]),
        (&json!(2), &json!(2))
    );
    let asked = desk.ask(&["agent.status", &id, "--node", "mgr-a"])?;
    assert_eq!(asked.reply()?["data"]["name"], "web-01");

    // Its return is told from what was before by the second.
    wait::holds("the agent stays", Duration::from_millis(1100), || {
        web.keepalive()?;
        db.keepalive()?;
        Ok(true)
    })?;
    let asked = desk.ask(&["agent.restart", &id])?;
    let reply = asked.reply()?.clone();
    assert_eq!(
        (asked.code, &reply["outcome"], &reply["node"]),
        (0, &json!("accepted"), &json!("mgr-a"))
    );
    let order = r##"#!-execd {"version":1,"origin":{"name":"mgr-a","module":"control"},"command":"restart-wazuh0","parameters":{"extra_args":[],"alert":{}}}"##;
    let got: Value = serde_json::from_str(order.trim_start_matches("#!-execd "))?;
    let opened = web.receive(SOON)?.context("no order")?;
    let text = String::from_utf8_lossy(&opened.payload).into_owned();
    let sent: Value = serde_json::from_str(text.strip_prefix("#!-execd ").context("no order to execd")?)?;
    assert_eq!(sent, got);
    assert!(
        db.receive(Duration::from_millis(300))?.is_none(),
        "another agent got it too"
    );

    // It does as it was told.
    web.goodbye()?;
    desk.home.wait_for_status(&id, "disconnected", SOON)?;
    web.hello_until_heard(SOON)?;
    web.keepalive()?;
    let result = desk.wait_for_result(&id, &reply["ticket"])?;
    assert_eq!(
        (&result["outcome"], &result["key"], &result["verb"]),
        (&json!("done"), &json!("operator"), &json!("agent.restart"))
    );

    let trail = desk.trail()?;
    let of_restart: Vec<_> = trail
        .iter()
        .filter(|(_, detail)| detail["verb"] == "agent.restart")
        .map(|(act, detail)| (act.as_str(), &detail["key"], &detail["outcome"], &detail["ticket"]))
        .collect();
    assert_eq!(
        of_restart,
        [
            ("control_granted", &json!("operator"), &Value::Null, &Value::Null),
            ("control", &json!("operator"), &json!("accepted"), &reply["ticket"]),
        ]
    );
    Ok(())
}

#[test]
fn what_an_agent_says_to_an_order_is_told_under_its_ticket() -> Result<()> {
    let desk = Desk::open("read,act", "<control enabled=\"yes\"/>")?;
    let mut web = connected(&desk.home, "web-01", Family::WazuhAes)?;
    web.answers_requests = false;
    let id = web.key.id.clone();
    for (answer, outcome, text) in [
        ("ok ", "done", "the agent reloads"),
        ("err Unrecognized command", "failed", "err Unrecognized command"),
    ] {
        let asked = desk.ask(&["agent.reload", &id])?;
        let reply = asked.reply()?;
        assert_eq!(reply["outcome"], "accepted");
        let request = wait::until("the request comes", SOON, || {
            let message = web.receive(SOON)?.context("nothing came")?.payload;
            Ok(message.strip_prefix(b"#!-req ").map(<[u8]>::to_vec))
        })?;
        let request = String::from_utf8_lossy(&request).into_owned();
        let (number, asked_for) = request.split_once(' ').context("no number")?;
        assert_eq!(asked_for, "com reload");
        web.send(format!("#!-req {number} {answer}").as_bytes())?;
        let result = desk.wait_for_result(&id, &reply["ticket"])?;
        assert_eq!((&result["outcome"], &result["text"]), (&json!(outcome), &json!(text)));
    }
    let mut ossec = connected(&desk.home, "ossec-01", Family::Ossec3)?;
    let asked = desk.ask(&["agent.reload", &ossec.key.id])?;
    assert_eq!((asked.code, &asked.reply()?["outcome"]), (1, &json!("failed")));
    let asked = desk.ask(&["agent.restart", &ossec.key.id])?;
    assert_eq!(asked.reply()?["outcome"], "accepted");
    let order = wait::until("the order comes", SOON, || {
        let message = ossec.receive(SOON)?.context("nothing came")?.payload;
        Ok(message.strip_prefix(b"#!-execd ").map(<[u8]>::to_vec))
    })?;
    assert_eq!(order, b"restart-ossec0 - null (from_the_server) (no_rule_id)");
    Ok(())
}

#[test]
fn what_an_operator_may_not_is_refused_and_changes_nothing() -> Result<()> {
    let desk = Desk::open("read,act", "<control enabled=\"yes\"/>")?;
    let mut web = connected(&desk.home, "web-01", Family::WazuhAes)?;
    let id = web.key.id.clone();
    let asked = desk.ask(&["agent.remove", &id])?;
    assert_eq!((asked.code, &asked.reply()?["reason"]), (77, &json!("role")));
    let arguments = r#"{"command":"firewall-drop600"}"#;
    let asked = desk.ask(&["agent.ar", &id, "--arguments", arguments])?;
    assert_eq!((asked.code, &asked.reply()?["reason"]), (77, &json!("not_listed")));
    let asked = desk.ask(&["agent.restart", "999", "--node", "mgr-a"])?;
    assert_eq!(
        (asked.code, &asked.reply()?["text"]),
        (1, &json!("there is no agent 999"))
    );
    let asked = desk.ask(&["agent.restart", "999", "--timeout", "2"])?;
    assert_eq!(asked.code, 3, "no manager has it, so none answers: {:?}", asked.reply);
    let asked = desk.ask(&["node.status", "--node", "mgr-b"])?;
    ensure!(asked.told.contains("nobody listens"), "{}", asked.told);
    assert_eq!(asked.code, 3);

    let other = desk.home.path().join("other.nk");
    desk.home
        .control(&["nats", "request-key", &other.display().to_string()])?;
    let asked = desk.ask(&["agent.restart", &id, "--node", "mgr-a"])?;
    assert_eq!(asked.code, 0);
    web.receive(SOON)?.context("the order of who may")?;
    let stranger = Desk { key: other, ..desk };
    let asked = stranger.ask(&["agent.restart", &id, "--node", "mgr-a"])?;
    assert_eq!((asked.code, &asked.reply()?["reason"]), (77, &json!("unknown_key")));
    assert!(
        web.receive(Duration::from_millis(300))?.is_none(),
        "a stranger's order arrived"
    );
    Ok(())
}

#[test]
fn an_agent_is_removed_where_that_is_switched_on_and_responds_where_that_is_listed() -> Result<()> {
    let control = "<control enabled=\"yes\" destroy=\"yes\" active_responses=\"firewall-drop600\"/>";
    let desk = Desk::open("read,act,destroy", control)?;
    let mut web = connected(&desk.home, "web-01", Family::WazuhAes)?;
    let id = web.key.id.clone();
    let arguments = r#"{"command":"firewall-drop600","alert":{"data":{"srcip":"203.0.113.7"}}}"#;
    let asked = desk.ask(&["agent.ar", &id, "--arguments", arguments])?;
    assert_eq!(asked.reply()?["outcome"], "accepted");
    let order = web.receive(SOON)?.context("no order")?;
    ensure!(
        String::from_utf8_lossy(&order.payload).contains("203.0.113.7"),
        "it lacks the address"
    );
    let asked = desk.ask(&["agent.remove", &id])?;
    assert_eq!((asked.code, &asked.reply()?["outcome"]), (0, &json!("done")));
    wait::until_true("its key is gone", SOON, || {
        Ok(!desk
            .home
            .client_keys()?
            .lines()
            .any(|line| line.starts_with(&format!("{id} web-01"))))
    })?;
    Ok(())
}

#[test]
fn an_agent_whose_key_is_void_enrolls_and_its_new_id_is_told() -> Result<()> {
    let desk = Desk::open("read,act,destroy", "<control enabled=\"yes\" destroy=\"yes\"/>")?;
    let web = connected(&desk.home, "web-01", Family::WazuhAes)?;
    let ossec = connected(&desk.home, "ossec-01", Family::Ossec3)?;
    let id = web.key.id.clone();
    let has_key = |id: &str, name: &str| -> Result<bool> {
        let keys = desk.home.client_keys()?;
        Ok(keys.lines().any(|line| line.starts_with(&format!("{id} {name}"))))
    };
    let asked = desk.ask(&["agent.rekey", &ossec.key.id])?;
    assert_eq!((asked.code, &asked.reply()?["outcome"]), (1, &json!("failed")));
    assert!(has_key(&ossec.key.id, "ossec-01")?, "it could not come back");

    let asked = desk.ask(&["agent.rekey", &id])?;
    let reply = asked.reply()?.clone();
    assert_eq!((asked.code, &reply["outcome"]), (0, &json!("accepted")));
    assert!(!has_key(&id, "web-01")?, "the old key is good for something");
    let again = connected(&desk.home, "web-01", Family::WazuhAes)?;
    assert_ne!(again.key.id, id);
    let result = desk.wait_for_result(&id, &reply["ticket"])?;
    assert_eq!(
        (&result["outcome"], &result["text"]),
        (
            &json!("done"),
            &json!(format!("the agent has enrolled as {}", again.key.id))
        )
    );
    Ok(())
}
