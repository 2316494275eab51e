//! From other threads to a worker: messages to be sent to agents, connections to be closed, lines of our own.

use std::sync::Arc;

use muster_proto::transport::MAX_PAYLOAD_LEN;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    tally::Tally,
    worker::{Common, Shared},
};
use crate::{
    shared::{
        Carrier,
        pushes::{Job, JobResult},
    },
    slot::{AgentSlot, ConnectionId, Courier, Millis, Route, SendError},
};

/// Commands that may wait for one worker. When it is full the sender is told so and tries again later.
pub(crate) const COMMAND_QUEUE: usize = 8192;

/// What a worker is asked to do.
pub(crate) enum Command {
    /// Send a payload to an agent.
    Send {
        slot: Arc<AgentSlot>,
        route: Route,
        payload: Box<[u8]>,
    },
    /// Close a connection.
    Close(ConnectionId),
    /// Give the analysis daemon a line of ours about an agent.
    OwnLine {
        slot: Arc<AgentSlot>,
        location: &'static str,
        text: Box<str>,
    },
    /// Send an agent the next messages of a file, as far as its way takes them now.
    Push {
        job: Box<Job>,
        results: mpsc::Sender<JobResult>,
    },
}

/// How the roster reaches agents.
pub(crate) struct WorkerCourier {
    pub(crate) common: Arc<Common>,
}

impl Courier for WorkerCourier {
    fn send(&self, slot: &Arc<AgentSlot>, payload: &[u8]) -> Result<(), SendError> {
        if payload.is_empty() || payload.len() > MAX_PAYLOAD_LEN {
            return Err(SendError::TooLong);
        }
        let route = slot.route().ok_or(SendError::NoRoute)?;
        let command = Command::Send {
            slot: Arc::clone(slot),
            route,
            payload: payload.into(),
        };
        self.command(route.worker(), command)
    }
}

impl Carrier for WorkerCourier {
    fn carry(&self, job: Job, results: &mpsc::Sender<JobResult>) -> Result<(), SendError> {
        let worker = job.route.worker();
        let command = Command::Push {
            job: Box::new(job),
            results: results.clone(),
        };
        self.command(worker, command)
    }
}

impl WorkerCourier {
    /// Any worker will do, but one agent's lines keep their order at one worker.
    pub(crate) fn own_line(&self, slot: &Arc<AgentSlot>, location: &'static str, text: &str) -> Result<(), SendError> {
        let worker = slot.route().map_or(0, |route| route.worker());
        self.command(
            worker,
            Command::OwnLine {
                slot: Arc::clone(slot),
                location,
                text: text.into(),
            },
        )
    }

    /// Closes a connection. Full: it stays, and what comes over it brings its agent back.
    pub(crate) fn close(&self, connection: ConnectionId) {
        // Stopped: it is closed in any case.
        let _ = self.command(connection.worker(), Command::Close(connection));
    }

    fn command(&self, worker: usize, command: Command) -> Result<(), SendError> {
        let worker = self.common.workers.get(worker).ok_or(SendError::NoRoute)?;
        worker.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => SendError::QueueFull,
            TrySendError::Closed(_) => SendError::Stopped,
        })
    }
}

/// The task that carries out what other threads ask of a worker.
pub(crate) async fn obey(worker: Shared, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        let mut worker = worker.borrow_mut();
        match command {
            Command::Send { slot, route, payload } => {
                if worker.outgoing.send(&slot, &route, &payload).is_err() {
                    worker.tallies.count(Tally::CommandsFailed);
                }
            }
            Command::Push { job, results } => {
                let taken = worker.outgoing.push(&job.slot, &job.route, &job.messages);
                let result = JobResult {
                    id: job.slot.id.clone(),
                    ticket: job.ticket,
                    taken,
                };
                // There is a place for every job under way; if not, the push is over and nobody asks.
                let _ = results.try_send(result);
            }
            Command::Close(connection) => {
                worker.outgoing.shut_down(connection);
            }
            Command::OwnLine { slot, location, text } => {
                let now = Millis::now();
                worker.analysis.offer_own(&slot, location, &text, now);
                worker.analysis.flush(now);
            }
        }
    }
}
