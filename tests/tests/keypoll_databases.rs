//! Agents that exist only in a database come in: MariaDB, PostgreSQL and SQLite, through every shipped script.

use std::fs;

use anyhow::{Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family, Key},
    home::Home,
    keys_database::{KeysDatabase, Kind, Scripts, installed, program, wrapper},
    wait::{SOON, until_true},
};

fn agent(number: u32, address: &str) -> Key {
    Key {
        id: format!("{number:03}"),
        name: format!("db-{number}"),
        address: address.to_owned(),
        key: format!("{number:064x}"),
    }
}

/// A home whose keypolld is set up so.
fn home(key_request: &str) -> Result<Home> {
    let home = Home::new()?;
    set(&home, key_request)?;
    Ok(home)
}

fn set(home: &Home, key_request: &str) -> Result<()> {
    home.set_in("auth", &format!("<key_request>{key_request}</key_request>"))
}

/// Comes in with its key, which nobody has registered.
fn comes_in(home: &Home, key: &Key) -> Result<()> {
    let mut agent = Agent::new(key.clone(), Family::WazuhAes, Carrier::Tcp, home.port());
    agent.hello_until_heard(SOON)?;
    agent.keepalive()?;
    home.wait_for_status(&key.id, "active", SOON)?;
    let Key { id, name, address, key } = key;
    ensure!(home.client_keys()?.contains(&format!("{id} {name} {address} {key}\n")));
    Ok(())
}

#[test]
fn agents_of_every_database_come_in_through_every_script() -> Result<()> {
    for kind in Kind::ALL {
        let database = KeysDatabase::start(kind)?;
        let agents: Vec<Key> = (101..105).map(|number| agent(number, "any")).collect();
        database.insert(&agents)?;
        let home = home("")?;
        let scripts = Scripts::install(&home, &database)?;
        let _authd = home.start("authd")?;
        let _remoted = home.start("remoted")?;
        let socket = home.path().join("queue/sockets/keypoll-source");
        let settings = [
            format!("<exec_path>{}</exec_path>", scripts.shell()),
            format!("<exec_path>{}</exec_path>", scripts.python("")),
            format!(
                "<exec_path>{}</exec_path><exec_mode>persistent</exec_mode>",
                scripts.python("--persistent")
            ),
            format!("<socket>{}</socket>", socket.display()),
        ];
        for (setting, agent) in settings.iter().zip(&agents) {
            set(&home, setting)?;
            let _service = if setting.starts_with("<socket>") {
                Some(scripts.listen(&socket)?)
            } else {
                None
            };
            let keypolld = home.start("keypolld")?;
            comes_in(&home, agent)?;
            let unknown = home.run_control(&["keypoll", "try", "id", "999"])?;
            let said = String::from_utf8_lossy(&unknown.stdout);
            ensure!(
                said.contains("not_found") && said.contains("No agent key found"),
                "{kind:?} {setting}: {said}"
            );
            ensure!(!keypolld.log().contains(&agent.key), "the key is in the log");
            keypolld.stop()?;
        }
    }
    Ok(())
}

#[test]
fn an_agent_without_id_is_found_by_its_address() -> Result<()> {
    for kind in Kind::ALL {
        let database = KeysDatabase::start(kind)?;
        let key = agent(101, "127.0.0.1");
        database.insert(std::slice::from_ref(&key))?;
        let home = home("")?;
        let scripts = Scripts::install(&home, &database)?;
        set(&home, &format!("<exec_path>{}</exec_path>", scripts.python("")))?;
        let _authd = home.start("authd")?;
        let _keypolld = home.start("keypolld")?;
        let _remoted = home.start("remoted")?;
        comes_in(&home, &key)?;
        let report = home.control_json(&["keypoll", "try", "ip", "127.0.0.1"])?;
        ensure!(report["agent"]["registered"] == "the same", "{report}");
    }
    Ok(())
}

#[test]
fn nothing_in_a_request_is_sql() -> Result<()> {
    for kind in Kind::ALL {
        let database = KeysDatabase::start(kind)?;
        database.insert(&[agent(101, "any")])?;
        let home = home("")?;
        let scripts = Scripts::install(&home, &database)?;
        for command in [scripts.shell(), scripts.python("")] {
            for value in ["' OR '1'='1", "101' --", "101; DROP TABLE agent", "\\', 101", "$(id)"] {
                // As the daemon would call it, if it passed such a thing on.
                let said = run(&command, &["id", value])?;
                ensure!(said.contains("\"error\": 3"), "{kind:?} {command}: {said}");
            }
        }
    }
    Ok(())
}

