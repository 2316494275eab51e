//! `cargo xtask story`: natsd, its server, its network, its rights and its disk fail again and again, for as long as one
//! likes.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{shell, test, tools};

/// let natsd and all that it needs fail for some minutes, and show what the verifier found
#[derive(Args)]
pub(crate) struct Story {
    /// how long there is trouble; the first stalls of the server and of natsd last a minute each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// the nats-server to run it against, if not the one that is installed
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
}

impl Story {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        tools::fetch_missing()?;
        let mut command = shell::cargo(&["test", "--quiet", "--locked", "--package", "muster-natsd"]);
        command
            .args(["--test", "daemon", "--", "story", "--nocapture"])
            .env("PATH", test::path()?)
            .env("MUSTER_STORY_MINUTES", self.minutes.to_string());
        if let Some(server) = &self.server {
            command.env("MUSTER_TEST_NATS_SERVER", server.canonicalize()?);
        }
        let skipped = test::run_tests(&mut command)?;
        if skipped.is_empty() {
            println!("nothing was skipped");
        }
        Ok(ExitCode::SUCCESS)
    }
}
