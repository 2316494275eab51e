//! Asks remoted for all agents, for the key-value bucket: after a start nothing else tells of those that nothing
//! happens to, and no event has their versions and systems. In between it is asked who was heard meanwhile, which costs
//! as much as there were.

use std::{
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::{
    agent::{AgentId, AgentStatus},
    ipc::control::{AgentInfo, Request, Response},
    paths,
};
use muster_service::client::{Client, ClientError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{keeper::Shared, owners::Owners};

/// How long remoted may take for a page.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait between two questions, and before it is asked again when it did not answer.
const PAUSE: Duration = Duration::from_secs(5);
/// How often it is asked for what no event tells.
const INTERVAL: Duration = Duration::from_secs(600);
/// How often at most and at least it is asked who was heard; in between it is the shortest interval of any agent.
const HEARD_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(60);
/// Who was heard so long before the last question is asked for again: it may have been looked at before.
const OVERLAP: Duration = Duration::from_secs(2);
/// New agents that are asked for at a time.
const MAX_NEW: usize = 1000;
/// Agents of a page. remoted sends no more.
const PAGE: u32 = 200;
/// Pages of one census; more agents than the bucket takes.
const MAX_PAGES: usize = 5000;

/// How far we know who was heard.
struct Ear {
    /// Whoever was heard before is known.
    since: Instant,
    /// The shortest interval of those that were heard.
    interval: Duration,
}

/// Asks for all at once and then now and then, and for those that have come meanwhile soon, until it is told to stop.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut due = Instant::now();
    let mut ear = Ear {
        since: due,
        interval: *HEARD_INTERVAL.start(),
    };
    loop {
        let all = due <= Instant::now();
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            asked = async { if all { ask(&shared).await } else { ask_for_news(&shared, &mut ear).await } } => asked,
        };
        match asked {
            Ok(count) if all => {
                tracing::debug!(count, "remoted has told of its agents");
                due = Instant::now() + INTERVAL;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(
                    error = crate::keeper::chain(&error),
                    "remoted does not tell of its agents"
                );
                due = Instant::now();
            }
        }
        if timeout(PAUSE, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn ask_for_news(shared: &Shared, ear: &mut Ear) -> Result<usize, ClientError> {
    if ear.since.elapsed() >= ear.interval {
        ask_for_heard(shared, ear).await?;
    }
    ask_for_new(shared).await
}

/// Asks who was heard since this was last asked. Whoever writes the bucket looks by itself for what is due.
async fn ask_for_heard(shared: &Shared, ear: &mut Ear) -> Result<(), ClientError> {
    let begun = Instant::now();
    let mut client = connect().await?;
    let (mut after, mut interval) = (None, None);
    for _ in 0..MAX_PAGES {
        let within = ear.since.elapsed() + OVERLAP;
        let request = Request::Heard {
            within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            after,
        };
        let Response::Heard { agents, next } = client.ask(&request).await? else {
            break;
        };
        let intervals = agents.iter().map(|heard| Duration::from_secs(heard.interval));
        interval = intervals.chain(interval).min();
        let owners = shared.owners();
        if let Some(mut roll) = shared.roll() {
            let ours = agents.iter().filter(|heard| is_ours(owners.as_deref(), &heard.id));
            ours.for_each(|heard| roll.hear(heard));
        }
        drop(owners);
        after = next;
        if after.is_none() {
            break;
        }
    }
    *ear = Ear {
        since: begun,
        // Where nobody was heard, the next one may have any interval.
        interval: interval.map_or(*HEARD_INTERVAL.start(), |interval| {
            interval.clamp(*HEARD_INTERVAL.start(), *HEARD_INTERVAL.end())
        }),
    };
    Ok(())
}

async fn ask_for_new(shared: &Shared) -> Result<usize, ClientError> {
    let new = shared
        .roll()
        .map(|mut roll| roll.take_curious(MAX_NEW))
        .unwrap_or_default();
    if new.is_empty() {
        return Ok(0);
    }
    let mut client = connect().await?;
    for id in &new {
        if let Response::Agents { agents, .. } = client.ask(&Request::Agent(AgentId::new(id))).await? {
            take(shared, &agents);
        }
    }
    // Whoever writes the bucket waits for something to be committed.
    shared.committed.send_modify(|commits| *commits += 1);
    Ok(new.len())
}

/// What remoted knows of some agents.
fn take(shared: &Shared, agents: &[AgentInfo]) {
    let mut owners = shared.owners();
    if let Some(owners) = &mut owners {
        let active = agents.iter().filter(|agent| agent.status == AgentStatus::Active);
        for agent in active {
            owners.found(agent.id.as_str(), agent.since.unwrap_or(0) * 1000);
        }
        shared.forget_lost(owners);
    }
    if let Some(mut roll) = shared.roll() {
        let ours = agents.iter().filter(|agent| is_ours(owners.as_deref(), &agent.id));
        ours.for_each(|agent| roll.fill(agent));
    }
    drop(owners);
    if let Some(room) = &shared.owners {
        room.wake();
    }
}

fn is_ours(owners: Option<&Owners>, id: &AgentId) -> bool {
    owners.is_none_or(|owners| !owners.is_foreign(id.as_str()))
}

async fn connect() -> Result<Client, ClientError> {
    Client::connect(Path::new(&paths::control_socket("remoted")), "natsd", DEADLINE).await
}

async fn ask(shared: &Shared) -> Result<usize, ClientError> {
    let mut client = connect().await?;
    let (mut after, mut count): (Option<AgentId>, usize) = (None, 0);
    for _ in 0..MAX_PAGES {
        let request = Request::Agents { after, limit: PAGE };
        let Response::Agents { agents, more } = client.ask(&request).await? else {
            return Ok(count);
        };
        take(shared, &agents);
        count += agents.len();
        after = agents.last().map(|agent| agent.id.clone());
        if !more || after.is_none() {
            break;
        }
    }
    // Whoever writes the bucket waits for something to be committed.
    shared.committed.send_modify(|commits| *commits += 1);
    Ok(count)
}
