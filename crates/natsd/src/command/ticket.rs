//! What came of an order to an agent: an agent says nothing, so it is watched until it has done it, or too long.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    agent::AgentId,
    command::{Outcome, TicketResult, Verb},
    event::{
        Event, Kind,
        body::{manager_event, wrapped},
    },
};
use muster_service::clock;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::act::{self, Pending};
use crate::keeper::{Errand, Shared};

/// Orders that are watched at a time. Further ones are refused until one is done with.
pub(crate) const MAX_TICKETS: usize = 256;
/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one may take that has to find out first that its key is void. Stock agents try several times before.
const PATIENCE_ENROLLING: Duration = Duration::from_secs(900);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Failures matter a little more than successes.
const LEVELS: (u8, u8) = (3, 5);

/// An order to watch.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) id: String,
    pub(crate) agent: AgentId,
    pub(crate) verb: Verb,
    /// The name of the key that asked.
    pub(crate) key: String,
    pub(crate) pending: Pending,
}

/// Watches until told to stop; what is not done with by then is told as unconfirmed.
pub(crate) async fn watch(
    mut tickets: mpsc::Receiver<Ticket>,
    shared: Arc<Shared>,
    node: String,
    stop: CancellationToken,
) {
    let mut watched = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = watched.join_next() => {}
            ticket = tickets.recv(), if watched.len() < MAX_TICKETS => match ticket {
                Some(mut ticket) => {
                    let (shared, node, stop) = (Arc::clone(&shared), node.clone(), stop.clone());
                    watched.spawn(async move {
                        let (outcome, text) = tokio::select! {
                            () = stop.cancelled() => (Outcome::Unconfirmed, "natsd was stopped".to_owned()),
                            result = follow(&mut ticket) => result,
                        };
                        if !shared.send(Errand::Event(event(&ticket, &node, outcome, text))) {
                            tracing::warn!(ticket = ticket.id, "too many events at once; a result is missing");
                        }
                    });
                }
                None => break,
            },
        }
    }
    while watched.join_next().await.is_some() {}
}

async fn follow(ticket: &mut Ticket) -> (Outcome, String) {
    match &mut ticket.pending {
        Pending::Reload => act::reload(&ticket.agent, PATIENCE).await,
        Pending::Return(before) => until_back(&ticket.agent, *before).await,
        Pending::Enrollment(awaited) => match timeout(PATIENCE_ENROLLING, awaited).await {
            Ok(Ok(id)) => (Outcome::Done, format!("the agent has enrolled as {id}")),
            Ok(Err(_)) => (
                Outcome::Unconfirmed,
                "there were too many events to see whether the agent has enrolled".to_owned(),
            ),
            Err(_) => (
                Outcome::Unconfirmed,
                format!("the agent has not enrolled within {} s", PATIENCE_ENROLLING.as_secs()),
            ),
        },
    }
}

async fn until_back(agent: &AgentId, before: Option<u64>) -> (Outcome, String) {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        sleep(LOOK).await;
        match act::agent_info(agent).await {
            Ok(Some(info)) if act::has_returned(before, &info) => {
                return (Outcome::Done, "the agent has come back".to_owned());
            }
            Ok(None) => return (Outcome::Failed, "the agent was removed".to_owned()),
            Ok(Some(_)) | Err(_) => {}
        }
    }
    (
        Outcome::Unconfirmed,
        format!("the agent has not come back within {} s", PATIENCE.as_secs()),
    )
}

fn event(ticket: &Ticket, node: &str, outcome: Outcome, text: String) -> Event {
    let now = clock::unix_ms();
    let level = if outcome == Outcome::Done { LEVELS.0 } else { LEVELS.1 };
    let result = TicketResult {
        agent_id: ticket.agent.to_string(),
        verb: ticket.verb.as_str().to_owned(),
        ticket: ticket.id.clone(),
        outcome,
        text,
        key: ticket.key.clone(),
        timestamp: now / 1000,
        manager_node: node.to_owned(),
    };
    let body = wrapped("control_result", &result);
    manager_event(Kind::ControlResult, ticket.agent.as_str(), now, level, body)
}
