//! One connection's life: hear requests, have them judged and done, answer.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{Client, HeaderMap, Message};
use futures_util::{StreamExt, stream::select_all};
use muster_proto::{
    bucket::{Rate, TokenBucket},
    command::{ANY, Unsigned, Verb, listen},
    event::subject::token,
};
use muster_service::clock;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{self, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Commander, Ticket,
    act::{self, Done},
    discovery,
    gate::{Grant, Incoming, Judgement, Refusal, changes, is_inbox},
    now,
    reply::{self, Settled},
};
use crate::{
    keeper::{Audited, Errand, chain},
    publish::connection::News,
    status::Hearing,
};

/// Managers of which one takes each request that any may answer.
const QUEUE_GROUP: &str = "natsd";
/// Requests that are worked on at a time; beyond them requests are passed over and counted.
const MAX_UNDER_WAY: usize = 32;
/// How long the other daemons may take. With twice the next one this is less than the ten seconds for which the broker
/// lets us answer.
const DEADLINE: Duration = Duration::from_secs(4);
/// How long a line in the audit trail may take, and the signature with it.
const AUDIT_DEADLINE: Duration = Duration::from_millis(2500);
/// How often a flood of requests that were not heard is told.
const FLOOD_INTERVAL: Duration = Duration::from_secs(60);
/// Questions of service discovery that are answered; it has no keys.
const DISCOVERIES: Rate = Rate {
    per_second: 10,
    burst: 50,
};
/// How long the broker may take to say which stream takes a subject.
const ASK: Duration = Duration::from_secs(2);

static TICKETS: AtomicU64 = AtomicU64::new(1);

/// Why a session ended.
pub(super) enum End {
    /// As told.
    Stopped,
    /// There was no connection.
    Failed(String),
    /// It is over.
    Lost(String),
}

pub(super) async fn run(
    commander: &Arc<Commander>,
    client: Client,
    news: mpsc::Receiver<News>,
    stop: &CancellationToken,
) -> End {
    let mut under_way = JoinSet::new();
    let end = hear(commander, &client, news, stop, &mut under_way).await;
    // What was begun is brought to its line in the audit trail, even if nobody can be answered any more.
    let finished = async { while under_way.join_next().await.is_some() {} };
    let _ = timeout(DEADLINE, finished).await;
    end
}

async fn hear(
    commander: &Arc<Commander>,
    client: &Client,
    mut news: mpsc::Receiver<News>,
    stop: &CancellationToken,
    under_way: &mut JoinSet<()>,
) -> End {
    let mut requests = match subscribe(commander, client).await {
        Ok(subscribers) => select_all(subscribers),
        Err(why) => return End::Failed(why),
    };
    let captured = captured(commander, client).await;
    if let Some(stream) = &captured {
        tracing::error!(
            stream,
            "a stream takes the subjects of requests, and answers in our place"
        );
    }
    commander.report.change(|facts| {
        facts.hearing = Hearing::Up;
        facts.captured = captured;
    });
    tracing::info!("requests over NATS are heard");
    let mut flood = time::interval(FLOOD_INTERVAL);
    let mut unheard = 0_u64;
    let mut discoveries = TokenBucket::new(DISCOVERIES, now().instant);
    loop {
        tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            message = requests.next() => match message {
                Some(message) if message.subject.starts_with(discovery::ROOT) => {
                    let now = now().instant;
                    if discoveries.take(DISCOVERIES, now) && under_way.len() < MAX_UNDER_WAY {
                        discover(commander, client, message, under_way);
                    }
                }
                Some(message) => {
                    if !take(commander, client, message, under_way) {
                        unheard += 1;
                    }
                }
                None => return End::Lost("the client has ended".to_owned()),
            },
            Some(_) = under_way.join_next() => {}
            news = news.recv() => match news {
                Some(News::Lost(why)) => return End::Lost(why),
                Some(News::Error(why)) => told(commander, &why),
                Some(News::LameDuck) => {}
                None => return End::Lost("the client has ended".to_owned()),
            },
            _ = flood.tick() => if unheard > 0 {
                commander.shared.note("control_flood", json!({"unheard": unheard}));
                unheard = 0;
            },
        }
    }
}

