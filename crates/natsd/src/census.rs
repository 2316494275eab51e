//! Asks remoted for all agents, for the key-value bucket: after a start nothing else tells of those that nothing
//! happens to, and no event has their versions and systems.

use std::{path::Path, sync::Arc, time::Duration};

use muster_proto::{
    agent::AgentId,
    ipc::control::{Request, Response},
    paths,
};
use muster_service::client::{Client, ClientError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::keeper::Shared;

/// How long remoted may take for a page.
const DEADLINE: Duration = Duration::from_secs(10);
/// How soon it is asked again when it did not answer.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is asked for what no event tells.
const INTERVAL: Duration = Duration::from_secs(600);
/// Agents of a page. remoted sends no more.
const PAGE: u32 = 200;
/// Pages of one census; more agents than the bucket takes.
const MAX_PAGES: usize = 5000;

/// Asks at once, and then now and then, until it is told to stop.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            asked = ask(&shared) => asked,
        };
        let pause = match asked {
            Ok(count) => {
                tracing::debug!(count, "remoted has told of its agents");
                INTERVAL
            }
            Err(error) => {
                tracing::debug!(
                    error = crate::keeper::chain(&error),
                    "remoted does not tell of its agents"
                );
                RETRY
            }
        };
        if timeout(pause, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn ask(shared: &Shared) -> Result<usize, ClientError> {
    let path = paths::control_socket("remoted");
    let mut client = Client::connect(Path::new(&path), "natsd", DEADLINE).await?;
    let (mut after, mut count): (Option<AgentId>, usize) = (None, 0);
    for _ in 0..MAX_PAGES {
        let request = Request::Agents { after, limit: PAGE };
        let Response::Agents { agents, more } = client.ask(&request).await? else {
            return Ok(count);
        };
        if let Some(mut roll) = shared.roll() {
            agents.iter().for_each(|agent| roll.fill(agent));
        }
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
