//! Agents that stayed away for longer than agents may.
//!
//! Stock managers leave this to monitord (`monitord.delete_old_agents`, in minutes, off by default). remoted knows who is
//! away and since when; who is removed loses its key here.

use std::time::Duration;

use muster_proto::{
    agent::{AgentId, AgentStatus},
    ipc::control::{AgentInfo, Request, Response},
};
use muster_service::{
    client::{Client, ClientError},
    clock,
};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    change::Removal,
    counters::Counters,
    live::LiveSettings,
    liveness::Remoted,
    registry::Method,
    store::{RemoveOutcome, Store},
};

/// How often remoted is asked.
const PERIOD: Duration = Duration::from_secs(60);
/// How many agents it is asked for at a time.
const PAGE: u32 = 1000;
/// How long it may take for a page.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long remoted must be up: who was away because it was not must have had the time to come back.
const GRACE: Duration = Duration::from_secs(900);

/// Removes agents that are disconnected for longer than the settings say, for ever.
pub async fn remove_for_ever(store: Store, remoted: Remoted, live: LiveSettings, counters: std::sync::Arc<Counters>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let longest = live.borrow().delete_old_agents;
        if longest.is_zero() {
            continue;
        }
        match away_too_long(&remoted, clock::unix_s(), longest).await {
            Ok(ids) => remove_all(&store, ids, &counters).await,
            Err(error) => {
                tracing::debug!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "cannot ask remoted who is away"
                );
            }
        }
    }
}

async fn remove_all(store: &Store, ids: Vec<AgentId>, counters: &Counters) {
    for id in ids {
        let outcome = store.remove(id.clone(), None, (Removal::Stale, Method::Local)).await;
        if outcome == Ok(RemoveOutcome::Removed) {
            counters.agents_removed_stale_total.increment();
            tracing::info!(
                agent_id = id.as_str(),
                "an agent that was disconnected for too long is removed"
            );
        }
    }
}

async fn away_too_long(remoted: &Remoted, now: u64, longest: Duration) -> Result<Vec<AgentId>, ClientError> {
    let mut client = Client::connect(remoted.socket(), "authd", DEADLINE).await?;
    let (mut ids, mut after) = (Vec::new(), None);
    match client.ask(&Request::Status).await? {
        Response::Status(status) if now.saturating_sub(status.since) >= GRACE.as_secs() => {}
        _ => return Ok(ids),
    }
    loop {
        match client.ask(&Request::Agents { after, limit: PAGE }).await? {
            Response::Agents { agents, more } => {
                ids.extend(
                    agents
                        .iter()
                        .filter(|agent| is_stale(agent, now, longest))
                        .map(|agent| agent.id.clone()),
                );
                after = agents.last().map(|agent| agent.id.clone());
                if !more || after.is_none() {
                    return Ok(ids);
                }
            }
            _ => return Ok(ids),
        }
    }
}

/// Whether an agent has been disconnected for longer than `longest` at `now` (Unix seconds).
fn is_stale(agent: &AgentInfo, now: u64, longest: Duration) -> bool {
    agent.status == AgentStatus::Disconnected
        && agent
            .since
            .is_some_and(|since| now.saturating_sub(since) > longest.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(status: AgentStatus, since: Option<u64>) -> AgentInfo {
        AgentInfo {
            id: AgentId::new("001"),
            name: "web-01".to_owned(),
            ip: "any".to_owned(),
            status,
            reason: None,
            since,
            version: None,
            last_heard: None,
            last_keepalive: None,
            last_sent: None,
            missed: 0,
            timeout: None,
            observed_interval: None,
            peer: None,
            protocol: None,
            crypto: None,
            reported_ip: None,
            os: None,
            merged_sum: None,
            config_sum: None,
            labels: Vec::new(),
            groups: Vec::new(),
            group_config_status: None,
        }
    }

    #[test]
    fn only_who_is_disconnected_for_longer_is_stale() {
        let hour = Duration::from_secs(3600);
        for (status, since, expected) in [
            (AgentStatus::Disconnected, Some(6399), true),
            (AgentStatus::Disconnected, Some(6400), false),
            (AgentStatus::Disconnected, None, false),
            (AgentStatus::Disconnected, Some(20_000), false),
            (AgentStatus::Active, Some(1), false),
            (AgentStatus::NeverConnected, Some(1), false),
        ] {
            assert_eq!(
                is_stale(&agent(status, since), 10_000, hour),
                expected,
                "{status} since {since:?}"
            );
        }
    }
}
