//! Daemons that systemd runs: it starts and stops them, so that it knows, and so that they run inside their walls.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;

/// There when systemd is the machine's service manager: see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// The unit of a daemon.
pub(crate) struct Unit {
    name: String,
    main_pid: Option<u32>,
}

impl Unit {
    /// The unit that serves this home, if systemd has one.
    pub(crate) fn of(daemon: &str, home: &Path) -> Option<Self> {
        if !Path::new(BOOTED).is_dir() {
            return None;
        }
        let name = format!("muster-{daemon}.service");
        let shown = Command::new("systemctl")
            .args(["show", "--property=LoadState,MainPID,ExecStart", &name])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let main_pid = serves(&String::from_utf8_lossy(&shown.stdout), home)?;
        Some(Self { name, main_pid })
    }

    /// Its process, while it runs.
    pub(crate) fn main_pid(&self) -> Option<u32> {
        self.main_pid
    }

    /// Starts or stops it, and waits until that is done. Whether it worked; systemctl has told the reason.
    pub(crate) fn tell(&self, verb: &str) -> anyhow::Result<bool> {
        let status = Command::new("systemctl")
            .args([verb, &self.name])
            .status()
            .with_context(|| format!("cannot run systemctl {verb} {}", self.name))?;
        Ok(status.success())
    }

    /// Where its log is.
    pub(crate) fn log(&self) -> String {
        format!("journalctl -u {}", self.name)
    }
}

/// From what `systemctl show` says: the process of a unit for this home, or nothing when the unit is missing or serves
/// another home.
fn serves(shown: &str, home: &Path) -> Option<Option<u32>> {
    let value = |key: &str| shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    if value("LoadState")? != "loaded" {
        return None;
    }
    let mut words = value("ExecStart")?
        .split_whitespace()
        .skip_while(|word| *word != "--home");
    words.next()?;
    (Path::new(words.next()?) == home).then(|| value("MainPID")?.parse().ok().filter(|pid| *pid != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "LoadState=loaded\nMainPID=77\nExecStart={ path=/usr/bin/muster-authd ; argv[]=/usr/bin/muster-authd --home /var/lib/muster --foreground ; ignore_errors=no ; pid=0 }\n";

    #[test]
    fn a_unit_serves_its_own_home_alone() {
        assert_eq!(serves(SHOWN, Path::new("/var/lib/muster")), Some(Some(77)));
        assert_eq!(serves(SHOWN, Path::new("/srv/muster")), None);
    }

    #[test]
    fn a_unit_that_rests_has_no_process() {
        let shown = SHOWN.replace("=77", "=0");
        assert_eq!(serves(&shown, Path::new("/var/lib/muster")), Some(None));
    }

    #[test]
    fn a_unit_that_is_not_installed_serves_nothing() {
        assert_eq!(
            serves("LoadState=not-found\nMainPID=0\n", Path::new("/var/lib/muster")),
            None
        );
        assert_eq!(serves("", Path::new("/var/lib/muster")), None);
    }
}
