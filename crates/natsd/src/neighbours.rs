//! How full the queues of the manager's daemons are, for the health that is published: each daemon is asked now and
//! then, as `muster-control` asks it, and one that does not answer is left out.

use std::{path::Path, sync::Arc, time::Duration};

use muster_proto::{
    event::body::QueueFill,
    ipc::control::{QueueStatus, Request, Response},
    paths,
};
use muster_service::client::{Client, ClientError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::keeper::Shared;

/// Who has queues; we ask ourselves like the others.
const DAEMONS: [&str; 4] = ["authd", "keypolld", "natsd", "remoted"];
/// How often they are asked.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// Queues of one daemon; it has some ten.
const MAX_QUEUES: usize = 32;

/// Asks again and again, until it is told to stop.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let mut fills = Vec::new();
        for daemon in DAEMONS {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                asked = queues_of(daemon) => asked,
            };
            match asked {
                Ok(queues) => fills.extend(queues.into_iter().take(MAX_QUEUES).map(|queue| fill(daemon, queue))),
                Err(error) => tracing::debug!(daemon, %error, "a daemon does not tell of its queues"),
            }
        }
        shared.set_queues(fills);
        if timeout(INTERVAL, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn queues_of(daemon: &str) -> Result<Vec<QueueStatus>, ClientError> {
    let socket = paths::control_socket(daemon);
    let mut client = Client::connect(Path::new(&socket), "natsd", DEADLINE).await?;
    match client.ask(&Request::Status).await? {
        Response::Status(status) => Ok(status.queues),
        _ => Ok(Vec::new()),
    }
}

fn fill(daemon: &str, queue: QueueStatus) -> QueueFill {
    QueueFill {
        daemon: daemon.to_owned(),
        queue: queue.name,
        used: queue.used,
        capacity: queue.capacity,
        unit: queue.unit,
        dropped: queue.dropped,
    }
}
