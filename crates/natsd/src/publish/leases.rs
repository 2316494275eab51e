//! Blocks of ids for authd, where several managers give ids to one fleet: no two give the same.
//!
//! In the bucket `muster_ids` each fleet has a number, the next that nobody has leased. When authd has few ids left, a block
//! is taken from there by compare-and-swap and handed over. What is taken and not handed over, because we were killed in
//! between, is nobody's: a hole in the ids, and no harm.

use std::{convert::Infallible, path::Path, time::Duration};

use async_nats::{Client, HeaderMap, StatusCode, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};
use muster_proto::{
    ipc::control::{IdBlocks, Request, Response},
    paths,
};
use muster_service::client;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::answer::Answer;
use crate::keeper::chain;

/// The bucket.
pub(crate) const IDS: &str = "muster_ids";
/// Ids of a block.
const BLOCK: u32 = 256;
/// Agents have ids of 8 digits.
const HIGHEST_ID: u32 = 99_999_999;
/// So few left are few.
const FEW: u32 = BLOCK / 2;
/// How often authd is asked.
const LOOK: Duration = Duration::from_secs(5);
/// How long anybody may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What the bucket says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    /// The lowest number that nobody has leased.
    next: u32,
    /// Who leased last.
    node: String,
}

/// A block, and what the bucket says once it is leased. Pure.
fn lease(next: Option<u32>, highest: u32, node: &str) -> Option<(u32, Counter)> {
    // Ids that were given before there was a counter are nobody's to give.
    let first = next.unwrap_or(1).max(highest.saturating_add(1));
    let next = first.checked_add(BLOCK).filter(|next| *next <= HIGHEST_ID)?;
    let node = node.to_owned();
    Some((first, Counter { next, node }))
}

/// Leases blocks whenever authd needs them. Never ends by itself.
pub(super) async fn run(client: &Client, fleet: Option<&str>, node: &str) -> Infallible {
    let Some(fleet) = fleet else {
        return std::future::pending().await;
    };
    let lessee = Lessee {
        client,
        subject: format!("$KV.{IDS}.{fleet}"),
        node,
    };
    let mut leased = None;
    let mut told = None;
    loop {
        match lessee.look(&mut leased).await {
            Ok(()) => told = None,
            Err(why) if told.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::warn!(why, "cannot lease ids for new agents");
                told = Some(why);
            }
        }
        sleep(LOOK).await;
    }
}

struct Lessee<'a> {
    client: &'a Client,
    subject: String,
    node: &'a str,
}

impl Lessee<'_> {
    /// Asks authd, and gets it what it needs. `leased` is a block that it does not have yet.
    async fn look(&self, leased: &mut Option<u32>) -> Result<(), String> {
        let mut authd = client::Client::connect(Path::new(&paths::control_socket("authd")), "natsd", ANSWER)
            .await
            .map_err(|error| chain(&error))?;
        let blocks = match authd.ask(&Request::IdBlocks).await {
            Ok(Response::IdBlocks(blocks)) => blocks,
            Ok(_) => return Err("authd does not know what leased ids are; restart it".to_owned()),
            Err(error) => return Err(chain(&error)),
        };
        let IdBlocks {
            free: Some(free),
            highest,
        } = blocks
        else {
            return Err("authd was started without <ownership ids=\"yes\"/>; restart it".to_owned());
        };
        if free > FEW {
            return Ok(());
        }
        let first = match *leased {
            Some(first) => first,
            None => *leased.insert(self.lease(highest).await?),
        };
        match authd.ask(&Request::AddIdBlock { first, count: BLOCK }).await {
            Ok(Response::Done(what)) => {
                tracing::info!(what, "authd has ids to give");
                *leased = None;
                Ok(())
            }
            Ok(Response::Failed(why)) => {
                // It may have it, from an answer that was lost; another one will do.
                *leased = None;
                Err(why)
            }
            Ok(_) => Err("authd takes no ids".to_owned()),
            Err(error) => Err(chain(&error)),
        }
    }

    /// The first id of a block that is ours now.
    async fn lease(&self, highest: u32) -> Result<u32, String> {
        let question = format!("$JS.API.DIRECT.GET.KV_{IDS}.{}", self.subject);
        let found = self.ask(question, HeaderMap::new(), Vec::new()).await?;
        let revision = found.headers.as_ref().and_then(|headers| headers.get("Nats-Sequence"));
        let (next, revision) = match revision {
            _ if found.status == Some(StatusCode::NOT_FOUND) => (None, "0".to_owned()),
            // Whoever deleted the number may know which ids are free; we do not.
            Some(revision) => {
                let counter: Counter = serde_json::from_slice(&found.payload)
                    .map_err(|_| format!("{} holds no number; write {{\"next\":…}} there", self.subject))?;
                (Some(counter.next), revision.as_str().to_owned())
            }
            None => {
                return Err(format!(
                    "the broker has no bucket {IDS}; `muster-natsd provision` makes it"
                ));
            }
        };
        let (first, counter) = lease(next, highest, self.node).ok_or("there are no more ids")?;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.as_str());
        let value = serde_json::to_vec(&counter).map_err(|error| error.to_string())?;
        let answer = self.ask(self.subject.clone(), headers, value).await?;
        match Answer::read(answer.status == Some(StatusCode::NO_RESPONDERS), &answer.payload) {
            Answer::Kept { .. } => Ok(first),
            Answer::Refused { code, why } => Err(format!("another manager was quicker, or {why} ({code})")),
            Answer::Nobody | Answer::Foreign => Err(format!("the broker has no bucket {IDS}")),
        }
    }

    async fn ask(&self, subject: String, headers: HeaderMap, value: Vec<u8>) -> Result<async_nats::Message, String> {
        let asked = self.client.request_with_headers(subject, headers, value.into());
        match timeout(ANSWER, asked).await {
            Ok(answer) => answer.map_err(|error| chain(&error)),
            Err(_) => Err(format!("the broker does not answer; may these credentials use {IDS}?")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_begins_behind_what_was_leased_and_behind_every_id_that_was_given() {
        let first = |next, highest| lease(next, highest, "a").map(|(first, counter)| (first, counter.next));
        assert_eq!(first(None, 0), Some((1, 257)));
        assert_eq!(first(Some(257), 0), Some((257, 513)));
        assert_eq!(first(Some(257), 256), Some((257, 513)));
        assert_eq!(first(Some(257), 1000), Some((1001, 1257)));
        for beyond in [HIGHEST_ID - 5, u32::MAX] {
            assert_eq!((first(Some(beyond), 0), first(None, beyond)), (None, None));
        }
    }
}
