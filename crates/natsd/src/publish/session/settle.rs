//! What the broker answers, and what follows from it for an event.

use std::time::Instant;

use async_nats::{Message, StatusCode};
use futures_util::{FutureExt, StreamExt};
use muster_proto::event::Kind;
use muster_service::clock;
use serde_json::json;

use super::{
    super::answer::{self, Answer},
    Session,
};

/// Answers that are settled before the next events are sent.
const ANSWERS_AT_ONCE: usize = 128;

impl Session<'_> {
    pub(super) fn settle_ready(&mut self) {
        for _ in 0..ANSWERS_AT_ONCE {
            match self.answers.next().now_or_never() {
                Some(Some(answer)) => self.settle_answer(&answer),
                _ => return,
            }
        }
    }

    pub(super) fn settle_answer(&mut self, message: &Message) {
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
                    let answer = Answer::read(nobody, &message.payload);
                    self.watch(lane, &answer, &message.payload);
                    self.settle_event(lane, seq, answer);
                }
            }
            (Some("p"), Some(attempt), None) if self.round_trip.is_some_and(|(asked, _)| asked == attempt) => {
                self.proved();
            }
            (Some("w"), Some(kind), None) => {
                let kind = u8::try_from(kind).ok().and_then(Kind::from_code);
                self.settle_way(kind, answer::takes(nobody, &message.payload));
            }
            (Some("i"), Some(lane), None) => {
                let lane = usize::try_from(lane).unwrap_or(usize::MAX);
                if lane < self.lanes.len() {
                    self.settle_how_far(lane, answer::extent(nobody, &message.payload).as_ref());
                }
            }
            (Some("k"), Some(id), None) => {
                let answer = Answer::read(nobody, &message.payload);
                if let Some((kv, mut roll)) = self.kv.as_mut().zip(self.publisher.shared.roll())
                    && kv.settle(&mut roll, id, &answer)
                {
                    self.publisher.counters.kv_writes_total.increment();
                }
            }
            _ => {}
        }
    }

    pub(super) fn settle_event(&mut self, lane: usize, seq: u64, answer: Answer) {
        let stream = self.lanes[lane].stream;
        match answer {
            Answer::Kept { stream: name, sequence } => {
                self.publisher.shared.spool().note_kept(stream, &name, sequence, seq);
                self.publisher.report.published(stream, true);
                self.done(lane, seq);
            }
            Answer::Nobody => {
                let why = format!(
                    "the broker has no stream that takes its subjects; expected {}",
                    stream.name()
                );
                self.miss_stream(stream);
                self.fail(lane, seq, &why);
            }
            Answer::Foreign => self.fail(lane, seq, "somebody who is no stream answers to the subject"),
            refused if refused.is_hopeless() => self.give_up(lane, seq, "larger than the stream takes"),
            Answer::Refused { code, why } => self.fail(lane, seq, &format!("{why} ({code})")),
        }
    }

    pub(super) fn done(&mut self, lane: usize, seq: u64) {
        self.end_well(lane, seq);
        self.publisher.shared.acknowledge(self.lanes[lane].stream, seq);
        self.publisher.counters.events_published_total.increment();
        let round_trip = self.sent_at.remove(&seq).map(|at| at.elapsed().as_micros());
        self.publisher.report.change(|facts| {
            facts.last_ack_ms = clock::unix_ms();
            if let Some(round_trip) = round_trip {
                facts.round_trip_us = u64::try_from(round_trip).unwrap_or(u64::MAX);
            }
        });
    }

    /// An event is no longer under way, and went well.
    pub(super) fn end_well(&mut self, lane: usize, seq: u64) {
        let lane = &mut self.lanes[lane];
        lane.acknowledged(seq);
        let stream = lane.stream.name();
        // It may have got stuck on a connection before this one.
        let mut was_stuck = false;
        self.publisher
            .report
            .change(|facts| was_stuck = facts.stuck.remove(stream).is_some());
        if was_stuck {
            tracing::info!(stream, "events are acknowledged again");
        }
    }

    pub(super) fn fail(&mut self, lane: usize, seq: u64, why: &str) {
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

    pub(super) fn give_up(&mut self, lane: usize, seq: u64, why: &str) {
        let stream = self.lanes[lane].stream.name();
        tracing::error!(seq, why, stream, "an event can never be published and is given up");
        self.lose(lane, seq, "too_large");
    }

    /// An event that can never be published; it is told as a gap.
    pub(super) fn lose(&mut self, lane: usize, seq: u64, reason: &'static str) {
        self.publisher.counters.events_given_up_total.increment();
        self.publisher.shared.give_up(self.lanes[lane].stream, seq, reason);
        self.lanes[lane].acknowledged(seq);
    }
}
