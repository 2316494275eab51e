//! `muster-control`: start, stop, look into and configure a Muster manager.
//!
//! A library, so that the man page and the completions are made from the same [`command`] that parses. One file per
//! noun or verb; [`cli`] has all the arguments in one place.
//!
//! **It must never** change what a daemon owns behind its back: agents are added and removed by authd, listed by remoted,
//! and a configuration is taken over by the daemon itself.

mod agent;
mod cert;
pub mod cli;
mod config;
mod context;
mod daemons;
mod events;
mod group;
mod init;
mod keypoll;
pub mod maintenance;
pub mod nats;
mod output;
mod reload;
mod spawn;
mod start;
mod status;
mod stop;
mod supervise;
mod unit;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser};
use muster_service::exit;

use crate::{
    cli::{AgentCommand, Cli, Command, ConfigCommand, GroupCommand, KeypollCommand},
    context::Context,
};

/// The whole command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The program.
pub fn main() -> ExitCode {
    // Daemons inherit what is blocked here.
    let unblocked = muster_service::signals::unblock().map_err(anyhow::Error::from);
    exit::report("muster-control", unblocked.and_then(|()| run(Cli::parse())))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting tokio")?;
    // Processes that are still being waited for must not keep us.
    let code = runtime.block_on(carry_out(cli));
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

async fn carry_out(cli: Cli) -> anyhow::Result<u8> {
    let home = cli.home.as_deref();
    // These make a home, or need none.
    match &cli.command {
        Command::Init(arguments) => return init::init(home, arguments),
        Command::Cert(arguments) => return cert::cert(home, arguments),
        Command::Nats(nats::NatsCommand::Request(arguments)) => {
            return nats::request::request(home, cli.output, arguments).await;
        }
        Command::Nats(
            nats::NatsCommand::RequestKey(arguments) | nats::NatsCommand::Key(nats::key::KeyCommand::Trust(arguments)),
        ) => {
            return nats::request::new_key(arguments);
        }
        Command::Nats(nats::NatsCommand::Key(nats::key::KeyCommand::Sign(arguments))) => {
            return nats::key::sign(arguments);
        }
        _ => {}
    }
    let context = Context::open(home, cli.output)?;
    match cli.command {
        Command::Init(_) | Command::Cert(_) => Ok(exit::DONE),
        Command::Start(chosen) => start::start(&context, &chosen).await,
        Command::Stop(chosen) => stop::stop(&context, &chosen).await,
        Command::Restart(chosen) => {
            stop::stop(&context, &chosen).await?;
            start::start(&context, &chosen).await
        }
        Command::Status(chosen) => status::status(&context, &chosen).await,
        Command::Reload(chosen) => reload::reload(&context, &chosen).await,
        Command::Run(chosen) => supervise::run(&context, &chosen).await,
        Command::Agent(AgentCommand::List(arguments)) => agent::list::list(&context, &arguments).await,
        Command::Agent(AgentCommand::Show(arguments)) => agent::list::show(&context, &arguments).await,
        Command::Agent(AgentCommand::Add(arguments)) => agent::change::add(&context, &arguments).await,
        Command::Agent(AgentCommand::Remove(arguments)) => agent::change::remove(&context, &arguments).await,
        Command::Agent(AgentCommand::Restart(targets)) => agent::order::restart(&context, &targets).await,
        Command::Agent(AgentCommand::Reconnect(targets)) => agent::order::reconnect(&context, &targets).await,
        Command::Agent(AgentCommand::ResetCounter(arguments)) => agent::counter::reset(&context, &arguments).await,
        Command::Agent(AgentCommand::Request(arguments)) => agent::order::request(&context, &arguments).await,
        Command::Group(GroupCommand::List) => group::list(&context).await,
        Command::Group(GroupCommand::Create(arguments)) => group::create(&context, &arguments).await,
        Command::Group(GroupCommand::Delete(arguments)) => group::delete(&context, &arguments).await,
        Command::Group(GroupCommand::Files(arguments)) => group::files(&context, &arguments),
        Command::Group(GroupCommand::Assign(arguments)) => group::assign(&context, &arguments).await,
        Command::Keypoll(KeypollCommand::Status) => keypoll::status(&context).await,
        Command::Keypoll(KeypollCommand::Try(arguments)) => keypoll::try_look_up(&context, &arguments).await,
        Command::Events(arguments) => events::events(&context, &arguments).await,
        Command::Maintenance(command) => maintenance::maintenance(&context, &command).await,
        Command::Nats(command) => nats::nats(&context, &command).await,
        Command::Config(ConfigCommand::Check(arguments)) => config::check(&context, &arguments),
        Command::Config(ConfigCommand::Show(arguments)) => config::show(&context, &arguments),
    }
}
