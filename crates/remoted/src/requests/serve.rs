//! The socket: a frame in, a frame out, and the waiting between them.
//!
//! When something is full: connections beyond the pool wait in the kernel's backlog; requests beyond
//! `remoted.request_pool` wait for their turn, and are told so after `remoted.request_timeout`.

use std::{sync::Arc, time::Duration};

use muster_config::RemotedInternal;
use muster_proto::{
    local::remote::{self, Command, Request, RequestError},
    transport::control::ToAgent,
};
use muster_service::ipc::serve_connections;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    exchange::{Exchange, Next, Patience},
    figures::Figures,
    registry::{Arrival, Registry},
};
use crate::{
    keys::KeyTable,
    reach::{Content, Reach},
    slot::{AgentSlot, Courier, Message, Millis, Protocol},
};

/// Connections beyond those that wait for agents: for commands to ourselves.
const SPARE_CONNECTIONS: usize = 64;
/// How long a client may take to say what it wants, and to read the answer.
const CLIENT_DEADLINE: Duration = Duration::from_secs(30);

muster_service::counters! {
    /// What came to the socket.
    pub struct RequestCounters {
        /// Requests sent to agents.
        requests_sent_total,
        /// Sent again because the agent did not say that it had them.
        requests_resent_total,
        /// Answers given back.
        requests_answered_total,
        /// Requests that ended with an error text.
        requests_failed_total,
        /// JSON commands.
        requests_commands_total,
        /// Connections closed because they said nothing that could be answered.
        requests_refused_total,
    }
}

/// What the socket is served with.
pub struct Service {
    registry: Arc<Registry>,
    courier: Arc<dyn Courier>,
    tables: watch::Receiver<Arc<KeyTable>>,
    reach: Arc<Reach>,
    patience: Patience,
    turns: Semaphore,
    turn_timeout: Duration,
    figures: Figures,
    counters: Arc<RequestCounters>,
}

/// What a [`Service`] is made of.
pub struct ServiceParts<'a> {
    /// Where workers bring answers.
    pub registry: Arc<Registry>,
    /// To the agents.
    pub courier: Arc<dyn Courier>,
    /// Who is registered.
    pub tables: watch::Receiver<Arc<KeyTable>>,
    /// Who may be sent what.
    pub reach: Arc<Reach>,
    /// How patient to be.
    pub options: &'a RemotedInternal,
    /// What commands are answered from.
    pub figures: Figures,
    /// What is counted.
    pub counters: Arc<RequestCounters>,
}

impl Service {
    /// Ready to serve.
    pub fn new(parts: ServiceParts<'_>) -> Self {
        let pool = usize::try_from(parts.options.request_pool.max(1)).unwrap_or(1);
        Self {
            registry: parts.registry,
            courier: parts.courier,
            tables: parts.tables,
            reach: parts.reach,
            patience: Patience::new(parts.options),
            turns: Semaphore::new(pool),
            turn_timeout: parts.options.request_timeout,
            figures: parts.figures,
            counters: parts.counters,
        }
    }

    /// Serves until told to stop.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let limit = self.turns.available_permits() + SPARE_CONNECTIONS;
        serve_connections(listener, limit, stop, move |stream| {
            let service = Arc::clone(&self);
            async move { service.converse(stream).await }
        })
        .await;
    }

    async fn converse(&self, mut stream: UnixStream) {
        let Ok(Some(payload)) = timeout(CLIENT_DEADLINE, read_frame(&mut stream)).await else {
            self.counters.requests_refused_total.increment();
            return;
        };
        let Some(answer) = self.answer(&payload).await else {
            self.counters.requests_refused_total.increment();
            return;
        };
        match timeout(CLIENT_DEADLINE, stream.write_all(&remote::frame(&answer))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a local client went before its answer"),
            Err(_) => tracing::debug!("a local client did not read its answer"),
        }
    }

    /// The answer, or `None` for what stock closes without a word.
    async fn answer(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let (id, text) = match Request::parse(payload) {
            Request::Json(json) => {
                self.counters.requests_commands_total.increment();
                return Some(match Command::parse(json) {
                    Ok(command) => self.figures.answer(&command, &self.tables.borrow()),
                    Err(error) => remote::failure(error),
                });
            }
            Request::Agent { id, text } => (id, text),
            Request::Nothing => return None,
        };
        let slot = self.tables.borrow().by_id(id).cloned()?;
        Some(match self.ask(&slot, text).await {
            Ok(answer) => {
                self.counters.requests_answered_total.increment();
                answer
            }
            Err(error) => {
                self.counters.requests_failed_total.increment();
                tracing::debug!(agent_id = %slot.id, reason = %error, "a request to an agent failed");
                error.to_string().into_bytes()
            }
        })
    }

    async fn ask(&self, slot: &Arc<AgentSlot>, text: &[u8]) -> Result<Vec<u8>, RequestError> {
        // Whoever cannot be asked is not waited for.
        self.may_ask(slot)?;
        let Ok(Ok(_turn)) = timeout(self.turn_timeout, self.turns.acquire()).await else {
            return Err(RequestError::Internal);
        };
        let protocol = self.may_ask(slot)?;
        let mut ticket = self.registry.register(&slot.id);
        let request = ToAgent::Request { id: ticket.id, text }.to_bytes();
        self.send(slot, &request)?;
        self.counters.requests_sent_total.increment();
        let mut exchange = Exchange::begin(self.patience, protocol, Millis::now());
        loop {
            let wait = exchange.deadline().since(Millis::now());
            let next = match timeout(wait, ticket.arrivals.recv()).await {
                Ok(Some(Arrival::Answer(answer))) => {
                    if protocol == Protocol::Udp {
                        // Lost, it costs the agent a few repeats.
                        let _ = self.courier.send(slot, &ToAgent::RequestAck(ticket.id).to_bytes());
                    }
                    return Ok(answer);
                }
                Ok(Some(Arrival::Ack)) => exchange.on_ack(Millis::now()),
                Ok(None) => return Err(RequestError::Internal),
                Err(_) => exchange.on_time(Millis::now()),
            };
            match next {
                Next::Wait => {}
                Next::Resend => {
                    self.counters.requests_resent_total.increment();
                    // The next one may go through.
                    let _ = self.courier.send(slot, &request);
                }
                Next::GiveUp(error) => return Err(error),
            }
        }
    }

    fn may_ask(&self, slot: &AgentSlot) -> Result<Protocol, RequestError> {
        let judged = self.reach.judge(slot, Content::Request, Millis::now());
        let route = judged.ok().and_then(|()| slot.route());
        route.map(|route| route.protocol()).ok_or(RequestError::CannotSend)
    }

    fn send(&self, slot: &Arc<AgentSlot>, payload: &[u8]) -> Result<(), RequestError> {
        match self.courier.send(slot, payload) {
            Ok(()) => {
                slot.counts().add(Message::Request);
                Ok(())
            }
            Err(error) => {
                slot.counts().add(Message::Lost);
                tracing::debug!(agent_id = %slot.id, %error, "request not sent");
                Err(RequestError::CannotSend)
            }
        }
    }
}

async fn read_frame(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await.ok()?;
    let mut payload = vec![0; remote::payload_len(header)?];
    stream.read_exact(&mut payload).await.ok()?;
    Some(payload)
}
