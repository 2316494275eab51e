//! `cargo xtask test`: what continuous integration runs, in the order in which one wants to hear bad news.

use std::{env, process::ExitCode, time::Instant};

use anyhow::Result;
use clap::Args;

use crate::{shell, tools, tree};

/// run every check and test, fetching what they need
#[derive(Args)]
pub(crate) struct Test {
    /// run only these steps: tree, fmt, clippy, man, test, newer-nats, doc, demo
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<String>,
}

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 8] = [
    ("tree", tree::check),
    ("fmt", fmt),
    ("clippy", clippy),
    ("man", man),
    ("test", test),
    ("newer-nats", newer_nats),
    ("doc", doc),
    ("demo", demo),
];

impl Test {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let mut took = Vec::new();
        for (name, step) in STEPS {
            if !self.only.is_empty() && !self.only.iter().any(|only| only == name) {
                continue;
            }
            let start = Instant::now();
            step()?;
            took.push((name, start.elapsed()));
        }
        for (name, elapsed) in took {
            println!("{name:10} {:>6.1} s", elapsed.as_secs_f64());
        }
        println!("all checks and tests passed");
        Ok(ExitCode::SUCCESS)
    }
}

fn fmt() -> Result<()> {
    shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    shell::run(&mut shell::cargo(&[
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}

fn man() -> Result<()> {
    shell::run(&mut shell::cargo(&[
        "run",
        "--quiet",
        "--locked",
        "--package",
        "xtask",
        "--features",
        "programs",
        "--",
        "man",
        "--check",
    ]))
}

fn test() -> Result<()> {
    tools::fetch_missing()?;
    // The stories run the real daemons: build them first, whatever the test runner builds by itself.
    shell::run(&mut shell::cargo(&[
        "build",
        "--quiet",
        "--locked",
        "--workspace",
        "--bins",
    ]))?;
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([
        "/usr/sbin".into(),
        tools::directory().join("usr/sbin"),
        tools::directory().join("usr/bin"),
    ]);
    // Whoever reads the output of a run somewhere else wants to know all that failed there.
    let mut command = shell::cargo(&["test", "--quiet", "--locked", "--workspace", "--no-fail-fast"]);
    command.env("PATH", env::join_paths(folders)?);
    shell::run(&mut command)
}

/// What differs between servers, and natsd's story, against a newer nats-server than Debian's where one was fetched:
/// nothing is downloaded here.
fn newer_nats() -> Result<()> {
    let Some(program) = tools::newer_nats() else {
        eprintln!("no newer nats-server: `cargo xtask tools --newer-nats` fetches one");
        return Ok(());
    };
    let mut command = shell::cargo(&[
        "test",
        "--quiet",
        "--locked",
        "--package",
        "muster-natsd",
        "--test",
        "daemon",
    ]);
    command
        .args(["--", "story", "permissions", "accounts", "names", "probe"])
        .env("MUSTER_TEST_NATS_SERVER", program);
    shell::run(&mut command)
}

fn doc() -> Result<()> {
    let mut command = shell::cargo(&["doc", "--quiet", "--locked", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "--deny warnings");
    shell::run(&mut command)
}

fn demo() -> Result<()> {
    shell::run(&mut shell::cargo(&[
        "run",
        "--quiet",
        "--locked",
        "--package",
        "xtask",
        "--",
        "demo",
        "--once",
    ]))
}
