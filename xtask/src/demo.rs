//! `cargo xtask demo`: a whole manager, a fleet, and what one sees of it.
//!
//! Everything goes through what users have: `muster-control` starts the daemons and lists the agents,
//! `muster-swarm` is the fleet, and the events are read back from NATS, or from natsd where no server is installed.

mod fleet;
mod manager;
mod story;
mod view;

use std::{
    env, fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};

use crate::{nats, shell};
use fleet::Fleet;
use manager::Manager;
use story::Story;

/// run a whole manager with a fleet on this machine, and watch it
#[derive(Args)]
pub(crate) struct Demo {
    /// play the whole story once, check what was seen, and exit with 0 or 1
    #[arg(long)]
    once: bool,
    /// how many agents the fleet has
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(11..=2000))]
    agents: u32,
    /// do not use a nats-server even if one is installed
    #[arg(long)]
    no_nats: bool,
}

/// How many agents fall silent in the story.
const KILLED: usize = 10;

impl Demo {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let binaries = build()?;
        let stop = stop_on_signal();
        let home = Home::create()?;
        let nats = if self.no_nats {
            None
        } else {
            nats::Server::start(&home.path.join("nats-server"))?
        };
        match &nats {
            Some(server) => println!("events go to nats-server at {}", server.url()),
            None => println!("no nats-server: events are read from natsd's own spool"),
        }
        let manager = Manager::start(&binaries, &home.path.join("home"), nats.as_ref())?;
        let events = manager.events(nats.as_ref())?;
        let fleet = Fleet::start(&binaries, &manager, self.agents)?;
        let mut story = Story::new(manager, fleet, events, self.agents as usize, stop);
        if self.once {
            return Ok(if story.play_once()? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        story.play_for_ever()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn build() -> Result<PathBuf> {
    let mut build = shell::cargo(&["build", "--quiet", "--locked"]);
    for package in [
        "muster-authd",
        "muster-remoted",
        "muster-natsd",
        "muster-control",
        "muster-swarm",
    ] {
        build.args(["--package", package]);
    }
    shell::run(&mut build)?;
    Ok(shell::target().join("debug"))
}

/// A flag that Ctrl-C and SIGTERM raise. The signals are blocked in this process, so that everything that was
/// started is ended in order.
fn stop_on_signal() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    if signals.thread_block().is_ok() {
        let raised = Arc::clone(&flag);
        let main = thread::current();
        thread::spawn(move || {
            while signals.wait().is_ok() {
                raised.store(true, Ordering::Relaxed);
                main.unpark();
            }
        });
    }
    flag
}

/// A private directory that goes when the demo ends.
struct Home {
    path: PathBuf,
}

impl Home {
    fn create() -> Result<Self> {
        let path = env::temp_dir().join(format!("muster-demo-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
