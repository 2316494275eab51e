//! By which way each kind of event reaches the broker: into a stream that acknowledges, or to whoever listens.
//!
//! An event for which there is no stream, though there could be one, goes to whoever listens, once, and waits: it is sent
//! again, with the same id, when a stream appears. Only where there is no JetStream at all is it done with that.

use std::time::{Duration, Instant};

use muster_config::PublishMode;
use muster_proto::event::{Kind, Stream};
use serde_json::json;

use super::{super::answer::Takes, ASK, Session};
use crate::spool::record::Stored;

/// How long it is believed that there is no JetStream.
const BELIEVE_NO_JETSTREAM: Duration = Duration::from_secs(30);
/// How often it is looked whether there is a stream now. Events wait for it.
const LOOK_FOR_STREAM: Duration = Duration::from_secs(2);

/// How an event of some kind reaches the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Not known until the broker answers, or this instant; and whether there was no stream when it was asked before.
    Asking(Instant, bool),
    /// A stream takes it, and acknowledges.
    JetStream,
    /// There is no JetStream, as of then.
    Core(Instant),
    /// There is no stream yet, as of then.
    Waiting(Instant),
}

/// Something that was sent to whoever listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unproven {
    pub(super) lane: usize,
    pub(super) seq: u64,
    /// Whether it goes on waiting for a stream.
    pub(super) waits: bool,
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
            Some(Way::Core(since)) if now.duration_since(*since) >= BELIEVE_NO_JETSTREAM => {}
            Some(way) => return Ok(*way),
            // Where a stream has acknowledged before, its absence shows at once.
            None if self.is_kept(event.kind.stream()) && !self.missing.contains(&event.kind) => {
                return Ok(Way::JetStream);
            }
            None => {}
        }
        self.ask_for_stream(event.kind, event.subject.clone()).await
    }

    /// Whether a stream has acknowledged anything of this before.
    fn is_kept(&self, stream: Stream) -> bool {
        self.publisher.shared.spool().kept(stream).is_some()
    }

    async fn ask_for_stream(&mut self, kind: Kind, subject: String) -> Result<Way, String> {
        let reply = format!("{}.w.{}", self.inbox, kind.code());
        let question = json!({"subject": subject}).to_string();
        let publish = self
            .client
            .publish_with_reply("$JS.API.STREAM.NAMES", reply, question.into());
        self.hand_over(publish).await?;
        let waited = matches!(self.ways.get(&kind), Some(Way::Waiting(_)));
        let way = Way::Asking(Instant::now() + ASK, waited);
        self.ways.insert(kind, way);
        self.subjects.insert(kind, subject);
        Ok(way)
    }

    /// Looks whether there is a stream now for what waits for one.
    pub(super) async fn look_for_streams(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let due = |way: &Way| matches!(way, Way::Waiting(since) if *since + LOOK_FOR_STREAM <= now);
        let due: Vec<Kind> = self
            .ways
            .iter()
            .filter(|(_, way)| due(way))
            .map(|(kind, _)| *kind)
            .collect();
        for kind in due {
            if let Some(subject) = self.subjects.get(&kind).cloned() {
                self.ask_for_stream(kind, subject).await?;
            }
        }
        Ok(())
    }

    /// When the broker is asked again, or does without an answer.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let instants = self.ways.values().filter_map(|way| match way {
            Way::Asking(until, _) => Some(*until),
            Way::Waiting(since) => Some(*since + LOOK_FOR_STREAM),
            Way::JetStream | Way::Core(_) => None,
        });
        instants.min()
    }

    /// The broker's answer to whether a stream takes this kind; nothing where it does not say.
    pub(super) fn settle_way(&mut self, kind: Option<Kind>, takes: Option<Takes>) {
        let Some(kind) = kind.filter(|kind| matches!(self.ways.get(kind), Some(Way::Asking(..)))) else {
            return;
        };
        let (now, stream) = (Instant::now(), kind.stream());
        let there_is_jetstream = self.client.server_info().jetstream || self.is_kept(stream);
        let way = match takes {
            Some(Takes::Stream) => Way::JetStream,
            Some(Takes::NoStream) => Way::Waiting(now),
            Some(Takes::NoJetStream) if there_is_jetstream => Way::Waiting(now),
            Some(Takes::NoJetStream) => Way::Core(now),
            // One that does not let us ask may still have a stream, and then it acknowledges.
            None if there_is_jetstream => Way::JetStream,
            None => Way::Core(now),
        };
        self.ways.insert(kind, way);
        if way == Way::JetStream {
            self.missing.remove(&kind);
            self.begin_anew(stream);
        }
        self.report_ways();
    }

    /// What waits no longer than this for an answer goes on without.
    pub(super) fn expire_ways(&mut self, now: Instant) {
        let unanswered = |way: &Way| matches!(way, Way::Asking(until, _) if *until <= now);
        let kinds: Vec<Kind> = self
            .ways
            .iter()
            .filter(|(_, way)| unanswered(way))
            .map(|(kind, _)| *kind)
            .collect();
        for kind in kinds {
            self.settle_way(Some(kind), None);
        }
    }

    /// A stream has appeared: what waits of its events is sent from the beginning, and in order.
    fn begin_anew(&mut self, stream: Stream) {
        let others = |(kind, way): (&Kind, &mut Way)| kind.stream() == stream && matches!(way, Way::Waiting(_));
        if self.ways.extract_if(|kind, way| others((kind, way))).count() == 0 && !self.parked.remove(&stream) {
            return;
        }
        self.parked.remove(&stream);
        if let Some(lane) = self.lanes.iter().position(|lane| lane.stream == stream) {
            tracing::info!(
                stream = stream.name(),
                "there is a stream now for events that waited for one"
            );
            self.ahead[lane].clear();
            self.lanes[lane].rewind();
        }
    }

    /// The broker says that no stream takes what one had taken, or was thought to.
    pub(super) fn miss_stream(&mut self, stream: Stream) {
        if self.publisher.nats.publish.mode == PublishMode::Auto {
            self.ways.retain(|kind, _| kind.stream() != stream);
            self.missing
                .extend(Kind::ALL.into_iter().filter(|kind| kind.stream() == stream));
        }
    }

    /// Whether this event has been told to whoever listens, and only waits. Then nothing is to be done for it, nor for what
    /// is before it in the same case.
    pub(super) fn only_waits(&mut self, lane: usize, seq: u64, way: Way) -> bool {
        let stream = self.lanes[lane].stream;
        let told = self.publisher.shared.spool().heard(stream);
        if !matches!(way, Way::Waiting(_)) || seq > told {
            return false;
        }
        let mut kinds = self.ways.iter().filter(|(kind, _)| kind.stream() == stream);
        let all_wait = kinds.all(|(_, way)| matches!(way, Way::Waiting(_)));
        self.parked.insert(stream);
        self.lanes[lane].pass(if all_wait { told } else { seq });
        true
    }

    pub(super) fn report_ways(&self) {
        let streams = |of: fn(&Way) -> bool| {
            let ways = self.ways.iter().filter(|(_, way)| of(way));
            let mut streams: Vec<_> = ways.map(|(kind, _)| kind.stream().name()).collect();
            streams.sort_unstable();
            streams.dedup();
            streams
        };
        let without = streams(|way| matches!(way, Way::Core(_)));
        let waiting = streams(|way| matches!(way, Way::Waiting(_) | Way::Asking(_, true)));
        let before = self.publisher.report.read();
        for stream in waiting
            .iter()
            .filter(|stream| !before.waiting_for_stream.contains(stream))
        {
            let why = "no stream takes them";
            tracing::warn!(
                stream,
                cure = "muster-natsd provision",
                "the broker has no stream for events: whoever listens hears them, and they wait in the spool"
            );
            self.publisher
                .shared
                .note("stuck", json!({"stream": stream, "why": why}));
        }
        if before.without_stream.is_empty() && !without.is_empty() {
            tracing::warn!("the broker has no JetStream: events go to whoever listens, and are not acknowledged");
        }
        self.publisher.report.change(|facts| {
            (facts.without_stream, facts.waiting_for_stream) = (without, waiting);
        });
    }

    /// What was sent without a stream has arrived when something that was sent behind it has come back: the broker reads a
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
        for Unproven { lane, seq, waits } in std::mem::take(&mut self.proving) {
            self.publisher.counters.events_unacknowledged_total.increment();
            if waits {
                let stream = self.lanes[lane].stream;
                self.end_well(lane, seq);
                self.publisher.shared.spool().note_heard(stream, seq);
                self.parked.insert(stream);
                self.sent_at.remove(&seq);
            } else {
                self.publisher.report.published(self.lanes[lane].stream, false);
                self.done(lane, seq);
            }
        }
    }

    pub(super) fn unproved(&mut self, why: &str) {
        self.round_trip = None;
        let lost = std::mem::take(&mut self.proving)
            .into_iter()
            .chain(std::mem::take(&mut self.unproven));
        for Unproven { lane, seq, .. } in lost.collect::<Vec<_>>() {
            self.fail(lane, seq, why);
        }
    }
}
