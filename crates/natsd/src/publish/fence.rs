//! One manager for each node name: whoever publishes holds the name's entry in the bucket `muster_nodes`.
//!
//! Two that share a name, such as a machine and its clone, would fork the sequence. So the entry is only ever changed by
//! compare-and-swap, each time to another random text that is on our own disk first: whoever finds the text that it wrote
//! last still holds the name, however often it was restarted; whoever finds another waits until its holder has been
//! silent for [`SLACK_MS`] behind its deadline. There are no leases that the broker ends: old brokers have none.
//!
//! Without the bucket, or the right to use it, there is no fence.

use std::{future::pending, path::Path, time::Duration};

use async_nats::{Client, HeaderMap, StatusCode, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};
use futures_util::StreamExt;
use muster_config::Nats;
use muster_proto::event::subject::token;
use muster_service::clock;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{answer::Answer, connection::connect_once, skew::skew_ms};
use crate::{
    keeper::chain,
    spool::{SpoolError, slots::Slots},
    status::Report,
};

/// The bucket of names.
pub(crate) const NODES: &str = "muster_nodes";
/// The bucket of signing keys.
pub(crate) const KEYS: &str = "muster_keys";
/// How often the holder says that it is there.
pub(super) const BEAT: Duration = Duration::from_secs(10);
/// How long behind the deadline a holder is not taken for gone: two beats, and clocks that differ.
const SLACK_MS: u64 = 20 * 1000;
/// How long the broker may take for an answer.
const ANSWER: Duration = Duration::from_secs(3);
/// What asks for a stream.
pub(super) const STREAM_INFO: &str = "$JS.API.STREAM.INFO";
/// There is no such stream.
const NO_STREAM: u64 = 10059;
/// Wrong last sequence: somebody else was quicker.
const WRONG_SEQUENCE: u64 = 10071;
const STATE: &str = "node.state";

/// Who holds the name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    node: String,
    epoch: u64,
    /// The host that it runs on, for people.
    host: String,
    /// Unix milliseconds since when.
    since: u64,
    /// Unix milliseconds until which it says something again.
    deadline: u64,
    /// Another one with each beat.
    mark: String,
}

/// What there is in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// No bucket, or not for us.
    NoBucket,
    Nobody,
    Somebody(Holder, u64),
}

/// Whether we may publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The name is ours.
    Held,
    /// Nobody looks after names.
    Unfenced,
    /// It is somebody else's; why, for people.
    Taken(String),
}

/// What to do about what was found. Pure.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Write, over this revision.
    Take(u64),
    /// Go on without.
    Unfenced,
    Wait(String),
}

fn decide(found: Found, mark: &str, epoch: u64, now_ms: u64) -> Step {
    match found {
        Found::NoBucket => Step::Unfenced,
        Found::Nobody => Step::Take(0),
        Found::Somebody(holder, revision)
            if holder.mark == mark || now_ms > holder.deadline.saturating_add(SLACK_MS) =>
        {
            // The bucket was not there to be asked at our start, and our spool is an old copy or new.
            let is_used = holder.epoch > epoch || (holder.epoch == epoch && holder.mark != mark);
            if !is_used {
                return Step::Take(revision);
            }
            Step::Wait(format!(
                "the bucket {NODES} knows {} in epoch {}, and this natsd has begun epoch {epoch}, whose numbers may have been \
                 used; restart natsd: it then begins a later one",
                holder.node, holder.epoch
            ))
        }
        Found::Somebody(holder, _) => Step::Wait(format!(
            "another manager publishes as {} since {} s, on the host {} in epoch {}; give one of them another <node_name>",
            holder.node,
            now_ms.saturating_sub(holder.since) / 1000,
            holder.host,
            holder.epoch
        )),
    }
}

/// Our claim to the name. Outlives connections.
#[derive(Debug)]
pub(super) struct Fence {
    node: String,
    epoch: u64,
    host: String,
    since: u64,
    slots: Slots,
    /// What we wrote last, or tried to.
    mark: String,
    /// Whether nobody has said what became of it. It is tried again as it is: the broker may have stored any of the tries.
    unanswered: bool,
    /// What the broker last said that it has of us.
    accepted: Option<String>,
    revision: u64,
}

