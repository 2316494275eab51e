//! One connection's life: sending from the spool, and settling what the broker answers.
//!
//! One subscription takes all answers: `<inbox>.a.<lane>.<sequence>` to events, and further letters for the questions that
//! go with them. So nothing waits for a single answer, a late one still counts, and the broker's "nobody takes this"
//! comes at once.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use muster_config::PublishMode;
use muster_proto::event::{Kind, Stream, body::SpoolGap, header};
use muster_service::clock;
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Publisher,
    answer::{self, Answer},
    connection::{INBOX_PREFIX, News},
    kv::Writer,
    lane::{Clearance, Lane},
};
use crate::{
    keeper::{Errand, chain},
    spool::{Place, record::Stored},
};

/// How many events of each stream are sent in turn, so that a backlog of alerts does not hide status changes.
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
/// How long it is believed that there is no stream for a kind of event.
const BELIEVE_NO_STREAM: Duration = Duration::from_secs(30);
/// How long the broker may take to say whether there is a stream; without an answer it is taken for granted.
const ASK: Duration = Duration::from_secs(2);
/// From this age on an event says how late it is.
const LATE_S: u64 = 5;
/// How long the last acknowledgements are waited for at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Answers that are settled before the next events are sent.
const ANSWERS_AT_ONCE: usize = 128;
/// Events whose round trips are being measured.
const MAX_MEASURED: usize = 4096;

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// As told.
    Stopped,
    /// The connection was there, and broke.
    Lost(String),
    /// There was none.
    Failed(String),
}

/// How an event of some kind reaches the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Not known until the broker answers, or this instant.
    Asking(Instant),
    /// A stream takes it, and acknowledges.
    JetStream,
    /// No stream takes it, as of then.
    Core(Instant),
}

/// Something that the broker was asked, and that ends when it does not answer.
#[derive(Debug)]
struct Deadline {
    at: Instant,
    lane: usize,
    seq: u64,
    attempt: u64,
}

pub(super) struct Session<'a> {
    publisher: &'a Publisher,
    client: Client,
    news: mpsc::Receiver<News>,
    inbox: String,
    answers: Subscriber,
    lanes: Vec<Lane>,
    /// What was read from the index and not yet sent, a queue for each lane.
    ahead: Vec<VecDeque<Place>>,
    /// Lanes that send nothing until the broker has said how far its stream goes.
    asked: Vec<Option<Instant>>,
    deadlines: VecDeque<Deadline>,
    attempts: u64,
    ways: HashMap<Kind, Way>,
    /// Sent without a stream, and no round trip begun since.
    unproven: Vec<(usize, u64)>,
    /// Sent without a stream before the round trip that is under way.
    proving: Vec<(usize, u64)>,
    round_trip: Option<(u64, Instant)>,
    sent_at: HashMap<u64, Instant>,
    pace: Pace,
    kv: Option<Writer>,
    window: usize,
}

impl<'a> Session<'a> {
    pub(super) async fn begin(
        publisher: &'a Publisher,
        client: Client,
        news: mpsc::Receiver<News>,
    ) -> Result<Self, String> {
        let inbox = client.new_inbox();
        let answers = client
            .subscribe(format!("{inbox}.>"))
            .await
            .map_err(|error| chain(&error))?;
        let window = usize::try_from(publisher.nats.publish.window)
            .unwrap_or(usize::MAX)
            .max(1);
        let kv = publisher.shared.roll().zip(publisher.nats.kv.as_ref());
        let kv = kv.map(|(mut roll, kv)| Writer::new(&mut roll, &kv.bucket, &inbox));
        let mut session = Self {
            kv,
            publisher,
            client,
            news,
            inbox,
            answers,
            lanes: TURNS.iter().map(|(stream, _)| Lane::new(*stream)).collect(),
            ahead: TURNS.iter().map(|_| VecDeque::new()).collect(),
            asked: TURNS.iter().map(|_| None).collect(),
            deadlines: VecDeque::new(),
            attempts: 0,
            ways: HashMap::new(),
            unproven: Vec::new(),
            proving: Vec::new(),
            round_trip: None,
            sent_at: HashMap::new(),
            pace: Pace::new(publisher.nats.publish.drain_rate),
            window,
        };
        session.ask_how_far().await?;
        Ok(session)
    }

