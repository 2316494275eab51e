//! `muster-control nats test`: what an operator sees of the way to the broker and back.

use anyhow::Result;
use muster_tests::{home::Home, nats::Nats};

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
