//! `muster-natsd provision`: creates the streams and the key-value bucket, with an administrator's credentials.
//!
//! The daemon itself never may: its own credentials only publish. What the broker returns is compared with what was
//! asked for, since old servers pass over in silence what they do not know.

pub(crate) mod wanted;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use async_nats::Client;
use clap::{Args, ValueEnum};
use muster_config::Nats;
use muster_proto::event::Stream;
use muster_service::{Common, command_line};
use serde_json::{Map, Value, json};

use self::wanted::{CONSUMERS, bucket_config, buckets, store_config, stream_config};
use crate::{
    bundle,
    publish::{connection, leases},
};

/// How long the broker may take for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// create the streams, the key-value bucket and consumers on the NATS server
///
/// Needs credentials that may administer JetStream; those of <nats> in etc/ossec.conf should not. What exists already is
/// compared and brought up to date with --update. Ends with 1 when what the server has differs from what was asked for.
#[derive(Args)]
pub(crate) struct Provision {
    #[command(flatten)]
    login: Login,

    /// how many servers keep each stream: 1 where there is one server, 3 in a cluster, so that one may be lost
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: u8,

    /// how large the streams may become, in percent of the usual sizes (90 GiB together)
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    share: u16,

    /// bring streams that exist already up to date
    #[arg(long)]
    update: bool,

    /// what to make besides the streams
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT", default_values = ["kv", "consumers", "bundles"])]
    with: Vec<With>,
}

/// As whom, and where: for what natsd's own credentials have no right to.
#[derive(Args)]
pub(crate) struct Login {
    /// a .creds file of an administrator [default: the credentials in etc/ossec.conf]
    #[arg(long, value_name = "FILE")]
    creds: Option<PathBuf>,

    /// a file with an administrator's nkey seed
    #[arg(long, value_name = "FILE", conflicts_with = "creds")]
    nkey: Option<PathBuf>,

