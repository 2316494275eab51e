//! What service discovery is told: NATS asks `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` who is there (`nats micro ls`).
//!
//! Pure but for its id. It says which subjects are listened to and how many requests came, and nothing of agents; so it is not signed.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use muster_proto::{command::listen, event::subject::token};
use serde_json::{Value, json};

/// The name of the service.
const NAME: &str = "muster-natsd";
/// Everything that asks.
pub(crate) const SUBJECTS: &str = "$SRV.>";
/// What their subjects begin with.
pub(crate) const ROOT: &str = "$SRV.";
const DESCRIPTION: &str = "status, restart, reload and removal of agents; requests must be signed";

/// What went through, since the start.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    requests: AtomicU64,
    refused: AtomicU64,
    nanos: AtomicU64,
}

impl Stats {
    /// A request was dealt with.
    pub(crate) fn note(&self, refused: bool, took: std::time::Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.refused.fetch_add(refused.into(), Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// Who we are, as far as discovery is concerned.
#[derive(Debug)]
pub(crate) struct Service {
    /// Other than that of any other process.
    id: String,
    node: String,
    /// The subject that requests come to.
    subject: String,
    /// RFC 3339, with fractions of a second: some clients read no other.
    started: String,
    pub(crate) stats: Stats,
}

impl Service {
    pub(crate) fn new(prefix: &str, node: &str, now_s: u64) -> Self {
        let started = i64::try_from(now_s)
            .ok()
            .and_then(|now| jiff::Timestamp::from_second(now).ok());
        Self {
            id: nuid(),
            node: node.to_owned(),
            subject: listen(prefix, &token(node)),
            started: format!("{:.3}", started.unwrap_or_default()),
            stats: Stats::default(),
        }
    }

    /// The answer, if the subject asks us.
    pub(crate) fn answer(&self, subject: &str) -> Option<Vec<u8>> {
        let mut tokens = subject.strip_prefix(ROOT)?.split('.');
        let verb = tokens.next()?;
        let (name, id) = (tokens.next(), tokens.next());
        let is_ours = name.is_none_or(|name| name == NAME) && id.is_none_or(|id| id == self.id);
        if !is_ours || tokens.next().is_some() {
            return None;
        }
        let mut answer = json!({
            "name": NAME, "id": self.id, "version": env!("CARGO_PKG_VERSION"), "metadata": {"node": self.node},
        });
        let (kind, further) = match verb {
            "PING" => ("ping", Value::Null),
            "INFO" => (
                "info",
                json!({
                    "description": DESCRIPTION,
                    "endpoints": [{"name": "control", "subject": self.subject, "queue_group": "", "metadata": {}}],
                }),
            ),
            "STATS" => ("stats", self.figures()),
            _ => return None,
        };
        answer["type"] = json!(format!("io.nats.micro.v1.{kind}_response"));
        if let (Value::Object(answer), Value::Object(mut further)) = (&mut answer, further) {
            answer.append(&mut further);
        }
        serde_json::to_vec(&answer).ok()
    }

    fn figures(&self) -> Value {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (requests, nanos) = (of(&self.stats.requests), of(&self.stats.nanos));
        json!({
            "started": self.started,
            "endpoints": [{
                "name": "control", "subject": self.subject, "queue_group": "",
                "num_requests": requests, "num_errors": of(&self.stats.refused), "last_error": "",
                "processing_time": nanos, "average_processing_time": nanos.checked_div(requests).unwrap_or(0),
                // nats-py does not do without it.
                "data": null,
            }],
        })
    }
}

/// A name that no other process has.
fn nuid() -> String {
    let mut random = [0; 12];
    // Without random numbers two may have the same name; then discovery shows them as one.
    let _ = getrandom::fill(&mut random);
    URL_SAFE_NO_PAD.encode(random)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn service() -> Service {
        Service {
            id: "abc".to_owned(),
            node: "mgr-a".to_owned(),
            subject: "wazuh.xdr.control.mgr-a.>".to_owned(),
            started: "2026-11-21T12:00:00Z".to_owned(),
            stats: Stats::default(),
        }
    }

    fn answer(service: &Service, subject: &str) -> Value {
        serde_json::from_slice(&service.answer(subject).expect("an answer")).expect("JSON")
    }

    #[test]
    fn everybody_the_name_and_the_id_are_asked_for_alike() {
        for subject in ["$SRV.PING", "$SRV.PING.muster-natsd", "$SRV.PING.muster-natsd.abc"] {
            let answer = answer(&service(), subject);
            assert_eq!(answer["type"], "io.nats.micro.v1.ping_response", "{subject}");
            assert_eq!(
                (&answer["id"], &answer["metadata"]["node"]),
                (&json!("abc"), &json!("mgr-a"))
            );
        }
        let info = answer(&service(), "$SRV.INFO");
        assert_eq!(info["endpoints"][0]["subject"], "wazuh.xdr.control.mgr-a.>");
    }

    #[test]
    fn what_some_clients_insist_on_is_there() {
        let stats = answer(&Service::new("wazuh.xdr", "mgr-a", 1_795_243_200), "$SRV.STATS");
        assert_eq!(stats["started"], "2026-11-21T06:40:00.000Z");
        assert_eq!(stats["endpoints"][0].get("data"), Some(&Value::Null));
    }

    #[test]
    fn what_is_for_others_is_not_answered() {
        for subject in [
            "$SRV.PING.other",
            "$SRV.PING.muster-natsd.xyz",
            "$SRV.PING.muster-natsd.abc.d",
            "$SRV.SCHEMA",
            "$SRV.",
            "x",
        ] {
            assert!(service().answer(subject).is_none(), "{subject}");
        }
    }

    #[test]
    fn figures_are_those_of_the_requests() {
        let service = service();
        assert_eq!(
            answer(&service, "$SRV.STATS")["endpoints"][0]["average_processing_time"],
            0
        );
        service.stats.note(false, Duration::from_nanos(30));
        service.stats.note(true, Duration::from_nanos(10));
        let stats = answer(&service, "$SRV.STATS");
        let endpoint = &stats["endpoints"][0];
        assert_eq!(
            (&endpoint["num_requests"], &endpoint["num_errors"]),
            (&json!(2), &json!(1))
        );
        assert_eq!(endpoint["average_processing_time"], 20);
    }
}
