//! Writes rows, one command at a time, on one connection.
//!
//! While the database is away, rows wait (one for each agent, the latest counts) and the pauses between two attempts
//! grow from one second to [`LONGEST_PAUSE`]. Before it was there for the first time nothing is kept.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_proto::{
    ipc::control::QueueStatus,
    local::wazuh_db::{Answer, RESET, StatusCode},
};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Client, Lost},
    rows::{Job, Rows},
};
use crate::slot::{AgentSlot, Millis, News};

const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

muster_service::counters! {
    /// What became of rows.
    pub struct RowCounters {
        /// Commands that the database carried out.
        stock_rows_written_total,
        /// Commands that it refused.
        stock_rows_refused_total,
        /// Connections to it that were lost.
        stock_rows_connections_lost_total,
    }
}

/// Where news go in. Clones are the same.
#[derive(Clone)]
pub struct StockRows(Arc<Shared>);

struct Shared {
    rows: Mutex<Rows>,
    /// The database was there once.
    wanted: AtomicBool,
    /// It is there now.
    connected: AtomicBool,
    wake: Notify,
    counters: RowCounters,
}

impl StockRows {
    /// None yet. `host` and `node` name the manager.
    pub fn new(host: String, node: String) -> Self {
        Self(Arc::new(Shared {
            rows: Mutex::new(Rows::new(host, node)),
            wanted: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            wake: Notify::new(),
            counters: RowCounters::default(),
        }))
    }

    /// Hears what the roster hears.
    pub fn hear(&self, news: &News) {
        if self.0.wanted.load(Ordering::Relaxed) {
            self.rows().hear(Millis::now(), news);
            self.0.wake.notify_one();
        }
    }

    /// An agent was given up, and no monitord says so in the database.
    pub fn given_up(&self, slot: &Arc<AgentSlot>) {
        if self.0.wanted.load(Ordering::Relaxed) {
            self.rows().gone(Millis::now(), slot, StatusCode::NoKeepalive);
            self.0.wake.notify_one();
        }
    }

    /// Its line of the status, in homes that have such a database.
    pub fn queue(&self) -> Option<QueueStatus> {
        self.0.wanted.load(Ordering::Relaxed).then(|| {
            let (waiting, all) = self.rows().sizes();
            QueueStatus {
                name: "wazuh-db".to_owned(),
                used: waiting as u64,
                capacity: all as u64,
                unit: "agents".to_owned(),
                dropped: 0,
            }
        })
    }

    /// What was counted, in homes that have such a database.
    pub fn counters(&self) -> Vec<(String, u64)> {
        if self.0.wanted.load(Ordering::Relaxed) {
            self.0.counters.values()
        } else {
            Vec::new()
        }
    }

    /// Whether it was there and is not any more.
    pub fn is_away(&self) -> bool {
        self.0.wanted.load(Ordering::Relaxed) && !self.0.connected.load(Ordering::Relaxed)
    }

    /// Writes until told to stop.
    pub async fn write_to(self, path: PathBuf, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.write_for_ever(path) => {}
        }
        Ok(())
    }

    async fn write_for_ever(&self, path: PathBuf) {
        let mut pause = PAUSE;
        loop {
            if let Ok(client) = Client::connect(&path).await {
                pause = PAUSE;
                let Err(error) = self.serve(client).await;
                if self.0.connected.swap(false, Ordering::Relaxed) {
                    self.0.counters.stock_rows_connections_lost_total.increment();
                    tracing::warn!(%error, "connection with wazuh-db lost: agents' rows wait until it is back");
                }
            }
            sleep(pause).await;
            pause = (pause + PAUSE).min(LONGEST_PAUSE);
        }
    }

    async fn serve(&self, mut client: Client) -> Result<std::convert::Infallible, Lost> {
        if !self.0.wanted.load(Ordering::Relaxed) {
            client.ask(RESET).await?;
            self.0.wanted.store(true, Ordering::Relaxed);
        }
        self.rows().forget_written();
        if !self.0.connected.swap(true, Ordering::Relaxed) {
            tracing::info!("agents' rows are written to wazuh-db");
        }
        loop {
            let (job, due) = {
                let mut rows = self.rows();
                (rows.next(Millis::now()), rows.next_due())
            };
            match (job, due) {
                (Some(job), _) => self.write(&mut client, job).await?,
                (None, Some(due)) => sleep(due.since(Millis::now()).max(Duration::from_millis(1))).await,
                (None, None) => self.0.wake.notified().await,
            }
        }
    }

    async fn write(&self, client: &mut Client, job: Job) -> Result<(), Lost> {
        for command in &job.commands {
            match client.ask(command).await {
                Ok(Answer::Ok(_)) => self.0.counters.stock_rows_written_total.increment(),
                Ok(Answer::Refused(why)) => {
                    self.0.counters.stock_rows_refused_total.increment();
                    tracing::debug!(agent_id = %job.id, reason = why, "wazuh-db refuses an agent's row");
                }
                Err(error) => {
                    self.rows().failed(Millis::now(), job);
                    return Err(error);
                }
            }
        }
        self.rows().done(&job);
        Ok(())
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
