//! `muster-natsd provision`: creates the streams and the key-value bucket, with an administrator's credentials.
//!
//! The daemon itself never may: its own credentials only publish. What the broker returns is compared with what was
//! asked for, since old servers pass over in silence what they do not know.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use async_nats::Client;
use clap::{Args, ValueEnum};
use muster_config::Nats;
use muster_proto::event::Stream;
use muster_service::{Common, command_line};
use serde_json::{Map, Value, json};

use crate::publish::{connection, fence};

const GIB: u64 = 1024 * 1024 * 1024;
const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;
const MINUTE_NS: u64 = 60 * 1_000_000_000;
/// How long the broker may take for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Consumers that most sites want: name, stream, the one subject it filters for below the prefix. One filter each,
/// since servers before 2.10 pass over several and deliver everything.
const CONSUMERS: [(&str, Stream, &str); 6] = [
    ("xdr-status", Stream::State, "agent.*.status_change"),
    ("xdr-disconnect", Stream::State, "alerts.agent_disconnected"),
    ("siem-alerts-high", Stream::Alerts, "alerts.rule.high.*"),
    ("siem-alerts-critical", Stream::Alerts, "alerts.rule.critical.*"),
    ("audit-archive", Stream::Audit, "manager.audit.>"),
    ("xdr-keys", Stream::Audit, "manager.keys.*"),
];

/// create the streams, the key-value bucket and consumers on the NATS server
///
/// Needs credentials that may administer JetStream; those of <nats> in etc/ossec.conf should not. What exists already is
/// compared and brought up to date with --update. Ends with 1 when what the server has differs from what was asked for.
#[derive(Args)]
pub(crate) struct Provision {
    /// a .creds file of an administrator [default: the credentials in etc/ossec.conf]
    #[arg(long, value_name = "FILE")]
    creds: Option<PathBuf>,

    /// a file with an administrator's nkey seed
    #[arg(long, value_name = "FILE", conflicts_with = "creds")]
    nkey: Option<PathBuf>,

    /// the server, if it is not the one in etc/ossec.conf
    #[arg(long, value_name = "URL")]
    server: Option<String>,

    /// how many servers keep each stream
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: u8,

    /// how large the streams may become, in percent of the usual sizes (85 GiB together)
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    share: u16,

    /// bring streams that exist already up to date
    #[arg(long)]
    update: bool,

    /// what to make besides the streams
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT", default_values = ["kv", "consumers"])]
    with: Vec<With>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum With {
    /// the buckets of agents, of managers and of signing keys
    Kv,
    /// durable consumers for status, alerts and audit
    Consumers,
    /// the stream of all log lines
    Archives,
}

impl Provision {
    pub(crate) fn run(&self, common: &Common) -> anyhow::Result<ExitCode> {
        let mut nats = settings(common)?;
        if let Some(server) = &self.server {
            nats.servers = vec![server.clone()];
        }
        if self.creds.is_some() || self.nkey.is_some() {
            nats.credentials_file.clone_from(&self.creds);
            nats.nkey_file.clone_from(&self.nkey);
            (nats.user, nats.password, nats.token) = (None, None, None);
        }
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
            let bucket = nats.kv.clone().unwrap_or_default().bucket;
            let buckets = [bucket.as_str(), fence::NODES, fence::KEYS];
            wanted.extend(buckets.map(|bucket| bucket_config(bucket, self.replicas)));
        }
        for config in &wanted {
            differences.extend(self.one_stream(client, config).await?);
        }
        if self.with.contains(&With::Consumers) {
            for (name, stream, filter) in CONSUMERS {
                let filter = format!("{}.{filter}", nats.subject_prefix);
                differences.extend(one_consumer(client, name, stream.name(), &filter).await?);
            }
        }
        Ok(differences)
    }

