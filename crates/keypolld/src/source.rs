//! The operator's sources of keys: a service on a socket, and a program. The socket is asked first; when it gives
//! nothing, the program.
//!
//! * [`socket`]: one connection for each look-up.
//! * [`once`]: the program is started for each look-up.
//! * [`persistent`]: the program keeps running.

pub mod once;
pub mod persistent;
pub mod socket;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_config::{ExecMode, KeyRequest};
use thiserror::Error;
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::{once::Once, persistent::Pool, socket::Socket};
use crate::{
    flow::{Health, Report, Route},
    lookup::Lookup,
    loud::Loud,
    process::command_line::{CommandLine, CommandLineError},
};

/// What a source has written, up to the end of the first JSON object at least.
pub type Written = Zeroizing<Vec<u8>>;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The service.
    Socket,
    /// The program.
    Command,
}

impl Kind {
    /// The word in reports and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Command => "exec_path",
        }
    }
}

/// Why a source gave nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Nobody listens there.
    #[error("cannot connect to the socket")]
    Connect(#[source] io::Error),
    /// The program is not there or may not be run.
    #[error("cannot run {program}: path is invalid or file has insufficient permissions")]
    Start {
        /// Its name.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The program ran and said that it failed.
    #[error("the program ended with exit code {0}")]
    ExitCode(i32),
    /// Somebody killed the program.
    #[error("the program was ended by a signal")]
    Killed,
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It ended without an answer.
    #[error("it ended without an answer")]
    Silent,
    /// It writes and writes.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The connection or pipe broke.
    #[error("the connection broke off")]
    Broken(#[source] io::Error),
}

/// What a shell and `env` end with when they cannot run what they were asked to.
const CANNOT_RUN: [i32; 2] = [126, 127];

impl SourceError {
    /// What it says about the source, apart from this one look-up.
    pub fn health(&self) -> Health {
        match self {
            Self::Connect(_) | Self::Start { .. } | Self::TimedOut(_) => Health::Down,
            Self::ExitCode(code) if CANNOT_RUN.contains(code) => Health::Down,
            Self::ExitCode(_) | Self::Killed | Self::Silent | Self::TooLong(_) | Self::Broken(_) => Health::Works,
        }
    }
}

/// What a look-up came to.
#[derive(Debug, Default)]
pub struct Looked {
    /// What was written, and by whom.
    pub written: Option<(Kind, Written)>,
    /// What it says about the sources.
    pub report: Report,
    /// What went wrong, in the order of asking.
    pub errors: Vec<(Kind, SourceError)>,
}

/// The configured sources.
#[derive(Debug)]
pub struct Sources {
    timeout: Duration,
    socket: Option<Socket>,
    command: Option<Command>,
}

#[derive(Debug)]
enum Command {
    Once(Once),
    Persistent(Arc<Pool>),
}

/// What is the same for all programs.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The home, where programs run.
    pub home: PathBuf,
    /// Keeps what programs say from filling the log.
    pub loud: Arc<Loud>,
    /// How much one may write.
    pub max_output: usize,
}

impl Sources {
    /// Those of the configuration.
    pub fn new(settings: &KeyRequest, surroundings: &Surroundings) -> Result<Self, CommandLineError> {
        let socket = settings
            .socket
            .as_deref()
            .map(|path: &Path| Socket::new(path, surroundings.max_output));
        let command = match &settings.exec_path {
            None => None,
            Some(text) => {
                let line = CommandLine::parse(text)?;
                let surroundings = surroundings.clone();
                Some(match settings.exec_mode {
                    ExecMode::Once => Command::Once(Once::new(line, surroundings)),
                    ExecMode::Persistent => {
                        let most_idle = usize::from(settings.threads);
                        Command::Persistent(Arc::new(Pool::new(line, surroundings, most_idle)))
                    }
                })
            }
        };
        Ok(Self {
            timeout: settings.timeout,
            socket,
            command,
        })
    }

    /// Which there are.
    pub fn route(&self) -> Route {
        Route {
            socket: self.socket.is_some(),
            command: self.command.is_some(),
        }
    }

    /// How long each of them may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks one after the other, each for as long as `<timeout>` says and both until the deadline.
    pub async fn look_up(&self, lookup: &Lookup, route: Route, deadline: Instant) -> Looked {
        let mut looked = Looked::default();
        if let Some(socket) = self.socket.as_ref().filter(|_| route.socket) {
            let answer = socket.ask(lookup, self.limit(deadline)).await;
            looked.report.socket = looked.take(Kind::Socket, answer);
        }
        if let Some(command) = self.command.as_ref().filter(|_| route.command)
            && looked.written.is_none()
        {
            let limit = self.limit(deadline);
            let answer = match command {
                Command::Once(once) => once.ask(lookup, limit).await,
                Command::Persistent(pool) => pool.ask(lookup, limit).await,
            };
            looked.report.command = looked.take(Kind::Command, answer);
        }
        looked
    }

    /// Lets programs that keep running end.
    pub async fn close(&self) {
        if let Some(Command::Persistent(pool)) = &self.command {
            pool.close().await;
        }
    }

    fn limit(&self, deadline: Instant) -> Duration {
        self.timeout.min(deadline.saturating_duration_since(Instant::now()))
    }
}

impl Looked {
    fn take(&mut self, kind: Kind, answer: Result<Written, SourceError>) -> Option<Health> {
        Some(match answer {
            Ok(written) => {
                self.written = Some((kind, written));
                Health::Works
            }
            Err(error) => {
                let health = error.health();
                self.errors.push((kind, error));
                health
            }
        })
    }
}

/// For people: `socket queue/keys.sock, then exec_path (kept running) etc/keypoll/agent_key_pull.py`.
impl fmt::Display for Sources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(socket) = &self.socket {
            write!(formatter, "socket {}", socket.path().display())?;
        }
        let then = if self.socket.is_some() { ", then " } else { "" };
        match &self.command {
            None if self.socket.is_none() => formatter.write_str("none"),
            None => Ok(()),
            Some(Command::Once(once)) => write!(formatter, "{then}exec_path {}", once.program()),
            Some(Command::Persistent(pool)) => write!(formatter, "{then}exec_path (kept running) {}", pool.program()),
        }
    }
}