/// Runs a script as the daemon would; what it prints.
fn run(command: &str, arguments: &[&str]) -> Result<String> {
    let mut words = command.split_whitespace();
    let output = std::process::Command::new(words.next().unwrap_or_default())
        .args(words)
        .args(arguments)
        .output()?;
    ensure!(output.status.success(), "{command} {arguments:?}: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn two_agents_with_one_address_are_no_answer() -> Result<()> {
    for kind in Kind::ALL {
        let database = KeysDatabase::start(kind)?;
        database.insert(&[agent(101, "10.0.0.1"), agent(102, "10.0.0.1"), agent(103, "10.0.0.3")])?;
        let home = home("")?;
        let scripts = Scripts::install(&home, &database)?;
        for command in [scripts.shell(), scripts.python("")] {
            let said = run(&command, &["ip", "10.0.0.1"])?;
            ensure!(said.contains("\"error\": 5"), "{kind:?} {command}: {said}");
            let said = run(&command, &["ip", "10.0.0.3"])?;
            ensure!(said.contains("db-103"), "{kind:?} {command}: {said}");
            let said = run(&command, &["--help"])?;
            ensure!(said.contains("usage:"), "{kind:?} {command}: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_database_that_is_away_is_an_error_that_passes() -> Result<()> {
    for kind in Kind::ALL {
        let mut database = KeysDatabase::start(kind)?;
        database.insert(&[agent(101, "any")])?;
        let home = home("")?;
        let scripts = Scripts::install(&home, &database)?;
        let mut commands = vec![(scripts.shell(), "once"), (scripts.python(""), "once")];
        // A file that is open stays, wherever it is moved.
        if kind != Kind::Sqlite {
            commands.push((scripts.python("--persistent"), "persistent"));
        }
        for (command, mode) in commands {
            set(
                &home,
                &format!("<exec_path>{command}</exec_path><exec_mode>{mode}</exec_mode>"),
            )?;
            let _authd = home.start("authd")?;
            let _keypolld = home.start("keypolld")?;
            let outcome = |home: &Home| -> Result<String> {
                let output = home.run_control(&["keypoll", "try", "id", "101", "--output", "json"])?;
                let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
                Ok(report["outcome"].as_str().unwrap_or_default().to_owned())
            };
            assert_eq!(outcome(&home)?, "found", "{kind:?} {command}");
            database.stop()?;
            assert_eq!(outcome(&home)?, "source_error", "{kind:?} {command}");
            database.restart()?;
            assert_eq!(outcome(&home)?, "found", "{kind:?} {command}");
        }
    }
    Ok(())
}

/// With other people's `pull.php` and `pull.pl` in the folder that `MUSTER_KEYPOLL_SCRIPTS` names, those.
#[test]
fn scripts_in_other_languages_keep_the_contract() -> Result<()> {
    let database = KeysDatabase::start(Kind::MariaDb)?;
    let agents = [agent(101, "any"), agent(102, "any")];
    database.insert(&agents)?;
    let home = home("")?;
    let folder = home.path().join("etc");
    let wrapper = wrapper(&folder)?;
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/keypoll");
    let fixtures = std::env::var("MUSTER_KEYPOLL_SCRIPTS").unwrap_or_else(|_| ours.to_owned());
    let socket = database.place();
    let extensions = installed("usr/lib/php", "mysqli.so")?;
    let php = format!(
        "{} -n -d extension_dir={} -d extension=mysqlnd -d extension=mysqli -d mysqli.default_socket={} {fixtures}/pull.php",
        program("php8.2")?.display(),
        extensions.parent().unwrap_or(&extensions).display(),
        socket.display()
    );
    let perl = format!("env MYSQL_UNIX_PORT={} perl {fixtures}/pull.pl", socket.display());
    let _authd = home.start("authd")?;
    let _remoted = home.start("remoted")?;
    for (script, agent) in [php, perl].iter().zip(&agents) {
        set(&home, &format!("<exec_path>{} {script}</exec_path>", wrapper.display()))?;
        let keypolld = home.start("keypolld")?;
        comes_in(&home, agent)?;
        let unknown = home.run_control(&["keypoll", "try", "id", "999"])?;
        ensure!(String::from_utf8_lossy(&unknown.stdout).contains("No agent key found"));
        keypolld.stop()?;
    }
    Ok(())
}

#[test]
fn a_script_whose_configuration_is_missing_says_so_in_the_log() -> Result<()> {
    let database = KeysDatabase::start(Kind::Sqlite)?;
    let home = home("")?;
    let scripts = Scripts::install(&home, &database)?;
    fs::remove_file(home.path().join("etc/keypoll/agent_key_pull.ini"))?;
    set(&home, &format!("<exec_path>{}</exec_path>", scripts.python("")))?;
    let keypolld = home.start("keypolld")?;
    let output = home.run_control(&["keypoll", "try", "id", "101"])?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("source_error"));
    until_true("the log names the file", SOON, || {
        Ok(keypolld.log().contains("agent_key_pull.ini") && keypolld.log().contains("No such file"))
    })
}
