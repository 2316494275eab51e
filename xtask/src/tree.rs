//! Checks on the source tree that no compiler makes.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Fails on what must not be in the tree.
pub(crate) fn check() -> Result<()> {
    proto_has_no_runtime()?;
    every_member_takes_the_lints()
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