impl Fence {
    /// Knows what it wrote last from the file in the spool's directory.
    pub(super) fn open(directory: &Path, node: &str, epoch: u64, host: String) -> Result<Self, SpoolError> {
        let (slots, content) = Slots::open(&directory.join(STATE))?;
        let mark = content.and_then(|content| String::from_utf8(content).ok());
        Ok(Self {
            node: node.to_owned(),
            epoch,
            host,
            since: clock::unix_ms(),
            slots,
            mark: mark.unwrap_or_default(),
            unanswered: false,
            accepted: None,
            revision: 0,
        })
    }

    /// Takes the name, if nobody else has it.
    pub(super) async fn stand(&mut self, client: &Client) -> Result<Standing, String> {
        let mut found = look(client, &self.node).await?;
        if let Found::Somebody(holder, _) = &mut found {
            self.recognise(holder);
        }
        match decide(found, &self.mark, self.epoch, clock::unix_ms()) {
            Step::Unfenced => Ok(Standing::Unfenced),
            Step::Wait(why) => Ok(Standing::Taken(why)),
            Step::Take(revision) => {
                self.revision = revision;
                let taken = self.beat(client, clock::unix_ms() + millis(BEAT)).await?;
                Ok(if taken {
                    Standing::Held
                } else {
                    Standing::Taken("another manager has just taken the name".to_owned())
                })
            }
        }
    }

    /// The broker has this of us, if it is ours.
    fn recognise(&mut self, holder: &mut Holder) {
        if holder.mark == self.mark {
            self.accepted = Some(holder.mark.clone());
            self.unanswered = false;
        } else if self.accepted.as_ref() == Some(&holder.mark) {
            // What we wrote since then was lost on its way, or is still on it.
            holder.mark.clone_from(&self.mark);
        }
    }

    /// What to write next, which is on our disk then.
    fn next_mark(&mut self) -> Result<String, String> {
        if !self.unanswered {
            let mark = random().map_err(|error| error.to_string())?;
            self.slots.write(mark.as_bytes()).map_err(|error| chain(&error))?;
            self.mark = mark;
            self.unanswered = true;
        }
        Ok(self.mark.clone())
    }

    /// Says again and again that we are there. Ends when the name is no longer ours.
    pub(super) async fn keep(&mut self, client: &Client, report: &Report) -> String {
        let mut heard_ms = clock::unix_ms();
        loop {
            sleep(BEAT).await;
            let before_ms = clock::unix_ms();
            match self.beat(client, before_ms + millis(BEAT)).await {
                Ok(true) => {
                    heard_ms = clock::unix_ms();
                    if let Some(stamp) = self.stored_at(client).await {
                        let skew_ms = skew_ms(&stamp, before_ms, heard_ms);
                        report.change(|facts| facts.skew_ms = skew_ms);
                    }
                }
                Ok(false) => return format!("another manager has taken the name {}", self.node),
                Err(why) => {
                    tracing::debug!(why, "the broker does not take our beat");
                    if clock::unix_ms().saturating_sub(heard_ms) > millis(BEAT) + SLACK_MS {
                        return format!("the broker does not take that we are there: {why}");
                    }
                }
            }
        }
    }

    /// Lets go of the name: whoever comes next need not wait.
    pub(super) async fn release(&mut self, client: &Client) {
        if let Err(why) = self.beat(client, 0).await {
            tracing::debug!(why, "the name of this manager is free only after a while");
        }
    }

    /// When the broker stored our beat, by its own clock.
    async fn stored_at(&self, client: &Client) -> Option<String> {
        let answer = timeout(ANSWER, client.request(question(&self.node), "".into()))
            .await
            .ok()?
            .ok()?;
        let headers = answer.headers.as_ref()?;
        let ours = headers.get("Nats-Sequence")?.as_str() == self.revision.to_string();
        ours.then_some(headers.get("Nats-Time-Stamp")?.as_str().to_owned())
    }

