//! The bucket of owners over one connection: it is read from the beginning and then followed, and claims are written.
//! What to make of it is [`crate::owners`]' affair.
//!
//! It is followed with a consumer that the broker forgets when we are gone. Whatever goes wrong with it, a message that is
//! missing or a broker that falls silent, the bucket is read again from the beginning.

use std::{convert::Infallible, time::Duration};

use async_nats::{
    Client, HeaderMap, Message, RequestErrorKind, StatusCode, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::answer::Answer;
use crate::{
    keeper::{Shared, chain},
    owners::{Holder, Outcome, Put, Reading, Room},
};

/// How long the broker may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often the broker says that it is there while nothing is written.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A silence of that length means that our consumer is gone.
const SILENCE: Duration = Duration::from_secs(13);
/// How long until it is tried again when the bucket cannot be read.
const AGAIN: Duration = Duration::from_secs(5);
/// How often entries that could not be written are tried again.
const LATER: Duration = Duration::from_secs(1);
/// Writes that may be under way.
const MAX_UNDER_WAY: usize = 64;
/// Wrong last sequence: somebody else was quicker.
const WRONG_SEQUENCE: u64 = 10071;

#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    num_pending: u64,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    description: String,
}

/// Follows the bucket, if managers share their agents. Never ends by itself.
pub(super) async fn run(client: &Client, shared: &Shared) -> Infallible {
    let Some(room) = &shared.owners else {
        return std::future::pending().await;
    };
    loop {
        let follow = Follow {
            client,
            shared,
            room,
            prefix: format!("$KV.{}.", room.bucket),
            last: 0,
        };
        let why = match follow.run().await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        room.owners().lose_touch();
        let before = room.reading.send_replace(Reading::Unreadable(why.clone()));
        if before != Reading::Unreadable(why.clone()) {
            tracing::warn!(bucket = room.bucket, why, "cannot ask which manager has which agent");
        }
        sleep(AGAIN).await;
    }
}

struct Follow<'a> {
    client: &'a Client,
    shared: &'a Shared,
    room: &'a Room,
    /// What the keys' subjects begin with.
    prefix: String,
    /// The consumer's own count of what it has sent.
    last: u64,
}

