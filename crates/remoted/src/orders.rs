//! Orders to agents: `queue/alerts/ar` (active response, reconnection, scans) and `queue/alerts/cfgarq` (SCA). One
//! datagram each, and nothing comes back.
//!
//! [`plan`] decides who gets what; the waiting is here.
//!
//! What happens when something is full:
//! * *a worker's queue of messages to agents*: the order waits for it, [`FULL_PATIENCE`] at most for all its agents
//!   together; meanwhile further orders wait in the kernel, and then their senders do.
//! * *orders for agents that receive a file* ([`plan::MAX_HELD`]): a further one is dropped and counted.

pub mod plan;

use std::{io, os::unix::net::UnixDatagram as StdUnixDatagram, sync::Arc, time::Duration};

use muster_proto::local::{Layout, active_response::Order};
use tokio::{
    net::UnixDatagram,
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::plan::{Held, Outcome, Planned};
use crate::{
    keys::KeyTable,
    reach::Reach,
    slot::{AgentSlot, Courier, Message, Millis, SendError},
};

/// The longest order; stock takes 65,508 bytes.
const MAX_ORDER_LEN: usize = 65_536;
/// How long an order waits for room in the queues to agents.
const FULL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries when a queue is full.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How often orders for agents that receive a file are looked at.
const HELD_PAUSE: Duration = Duration::from_millis(250);

muster_service::counters! {
    /// What became of orders.
    pub struct OrderCounters {
        /// Orders that came.
        orders_total,
        /// Messages sent to agents because of them.
        orders_sent_total,
        /// SCA requests sent to agents.
        sca_sent_total,
        /// Orders that are none (1310).
        orders_malformed_total,
        /// Orders for agents that nobody knows (1320).
        orders_unknown_agent_total,
        /// Agents left out because they were not connected.
        orders_away_total,
        /// Agents left out because they would not understand.
        orders_foreign_total,
        /// Orders kept until an agent has received its file.
        orders_held_total,
        /// Messages lost because a queue was full or the agent went away.
        orders_lost_total,
    }
}

/// Both sockets, bound.
pub struct OrderSockets {
    /// `queue/alerts/ar`
    pub active_response: StdUnixDatagram,
    /// `queue/alerts/cfgarq`
    pub sca: StdUnixDatagram,
}

/// What orders are carried out with.
pub struct Orders {
    /// Who is registered.
    pub tables: watch::Receiver<Arc<KeyTable>>,
    /// Who may be sent what.
    pub reach: Arc<Reach>,
    /// To the agents.
    pub courier: Arc<dyn Courier>,
    /// In whose words orders are written here.
    pub layout: Layout,
    /// What is counted.
    pub counters: Arc<OrderCounters>,
}

impl Orders {
    /// Carries out orders until told to stop.
    pub async fn serve(self, sockets: OrderSockets, stop: CancellationToken) -> anyhow::Result<()> {
        let orders = UnixDatagram::from_std(sockets.active_response)?;
        let scans = UnixDatagram::from_std(sockets.sca)?;
        let (mut order, mut scan) = (vec![0; MAX_ORDER_LEN], vec![0; MAX_ORDER_LEN]);
        let mut held = Held::default();
        loop {
            let look_at = (!held.is_empty()).then(|| Instant::now() + HELD_PAUSE);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                came = orders.recv(&mut order) => {
                    if let Some(datagram) = taken(came, &order).await {
                        self.order(datagram, &mut held).await;
                    }
                }
                came = scans.recv(&mut scan) => {
                    if let Some(datagram) = taken(came, &scan).await {
                        self.scan(datagram, &mut held).await;
                    }
                }
                () = wait(look_at) => {}
            }
            for planned in held.ready(&self.reach, Millis::now()) {
                self.send(&planned, Instant::now() + FULL_PATIENCE).await;
            }
        }
    }

    async fn order(&self, datagram: &[u8], held: &mut Held) {
        let order = match Order::parse(self.layout, datagram) {
            Ok(Some(order)) => order,
            Ok(None) => return,
            Err(error) => {
                self.counters.orders_malformed_total.increment();
                let text = String::from_utf8_lossy(datagram.get(..80).unwrap_or(datagram));
                tracing::warn!(number = 1310, order = %text, "{error}");
                return;
            }
        };
        self.counters.orders_total.increment();
        let table = Arc::clone(&self.tables.borrow());
        match plan::recipients(&order.audience, &table) {
            Ok(slots) => self.carry_out(&slots, |slot| plan::message(&order, slot), held).await,
            Err(id) => {
                self.counters.orders_unknown_agent_total.increment();
                tracing::warn!(number = 1320, agent_id = id, "agent of an order not found");
            }
        }
    }

    async fn scan(&self, datagram: &[u8], held: &mut Held) {
        let Some((id, message)) = plan::sca(datagram) else {
            return;
        };
        self.counters.orders_total.increment();
        let slot = self.tables.borrow().by_id(id).cloned();
        match slot {
            Some(slot) => self.carry_out(&[slot], |_| message.clone(), held).await,
            None => self.counters.orders_unknown_agent_total.increment(),
        }
    }

    async fn carry_out(&self, slots: &[Arc<AgentSlot>], message: impl Fn(&AgentSlot) -> Vec<u8>, held: &mut Held) {
        let deadline = Instant::now() + FULL_PATIENCE;
        for slot in slots {
            let planned = Planned {
                slot: Arc::clone(slot),
                message: message(slot),
            };
            match plan::judge(&planned, &self.reach, Millis::now()) {
                Outcome::Send => self.send(&planned, deadline).await,
                Outcome::Away => self.counters.orders_away_total.increment(),
                Outcome::Foreign => {
                    self.counters.orders_foreign_total.increment();
                    tracing::debug!(agent_id = %slot.id, "an order was not sent: its agent would not understand it");
                }
                Outcome::Hold => {
                    self.counters.orders_held_total.increment();
                    if !held.push(planned, Millis::now()) {
                        self.counters.orders_lost_total.increment();
                    }
                }
            }
        }
    }

    async fn send(&self, planned: &Planned, deadline: Instant) {
        let Planned { slot, message } = planned;
        loop {
            match self.courier.send(slot, message) {
                Ok(()) => {
                    let (kind, counter) = if plan::is_sca(message) {
                        (Message::Sca, &self.counters.sca_sent_total)
                    } else {
                        (Message::Order, &self.counters.orders_sent_total)
                    };
                    slot.counts().add(kind);
                    counter.increment();
                    return;
                }
                Err(SendError::QueueFull) if Instant::now() < deadline => {
                    let _ = timeout_at(deadline, sleep(FULL_PAUSE)).await;
                }
                Err(error) => {
                    slot.counts().add(Message::Lost);
                    self.counters.orders_lost_total.increment();
                    tracing::debug!(agent_id = %slot.id, %error, "an order was not sent");
                    return;
                }
            }
        }
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// What came, or a pause: an error of receiving must not become a busy loop.
async fn taken(came: io::Result<usize>, buffer: &[u8]) -> Option<&[u8]> {
    match came {
        Ok(length) => buffer.get(..length),
        Err(error) => {
            tracing::warn!(%error, "cannot receive orders: trying again");
            sleep(Duration::from_secs(1)).await;
            None
        }
    }
}
