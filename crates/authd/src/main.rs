//! `muster-authd`, the enrollment daemon.

use std::process::ExitCode;

use clap::Parser;
use muster_authd::Cli;
use muster_service::exit;

fn main() -> ExitCode {
    exit::report("muster-authd", muster_authd::start(&Cli::parse()))
}
