//! What goes next, and handing it to the client.

use std::time::Instant;

use async_nats::{HeaderMap, HeaderName};
use muster_config::PublishMode;
use muster_proto::event::{Stream, header};
use muster_service::clock;
use tokio::time::timeout;

use super::{
    super::lane::{Clearance, Lane},
    Deadline, HAND_OVER, Session,
    way::{Unproven, Way},
};
use crate::{keeper::chain, publish::pace::LATE_S, spool::record::Name};

/// Places read from the index at a time.
const READ_AHEAD: usize = 256;

impl Session<'_> {
    pub(super) async fn send_what_may_go(&mut self) -> Result<(), String> {
        self.turns.begin();
        while let Some(place) = self.turns.next() {
            let under_way: usize = self.lanes.iter().map(Lane::under_way).sum();
            if under_way >= self.window {
                break;
            }
            let has_sent = self.send_next(place).await?;
            self.turns.note(has_sent);
        }
        Ok(())
    }

    /// Sends the next event of a lane. Whether there was one that might go.
    pub(super) async fn send_next(&mut self, lane: usize) -> Result<bool, String> {
        let (stream, now) = (self.lanes[lane].stream, Instant::now());
        if self.how_far[lane].asked.is_some() {
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
        if self.only_waits(lane, event.seq, way) {
            self.ahead[lane].pop_front();
            return Ok(true);
        }
        if matches!(way, Way::Asking(..)) || !self.pace.may_go(event.created_ms, clock::unix_ms(), now) {
            return Ok(false);
        }
        self.ahead[lane].pop_front();
        self.attempts += 1;
        self.lanes[lane].sent(event.seq, self.attempts, &event.key);
        let expected = self.expected_stream(stream);
        let headers = headers(event.headers, event.created_ms, expected);
        let (seq, body, subject) = (event.seq, event.body.into(), event.subject);
        let handed = match way {
            Way::Core(_) | Way::Waiting(_) => {
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
            Ok(Ok(())) if matches!(way, Way::Core(_) | Way::Waiting(_)) => self.unproven.push(Unproven {
                lane,
                seq,
                waits: matches!(way, Way::Waiting(_)),
            }),
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

    pub(super) fn unreadable(&mut self, lane: usize, seq: u64, error: &std::io::Error) {
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
    pub(super) fn expected_stream(&self, stream: Stream) -> Option<&'static str> {
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

    pub(super) async fn write_kv(&mut self) -> Result<(), String> {
        let under_way: usize = self.lanes.iter().map(Lane::under_way).sum();
        let crowded = under_way >= self.window / 32;
        let Some(kv) = &mut self.kv else { return Ok(()) };
        // Of agents that are another manager's nothing is written, and nobody knows yet which those are.
        if self
            .publisher
            .shared
            .owners
            .as_ref()
            .is_some_and(|room| room.is_unread())
        {
            return Ok(());
        }
        loop {
            let next = self
                .publisher
                .shared
                .roll()
                .and_then(|mut roll| kv.next(&mut roll, crowded, clock::monotonic_ms()));
            let Some(put) = next else { return Ok(()) };
            let publish = self.client.publish_with_reply(put.subject, put.reply, put.value.into());
            match timeout(HAND_OVER, publish).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(chain(&error)),
                Err(_) => return Err("the client takes nothing".to_owned()),
            }
        }
    }
}

fn headers(stored: Vec<(Name, String)>, created_ms: u64, expected: Option<&'static str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in stored {
        match name {
            Name::Borrowed(name) => headers.insert(HeaderName::from_static(name), value),
            Name::Owned(name) => headers.insert(name, value),
        }
    }
    if let Some(expected) = expected {
        headers.insert(HeaderName::from_static(header::EXPECTED_STREAM), expected);
    }
    let late = clock::unix_ms().saturating_sub(created_ms) / 1000;
    if late > LATE_S {
        headers.insert(HeaderName::from_static(header::DELAYED), late.to_string());
    }
    headers
}
