//! `muster-natsd verify`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, Read},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use async_nats::jetstream;
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use muster_proto::event::Stream;
use muster_service::{Common, clock};
use nkeys::XKey;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{Fate, Hole, Message, OVERDUE_MS, Policy, REPLAY, Verdict, Verifier, announcements::Announcements};
use crate::{provision::settings, publish::connection, signature::public_key};

/// How often a stream that has been read to its end is looked at again.
const POLL: Duration = Duration::from_millis(500);
/// Who has not looked for so long does not judge the age of what came since.
const AWAY: Duration = Duration::from_secs(60);
/// How often it is looked for an announcement that a message needs.
const MAX_POLLS: u32 = 20;
/// What was waited for in vain and is not waited for again.
const MAX_MISSED: usize = 1000;
/// The longest line on standard input: a message of 8 MiB in base64, and some.
const MAX_LINE_LEN: u64 = 16 * 1024 * 1024;

/// check signatures, numbers and gaps of published events
///
/// Without --stream, messages are read from standard input, one JSON object a line: what `nats stream get --json` prints, or
/// {"subject", "headers": {}, "data": base64}. Prints a line for each message that is not accepted, or for each with --all,
/// and at the end the holes in the sequence that nobody has declared. Ends with 0 if there is nothing to complain about. With
/// --follow a hole is printed when it has been there for a minute; SIGINT and SIGTERM end it.
///
/// Announcements of keys are looked up in the server's stream and bucket. On standard input, they must come before what is
/// signed with those keys.
///
/// A line is {"id", "subject", "key", "fate": "accepted" | "duplicate" | "refused", "failed", "why", "passed": []}: what was
/// checked, in order, and which check failed. The checks are size, version, key, signature, subject, identity, time, epoch,
/// sequence, seal, body, gaps and announcement; replay is one that only fails. A line of the input that is no message gives
/// {"line": number, "fate": "unreadable", "why"}.
#[derive(Args)]
pub(crate) struct Verify {
    /// the public half of a trust key (U…): only keys for which one of these vouches are believed; may be repeated
    #[arg(long = "trust-key", value_name = "KEY")]
    trust_keys: Vec<String>,

    /// a public key (U…) that is believed from the start, of any manager or only of this one; may be repeated
    ///
    /// Without --trust-key, keys that it introduces are believed too.
    #[arg(long = "key", value_name = "[NODE=]KEY")]
    keys: Vec<String>,

    /// accept events that are not signed
    #[arg(long)]
    unsigned: bool,

    /// a file with the seed (SX…) of a recipient, to open sealed bodies
    #[arg(long, value_name = "FILE")]
    recipient_seed: Option<PathBuf>,

    /// read this stream of the server in etc/ossec.conf; may be repeated
    #[arg(long = "stream", value_name = "NAME")]
    streams: Vec<String>,

    /// the server, if it is not the one in etc/ossec.conf
    #[arg(long, value_name = "URL")]
    server: Option<String>,

    /// a .creds file, if it is not the one in etc/ossec.conf
    #[arg(long, value_name = "FILE")]
    creds: Option<PathBuf>,

    /// go on at the end of the streams
    #[arg(long)]
    follow: bool,

    /// how long a hole may be there with --follow before it is printed
    #[arg(long, value_name = "SECONDS", default_value_t = OVERDUE_MS / 1000)]
    patience: u64,

    /// look at no clock; what is in a stream before --follow has reached its end is not compared with one in any case
    #[arg(long)]
    history: bool,

    /// print a line for each message
    #[arg(long)]
    all: bool,
}

impl Verify {
    pub(crate) fn run(&self, common: &Common) -> anyhow::Result<ExitCode> {
        let recipient = self.recipient_seed.as_ref().map(|path| {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            XKey::from_seed(text.trim()).with_context(|| format!("{} is no seed of an xkey", path.display()))
        });
        // Streams are read from their beginning.
        let history = self.history || (!self.streams.is_empty() && !self.follow);
        let policy = Policy {
            signed: !self.unsigned,
            recipient: recipient.transpose()?,
            max_age_ms: if history { None } else { Policy::default().max_age_ms },
            ..believing(&self.keys, &self.trust_keys)?
        };
        let mut run = Run {
            verifier: Verifier::new(policy),
            all: self.all,
            refused: 0,
            replays: 0,
            unreadable: 0,
            duplicates: 0,
            accepted: 0,
            overdue: 0,
            missed: BTreeSet::new(),
        };
        let read = if self.streams.is_empty() {
            run.standard_input(&mut io::stdin().lock())
        } else {
            self.read_streams(common, &mut run)
        };
        // What was found so far is told, whatever came of the rest.
        let end = run.end();
        read.map(|()| end)
    }

