//! `nats status` and `nats key`: how events reach the broker, and with which keys they are signed.
//!
//! The keys are lines of `<signing_key>`, oldest first: seeds, and `revoked <public key> <unix seconds>`. natsd reads the
//! file at its start and when it is told to reload, announces what has changed, and decides which key signs.

pub mod request;
mod test;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::Path,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use muster_proto::ipc::control::{Request, Response};
use muster_service::{clock, exit::DONE};
use nkeys::{KeyPair, KeyPairType};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    cli::OutputFormat,
    context::{self, Context},
    output::{self, tame},
};

const DAEMON: &str = "natsd";
/// The daemon's group reads the seeds; nobody else.
const KEY_MODE: u32 = 0o640;

/// `nats …`
#[derive(Debug, Subcommand)]
pub enum NatsCommand {
    /// say how events reach the broker: connection, backlog, last acknowledgement, and what is degraded and why
    ///
    /// As JSON: {"ready", "degraded": [], "queues": [], "counters": {}, "facts": {}}.
    Status,
    /// publish a probe, read it back, and say how long each step took, or which one failed and what to do
    ///
    /// The steps: connect (reach the server), tls, log_in (credentials), spool (the probe is numbered, signed and on the
    /// disk), acknowledge (the daemon's own connection has published it), read_back (out of the stream), verify (its
    /// signature). The probe is an event of the manager's health with the reason "probe". The exit code is 0 when it came
    /// back, else 1.
    ///
    /// As JSON: {"server", "server_name", "version", "jetstream", "max_payload", "tls", "subject", "sequence", "waiting",
    /// "legs": [{"leg", "micros", "note"}], "failed": {"leg", "why", "cure"} | null}.
    Test,
    /// list, make, rotate and revoke the keys that events are signed with
    #[command(subcommand)]
    Key(KeyCommand),
    /// send a signed request to a manager and print its reply
    ///
    /// The manager must have <control enabled="yes"> and the key as a <control_key> with the role of the verb: read for
    /// the ones that end in status and summary, destroy for agent.remove, act for the others. What an agent makes of an
    /// order is published on <prefix>.agent.<id>.control_result, with the ticket of the reply.
    ///
    /// As JSON: {"node", "timestamp", "outcome": "done" | "accepted" | "refused" | "failed", "reason", "text", "ticket",
    /// "data", "kid"}. The exit code is 0 when it was done or accepted, 77 when it was refused, 1 when it failed, 3
    /// without a reply.
    Request(Box<request::Request>),
    /// make a key to sign requests with, and print its public half
    RequestKey(request::RequestKey),
}

/// `nats key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// list the public keys, oldest first
    ///
    /// As JSON: an array of {"kid", "revoked_at"}; the time is in Unix seconds, or null.
    List,
    /// make the first key, if there is none
    New,
    /// make another key; natsd announces it at once and signs with it after ten minutes
    Rotate,
    /// take all seeds but the newest out of the file
    ///
    /// Consumers go on believing what those keys have signed. Not before natsd signs with the newest one, else that one
    /// signs before consumers have heard of it.
    Retire,
    /// tell consumers to believe nothing that a key has signed from a moment on
    Revoke(Revoke),
}

/// `nats key revoke`
#[derive(Args, Debug)]
pub struct Revoke {
    /// the public key (U…)
    pub kid: String,

    /// Unix seconds from which it is not believed [default: now]
    #[arg(long, value_name = "SECONDS")]
    pub since: Option<u64>,
}

pub(crate) async fn nats(context: &Context, command: &NatsCommand) -> anyhow::Result<u8> {
    match command {
        NatsCommand::Status => status(context).await,
        NatsCommand::Test => test::test(context).await,
        NatsCommand::Key(command) => key(context, command).await,
        NatsCommand::Request(arguments) => request::request(Some(&context.home), context.output, arguments).await,
        NatsCommand::RequestKey(arguments) => request::new_key(arguments),
    }
}

async fn status(context: &Context) -> anyhow::Result<u8> {
    let status = match context.ask(DAEMON, &Request::Status).await? {
        Response::Status(status) => *status,
        _ => return Err(context::mismatched(DAEMON)),
    };
    match context.output {
        OutputFormat::Json => {
            let counters: BTreeMap<_, _> = status.counters.iter().cloned().collect();
            let facts: BTreeMap<_, _> = status.facts.iter().cloned().collect();
            output::json(&json!({
                "ready": status.ready, "degraded": status.degraded, "queues": status.queues,
                "counters": counters, "facts": facts,
            }))?;
        }
        OutputFormat::Text => {
            for (name, value) in &status.facts {
                output::line(format!("{name}: {}", tame(value)))?;
            }
            for queue in &status.queues {
                let (name, used, capacity, unit) = (&queue.name, queue.used, queue.capacity, &queue.unit);
                output::line(format!(
                    "{name}: {used} of {capacity} {unit}, {} dropped",
                    queue.dropped
                ))?;
            }
            for (name, value) in &status.counters {
                output::line(format!("{name}: {value}"))?;
            }
            for why in &status.degraded {
                output::line(format!("degraded: {}", tame(why)))?;
            }
        }
    }
    Ok(DONE)
}

