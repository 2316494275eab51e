//! The way to the broker and back, tried and timed: `muster-control nats test`.
//!
//! First a connection of its own, with the daemon's settings and credentials. Then an event of the manager's health goes
//! the way of all events: a number, a signature, the spool, the daemon's connection, the stream. It is read back over the
//! first connection and checked as a consumer would. No subject, stream or right is made for it but that of reading the
//! newest event of its own subject.

mod cure;
mod reach;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, StatusCode};
use muster_config::Nats;
use muster_proto::{
    event::{Event, Kind, Stream, header},
    ipc::control::{NatsFault, NatsLeg, NatsReport, PublishedEvent},
};
use muster_service::clock;
use tokio::{
    sync::{broadcast, mpsc},
    time::{sleep, timeout},
};

use self::reach::Reached;
use crate::{
    keeper::{Errand, PROBE, Shared, chain},
    keys::KeyFile,
    publish::connection::{self, News},
    status::{Claim, Link, Report},
    verify::{Fate, Message, Policy, Verifier},
};

/// How long the spool may take.
const SPOOL_DEADLINE: Duration = Duration::from_secs(5);
/// How long an acknowledgement is waited for, behind the time-out that the configuration has for one.
const ACKNOWLEDGE_SPARE: Duration = Duration::from_secs(10);
/// How long the daemon's own connection may be down before the probe does not wait for it.
const LINK_DEADLINE: Duration = Duration::from_secs(5);
/// How long the broker may take for one question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a server that follows another may lag behind it.
const LAG: Duration = Duration::from_secs(3);
/// How often something is looked at that changes by itself.
const LOOK: Duration = Duration::from_millis(1);

/// What the probe needs of the daemon.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(crate) nats: Nats,
    pub(crate) node: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) report: Arc<Report>,
}

/// A step that failed.
struct Fault {
    leg: &'static str,
    why: String,
    cure: String,
}

impl Fault {
    fn new(leg: &'static str, why: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            leg,
            why: why.into(),
            cure: cure.into(),
        }
    }
}

impl Probe {
    /// Tries it.
    pub(crate) async fn run(&self) -> NatsReport {
        let mut report = NatsReport {
            waiting: self.shared.spool().depth().waiting,
            ..NatsReport::default()
        };
        let mut outcome = Err(Fault::new("connect", "no server is configured", "set <server_url>"));
        for server in self.servers() {
            report = NatsReport {
                server: server.clone(),
                waiting: report.waiting,
                ..NatsReport::default()
            };
            outcome = self.log_in(&server, &mut report).await;
            if outcome.is_ok() {
                break;
            }
        }
        let done = match outcome {
            Ok((client, news)) => self.there_and_back(&client, news, &mut report).await,
            Err(fault) => Err(fault),
        };
        if let Err(Fault { leg, why, cure }) = done {
            report.failed = Some(NatsFault {
                leg: leg.to_owned(),
                why,
                cure,
            });
        }
        report
    }

    /// The one that the daemon is connected to first.
    fn servers(&self) -> Vec<String> {
        let facts = self.report.read();
        let mut servers = self.nats.servers.clone();
        let is_ours = |server: &String| facts.server.split(' ').next() == Some(server);
        servers.sort_by_key(|server| facts.link != Link::Up || !is_ours(server));
        servers
    }

    async fn log_in(&self, server: &str, report: &mut NatsReport) -> Result<(Client, mpsc::Receiver<News>), Fault> {
        let Reached { hello, socket } = leg(report, "connect", reach::connect(server)).await?;
        report.server_name.clone_from(&hello.server_name);
        report.version.clone_from(&hello.version);
        (report.jetstream, report.max_payload) = (hello.jetstream, hello.max_payload);
        if self.nats.encrypt_messages || server.starts_with("tls://") || hello.tls_required {
            let shaken = leg(report, "tls", reach::shake_hands(&self.nats, server, socket)).await?;
            report.tls = Some(shaken);
        }
        let log_in = async {
            let (client, news) = connection::connect(&self.nats, &format!("{} test", self.node), server)
                .await
                .map_err(|error| {
                    let why = chain(&error);
                    let cure = cure::of_login(&why);
                    Fault::new("log_in", why, cure)
                })?;
            let flushed = timeout(ANSWER_DEADLINE, client.flush()).await;
            match flushed {
                Ok(Ok(())) => Ok((client, news)),
                _ => Err(Fault::new("log_in", "the server does not answer", cure::SILENT)),
            }
        };
        let (client, news) = leg(report, "log_in", log_in).await?;
        if hello.jetstream {
            Ok((client, news))
        } else {
            Err(Fault::new("log_in", "the server has no JetStream", cure::NO_JETSTREAM))
        }
    }