    fn read_streams(&self, common: &Common, run: &mut Run) -> anyhow::Result<()> {
        let mut nats = match (&self.server, settings(common)) {
            (_, Ok(nats)) => nats,
            (Some(_), Err(_)) => muster_config::Nats::default(),
            (None, Err(error)) => return Err(error),
        };
        if let Some(server) = &self.server {
            nats.servers = vec![server.clone()];
        }
        if self.creds.is_some() {
            nats.credentials_file.clone_from(&self.creds);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = connection::connect_once(&nats, "verify").await?;
            let jetstream = jetstream::new(client);
            // What the first messages were signed with may be announced behind them.
            let mut announcements = Announcements::open(&jetstream, &nats.subject_prefix).await;
            announcements.hear(&mut run.verifier).await;
            let mut streams = Vec::new();
            for name in &self.streams {
                let stream = jetstream
                    .get_stream(name)
                    .await
                    .with_context(|| format!("opening {name}"))?;
                streams.push(Followed {
                    stream,
                    is_audit: name == Stream::Audit.name(),
                    next: 0,
                    looked: None,
                });
            }
            let reading = self.read_on(&mut streams, run, &mut announcements);
            tokio::select! {
                read = reading => read,
                told = told_to_stop(), if self.follow => told,
            }
        })
    }

    async fn read_on(
        &self,
        streams: &mut [Followed],
        run: &mut Run,
        announcements: &mut Announcements,
    ) -> anyhow::Result<()> {
        loop {
            for followed in &mut *streams {
                self.look(followed, run, announcements).await?;
            }
            if !self.follow {
                break;
            }
            run.tell_overdue(self.patience.saturating_mul(1000));
            tokio::time::sleep(POLL).await;
        }
        // What is missing in the others may have been declared since.
        for followed in streams.iter_mut().filter(|followed| followed.is_audit) {
            self.look(followed, run, announcements).await?;
        }
        Ok(())
    }

    /// Reads what is in a stream now and was not yet read.
    async fn look(
        &self,
        followed: &mut Followed,
        run: &mut Run,
        announcements: &mut Announcements,
    ) -> anyhow::Result<()> {
        // What came while nobody looked may be of any age.
        run.verifier
            .read_history(followed.looked.is_none_or(|looked| looked.elapsed() > AWAY));
        followed.looked = Some(Instant::now());
        let state = followed.stream.info().await?.state.clone();
        // However long it takes to read it: it was there then.
        let now_ms = clock::unix_ms();
        followed.next = state.first_sequence.max(followed.next);
        while state.messages > 0 && followed.next <= state.last_sequence {
            match followed.stream.get_raw_message(followed.next).await {
                Ok(raw) => self.judge(&message(&raw), now_ms, run, announcements).await,
                // Deleted, or gone by age.
                Err(error) if error.kind() == jetstream::stream::RawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(error).context("reading a message"),
            }
            followed.next += 1;
        }
        Ok(())
    }

    /// Where messages still come, an announcement that one of them needs may come behind it.
    async fn judge(&self, message: &Message, now_ms: u64, run: &mut Run, announcements: &mut Announcements) {
        let needs = ["Muster-Kid", "Muster-Node", "Muster-Epoch"].map(|name| message.header(name).unwrap_or_default());
        let needs = needs.join(" ");
        let polls = if !self.follow || run.missed.contains(&needs) {
            1
        } else {
            MAX_POLLS
        };
        let mut verdict = run.verifier.check(message, now_ms);
        for poll in 0..polls {
            if !verdict.unannounced {
                break;
            }
            if poll > 0 {
                tokio::time::sleep(POLL).await;
            }
            announcements.hear(&mut run.verifier).await;
            verdict = run.verifier.check(message, now_ms);
        }
        if verdict.unannounced && run.missed.len() < MAX_MISSED {
            run.missed.insert(needs);
        }
        run.note(message, &verdict);
    }
}

/// A stream, and how far it was read.
struct Followed {
    stream: jetstream::stream::Stream,
    is_audit: bool,
    next: u64,
    looked: Option<Instant>,
}

/// Ends when somebody stops us.
async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminated.recv() => Ok(()),
    }
}

struct Run {
    verifier: Verifier,
    all: bool,
    /// Among them are those of [`Self::replays`].
    refused: u64,
    replays: u64,
    unreadable: u64,
    duplicates: u64,
    accepted: u64,
    /// Holes that were told while messages still came.
    overdue: usize,
    /// Keys and epochs that nobody has announced.
    missed: BTreeSet<String>,
}

