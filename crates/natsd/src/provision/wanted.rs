//! What the broker should have: streams, buckets and consumers, as NATS takes them. Pure.
//!
//! Two prefixes may share an account. Then they share the streams, which take the subjects of both, and the buckets of
//! managers and keys; the buckets of agents have names of their own, and what stands behind `agents` in them also stands
//! behind the names of the consumers.

use muster_config::Nats;
use muster_proto::event::Stream;
use serde_json::{Value, json};

use crate::publish::fence;

const GIB: u64 = 1024 * 1024 * 1024;
const SECOND_NS: u64 = 1_000_000_000;
const MINUTE_NS: u64 = 60 * SECOND_NS;
const DAY_NS: u64 = 24 * 60 * MINUTE_NS;
/// Revisions of each key that a bucket keeps.
const HISTORY: u8 = 5;
/// What a bucket of agents is called by default, and begins with in other cases.
const AGENTS: &str = "agents";
/// How long a consumer may take for a message, each time that it was delivered. The broker takes the first for the
/// consumer's `ack_wait`, so that a shorter one would deliver twice what is only under way.
const BACK_OFF_NS: [u64; 4] = [30 * SECOND_NS, MINUTE_NS, 2 * MINUTE_NS, 5 * MINUTE_NS];

/// A consumer that most sites want.
pub(crate) struct Consumer {
    name: &'static str,
    pub(super) stream: Stream,
    /// The one subject below the prefix. One each, since servers before 2.10 pass over several and deliver everything.
    filter: &'static str,
}

/// Those of them that are made.
pub(crate) const CONSUMERS: [Consumer; 6] = [
    consumer("xdr-status", Stream::State, "agent.*.status_change"),
    consumer("xdr-disconnect", Stream::State, "alerts.agent_disconnected"),
    consumer("siem-alerts-high", Stream::Alerts, "alerts.rule.high.*"),
    consumer("siem-alerts-critical", Stream::Alerts, "alerts.rule.critical.*"),
    consumer("audit-archive", Stream::Audit, "manager.audit.>"),
    consumer("xdr-keys", Stream::Audit, "manager.keys.*"),
];

const fn consumer(name: &'static str, stream: Stream, filter: &'static str) -> Consumer {
    Consumer { name, stream, filter }
}

impl Consumer {
    pub(super) fn config(&self, nats: &Nats) -> Value {
        let (name, suffix) = (self.name, suffix(nats));
        json!({
            "durable_name": format!("{name}{suffix}"),
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": BACK_OFF_NS[0],
            "backoff": BACK_OFF_NS,
            "max_deliver": 10,
            "max_ack_pending": 1000,
            "filter_subject": format!("{}.{}", nats.subject_prefix, self.filter),
            "replay_policy": "instant",
        })
    }
}

/// One of the streams that natsd publishes to; `share` in percent of the usual size.
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
        "max_bytes": bytes * u64::from(share) / 100,
        "max_msgs_per_subject": if stream == Stream::Keepalive { 3 } else { -1 },
        "discard": if audit { "new" } else { "old" },
        "duplicate_window": window,
        "num_replicas": replicas,
        "deny_delete": audit,
        "deny_purge": audit,
        "allow_direct": true,
    })
}

/// The buckets: of agents, of managers, of signing keys, and of who has which agent.
pub(crate) fn buckets(nats: &Nats) -> [String; 4] {
    [
        agents(nats),
        fence::NODES.to_owned(),
        fence::KEYS.to_owned(),
        owners(nats),
    ]
}

/// The bucket of who has which agent.
fn owners(nats: &Nats) -> String {
    nats.ownership.clone().unwrap_or_default().bucket
}

/// Those that the daemon uses.
pub(crate) fn buckets_in_use(nats: &Nats) -> Vec<String> {
    let [agents, nodes, keys, owners] = buckets(nats);
    let mut used = Vec::new();
    if nats.bucket().is_some() {
        used.extend([agents, nodes, keys]);
    }
    used.extend(nats.ownership.as_ref().map(|_| owners));
    used
}

/// A key-value bucket is a stream of a certain form; the client's own way to make one asks for what old servers lack.
pub(crate) fn bucket_config(bucket: &str, replicas: u8) -> Value {
    json!({
        "name": format!("KV_{bucket}"),
        "subjects": [format!("$KV.{bucket}.>")],
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": HISTORY,
        "discard": "new",
        "duplicate_window": 2 * MINUTE_NS,
        "num_replicas": replicas,
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    })
}

/// An object store is one, too.
pub(crate) fn store_config(store: &str, replicas: u8, share: u16) -> Value {
    json!({
        "name": format!("OBJ_{store}"),
        "subjects": [format!("$O.{store}.C.>"), format!("$O.{store}.M.>")],
        "retention": "limits",
        "storage": "file",
        "max_bytes": 5 * GIB * u64::from(share) / 100,
        "discard": "new",
        "duplicate_window": 2 * MINUTE_NS,
        "num_replicas": replicas,
        "allow_rollup_hdrs": true,
        "allow_direct": true,
    })
}

fn agents(nats: &Nats) -> String {
    nats.kv.clone().unwrap_or_default().bucket
}

/// What tells the names of one prefix from those of another in the same account: `_site_b` with the bucket
/// `agents_site_b`.
fn suffix(nats: &Nats) -> String {
    let agents = agents(nats);
    let suffix = agents.strip_prefix(AGENTS).filter(|suffix| suffix.starts_with('_'));
    suffix.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use muster_config::Kv;

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
    fn consumers_of_two_prefixes_in_one_account_have_names_of_their_own() {
        let mut nats = Nats::default();
        assert_eq!(CONSUMERS[0].config(&nats)["durable_name"], "xdr-status");
        let bucket = |bucket: &str| Kv {
            bucket: bucket.to_owned(),
            ..Kv::default()
        };
        nats.kv = Some(bucket("agents_site_b"));
        assert_eq!(CONSUMERS[0].config(&nats)["durable_name"], "xdr-status_site_b");
        nats.kv = Some(bucket("fleet"));
        assert_eq!(CONSUMERS[0].config(&nats)["durable_name"], "xdr-status");
    }
}
