//! Each act reaches the audit trail, and a trail that was changed is found out.

use std::fs;

use muster_proto::event::Kind;
use serde_json::{Value, json};

use crate::{audit::acts, block_on, natsd::Home, producer, provisioned, server::Server, verifier, wait_for};

const OPTIONS: &str = "<message_signing>yes</message_signing><audit_logging>yes</audit_logging>";
const FILE: &str = "logs/natsd-audit.json";

/// The details of all lines of an act.
fn details(home: &Home, act: &str) -> Vec<Value> {
    let lines = acts(home).into_iter().filter(|line| line["act"] == act);
    lines.map(|line| line["detail"].clone()).collect()
}

fn wait_for_act(home: &Home, act: &str) -> Value {
    wait_for(act, || !details(home, act).is_empty());
    details(home, act).remove(0)
}

#[test]
fn coming_and_going_of_the_broker_are_acts() {
    let mut server = Server::start();
    let home = provisioned(&server, OPTIONS);
    let natsd = home.start();
    let connected = wait_for_act(&home, "connected");
    assert_eq!(
        (&connected["server"], &connected["tls"]),
        (&json!(server.url()), &json!(false))
    );
    server.kill();
    let disconnected = wait_for_act(&home, "disconnected");
    assert_eq!(disconnected["server"], server.url());
    let failed = wait_for_act(&home, "connect_failed");
    assert!(
        failed["why"].as_str().is_some_and(|why| why.contains(&server.url())),
        "{failed}"
    );
    natsd.stop();
    let lines = acts(&home);
    assert_eq!(
        (&lines[0]["act"], &lines[lines.len() - 1]["act"]),
        (&json!("started"), &json!("stopped"))
    );
}

