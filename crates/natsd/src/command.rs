//! Requests that come over NATS: status, restart, reload and removal of agents, asked for with a signed message.
//!
//! ```text
//! NATS ─▶ session ─▶ gate (may it be?) ─▶ audit ─▶ act (ask the other daemons) ─▶ audit, sign ─▶ reply
//!                                                   └─▶ ticket (what the agent made of it) ─▶ event
//! ```
//!
//! A thread, a connection and a subscription of its own: a flood of requests costs the events that are published
//! nothing but processor time, and what waits for the broker's acknowledgement keeps no request waiting.
//!
//! **Invariant:** nothing is changed that is not in the audit trail before, and whatever is refused or done is there
//! behind it; only what [`gate`] calls unheard is but counted.

mod act;
mod discovery;
mod enrollments;
pub(crate) mod gate;
mod reply;
mod session;
mod ticket;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use muster_config::Nats;
use muster_service::clock;
use tokio::{runtime, sync::mpsc};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    discovery::Service,
    enrollments::Enrollments,
    ticket::{MAX_TICKETS, Ticket, watch},
};
use self::{
    gate::{BadKey, Gate, Now},
    session::End,
};
use crate::{
    keeper::{Shared, chain},
    publish::connection::{self, jitter, pause},
    status::{Counters, Hearing, Report},
};

/// The moment, by both clocks.
fn now() -> Now {
    Now {
        unix_ms: clock::unix_ms(),
        instant: Instant::now(),
    }
}

/// The gate, shared with whoever reloads the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Doorkeeper(Arc<Mutex<Gate>>);

impl Doorkeeper {
    pub(crate) fn new(nats: &Nats, node: &str) -> Result<Self, BadKey> {
        Ok(Self(Arc::new(Mutex::new(Gate::new(nats, node, now())?))))
    }

    /// Takes over keys and rights.
    pub(crate) fn configure(&self, nats: &Nats) -> Result<(), BadKey> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .configure(nats, now())
    }
}

/// See the module.
pub(crate) struct Commander {
    pub(crate) nats: Nats,
    pub(crate) node: String,
    pub(crate) epoch: u64,
    pub(crate) gate: Doorkeeper,
    pub(crate) shared: Arc<Shared>,
    pub(crate) report: Arc<Report>,
    pub(crate) counters: Arc<Counters>,
    /// To [`watch`].
    pub(crate) tickets: mpsc::Sender<Ticket>,
    /// For those who wait for an agent that lost its key.
    pub(crate) enrollments: Enrollments,
    /// For those who look for services.
    pub(crate) service: Service,
}

impl Commander {
    /// Starts the thread; it ends soon after it was told to stop.
    pub(crate) fn start(self, stop: CancellationToken) -> io::Result<thread::JoinHandle<io::Result<()>>> {
        thread::Builder::new()
            .name("commander".to_owned())
            .spawn(move || Arc::new(self).run(&stop))
    }

    /// Connects again and again. Each connection has a runtime of its own that goes with it, as the publisher's has.
    fn run(self: Arc<Self>, stop: &CancellationToken) -> io::Result<()> {
        let mut failures = 0_u32;
        for server in self.nats.servers.iter().cycle() {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let end = runtime.block_on(self.one_connection(server, stop));
            let why = match end {
                End::Stopped => {
                    runtime.shutdown_background();
                    break;
                }
                End::Failed(why) => {
                    failures = failures.saturating_add(1);
                    why
                }
                End::Lost(why) => {
                    failures = 0;
                    why
                }
            };
            // The publisher tells of a broker that is away; what it does not meet is told here, once.
            let down = Hearing::Down(why);
            if self.report.read().hearing != down {
                tracing::warn!(why = down.why(), "requests over NATS are not heard");
            }
            self.report.change(|facts| facts.hearing = down);
            let wait = pause(failures, self.nats.reconnect_delay, self.nats.max_reconnects, jitter());
            let stopped = runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => true,
                    () = tokio::time::sleep(wait) => false,
                }
            });
            runtime.shutdown_background();
            if stopped {
                break;
            }
        }
        Ok(())
    }

    async fn one_connection(self: &Arc<Self>, server: &str, stop: &CancellationToken) -> End {
        let name = format!("{} control", self.node);
        let connected = tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            connected = connection::connect(&self.nats, &name, server) => connected,
        };
        match connected {
            Ok((client, news)) => session::run(self, client, news, stop).await,
            Err(error) => End::Failed(chain(&error)),
        }
    }
}
