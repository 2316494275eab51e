//! The units have one base, loosened only where a comment says why; none is looser than its head claims; and they agree
//! with the users and directories that are made for them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

const DAEMONS: [&str; 4] = ["muster-authd", "muster-keypolld", "muster-remoted", "muster-natsd"];

/// What every unit has, apart from its user.
const BASE: &str = "
    Type=notify
    WatchdogSec=30
    Restart=on-failure
    RestartSec=5
    RestartPreventExitStatus=77 78
    TimeoutStopSec=30
    OOMPolicy=stop
    Group=muster
    UMask=0027
    CapabilityBoundingSet=
    AmbientCapabilities=
    NoNewPrivileges=yes
    ProtectSystem=strict
    ProtectHome=yes
    PrivateTmp=yes
    PrivateDevices=yes
    ProtectKernelTunables=yes
    ProtectKernelModules=yes
    ProtectKernelLogs=yes
    ProtectControlGroups=yes
    ProtectClock=yes
    ProtectHostname=yes
    ProtectProc=invisible
    ProcSubset=pid
    RestrictNamespaces=yes
    RestrictRealtime=yes
    RestrictSUIDSGID=yes
    LockPersonality=yes
    RemoveIPC=yes
    MemoryDenyWriteExecute=yes
    SystemCallArchitectures=native
    SystemCallFilter=@system-service
    SystemCallFilter=~@privileged @resources
    SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self
    SystemCallErrorNumber=EPERM
    PartOf=muster.target
    WantedBy=muster.target
";

fn deploy(path: &str) -> PathBuf {
    PathBuf::from(format!("{}/../../deploy/{path}", env!("CARGO_MANIFEST_DIR")))
}

fn read(path: &str) -> String {
    let path = deploy(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn unit(daemon: &str) -> String {
    read(&format!("systemd/{daemon}.service"))
}

/// The values of a directive, split at spaces.
fn values<'u>(unit: &'u str, directive: &str) -> BTreeSet<&'u str> {
    let lines = unit
        .lines()
        .filter_map(|line| line.strip_prefix(directive)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

#[test]
fn every_unit_has_the_whole_base() {
    for daemon in DAEMONS {
        let unit = unit(daemon);
        for directive in BASE.lines().map(str::trim).filter(|line| !line.is_empty()) {
            assert!(
                unit.lines().any(|line| line == directive),
                "{daemon} has no {directive}"
            );
        }
        assert!(unit.contains(&format!(
            "ExecStart=/usr/bin/{daemon} --home /var/lib/muster --foreground\n"
        )));
        // Not a signal: what is wrong with the new configuration is the caller's to hear.
        let name = daemon.trim_start_matches("muster-");
        assert!(unit.contains(&format!(
            "ExecReload=/usr/bin/muster-control --home /var/lib/muster reload {name}\n"
        )));
        assert!(unit.contains(&format!("User={daemon}\n")));
    }
}

#[test]
fn what_is_loosened_says_why() {
    for daemon in DAEMONS {
        let unit = unit(daemon);
        let lines: Vec<_> = unit.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            if line.starts_with("RestrictAddressFamilies=") && *line != "RestrictAddressFamilies=AF_UNIX" {
                assert!(
                    lines[..index]
                        .iter()
                        .rev()
                        .take(4)
                        .any(|line| line.starts_with("# Loosened")),
                    "{daemon}: {line}"
                );
            }
        }
        for directive in ["AmbientCapabilities", "CapabilityBoundingSet"] {
            assert!(values(&unit, directive).is_empty(), "{daemon} has capabilities");
        }
    }
}

#[test]
fn users_and_directories_of_the_units_are_made() {
    let users = read("sysusers.d/muster.conf");
    let directories = read("tmpfiles.d/muster.conf");
    let made: BTreeSet<_> = directories
        .lines()
        .filter(|line| line.starts_with("d "))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    for daemon in DAEMONS {
        let has_user = users
            .lines()
            .any(|line| line.split_whitespace().take(3).eq(["u", daemon, "-:muster"]));
        assert!(has_user, "{daemon}");
        for path in values(&unit(daemon), "ReadWritePaths") {
            assert!(
                made.contains(path),
                "{daemon} writes {path}, which nobody makes: the unit would not start"
            );
        }
    }
}

#[test]
fn a_folder_that_is_shared_is_sticky_and_belongs_to_root() {
    for line in read("tmpfiles.d/muster.conf")
        .lines()
        .filter(|line| line.starts_with("d "))
    {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, path, mode, user, group, ..] = fields.as_slice() else {
            panic!("{line}")
        };
        assert_eq!(*group, "muster", "{path}");
        let shared = mode.ends_with("770");
        assert_eq!(
            shared,
            mode.starts_with('1'),
            "{path}: what the group may write is sticky, and nothing else is"
        );
        assert!(
            !shared || *user == "root",
            "{path}: the owner of a sticky folder may rename everything in it"
        );
        assert!(mode.ends_with('0'), "{path} is open to everybody");
    }
}

#[test]
fn no_unit_is_looser_than_its_head_says() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        muster_test_skip::skipped("there is no systemd-analyze here");
        return;
    };
    assert!(version.status.success());
    for daemon in DAEMONS {
        let unit = unit(daemon);
        let claimed: f32 = unit
            .lines()
            .next()
            .and_then(|head| head.split_once("252: ")?.1.split_once(' '))
            .unwrap_or_else(|| panic!("{daemon} has no score at its head"))
            .0
            .parse()
            .unwrap();
        let path = deploy(&format!("systemd/{daemon}.service"));
        let result = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(path)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&result.stdout).into_owned();
        let line = output.lines().find(|line| line.contains("Overall exposure level"));
        let Some(score) = line.and_then(|line| line.rsplit_once(": ")?.1.split_whitespace().next()) else {
            // Versions before 250 cannot look at a file.
            muster_test_skip::skipped("this systemd-analyze cannot look at a file");
            return;
        };
        let score: f32 = score.parse().unwrap();
        // Other versions weigh a little otherwise.
        assert!(
            score <= claimed + 0.15,
            "{daemon} scores {score}, its head says {claimed}"
        );
    }
}