impl Follow<'_> {
    async fn run(mut self) -> Result<Infallible, String> {
        let inbox = self.client.new_inbox();
        let subscribed = self.client.subscribe(inbox.clone()).await;
        let mut messages = subscribed.map_err(|error| chain(&error))?;
        self.room.owners().begin_reading();
        if self.make_consumer(&inbox).await? == 0 {
            self.finish_reading();
        }
        let context = jetstream::new(self.client.clone());
        let (client, prefix) = (self.client, self.prefix.clone());
        let mut writes = FuturesUnordered::new();
        let mut later = interval(LATER);
        later.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            while writes.len() < MAX_UNDER_WAY
                && let Some(put) = self.room.next()
            {
                writes.push(write(client, &prefix, put));
            }
            if self.room.owners().has_partings() {
                self.room.partings.notify_one();
            }
            tokio::select! {
                message = messages.next() => {
                    let message = message.ok_or("the client has ended")?;
                    heard = Instant::now();
                    if message.status.is_some() {
                        self.beat(&message).await?;
                    } else {
                        self.take(&context, message)?;
                    }
                }
                Some((put, outcome)) = writes.next() => self.room.owners().settle(&put, outcome?),
                () = self.room.due.notified() => {}
                _ = later.tick() => self.room.owners().try_again(),
                () = sleep_until(heard + SILENCE) => return Err("the broker has forgotten our consumer".to_owned()),
            }
        }
    }

    /// How many entries are in the bucket, about.
    async fn make_consumer(&self, inbox: &str) -> Result<u64, String> {
        let stream = format!("KV_{}", self.room.bucket);
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let request = json!({
            "stream_name": stream,
            "config": {
                "deliver_subject": inbox,
                "deliver_policy": "last_per_subject",
                "filter_subject": format!("{}>", self.prefix),
                "ack_policy": "none",
                "max_deliver": 1,
                "replay_policy": "instant",
                "idle_heartbeat": nanos(HEARTBEAT),
                "flow_control": true,
                "mem_storage": true,
                "num_replicas": 1,
            },
        });
        let subject = format!("$JS.API.CONSUMER.CREATE.{stream}");
        let asked = timeout(ANSWER, self.client.request(subject, request.to_string().into())).await;
        let answer = match asked {
            Ok(answer) => answer.map_err(|error| chain(&error))?,
            Err(_) => {
                let why = "the broker does not answer; may these credentials make a consumer of it?";
                return Err(why.to_owned());
            }
        };
        match serde_json::from_slice::<Made>(&answer.payload) {
            Ok(Made { error: Some(fault), .. }) => Err(fault.description),
            Ok(Made { num_pending, .. }) => Ok(num_pending),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The consumer says that it is there, and asks whether we are.
    async fn beat(&self, message: &Message) -> Result<(), String> {
        let header = |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name));
        let sent = header("Nats-Last-Consumer").and_then(|sent| sent.as_str().parse::<u64>().ok());
        if sent.is_some_and(|sent| sent != self.last) {
            return Err("entries of the bucket are missing".to_owned());
        }
        let stalled = header("Nats-Consumer-Stalled").map(|reply| reply.as_str().to_owned());
        let reply = message.reply.as_ref().map(ToString::to_string).or(stalled);
        if let Some(reply) = reply {
            let answered = self.client.publish(reply, "".into()).await;
            answered.map_err(|error| chain(&error))?;
        }
        // Whoever is idle has nothing more to send.
        if message
            .headers
            .as_ref()
            .is_none_or(|headers| headers.get("Nats-Consumer-Stalled").is_none())
            && sent.is_some()
            && *self.room.reading.borrow() != Reading::Read
        {
            self.finish_reading();
        }
        Ok(())
    }

    /// An entry.
    fn take(&mut self, context: &jetstream::Context, message: Message) -> Result<(), String> {
        let message = jetstream::Message {
            message,
            context: context.clone(),
        };
        let info = message.info().map_err(|error| error.to_string())?;
        let (revision, pending, number) = (info.stream_sequence, info.pending, info.consumer_sequence);
        if number != self.last + 1 {
            return Err("entries of the bucket are missing".to_owned());
        }
        self.last = number;
        let Some(id) = message.subject.strip_prefix(&self.prefix) else {
            return Ok(());
        };
        let deleted = message.headers.as_ref().and_then(|headers| headers.get("KV-Operation"));
        // What names no holder holds nothing.
        let holder = serde_json::from_slice::<Holder>(&message.payload).ok();
        let holder = holder.filter(|_| deleted.is_none());
        {
            let mut owners = self.room.owners();
            owners.learn(id, revision, holder.as_ref());
            self.shared.forget_lost(&mut owners);
        }
        if pending == 0 && *self.room.reading.borrow() != Reading::Read {
            self.finish_reading();
        }
        Ok(())
    }

    fn finish_reading(&self) {
        let counts = {
            let mut owners = self.room.owners();
            owners.finish_reading();
            self.shared.forget_lost(&mut owners);
            owners.counts()
        };
        tracing::info!(
            bucket = self.room.bucket,
            owned = counts.owned,
            foreign = counts.foreign,
            "it is known which manager has which agent"
        );
        self.room.reading.send_replace(Reading::Read);
        // Whoever writes the bucket of agents has waited for this.
        self.shared.committed.send_modify(|commits| *commits += 1);
    }
}

/// Writes an entry. Fails when the bucket is gone.
async fn write(client: &Client, prefix: &str, put: Put) -> (Put, Result<Outcome, String>) {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, put.over.to_string().as_str());
    let value = match &put.holder {
        Some(holder) => serde_json::to_vec(holder).unwrap_or_default(),
        None => {
            headers.insert("KV-Operation", "DEL");
            Vec::new()
        }
    };
    let subject = format!("{prefix}{}", put.id);
    let asked = timeout(ANSWER, client.request_with_headers(subject, headers, value.into())).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
            return (put, Err("the bucket is gone".to_owned()));
        }
        Ok(Err(_)) | Err(_) => return (put, Ok(Outcome::Lost)),
    };
    let outcome = match Answer::read(answer.status == Some(StatusCode::NO_RESPONDERS), &answer.payload) {
        Answer::Kept { sequence, .. } => Ok(Outcome::Written(sequence)),
        Answer::Refused {
            code: WRONG_SEQUENCE, ..
        } => Ok(Outcome::Overtaken),
        Answer::Refused { code, why } => {
            tracing::debug!(code, why, "the broker does not take a claim");
            Ok(Outcome::Lost)
        }
        Answer::Nobody | Answer::Foreign => Err("the bucket is gone".to_owned()),
    };
    (put, outcome)
}
