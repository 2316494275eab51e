//! `muster-natsd bundle`: what a fleet runs on, kept in the object store `muster_bundles` for who builds another manager or
//! wants to see what one has given to its agents: merged files of groups, packages of agents, packs and rules.
//!
//! An object's name is the SHA-256 of its bytes, so that none can be changed unseen. **Invariant:** what looks like a key
//! or a password is never put there, however it is called; the store is not secret.

mod secrets;

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use async_nats::{
    Client,
    jetstream::{
        self,
        object_store::{InfoErrorKind, ObjectMetadata, ObjectStore},
    },
};
use clap::{Args, Subcommand};
use futures_util::StreamExt;
use muster_service::Common;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::{provision::Login, publish::connection};

/// The store.
pub(crate) const STORE: &str = "muster_bundles";
/// The largest bundle. It is held in memory.
const MAX_LEN: u64 = 256 * 1024 * 1024;
/// How much of it is in one message.
const CHUNK_LEN: usize = 128 * 1024;

/// keep what a fleet runs on in the object store muster_bundles: merged files, packages, packs, rules
///
/// `muster-natsd provision` makes the store. Bundles are named by the SHA-256 of their bytes. Keys and passwords are refused.
#[derive(Args)]
pub(crate) struct Bundle {
    #[command(flatten)]
    login: Login,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// put files there, and print their names
    Put {
        /// such as etc/shared/default/merged.mg or var/upgrade/agent.wpk
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// get one, checked against its name
    Get {
        /// its SHA-256 in hexadecimal digits
        #[arg(value_name = "SHA256")]
        name: String,

        /// where to write it; nothing is there before it is whole and checked
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// list them: name, bytes, and what the file was called
    List,
}

impl Bundle {
    pub(crate) fn run(&self, common: &Common) -> anyhow::Result<ExitCode> {
        // Paths are the caller's, and below it is the home that we are in.
        let here = std::env::current_dir().context("finding the current directory")?;
        let nats = self.login.settings(common)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = connection::connect_once(&nats, "bundle").await?;
            let store = open(&client).await?;
            match &self.command {
                Command::Put { files } => {
                    for file in files {
                        put(&store, &here.join(file)).await?;
                    }
                }
                Command::Get { name, output } => get(&store, name, &here.join(output)).await?,
                Command::List => list(&store).await?,
            }
            anyhow::Ok(())
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn open(client: &Client) -> anyhow::Result<ObjectStore> {
    let store = jetstream::new(client.clone()).get_object_store(STORE).await;
    store.with_context(|| {
        format!(
            "opening the object store {STORE}; `muster-natsd provision` makes it, and the NATS user needs rights to it"
        )
    })
}

async fn put(store: &ObjectStore, path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_LEN + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        u64::try_from(bytes.len()).unwrap_or(u64::MAX) <= MAX_LEN,
        "{} is larger than {MAX_LEN} bytes",
        path.display()
    );
    let called = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(why) = secrets::found(&called, &bytes) {
        bail!("{} is not put there: {why}", path.display());
    }
    let name = name_of(&bytes);
    let there = match store.info(&name).await {
        Ok(info) => !info.deleted,
        Err(error) if error.kind() == InfoErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| format!("looking for {name}")),
    };
    if !there {
        let metadata = ObjectMetadata {
            name: name.clone(),
            description: Some(called.clone()),
            chunk_size: Some(CHUNK_LEN),
            ..ObjectMetadata::default()
        };
        let put = store.put(metadata, &mut bytes.as_slice()).await;
        put.with_context(|| format!("putting {}", path.display()))?;
    }
    println!("{name} {} {called}", bytes.len());
    Ok(())
}

async fn get(store: &ObjectStore, name: &str, output: &Path) -> anyhow::Result<()> {
    let object = store.get(name).await.with_context(|| format!("getting {name}"))?;
    let mut bytes = Vec::new();
    let read = object.take(MAX_LEN + 1).read_to_end(&mut bytes).await;
    read.with_context(|| format!("reading {name}"))?;
    ensure!(
        name_of(&bytes).eq_ignore_ascii_case(name),
        "what is in the store is not {name}: somebody has changed it, or it is not whole"
    );
    let mut part = output.as_os_str().to_owned();
    part.push(".part");
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    let written = written.and_then(|()| fs::rename(&part, output));
    if written.is_err() {
        // It may not even have been made.
        let _ = fs::remove_file(&part);
    }
    written.with_context(|| format!("writing {}", output.display()))
}

async fn list(store: &ObjectStore) -> anyhow::Result<()> {
    let mut objects = store.list().await.context("listing")?;
    let mut lines = Vec::new();
    while let Some(object) = objects.next().await {
        let object = object.context("listing")?;
        lines.push((object.description.unwrap_or_default(), object.name, object.size));
    }
    lines.sort();
    for (called, name, size) in lines {
        // Whoever may write there has chosen the names.
        let tame: String = called.chars().filter(|character| !character.is_control()).collect();
        println!("{name} {size} {tame}");
    }
    Ok(())
}

/// The SHA-256 in hexadecimal digits.
fn name_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
