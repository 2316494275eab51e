//! `muster-authd`, the enrollment daemon.

use std::process::ExitCode;

use clap::Parser;
use muster_authd::{Cli, cli};
use muster_service::exit;

fn main() -> ExitCode {
    exit::report(
        "muster-authd",
        muster_authd::start(&Cli::parse_from(cli::arguments(std::env::args_os()))),
    )
}
