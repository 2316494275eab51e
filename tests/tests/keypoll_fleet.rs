//! Five hundred agents that exist only in an operator's database: they connect, are refused once, and are in.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    home::Home,
    keys_database::{KeysDatabase, Kind, Scripts},
    swarm::Swarm,
    wait::{SOON, until_true},
};

/// How long a fleet of 250 may take to come in, agents' own pauses included.
const SECONDS: Duration = Duration::from_secs(20);

fn agent(number: usize) -> Key {
    Key {
        id: format!("{number:03}"),
        name: format!("host-{number:03}"),
        address: "any".to_owned(),
        key: format!("{:064x}", number * 7919),
    }
}

fn key_file(home: &Home, name: &str, agents: &[Key]) -> Result<PathBuf> {
    let lines: String = agents
        .iter()
        .map(|Key { id, name, address, key }| format!("{id} {name} {address} {key}\n"))
        .collect();
    let path = home.path().join(name);
    fs::write(&path, lines)?;
    Ok(path)
}

fn active(home: &Home) -> Result<usize> {
    let list = home.control_json(&["agent", "list", "--status", "active"])?;
    Ok(list.as_array().context("agent list is no array")?.len())
}

#[test]
fn five_hundred_agents_from_a_database_come_in_through_an_outage_and_a_change_of_key() -> Result<()> {
    let mut database = KeysDatabase::start(Kind::MariaDb)?;
    let agents: Vec<Key> = (1..=500).map(agent).collect();
    database.insert(&agents)?;
    let home = Home::new()?;
    let scripts = Scripts::install(&home, &database)?;
    // All of them come from one address, as behind a NAT.
    home.set_in(
        "auth",
        &format!(
            "<key_request><exec_path>{}</exec_path><exec_mode>persistent</exec_mode><threads>4</threads>\
             <rate_per_address>1000/s burst 1000</rate_per_address></key_request>",
            scripts.python("--persistent")
        ),
    )?;
    let _natsd = home.start("natsd")?;
    let authd = home.start("authd")?;
    let keypolld = home.start("keypolld")?;
    let remoted = home.start("remoted")?;
    until_true("remoted has found keypolld", SOON, || {
        Ok(remoted.log().contains("keys of unknown agents are asked for"))
    })?;
    let (first, second) = agents.split_at(250);
    let quick = ["--retry-interval", "1", "--notify-time", "2"];

    let began = Instant::now();
    let keys = key_file(&home, "first.keys", first)?;
    let mut first_fleet = Swarm::with_keys(&home, &keys, &[&quick[..], &["--agents", "250"]].concat())?;
    until_true("the first half is active", SECONDS, || Ok(active(&home)? == 250))?;
    println!("250 agents were active after {:.1} s", began.elapsed().as_secs_f64());
    ensure!(home.counter("keypolld", "keypoll_registered_total")? == 250);

    // Half way the database goes away; the others are refused until it is back.
    database.stop()?;
    let keys = key_file(&home, "second.keys", second)?;
    let mix = ["--mix", "wazuh-aes-tcp=150,wazuh-aes-udp=50,ossec4=50"];
    let _second_fleet = Swarm::with_keys(&home, &keys, &[&quick[..], &mix].concat())?;
    until_true("the second half is refused", SOON, || {
        Ok(home.counter("keypolld", "keypoll_source_errors_total")? >= 250)
    })?;
    ensure!(home.counter("keypolld", "keypoll_registered_total")? == 250);
    ensure!(
        active(&home)? == 250,
        "an outage of the database disturbs nobody who is in"
    );
    database.restart()?;
    let began = Instant::now();
    until_true("everybody is active", SECONDS, || Ok(active(&home)? == 500))?;
    println!(
        "the others were active {:.1} s after the database was back",
        began.elapsed().as_secs_f64()
    );
    ensure!(home.counter("keypolld", "keypoll_registered_total")? == 500);
    let lines = home.client_keys()?;
    for Key { id, name, address, key } in &agents {
        ensure!(
            lines.contains(&format!("{id} {name} {address} {key}\n")),
            "no line for {id}"
        );
    }

    // One agent is set up anew, with another key. It was there a moment ago: the rules forbid it, and say which.
    let new = Key {
        key: "f".repeat(64),
        ..agents[6].clone()
    };
    database.change_key(&new.id, &new.key)?;
    first_fleet.order("kill-names host-007")?;
    first_fleet.line("killed", SOON)?;
    let mut rekeyed = Agent::new(new.clone(), Family::WazuhAes, Carrier::Tcp, home.port());
    until_true("the change is refused", SOON, || {
        let _ = rekeyed.hello();
        Ok(home.counter("keypolld", "keypoll_refused_total")? == 1)
    })?;
    let refusal = "Duplicate ID, rejecting enrollment. Agent '007'";
    let rules = [
        "can't be replaced since it is not disconnected",
        "has not been disconnected long enough",
    ];
    ensure!(
        rules
            .iter()
            .any(|rule| authd.log().contains(&format!("{refusal} {rule}"))),
        "authd does not say which rule refused"
    );
    ensure!(
        keypolld
            .log()
            .contains("agent '007' of the key source is not registered: authd refuses")
    );
    // Rules that allow it, and it is in.
    home.set_in(
        "auth",
        "<force><disconnected_time enabled=\"no\">0</disconnected_time>\
         <after_registration_time>0</after_registration_time></force>",
    )?;
    home.control(&["reload", "authd", "keypolld"])?;
    rekeyed.hello_until_heard(SOON)?;
    ensure!(home.client_keys()?.contains(&format!("007 host-007 any {}\n", new.key)));
    ensure!(home.counter("keypolld", "keypoll_replaced_total")? >= 1);

    let event = home.follow_events(|event| {
        event["subject"]
            .as_str()
            .is_some_and(|subject| subject.ends_with(".resolved"))
            && event["body"]["keypoll"]["outcome"] == "replaced"
    })?;
    ensure!(event["body"]["keypoll"]["agent_id"] == "007", "{event}");
    for (name, log) in [
        ("authd", authd.log()),
        ("keypolld", keypolld.log()),
        ("remoted", remoted.log()),
    ] {
        for Key { key, .. } in agents.iter().chain([&new]) {
            ensure!(!log.contains(key), "{name} has logged a key");
        }
    }
    keypolld.stop().map(drop)
}
