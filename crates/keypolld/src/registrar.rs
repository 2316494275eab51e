//! Registration with authd, the only writer of the key file, through its local socket.
//!
//! An agent that is there already as the source knows it is left alone: replacing it with itself would reset its
//! registration time and leave a removed line behind each time it knocks with a wrong key.
//!
//! What stands in the way of a new agent is authd's to judge, by its `<force>` rules; it logs which of them refused.

use std::{io, path::PathBuf, time::Duration};

use muster_proto::{
    agent::AgentId,
    enrollment::force::Rules,
    local::auth::{self, Add, AgentData, Answer, AnswerError, Ensured, ErrorCode, Request},
};
use thiserror::Error;
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    time::{Instant, sleep, timeout},
};
use zeroize::Zeroizing;

use crate::{
    answer::Agent,
    dial::{self, Dial},
};

/// How long one exchange may take: authd may have to ask remoted, and waits for its disk.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(15);
/// How long authd may be away: a restart takes less.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than the answer about an agent with the longest fields.
const ANSWER_LEN: usize = 1024;
/// The first and the longest pause between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Why authd did not do as it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistrarError {
    /// A rule stands against it.
    #[error("authd refuses: {0}; its log says which rule")]
    Refused(ErrorCode),
    /// It does not run.
    #[error("cannot reach authd at {path}")]
    Unreachable {
        /// Its socket.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off; nobody knows whether it was done.
    #[error("authd did not answer")]
    Broken(#[source] io::Error),
    /// It answered something else.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// What registering an agent would change, or has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is no agent with its id.
    New,
    /// There is one with another name, address or key.
    Different,
    /// It is there as it should be.
    None,
}

impl From<Ensured> for Change {
    fn from(ensured: Ensured) -> Self {
        match ensured {
            Ensured::Added => Self::New,
            Ensured::Replaced => Self::Different,
            Ensured::Unchanged => Self::None,
        }
    }
}

/// The way to authd.
#[derive(Clone, Debug)]
pub struct Registrar {
    socket: PathBuf,
    force: Option<Rules>,
}

/// What `<force_insert>` of the older block says of the rules: everything gives way, or nothing does. Without it
/// authd's own rules count.
pub fn rules_of(force_insert: Option<bool>) -> Option<Rules> {
    force_insert.map(|enabled| Rules {
        enabled,
        key_mismatch: false,
        disconnected_time: None,
        after_registration_time: 0,
    })
}

impl Registrar {
    /// To authd at this socket, with these rules instead of its own.
    pub fn new(socket: PathBuf, force: Option<Rules>) -> Self {
        Self { socket, force }
    }

    /// What registering this agent would change.
    pub async fn compare(&self, agent: &Agent) -> Result<Change, RegistrarError> {
        Ok(match self.stored(&agent.id).await? {
            None => Change::New,
            Some(stored) if is_same(agent, &stored) => Change::None,
            Some(_) => Change::Different,
        })
    }

    /// Registers an agent, unless it is there as it should be.
    pub async fn register(&self, agent: &Agent) -> Result<Change, RegistrarError> {
        let add = Box::new(Add {
            name: agent.name.clone(),
            ip: agent.address.text().to_owned(),
            id: Some(agent.id.clone()),
            key: Some(agent.key.clone()),
            groups: Vec::new(),
            key_hash: None,
            force: self.force,
        });
        match self.exchange(&Request::Ensure(add.clone())).await? {
            Answer::Ensured(ensured) => Ok(ensured.into()),
            // That of stock does not know the request.
            Answer::Error(ErrorCode::Internal) => self.compare_and_add(agent, add).await,
            Answer::Error(code) => Err(RegistrarError::Refused(code)),
            Answer::Agent(_) | Answer::Removed => Err(AnswerError::Unreadable.into()),
        }
    }

    async fn compare_and_add(&self, agent: &Agent, add: Box<Add>) -> Result<Change, RegistrarError> {
        let change = self.compare(agent).await?;
        if change == Change::None {
            return Ok(change);
        }
        match self.exchange(&Request::Add(add)).await? {
            Answer::Agent(_) => Ok(change),
            Answer::Error(code) => Err(RegistrarError::Refused(code)),
            Answer::Ensured(_) | Answer::Removed => Err(AnswerError::Unreadable.into()),
        }
    }

    async fn stored(&self, id: &AgentId) -> Result<Option<AgentData>, RegistrarError> {
        match self.exchange(&Request::Get { id: id.clone() }).await? {
            Answer::Agent(stored) => Ok(Some(stored)),
            Answer::Error(ErrorCode::IdNotFound) => Ok(None),
            Answer::Error(code) => Err(RegistrarError::Refused(code)),
            Answer::Ensured(_) | Answer::Removed => Err(AnswerError::Unreadable.into()),
        }
    }

    async fn exchange(&self, request: &Request) -> Result<Answer, RegistrarError> {
        let frame = Zeroizing::new(auth::frame(&request.to_payload()));
        let mut stream = self.ask(&frame).await?;
        let exchange = async {
            // With room for the usual answer, so that one reading is enough.
            let mut answer = Zeroizing::new(Vec::with_capacity(ANSWER_LEN));
            loop {
                if let Some((header, payload)) = answer.split_first_chunk() {
                    let length = auth::payload_len(*header).ok_or(io::ErrorKind::InvalidData)?;
                    if let Some(payload) = payload.get(..length) {
                        return Ok(Answer::parse(payload));
                    }
                    let missing = length.saturating_sub(payload.len());
                    answer.reserve(missing);
                }
                if stream.read_buf(&mut *answer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let outcome = timeout(EXCHANGE_DEADLINE, exchange).await;
        let answer = outcome
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(RegistrarError::Broken)?;
        Ok(answer?)
    }

    async fn ask(&self, frame: &[u8]) -> Result<UnixStream, RegistrarError> {
        let until = Instant::now() + PATIENCE;
        let mut pause = PAUSES.0;
        loop {
            let source = match dial::ask(&self.socket, frame).await {
                Ok(stream) => return Ok(stream),
                Err(Dial::Write(error)) => return Err(RegistrarError::Broken(error)),
                Err(Dial::Connect(source)) => source,
            };
            // It is being restarted, or its backlog is full.
            let may_pass = matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
            );
            if !may_pass || Instant::now() + pause > until {
                return Err(RegistrarError::Unreachable {
                    path: self.socket.display().to_string(),
                    source,
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// authd tells the address without its prefix, so a network that only became larger or smaller passes as the same.
fn is_same(agent: &Agent, stored: &AgentData) -> bool {
    let key = muster_proto::keys::Secret::new(stored.key.clone());
    agent.name == stored.name && agent.address.host_text() == stored.ip && agent.key == key
}
