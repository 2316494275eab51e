//! From the spool to the broker.
//!
//! Over JetStream an event is done when the broker has acknowledged it. Where the broker has no stream for a subject,
//! and the configuration does not insist on one, an event is done when it has been written to the connection. While
//! there is no connection nothing is sent, and the spool grows.

mod connection;
mod lane;

use std::{
    collections::{HashMap, VecDeque},
    future::IntoFuture,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self,
        context::{GetStreamByNameErrorKind, PublishErrorKind},
        message::PublishMessage,
    },
};
use futures_util::{Future, StreamExt, stream::FuturesUnordered};
use muster_config::{Nats, PublishMode};
use muster_proto::event::{Kind, Stream};
use muster_service::clock;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use self::lane::{Clearance, Lane};
use crate::{
    keeper::{Shared, chain},
    spool::{Place, record::Stored},
    status::{Counters, Link, Report},
};

/// How many events of each stream are sent in turn, so that a backlog of alerts does not hide status changes. In the
/// order of [`Stream::ALL`].
const TURNS: [(Stream, usize); 6] = [
    (Stream::Audit, 8),
    (Stream::State, 8),
    (Stream::Alerts, 4),
    (Stream::Keepalive, 2),
    (Stream::Osquery, 1),
    (Stream::Archives, 1),
];
/// Places read from the index at a time.
const READ_AHEAD: usize = 256;
/// How long the client may take to accept an event. It only queues it.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long it is believed that there is, or is no, stream for a kind of event.
const BELIEVE_NO_STREAM: Duration = Duration::from_secs(30);
/// How long the broker may take to say whether there is a stream.
const ASK_FOR_STREAM: Duration = Duration::from_secs(5);
/// From this age on an event says how late it is.
const LATE_S: u64 = 5;
/// How long the last acknowledgements are waited for at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long until a connection that could not even be tried is tried again.
const RETRY_CONNECT: Duration = Duration::from_secs(5);

/// How an event of some kind reaches the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A stream takes it, and acknowledges.
    JetStream,
    /// No stream takes it, as of then.
    Core(Instant),
}

type Outcome = (Stream, u64, Result<(), Failure>);
type UnderWay = FuturesUnordered<Pin<Box<dyn Future<Output = Outcome> + Send>>>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// Nobody knows whether it arrived: send it again.
    Unknown(String),
    /// No stream takes it.
    NoStream,
    /// It can never be published.
    Hopeless(String),
}

/// See the module.
pub(crate) struct Publisher {
    pub(crate) nats: Nats,
    pub(crate) node: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) report: Arc<Report>,
    pub(crate) counters: Arc<Counters>,
}

impl Publisher {
    /// Publishes until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let connected = connection::connect(&self.nats, &self.node, &self.report, &self.counters);
            let connected = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                connected = connected => connected,
            };
            match connected {
                Ok((client, link)) => {
                    let mut session = Session::new(&self, client, link);
                    session.run(&stop).await;
                }
                Err(error) => {
                    let why = chain(&error);
                    tracing::error!(error = why, "cannot connect to NATS; events wait in the spool");
                    self.report.change(|facts| facts.link = Link::Down(why));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY_CONNECT) => {}
            }
        }
    }
}

/// One client's life.
struct Session<'a> {
    publisher: &'a Publisher,
    client: Client,
    jetstream: jetstream::Context,
    link: watch::Receiver<bool>,
    lanes: Vec<Lane>,
    /// What was read from the index and not yet sent, a queue for each lane.
    ahead: Vec<VecDeque<Place>>,
    under_way: UnderWay,
    /// By kind, and whether it is a copy for the alerts' subject.
    ways: HashMap<(Kind, bool), Way>,
    /// Sent without a stream and not yet flushed.
    unflushed: Vec<(usize, u64)>,
}

impl<'a> Session<'a> {
    fn new(publisher: &'a Publisher, client: Client, link: watch::Receiver<bool>) -> Self {
        let window = usize::try_from(publisher.nats.publish.window)
            .unwrap_or(usize::MAX)
            .max(1);
        let jetstream = jetstream::context::ContextBuilder::new()
            .timeout(publisher.nats.publish.ack_timeout)
            .max_ack_inflight(window.saturating_mul(2))
            .build(client.clone());
        Self {
            publisher,
            client,
            jetstream,
            link,
            lanes: TURNS.iter().map(|(stream, _)| Lane::new(*stream)).collect(),
            ahead: TURNS.iter().map(|_| VecDeque::new()).collect(),
            under_way: FuturesUnordered::new(),
            ways: HashMap::new(),
            unflushed: Vec::new(),
        }
    }

