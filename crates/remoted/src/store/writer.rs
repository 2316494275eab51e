//! The thread that writes: the database blocks, the roster must not.
//!
//! At most one batch waits while another is being written. While there is no room the roster goes on and gathers: a row
//! that changes again meanwhile is still one row, so what waits is bounded by the number of agents.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::mpsc::{self, OwnedPermit};

use super::{Batch, Store, StoreError};

/// Batches that wait for the one being written.
const WAITING_BATCHES: usize = 1;
/// After a failure, such as a full disk, the same batch is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The store's thread.
pub struct Writer {
    batches: mpsc::Sender<Batch>,
    shared: Arc<Mutex<WriterStatus>>,
    thread: JoinHandle<()>,
}

/// How the writing goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriterStatus {
    /// Rows written.
    pub rows: u64,
    /// Events put into the outbox.
    pub events: u64,
    /// Transactions.
    pub batches: u64,
    /// Why the last attempt failed; `None` when it did not.
    pub error: Option<String>,
}

impl Writer {
    /// Starts the thread. `written` is called behind every batch that had events.
    pub fn start(store: Store, written: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (batches, inbox) = mpsc::channel(WAITING_BATCHES);
        let shared = Arc::new(Mutex::new(WriterStatus::default()));
        let status = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(store, inbox, &status, &written))?;
        Ok(Self {
            batches,
            shared,
            thread,
        })
    }

    /// Waits for room; `None` when the thread is gone.
    pub fn room(&self) -> impl Future<Output = Option<OwnedPermit<Batch>>> + use<> {
        let batches = self.batches.clone();
        async { batches.reserve_owned().await.ok() }
    }

    /// A handle for whoever only wants to know how it goes.
    pub fn watch(&self) -> Arc<Mutex<WriterStatus>> {
        Arc::clone(&self.shared)
    }

    /// Lets the thread write what it was given, and waits for its end.
    pub async fn finish(self) {
        drop(self.batches);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the store's thread broke off");
        }
    }
}

fn write_all(
    mut store: Store,
    mut inbox: mpsc::Receiver<Batch>,
    status: &Mutex<WriterStatus>,
    written: &(impl Fn() + Send),
) {
    while let Some(batch) = inbox.blocking_recv() {
        while let Err(error) = store.write(&batch) {
            report(status, &error);
            // While the daemon runs, time heals: somebody makes room on the disk. When it ends there is none.
            if inbox.is_closed() {
                tracing::error!(
                    rows = batch.rows.len(),
                    events = batch.events.len(),
                    "not stored at the end"
                );
                return;
            }
            thread::park_timeout(RETRY_AFTER);
        }
        let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.error.take().is_some() {
            tracing::info!("store of agents is written again");
        }
        status.rows += batch.rows.len() as u64;
        status.events += batch.events.len() as u64;
        status.batches += 1;
        drop(status);
        if !batch.events.is_empty() {
            written();
        }
    }
    if let Err(error) = store.close() {
        report(status, &error);
    }
}

/// The same failure is logged once.
fn report(status: &Mutex<WriterStatus>, error: &StoreError) {
    let text = chain(error);
    let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
    if status.error.as_ref() != Some(&text) {
        tracing::error!(error = text, "cannot write the store of agents; trying again");
        status.error = Some(text);
    }
}

fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
