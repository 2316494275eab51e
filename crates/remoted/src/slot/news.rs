//! What workers tell the roster, and how the roster reaches agents.

use std::{io, net::SocketAddr, sync::Arc};

use muster_proto::event::Event;
use thiserror::Error;

use super::{AgentSlot, Millis, Protocol, Said};
use crate::roster::agent::SharedState;
use crate::{edge::talkers::Overload, roster::conflict::Conflict, session::Cause};

/// How a startup was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupOutcome {
    /// Acknowledged.
    Accepted {
        /// The version in the message, when it had one.
        version: Option<String>,
    },
    /// Its version is higher than the manager's.
    RefusedVersion {
        /// The version that it named.
        version: String,
    },
    /// It sent JSON without a version.
    NoVersion,
}

/// Why a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The other end closed it.
    ByPeer,
    /// The network failed: reset, or no answer to the kernel's probes.
    Network(io::ErrorKind),
    /// We closed it, since this came.
    Refused(Cause),
    /// We closed it, since it announced a message longer than any.
    TooLong,
    /// What a load balancer says in front of a connection was wrong.
    Preface,
    /// Strangers had half sent too much.
    Crowded,
    /// We are being stopped.
    Stopping,
}

impl Ending {
    /// The words in logs and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByPeer => "closed by the other end",
            Self::Network(io::ErrorKind::TimedOut) => "other end does not answer",
            Self::Network(io::ErrorKind::ConnectionReset) => "reset by the other end",
            Self::Network(_) => "network failure",
            Self::Refused(cause) => cause.as_str(),
            Self::TooLong => "message too long",
            Self::Preface => "header of the load balancer is wrong",
            Self::Crowded => "strangers have half sent too much",
            Self::Stopping => "manager stops",
        }
    }
}

/// What a worker tells the roster. The channel is bounded: when it is full a TCP connection waits, and what came over
/// UDP is dropped and counted (the agent has its acknowledgement, and the slot was heard).
#[derive(Debug)]
pub enum News {
    /// An agent said hello.
    Startup {
        /// Who.
        slot: Arc<AgentSlot>,
        /// When it was heard.
        at: Millis,
        /// From where.
        peer: SocketAddr,
        /// Over what.
        protocol: Protocol,
        /// What it was answered.
        outcome: StartupOutcome,
    },
    /// An agent sent its keepalive, and was acknowledged.
    Keepalive {
        /// Who.
        slot: Arc<AgentSlot>,
        /// When it was heard.
        at: Millis,
        /// From where.
        peer: SocketAddr,
        /// Over what.
        protocol: Protocol,
        /// What it says.
        said: Arc<Said>,
    },
    /// An agent said goodbye.
    Shutdown {
        /// Who.
        slot: Arc<AgentSlot>,
        /// When it was heard.
        at: Millis,
    },
    /// An event or an answer came from an agent that was away. Told once after each change of its status.
    HeardAgain {
        /// Who.
        slot: Arc<AgentSlot>,
        /// When it was heard.
        at: Millis,
        /// From where.
        peer: SocketAddr,
        /// Over what.
        protocol: Protocol,
    },
    /// The connection that the agent was bound to closed without a goodbye.
    ConnectionLost {
        /// Who.
        slot: Arc<AgentSlot>,
        /// When.
        at: Millis,
        /// Its other end.
        peer: SocketAddr,
        /// Why it closed.
        ending: Ending,
    },
    /// Somebody who has the agent's key spoke while the agent was connected elsewhere. Dropped when there is no room: it
    /// happens again.
    KeyConflict {
        /// Whose key.
        slot: Arc<AgentSlot>,
        /// When.
        at: Millis,
        /// Who.
        conflict: Conflict,
    },
    /// Events had to wait, or were lost.
    Overload {
        /// When it was seen.
        at: Millis,
        /// How much, and who sends most.
        overload: Overload,
    },
    /// Connected agents whose lines went from `client.keys` although authd has not removed them.
    /// [`News::KeysReloaded`] follows.
    KeysTaken(Vec<Arc<AgentSlot>>),
    /// `client.keys` was read; at the start everything is in `added`.
    KeysReloaded {
        /// Ids that were not there before.
        added: Vec<Arc<AgentSlot>>,
        /// New slots of ids whose name, address or key changed.
        changed: Vec<Arc<AgentSlot>>,
        /// Slots of ids that are gone.
        removed: Vec<Arc<AgentSlot>>,
    },
    /// An event that has nothing to do with an agent, for natsd.
    Event(Box<Event>),
    /// An answer to a request of ours (`#!-req <counter> ..`): the round trip works.
    Answer {
        /// Who.
        slot: Arc<AgentSlot>,
        /// When.
        at: Millis,
        /// The request's counter.
        counter: String,
        /// All behind it.
        body: Vec<u8>,
    },
    /// What an agent is to have of its groups, and whether it has it: told after a keepalive when it has changed.
    Shared {
        /// Who.
        slot: Arc<AgentSlot>,
        /// What.
        shared: SharedState,
    },
}

/// How the roster reaches an agent. Seals in the agent's form with the one sender counter and hands the bytes to the
/// worker that owns the route. Never blocks.
pub trait Courier: Send + Sync {
    /// Sends a payload, control header included.
    fn send(&self, slot: &Arc<AgentSlot>, payload: &[u8]) -> Result<(), SendError>;
}

/// Why a message to an agent was not even tried. Whether one that was tried arrives, only an answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError {
    /// The agent has said no control message, or its connection is gone.
    #[error("agent is not connected")]
    NoRoute,
    /// The worker's queue of messages to send is full.
    #[error("queue of messages to agents is full")]
    QueueFull,
    /// The payload is empty or longer than an envelope can hold.
    #[error("message is too long for an agent")]
    TooLong,
    /// The network edge was stopped.
    #[error("network is shut down")]
    Stopped,
}
