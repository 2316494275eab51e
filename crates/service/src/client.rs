//! Asking a daemon through its control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::ipc::control::{Request, Response};
use thiserror::Error;
use tokio::time::timeout;

use crate::ipc::{Connection, IpcError};

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there: the daemon does not run.
    #[error("cannot reach {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The socket is there, and we may not open it.
    #[error("not permitted to open {}", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It listens and does not answer.
    #[error("{} did not answer within {} ms", path.display(), limit.as_millis())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        limit: Duration,
    },
    /// The conversation broke off.
    #[error("conversation with {} failed", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        #[source]
        source: IpcError,
    },
}

/// A connection to one daemon's control socket.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    limit: Duration,
    connection: Connection,
}

impl Client {
    /// Connects and says hello as `name`. Each step and each later answer may take up to `limit`.
    pub async fn connect(path: &Path, name: &str, limit: Duration) -> Result<Self, ClientError> {
        let path = path.to_owned();
        match timeout(limit, Connection::connect(&path, name)).await {
            Ok(Ok(connection)) => Ok(Self {
                path,
                limit,
                connection,
            }),
            Ok(Err(IpcError::Io(source))) => Err(match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Unreachable { path, source },
                io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path, source },
                _ => ClientError::Broken {
                    path,
                    source: IpcError::Io(source),
                },
            }),
            Ok(Err(source)) => Err(ClientError::Broken { path, source }),
            Err(_) => Err(ClientError::TimedOut { path, limit }),
        }
    }

    /// Asks once and waits for the answer. After an error the connection is of no more use.
    pub async fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let connection = &mut self.connection;
        let exchange = async {
            connection.send(request).await?;
            connection.receive().await?.ok_or(IpcError::ClosedEarly)
        };
        match timeout(self.limit, exchange).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(ClientError::Broken {
                path: self.path.clone(),
                source,
            }),
            Err(_) => Err(ClientError::TimedOut {
                path: self.path.clone(),
                limit: self.limit,
            }),
        }
    }

    /// Asks for something that is answered again and again.
    pub async fn follow(mut self, request: &Request) -> Result<Follow, ClientError> {
        match self.connection.send(request).await {
            Ok(()) => Ok(Follow {
                path: self.path,
                connection: self.connection,
            }),
            Err(source) => Err(ClientError::Broken {
                path: self.path,
                source,
            }),
        }
    }
}

/// Answers as they come.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    connection: Connection,
}

impl Follow {
    /// The next one, however long it takes, or `None` when the daemon has ended the stream. May be dropped and called
    /// again without losing any.
    pub async fn next(&mut self) -> Result<Option<Response>, ClientError> {
        let received = self.connection.receive().await;
        received.map_err(|source| ClientError::Broken {
            path: self.path.clone(),
            source,
        })
    }
}
