//! `muster-swarm`: see the library for what it does.

use std::process::ExitCode;

use clap::Parser as _;
use muster_swarm::{cli::Cli, run};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("muster-swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
