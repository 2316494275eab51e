//! `nats key`: the keys that events are signed with, and the trust key that vouches for them.
//!
//! natsd reads the file of keys at its start and when it is told to reload, announces what has changed, and decides which
//! key signs. What the trust key must sign comes from natsd as statements, goes to the machine where the trust key's seed
//! lies, and comes back signed. Nothing secret travels in either direction.

mod file;
mod vouch;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use muster_proto::{
    event::key::KeyStatus,
    ipc::control::{Request, Response, SigningKey},
};
use muster_service::{clock, exit::DONE};
use serde_json::json;

pub(super) use self::file::KeyFile;
pub(crate) use self::vouch::sign;
use super::DAEMON;
use crate::{
    cli::OutputFormat,
    context::{self, Context},
    output::{self, say, tame},
};

/// `nats key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// list the keys, oldest first, and what became of them
    ///
    /// As JSON: an array of {"kid", "revoked_at", "status", "in_force", "signs_from", "co_signed"}. revoked_at is in Unix
    /// seconds, signs_from in Unix milliseconds; what only natsd knows is null when it does not run.
    List,
    /// make the first key, if there is none
    New,
    /// make another key; natsd announces it at once and signs with it after <key_overlap>
    ///
    /// With a <trust_key>, natsd first waits until that has vouched for the new key; see statement.
    Rotate,
    /// take all seeds but the newest out of the file
    ///
    /// Consumers go on believing what those keys have signed. Not before natsd signs with the newest one, else that one
    /// signs before consumers have heard of it.
    Retire,
    /// tell consumers to believe nothing that a key has signed from a moment on
    ///
    /// natsd signs no more with it at once. With a <trust_key>, consumers are told when that has signed it; see statement.
    Revoke(Revoke),
    /// print what the trust key has to sign, a line each
    ///
    /// On the machine where its seed lies, `muster-control nats key sign --trust-seed FILE` signs them, and here `muster-control
    /// nats key import` takes them in. Compare the public keys that are shown on both sides.
    Statement,
    /// sign statements with the trust key, on the machine where its seed lies
    ///
    /// No home is needed. What is signed is said on standard error; the signed statements go to standard output.
    Sign(Sign),
    /// take in what the trust key has signed
    Import(Import),
    /// make a trust key, and print its public half for <trust_key> and for consumers; not on the manager
    Trust(super::request::RequestKey),
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

/// `nats key sign`
#[derive(Args, Debug)]
pub struct Sign {
    /// the file with the trust key's seed
    #[arg(long, value_name = "FILE")]
    pub trust_seed: PathBuf,

    /// the statements; standard input without it
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `nats key import`
#[derive(Args, Debug)]
pub struct Import {
    /// the signed statements; standard input without it
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

pub(super) async fn key(context: &Context, command: &KeyCommand) -> anyhow::Result<u8> {
    let nats = context.settings()?.nats;
    let path = nats.signing_key;
    let mut file = KeyFile::read(&path)?;
    let told = match command {
        KeyCommand::List => {
            list(context, &file, &ask(context).await.unwrap_or_default())?;
            return Ok(DONE);
        }
        KeyCommand::Statement => {
            for line in vouch::statements(&ask(context).await?, nats.trust_key.as_deref())? {
                output::line(line)?;
            }
            return Ok(DONE);
        }
        KeyCommand::Sign(arguments) => return sign(arguments),
        KeyCommand::Trust(arguments) => return super::request::new_key(arguments),
        KeyCommand::New if !file.seeds().is_empty() => {
            bail!("{} has a key already; `rotate` makes another", path.display())
        }
        KeyCommand::New | KeyCommand::Rotate => file.add()?,
        KeyCommand::Retire => {
            let newest = file.public()?.pop();
            if nats.trust_key.is_some() && waits(&ask(context).await.unwrap_or_default(), newest.as_deref()) {
                bail!("natsd does not sign with the newest key yet; see `muster-control nats key list`");
            }
            file.retire()
        }
        KeyCommand::Revoke(revoke) => {
            let now = clock::unix_s();
            file.revoke(&revoke.kid, now, revoke.since.unwrap_or(now))?
        }
        KeyCommand::Import(arguments) => {
            let path = arguments.file.as_ref().map(|path| context.here.join(path));
            let signed = vouch::read(path.as_deref())?;
            vouch::check(&signed, nats.trust_key.as_deref())?;
            file.import(signed)?
        }
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

async fn ask(context: &Context) -> anyhow::Result<Vec<SigningKey>> {
    match context.ask(DAEMON, &Request::NatsKeys).await? {
        Response::NatsKeys(keys) => Ok(keys),
        _ => Err(context::mismatched(DAEMON)),
    }
}

/// Whether another key signs than this one.
fn waits(keys: &[SigningKey], newest: Option<&str>) -> bool {
    keys.iter()
        .any(|key| Some(key.record.kid.as_str()) == newest && !key.in_force)
}

fn list(context: &Context, file: &KeyFile, keys: &[SigningKey]) -> anyhow::Result<()> {
    let mut kids: Vec<_> = keys.iter().map(|key| key.record.kid.clone()).collect();
    // What natsd has not read, or all when it does not run.
    kids.extend(
        file.public()?
            .into_iter()
            .filter(|kid| keys.iter().all(|key| key.record.kid != *kid)),
    );
    let known = |kid: &str| keys.iter().find(|key| key.record.kid == kid);
    let revoked_at = |kid: &str| {
        let told = known(kid).and_then(|key| key.record.revoked_at);
        told.or_else(|| file.revoked().find(|(revoked, _)| *revoked == kid).map(|(_, at)| at))
    };
    if context.output == OutputFormat::Json {
        let keys: Vec<_> = kids
            .iter()
            .map(|kid| {
                let key = known(kid);
                json!({
                    "kid": kid,
                    "revoked_at": revoked_at(kid),
                    "status": key.map(|key| key.record.status),
                    "in_force": key.map(|key| key.in_force),
                    "signs_from": key.and_then(|key| key.signs_from),
                    "co_signed": key.map(|key| key.record.trust.is_some()),
                })
            })
            .collect();
        return output::json(&json!(keys));
    }
    for kid in &kids {
        match (revoked_at(kid), known(kid)) {
            (Some(at), _) => output::line(format!("{kid} revoked since {at}"))?,
            (None, Some(key)) => output::line(format!("{kid} {}", in_words(key)))?,
            (None, None) => output::line(kid)?,
        }
    }
    if keys.is_empty() {
        say("natsd was not asked; it knows which key signs");
    }
    Ok(())
}

fn in_words(key: &SigningKey) -> String {
    let mut words = match (key.record.status, key.in_force, key.signs_from) {
        (KeyStatus::Retired, _, _) => "retired".to_owned(),
        (KeyStatus::Revoked, _, _) => "revoked".to_owned(),
        (KeyStatus::Active, true, _) => "signs".to_owned(),
        (KeyStatus::Active, false, Some(from)) => format!("signs from {}", output::time(from / 1000)),
        (KeyStatus::Active, false, None) => "waits for the trust key".to_owned(),
    };
    if key.record.trust.is_some() {
        words.push_str(", co-signed");
    }
    words
}
