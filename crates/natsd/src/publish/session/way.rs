//! By which way each kind of event reaches the broker: into a stream that acknowledges, or to whoever listens.

use std::time::{Duration, Instant};

use muster_config::PublishMode;
use muster_proto::event::{Kind, Stream};
use serde_json::json;

use super::{ASK, Session};
use crate::spool::record::Stored;

/// How long it is believed that there is no stream for a kind of event.
const BELIEVE_NO_STREAM: Duration = Duration::from_secs(30);

/// How an event of some kind reaches the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Not known until the broker answers, or this instant.
    Asking(Instant),
    /// A stream takes it, and acknowledges.
    JetStream,
    /// No stream takes it, as of then.
    Core(Instant),
}

impl Session<'_> {
    pub(super) async fn way(&mut self, event: &Stored) -> Result<Way, String> {
        let now = Instant::now();
        match self.publisher.nats.publish.mode {
            PublishMode::Jetstream => return Ok(Way::JetStream),
            PublishMode::Core => return Ok(Way::Core(now)),
            PublishMode::Auto => {}
        }
        match self.ways.get(&event.kind) {
            Some(Way::Asking(until)) if *until <= now => {
                // A broker that does not let us ask may still have a stream, and then it acknowledges.
                self.ways.insert(event.kind, Way::JetStream);
                return Ok(Way::JetStream);
            }
            Some(Way::Core(since)) if now.duration_since(*since) >= BELIEVE_NO_STREAM => {}
            Some(way) => return Ok(*way),
            // Where a stream has acknowledged before, its absence is a fault, and events wait for its return.
            None if self.publisher.shared.spool().kept(event.kind.stream()).is_some() => return Ok(Way::JetStream),
            None => {}
        }
        let way = if self.client.server_info().jetstream {
            let reply = format!("{}.w.{}", self.inbox, event.kind.code());
            let question = json!({"subject": event.subject}).to_string();
            let publish = self
                .client
                .publish_with_reply("$JS.API.STREAM.NAMES", reply, question.into());
            self.hand_over(publish).await?;
            Way::Asking(now + ASK)
        } else {
            Way::Core(now)
        };
        self.ways.insert(event.kind, way);
        self.report_ways();
        Ok(way)
    }

    pub(super) fn report_ways(&self) {
        let without = self.ways.iter().filter(|(_, way)| matches!(way, Way::Core(_)));
        let mut without: Vec<_> = without.map(|(kind, _)| kind.stream().name()).collect();
        without.sort_unstable();
        without.dedup();
        self.publisher.report.change(|facts| facts.without_stream = without);
    }

    /// What was sent without a stream is done when something that was sent behind it has come back: the broker reads a
    /// connection in order. That it may not come back, and says so, proves the same.
    pub(super) async fn prove(&mut self) -> Result<(), String> {
        if self.unproven.is_empty() || self.round_trip.is_some() {
            return Ok(());
        }
        self.attempts += 1;
        self.proving = std::mem::take(&mut self.unproven);
        self.round_trip = Some((self.attempts, Instant::now()));
        let subject = format!("{}.p.{}", self.inbox, self.attempts);
        self.hand_over(self.client.publish(subject, "".into())).await
    }

    pub(super) fn proved(&mut self) {
        self.round_trip = None;
        for (lane, seq) in std::mem::take(&mut self.proving) {
            self.publisher.counters.events_unacknowledged_total.increment();
            self.done(lane, seq);
        }
    }

    pub(super) fn unproved(&mut self, why: &str) {
        self.round_trip = None;
        let lost = std::mem::take(&mut self.proving)
            .into_iter()
            .chain(std::mem::take(&mut self.unproven));
        for (lane, seq) in lost.collect::<Vec<_>>() {
            self.fail(lane, seq, why);
        }
    }

    pub(super) fn may_go_without(&self, stream: Stream) -> bool {
        self.publisher.nats.publish.mode == PublishMode::Auto && self.publisher.shared.spool().kept(stream).is_none()
    }

    pub(super) fn settle_way(&mut self, kind: Option<Kind>, has_stream: Option<bool>) {
        let Some(kind) = kind else { return };
        if matches!(self.ways.get(&kind), Some(Way::Asking(_))) {
            let way = match has_stream {
                Some(false) => Way::Core(Instant::now()),
                _ => Way::JetStream,
            };
            self.ways.insert(kind, way);
            self.report_ways();
        }
    }
}