    async fn run(&mut self, stop: &CancellationToken) {
        let mut committed = self.publisher.shared.committed.subscribe();
        loop {
            // What is committed from here on wakes the wait below.
            committed.mark_unchanged();
            if *self.link.borrow_and_update() {
                self.note_server();
                self.send_what_may_go().await;
                self.flush().await;
            }
            let wait = self.lanes.iter().filter_map(Lane::resume_at).min();
            let resume = async {
                match wait {
                    Some(instant) => tokio::time::sleep_until(instant.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(outcome) = self.under_way.next(), if !self.under_way.is_empty() => self.settle(outcome),
                changed = committed.changed() => if changed.is_err() { break },
                changed = self.link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    // Another server may have other streams.
                    self.ways.clear();
                }
                () = resume => {}
            }
            while let Some(Some(outcome)) = futures_util::FutureExt::now_or_never(self.under_way.next()) {
                self.settle(outcome);
            }
        }
        let drain = async {
            while let Some(outcome) = self.under_way.next().await {
                self.settle(outcome);
            }
        };
        if timeout(DRAIN, drain).await.is_err() {
            tracing::info!("some acknowledgements are missing; those events are sent again at the next start");
        }
    }

    fn note_server(&self) {
        let info = self.client.server_info();
        let server = format!("{} {} at {}:{}", info.server_name, info.version, info.host, info.port);
        if self.publisher.report.read().server != server {
            self.publisher.report.change(|facts| facts.server = server);
        }
    }

    /// Sends by turns until the window is full or nothing more may go.
    async fn send_what_may_go(&mut self) {
        let window = usize::try_from(self.publisher.nats.publish.window)
            .unwrap_or(usize::MAX)
            .max(1);
        loop {
            let mut any = false;
            for (place, (_, turn)) in TURNS.iter().enumerate() {
                for _ in 0..*turn {
                    if self.under_way.len() + self.unflushed.len() >= window {
                        return;
                    }
                    if !self.send_next(place).await {
                        break;
                    }
                    any = true;
                }
            }
            if !any || !*self.link.borrow() {
                return;
            }
        }
    }

    /// Sends the next event of a lane. Whether there was one that might go.
    async fn send_next(&mut self, lane: usize) -> bool {
        let stream = self.lanes[lane].stream;
        let Some(behind) = self.lanes[lane].look_behind(Instant::now()) else {
            self.ahead[lane].clear();
            return false;
        };
        if self.ahead[lane].front().is_some_and(|place| place.seq <= behind) {
            self.ahead[lane].clear();
        }
        if self.ahead[lane].is_empty() {
            self.ahead[lane].extend(self.publisher.shared.spool().waiting(stream, behind, READ_AHEAD));
        }
        let Some(place) = self.ahead[lane].front().cloned() else {
            return false;
        };
        let event = match place.read() {
            Ok(event) => event,
            Err(error) => {
                // It may have been dropped, and its segment rewritten, since it was read from the index.
                self.ahead[lane].clear();
                if self.publisher.shared.spool().waits(stream, place.seq) {
                    tracing::error!(%error, seq = place.seq, "cannot read an event of the spool");
                    self.lanes[lane].failed(place.seq, Instant::now());
                }
                return false;
            }
        };
        if self.lanes[lane].clearance(&event.key) == Clearance::Wait {
            return false;
        }
        self.ahead[lane].pop_front();
        match self.way(&event).await {
            Ok(Way::JetStream) => self.send_with_acknowledgement(lane, &event).await,
            Ok(Way::Core(_)) => self.send_without(lane, &event).await,
            Err(why) => {
                tracing::debug!(why, "the broker does not say whether it has a stream");
                self.lanes[lane].failed(event.seq, Instant::now());
                return false;
            }
        }
        true
    }

    async fn way(&mut self, event: &Stored) -> Result<Way, String> {
        match self.publisher.nats.publish.mode {
            PublishMode::Jetstream => return Ok(Way::JetStream),
            PublishMode::Core => return Ok(Way::Core(Instant::now())),
            PublishMode::Auto => {}
        }
        let about = (event.kind, is_copy(event));
        match self.ways.get(&about) {
            Some(Way::JetStream) => return Ok(Way::JetStream),
            Some(Way::Core(since)) if since.elapsed() < BELIEVE_NO_STREAM => return Ok(Way::Core(*since)),
            _ => {}
        }
        let way = ask_for_stream(self.jetstream.clone(), self.link.clone(), event.subject.clone()).await?;
        self.ways.insert(about, way);
        let without = self.ways.iter().filter(|(_, way)| matches!(way, Way::Core(_)));
        let mut without: Vec<_> = without.map(|((kind, _), _)| kind.stream().name()).collect();
        without.sort_unstable();
        without.dedup();
        self.publisher.report.change(|facts| facts.without_stream = without);
        Ok(way)
    }

    async fn send_with_acknowledgement(&mut self, lane: usize, event: &Stored) {
        let message = PublishMessage::build()
            .payload(event.body.clone().into())
            .headers(headers(event));
        let (stream, seq) = (self.lanes[lane].stream, event.seq);
        self.lanes[lane].sent(seq, &event.key);
        let handed = timeout(HAND_OVER, self.jetstream.send_publish(event.subject.clone(), message)).await;
        let outcome: Pin<Box<dyn Future<Output = Outcome> + Send>> = match handed {
            Ok(Ok(acknowledgement)) => Box::pin(async move {
                let outcome = acknowledgement.into_future().await;
                (stream, seq, outcome.map(drop).map_err(|error| failure(&error)))
            }),
            Ok(Err(error)) => Box::pin(std::future::ready((stream, seq, Err(failure(&error))))),
            Err(_) => {
                let why = Failure::Unknown("the client takes nothing".to_owned());
                Box::pin(std::future::ready((stream, seq, Err(why))))
            }
        };
        self.under_way.push(outcome);
    }

    async fn send_without(&mut self, lane: usize, event: &Stored) {
        self.lanes[lane].sent(event.seq, &event.key);
        let publish =
            self.client
                .publish_with_headers(event.subject.clone(), headers(event), event.body.clone().into());
        match timeout(HAND_OVER, publish).await {
            Ok(Ok(())) => self.unflushed.push((lane, event.seq)),
            Ok(Err(error)) => {
                let failure = match error.kind() {
                    async_nats::PublishErrorKind::Send => Failure::Unknown(chain(&error)),
                    _ => Failure::Hopeless(chain(&error)),
                };
                self.settle((self.lanes[lane].stream, event.seq, Err(failure)));
            }
            Err(_) => {
                let why = Failure::Unknown("the client takes nothing".to_owned());
                self.settle((self.lanes[lane].stream, event.seq, Err(why)));
            }
        }
    }

    /// What was sent without a stream is done when it has left, over a connection that was there all the time.
    async fn flush(&mut self) {
        if self.unflushed.is_empty() {
            return;
        }
        let flushed = timeout(HAND_OVER, self.client.flush()).await;
        let held = *self.link.borrow() && !self.link.has_changed().unwrap_or(true);
        let outcome = match flushed {
            Ok(Ok(())) if held => Ok(()),
            _ => Err(Failure::Unknown("the connection broke".to_owned())),
        };
        for (lane, seq) in std::mem::take(&mut self.unflushed) {
            self.settle((self.lanes[lane].stream, seq, outcome.clone()));
        }
    }

    fn settle(&mut self, (stream, seq, outcome): Outcome) {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) else {
            return;
        };
        let outcome = match outcome {
            // No stream took it, but whoever listened to the subject has it.
            Err(Failure::NoStream) if self.publisher.nats.publish.mode == PublishMode::Auto => {
                self.ways.retain(|(kind, _), _| kind.stream() != stream);
                Ok(())
            }
            other => other,
        };
        match outcome {
            Ok(()) => {
                lane.acknowledged(seq);
                self.publisher.shared.spool().acknowledge(stream, seq);
                self.publisher.counters.events_published_total.increment();
                self.publisher
                    .report
                    .change(|facts| facts.last_ack_ms = clock::unix_ms());
            }
            Err(Failure::Hopeless(why)) => {
                tracing::error!(
                    seq,
                    why,
                    stream = stream.name(),
                    "an event can never be published and is given up"
                );
                lane.acknowledged(seq);
                self.publisher.shared.spool().acknowledge(stream, seq);
            }
            Err(failure @ (Failure::Unknown(_) | Failure::NoStream)) => {
                let why = match failure {
                    Failure::Unknown(why) => why,
                    _ => format!("the broker has no stream that takes it; expected {}", stream.name()),
                };
                self.publisher.counters.events_retried_total.increment();
                lane.failed(seq, Instant::now());
                // One line for a lane that gets stuck, not one for each event of its window.
                if lane.is_stuck() {
                    tracing::warn!(why, stream = stream.name(), "events are not acknowledged and wait");
                } else {
                    tracing::debug!(seq, why, "an event is sent again");
                }
                self.publisher.report.change(|facts| facts.last_error = Some(why));
            }
        }
    }
}