    /// Writes ourselves over the revision that we know. Whether that was the newest.
    async fn beat(&mut self, client: &Client, deadline: u64) -> Result<bool, String> {
        let mark = self.next_mark()?;
        let holder = Holder {
            node: self.node.clone(),
            epoch: self.epoch,
            host: self.host.clone(),
            since: self.since,
            deadline,
            mark,
        };
        let value = serde_json::to_vec(&holder).map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, self.revision.to_string().as_str());
        let asked = client.request_with_headers(subject(&self.node), headers, value.into());
        let answer = match timeout(ANSWER, asked).await {
            Ok(answer) => answer.map_err(|error| chain(&error))?,
            Err(_) => return Err("the broker does not answer".to_owned()),
        };
        match Answer::read(answer.status == Some(StatusCode::NO_RESPONDERS), &answer.payload) {
            Answer::Kept { sequence, .. } => {
                self.revision = sequence;
                self.accepted = Some(self.mark.clone());
                self.unanswered = false;
                Ok(true)
            }
            Answer::Refused {
                code: WRONG_SEQUENCE, ..
            } => Ok(false),
            Answer::Refused { code, why } => Err(format!("{why} ({code})")),
            Answer::Nobody | Answer::Foreign => Err("the bucket is gone".to_owned()),
        }
    }
}

fn subject(node: &str) -> String {
    format!("$KV.{NODES}.{}", key(node))
}

fn question(node: &str) -> String {
    format!("$JS.API.DIRECT.GET.KV_{NODES}.{}", subject(node))
}

/// The last epoch of a node, as the bucket has it. Nothing when it cannot be asked in time: a start waits for no broker.
pub(crate) async fn known_epoch(nats: &Nats, node: &str) -> Option<u64> {
    nats.bucket()?;
    let asked = async {
        let client = connect_once(nats, node).await.map_err(|error| chain(&error))?;
        look(&client, node).await
    };
    match timeout(ANSWER, asked).await {
        Ok(Ok(Found::Somebody(holder, _))) => Some(holder.epoch),
        Ok(Ok(Found::Nobody | Found::NoBucket)) => None,
        Ok(Err(why)) => {
            tracing::debug!(why, "the bucket cannot be asked for the last epoch");
            None
        }
        Err(_) => {
            tracing::debug!("the bucket does not say in time what the last epoch was");
            None
        }
    }
}

async fn look(client: &Client, node: &str) -> Result<Found, String> {
    let asked = tokio::select! {
        answer = timeout(ANSWER, client.request(question(node), "".into())) => answer,
        () = no_stream(client) => return Ok(Found::NoBucket),
    };
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        // Nobody answers: there is no such stream.
        Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => return Ok(Found::NoBucket),
        Ok(Err(error)) => return Err(chain(&error)),
        // That is how a missing right looks, and a broker that stands still.
        Err(_) if answers(client).await => return Ok(Found::NoBucket),
        Err(_) => return Err("the broker does not answer".to_owned()),
    };
    if answer.status == Some(StatusCode::NOT_FOUND) {
        return Ok(Found::Nobody);
    }
    let header = |name: &str| answer.headers.as_ref().and_then(|headers| headers.get(name));
    let revision = header("Nats-Sequence").and_then(|value| value.as_str().parse().ok());
    let deleted = header("KV-Operation").is_some();
    match (revision, serde_json::from_slice(&answer.payload)) {
        (Some(revision), Ok(holder)) if !deleted => Ok(Found::Somebody(holder, revision)),
        // What is no holder holds nothing.
        (Some(revision), _) => Ok(Found::Somebody(Holder::default(), revision)),
        (None, _) => Ok(Found::NoBucket),
    }
}

/// Ends when the broker says that there is no such stream: an old one says nothing at all to whoever asks for what is in
/// it. It never ends where we may not ask.
async fn no_stream(client: &Client) {
    let asked = client.request(format!("{STREAM_INFO}.KV_{NODES}"), "".into());
    if let Ok(Ok(answer)) = timeout(ANSWER, asked).await
        && matches!(
            Answer::read(false, &answer.payload),
            Answer::Refused { code: NO_STREAM, .. }
        )
    {
        return;
    }
    pending().await
}