    pub(super) async fn run(&mut self, stop: &CancellationToken) -> End {
        let mut committed = self.publisher.shared.committed.subscribe();
        loop {
            // What is committed from here on wakes the wait below.
            committed.mark_unchanged();
            let sent = self.send_what_may_go().await;
            if let Err(why) = sent.and(self.prove().await).and(self.write_kv().await) {
                return End::Lost(why);
            }
            let wait = self.next_instant();
            tokio::select! {
                () = stop.cancelled() => break,
                answer = self.answers.next() => match answer {
                    Some(answer) => {
                        self.settle_answer(&answer);
                        self.settle_ready();
                    }
                    None => return End::Lost("the client has ended".to_owned()),
                },
                news = self.news.recv() => match news {
                    Some(News::Lost(why)) => return End::Lost(why),
                    Some(news) => self.hear(news),
                    None => return End::Lost("the client has ended".to_owned()),
                },
                () = tokio::time::sleep_until(wait.into()) => {}
                _ = committed.changed() => {}
            }
            self.expire(Instant::now());
        }
        self.drain().await;
        End::Stopped
    }

    /// When something has to be done although nothing happens.
    fn next_instant(&self) -> Instant {
        let now = Instant::now();
        let resumes = self.lanes.iter().filter_map(Lane::resume_at);
        let asked = self.asked.iter().flatten().copied();
        let asking = self.ways.values().filter_map(|way| match way {
            Way::Asking(until) => Some(*until),
            _ => None,
        });
        let deadline = self.deadlines.front().map(|deadline| deadline.at);
        let round_trip = self
            .round_trip
            .map(|(_, at)| at + self.publisher.nats.publish.ack_timeout);
        let pace = self.pace.resume_at(now);
        resumes
            .chain(asked)
            .chain(asking)
            .chain(deadline)
            .chain(round_trip)
            .chain(pace)
            .chain([now + Duration::from_secs(1)])
            .min()
            .unwrap_or(now)
    }

    /// The broker may have lost what it had acknowledged: an acknowledgement is no promise that it survives a power cut.
    async fn ask_how_far(&mut self) -> Result<(), String> {
        for (place, (stream, _)) in TURNS.iter().enumerate() {
            let kept = self.publisher.shared.spool().kept(*stream).cloned();
            if let Some(kept) = kept {
                let reply = format!("{}.i.{place}", self.inbox);
                let subject = format!("$JS.API.STREAM.INFO.{}", kept.name);
                self.hand_over(self.client.publish_with_reply(subject, reply, "".into()))
                    .await?;
                self.asked[place] = Some(Instant::now() + ASK);
            }
        }
        Ok(())
    }

