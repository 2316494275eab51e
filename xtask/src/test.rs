//! `cargo xtask test`: what continuous integration runs, in the order in which one wants to hear bad news.

use std::{
    env,
    ffi::OsString,
    fs,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{shell, tools, tree};

/// run every check and test, fetching what they need
#[derive(Args)]
pub(crate) struct Test {
    /// run only these steps: tree, fmt, clippy, man, test, newer-nats, doc, demo
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<String>,
}

/// Gives what of it was skipped, and why.
type Step = (&'static str, fn() -> Result<Vec<String>>);

const STEPS: [Step; 8] = [
    ("tree", tree),
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
        let (mut took, mut skipped) = (Vec::new(), Vec::new());
        for (name, step) in STEPS {
            if !self.only.is_empty() && !self.only.iter().any(|only| only == name) {
                continue;
            }
            let start = Instant::now();
            skipped.extend(step()?);
            took.push((name, start.elapsed()));
        }
        for (name, elapsed) in took {
            println!("{name:10} {:>6.1} s", elapsed.as_secs_f64());
        }
        println!("skipped: {}", skipped.len());
        for what in &skipped {
            println!("  {what}");
        }
        match skipped.len() {
            0 => println!("all checks and tests passed"),
            _ => println!("all checks and tests that can run here passed"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn tree() -> Result<Vec<String>> {
    tree::check()?;
    Ok(vec![])
}

fn fmt() -> Result<Vec<String>> {
    shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))?;
    Ok(vec![])
}

fn clippy() -> Result<Vec<String>> {
    shell::run(&mut shell::cargo(&[
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    Ok(vec![])
}

fn man() -> Result<Vec<String>> {
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
    ]))?;
    Ok(vec![])
}

fn test() -> Result<Vec<String>> {
    tools::fetch_missing()?;
    // The stories run the real daemons: build them first, whatever the test runner builds by itself.
    shell::run(&mut shell::cargo(&[
        "build",
        "--quiet",
        "--locked",
        "--workspace",
        "--bins",
    ]))?;
    // Whoever reads the output of a run somewhere else wants to know all that failed there.
    let mut command = shell::cargo(&["test", "--quiet", "--locked", "--workspace", "--no-fail-fast"]);
    command.env("PATH", path()?);
    run_tests(&mut command)
}

/// Everything that talks to a nats-server, against a newer one than Debian's where one was fetched: nothing is downloaded
/// here.
fn newer_nats() -> Result<Vec<String>> {
    let Some(program) = tools::newer_nats() else {
        let why = "newer-nats: `cargo xtask tools --newer-nats` fetches that server";
        return Ok(vec![why.to_owned()]);
    };
    let mut skipped = Vec::new();
    let mut own = vec!["--package".to_owned(), "muster-natsd".to_owned()];
    own.extend(["--test".to_owned(), "daemon".to_owned()]);
    let mut stories = vec!["--package".to_owned(), "muster-tests".to_owned()];
    for story in stories_with_nats()? {
        stories.extend(["--test".to_owned(), story]);
    }
    for tests in [own, stories] {
        let mut command = shell::cargo(&["test", "--quiet", "--locked", "--no-fail-fast"]);
        command
            .args(tests)
            .env("PATH", path()?)
            .env("MUSTER_TEST_NATS_SERVER", &program);
        skipped.extend(run_tests(&mut command)?);
    }
    Ok(skipped)
}

/// The stories that start a nats-server.
fn stories_with_nats() -> Result<Vec<String>> {
    let mut stories = Vec::new();
    for entry in fs::read_dir(shell::root().join("tests/tests"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "rs") && fs::read_to_string(&path)?.contains("Nats::") {
            let name = path.file_stem().context("a file of tests has a name")?;
            stories.push(name.to_string_lossy().into_owned());
        }
    }
    stories.sort();
    Ok(stories)
}

/// The `PATH`, and where the servers are that were fetched.
pub(crate) fn path() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([
        "/usr/sbin".into(),
        tools::directory().join("usr/sbin"),
        tools::directory().join("usr/bin"),
    ]);
    Ok(env::join_paths(folders)?)
}

/// Runs tests, and gives what they say that they have skipped.
pub(crate) fn run_tests(command: &mut Command) -> Result<Vec<String>> {
    let mut skipped = shell::run_for_lines(command, muster_test_skip::PREFIX)?;
    skipped.sort();
    Ok(skipped)
}

fn doc() -> Result<Vec<String>> {
    let mut command = shell::cargo(&["doc", "--quiet", "--locked", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "--deny warnings");
    shell::run(&mut command)?;
    Ok(vec![])
}

fn demo() -> Result<Vec<String>> {
    shell::run(&mut shell::cargo(&[
        "run",
        "--quiet",
        "--locked",
        "--package",
        "xtask",
        "--",
        "demo",
        "--once",
    ]))?;
    Ok(vec![])
}