/// Whether the broker passes on what we send to ourselves.
async fn answers(client: &Client) -> bool {
    let inbox = client.new_inbox();
    let there_and_back = async {
        let mut heard = client.subscribe(inbox.clone()).await.ok()?;
        client.publish(inbox, "".into()).await.ok()?;
        heard.next().await
    };
    timeout(ANSWER, there_and_back).await.is_ok_and(|heard| heard.is_some())
}

/// A node's name as a key: a bucket knows no `~`.
pub(super) fn key(node: &str) -> String {
    token(node).replace('~', "=")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn random() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(mark: &str) -> Holder {
        Holder {
            node: "mgr-a".to_owned(),
            epoch: 3,
            host: "h".to_owned(),
            since: 1,
            deadline: 100_000,
            mark: mark.to_owned(),
        }
    }

    #[test]
    fn whoever_finds_its_own_mark_or_nobody_takes_the_name() {
        assert_eq!(decide(Found::Nobody, "a", 4, 1), Step::Take(0));
        assert_eq!(decide(Found::Somebody(holder("a"), 7), "a", 4, 1), Step::Take(7));
        assert_eq!(decide(Found::NoBucket, "a", 4, 1), Step::Unfenced);
    }

    #[test]
    fn holder_that_lives_is_waited_for_and_one_that_is_silent_is_not() {
        let found = || Found::Somebody(holder("b"), 7);
        assert!(
            matches!(decide(found(), "a", 4, 100_000 + SLACK_MS), Step::Wait(why) if why.contains("host h in epoch 3"))
        );
        assert_eq!(decide(found(), "a", 4, 100_001 + SLACK_MS), Step::Take(7));
        let released = Holder {
            deadline: 0,
            ..holder("b")
        };
        assert_eq!(
            decide(Found::Somebody(released, 7), "a", 4, SLACK_MS + 1),
            Step::Take(7)
        );
        assert_eq!(
            decide(Found::Somebody(Holder::default(), 7), "a", 4, SLACK_MS + 1),
            Step::Take(7)
        );
    }

    #[test]
    fn epoch_that_the_bucket_has_seen_is_not_used_again() {
        let late = 100_001 + SLACK_MS;
        let step = |mark, epoch| decide(Found::Somebody(holder("b"), 7), mark, epoch, late);
        for (mark, epoch) in [("a", 3), ("a", 2), ("b", 2), ("", 3)] {
            assert!(
                matches!(step(mark, epoch), Step::Wait(why) if why.contains("restart natsd")),
                "{mark} {epoch}"
            );
        }
        assert_eq!((step("a", 4), step("b", 3)), (Step::Take(7), Step::Take(7)));
    }

    #[test]
    fn whichever_beat_of_a_stall_was_stored_is_known_as_ours() {
        let directory = tempfile::tempdir().expect("directory");
        let mut fence = Fence::open(directory.path(), "n", 3, String::new()).expect("opens");
        let before = fence.next_mark().expect("a mark");
        fence.recognise(&mut holder(&before));
        // Nobody answers these; the broker has stored the first of them, any other, or none.
        let beats = [(); 3].map(|()| fence.next_mark().expect("a mark"));
        assert!(beats.iter().all(|mark| *mark != before));
        for stored in [&before].into_iter().chain(&beats) {
            let mut found = holder(stored);
            fence.recognise(&mut found);
            let step = decide(Found::Somebody(found, 7), &fence.mark, 3, 1);
            assert_eq!(step, Step::Take(7), "{stored}");
        }
        let next = fence.next_mark().expect("a mark");
        assert!(
            next != before && !beats.contains(&next),
            "what is known is not used again"
        );
    }

    #[test]
    fn mark_survives_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let mut fence = Fence::open(directory.path(), "n", 1, String::new()).expect("opens");
        assert_eq!(fence.mark, "");
        fence.slots.write(b"abc").expect("writes");
        drop(fence);
        assert_eq!(
            Fence::open(directory.path(), "n", 2, String::new())
                .expect("opens")
                .mark,
            "abc"
        );
    }
}
