//! Running other programs: print the command, run it, fail with its name.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Cargo, in the workspace's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command to its end; a failure names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Runs a command to its end, and gives what follows `prefix` in lines of its standard error.
/// All of them are shown as they come.
pub(crate) fn run_for_lines(command: &mut Command, prefix: &str) -> Result<Vec<String>> {
    let line = describe(command);
    eprintln!("$ {line}");
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {line}"))?;
    let mut found = Vec::new();
    let mut told = BufReader::new(child.stderr.take().context("its standard error is a pipe")?);
    let mut bytes = Vec::new();
    while told.read_until(b'\n', &mut bytes)? > 0 {
        io::stderr().write_all(&bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        // What a test runner prints meanwhile may stand before it on the line.
        if let Some(at) = text.find(prefix) {
            found.push(text[at + prefix.len()..].trim_end().to_owned());
        }
        bytes.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(found)
}

/// Runs a command to its end and gives its standard output; a failure names it and shows what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.output().with_context(|| format!("cannot run {line}"))?;
    if !output.status.success() {
        bail!(
            "{line}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{line}: its output is not UTF-8"))
}

/// The first of these that is a program: `name` in the `PATH`, where Debian puts servers, and the same places below
/// `target/tools`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/local/bin")])
        .chain(places_below(Path::new("/")))
        .chain(places_below(&crate::tools::directory()))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Where Debian puts programs; each version of PostgreSQL has a place of its own.
fn places_below(root: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(root.join("usr/lib/postgresql")).into_iter().flatten();
    let versions = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    [root.join("usr/sbin"), root.join("usr/bin")]
        .into_iter()
        .chain(versions)
        .collect()
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let mut line = name.to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
