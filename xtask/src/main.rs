//! Build, demo, test and release tasks: `cargo xtask <task>`.
//!
//! One file per task. What a task runs, it prints first, so that it can be repeated by hand.

mod bench;
mod boot;
mod demo;
mod fuzz;
mod install;
mod manual;
mod nats;
mod shell;
mod story;
mod test;
mod tools;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// tasks for people who build Muster
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// run a whole manager with a fleet on this machine, and watch it
    ///
    /// Builds, makes a private home, starts authd, remoted and natsd on free ports of 127.0.0.1 as the current user,
    /// and a simulated fleet; shows the roster and the events, kills ten agents without goodbye, and lets them come
    /// back. Uses a nats-server if one is installed. Ctrl-C leaves nothing behind.
    Demo(demo::Demo),
    /// boot an installation in a Debian of its own, and try the units under a real systemd
    ///
    /// Needs root, debootstrap and systemd-nspawn. The system is kept below target/boot.
    Boot(boot::Boot),
    /// measure a release build, and print the figures beside what we want
    Bench(bench::Bench),
    /// run every check and test, fetching what they need
    Test(test::Test),
    /// let natsd and all that it needs fail for some minutes, and show what the verifier found
    ///
    /// Server and daemon are killed and stalled, for a minute each at first, the connection is cut, a right is taken
    /// away, the disk is full, a stream is deleted: again and again under load. Then the streams must hold every event
    /// once, in order, signed, and no hole that nobody has declared. A small disk to fill up needs root.
    Story(story::Story),
    /// throw made-up input at every decoder and core, with cargo-fuzz
    Fuzz(fuzz::Fuzz),
    /// make the man pages of section 8 from the programs' own command lines and the prose in man/prose
    Man(manual::Man),
    /// make completions for bash, zsh and fish below target/completions
    Completions,
    /// build a release and install it, with units, man pages and completions
    Install(install::Install),
    /// fetch the servers that the tests need from Debian's packages, below target/, without starting them
    Tools(tools::Tools),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Demo(demo) => demo.run(),
        Task::Boot(boot) => boot.run(),
        Task::Bench(bench) => bench.run(),
        Task::Test(test) => test.run(),
        Task::Story(story) => story.run(),
        Task::Fuzz(fuzz) => fuzz.run(),
        Task::Man(man) => man.run(),
        Task::Completions => manual::completions(),
        Task::Install(install) => install.run(),
        Task::Tools(tools) => tools.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
