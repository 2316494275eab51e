//! `muster-natsd audit-check`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf, absolute},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;
use muster_service::Common;

use super::{FILE, check::Checker};
use crate::{
    keys::KeyFile,
    provision::settings,
    verify::{Policy, command::believing},
};

/// check the audit trail: its chain, and the signatures of its heads
///
/// Without files, all those of this home: logs/natsd-audit.<time>.json in their order, and logs/natsd-audit.json. Ends with 1
/// behind the first line that is wrong, which is printed as FILE:LINE: WHY.
///
/// Without keys, the manager's own are read from its signing key file, and it is an error if that cannot be read. Whoever
/// holds those can sign any trail: an auditor gives the keys, and has the files from elsewhere.
#[derive(Args)]
pub(crate) struct AuditCheck {
    /// files of one trail, in their order
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// the public half of a trust key (U…): only keys for which one of these vouches are believed; may be repeated
    #[arg(long = "trust-key", value_name = "KEY")]
    trust_keys: Vec<String>,

    /// a public key (U…) that is believed, of any manager or only of this one; may be repeated
    ///
    /// Without --trust-key, keys that it introduces in the trail are believed too.
    #[arg(long = "key", value_name = "[NODE=]KEY")]
    keys: Vec<String>,

    /// look at no signatures
    #[arg(long, conflicts_with_all = ["trust_keys", "keys"])]
    unsigned: bool,

    /// the SHA-256 of a line that must be there, from an event on manager.audit: so that a missing end is seen
    #[arg(long, value_name = "SHA256")]
    head: Option<String>,
}

impl AuditCheck {
    pub(crate) fn run(&self, common: &Common) -> anyhow::Result<ExitCode> {
        // Before the home becomes the working directory.
        let mut files = Vec::new();
        for file in &self.files {
            files.push(absolute(file).with_context(|| format!("finding {}", file.display()))?);
        }
        let mut checker = if self.unsigned {
            Checker::without_keys()
        } else {
            Checker::new(&self.policy(common)?)
        };
        if let Some(head) = &self.head {
            checker.expect(head);
        }
        if files.is_empty() {
            settings(common)?;
            files = all_files(Path::new(FILE))?;
        }
        for file in &files {
            if let Err(broken) = checker.file(file) {
                println!("{broken}");
                return Ok(ExitCode::FAILURE);
            }
        }
        let trail = checker.end();
        println!(
            "{} lines in {} files are whole, {} signed heads, {} lines behind the last of them; the head is {}",
            trail.lines,
            files.len(),
            trail.heads,
            trail.unsigned,
            trail.head
        );
        if !trail.from_the_beginning && trail.lines > 0 {
            eprintln!("the trail begins behind files that are not here");
        }
        if self.head.is_some() && !trail.found {
            println!("no line has the head that was given: the end of the trail is missing");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl AuditCheck {
    fn policy(&self, common: &Common) -> anyhow::Result<Policy> {
        let mut policy = believing(&self.keys, &self.trust_keys)?;
        if policy.pinned.is_empty() && policy.trust_keys.is_empty() {
            let nats = settings(common).context("finding the signing key; or give keys with --key")?;
            let file = KeyFile::read(&nats.signing_key).context("give keys with --key, or --unsigned")?;
            policy.pinned.extend(file.public());
        }
        Ok(policy)
    }
}

/// Those put aside, oldest first, and the one that is being written.
fn all_files(newest: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = newest.parent().unwrap_or(Path::new("."));
    let stem = newest.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut aside = BTreeMap::new();
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let time = name.strip_prefix(&stem).and_then(|rest| rest.strip_prefix('.'));
        let time = time.and_then(|rest| rest.strip_suffix(".json"));
        if let Some(time) = time.and_then(|time| time.parse::<u64>().ok()) {
            aside.insert(time, folder.join(&*name));
        }
    }
    let mut files: Vec<PathBuf> = aside.into_values().collect();
    if newest.exists() {
        files.push(newest.to_owned());
    }
    if files.is_empty() {
        bail!("there is no audit trail at {}", newest.display());
    }
    Ok(files)
}