    /// The client only queues; when it takes nothing, the connection is as good as lost.
    async fn hand_over<E: std::error::Error>(
        &self,
        publish: impl Future<Output = Result<(), E>>,
    ) -> Result<(), String> {
        match timeout(HAND_OVER, publish).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err("the client takes nothing".to_owned()),
        }
    }

    async fn send_what_may_go(&mut self) -> Result<(), String> {
        loop {
            let mut any = false;
            for (place, (_, turn)) in TURNS.iter().enumerate() {
                for _ in 0..*turn {
                    let under_way: usize = self.lanes.iter().map(Lane::under_way).sum();
                    if under_way >= self.window {
                        return Ok(());
                    }
                    if !self.send_next(place).await? {
                        break;
                    }
                    any = true;
                }
            }
            if !any {
                return Ok(());
            }
        }
    }

    /// Sends the next event of a lane. Whether there was one that might go.
    async fn send_next(&mut self, lane: usize) -> Result<bool, String> {
        let (stream, now) = (self.lanes[lane].stream, Instant::now());
        if self.asked[lane].is_some() {
            return Ok(false);
        }
        let Some(behind) = self.lanes[lane].look_behind(self.window, now) else {
            return Ok(false);
        };
        if self.ahead[lane]
            .front()
            .is_some_and(|place| place.seq <= behind || behind == 0)
        {
            self.ahead[lane].clear();
        }
        if self.ahead[lane].is_empty() {
            let waiting = self.publisher.shared.spool().waiting(stream, behind, READ_AHEAD);
            self.ahead[lane].extend(waiting);
        }
        let Some(place) = self.ahead[lane].front().cloned() else {
            return Ok(false);
        };
        let event = match place.read() {
            Ok(event) => event,
            Err(error) => {
                self.unreadable(lane, place.seq, &error);
                return Ok(false);
            }
        };
        if self.lanes[lane].clearance(&event.key) == Clearance::Wait {
            return Ok(false);
        }
        let way = self.way(&event).await?;
        if matches!(way, Way::Asking(_)) || !self.pace.may_go(&event, now) {
            return Ok(false);
        }
        self.ahead[lane].pop_front();
        self.attempts += 1;
        self.lanes[lane].sent(event.seq, self.attempts, &event.key);
        let expected = self.expected_stream(stream);
        let headers = headers(&event, expected);
        let (seq, body, subject) = (event.seq, event.body.into(), event.subject);
        let handed = match way {
            Way::Core(_) => {
                let publish = self.client.publish_with_headers(subject, headers, body);
                timeout(HAND_OVER, publish).await
            }
            _ => {
                let reply = format!("{}.a.{lane}.{seq}", self.inbox);
                let publish = self
                    .client
                    .publish_with_reply_and_headers(subject, reply, headers, body);
                timeout(HAND_OVER, publish).await
            }
        };
        match handed {
            Ok(Ok(())) if matches!(way, Way::Core(_)) => self.unproven.push((lane, seq)),
            Ok(Ok(())) => self.deadlines.push_back(Deadline {
                at: now + self.publisher.nats.publish.ack_timeout,
                lane,
                seq,
                attempt: self.attempts,
            }),
            Ok(Err(error)) if error.kind() == async_nats::PublishErrorKind::MaxPayloadExceeded => {
                self.give_up(lane, seq, &chain(&error));
            }
            Ok(Err(error)) => return Err(chain(&error)),
            Err(_) => return Err("the client takes nothing".to_owned()),
        }
        if seq.is_multiple_of(64) {
            self.sent_at.insert(seq, now);
        }
        Ok(true)
    }

    fn unreadable(&mut self, lane: usize, seq: u64, error: &std::io::Error) {
        // It may have been dropped, and its segment rewritten, since it was read from the index.
        self.ahead[lane].clear();
        if self.publisher.shared.spool().waits(self.lanes[lane].stream, seq) {
            if error.kind() == std::io::ErrorKind::InvalidData {
                // The disk has damaged it since it was written.
                tracing::error!(%error, seq, "an event of the spool is damaged and lost");
                self.lose(lane, seq, "damaged");
            } else {
                tracing::error!(%error, seq, "cannot read an event of the spool");
                self.lanes[lane].failed(seq, Instant::now());
            }
        }
    }

    /// In the automatic mode a site may have streams of its own; then the broker says so with its first answer.
    fn expected_stream(&self, stream: Stream) -> Option<&'static str> {
        match self.publisher.nats.publish.mode {
            PublishMode::Jetstream => Some(stream.name()),
            PublishMode::Auto => {
                let spool = self.publisher.shared.spool();
                let ours = spool.kept(stream).is_some_and(|kept| kept.name == stream.name());
                ours.then(|| stream.name())
            }
            PublishMode::Core => None,
        }
    }

    async fn way(&mut self, event: &Stored) -> Result<Way, String> {
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

    fn report_ways(&self) {
        let without = self.ways.iter().filter(|(_, way)| matches!(way, Way::Core(_)));
        let mut without: Vec<_> = without.map(|(kind, _)| kind.stream().name()).collect();
        without.sort_unstable();
        without.dedup();
        self.publisher.report.change(|facts| facts.without_stream = without);
    }

    /// What was sent without a stream is done when something that was sent behind it has come back: the broker reads a
    /// connection in order. That it may not come back, and says so, proves the same.
    async fn prove(&mut self) -> Result<(), String> {
        if self.unproven.is_empty() || self.round_trip.is_some() {
            return Ok(());
        }
        self.attempts += 1;
        self.proving = std::mem::take(&mut self.unproven);
        self.round_trip = Some((self.attempts, Instant::now()));
        let subject = format!("{}.p.{}", self.inbox, self.attempts);
        self.hand_over(self.client.publish(subject, "".into())).await
    }

    fn proved(&mut self) {
        self.round_trip = None;
        for (lane, seq) in std::mem::take(&mut self.proving) {
            self.publisher.counters.events_unacknowledged_total.increment();
            self.done(lane, seq);
        }
    }

    fn unproved(&mut self, why: &str) {
        self.round_trip = None;
        let lost = std::mem::take(&mut self.proving)
            .into_iter()
            .chain(std::mem::take(&mut self.unproven));
        for (lane, seq) in lost.collect::<Vec<_>>() {
            self.fail(lane, seq, why);
        }
    }

    async fn write_kv(&mut self) -> Result<(), String> {
        let Some(kv) = &mut self.kv else { return Ok(()) };
        loop {
            let next = self
                .publisher
                .shared
                .roll()
                .and_then(|mut roll| kv.next(&mut roll, clock::unix_ms()));
            let Some(put) = next else { return Ok(()) };
            let publish = self.client.publish_with_reply(put.subject, put.reply, put.value.into());
            match timeout(HAND_OVER, publish).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(chain(&error)),
                Err(_) => return Err("the client takes nothing".to_owned()),
            }
        }
    }

    fn settle_ready(&mut self) {
        for _ in 0..ANSWERS_AT_ONCE {
            match self.answers.next().now_or_never() {
                Some(Some(answer)) => self.settle_answer(&answer),
                _ => return,
            }
        }
    }

    fn settle_answer(&mut self, message: &Message) {
        let Some(rest) = message
            .subject
            .strip_prefix(&self.inbox)
            .and_then(|rest| rest.strip_prefix('.'))
        else {
            return;
        };
        let nobody = message.status == Some(StatusCode::NO_RESPONDERS);
        let mut tokens = rest.split('.');
        let (what, one, two) = (tokens.next(), tokens.next(), tokens.next());
        let number = |token: Option<&str>| token.and_then(|token| token.parse::<u64>().ok());
        match (what, number(one), number(two)) {
            (Some("a"), Some(lane), Some(seq)) => {
                let lane = usize::try_from(lane).unwrap_or(usize::MAX);
                if lane < self.lanes.len() {
                    self.settle_event(lane, seq, Answer::read(nobody, &message.payload));
                }
            }
            (Some("p"), Some(attempt), None) if self.round_trip.is_some_and(|(asked, _)| asked == attempt) => {
                self.proved();
            }
            (Some("w"), Some(kind), None) => {
                let kind = u8::try_from(kind).ok().and_then(Kind::from_code);
                self.settle_way(kind, answer::has_stream(nobody, &message.payload));
            }
            (Some("i"), Some(lane), None) => {
                let lane = usize::try_from(lane).unwrap_or(usize::MAX);
                if lane < self.lanes.len() {
                    self.settle_how_far(lane, answer::last_sequence(nobody, &message.payload));
                }
            }
            (Some("k"), Some(id), None) => {
                let kept = matches!(Answer::read(nobody, &message.payload), Answer::Kept { .. });
                if let Some((kv, mut roll)) = self.kv.as_mut().zip(self.publisher.shared.roll()) {
                    kv.settle(&mut roll, id, kept);
                }
                if kept {
                    self.publisher.counters.kv_writes_total.increment();
                }
            }
            _ => {}
        }
    }

    fn settle_event(&mut self, lane: usize, seq: u64, answer: Answer) {
        let stream = self.lanes[lane].stream;
        match answer {
            Answer::Kept { stream: name, sequence } => {
                self.publisher.shared.spool().note_kept(stream, &name, sequence, seq);
                self.done(lane, seq);
            }
            Answer::Nobody if self.may_go_without(stream) => {
                // No stream takes it, and nobody listens either.
                let now = Instant::now();
                self.ways.retain(|kind, _| kind.stream() != stream);
                let kinds = Kind::ALL.into_iter().filter(|kind| kind.stream() == stream);
                self.ways.extend(kinds.map(|kind| (kind, Way::Core(now))));
                self.report_ways();
                self.publisher.counters.events_unacknowledged_total.increment();
                self.done(lane, seq);
            }
            Answer::Nobody => {
                let why = format!(
                    "the broker has no stream that takes its subjects; expected {}",
                    stream.name()
                );
                self.fail(lane, seq, &why);
            }
            Answer::Foreign => self.fail(lane, seq, "somebody who is no stream answers to the subject"),
            refused if refused.is_hopeless() => self.give_up(lane, seq, "larger than the stream takes"),
            Answer::Refused { code, why } => self.fail(lane, seq, &format!("{why} ({code})")),
        }
    }

    fn may_go_without(&self, stream: Stream) -> bool {
        self.publisher.nats.publish.mode == PublishMode::Auto && self.publisher.shared.spool().kept(stream).is_none()
    }

    fn settle_way(&mut self, kind: Option<Kind>, has_stream: Option<bool>) {
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

    fn settle_how_far(&mut self, lane: usize, last: Option<u64>) {
        self.asked[lane] = None;
        let stream = self.lanes[lane].stream;
        let Some((last, kept)) = last.zip(self.publisher.shared.spool().kept(stream).cloned()) else {
            return;
        };
        if last >= kept.sequence {
            return;
        }
        let rewound = self.publisher.shared.spool().rewind(stream, last);
        let again = rewound.unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "cannot read the spool again");
            0
        });
        tracing::error!(
            stream = kept.name,
            acknowledged = kept.sequence,
            last,
            again,
            "the broker has lost events that it had acknowledged; what the spool still has is sent again"
        );
        self.publisher.counters.events_rewound_total.add(again);
        self.publisher.shared.note(
            "broker_lost_events",
            json!({"stream": kept.name, "acknowledged": kept.sequence, "last": last, "sent_again": again}),
        );
        self.ahead[lane].clear();
        self.lanes[lane].rewind();
    }

    fn done(&mut self, lane: usize, seq: u64) {
        let stream = self.lanes[lane].stream;
        let was_stuck = self.lanes[lane].is_stuck();
        self.lanes[lane].acknowledged(seq);
        self.publisher.shared.spool().acknowledge(stream, seq);
        self.publisher.counters.events_published_total.increment();
        let round_trip = self.sent_at.remove(&seq).map(|at| at.elapsed().as_micros());
        self.publisher.report.change(|facts| {
            facts.last_ack_ms = clock::unix_ms();
            if let Some(round_trip) = round_trip {
                facts.round_trip_us = u64::try_from(round_trip).unwrap_or(u64::MAX);
            }
            if was_stuck {
                facts.stuck.remove(stream.name());
            }
        });
        if was_stuck {
            tracing::info!(stream = stream.name(), "events are acknowledged again");
        }
    }

    fn fail(&mut self, lane: usize, seq: u64, why: &str) {
        let (publisher, lane) = (self.publisher, &mut self.lanes[lane]);
        publisher.counters.events_retried_total.increment();
        let was_stuck = lane.is_stuck();
        lane.failed(seq, Instant::now());
        let stream = lane.stream.name();
        tracing::debug!(seq, why, stream, "an event is sent again");
        if lane.is_stuck() {
            // One line for a lane that gets stuck, not one for each event of its window.
            if !was_stuck {
                tracing::warn!(why, stream, "events are not acknowledged and wait");
                publisher.shared.note("stuck", json!({"stream": stream, "why": why}));
            }
            publisher.report.change(|facts| {
                facts.stuck.insert(stream, why.to_owned());
            });
        }
        publisher.report.change(|facts| facts.last_error = Some(why.to_owned()));
    }

    fn give_up(&mut self, lane: usize, seq: u64, why: &str) {
        let stream = self.lanes[lane].stream.name();
        tracing::error!(seq, why, stream, "an event can never be published and is given up");
        self.lose(lane, seq, "too_large");
    }

    /// An event that can never be published; it is told as a gap.
    fn lose(&mut self, lane: usize, seq: u64, reason: &'static str) {
        let stream = self.lanes[lane].stream;
        self.publisher.counters.events_given_up_total.increment();
        let now = clock::unix_ms();
        let gap = SpoolGap {
            class: "unknown",
            node: &self.publisher.node,
            epoch: self.publisher.epoch,
            from_seq: seq,
            to_seq: seq,
            count: 1,
            first_ts: now / 1000,
            last_ts: now / 1000,
            reason,
            stream: stream.name(),
            prev_last_seq: None,
        };
        if self.publisher.shared.send(Errand::Event(gap.into_event(now))) {
            self.lanes[lane].acknowledged(seq);
            self.publisher.shared.spool().acknowledge(stream, seq);
        } else {
            self.lanes[lane].failed(seq, Instant::now());
        }
    }

    fn expire(&mut self, now: Instant) {
        while self.deadlines.front().is_some_and(|deadline| deadline.at <= now) {
            let Some(deadline) = self.deadlines.pop_front() else {
                return;
            };
            if self.lanes[deadline.lane].waits_for(deadline.seq, deadline.attempt) {
                self.fail(deadline.lane, deadline.seq, "the broker does not acknowledge in time");
            }
        }
        for asked in &mut self.asked {
            if asked.is_some_and(|until| until <= now) {
                // It does not say; then nothing can be compared.
                *asked = None;
            }
        }
        let patience = self.publisher.nats.publish.ack_timeout;
        if self.round_trip.is_some_and(|(_, begun)| begun + patience <= now) {
            self.unproved("the broker does not answer in time");
        }
        if self.sent_at.len() > MAX_MEASURED {
            self.sent_at.clear();
        }
    }

    fn hear(&mut self, news: News) {
        let text = match news {
            News::Error(text) => text,
            News::LameDuck => {
                tracing::info!("the NATS server is about to stop");
                return;
            }
            News::Lost(_) => return,
        };
        if text.contains(INBOX_PREFIX) && self.round_trip.is_some() {
            // We may not write to our own inbox: the broker has read that far all the same.
            self.proved();
            return;
        }
        self.publisher.counters.nats_errors_total.increment();
        if text.contains("$JS.API.STREAM.NAMES") {
            for way in self.ways.values_mut() {
                if matches!(way, Way::Asking(_)) {
                    *way = Way::JetStream;
                }
            }
            tracing::debug!(text, "the broker does not let us ask for streams");
            return;
        }
        if text.contains("$JS.API.STREAM.INFO") {
            self.asked.iter_mut().for_each(|asked| *asked = None);
        }
        if text.contains(&self.publisher.nats.subject_prefix) {
            self.unproved(&text);
        }
        if self.publisher.report.read().last_error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "NATS reports an error");
            self.publisher.shared.note("broker_error", json!({"error": text}));
        }
        self.publisher.report.change(|facts| facts.last_error = Some(text));
    }

    async fn drain(&mut self) {
        let until = Instant::now() + DRAIN;
        while self.lanes.iter().any(|lane| lane.under_way() > 0) && Instant::now() < until {
            if self.prove().await.is_err() {
                return;
            }
            match timeout(Duration::from_millis(100), self.answers.next()).await {
                Ok(Some(answer)) => self.settle_answer(&answer),
                Ok(None) => return,
                Err(_) => {}
            }
        }
    }
}

/// How fast a backlog may go, to protect the broker.
struct Pace {
    rate: u32,
    second: Instant,
    left: u32,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self {
            rate,
            second: Instant::now(),
            left: rate,
        }
    }

    /// Live events always may.
    fn may_go(&mut self, event: &Stored, now: Instant) -> bool {
        if self.rate == 0 || clock::unix_ms().saturating_sub(event.created_ms) / 1000 <= LATE_S {
            return true;
        }
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.left) = (now, self.rate);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    fn resume_at(&self, now: Instant) -> Option<Instant> {
        let next = self.second + Duration::from_secs(1);
        (self.rate > 0 && self.left == 0 && next > now).then_some(next)
    }
}

fn headers(event: &Stored, expected: Option<&'static str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &event.headers {
        headers.insert(name.as_str(), value.as_str());
    }
    if let Some(expected) = expected {
        headers.insert(header::EXPECTED_STREAM, expected);
    }
    let late = clock::unix_ms().saturating_sub(event.created_ms) / 1000;
    if late > LATE_S {
        headers.insert(header::DELAYED, late.to_string().as_str());
    }
    headers
}
