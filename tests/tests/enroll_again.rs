//! An agent enrolls under a name that has a key: the force rules decide, and they ask remoted whether it is alive.

use anyhow::Result;
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    enroll::{self, Tls},
    home::Home,
    wait::SOON,
    wire,
};
use sha1::{Digest, Sha1};

const REFUSED: &str = "ERROR: Duplicate agent name: web-01. Unable to add agent";

fn force(home: &Home, key_mismatch: &str, disconnected: &str, registration: &str) -> Result<()> {
    home.set_in(
        "auth",
        &format!(
            "<force><enabled>yes</enabled><key_mismatch>{key_mismatch}</key_mismatch>{disconnected}\
             <after_registration_time>{registration}</after_registration_time></force>"
        ),
    )
}

fn ask(home: &Home, rest: &str) -> Result<String> {
    enroll::ask(
        home.enroll_port(),
        Tls::New,
        format!("OSSEC A:'web-01' V:'v4.14.7'{rest}\n").as_bytes(),
    )
}

/// What an agent that holds a key says of it.
fn hash(key: &Key) -> String {
    wire::hex(&Sha1::digest(format!("{}{}{}", key.id, key.name, key.key)))
}

#[test]
fn whoever_holds_the_right_key_is_refused_and_whoever_lost_it_gets_a_new_one() -> Result<()> {
    let home = Home::new()?;
    force(
        &home,
        "yes",
        r#"<disconnected_time enabled="no">0</disconnected_time>"#,
        "0",
    )?;
    let _authd = home.start("authd")?;
    let first = home.enroll("web-01")?;
    assert_eq!(ask(&home, &format!(" K:'{}'", hash(&first)))?, REFUSED);
    let second = enroll::key_of(&ask(&home, &format!(" K:'{}'", "0".repeat(40)))?)?;
    assert_eq!((first.id.as_str(), second.id.as_str()), ("001", "002"));
    assert_ne!(first.key, second.key);
    // The old one's hash is another key's hash now.
    let third = enroll::key_of(&ask(&home, &format!(" K:'{}'", hash(&first)))?)?;
    assert_eq!(third.id, "003");
    let fourth = enroll::key_of(&ask(&home, "")?)?;
    assert_eq!(fourth.id, "004");
    let stored = home.client_keys()?;
    assert_eq!(
        stored.lines().filter(|line| line.contains(" web-01 ")).count(),
        1,
        "{stored}"
    );
    assert!(stored.contains(&fourth.key));
    Ok(())
}

#[test]
fn an_agent_that_is_alive_or_new_is_not_replaced() -> Result<()> {
    let home = Home::new()?;
    force(
        &home,
        "yes",
        r#"<disconnected_time enabled="yes">1h</disconnected_time>"#,
        "0",
    )?;
    let _authd = home.start("authd")?;
    let remoted = home.start("remoted")?;
    let mut agent = Agent::new(home.enroll("web-01")?, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status("001", "active", SOON)?;
    assert_eq!(ask(&home, "")?, REFUSED, "it is active");
    agent.goodbye()?;
    home.wait_for_status("001", "disconnected", SOON)?;
    assert_eq!(ask(&home, "")?, REFUSED, "it has not been away for an hour");
    remoted.stop()?;
    assert_eq!(ask(&home, "")?, REFUSED, "nobody knows how it is");
    Ok(())
}

#[test]
fn an_agent_that_never_came_or_has_gone_is_replaced_and_a_fresh_registration_is_not() -> Result<()> {
    let home = Home::new()?;
    force(
        &home,
        "yes",
        r#"<disconnected_time enabled="yes">0</disconnected_time>"#,
        "0",
    )?;
    let authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    home.enroll("web-01")?;
    home.wait_for_status("001", "never_connected", SOON)?;
    let second = enroll::key_of(&ask(&home, "")?)?;
    let mut agent = Agent::new(second, Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status("002", "active", SOON)?;
    assert_eq!(ask(&home, "")?, REFUSED, "it is active");
    agent.goodbye()?;
    home.wait_for_status("002", "disconnected", SOON)?;
    assert_eq!(enroll::key_of(&ask(&home, "")?)?.id, "003");
    authd.stop()?;
    force(
        &home,
        "yes",
        r#"<disconnected_time enabled="yes">0</disconnected_time>"#,
        "1h",
    )?;
    let _authd = home.start("authd")?;
    assert_eq!(ask(&home, "")?, REFUSED, "it was registered a moment ago");
    Ok(())
}