async fn ask_for_stream(
    jetstream: jetstream::Context,
    link: watch::Receiver<bool>,
    subject: String,
) -> Result<Way, String> {
    if !jetstream.client().server_info().jetstream {
        return Ok(Way::Core(Instant::now()));
    }
    match timeout(ASK_FOR_STREAM, jetstream.stream_by_subject(subject)).await {
        Ok(Ok(_)) => Ok(Way::JetStream),
        Ok(Err(error)) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(Way::Core(Instant::now())),
        // A broker that does not let us ask may still have a stream, and then it acknowledges.
        Ok(Err(_)) | Err(_) if *link.borrow() => Ok(Way::JetStream),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err("no answer".to_owned()),
    }
}

fn is_copy(event: &Stored) -> bool {
    event.headers.iter().any(|(name, _)| name == "Muster-Copy-Of")
}

fn failure(error: &jetstream::context::PublishError) -> Failure {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Failure::NoStream,
        PublishErrorKind::MaxPayloadExceeded => Failure::Hopeless(chain(error)),
        _ => Failure::Unknown(chain(error)),
    }
}

fn headers(event: &Stored) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &event.headers {
        headers.insert(name.as_str(), value.as_str());
    }
    let late = clock::unix_ms().saturating_sub(event.created_ms) / 1000;
    if late > LATE_S {
        headers.insert("Muster-Delayed", late.to_string().as_str());
    }
    headers
}
