//! Whether streams and buckets are still what `muster-natsd provision` makes of them, looked at with each connection and
//! now and then.
//!
//! Told is what would lose or hide events or let somebody change them. What an operator may choose is none of our
//! business: sizes, ages, replicas, further subjects, a longer window, more than is asked for.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use async_nats::{Client, RequestErrorKind};
use futures_util::future::join_all;
use muster_config::{Nats, PublishMode};
use muster_proto::event::Stream;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::Publisher;
use crate::provision::wanted::{bucket_config, buckets_in_use, stream_config};

/// How often is looked, besides at the begin of a connection.
const LOOK: Duration = Duration::from_secs(600);
/// How long the broker may take for an answer. A right that is missing looks like no answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Nanoseconds of a second: the broker's unit.
const SECOND_NS: u64 = 1_000_000_000;

/// What the broker has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drift {
    /// What differs, by the name of the stream.
    pub(crate) differs: BTreeMap<String, Vec<String>>,
    /// Buckets that the broker does not have.
    pub(crate) missing_buckets: Vec<String>,
    /// Streams of which the broker does not say how they are, and why.
    pub(crate) unknown: BTreeMap<String, String>,
    /// Those that are as they should be.
    pub(crate) fine: usize,
}

/// What came of one question.
enum Found {
    Config(Value),
    Missing,
    Unknown(String),
}

/// Looks again and again while there is this connection. Never ends by itself.
pub(super) async fn run(client: &Client, publisher: &Publisher) -> Infallible {
    loop {
        if publisher.nats.publish.mode != PublishMode::Core && client.server_info().jetstream {
            let now = look(client, &publisher.nats).await;
            tell(publisher, now);
        }
        sleep(LOOK).await;
    }
}

async fn look(client: &Client, nats: &Nats) -> Drift {
    let streams = Stream::ALL.map(|stream| stream_config(stream, &nats.subject_prefix, 1, 100));
    let buckets = buckets_in_use(nats).into_iter().map(|bucket| bucket_config(&bucket, 1));
    let asked = streams.into_iter().chain(buckets).map(async |wanted| {
        let found = ask(client, wanted["name"].as_str().unwrap_or_default()).await;
        (wanted, found)
    });
    let mut drift = Drift::default();
    for (wanted, found) in join_all(asked).await {
        drift.note(&wanted, found);
    }
    drift
}

async fn ask(client: &Client, stream: &str) -> Found {
    let question = format!("$JS.API.STREAM.INFO.{stream}");
    let answer = match timeout(ANSWER, client.request(question.clone(), "".into())).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
            return Found::Unknown("the account has no JetStream".to_owned());
        }
        Ok(Err(error)) => return Found::Unknown(error.to_string()),
        Err(_) => {
            return Found::Unknown(format!(
                "no answer; the NATS user needs the right to publish {question}"
            ));
        }
    };
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
    if answer["error"]["code"] == 404 {
        return Found::Missing;
    }
    match (answer["error"]["description"].as_str(), &answer["config"]) {
        (None, config @ Value::Object(_)) => Found::Config(config.clone()),
        (why, _) => Found::Unknown(why.unwrap_or("an answer that is none").to_owned()),
    }
}

impl Drift {
    fn note(&mut self, wanted: &Value, found: Found) {
        let name = wanted["name"].as_str().unwrap_or_default();
        match found {
            // Whether a stream is there, those see who send to it.
            Found::Missing => self.missing_buckets.extend(name.strip_prefix("KV_").map(str::to_owned)),
            Found::Unknown(why) => drop(self.unknown.insert(name.to_owned(), why)),
            Found::Config(has) => {
                let differs = differences(wanted, &has);
                if differs.is_empty() {
                    self.fine += 1;
                } else {
                    self.differs.insert(name.to_owned(), differs);
                }
            }
        }
    }