#[test]
fn rights_that_are_missing_are_acts_each_of_its_own() {
    // The administrator makes the streams; what the manager may not do is told to it.
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n\
             authorization {{ users: [ {{ user: admin, password: a }}, {{ user: manager, password: m, permissions: {{ \
             publish: {{ allow: \">\", deny: [\"wazuh.xdr.agent.001.>\", \"wazuh.xdr.agent.002.>\"] }}, subscribe: \">\" }} }} ] }}\n",
            store.display()
        )
    });
    let of = |user: &str, password: &str| {
        format!(
            "<server_url>{}</server_url><node_name>mgr-a</node_name><reconnect_delay>1</reconnect_delay>\
             <publish ack_timeout=\"1s\"/><user>{user}</user><password>{password}</password>{OPTIONS}",
            server.url()
        )
    };
    let home = Home::new(&of("admin", "a"));
    let made = home.run(&["provision", "--share", "1"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    home.configure(&of("manager", "m"));
    let _natsd = home.start();
    let mut producer = producer(&home);
    for agent in 1..4 {
        producer.put(producer::change(agent, 0));
    }
    block_on(producer.hand_over_all());
    let of_agent = |agent: u32| {
        let subject = format!("wazuh.xdr.agent.00{agent}.status_change");
        let errors = details(&home, "broker_error");
        let of_it = errors
            .iter()
            .filter(|detail| detail["error"].as_str().is_some_and(|error| error.contains(&subject)));
        of_it.count()
    };
    wait_for("both subjects are told", || of_agent(1) > 0 && of_agent(2) > 0);
    assert_eq!(of_agent(3), 0);
}

#[test]
fn enrollments_and_what_is_dropped_are_acts() {
    let server = Server::start();
    let home = provisioned(&server, OPTIONS);
    let _natsd = home.start();
    let mut producer = producer(&home);
    producer.put(producer::enrollment(1));
    producer.put(producer::removal(2));
    block_on(producer.hand_over_all());
    assert_eq!(wait_for_act(&home, "enrolled")["agent_id"], "001");
    assert_eq!(wait_for_act(&home, "removed")["agent_id"], "002");
    for place in 0..5 {
        producer.put(producer::change(1, place));
    }
    producer.drop_oldest(2);
    block_on(producer.hand_over_all());
    let dropped = wait_for_act(&home, "dropped");
    assert_eq!(
        (&dropped["producer"], &dropped["count"], &dropped["reason"]),
        (&json!("remoted"), &json!(2), &json!("outbox_full"))
    );
    assert_eq!(details(&home, "dropped").len(), 1);
}

#[test]
fn name_that_somebody_else_has_is_an_act() {
    let server = Server::start();
    let options = format!("{OPTIONS}<kv bucket=\"agents\"/>");
    let (first, second) = (provisioned(&server, &options), provisioned(&server, &options));
    let _natsd = first.start();
    wait_for("the name is taken", || {
        first.facts().get("name_is_ours").is_some_and(|ours| ours == "yes")
    });
    let _other = second.start();
    let taken = wait_for_act(&second, "node_name_taken");
    assert_eq!(taken["node"], "mgr-a");
    assert!(details(&first, "node_name_taken").is_empty());
}

#[test]
fn acts_stand_in_the_stream_as_they_stand_in_the_file() {
    let server = Server::start();
    let home = provisioned(&server, OPTIONS);
    let natsd = home.start();
    wait_for_act(&home, "head");
    home.wait_until_all_is_published();
    natsd.stop();
    let natsd = home.start();
    home.wait_until_all_is_published();
    let (_, audit) = crate::state_and_audit(&server);
    let mut verifier = verifier(&home);
    let told: Vec<Value> = crate::accepted(&mut verifier, &audit)
        .into_iter()
        .filter(|message| message.header("Muster-Type") == Some(Kind::Audit.type_name()))
        .map(|message| crate::json(message)["audit"].take())
        .collect();
    let lines = acts(&home);
    assert!(told.len() > 3);
    assert_eq!(told, lines[..told.len()]);
    natsd.stop();
}

/// What `audit-check` says, and whether all is well.
fn check(home: &Home, arguments: &[&str]) -> (bool, String) {
    let output = home.run(&[&["audit-check"], arguments].concat());
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), said)
}

#[test]
fn trail_with_signed_heads_is_checked_by_a_command() {
    let server = Server::start();
    let home = provisioned(&server, OPTIONS);
    assert!(!check(&home, &[]).0, "there is none");
    let natsd = home.start();
    wait_for_act(&home, "head");
    wait_for_act(&home, "connected");
    natsd.stop();
    let (good, said) = check(&home, &[]);
    assert!(good && said.contains(" signed heads, "), "{said}");
    let key = muster_natsd::keys::KeyFile::read(&home.path("etc/nats/signing.nk"))
        .expect("reads")
        .public()
        .remove(0);
    let path = home.path(FILE);
    let file = path.to_str().expect("UTF-8");
    assert!(check(&home, &["--key", &format!("mgr-a={key}"), file]).0);
    let other = nkeys::KeyPair::new_user().public_key();
    let (good, said) = check(&home, &["--key", &other]);
    assert!(!good && said.contains("the head is signed with U"), "{said}");
    assert!(check(&home, &["--unsigned"]).0);

    let text = fs::read_to_string(&path).expect("reads");
    let last = text.trim_end().rsplit('\n').next().expect("a line");
    let (_, said) = check(&home, &["--unsigned"]);
    let head = said.trim_end().rsplit(' ').next().expect("a hash").to_owned();
    assert!(check(&home, &["--head", &head]).0);
    fs::write(&path, text.strip_suffix(&format!("{last}\n")).expect("ends with it")).expect("writes");
    let (good, said) = check(&home, &["--head", &head]);
    assert!(!good && said.contains("the end of the trail is missing"), "{said}");

    fs::write(&path, text.replacen("\"state_lost\":false", "\"state_lost\":true", 1)).expect("writes");
    let (good, said) = check(&home, &[]);
    assert!(
        !good && said.contains("natsd-audit.json:2: it does not follow"),
        "{said}"
    );
}