async fn subscribe(commander: &Commander, client: &Client) -> Result<Vec<async_nats::Subscriber>, String> {
    let prefix = &commander.nats.subject_prefix;
    let any = listen(prefix, ANY);
    let below = |noun: &str| format!("{}{noun}.>", any.trim_end_matches('>'));
    // What any manager can tell is answered by one of them. What is about an agent all hear, and the one that has it
    // answers: so each remembers the nonce, and none obeys an order that another has obeyed before the agent moved.
    let subscribers = async {
        let subscribers = vec![
            client.subscribe(listen(prefix, &token(&commander.node))).await?,
            client.subscribe(below("agent")).await?,
            client.queue_subscribe(below("agents"), QUEUE_GROUP.to_owned()).await?,
            client.queue_subscribe(below("node"), QUEUE_GROUP.to_owned()).await?,
            client.subscribe(discovery::SUBJECTS).await?,
        ];
        Ok::<_, async_nats::SubscribeError>(subscribers)
    };
    let subscribers = subscribers.await.map_err(|error| chain(&error))?;
    client.flush().await.map_err(|error| chain(&error))?;
    Ok(subscribers)
}

/// The name of a stream that takes requests. It would acknowledge each in our place, and keep it.
async fn captured(commander: &Commander, client: &Client) -> Option<String> {
    let subject = listen(&commander.nats.subject_prefix, &token(&commander.node));
    let asked = client.request("$JS.API.STREAM.NAMES", json!({"subject": subject}).to_string().into());
    let answer = timeout(ASK, asked).await.ok()?.ok()?;
    let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
    let names = answer["streams"].as_array()?;
    Some(names.first()?.as_str()?.to_owned())
}

/// The broker tells an error: a missing permission above all.
fn told(commander: &Commander, why: &str) {
    if why.contains(discovery::ROOT) {
        tracing::info!(why, "service discovery will not find this manager");
        return;
    }
    commander.counters.nats_errors_total.increment();
    tracing::warn!(why, "the broker tells an error to the connection of requests");
    let lower = why.to_ascii_lowercase();
    if lower.contains("permissions violation") {
        let detail = json!({"connection": "control", "why": why});
        commander.shared.note("permission_denied", detail);
    }
    if lower.contains("subscription") {
        let hearing = Hearing::Down(why.to_owned());
        commander.report.change(|facts| facts.hearing = hearing);
    }
}

/// Tells service discovery that we are here.
fn discover(commander: &Commander, client: &Client, message: Message, under_way: &mut JoinSet<()>) {
    let inbox = message.reply.filter(|inbox| is_inbox(inbox));
    if let Some((inbox, answer)) = inbox.zip(commander.service.answer(&message.subject)) {
        let client = client.clone();
        under_way.spawn(async move {
            if let Err(error) = client.publish(inbox, answer.into()).await {
                tracing::debug!(error = chain(&error), "service discovery cannot be answered");
            }
        });
    }
}

/// Judges a request and has it done. Whether it was heard.
fn take(commander: &Arc<Commander>, client: &Client, message: Message, under_way: &mut JoinSet<()>) -> bool {
    commander.counters.control_requests_total.increment();
    if under_way.len() >= MAX_UNDER_WAY {
        commander.counters.control_dropped_total.increment();
        return false;
    }
    let headers: Vec<_> = message
        .headers
        .iter()
        .flat_map(HeaderMap::iter)
        .filter_map(|(name, values)| Some((AsRef::<str>::as_ref(name), values.first()?.as_str())))
        .collect();
    let incoming = Incoming {
        subject: &message.subject,
        inbox: message.reply.as_deref(),
        headers: &headers,
        body: &message.payload,
    };
    let gate = &commander.gate.0;
    let judgement = gate
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .judge(&incoming, now());
    if judgement.verdict.is_err() {
        commander.counters.control_refused_total.increment();
    }
    if !judgement.heard {
        commander.counters.control_dropped_total.increment();
        return false;
    }
    // Not even a refusal goes where no inbox is.
    let inbox = message.reply.filter(|_| judgement.verdict != Err(Refusal::Inbox));
    let (subject, inbox) = (message.subject.to_string(), inbox.map(|inbox| inbox.to_string()));
    let (commander, client) = (Arc::clone(commander), client.clone());
    under_way.spawn(async move { commander.settle(&client, &subject, inbox, judgement).await });
    true
}