    async fn one_stream(&self, client: &Client, config: &Value) -> anyhow::Result<Vec<String>> {
        let name = config["name"].as_str().unwrap_or_default();
        let info = ask(client, &format!("STREAM.INFO.{name}"), &json!({})).await?;
        let there = match error_of(&info) {
            None => true,
            Some((404, _)) => false,
            Some((_, why)) => bail!("asking for the stream {name}: {why}"),
        };
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

/// One of the streams that natsd publishes to.
pub(crate) fn stream_config(stream: Stream, prefix: &str, replicas: u8, share: u16) -> Value {
    let (age_ns, bytes) = match stream {
        Stream::Keepalive => (DAY_NS, GIB / 4),
        Stream::State => (30 * DAY_NS, 4 * GIB),
        Stream::Alerts => (7 * DAY_NS, 50 * GIB),
        Stream::Osquery => (3 * DAY_NS, 20 * GIB),
        Stream::Archives => (DAY_NS, 50 * GIB),
        Stream::Audit => (400 * DAY_NS, 10 * GIB),
    };
    let audit = stream == Stream::Audit;
    let window = match stream {
        Stream::State | Stream::Alerts | Stream::Audit => 10 * MINUTE_NS,
        _ => 2 * MINUTE_NS,
    };
    json!({
        "name": stream.name(),
        "subjects": stream.subjects(prefix),
        "retention": "limits",
        "storage": "file",
        "max_age": age_ns,
        "max_bytes": bytes / 100 * u64::from(share),
        "max_msgs_per_subject": if stream == Stream::Keepalive { 3 } else { -1 },
        "discard": if audit { "new" } else { "old" },
        "duplicate_window": window,
        "num_replicas": replicas,
        "deny_delete": audit,
        "deny_purge": audit,
        "allow_direct": true,
    })
}

/// A key-value bucket is a stream of a certain form; the client's own way to make one asks for what old servers lack.
pub(crate) fn bucket_config(bucket: &str, replicas: u8) -> Value {
    json!({
        "name": format!("KV_{bucket}"),
        "subjects": [format!("$KV.{bucket}.>")],
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 5,
        "discard": "new",
        "duplicate_window": 2 * MINUTE_NS,
        "num_replicas": replicas,
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    })
}

async fn one_consumer(client: &Client, name: &str, stream: &str, filter: &str) -> anyhow::Result<Vec<String>> {
    let config = json!({
        "durable_name": name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": 30 * 1_000_000_000_u64,
        "max_deliver": 10,
        "max_ack_pending": 1000,
        "filter_subject": filter,
        "replay_policy": "instant",
    });
    let request = json!({"stream_name": stream, "config": config});
    let answer = ask(client, &format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &request).await?;
    if let Some((_, why)) = error_of(&answer) {
        bail!("making the consumer {name}: {why}");
    }
    println!("{stream} {name}: made");
    Ok(compare(name, &config, &answer["config"]))
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

/// What the server has that is not what was asked for.
fn compare(name: &str, asked: &Value, has: &Value) -> Vec<String> {
    let empty = Map::new();
    let asked = asked.as_object().unwrap_or(&empty);
    let mut differences = Vec::new();
    for (key, value) in asked {
        let got = has.get(key).unwrap_or(&Value::Null);
        // Absent is how servers write what is off.
        let is_off = matches!(value, Value::Bool(false)) && got.is_null();
        if got != value && !is_off {
            differences.push(format!("{name}: {key} is {got}, not {value}"));
        }
    }
    // More than one filter is passed over by old servers; one that we did not ask for changes what is delivered.
    if has.get("filter_subjects").is_some() {
        differences.push(format!("{name}: has filter_subjects"));
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stream_takes_control_and_no_two_share_a_subject() {
        let mut all = std::collections::BTreeSet::new();
        for stream in Stream::ALL {
            let config = stream_config(stream, "p", 1, 100);
            for subject in config["subjects"].as_array().expect("subjects") {
                let subject = subject.as_str().expect("text").to_owned();
                assert!(!subject.starts_with("p.control") && subject != "p.>", "{subject}");
                assert!(all.insert(subject));
            }
        }
    }

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
}
