//! A service that listens on a Unix stream socket.
//!
//! ```text
//! > id:001
//! < {"error":0,"data":{…}}
//! ```
//!
//! One connection for each look-up, no length, no line end, and our side stays open. Stock takes what its first read
//! gives; we read on until the object is whole, so a service may write in pieces.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use super::{SourceError, Written};
use crate::{
    dial::{self, Dial},
    lookup::Lookup,
    scan::{Progress, Scanner},
};

/// Between two attempts to connect to a service whose backlog is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);
/// What is read at a time.
const CHUNK: usize = 4096;

/// The socket.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    max_output: usize,
}

impl Socket {
    /// At this path, relative to the home.
    pub fn new(path: &Path, max_output: usize) -> Self {
        Self {
            path: path.to_owned(),
            max_output,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One look-up.
    pub async fn ask(&self, lookup: &Lookup, limit: Duration) -> Result<Written, SourceError> {
        timeout(limit, self.converse(lookup))
            .await
            .unwrap_or(Err(SourceError::TimedOut(limit)))
    }

    async fn converse(&self, lookup: &Lookup) -> Result<Written, SourceError> {
        let mut stream = self.dial(lookup.to_string().as_bytes()).await?;
        let mut written = Zeroizing::new(Vec::with_capacity(CHUNK));
        let mut scanner = Scanner::default();
        loop {
            if written.len() >= self.max_output {
                return Err(SourceError::TooLong(self.max_output));
            }
            let read = stream.read_buf(&mut *written).await.map_err(SourceError::Broken)?;
            match scanner.advance(&written) {
                // That the object is not whole, or none, is found when it is read.
                Progress::Complete(_) | Progress::NotAnObject => return Ok(written),
                Progress::More if read > 0 => {}
                Progress::More if written.is_empty() => return Err(SourceError::Silent),
                Progress::More => return Ok(written),
            }
        }
    }

    async fn dial(&self, request: &[u8]) -> Result<UnixStream, SourceError> {
        loop {
            match dial::ask(&self.path, request).await {
                Err(Dial::Connect(error)) if error.kind() == io::ErrorKind::WouldBlock => sleep(BACKLOG_PAUSE).await,
                Err(Dial::Connect(error)) => return Err(SourceError::Connect(error)),
                Err(Dial::Write(error)) => return Err(SourceError::Broken(error)),
                Ok(stream) => return Ok(stream),
            }
        }
    }
}
