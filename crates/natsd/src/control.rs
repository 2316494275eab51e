//! `queue/muster/natsd.ctl`.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use muster_config::Nats;
use muster_proto::{
    ipc::control::{DaemonStatus, QueueStatus, Request, Response},
    paths,
};
use muster_service::{
    Reloader, clock,
    control::{Answer, Handler, StatusSource},
    ipc::Peer,
};
use serde_json::json;
use tokio::sync::{broadcast::error::RecvError, mpsc};

use crate::{
    audit,
    command::Doorkeeper,
    keeper::{Errand, MAX_WAITING_BATCHES, Shared, published},
    probe::Probe,
    status::{Claim, Counters, Hearing, Link, Report},
};

/// The largest look back.
const MAX_BACKLOG: u32 = 10_000;
/// Events that wait for a follower's socket; behind it the follower's own lag counts.
const FOLLOWER_QUEUE: usize = 256;

/// Answers questions.
pub(crate) struct Control {
    pub(crate) status: StatusSource,
    pub(crate) reloader: Reloader,
    pub(crate) shared: Arc<Shared>,
    pub(crate) report: Arc<Report>,
    pub(crate) counters: Arc<Counters>,
    /// Batches that wait for the spool.
    pub(crate) keeper: mpsc::WeakSender<crate::keeper::Batch>,
    pub(crate) settings: Nats,
    /// Who decides on requests over NATS, if they are heard.
    pub(crate) doorkeeper: Option<Doorkeeper>,
    pub(crate) node: String,
    pub(crate) epoch: u64,
    /// How events are protected, in words.
    pub(crate) trust: String,
    /// The fingerprint of the configuration as it was read last.
    pub(crate) config: Mutex<String>,
    /// Held while the way to the broker is tried: once at a time.
    pub(crate) probing: tokio::sync::Mutex<()>,
}

impl Handler for Control {
    async fn status(&self) -> DaemonStatus {
        let facts = self.report.read();
        let (depth, held) = {
            let spool = self.shared.spool();
            (spool.depth(), spool.held_count())
        };
        let waiting = self
            .keeper
            .upgrade()
            .map_or(0, |keeper| MAX_WAITING_BATCHES - keeper.capacity());
        let as_u64 = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let now = clock::unix_ms();
        let mut status = DaemonStatus {
            degraded: self.degraded(),
            listening: vec![paths::EVENTS_SOCKET.to_owned()],
            queues: vec![
                QueueStatus {
                    name: "intake".to_owned(),
                    used: as_u64(waiting),
                    capacity: as_u64(MAX_WAITING_BATCHES),
                    unit: "batches".to_owned(),
                    dropped: 0,
                },
                QueueStatus {
                    name: "spool".to_owned(),
                    used: depth.bytes,
                    capacity: self.settings.spool.max_bytes,
                    unit: "bytes".to_owned(),
                    dropped: depth.dropped,
                },
            ],
            counters: self.counters.values(),
            ..self.status.status()
        };
        let link = match &facts.link {
            Link::Off => "off".to_owned(),
            Link::Up => "connected".to_owned(),
            Link::Down(_) => "disconnected".to_owned(),
        };
        let failed = match &facts.link {
            Link::Down(_) => facts.failures,
            Link::Off | Link::Up => 0,
        };
        let control = match &facts.hearing {
            Hearing::Off => "off",
            Hearing::Up => "listening",
            Hearing::Down(_) => "not listening",
        }
        .to_owned();
        let claim = match &facts.claim {
            Claim::Unfenced => "nobody looks after it",
            Claim::Held => "yes",
            Claim::Taken(_) => "no",
        };
        let age = if depth.oldest_ms == 0 {
            0
        } else {
            now.saturating_sub(depth.oldest_ms) / 1000
        };
        let facts = [
            ("nats", link),
            ("server", facts.server),
            ("waiting_events", depth.waiting.to_string()),
            ("oldest_waiting_s", age.to_string()),
            ("last_ack_ms", facts.last_ack_ms.to_string()),
            ("dropped_ranges", facts.drops.ranges.to_string()),
            ("dropped_events", facts.drops.events.to_string()),
            ("dropped_latest", Vec::from(facts.drops.latest).join("; ")),
            ("failed_attempts", failed.to_string()),
            ("last_error", facts.last_error.unwrap_or_default()),
            ("round_trip_us", facts.round_trip_us.to_string()),
            ("held_events", held.to_string()),
            ("damaged_records", depth.damaged.to_string()),
            ("node", self.node.clone()),
            ("epoch", self.epoch.to_string()),
            ("trust", self.trust.clone()),
            ("control", control),
            ("name_is_ours", claim.to_owned()),
            ("streams", facts.drift.summary()),
            (
                "broker_skew_ms",
                facts
                    .skew_ms
                    .map_or_else(|| "unknown".to_owned(), |skew| skew.to_string()),
            ),
        ];
        let rates = self.report.rates().into_iter().flat_map(|rate| {
            let stream = rate.stream.name();
            [
                (format!("published_per_s {stream}"), format!("{:.1}", rate.published)),
                (
                    format!("acknowledged_per_s {stream}"),
                    format!("{:.1}", rate.acknowledged),
                ),
                (format!("published {stream}"), rate.total.to_string()),
            ]
        });
        status.facts = facts
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .chain(rates)
            .collect();
        if let Some(counts) = self.shared.owners().map(|owners| owners.counts()) {
            let counted = [
                ("agents_owned", counts.owned),
                ("agents_foreign", counts.foreign),
                ("agents_unconfirmed", counts.unconfirmed),
            ];
            let counted = counted.map(|(name, count)| (name.to_owned(), count.to_string()));
            status.facts.extend(counted);
        }
        status
    }

