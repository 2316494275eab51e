//! The servers that the tests talk to, from Debian's packages. They are unpacked below `target/tools`: nothing is
//! installed, so nothing is started or enabled, and no root is needed where the package lists are there.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::shell;

/// A program that the tests run, and the Debian package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const TOOLS: [Tool; 1] = [Tool {
    program: "nats-server",
    package: "nats-server",
}];

/// Where packages are unpacked.
pub(crate) fn directory() -> PathBuf {
    shell::target().join("tools")
}

/// Unpacks the packages of the tools that are not there. Without apt, or without a way to the packages, says in one
/// line what to install.
pub(crate) fn fetch_missing() -> Result<()> {
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| shell::find_program(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let packages = packages.join(" ");
    fetch(&missing).with_context(|| format!("the tests need these Debian packages, please install them: {packages}"))
}

fn fetch(missing: &[&Tool]) -> Result<()> {
    let downloads = directory().join("packages");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    for tool in missing {
        if download(tool, &downloads).is_err() {
            // The package lists are missing or old. Only root may renew them.
            shell::run(Command::new("apt-get").args(["-qq", "update"]))?;
            download(tool, &downloads)?;
        }
        let archive = fs::read_dir(&downloads)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.extension().is_some_and(|extension| extension == "deb")
                    && path
                        .file_name()
                        .is_some_and(|name| name.to_string_lossy().starts_with(tool.package))
            })
            .with_context(|| format!("apt-get download {} left no package", tool.package))?;
        shell::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(directory()))?;
        if shell::find_program(tool.program).is_none() {
            bail!("package {} has no program {}", tool.package, tool.program);
        }
    }
    Ok(())
}

fn download(tool: &Tool, folder: &PathBuf) -> Result<()> {
    // As root apt would download as the user _apt, who cannot write below target/.
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", tool.package])
        .current_dir(folder);
    shell::run(&mut command)
}
