//! The server behind `queue/muster/<daemon>.ctl`.
//!
//! **Invariant:** a peer that is neither root nor our own user gets an answer to requests that only read, and
//! [`Response::Denied`] to all others, whatever the socket's mode lets through.

use std::{future::Future, sync::Arc, time::Duration};

use muster_proto::ipc::control::{DaemonStatus, Request, Response};
use nix::unistd::geteuid;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    ipc::{Connection, IpcError, Peer, serve_connections},
};

/// How many control connections are served at a time; further ones wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a connection may stay silent between two requests.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(30);

/// What a daemon does with requests. [`Running::serve_control`](crate::run::Running::serve_control) makes it reachable,
/// and calls [`reload`](Self::reload) on SIGHUP too.
pub trait Handler: Send + Sync + 'static {
    /// How the daemon is. Begin with [`StatusSource::status`].
    fn status(&self) -> impl Future<Output = DaemonStatus> + Send;

    /// Reads the configuration again and takes it over, or keeps the old one: what was done, or why not.
    fn reload(&self) -> impl Future<Output = Result<String, String>> + Send;

    /// Everything that is this daemon's own. `Status` and `Reload` never come here.
    fn handle(&self, request: Request, peer: Peer) -> impl Future<Output = Answer> + Send {
        let _ = (request, peer);
        async { Answer::One(Response::Unknown) }
    }
}

/// What is sent back.
#[derive(Debug)]
pub enum Answer {
    /// One response.
    One(Response),
    /// Responses as they come, until the sender is dropped or the peer closes. The sender decides what happens when the
    /// channel is full, because the peer reads slowly.
    Stream(mpsc::Receiver<Response>),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self::One(response)
    }
}

/// The part of a status that is the same in every daemon.
#[derive(Clone, Copy, Debug)]
pub struct StatusSource {
    daemon: &'static str,
    release: &'static str,
    since: u64,
}

impl StatusSource {
    /// Counts from now.
    pub fn new(daemon: &'static str) -> Self {
        Self {
            daemon,
            release: env!("CARGO_PKG_VERSION"),
            since: clock::unix_s(),
        }
    }

    /// Name, release, pid and start, ready and with nothing to complain about; the caller fills in the rest.
    pub fn status(&self) -> DaemonStatus {
        DaemonStatus {
            daemon: self.daemon.to_owned(),
            version: self.release.to_owned(),
            pid: std::process::id(),
            since: self.since,
            ready: true,
            ..DaemonStatus::default()
        }
    }
}

/// Serves until told to stop.
pub async fn serve<H: Handler>(daemon: &'static str, listener: UnixListener, handler: Arc<H>, stop: CancellationToken) {
    let own_uid = geteuid().as_raw();
    let until = stop.clone();
    serve_connections(listener, MAX_CONNECTIONS, stop, move |stream| {
        let (handler, until) = (Arc::clone(&handler), until.clone());
        async move {
            let outcome = tokio::select! {
                () = until.cancelled() => Ok(()),
                outcome = converse(daemon, stream, handler, own_uid) => outcome,
            };
            if let Err(error) = outcome {
                tracing::debug!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "control connection ended"
                );
            }
        }
    })
    .await;
}

async fn converse<H: Handler>(daemon: &str, stream: UnixStream, handler: Arc<H>, own_uid: u32) -> Result<(), IpcError> {
    let mut connection = Connection::accept(stream, daemon).await?;
    let peer = connection.peer;
    loop {
        let received = timeout(IDLE_DEADLINE, connection.receive()).await;
        let request = match received.map_err(|_| IpcError::TooSlow("ask"))? {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            // A request that a newer client knows and we do not: the connection is over, but it is told why.
            Err(error @ IpcError::Codec(_)) => {
                connection.send(&Response::Unknown).await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        match answer(&*handler, request, peer, own_uid).await {
            Answer::One(response) => connection.send(&response).await?,
            Answer::Stream(responses) => return relay(connection, responses).await,
        }
    }
}

async fn answer<H: Handler>(handler: &H, request: Request, peer: Peer, own_uid: u32) -> Answer {
    if !request.only_reads() && !peer.is_user_or_root(own_uid) {
        tracing::info!(uid = peer.uid, pid = peer.pid, "denied a request that changes things");
        return Response::Denied.into();
    }
    match request {
        Request::Status => Response::Status(Box::new(handler.status().await)).into(),
        Request::Reload => match handler.reload().await {
            Ok(done) => Response::Done(done).into(),
            Err(why) => Response::Failed(why).into(),
        },
        other => handler.handle(other, peer).await,
    }
}

async fn relay(mut connection: Connection, mut responses: mpsc::Receiver<Response>) -> Result<(), IpcError> {
    let (reader, writer) = connection.split();
    loop {
        tokio::select! {
            response = responses.recv() => match response {
                Some(response) => writer.send(&response).await?,
                None => return Ok(()),
            },
            // Whatever comes now, an end above all, means that the peer has had enough.
            _ = reader.receive::<Request>() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