impl Commander {
    async fn settle(&self, client: &Client, subject: &str, inbox: Option<String>, judgement: Judgement) {
        let begun = Instant::now();
        let settled = match &judgement.verdict {
            Err(refusal) => Settled::from(*refusal),
            Ok(grant) => {
                if grant.address.node == ANY && !act::concerns_us(&grant.address).await {
                    // The manager that has the agent answers.
                    let mut line = reply::detail(subject, &judgement, None);
                    line["outcome"] = json!("not_ours");
                    self.shared.note("control", line);
                    return;
                }
                self.carry_out(subject, &judgement, grant).await
            }
        };
        let line = reply::detail(subject, &judgement, Some(&settled));
        let verb = judgement.verb.map_or("unknown", Verb::as_str);
        let key = judgement.signer.as_ref().map_or("nobody", |signer| &signer.id);
        match settled.reason {
            // Anybody can cause it; the audit trail has it.
            Some(reason) => tracing::debug!(verb, key, reason, "refused a request over NATS"),
            None => tracing::info!(verb, key, outcome = ?settled.outcome, "request over NATS"),
        }
        self.service.stats.note(settled.reason.is_some(), begun.elapsed());
        let inbox = inbox.unwrap_or_default();
        let unsigned = reply::reply(&inbox, subject, &judgement, settled, &self.node, clock::unix_ms());
        let body = unsigned.body.clone();
        // Written before it is answered: whoever has an answer finds it in the trail.
        let audited = self.audit("control", line, Some(unsigned)).await;
        if !audited.written {
            tracing::error!(verb, key, "a request is missing in the audit trail");
        }
        if inbox.is_empty() {
            return;
        }
        let Some(signed) = audited.reply else {
            tracing::error!(verb, key, "a reply cannot be signed, and is not sent");
            return;
        };
        let mut headers = HeaderMap::new();
        for (name, value) in signed {
            headers.insert(name, value);
        }
        if let Err(error) = client.publish_with_headers(inbox, headers, body.into()).await {
            tracing::warn!(error = chain(&error), "a reply cannot be sent");
        }
    }

    async fn carry_out(&self, subject: &str, judgement: &Judgement, grant: &Grant) -> Settled {
        let verb = grant.address.verb;
        let mut place = None;
        if changes(verb) {
            // What is ordered is watched; and nothing is done that is not written down before.
            match self.tickets.try_reserve() {
                Ok(reserved) => place = Some(reserved),
                Err(_) => return Refusal::Busy.into(),
            }
            let line = reply::detail(subject, judgement, None);
            if !self.audit("control_granted", line, None).await.written {
                return Refusal::NoAudit.into();
            }
        }
        let done = timeout(DEADLINE, act::carry_out(grant, &self.node, &self.enrollments)).await;
        let mut done = done.unwrap_or_else(|_| Done::failed("the daemons took too long"));
        let pending = done.pending.take();
        let mut settled = Settled::from(done);
        if let (Some(place), Some(pending), Some(agent), Some(signer)) =
            (place, pending, &grant.address.agent, &judgement.signer)
        {
            let number = TICKETS.fetch_add(1, Ordering::Relaxed);
            let id = format!("{}-{}-{number}", token(&self.node), self.epoch);
            settled.ticket = Some(id.clone());
            place.send(Ticket {
                id,
                agent: agent.clone(),
                verb,
                key: signer.id.clone(),
                pending,
            });
        }
        settled
    }

    /// A line of the audit trail, and the headers of a reply.
    async fn audit(&self, act: &'static str, detail: Value, reply: Option<Unsigned>) -> Audited {
        let (sender, audited) = oneshot::channel();
        if !self.shared.send(Errand::Audit(act, detail, reply, sender)) {
            return Audited::default();
        }
        let audited = timeout(AUDIT_DEADLINE, audited).await;
        audited.ok().and_then(Result::ok).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