    /// For people: how much is as it should be.
    pub(crate) fn summary(&self) -> String {
        let mut parts = vec![format!("{} as provisioned", self.fine)];
        for (count, what) in [
            (self.differs.len(), "differ"),
            (self.unknown.len(), "could not be compared"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        if let Some((name, why)) = self.unknown.first_key_value() {
            parts.push(format!("{name}: {why}"));
        }
        parts.join(", ")
    }
}

/// Each change once, in the log and in the audit trail.
fn tell(publisher: &Publisher, now: Drift) {
    let before = publisher.report.read().drift;
    for (stream, differs) in &now.differs {
        if before.differs.get(stream) != Some(differs) {
            tracing::warn!(
                stream,
                ?differs,
                "a stream is not as provisioned; mend it with `muster-natsd provision --update`"
            );
            let detail = json!({"stream": stream, "differences": differs});
            publisher.shared.note("provisioning_drift", detail);
        }
    }
    for stream in before.differs.keys() {
        if !now.differs.contains_key(stream) && !now.unknown.contains_key(stream) {
            tracing::info!(stream, "a stream is as provisioned again, or gone");
            publisher.shared.note("provisioning_mended", json!({"stream": stream}));
        }
    }
    if before.unknown != now.unknown
        && let Some(why) = now.unknown.values().next()
    {
        let streams: Vec<_> = now.unknown.keys().collect();
        tracing::info!(?streams, why, "streams cannot be compared with what was provisioned");
    }
    publisher.report.change(|facts| facts.drift = now);
}

/// Pure.
fn differences(wanted: &Value, has: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    for subject in texts(&wanted["subjects"]) {
        if !texts(&has["subjects"]).any(|pattern| covers(pattern, subject)) {
            differences.push(format!("it does not take {subject}"));
        }
    }
    // With another order of discarding, events of the audit would go for new ones, and others stop when it is full.
    for key in ["retention", "storage", "discard"] {
        if has[key] != wanted[key] {
            differences.push(format!("{key} is {}, not {}", has[key], wanted[key]));
        }
    }
    for key in ["deny_delete", "deny_purge", "allow_direct"] {
        if wanted[key] == true && has[key] != true {
            differences.push(format!("{key} is off"));
        }
    }
    for key in ["no_ack", "sealed"] {
        if has[key] == true {
            differences.push(format!("{key} is on"));
        }
    }
    let seconds = |config: &Value| config["duplicate_window"].as_u64().unwrap_or(0) / SECOND_NS;
    if seconds(has) < seconds(wanted) {
        differences.push(format!(
            "duplicate_window is {} s, not {} s",
            seconds(has),
            seconds(wanted)
        ));
    }
    let per_subject = |config: &Value| config["max_msgs_per_subject"].as_i64().unwrap_or(-1);
    if per_subject(wanted) < 0 && per_subject(has) > 0 {
        differences.push(format!("it keeps {} events of each subject only", per_subject(has)));
    }
    differences
}

fn texts(subjects: &Value) -> impl Iterator<Item = &str> {
    subjects.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether everything that goes to `subject`, which may have wildcards, also goes to `pattern`.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(pattern), Some(token)) if pattern == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(stream: Stream, key: &str, value: Value) -> Vec<String> {
        let wanted = stream_config(stream, "p", 1, 100);
        let mut has = wanted.clone();
        has[key] = value;
        differences(&wanted, &has)
    }

    #[test]
    fn what_an_operator_may_choose_is_no_drift() {
        for (key, value) in [
            ("max_age", json!(1)),
            ("max_bytes", json!(-1)),
            ("num_replicas", json!(5)),
            ("duplicate_window", json!(7200 * SECOND_NS)),
            ("description", json!("ours")),
            ("deny_delete", json!(true)),
            (
                "subjects",
                json!([
                    "q.agent.>",
                    "p.agent.*.>",
                    "p.alerts.agent_disconnected",
                    "p.manager.>",
                    "p.agentless.>"
                ]),
            ),
        ] {
            assert_eq!(changed(Stream::State, key, value), Vec::<String>::new(), "{key}");
        }
        assert_eq!(
            changed(Stream::Keepalive, "max_msgs_per_subject", json!(1)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_loses_hides_or_opens_events_is_drift() {
        for (stream, key, value, told) in [
            (Stream::Audit, "deny_delete", json!(false), "deny_delete is off"),
            (Stream::Audit, "deny_purge", Value::Null, "deny_purge is off"),
            (
                Stream::Audit,
                "discard",
                json!("old"),
                "discard is \"old\", not \"new\"",
            ),
            (
                Stream::State,
                "storage",
                json!("memory"),
                "storage is \"memory\", not \"file\"",
            ),
            (
                Stream::State,
                "retention",
                json!("workqueue"),
                "retention is \"workqueue\", not \"limits\"",
            ),
            (
                Stream::State,
                "duplicate_window",
                json!(120 * SECOND_NS),
                "duplicate_window is 120 s, not 600 s",
            ),
            (
                Stream::State,
                "max_msgs_per_subject",
                json!(1),
                "it keeps 1 events of each subject only",
            ),
            (Stream::State, "no_ack", json!(true), "no_ack is on"),
            (
                Stream::Alerts,
                "subjects",
                json!(["p.alerts.rule.high.*"]),
                "it does not take p.alerts.rule.>",
            ),
        ] {
            assert_eq!(changed(stream, key, value), [told]);
        }
    }

    #[test]
    fn pattern_covers_what_it_would_take_all_of() {
        for (pattern, subject) in [(">", "a.>"), ("a.>", "a.*.>"), ("a.*", "a.*"), ("a.*.>", "a.*.>")] {
            assert!(covers(pattern, subject), "{pattern} {subject}");
        }
        for (pattern, subject) in [
            ("a.*", "a.>"),
            ("a.*.x", "a.>"),
            ("a.b", "a.*"),
            ("a", "a.b"),
            ("a.>", "a"),
        ] {
            assert!(!covers(pattern, subject), "{pattern} {subject}");
        }
    }
}
