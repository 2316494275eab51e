//! `cargo xtask install`: a release build, put where a Debian package would put it.
//!
//! Nothing is started and no user is made: what is left to do is printed. Run again, it replaces programs, units and
//! pages, and touches no configuration.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{manual, shell};

/// The programs of an installation.
const PROGRAMS: [&str; 6] = [
    "muster-authd",
    "muster-control",
    "muster-keypolld",
    "muster-natsd",
    "muster-remoted",
    "muster-swarm",
];

/// Whole folders: from the tree, to below the prefix.
const FOLDERS: [(&str, &str); 6] = [
    ("deploy/systemd", "lib/systemd/system"),
    ("deploy/sysusers.d", "lib/sysusers.d"),
    ("deploy/tmpfiles.d", "lib/tmpfiles.d"),
    ("deploy/nats", "share/muster/nats"),
    ("etc", "share/muster"),
    ("docs", "share/doc/muster"),
];

/// Single files of the tree's root.
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
];

/// Completions, as they are made, and the folder and name that each shell looks for.
const SHELLS: [(&str, &str, &str); 3] = [
    ("{}.bash", "share/bash-completion/completions", "{}"),
    ("_{}", "share/zsh/vendor-completions", "_{}"),
    ("{}.fish", "share/fish/vendor_completions.d", "{}.fish"),
];

/// build a release and install it
#[derive(Args)]
pub(crate) struct Install {
    /// put everything below this folder, as if it were the root of the machine's files
    #[arg(long, value_name = "DIR", default_value = "/")]
    destdir: PathBuf,
    /// install what is in target/release already
    #[arg(long)]
    no_build: bool,
}

impl Install {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        if !self.no_build {
            build("release")?;
        }
        let prefix = self.destdir.join("usr");
        place_programs_and_folders(&prefix, "release")?;
        for name in DOCUMENTS {
            place(
                &shell::root().join(name),
                &prefix.join("share/doc/muster").join(name),
                0o644,
            )?;
        }
        place_pages(&prefix)?;
        manual::completions()?;
        for program in PROGRAMS {
            for (made, folder, name) in SHELLS {
                let made = shell::target().join("completions").join(made.replace("{}", program));
                place(&made, &prefix.join(folder).join(name.replace("{}", program)), 0o644)?;
            }
        }
        println!(
            "installed below {}; what is left to do there, as root:",
            self.destdir.display()
        );
        println!("  systemd-sysusers muster.conf && systemd-tmpfiles --create muster.conf");
        println!("  muster-control --home /var/lib/muster init --bind 0.0.0.0");
        println!("  systemctl daemon-reload");
        println!("  systemctl enable --now muster-authd muster-remoted muster-natsd muster.target");
        Ok(ExitCode::SUCCESS)
    }
}

/// What a manager needs to run, built with a profile of cargo's.
pub(crate) fn programs_and_units(destdir: &Path, profile: &str) -> Result<()> {
    build(profile)?;
    place_programs_and_folders(&destdir.join("usr"), profile)
}

/// What the programs say that they were built from; nothing outside a checkout.
fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned())
}

fn build(profile: &str) -> Result<()> {
    let mut build = shell::cargo(&["build", "--locked", "--bins"]);
    if profile == "release" {
        build.arg("--release");
    }
    for program in PROGRAMS {
        build.args(["--package", program]);
    }
    if let Some(commit) = commit() {
        build.env("MUSTER_COMMIT", commit);
    }
    shell::run(&mut build)
}

fn place_programs_and_folders(prefix: &Path, profile: &str) -> Result<()> {
    for program in PROGRAMS {
        let built = shell::target().join(profile).join(program);
        place(&built, &prefix.join("bin").join(program), 0o755)?;
    }
    for (from, to) in FOLDERS {
        place_folder(&shell::root().join(from), &prefix.join(to))?;
    }
    Ok(())
}

fn place_pages(prefix: &Path) -> Result<()> {
    let folder = shell::root().join("man");
    for page in files(&folder)? {
        let section = page.extension().map(|section| section.to_string_lossy().into_owned());
        let Some(section) = section else { continue };
        let name = page.file_name().unwrap_or_default();
        place(&page, &prefix.join(format!("share/man/man{section}")).join(name), 0o644)?;
    }
    Ok(())
}

/// All files below a folder; what can be run there can be run here.
fn place_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in entries(from)? {
        let target = to.join(entry.file_name().unwrap_or_default());
        if entry.is_dir() {
            place_folder(&entry, &target)?;
        } else {
            let mode = fs::metadata(&entry)?.permissions().mode();
            place(&entry, &target, if mode & 0o100 == 0 { 0o644 } else { 0o755 })?;
        }
    }
    Ok(())
}

/// Written beside its place and renamed, since a program that runs cannot be overwritten.
fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a file to install has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut beside = to.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    fs::copy(from, &beside).with_context(|| format!("cannot copy {} to {}", from.display(), beside.display()))?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
    fs::rename(&beside, to).with_context(|| format!("cannot install {}", to.display()))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_file()).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    read.map(|entry| Ok(entry?.path())).collect()
}
