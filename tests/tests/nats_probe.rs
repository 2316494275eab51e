//! `muster-control nats test`: what an operator sees of the way to the broker and back.

use std::collections::BTreeSet;

use anyhow::Result;
use muster_tests::{
    home::Home,
    nats::{KEEPALIVE, Nats},
    wait::{self, SOON},
};
use serde_json::Value;

#[test]
fn operator_sees_each_step_with_its_time_and_the_one_that_fails_with_its_cure() -> Result<()> {
    let mut nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let natsd = home.start("natsd")?;
    let report = home.control_json(&["nats", "test"])?;
    assert!(report["failed"].is_null(), "{report}");
    let legs: Vec<&str> = report["legs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|leg| leg["leg"].as_str())
        .collect();
    assert!(
        legs.starts_with(&["connect", "log_in", "spool", "acknowledge", "read_back"]),
        "{report}"
    );
    assert_eq!(report["jetstream"], true);
    let text = home.control(&["nats", "test"])?;
    assert!(text.contains("JetStream") && text.contains("read_back"), "{text}");

    nats.kill()?;
    let failed = home.run_control(&["nats", "test"])?;
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8_lossy(&failed.stdout).into_owned();
    assert!(
        text.contains("connect     failed:") && text.contains("what to do: start nats-server"),
        "{text}"
    );
    natsd.stop()?;
    assert_eq!(home.run_control(&["nats", "test"])?.status.code(), Some(3));
    Ok(())
}

#[test]
fn health_says_how_full_the_queues_of_all_daemons_are() -> Result<()> {
    let nats = Nats::start()?;
    let home = Home::publishing_to(&nats.url())?;
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    // It asks them when it starts.
    let _natsd = home.start("natsd")?;
    let queues = wait::until("all daemons are in the health", SOON, || {
        home.control_json(&["nats", "test"])?;
        let told = nats.stored(KEEPALIVE)?;
        let bodies = told.iter().filter_map(|stored| stored.json().ok());
        let mut queues = bodies.map(|mut body| body["health"]["queues"].take());
        Ok(queues.find(|queues| queues.as_array().is_some_and(|queues| !queues.is_empty())))
    })?;
    let queues = queues.as_array().into_iter().flatten();
    let mut daemons = BTreeSet::new();
    for queue in queues {
        daemons.insert(queue["daemon"].as_str().unwrap_or_default());
        let numbers = [&queue["used"], &queue["capacity"], &queue["dropped"]];
        assert!(numbers.into_iter().all(Value::is_u64), "{queue}");
        assert!(queue["queue"].is_string() && queue["unit"].is_string(), "{queue}");
    }
    assert_eq!(
        daemons,
        BTreeSet::from(["authd", "natsd", "remoted"]),
        "keypolld is not there"
    );
    Ok(())
}
