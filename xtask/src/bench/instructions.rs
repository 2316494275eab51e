//! `cargo xtask bench instructions`: how many instructions each step of the hot path takes, held against what it took
//! before. Unlike a time, that is the same on a busy machine, so it can fail: a step that has become dearer is named.
//!
//! Counted by valgrind's cachegrind. Each step is run a few times and many times; the difference is the step. The figures
//! depend on compiler and libraries, and a little on the processor: `--accept` writes new ones.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{shell, tools};

/// More than before by so much is worse.
const TOLERANCE: f64 = 0.05;
/// Where the figures are that count.
const FIGURES: &str = "xtask/instructions.json";
/// What costs so little once is done so often; what costs more, less often.
const FEW: u64 = 2;
const MANY: u64 = 202;
/// A key file of ten thousand lines is read so often.
const MANY_RELOADS: u64 = 4;

/// Counts, and fails when a step takes more than before, unless the new figures are to be accepted.
pub(crate) fn run(accept: bool) -> Result<()> {
    let program = super::built_bench("instructions")?;
    let valgrind = Valgrind::find()?;
    let path = shell::root().join(FIGURES);
    let before: BTreeMap<String, u64> = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{FIGURES} is not JSON"))?,
        Err(_) => BTreeMap::new(),
    };
    let mut counted = BTreeMap::new();
    let mut worse = Vec::new();
    println!("| step | before | now | |\n| --- | --- | --- | --- |");
    for step in shell::output(&mut Command::new(&program))?.lines() {
        let now = valgrind.count(&program, step)?;
        let verdict = match before.get(step) {
            None => "new".to_owned(),
            Some(before) => {
                let change = as_f64(now) / as_f64(*before) - 1.0;
                if change > TOLERANCE {
                    worse.push(format!(
                        "{step}: {now} instructions, {:.1} % more than {before}",
                        change * 100.0
                    ));
                }
                format!("{:+.1} %", change * 100.0)
            }
        };
        let known = before.get(step).map_or_else(String::new, u64::to_string);
        println!("| {step} | {known} | {now} | {verdict} |");
        counted.insert(step.to_owned(), now);
    }
    if accept {
        std::fs::write(&path, format!("{:#}\n", serde_json::to_value(&counted)?))
            .with_context(|| format!("cannot write {FIGURES}"))?;
        return Ok(());
    }
    if !worse.is_empty() {
        bail!(
            "the hot path takes more instructions than before; if that is worth it, accept it with --accept:\n  {}",
            worse.join("\n  ")
        );
    }
    Ok(())
}

/// The program that counts.
struct Valgrind {
    program: PathBuf,
}

impl Valgrind {
    fn find() -> Result<Self> {
        tools::fetch_valgrind()?;
        let program = shell::find_program("valgrind").context("valgrind is not there")?;
        Ok(Self { program })
    }

    /// Instructions of a step.
    fn count(&self, program: &PathBuf, step: &str) -> Result<u64> {
        let many = if step.starts_with("reload") { MANY_RELOADS } else { MANY };
        let (first, last) = (self.total(program, step, FEW)?, self.total(program, step, many)?);
        Ok(last.saturating_sub(first) / (many - FEW))
    }

    fn total(&self, program: &PathBuf, step: &str, times: u64) -> Result<u64> {
        let mut command = Command::new(&self.program);
        if self.program.starts_with(tools::directory()) {
            command.env("VALGRIND_LIB", tools::directory().join("usr/libexec/valgrind"));
        }
        command
            .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
            .arg(program)
            .args([step, &times.to_string()]);
        let output = command.output().context("cannot run valgrind")?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("valgrind failed at {step}: {}", said.trim_end());
        }
        let line = said
            .lines()
            .find(|line| line.contains("refs:"))
            .context("valgrind counts nothing")?;
        let digits: String = line
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(char::is_ascii_digit)
            .collect();
        digits
            .parse()
            .with_context(|| format!("no number of instructions: {line}"))
    }
}

fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
