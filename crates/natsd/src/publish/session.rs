//! One connection's life: sending from the spool, and settling what the broker answers.
//!
//! One subscription takes all answers: `<inbox>.a.<lane>.<sequence>` to events, and further letters for the questions that
//! go with them. So nothing waits for a single answer, a late one still counts, and the broker's "nobody takes this"
//! comes at once.

mod how_far;
mod send;
mod settle;
mod way;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use muster_proto::event::{Kind, Stream};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    how_far::HowFar,
    way::{Unproven, Way},
};
use super::{
    Publisher,
    connection::{INBOX_PREFIX, News},
    kv::Writer,
    lane::Lane,
    pace::Pace,
    told::{self, Told},
    turns::{TURNS, Turns},
};
use crate::{keeper::chain, spool::Place};

/// How long the client may take to accept an event. It only queues it.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long the broker may take to say whether there is a stream; without an answer it is taken for granted.
const ASK: Duration = Duration::from_secs(2);
/// How long the last acknowledgements are waited for at the end.
const DRAIN: Duration = Duration::from_secs(5);
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
    turns: Turns,
    how_far: Vec<HowFar>,
    deadlines: VecDeque<Deadline>,
    attempts: u64,
    ways: HashMap<Kind, Way>,
    /// A subject of each kind that was asked for.
    subjects: HashMap<Kind, String>,
    /// Kinds that the broker had a stream for, and has none now.
    missing: HashSet<Kind>,
    /// Streams of which events were told to whoever listens, and wait.
    parked: HashSet<Stream>,
    /// Sent without a stream, and no round trip begun since.
    unproven: Vec<Unproven>,
    /// Sent without a stream before the round trip that is under way.
    proving: Vec<Unproven>,
    round_trip: Option<(u64, Instant)>,
    sent_at: HashMap<u64, Instant>,
    pace: Pace,
    told: Told,
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
        let kv = publisher.shared.roll().zip(publisher.nats.bucket());
        let kv = kv.map(|(mut roll, bucket)| Writer::new(&mut roll, bucket, &inbox));
        let mut told = Told::default();
        if let Some(error) = publisher.report.read().last_error {
            // The connection before ended with it.
            told.note(&error, Instant::now());
        }
        let mut session = Self {
            told,
            kv,
            publisher,
            client,
            news,
            inbox,
            answers,
            lanes: TURNS.iter().map(|(stream, _)| Lane::new(*stream)).collect(),
            turns: Turns::default(),
            ahead: TURNS.iter().map(|_| VecDeque::new()).collect(),
            how_far: TURNS.iter().map(|_| HowFar::at_first()).collect(),
            deadlines: VecDeque::new(),
            attempts: 0,
            ways: HashMap::new(),
            subjects: HashMap::new(),
            missing: HashSet::new(),
            parked: HashSet::new(),
            unproven: Vec::new(),
            proving: Vec::new(),
            round_trip: None,
            sent_at: HashMap::new(),
            pace: Pace::new(publisher.nats.publish.drain_rate),
            window,
        };
        // What was so for the connection before need not be so for this one.
        session.publisher.report.change(|facts| facts.stuck.clear());
        session.report_ways();
        session.ask_how_far().await?;
        Ok(session)
    }

    pub(super) async fn run(&mut self, stop: &CancellationToken) -> End {
        let mut committed = self.publisher.shared.committed.subscribe();
        loop {
            // What is committed from here on wakes the wait below.
            committed.mark_unchanged();
            let asked = self.ask_how_far().await.and(self.look_for_streams().await);
            let sent = self.send_what_may_go().await;
            if let Err(why) = asked.and(sent).and(self.prove().await).and(self.write_kv().await) {
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
        let asked = self.how_far.iter().filter_map(|how_far| how_far.asked);
        let deadline = self.deadlines.front().map(|deadline| deadline.at);
        let round_trip = self
            .round_trip
            .map(|(_, at)| at + self.publisher.nats.publish.ack_timeout);
        let pace = self.pace.resume_at(now);
        resumes
            .chain(asked)
            .chain(self.next_look())
            .chain(deadline)
            .chain(round_trip)
            .chain(pace)
            .chain([now + Duration::from_secs(1)])
            .min()
            .unwrap_or(now)
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

    fn expire(&mut self, now: Instant) {
        while self.deadlines.front().is_some_and(|deadline| deadline.at <= now) {
            let Some(deadline) = self.deadlines.pop_front() else {
                return;
            };
            if self.lanes[deadline.lane].waits_for(deadline.seq, deadline.attempt) {
                self.fail(deadline.lane, deadline.seq, "the broker does not acknowledge in time");
            }
        }
        for lane in 0..self.how_far.len() {
            if self.how_far[lane].asked.is_some_and(|until| until <= now) {
                self.settle_how_far(lane, None);
            }
        }
        self.expire_ways(now);
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
        let nats = &self.publisher.nats;
        if !nats.insists_on_buckets() && told::is_about_buckets(&text, nats.bucket().unwrap_or_default()) {
            tracing::debug!(text, "buckets that were not asked for cannot be used");
            self.kv = None;
            return;
        }
        self.publisher.counters.nats_errors_total.increment();
        if text.contains("$JS.API.STREAM.NAMES") {
            for kind in Kind::ALL {
                self.settle_way(Some(kind), None);
            }
            tracing::debug!(text, "the broker does not let us ask for streams");
            return;
        }
        if text.contains("$JS.API.STREAM.INFO") {
            for lane in 0..self.how_far.len() {
                self.settle_how_far(lane, None);
            }
        }
        if text.contains(&self.publisher.nats.subject_prefix) {
            self.unproved(&text);
        }
        if let Some(passed_over) = self.told.news(&text, Instant::now()) {
            tracing::warn!(error = text, passed_over, "NATS reports an error");
            self.publisher
                .shared
                .note("broker_error", json!({"error": text, "passed_over": passed_over}));
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
