//! Checks on the source tree that no compiler makes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Fails on what must not be in the tree.
pub(crate) fn check() -> Result<()> {
    proto_has_no_runtime()?;
    every_member_takes_the_lints()?;
    every_threat_is_tried()
}

/// `proto` is the crate that is fuzzed and read first: no runtime, no I/O.
fn proto_has_no_runtime() -> Result<()> {
    let tree = shell::output(&mut shell::cargo(&[
        "tree",
        "--locked",
        "--package",
        "muster-proto",
        "--edges",
        "normal",
        "--prefix",
        "none",
    ]))?;
    for banned in ["tokio", "nix", "mio", "socket2", "rusqlite", "async-nats"] {
        if tree.lines().any(|line| line.split(' ').next() == Some(banned)) {
            bail!("muster-proto depends on {banned}: byte formats must not know a runtime; see docs/ARCHITECTURE.md");
        }
    }
    let ring = shell::output(&mut shell::cargo(&[
        "tree",
        "--locked",
        "--workspace",
        "--target",
        "all",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
    ]))?;
    if ring.lines().any(|line| line.starts_with("ring v")) {
        bail!("a dependency builds ring: aws-lc-rs is the one TLS provider; find it with cargo tree --invert ring");
    }
    Ok(())
}

fn every_member_takes_the_lints() -> Result<()> {
    let root = shell::root();
    let mut manifests = vec![root.join("tests/Cargo.toml"), root.join("xtask/Cargo.toml")];
    for entry in fs::read_dir(root.join("crates")).context("cannot list crates/")? {
        manifests.push(entry?.path().join("Cargo.toml"));
    }
    for manifest in manifests {
        let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        if !text.contains("[lints]\nworkspace = true") {
            bail!("{}: add `[lints]` with `workspace = true`", manifest.display());
        }
    }
    Ok(())
}

/// `docs/threat-model.md` says of each attempt what tries it: tests, files of tests, and fuzz targets that there must be.
fn every_threat_is_tried() -> Result<()> {
    let root = shell::root();
    let page = root.join("docs/threat-model.md");
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let mut files = Vec::new();
    for folder in ["crates", "tests"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    let mut known = BTreeSet::new();
    for file in &files {
        tests_of(&fs::read_to_string(file)?, &mut known);
    }
    let mut is_in_table = false;
    for line in text.lines() {
        let Some(row) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            is_in_table = false;
            continue;
        };
        let (attempt, rest) = row.split_once(" | ").unwrap_or((row, ""));
        let tried = rest.rsplit(" | ").next().unwrap_or_default();
        if attempt == "attempt" {
            is_in_table = true;
            continue;
        }
        if !is_in_table || attempt.starts_with("---") {
            continue;
        }
        let mut names = tried.split('`').skip(1).step_by(2).peekable();
        if names.peek().is_none() {
            bail!("docs/threat-model.md: nothing tries \"{attempt}\"");
        }
        for name in names {
            let is_file = Path::new(name).extension().is_some_and(|extension| extension == "rs");
            let is_target = root.join("fuzz/fuzz_targets").join(name).with_extension("rs").is_file();
            if !(is_file && files.iter().any(|file| file.ends_with(name)) || is_target || known.contains(name)) {
                bail!("docs/threat-model.md: there is no test, file of tests or fuzz target `{name}`");
            }
        }
    }
    Ok(())
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The names of the functions that stand below an attribute of a test.
fn tests_of(text: &str, known: &mut BTreeSet<String>) {
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[") {
            is_test |= line.contains("test]") || line.contains("test(");
        } else if let Some((_, rest)) = line.split_once("fn ") {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            if is_test {
                known.insert(name.to_owned());
            }
            is_test = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_run_as_a_test_counts_as_one() {
        let mut known = BTreeSet::new();
        let text = "fn helper() {}\n#[test]\nfn one() {}\n    #[tokio::test]\n    async fn two() {}\nfn three() {}\n";
        tests_of(text, &mut known);
        assert_eq!(known.into_iter().collect::<Vec<_>>(), ["one", "two"]);
    }
}