impl Run {
    fn standard_input(&mut self, input: &mut impl BufRead) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        for number in 1_u64.. {
            bytes.clear();
            if input.by_ref().take(MAX_LINE_LEN).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            let whole = bytes.last() == Some(&b'\n') || bytes.len() as u64 != MAX_LINE_LEN;
            if !whole {
                input.skip_until(b'\n')?;
            }
            let read = match std::str::from_utf8(&bytes) {
                _ if !whole => Err(anyhow!("the line is longer than {MAX_LINE_LEN} bytes")),
                Ok(line) if line.trim().is_empty() => continue,
                Ok(line) => parse(line),
                Err(_) => Err(anyhow!("the line is no UTF-8")),
            };
            match read {
                Ok(message) => self.take(&message),
                Err(error) => {
                    self.unreadable += 1;
                    println!(
                        "{}",
                        json!({"line": number, "fate": "unreadable", "why": format!("{error:#}")})
                    );
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &Message) {
        let verdict = self.verifier.check(message, clock::unix_ms());
        self.note(message, &verdict);
    }

    fn note(&mut self, message: &Message, verdict: &Verdict) {
        let shown = match &verdict.fate {
            Fate::Accept => {
                self.accepted += 1;
                self.all
            }
            Fate::Duplicate => {
                self.duplicates += 1;
                self.all
            }
            Fate::Refuse { step, .. } => {
                self.refused += 1;
                self.replays += u64::from(*step == REPLAY);
                true
            }
        };
        if shown {
            println!("{}", line(message, verdict));
        }
    }

    fn tell_overdue(&mut self, patience_ms: u64) {
        let overdue = self.verifier.overdue(clock::unix_ms(), patience_ms);
        self.overdue += overdue.len();
        overdue.iter().for_each(tell);
    }

    fn end(self) -> ExitCode {
        let holes = self.verifier.undeclared();
        let (told, mut untold) = (self.overdue, 0);
        for hole in &holes {
            if !self.verifier.was_told(hole) {
                untold += 1;
                tell(hole);
            }
        }
        eprintln!(
            "{} accepted, {} duplicates, {} refused ({} replays), {} unreadable, {} undeclared holes",
            self.accepted,
            self.duplicates,
            self.refused,
            self.replays,
            self.unreadable,
            told + untold
        );
        if self.refused + self.unreadable == 0 && told + untold == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn tell((node, stream, hole): &(String, Stream, Hole)) {
    let (after, upto, stream) = (hole.after, hole.upto, stream.name());
    println!(
        "{}",
        json!({"hole": {"node": node, "stream": stream, "after": after, "upto": upto, "epoch": hole.run}})
    );
}

/// Believes keys as `--key` and `--trust-key` name them.
pub(crate) fn believing(keys: &[String], trust_keys: &[String]) -> anyhow::Result<Policy> {
    let (mut pinned, mut nodes) = (BTreeSet::new(), BTreeMap::new());
    for key in keys {
        let (node, kid) = key.rsplit_once('=').unwrap_or(("", key));
        pinned.insert(checked(kid)?);
        if !node.is_empty() {
            nodes.insert(kid.to_owned(), node.to_owned());
        }
    }
    let trust_keys = trust_keys.iter().map(|kid| checked(kid));
    Ok(Policy {
        trust_keys: trust_keys.collect::<anyhow::Result<_>>()?,
        pinned,
        nodes,
        ..Policy::default()
    })
}

/// A key as an argument.
fn checked(kid: &str) -> anyhow::Result<String> {
    match public_key(kid) {
        Some(_) => Ok(kid.to_owned()),
        None => bail!("{kid} is no public key (U and 55 more letters and digits)"),
    }
}

fn line(message: &Message, verdict: &Verdict) -> Value {
    let (fate, step, why) = match &verdict.fate {
        Fate::Accept => ("accepted", None, None),
        Fate::Duplicate => ("duplicate", None, None),
        Fate::Refuse { step, why } => ("refused", Some(*step), Some(why.as_str())),
    };
    json!({
        "id": message.header("Nats-Msg-Id"), "subject": message.subject, "key": message.header("Muster-Kid"), "fate": fate,
        "failed": step, "why": why, "passed": verdict.passed,
    })
}

/// A message out of a stream.
pub(crate) fn message(raw: &jetstream::message::StreamMessage) -> Message {
    let headers = raw.headers.iter().flat_map(|(name, values)| {
        values
            .iter()
            .map(|value| (name.to_string(), value.as_str().to_owned()))
            .collect::<Vec<_>>()
    });
    Message {
        subject: raw.subject.to_string(),
        headers: headers.collect(),
        body: raw.payload.to_vec(),
        from_stream: true,
    }
}

fn parse(line: &str) -> anyhow::Result<Message> {
    let value: Value = serde_json::from_str(line).context("a line is no JSON")?;
    let base64 = |name: &str| -> anyhow::Result<Vec<u8>> {
        let text = value[name].as_str().unwrap_or_default();
        STANDARD.decode(text).with_context(|| format!("{name} is no base64"))
    };
    let Some(subject) = value["subject"].as_str() else {
        bail!("a message has no subject");
    };
    let mut headers: Vec<(String, String)> = Vec::new();
    if let Some(object) = value["headers"].as_object() {
        for (name, header) in object {
            let values = header.as_array().map_or(std::slice::from_ref(header), Vec::as_slice);
            for value in values {
                let value = value
                    .as_str()
                    .with_context(|| format!("the header {name} is no text"))?;
                headers.push((name.clone(), value.to_owned()));
            }
        }
    }
    // As the wire has them: a line with the version, then one for each.
    let text = String::from_utf8(base64("hdrs")?).context("hdrs is no text")?;
    for line in text.lines().skip(1) {
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    Ok(Message {
        subject: subject.to_owned(),
        headers,
        body: base64("data")?,
        from_stream: true,
    })
}
