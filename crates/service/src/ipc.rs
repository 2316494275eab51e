//! Connections that carry our own frames: hello, agreement on a version, then one message after the other.
//!
//! **Invariant:** a peer's length field never decides how much memory is set aside: the buffer grows with the bytes
//! that have arrived, up to the cap.

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use muster_proto::ipc::{
    Hello, OLDEST_VERSION, VERSION,
    codec::{self, CodecError},
};
use nix::unistd::geteuid;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long either side waits for the other's hello.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long one frame may take to be written; a peer that does not read for so long is left.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// The longest hello.
const MAX_HELLO_LEN: usize = 1024;
/// The frame version in which a hello always travels.
const HELLO_VERSION: u8 = 1;
/// How long accepting pauses when the process or the machine has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long connections may go on after the daemon was told to stop.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// What can go wrong on a connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IpcError {
    /// Reading or writing failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// A frame that is none.
    #[error("the peer sent something else than a frame")]
    Codec(#[from] CodecError),
    /// The peer closed in the middle of a frame or before its hello.
    #[error("the peer closed the connection too early")]
    ClosedEarly,
    /// The peer took too long.
    #[error("the peer did not {0} in time")]
    TooSlow(&'static str),
    /// No version in common.
    #[error(
        "{name} {release} speaks versions {oldest} to {newest} of our frames, we speak {OLDEST_VERSION} to {VERSION}; \
         bring both to the same release"
    )]
    NoCommonVersion {
        /// The peer's name.
        name: String,
        /// Its release.
        release: String,
        /// Its oldest version.
        oldest: u8,
        /// Its newest version.
        newest: u8,
    },
    /// A frame in another version than was agreed on.
    #[error("the peer sent a frame of version {got} after agreeing on {agreed}")]
    WrongVersion {
        /// What came.
        got: u8,
        /// What was agreed.
        agreed: u8,
    },
}

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, where the kernel tells.
    pub pid: Option<i32>,
}

impl Peer {
    /// Asks the kernel (SO_PEERCRED).
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid(),
        })
    }

    /// Whether it is root or the user that this process runs as.
    pub fn is_ours(&self) -> bool {
        self.is_user_or_root(geteuid().as_raw())
    }

    pub(crate) fn is_user_or_root(&self, uid: u32) -> bool {
        self.uid == 0 || self.uid == uid
    }
}

/// A connection on which both sides have said hello.
#[derive(Debug)]
pub struct Connection {
    /// What the other side said of itself.
    pub hello: Hello,
    /// Who the other side is.
    pub peer: Peer,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Connection {
    /// Connects to a socket and says hello as `name`.
    pub async fn connect(path: &Path, name: &str) -> Result<Self, IpcError> {
        Self::greet(UnixStream::connect(path).await?, name, Role::Client).await
    }

    /// Takes an accepted connection: waits for the hello and answers it, as `name`.
    pub async fn accept(stream: UnixStream, name: &str) -> Result<Self, IpcError> {
        Self::greet(stream, name, Role::Server).await
    }

    async fn greet(stream: UnixStream, name: &str, role: Role) -> Result<Self, IpcError> {
        let peer = Peer::of(&stream)?;
        let (reading, writing) = stream.into_split();
        let mut reader = FrameReader {
            half: reading,
            buffer: Vec::new(),
            limit: MAX_HELLO_LEN,
            version: HELLO_VERSION,
        };
        let mut writer = FrameWriter {
            half: writing,
            version: HELLO_VERSION,
        };
        let ours = Hello::ours(name);
        let exchange = async {
            if role == Role::Client {
                writer.send(&ours).await?;
            }
            let theirs = reader.receive::<Hello>().await?.ok_or(IpcError::ClosedEarly)?;
            if role == Role::Server {
                // Answered even when there is no version in common: the other side shall know why.
                writer.send(&ours).await?;
            }
            Ok::<_, IpcError>(theirs)
        };
        let hello = timeout(HELLO_DEADLINE, exchange)
            .await
            .map_err(|_| IpcError::TooSlow("say hello"))??;
        let Some(version) = ours.agree(&hello) else {
            let Hello {
                name,
                release,
                oldest,
                newest,
            } = hello;
            return Err(IpcError::NoCommonVersion {
                name,
                release,
                oldest,
                newest,
            });
        };
        reader.version = version;
        reader.limit = codec::MAX_PAYLOAD_LEN;
        writer.version = version;
        Ok(Self {
            hello,
            peer,
            reader,
            writer,
        })
    }

    /// The next message, or `None` when the peer has closed. May be dropped and called again without losing bytes.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, IpcError> {
        self.reader.receive().await
    }

    /// Sends a message, in at most [`WRITE_DEADLINE`]. Must not be dropped half-way.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), IpcError> {
        self.writer.send(message).await
    }

    /// The two directions, for tasks that read while they write.
    pub fn into_split(self) -> (FrameReader, FrameWriter) {
        (self.reader, self.writer)
    }

    pub(crate) fn split(&mut self) -> (&mut FrameReader, &mut FrameWriter) {
        (&mut self.reader, &mut self.writer)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// The reading direction of a [`Connection`].
#[derive(Debug)]
pub struct FrameReader {
    half: OwnedReadHalf,
    buffer: Vec<u8>,
    limit: usize,
    version: u8,
}

impl FrameReader {
    /// The next message, or `None` when the peer has closed. May be dropped and called again without losing bytes.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, IpcError> {
        loop {
            if let Some((frame, used)) = codec::split(&self.buffer, self.limit)? {
                if frame.version != self.version {
                    return Err(IpcError::WrongVersion {
                        got: frame.version,
                        agreed: self.version,
                    });
                }
                let message = codec::decode(frame.payload)?;
                self.buffer.drain(..used);
                return Ok(Some(message));
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(IpcError::ClosedEarly)
                };
            }
        }
    }
}

/// The writing direction of a [`Connection`].
#[derive(Debug)]
pub struct FrameWriter {
    half: OwnedWriteHalf,
    version: u8,
}

impl FrameWriter {
    /// Sends a message, in at most [`WRITE_DEADLINE`]. Must not be dropped half-way.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), IpcError> {
        let bytes = codec::encode(self.version, message)?;
        timeout(WRITE_DEADLINE, self.half.write_all(&bytes))
            .await
            .map_err(|_| IpcError::TooSlow("read"))??;
        Ok(())
    }
}

/// Accepts connections until told to stop, each in a task of its own, at most `limit` at a time; the others wait in the
/// kernel's backlog. Errors of accepting never end it. Each handler should end when `stop` is cancelled: after two
/// seconds it is ended.
pub async fn serve_connections<F, Fut>(listener: UnixListener, limit: usize, stop: CancellationToken, handle: F)
where
    F: Fn(UnixStream) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limit));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = handle(stream);
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            // The peer was gone before we came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // No file descriptors, no memory: those who are connected go on, the others wait.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection, trying again in a second");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSE_DEADLINE, all).await.is_err() {
        connections.shutdown().await;
    }
}

#[cfg(test)]
mod tests;
