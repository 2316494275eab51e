//! `cargo xtask boot`: an installation in a Debian of its own, booted, with the units under a real systemd.
//!
//! What the ordinary tests cannot show: that the units' walls let the daemons do their work, and that systemd and
//! `muster-control` agree. It needs root, `debootstrap` and `systemd-nspawn`, and some minutes the first time.

use std::{fs, io::ErrorKind, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{install, shell};

/// What is tried inside.
const TRY: &str = include_str!("boot/try.sh");

/// Runs it once the system is up, and then switches that off, whatever happened.
const UNIT: &str = "[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/sh /try.sh
StandardOutput=file:/try.out
StandardError=inherit
TimeoutStartSec=400
";

/// boot an installation under systemd-nspawn and try its units
#[derive(Args)]
pub(crate) struct Boot {
    /// make the system anew, instead of using that of the last time
    #[arg(long)]
    fresh: bool,
}

impl Boot {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        for program in ["debootstrap", "systemd-nspawn"] {
            ensure!(
                shell::find_program(program).is_some(),
                "there is no {program}: apt-get install debootstrap systemd-container"
            );
        }
        let root = shell::target().join("boot");
        if self.fresh {
            remove(&root)?;
        }
        if !root.join("usr/bin/systemctl").exists() {
            let mut make = std::process::Command::new("debootstrap");
            make.args(["--variant=minbase", "--include=systemd,systemd-sysv,dbus", "bookworm"]);
            shell::run(make.arg(&root))?;
        }
        // As if nothing had been installed before.
        for left in [
            "etc/muster",
            "var/lib/muster",
            "var/log/journal",
            "var/log/muster",
            "var/log/journal",
            "try.out",
        ] {
            remove(&root.join(left))?;
        }
        install::programs_and_units(&root, "debug")?;
        // Without a broker there is less to try.
        if let Some(broker) = shell::find_program("nats-server") {
            fs::copy(broker, root.join("usr/local/bin/nats-server"))?;
        }
        fs::write(root.join("try.sh"), TRY)?;
        // Without one it would be a first boot, which enables every unit before the users are made.
        fs::write(root.join("etc/machine-id"), "6d757374657200000000000000000001\n")?;
        let units = root.join("etc/systemd/system");
        let wanted = units.join("multi-user.target.wants");
        fs::create_dir_all(&wanted)?;
        fs::write(units.join("try.service"), UNIT)?;
        remove(&wanted.join("try.service"))?;
        std::os::unix::fs::symlink("../try.service", wanted.join("try.service"))?;
        let mut boot = std::process::Command::new("systemd-nspawn");
        boot.args(["--quiet", "--register=no", "--keep-unit", "--boot", "--directory"])
            .arg(&root);
        // How it ends says nothing: the system switches itself off.
        let _ = shell::output(&mut boot);
        let said = fs::read_to_string(root.join("try.out")).context("the system did not come up")?;
        print!("{said}");
        let claims = said.lines().filter(|line| line.starts_with("ok: ")).count();
        if claims == 0 || said.contains("FAILED: ") || !said.contains("--- what the journal") {
            bail!("the units do not work as they should, see above");
        }
        println!("{claims} claims hold");
        Ok(ExitCode::SUCCESS)
    }
}

fn remove(path: &Path) -> Result<()> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_directory {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