    async fn there_and_back(
        &self,
        client: &Client,
        mut news: mpsc::Receiver<News>,
        report: &mut NatsReport,
    ) -> Result<(), Fault> {
        let probe = leg(report, "spool", self.spool()).await?;
        report.subject.clone_from(&probe.subject);
        report.sequence = probe.sequence;
        leg(report, "acknowledge", self.acknowledged(probe.sequence)).await?;
        let stream = match self.shared.spool().kept(Stream::Keepalive) {
            Some(kept) => kept.name.clone(),
            None => Stream::Keepalive.name().to_owned(),
        };
        let read = read_back(client, &mut news, &stream, &probe);
        let message = leg(report, "read_back", read).await?;
        note(report, format!("from the stream {stream}"));
        if !self.nats.message_signing {
            return Ok(());
        }
        leg(report, "verify", async { self.verify(&message) }).await?;
        note(report, message.header(header::KEY_ID).unwrap_or_default().to_owned());
        Ok(())
    }

    /// The event gets its number and is safe on the disk.
    async fn spool(&self) -> Result<PublishedEvent, Fault> {
        let mut committed = self.shared.followers.subscribe();
        if !self.shared.send(Errand::Health) {
            return Err(Fault::new("spool", "the spool has too much to do", "try again"));
        }
        let spooled = timeout(SPOOL_DEADLINE, async {
            loop {
                match committed.recv().await {
                    Ok(event) if is_probe(&event.event) => return Some((*event).clone()),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        spooled.await.ok().flatten().ok_or_else(|| {
            let trouble = self.shared.trouble().unwrap_or_else(|| "it takes too long".to_owned());
            Fault::new(
                "spool",
                trouble,
                "make room on the disk of <spool dir>, and look at its rights",
            )
        })
    }

    async fn acknowledged(&self, sequence: u64) -> Result<(), Fault> {
        let begun = Instant::now();
        while self.shared.spool().waits(Stream::Keepalive, sequence) {
            let facts = self.report.read();
            if let Link::Down(why) = &facts.link
                && begun.elapsed() > LINK_DEADLINE
            {
                let why = format!("the daemon's own connection is down: {why}");
                return Err(Fault::new("acknowledge", why, cure::of_login(&why_of(&facts.link))));
            }
            if let Claim::Taken(why) = &facts.claim {
                return Err(Fault::new("acknowledge", why.clone(), cure::TAKEN));
            }
            if self.waits_for_stream(sequence) {
                let why = "no stream takes it: it was told to whoever listens, and waits in the spool";
                return Err(Fault::new("acknowledge", why, cure::PROVISION));
            }
            if begun.elapsed() > self.nats.publish.ack_timeout + ACKNOWLEDGE_SPARE {
                let stuck = facts.stuck.get(Stream::Keepalive.name());
                let (why, cure) = match stuck.or(facts.last_error.as_ref()) {
                    Some(why) => (why.clone(), cure::of_refusal(why)),
                    None => {
                        let waiting = self.shared.spool().depth().waiting;
                        (
                            format!("{waiting} events wait for the broker"),
                            cure::BACKLOG.to_owned(),
                        )
                    }
                };
                return Err(Fault::new("acknowledge", why, cure));
            }
            sleep(LOOK).await;
        }
        if self.report.read().without_stream.contains(&Stream::Keepalive.name()) {
            let why = "no stream takes it: it was sent to whoever listens";
            return Err(Fault::new("acknowledge", why, cure::PROVISION));
        }
        Ok(())
    }

    fn waits_for_stream(&self, sequence: u64) -> bool {
        let waits = self
            .report
            .read()
            .waiting_for_stream
            .contains(&Stream::Keepalive.name());
        waits && self.shared.spool().heard(Stream::Keepalive) >= sequence
    }

    fn verify(&self, message: &Message) -> Result<(), Fault> {
        let fault = |why: String| Fault::new("verify", why, cure::CHANGED);
        let keys = KeyFile::read(&self.nats.signing_key).map_err(|error| fault(chain(&error)))?;
        let mut verifier = Verifier::new(Policy {
            pinned: keys.public().into_iter().collect(),
            ..Policy::default()
        });
        match verifier.check(message, clock::unix_ms()).fate {
            Fate::Refuse { step, why } => Err(fault(format!("{step}: {why}"))),
            Fate::Accept | Fate::Duplicate => Ok(()),
        }
    }
}

fn why_of(link: &Link) -> String {
    match link {
        Link::Down(why) => why.clone(),
        Link::Off | Link::Up => String::new(),
    }
}

/// Times a step and writes it down when it went well.
async fn leg<T>(
    report: &mut NatsReport,
    name: &'static str,
    step: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let begun = Instant::now();
    let done = step.await?;
    report.legs.push(NatsLeg {
        leg: name.to_owned(),
        micros: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        note: String::new(),
    });
    Ok(done)
}

/// Says something of the last step.
fn note(report: &mut NatsReport, text: String) {
    if let Some(leg) = report.legs.last_mut() {
        leg.note = text;
    }
}

fn is_probe(event: &Event) -> bool {
    let mark = format!("\"reason\":\"{PROBE}\"");
    event.kind == Kind::Health && event.body.windows(mark.len()).any(|part| part == mark.as_bytes())
}

/// The newest event of the probe's subject: the probe, or the next report of the manager's health behind it.
async fn read_back(
    client: &Client,
    news: &mut mpsc::Receiver<News>,
    stream: &str,
    probe: &PublishedEvent,
) -> Result<Message, Fault> {
    let question = format!("$JS.API.DIRECT.GET.{stream}.{}", probe.subject);
    let fault = |why: String, cure: &str| Err(Fault::new("read_back", why, cure));
    let begun = Instant::now();
    loop {
        let asked = timeout(ANSWER_DEADLINE, client.request(question.clone(), "".into()));
        tokio::pin!(asked);
        let answered = loop {
            tokio::select! {
                answered = &mut asked => break answered,
                told = news.recv() => match told {
                    Some(News::Error(why)) => {
                        let cure = format!("let the manager's user publish to {question}");
                        return fault(why, &cure);
                    }
                    Some(News::Lost(why)) => return fault(why, cure::SILENT),
                    Some(News::LameDuck) => {}
                    None => return fault("the connection has ended".to_owned(), cure::SILENT),
                },
            }
        };
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return fault(chain(&error), cure::NO_DIRECT),
            Err(_) => return fault("the stream does not answer".to_owned(), cure::NO_DIRECT),
        };
        let header = |name: &str| answer.headers.as_ref().and_then(|headers| headers.get(name));
        let number = header(header::SEQUENCE).and_then(|value| value.as_str().parse::<u64>().ok());
        if answer.status.is_none_or(|status| status == StatusCode::OK)
            && number.is_some_and(|number| number >= probe.sequence)
        {
            return Ok(received(&probe.subject, &answer));
        }
        if begun.elapsed() > LAG {
            let found = number.map_or_else(|| "nothing".to_owned(), |number| format!("number {number}"));
            return fault(
                format!("the stream has {found} where number {} should be", probe.sequence),
                cure::LAGS,
            );
        }
        sleep(LOOK * 10).await;
    }
}

fn received(asked: &str, answer: &async_nats::Message) -> Message {
    let headers: Vec<_> = answer
        .headers
        .iter()
        .flat_map(async_nats::HeaderMap::iter)
        .filter_map(|(name, values)| Some((name.to_string(), values.first()?.as_str().to_owned())))
        .collect();
    let stored = headers.iter().find(|(name, _)| name == "Nats-Subject");
    let subject = stored.map_or_else(|| asked.to_owned(), |(_, subject)| subject.clone());
    Message {
        subject,
        headers,
        body: answer.payload.to_vec(),
        from_stream: true,
    }
}
