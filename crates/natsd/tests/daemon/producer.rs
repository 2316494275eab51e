//! A daemon that makes events: keeps what natsd has not taken, as the outbox of a real one does.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{
        Event,
        body::{Enrollment, Keepalive, KeepaliveType, StatusChange},
    },
    ipc::events::{FromNatsd, NumberedEvent, ToNatsd},
};
use muster_service::{clock, ipc::Connection};
use tokio::time::timeout;

const BATCH: usize = 200;

pub(crate) struct Producer {
    socket: PathBuf,
    name: String,
    next: u64,
    outbox: VecDeque<NumberedEvent>,
    connection: Option<Connection>,
}

impl Producer {
    pub(crate) fn new(socket: PathBuf, name: &str) -> Self {
        Self {
            socket,
            name: name.to_owned(),
            next: 1,
            outbox: VecDeque::new(),
            connection: None,
        }
    }

    pub(crate) fn put(&mut self, event: Event) {
        self.outbox.push_back(NumberedEvent {
            number: self.next,
            event,
        });
        self.next += 1;
    }

    /// As an outbox without room does.
    pub(crate) fn drop_oldest(&mut self, count: usize) {
        self.outbox.drain(..count);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Tries for a while to hand over what waits; a daemon that is away is no error.
    pub(crate) async fn hand_over(&mut self, patience: Duration) {
        // What was not taken is sent again on the next connection.
        let _ = timeout(patience, self.try_hand_over()).await;
        // It belongs to the runtime of this call.
        self.connection = None;
    }

    async fn try_hand_over(&mut self) -> Option<()> {
        if self.connection.is_none() {
            let mut connection = Connection::connect(&self.socket, &self.name).await.ok()?;
            let produce = ToNatsd::Produce {
                producer: self.name.clone(),
                incarnation: 7,
            };
            connection.send(&produce).await.ok()?;
            let Ok(Some(FromNatsd::Resume { taken })) = connection.receive().await else {
                return None;
            };
            self.taken(taken);
            self.connection = Some(connection);
        }
        while let Some(last) = self.send_batch().await? {
            loop {
                let connection = self.connection.as_mut()?;
                let Ok(Some(FromNatsd::Taken { number })) = connection.receive().await else {
                    return None;
                };
                self.taken(number);
                if number >= last {
                    break;
                }
            }
        }
        Some(())
    }

    async fn send_batch(&mut self) -> Option<Option<u64>> {
        let batch: Vec<_> = self.outbox.iter().take(BATCH).cloned().collect();
        let Some(last) = batch.last().map(|event| event.number) else {
            return Some(None);
        };
        let connection = self.connection.as_mut()?;
        connection.send(&ToNatsd::Batch(batch)).await.ok()?;
        Some(Some(last))
    }

    fn taken(&mut self, number: u64) {
        while self.outbox.front().is_some_and(|event| event.number <= number) {
            self.outbox.pop_front();
        }
    }

    /// All of it, or the test fails.
    pub(crate) async fn hand_over_all(&mut self) {
        let begun = std::time::Instant::now();
        while self.waiting() > 0 {
            self.hand_over(Duration::from_secs(5)).await;
            assert!(begun.elapsed() < Duration::from_secs(60), "natsd takes nothing");
        }
    }
}

/// A change whose place in the agent's life is its number of missed keepalives.
pub(crate) fn change(agent: u32, place: u32) -> Event {
    change_of_level(agent, place, 3)
}

pub(crate) fn change_of_level(agent: u32, place: u32, alert_level: u8) -> Event {
    let now = clock::unix_ms();
    let (from, to) = if place.is_multiple_of(2) {
        (AgentStatus::Active, AgentStatus::Disconnected)
    } else {
        (AgentStatus::Disconnected, AgentStatus::Active)
    };
    StatusChange {
        agent_id: &AgentId::new(&format!("{agent:03}")),
        agent_name: "web-01",
        previous_status: from,
        current_status: to,
        ip_address: "192.0.2.1",
        timestamp: now / 1000,
        reason: Reason::KeepaliveTimeout,
        missed_keepalives: place,
        alert_level,
    }
    .into_event(now)
}

pub(crate) fn keepalive(agent: u32) -> Event {
    let now = clock::unix_ms();
    Keepalive {
        agent_id: &AgentId::new(&format!("{agent:03}")),
        agent_name: "web-01",
        ip_address: "192.0.2.1",
        timestamp: now / 1000,
        event_type: KeepaliveType::KeepaliveSent,
        manager_node: "mgr-a",
        interval: 60,
    }
    .into_event(now)
}

pub(crate) fn enrollment(agent: u32) -> Event {
    enrollment_of(agent, "enrolled", muster_proto::event::Kind::Enrolled)
}

pub(crate) fn removal(agent: u32) -> Event {
    enrollment_of(agent, "removed", muster_proto::event::Kind::Removed)
}

fn enrollment_of(agent: u32, action: &'static str, kind: muster_proto::event::Kind) -> Event {
    let now = clock::unix_ms();
    Enrollment {
        agent_id: &AgentId::new(&format!("{agent:03}")),
        agent_name: "web-01",
        ip_address: "any",
        timestamp: now / 1000,
        action,
        reason: "new",
        replaced_agent_id: None,
        method: "tls",
        groups: &["default".to_owned()],
        manager_node: "mgr-a",
    }
    .into_event(kind, now)
}
