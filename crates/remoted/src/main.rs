//! `muster-remoted`: see [`muster_remoted`].

use std::process::ExitCode;

use clap::Parser;
use muster_proto::paths;
use muster_remoted::{agent_info, cli::Cli, daemon, daemon::Ports, local::LocalSockets, options};
use muster_service::{FileAccess, Startup, exit};

fn main() -> ExitCode {
    exit::report("muster-remoted", start(&Cli::parse()))
}

fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
    let mut startup = Startup::begin_checked("remoted", &cli.common, options::check)?;
    startup.settings.internal.remoted.merge_shared &= !cli.no_merging;
    // Whoever asks for our configuration is told how much we say in fact.
    let debug = &mut startup.settings.internal.debug.remoted;
    *debug = (*debug).max(cli.common.debug);
    let local = LocalSockets::bind(&mut startup)?;
    let ports = Ports::bind(&startup.settings, cli.workers())?;
    daemon::own_files(&startup)?;
    let own = [
        paths::RIDS,
        "queue/db",
        "queue/ossec",
        "queue/alerts",
        agent_info::DIRECTORY,
        paths::SHARED,
        paths::MULTIGROUPS,
    ];
    startup.drop_privileges(FileAccess::new().write(own))?;
    startup.run(async move |running| daemon::start(running, local, ports).await)
}
