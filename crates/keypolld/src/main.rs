//! `muster-keypolld`: see [`muster_keypolld`].

use std::process::ExitCode;

use clap::Parser;
use muster_keypolld::{cli::Cli, daemon, process::descriptors};
use muster_proto::paths;
use muster_service::{Startup, exit};

fn main() -> ExitCode {
    descriptors::close_inherited();
    exit::report("muster-keypolld", start(&Cli::parse()))
}

fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
    let mut startup = Startup::begin("keypolld", &cli.common)?;
    let request = daemon::key_request(&startup.settings)?;
    daemon::own_files(&startup)?;
    let control = startup.control_socket()?;
    let intake = startup.datagram_socket("krequest", paths::KEY_REQUEST_SOCKET)?;
    startup.drop_privileges(daemon::file_access(&request))?;
    let home = startup.home.clone();
    startup.run(async move |running| daemon::start(running, &home, &request, control, intake))
}
