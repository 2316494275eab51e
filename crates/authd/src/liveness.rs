//! Asking remoted how an agent is connected, and telling it that the keys have changed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::{
    agent::{AgentId, AgentStatus},
    ipc::control::{Liveness, Request, Response},
    paths,
};
use muster_service::client::{Client, ClientError};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// How long remoted may take to answer. Without an answer nobody is replaced.
pub const LIVENESS_DEADLINE: Duration = Duration::from_secs(1);
/// How long remoted may take to read the keys anew.
const RELOAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long an agent waits for its "yes" until remoted has its key too.
const WAIT_FOR_REMOTED: Duration = Duration::from_millis(100);

/// Why liveness is unknown.
#[derive(Debug, Error)]
pub enum LivenessError {
    /// remoted did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It took too long in all.
    #[error("remoted did not answer within {} ms", LIVENESS_DEADLINE.as_millis())]
    TimedOut,
    /// It answered something else.
    #[error("remoted gave another answer than was asked for")]
    Protocol,
}

/// The way to remoted.
#[derive(Clone, Debug)]
pub struct Remoted {
    socket: PathBuf,
}

impl Default for Remoted {
    fn default() -> Self {
        Self {
            socket: paths::control_socket("remoted").into(),
        }
    }
}

impl Remoted {
    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How an agent is connected. One that remoted has never heard of has never connected.
    pub async fn liveness(&self, id: &AgentId) -> Result<Liveness, LivenessError> {
        let deadline = Instant::now() + LIVENESS_DEADLINE;
        let ask = async {
            let mut client = Client::connect(&self.socket, "authd", LIVENESS_DEADLINE).await?;
            Ok::<_, LivenessError>(client.ask(&Request::Liveness(id.clone())).await?)
        };
        match timeout_at(deadline, ask).await.map_err(|_| LivenessError::TimedOut)?? {
            Response::Liveness(Some(liveness)) => Ok(liveness),
            Response::Liveness(None) => Ok(Liveness {
                status: AgentStatus::NeverConnected,
                disconnected_at: 0,
            }),
            _ => Err(LivenessError::Protocol),
        }
    }

    /// On the connection of the last time, if there is one: remoted may have been restarted since, or have closed it.
    async fn keys_changed(&self, kept: &mut Option<Client>) -> Result<(), ClientError> {
        if let Some(mut client) = kept.take()
            && client.ask(&Request::KeysChanged).await.is_ok()
        {
            *kept = Some(client);
            return Ok(());
        }
        let mut client = Client::connect(&self.socket, "authd", RELOAD_DEADLINE).await?;
        client.ask(&Request::KeysChanged).await?;
        *kept = Some(client);
        Ok(())
    }

    /// Tells remoted of every change of the keys, one message for all changes that came while the last one was under
    /// way. `told` follows behind `changes`, whether remoted could be reached or not: it looks by itself, too.
    pub async fn announce(self, mut changes: watch::Receiver<u64>, told: watch::Sender<u64>) {
        let mut kept = None;
        while changes.changed().await.is_ok() {
            let generation = *changes.borrow_and_update();
            if let Err(error) = self.keys_changed(&mut kept).await {
                tracing::debug!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "cannot tell remoted of new keys"
                );
            }
            told.send_replace(generation);
        }
    }
}

/// Waits until remoted has been told of a change, but only for a moment.
pub async fn until_told(mut told: watch::Receiver<u64>, generation: u64) {
    let _ = tokio::time::timeout(WAIT_FOR_REMOTED, told.wait_for(|told| *told >= generation)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_remoted_liveness_is_an_error_at_once() {
        let remoted = Remoted {
            socket: "/nonexistent/remoted.ctl".into(),
        };
        let error = remoted.liveness(&AgentId::new("001")).await.expect_err("an error");
        assert!(matches!(error, LivenessError::Client(ClientError::Unreachable { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_remoted_that_does_not_answer_costs_a_moment_only() {
        let (_told, receiver) = watch::channel(0);
        let before = Instant::now();
        until_told(receiver, 1).await;
        assert_eq!(before.elapsed(), WAIT_FOR_REMOTED);
    }

    #[tokio::test]
    async fn changes_are_told_even_when_nobody_listens() {
        let remoted = Remoted {
            socket: "/nonexistent/remoted.ctl".into(),
        };
        let (change, changes) = watch::channel(0);
        let (told, receiver) = watch::channel(0);
        let task = tokio::spawn(remoted.announce(changes, told));
        change.send_replace(3);
        until_told(receiver.clone(), 3).await;
        assert_eq!(*receiver.borrow(), 3);
        drop(change);
        task.await.expect("ended");
    }
}
