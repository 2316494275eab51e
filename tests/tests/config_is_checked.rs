//! A bad configuration is told with its place, by every daemon and before anything is started.

use std::{fs, process::Command};

use anyhow::Result;
use muster_tests::home::Home;

fn test_config(home: &Home, daemon: &str) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(home.program(&format!("muster-{daemon}")));
    let output = command.arg("--home").arg(home.path()).arg("-t").output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[test]
fn every_daemon_tests_a_good_file_with_0_and_a_bad_one_with_78_and_its_place() -> Result<()> {
    let home = Home::new()?;
    for daemon in ["authd", "remoted", "natsd"] {
        let (code, told) = test_config(&home, daemon)?;
        assert_eq!(code, Some(0), "{daemon}: {told}");
    }
    let path = home.path().join("etc/ossec.conf");
    let good = fs::read_to_string(&path)?;
    fs::write(
        &path,
        good.replacen("<connection>secure</connection>", "<connection>secured</connection>", 1),
    )?;
    let line = 1 + good.lines().take_while(|line| !line.contains("<connection>")).count();
    for daemon in ["authd", "remoted", "natsd"] {
        let (code, told) = test_config(&home, daemon)?;
        assert_eq!(code, Some(78), "{daemon}: {told}");
        assert!(told.contains(&format!("etc/ossec.conf:{line}:")), "{daemon}: {told}");
    }
    let checked = home.run_control(&["config", "check"])?;
    assert_eq!(checked.status.code(), Some(78));
    Ok(())
}

#[test]
fn an_unknown_element_is_a_warning_with_a_suggestion() -> Result<()> {
    let home = Home::new()?;
    home.set_in("remote", "<protocoll>udp</protocoll>")?;
    let (code, told) = test_config(&home, "remoted")?;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("did you mean") && told.contains("protocol"), "{told}");
    Ok(())
}

#[test]
fn a_bad_file_at_reload_changes_nothing() -> Result<()> {
    let home = Home::new()?;
    let _authd = home.start("authd")?;
    home.enroll("before")?;
    let path = home.path().join("etc/ossec.conf");
    let good = fs::read_to_string(&path)?;
    fs::write(&path, good.replacen("<use_password>no", "<use_password>maybe", 1))?;
    let reloaded = home.run_control(&["reload", "authd"])?;
    assert!(!reloaded.status.success());
    home.enroll("after")?;
    Ok(())
}
