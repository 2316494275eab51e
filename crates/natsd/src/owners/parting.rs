//! Asks remoted to let go of agents that are another manager's, so that their old connections end.

use std::{path::Path, sync::Arc, time::Duration};

use muster_proto::{
    agent::AgentId,
    ipc::control::{Request, Response},
    paths,
};
use muster_service::client::{Client, ClientError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Room;
use crate::keeper::chain;

/// How long remoted may take for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long until remoted is asked again, when it did not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// Until it is told to stop. What remoted does not hear is not lost: it is asked again, and the census finds who is left.
pub(crate) async fn run(room: Arc<Room>, stop: CancellationToken) {
    let mut waiting = Vec::new();
    loop {
        waiting.extend(room.owners().take_partings());
        let told = tokio::select! {
            () = stop.cancelled() => return,
            told = tell(&mut waiting) => told,
        };
        if let Err(error) = told {
            tracing::debug!(error = chain(&error), "remoted does not let go of agents");
        }
        let pause = if waiting.is_empty() { Duration::MAX } else { PAUSE };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timeout(pause, room.partings.notified()) => {}
        }
        let owners = room.owners();
        waiting.retain(|(id, _)| owners.is_foreign(id));
    }
}

async fn tell(waiting: &mut Vec<(String, u64)>) -> Result<(), ClientError> {
    if waiting.is_empty() {
        return Ok(());
    }
    let mut client = Client::connect(Path::new(&paths::control_socket("remoted")), "natsd", DEADLINE).await?;
    while let Some((id, since_ms)) = waiting.last() {
        let request = Request::LetGo {
            agent: AgentId::new(id),
            since_ms: *since_ms,
        };
        match client.ask(&request).await? {
            Response::Done(what) => tracing::info!(agent_id = %id, what, "the agent is another manager's"),
            Response::Failed(why) => tracing::debug!(agent_id = %id, why, "the agent is another manager's"),
            _ => tracing::warn!(agent_id = %id, "remoted does not know how to let go of an agent; restart it"),
        }
        waiting.pop();
    }
    Ok(())
}
