//! `cargo xtask fuzz`: looks for inputs that break a decoder or one of the cores.

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell;

/// throw made-up input at every decoder and core
#[derive(Args)]
pub(crate) struct Fuzz {
    /// How long each target runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
    /// Only these, as `fuzz/fuzz_targets` names them.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

impl Fuzz {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let known = targets()?;
        if let Some(unknown) = self.targets.iter().find(|target| !known.contains(target)) {
            bail!("there is no target {unknown}; there are {}", known.join(", "));
        }
        if shell::output(&mut shell::cargo(&["fuzz", "--version"])).is_err() {
            bail!("cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`");
        }
        for target in known {
            if self.targets.is_empty() || self.targets.contains(&target) {
                self.run_target(&target)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn run_target(&self, target: &str) -> Result<()> {
        let mut command = shell::cargo(&["fuzz", "run", target, "--"]);
        command
            .arg(format!("-max_total_time={}", self.seconds))
            .args([
                "-max_len=4096",
                "-timeout=20",
                "-rss_limit_mb=1500",
                "-print_final_stats=1",
            ])
            // Instrumentation needs flags that the stable compiler has and does not show.
            .env("RUSTC_BOOTSTRAP", "1");
        shell::run(&mut command)
    }
}

fn targets() -> Result<Vec<String>> {
    let folder = shell::root().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem() {
            targets.push(name.to_string_lossy().into_owned());
        }
    }
    targets.sort_unstable();
    Ok(targets)
}