    async fn reload(&self) -> Result<String, String> {
        let settings = self.reloader.load()?;
        self.note_configuration();
        let rights = self.reload_rights(&settings.nats)?;
        let same = Nats {
            control: self.settings.control.clone(),
            control_keys: self.settings.control_keys.clone(),
            ..settings.nats.clone()
        };
        if same == self.settings && settings.nats.control.enabled == self.settings.control.enabled {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            self.shared.send(Errand::Keys(sender));
            let keys = receiver
                .await
                .unwrap_or_else(|_| Ok("nothing has changed".to_owned()))?;
            Ok(rights.map_or(keys.clone(), |rights| format!("{keys}; {rights}")))
        } else {
            Ok("<nats> has changed; restart natsd to use it".to_owned())
        }
    }

    async fn handle(&self, request: Request, _: Peer) -> Answer {
        match request {
            Request::FollowEvents { backlog } => self.follow(backlog.min(MAX_BACKLOG)),
            Request::NatsTest => self.test().await.into(),
            Request::NatsKeys => Response::NatsKeys(self.report.read().keys).into(),
            _ => Response::Unknown.into(),
        }
    }
}

impl Control {
    /// Who may send requests, and which: in force at once.
    fn reload_rights(&self, nats: &Nats) -> Result<Option<String>, String> {
        let Some(doorkeeper) = self.doorkeeper.as_ref().filter(|_| nats.control.enabled) else {
            return Ok(None);
        };
        doorkeeper.configure(nats).map_err(|error| error.to_string())?;
        let keys: Vec<_> = nats
            .control_keys
            .iter()
            .map(|key| json!({"id": key.id, "kid": key.key, "roles": key.roles}))
            .collect();
        let count = keys.len();
        self.shared
            .note("control_keys", json!({"keys": keys, "destroy": nats.control.destroy}));
        Ok(Some(format!("{count} control keys in force")))
    }

    fn degraded(&self) -> Vec<String> {
        let trouble = self.shared.trouble();
        let mut degraded: Vec<_> = trouble
            .map(|trouble| format!("the spool takes no events: {trouble}"))
            .into_iter()
            .collect();
        let audit = self.shared.audit_trouble();
        degraded.extend(audit.map(|why| format!("acts are missing in the audit trail: {why}")));
        degraded.extend(self.shared.owners.as_ref().and_then(|room| room.degraded()));
        degraded.extend(self.report.degraded());
        degraded
    }

    /// That the configuration has changed is in the audit trail, whether any of it counts now or not.
    fn note_configuration(&self) {
        let new = audit::fingerprint(Path::new(paths::CONFIG));
        let old = {
            let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *config, new.clone())
        };
        if old != new {
            let detail = json!({"file": paths::CONFIG, "before": old, "sha256": new});
            self.shared.note("configuration_changed", detail);
        }
    }

    async fn test(&self) -> Response {
        if !self.settings.enabled {
            return Response::Failed("nothing is published: etc/ossec.conf has no <nats> that is enabled".to_owned());
        }
        let Ok(_alone) = self.probing.try_lock() else {
            return Response::Failed("a test is under way already".to_owned());
        };
        let probe = Probe {
            nats: self.settings.clone(),
            node: self.node.clone(),
            shared: Arc::clone(&self.shared),
            report: Arc::clone(&self.report),
        };
        Response::NatsTest(Box::new(probe.run().await))
    }

    fn follow(&self, backlog: u32) -> Answer {
        // Subscribed before the look back, so that nothing falls between; what is in both is passed over.
        let mut followers = self.shared.followers.subscribe();
        let past = if backlog == 0 {
            Vec::new()
        } else {
            self.shared.spool().newest(usize::try_from(backlog).unwrap_or(0))
        };
        let (sender, receiver) = mpsc::channel(FOLLOWER_QUEUE);
        let counters = Arc::clone(&self.counters);
        tokio::spawn(async move {
            let mut last = 0;
            for event in past {
                last = event.seq;
                if sender.send(Response::Event(Box::new(published(event)))).await.is_err() {
                    return;
                }
            }
            loop {
                let event = tokio::select! {
                    event = followers.recv() => event,
                    () = sender.closed() => return,
                };
                match event {
                    Ok(event) if event.sequence <= last => {}
                    Ok(event) => {
                        if sender.send(Response::Event(Box::new((*event).clone()))).await.is_err() {
                            return;
                        }
                    }
                    Err(RecvError::Lagged(missed)) => {
                        counters.followers_dropped_total.increment();
                        let why = format!("you read too slowly: {missed} events were passed over");
                        let _ = sender.send(Response::Failed(why)).await;
                        return;
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Answer::Stream(receiver)
    }
}
