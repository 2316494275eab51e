//! A daemon's outbox that never runs dry.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{Event, body::StatusChange},
    ipc::events::{FromNatsd, NumberedEvent, ToNatsd},
};
use muster_service::{clock, ipc::Connection};

use crate::rig::Home;

const BATCH: u64 = 500;
/// Batches that the producer sends ahead of natsd's word that it has them.
const AHEAD: u64 = 6;
const AGENTS: u64 = 5_000;

/// When each event was handed over.
pub(crate) type Sent = Arc<Mutex<BTreeMap<u64, Instant>>>;

pub(crate) fn event(number: u64) -> Event {
    let now = clock::unix_ms();
    StatusChange {
        agent_id: &AgentId::new(&format!("{:04}", number % AGENTS)),
        agent_name: &format!("host-{number}"),
        previous_status: AgentStatus::Active,
        current_status: AgentStatus::Disconnected,
        ip_address: "192.168.100.100",
        timestamp: now / 1000,
        reason: Reason::KeepaliveTimeout,
        missed_keepalives: 3,
        alert_level: 3,
    }
    .into_event(now)
}

/// A daemon with an outbox that never runs dry.
pub(crate) struct Feeder {
    writer: muster_service::ipc::FrameWriter,
    taken: Arc<AtomicU64>,
    next: u64,
    changed: Arc<tokio::sync::Notify>,
}

impl Feeder {
    pub(crate) async fn connect(home: &Home, incarnation: u64) -> Result<Self> {
        let mut connection = Connection::connect(&home.path.path().join("queue/muster/events"), "bench").await?;
        let producer = format!("bench{incarnation}");
        connection.send(&ToNatsd::Produce { producer, incarnation }).await?;
        let Some(FromNatsd::Resume { .. }) = connection.receive().await? else {
            bail!("natsd did not resume")
        };
        let (mut reader, writer) = connection.into_split();
        let (taken, changed) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (noted, woken) = (Arc::clone(&taken), Arc::clone(&changed));
        tokio::spawn(async move {
            while let Ok(Some(FromNatsd::Taken { number })) = reader.receive().await {
                noted.store(number, Ordering::Relaxed);
                woken.notify_one();
            }
        });
        Ok(Self {
            writer,
            taken,
            next: 1,
            changed,
        })
    }

    /// Hands over so many events, at a rate if one is given, and waits until they are taken.
    pub(crate) async fn feed(&mut self, count: u64, pace: Option<(u64, Sent)>) -> Result<()> {
        let (begun, first) = (Instant::now(), self.next);
        let last = first + count;
        while self.next < last {
            let due = match &pace {
                None => BATCH,
                Some((rate, _)) => {
                    let elapsed = u64::try_from(begun.elapsed().as_millis())?;
                    (first + rate * elapsed / 1000).saturating_sub(self.next)
                }
            };
            if due == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            let batch = due.min(BATCH).min(last - self.next);
            let events = (self.next..self.next + batch).map(|number| NumberedEvent {
                number,
                event: event(number),
            });
            let events: Vec<_> = events.collect();
            if let Some((_, sent)) = &pace {
                let now = Instant::now();
                let mut sent = sent.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
                sent.extend(events.iter().map(|event| (event.number, now)));
            }
            self.writer.send(&ToNatsd::Batch(events)).await?;
            self.next += batch;
            self.wait_for(self.next.saturating_sub(AHEAD * BATCH)).await;
        }
        self.wait_for(last - 1).await;
        Ok(())
    }

    pub(crate) async fn wait_for(&self, number: u64) {
        while self.taken.load(Ordering::Relaxed) < number {
            self.changed.notified().await;
        }
    }
}
