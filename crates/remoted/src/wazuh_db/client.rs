//! One connection to the stock database: a command, its answer, and so on.

use std::{io, path::Path, time::Duration};

use muster_proto::local::wazuh_db::{Answer, answer_len, frame};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// How long one command may take, its answer included.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why the connection is of no more use.
#[derive(Debug, Error)]
pub enum Lost {
    /// Reading or writing failed, or the database closed.
    #[error("connection with wazuh-db failed")]
    Io(#[from] io::Error),
    /// It takes too long.
    #[error("wazuh-db does not answer")]
    Silent,
    /// An answer that is longer than any.
    #[error("wazuh-db sent something else than an answer")]
    Foreign,
}

/// A connection.
pub struct Client {
    stream: UnixStream,
    answer: Vec<u8>,
}

impl Client {
    /// Connects.
    pub async fn connect(path: &Path) -> Result<Self, Lost> {
        let connected = timeout(DEADLINE, UnixStream::connect(path));
        Ok(Self {
            stream: connected.await.map_err(|_| Lost::Silent)??,
            answer: Vec::new(),
        })
    }

    /// Asks, and waits for the answer. A command that is too long is not sent, and counts as refused.
    pub async fn ask(&mut self, command: &str) -> Result<Answer<'_>, Lost> {
        let Some(frame) = frame(command) else {
            return Ok(Answer::Refused("command is too long"));
        };
        let Self { stream, answer } = self;
        let exchange = async {
            stream.write_all(&frame).await?;
            let mut header = [0; 4];
            stream.read_exact(&mut header).await?;
            answer.resize(answer_len(header).ok_or(Lost::Foreign)?, 0);
            stream.read_exact(answer).await?;
            Ok::<(), Lost>(())
        };
        timeout(DEADLINE, exchange).await.map_err(|_| Lost::Silent)??;
        Ok(Answer::parse(&self.answer))
    }
}