    /// the server, if it is not the one in etc/ossec.conf
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

impl Login {
    /// The configuration with these in the place of its own.
    pub(crate) fn settings(&self, common: &Common) -> anyhow::Result<Nats> {
        let mut nats = settings(common)?;
        if let Some(server) = &self.server {
            nats.servers = vec![server.clone()];
        }
        if self.creds.is_some() || self.nkey.is_some() {
            nats.credentials_file.clone_from(&self.creds);
            nats.nkey_file.clone_from(&self.nkey);
            (nats.user, nats.password, nats.token) = (None, None, None);
        }
        Ok(nats)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum With {
    /// the buckets of agents, of managers and of signing keys
    Kv,
    /// durable consumers for status, alerts and audit
    Consumers,
    /// the object store of `muster-natsd bundle`
    Bundles,
    /// the stream of all log lines
    Archives,
}

impl Provision {
    pub(crate) fn run(&self, common: &Common) -> anyhow::Result<ExitCode> {
        let nats = self.login.settings(common)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = connection::connect_once(&nats, "provision").await?;
            let differences = self.provision(&client, &nats).await?;
            for difference in &differences {
                eprintln!("{difference}");
            }
            let fine = differences.is_empty();
            Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
    }

    async fn provision(&self, client: &Client, nats: &Nats) -> anyhow::Result<Vec<String>> {
        let mut differences = Vec::new();
        let mut wanted: Vec<Value> = Stream::ALL
            .into_iter()
            .filter(|stream| *stream != Stream::Archives || self.with.contains(&With::Archives))
            .map(|stream| stream_config(stream, &nats.subject_prefix, self.replicas, self.share))
            .collect();
        if self.with.contains(&With::Kv) {
            wanted.extend(buckets(nats).map(|bucket| bucket_config(&bucket, self.replicas)));
            if nats.leases_ids() {
                wanted.push(bucket_config(leases::IDS, self.replicas));
            }
        }
        if self.with.contains(&With::Bundles) {
            wanted.push(store_config(bundle::STORE, self.replicas, self.share));
        }
        for config in &wanted {
            differences.extend(self.one_stream(client, config, &nats.subject_prefix).await?);
        }
        if self.with.contains(&With::Consumers) {
            for consumer in CONSUMERS {
                differences.extend(one_consumer(client, consumer.stream, &consumer.config(nats)).await?);
            }
        }
        Ok(differences)
    }

    async fn one_stream(&self, client: &Client, config: &Value, prefix: &str) -> anyhow::Result<Vec<String>> {
        let name = config["name"].as_str().unwrap_or_default();
        let info = ask(client, &format!("STREAM.INFO.{name}"), &json!({})).await?;
        let there = match error_of(&info) {
            None => true,
            Some((404, _)) => false,
            Some((_, why)) => bail!("asking for the stream {name}: {why}"),
        };
        let config = &with_subjects_of_others(config, &info["config"], prefix);
        let answer = match (there, self.update) {
            (true, false) => info,
            (true, true) => ask(client, &format!("STREAM.UPDATE.{name}"), config).await?,
            (false, _) => ask(client, &format!("STREAM.CREATE.{name}"), config).await?,
        };
        if let Some((_, why)) = error_of(&answer) {
            bail!("making the stream {name}: {why}; smaller streams: --share");
        }
        println!("{name}: {}", if there { "is there" } else { "made" });
        Ok(compare(name, config, &answer["config"]))
    }
}

/// The configuration of `<nats>`, without starting a daemon.
pub(crate) fn settings(common: &Common) -> anyhow::Result<Nats> {
    let home = command_line::home(
        common.home.as_deref(),
        None,
        std::env::var_os(command_line::HOME_VARIABLE),
    )?;
    std::env::set_current_dir(&home).with_context(|| format!("changing into {}", home.display()))?;
    let loaded = muster_config::load(&home, common.config.as_deref()).map_err(|faults| anyhow::anyhow!("{faults}"))?;
    Ok(loaded.settings.nats)
}

async fn one_consumer(client: &Client, stream: Stream, config: &Value) -> anyhow::Result<Vec<String>> {
    let (stream, name) = (stream.name(), config["durable_name"].as_str().unwrap_or_default());
    // Making one that is there would change whom it serves.
    let info = ask(client, &format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await?;
    if error_of(&info).is_none() && info["config"]["filter_subject"] != config["filter_subject"] {
        let (has, wanted) = (&info["config"]["filter_subject"], &config["filter_subject"]);
        return Ok(vec![format!(
            "{name}: filters for {has}, not {wanted}; with several prefixes in one account, each needs a <kv bucket=\"agents_...\"/> of \
             its own"
        )]);
    }
    let request = json!({"stream_name": stream, "config": config});
    let answer = ask(client, &format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &request).await?;
    if let Some((_, why)) = error_of(&answer) {
        bail!("making the consumer {name}: {why}");
    }
    println!("{stream} {name}: made");
    Ok(compare(name, config, &answer["config"]))
}

async fn ask(client: &Client, what: &str, request: &Value) -> anyhow::Result<Value> {
    let subject = format!("$JS.API.{what}");
    let asked = tokio::time::timeout(REQUEST_TIMEOUT, client.request(subject, request.to_string().into())).await;
    let answer = asked
        .context("the server does not answer; may these credentials administer JetStream?")?
        .with_context(|| format!("asking for {what}"))?;
    serde_json::from_slice(&answer.payload).with_context(|| format!("the answer to {what}"))
}

fn error_of(answer: &Value) -> Option<(u64, String)> {
    let error = answer.get("error")?;
    let why = error["description"].as_str().unwrap_or("no description").to_owned();
    Some((error["code"].as_u64().unwrap_or(0), why))
}

/// The same, and the subjects of other prefixes that the stream takes already.
fn with_subjects_of_others(config: &Value, has: &Value, prefix: &str) -> Value {
    let mut config = config.clone();
    let others = has["subjects"].as_array().into_iter().flatten();
    let others = others.filter(|subject| {
        subject
            .as_str()
            .is_some_and(|subject| !overlap(subject, &format!("{prefix}.>")))
    });
    if let Some(subjects) = config["subjects"].as_array_mut() {
        let new: Vec<_> = others.filter(|subject| !subjects.contains(subject)).cloned().collect();
        subjects.extend(new);
    }
    config
}

/// Whether there is a subject that both take.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(one), Some(other)) if one == "*" || other == "*" || one == other => {}
            _ => return false,
        }
    }
}

/// What the server has that is not what was asked for. In which order subjects are, does not matter.
fn compare(name: &str, asked: &Value, has: &Value) -> Vec<String> {
    let empty = Map::new();
    let asked = asked.as_object().unwrap_or(&empty);
    let mut differences = Vec::new();
    for (key, value) in asked {
        let got = has.get(key).unwrap_or(&Value::Null);
        // Absent is how servers write what is off.
        let is_off = matches!(value, Value::Bool(false)) && got.is_null();
        let is_same = got == value || (key == "subjects" && sorted(got) == sorted(value));
        if !is_same && !is_off {
            differences.push(format!("{name}: {key} is {got}, not {value}"));
        }
    }
    // More than one filter is passed over by old servers; one that we did not ask for changes what is delivered.
    if has.get("filter_subjects").is_some() {
        differences.push(format!("{name}: has filter_subjects"));
    }
    differences
}

fn sorted(subjects: &Value) -> Vec<&str> {
    let mut subjects: Vec<_> = subjects
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    subjects.sort_unstable();
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_names_stream_and_setting() {
        let asked = json!({"max_age": 5, "deny_delete": false, "discard": "new"});
        assert_eq!(
            compare("S", &asked, &json!({"max_age": 5, "discard": "new"})),
            Vec::<String>::new()
        );
        assert_eq!(
            compare("S", &asked, &json!({"max_age": 5, "discard": "old"})),
            ["S: discard is \"old\", not \"new\""]
        );
    }

    #[test]
    fn update_keeps_the_subjects_of_other_prefixes_and_no_wildcard_above_ours() {
        let config = json!({"subjects": ["a.x.>"]});
        let has = json!({"subjects": ["b.x.>", "a.y", ">", "*.x.*", "a.x.>"]});
        assert_eq!(
            with_subjects_of_others(&config, &has, "a")["subjects"],
            json!(["a.x.>", "b.x.>"])
        );
        assert_eq!(with_subjects_of_others(&config, &Value::Null, "a"), config);
    }

    #[test]
    fn subjects_overlap_where_one_message_may_go_to_both() {
        for (one, other) in [
            ("a.>", "a.b"),
            ("a.*", "a.b"),
            (">", "a"),
            ("*.b", "a.>"),
            ("a.b", "a.b"),
        ] {
            assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
        }
        for (one, other) in [("a.>", "a"), ("a.b", "a.c"), ("a.*", "a.b.c"), ("ab.>", "a.>")] {
            assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
        }
    }
}
