//! `cargo xtask fuzz`: looks for inputs that break a decoder or one of the cores, and gives account of how hard it looked.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{ExitCode, Stdio},
};

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
        let wanted = known
            .iter()
            .filter(|target| self.targets.is_empty() || self.targets.contains(target));
        let mut runs = Vec::new();
        for target in wanted {
            runs.push((target, self.run_target(target)?));
        }
        println!(
            "{:<20} {:>12} {:>8} {:>8} {:>8}",
            "target", "executions", "cov", "ft", "CPU s"
        );
        for (target, run) in &runs {
            let found = if run.is_clean { "" } else { "  found something" };
            println!(
                "{target:<20} {:>12} {:>8} {:>8} {:>8}{found}",
                run.executions,
                run.coverage,
                run.features,
                run.cpu_ms / 1000
            );
        }
        Ok(if runs.iter().all(|(_, run)| run.is_clean) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn run_target(&self, target: &str) -> Result<Run> {
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
            .env("RUSTC_BOOTSTRAP", "1")
            .stderr(Stdio::piped());
        let before = children_ms()?;
        let mut child = command.spawn().context("cannot run cargo fuzz")?;
        let mut run = Run::default();
        let said = child.stderr.take().context("cargo fuzz says nothing")?;
        for line in BufReader::new(said).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            eprintln!("{line}");
            run.hear(&line);
        }
        run.is_clean = child.wait()?.success();
        run.cpu_ms = children_ms()?.saturating_sub(before);
        Ok(run)
    }
}

/// How hard a target was tried.
#[derive(Default)]
struct Run {
    executions: u64,
    /// Edges of the program that were reached, as libFuzzer counts them.
    coverage: u64,
    /// Edges together with how often they were passed.
    features: u64,
    cpu_ms: u64,
    is_clean: bool,
}

impl Run {
    /// A line of libFuzzer: `#2 INITED cov: 11 ft: 12 corp: ..` or `stat::number_of_executed_units: 7`.
    fn hear(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        while let Some(word) = words.next() {
            let place = match word {
                "cov:" => &mut self.coverage,
                "ft:" => &mut self.features,
                "stat::number_of_executed_units:" => &mut self.executions,
                _ => continue,
            };
            if let Some(number) = words.next().and_then(|word| word.parse().ok()) {
                *place = number;
            }
        }
    }
}

/// Processor time of all children that have ended, and of theirs, in milliseconds.
fn children_ms() -> Result<u64> {
    const MS_OF_A_TICK: u64 = 10;
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    // The name may have anything in it; the times of children are the 14th and 15th behind it.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let times = behind.split_ascii_whitespace().skip(13).take(2);
    Ok(times.filter_map(|time| time.parse::<u64>().ok()).sum::<u64>() * MS_OF_A_TICK)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_is_read_from_what_the_fuzzer_says() {
        let mut run = Run::default();
        run.hear("INFO: seed corpus: files: 60");
        run.hear("#2\tINITED cov: 11 ft: 12 corp: 1/1b exec/s: 0 rss: 33Mb");
        run.hear("#99\tNEW    cov: 13 ft: 17 corp: 2/3b lim: 4 exec/s: 0");
        run.hear("stat::number_of_executed_units: 5000");
        assert_eq!((run.executions, run.coverage, run.features), (5000, 13, 17));
    }

    #[test]
    fn time_of_children_is_counted() {
        let before = children_ms().expect("Linux");
        let busy = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"])
            .status()
            .expect("a shell");
        assert!(busy.success() && children_ms().expect("Linux") > before);
    }
}