async fn key(context: &Context, command: &KeyCommand) -> anyhow::Result<u8> {
    let path = context.settings()?.nats.signing_key;
    let mut file = KeyFile::read(&path)?;
    let told = match command {
        KeyCommand::List => {
            list(context, &file)?;
            return Ok(DONE);
        }
        KeyCommand::New if !file.seeds().is_empty() => {
            bail!("{} has a key already; `rotate` makes another", path.display())
        }
        KeyCommand::New | KeyCommand::Rotate => file.add()?,
        KeyCommand::Retire => file.retire(),
        KeyCommand::Revoke(revoke) => file.revoke(&revoke.kid, revoke.since.unwrap_or_else(clock::unix_s))?,
    };
    file.write(&path)?;
    output::line(told)?;
    // Without natsd the file is read at its next start.
    match context.try_connect(DAEMON).await {
        Ok(mut client) => match context::ask(&mut client, DAEMON, &Request::Reload).await? {
            Response::Done(done) => output::line(format!("natsd: {}", tame(&done)))?,
            _ => return Err(context::mismatched(DAEMON)),
        },
        Err(_) => output::line("natsd does not run; it reads the keys when it starts")?,
    }
    Ok(DONE)
}

fn list(context: &Context, file: &KeyFile) -> anyhow::Result<()> {
    let keys = file.public()?;
    let revoked_at = |kid: &str| file.revoked().find(|(revoked, _)| *revoked == kid).map(|(_, at)| at);
    match context.output {
        OutputFormat::Json => {
            let keys: Vec<_> = keys
                .iter()
                .map(|kid| json!({"kid": kid, "revoked_at": revoked_at(kid)}))
                .collect();
            output::json(&json!(keys))
        }
        OutputFormat::Text => {
            for kid in keys {
                match revoked_at(&kid) {
                    Some(at) => output::line(format!("{kid} revoked since {at}"))?,
                    None => output::line(kid)?,
                }
            }
            Ok(())
        }
    }
}

/// The lines of the file, seeds included.
struct KeyFile {
    lines: Vec<Zeroizing<String>>,
}

impl KeyFile {
    /// A missing file has no lines.
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Zeroizing::default(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let lines = text
            .lines()
            .map(|line| Zeroizing::new(line.trim().to_owned()))
            .collect();
        Ok(Self { lines })
    }

    fn seeds(&self) -> Vec<&str> {
        let seeds = self.lines.iter().map(|line| line.as_str());
        seeds.filter(|line| line.starts_with("SU")).collect()
    }

    fn public(&self) -> anyhow::Result<Vec<String>> {
        let public = |seed: &&str| {
            let key = KeyPair::from_seed(seed).context("a seed in the file is damaged")?;
            Ok(key.public_key())
        };
        self.seeds().iter().map(public).collect()
    }

    fn revoked(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lines.iter().filter_map(|line| {
            let (kid, at) = line.strip_prefix("revoked ")?.split_once(' ')?;
            Some((kid, at.parse().ok()?))
        })
    }

    fn add(&mut self) -> anyhow::Result<String> {
        let key = KeyPair::new(KeyPairType::User);
        self.lines.push(Zeroizing::new(key.seed().context("making a key")?));
        Ok(key.public_key())
    }

    fn retire(&mut self) -> String {
        let newest = self.seeds().last().map(|seed| Zeroizing::new((*seed).to_owned()));
        let before = self.lines.len();
        self.lines
            .retain(|line| !line.starts_with("SU") || newest.as_ref().is_some_and(|newest| newest == line));
        format!("{} seeds taken out", before - self.lines.len())
    }

    fn revoke(&mut self, kid: &str, since: u64) -> anyhow::Result<String> {
        if KeyPair::from_public_key(kid).is_err() || !kid.starts_with('U') {
            bail!("{kid} is no public key (U and 55 more letters and digits)");
        }
        let left = self
            .public()?
            .iter()
            .any(|other| other != kid && self.revoked().all(|(revoked, _)| revoked != other));
        if !left {
            bail!("no other key could sign; `rotate` first");
        }
        self.lines.push(Zeroizing::new(format!("revoked {kid} {since}")));
        Ok(format!("{kid} is revoked since {since}"))
    }

    /// Beside the file, then into its place, with its owner.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let beside = path.with_extension("new");
        let mut text = Zeroizing::new(String::new());
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        let write = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(KEY_MODE)
                .open(&beside)?;
            // The first key belongs to whom the directory belongs to.
            let directory = path.parent().unwrap_or(Path::new("."));
            let owner = path.metadata().or_else(|_| directory.metadata())?;
            if nix::unistd::geteuid().is_root() {
                chown(&beside, Some(owner.uid()), Some(owner.gid()))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_retired_and_revoked_keys_are_lines_of_the_file() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("signing.nk");
        let mut file = KeyFile::read(&path).expect("is missing");
        let (one, two) = (file.add().expect("adds"), file.add().expect("adds"));
        file.write(&path).expect("writes");
        let mut file = KeyFile::read(&path).expect("reads");
        assert_eq!(file.public().expect("seeds"), [one.clone(), two.clone()]);
        file.revoke(&one, 7).expect("revokes");
        assert_eq!(file.revoked().collect::<Vec<_>>(), [(one.as_str(), 7)]);
        assert!(file.revoke(&two, 7).is_err(), "nothing would be left to sign with");
        assert!(file.revoke("x", 7).is_err());
        file.retire();
        assert_eq!(file.public().expect("seeds"), [two]);
        assert_eq!(file.revoked().count(), 1);
    }
}
