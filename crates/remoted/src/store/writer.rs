//! The thread that writes: the database blocks, the roster must not.
//!
//! At most one batch waits while another is being written. While there is no room the roster goes on and gathers: a row
//! that changes again meanwhile is still one row, so what waits is bounded by the number of agents.

use std::{
    io,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{
    mpsc::{self, OwnedPermit},
    watch,
};

use super::{Batch, Store, StoreError};

/// Batches that wait for the one being written.
const WAITING_BATCHES: usize = 1;
/// After a failure, such as a full disk, the same batch is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The store's thread.
pub struct Writer {
    batches: mpsc::Sender<Batch>,
    status: watch::Receiver<WriterStatus>,
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
        let (sender, status) = watch::channel(WriterStatus::default());
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(store, inbox, &sender, &written))?;
        Ok(Self {
            batches,
            status,
            thread,
        })
    }

    /// Waits for room; `None` when the thread is gone.
    pub fn room(&self) -> impl Future<Output = Option<OwnedPermit<Batch>>> + use<> {
        let batches = self.batches.clone();
        async { batches.reserve_owned().await.ok() }
    }

    /// For whoever only wants to know how it goes.
    pub fn watch(&self) -> watch::Receiver<WriterStatus> {
        self.status.clone()
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
    status: &watch::Sender<WriterStatus>,
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
        status.send_modify(|status| {
            if status.error.take().is_some() {
                tracing::info!("store of agents is written again");
            }
            status.rows += batch.rows.len() as u64;
            status.events += batch.events.len() as u64;
            status.batches += 1;
        });
        if !batch.events.is_empty() {
            written();
        }
    }
    if let Err(error) = store.close() {
        report(status, &error);
    }
}

/// The same failure is logged once.
fn report(status: &watch::Sender<WriterStatus>, error: &StoreError) {
    let text = chain(error);
    status.send_if_modified(|status| {
        let is_news = status.error.as_ref() != Some(&text);
        if is_news {
            tracing::error!(error = text, "cannot write the store of agents; trying again");
            status.error = Some(text);
        }
        is_news
    });
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
