//! The last counters of each agent, on disk: `queue/rids/<id>`.
//!
//! Workers hand slots over; one thread writes what they hold. A slot that finds the queue full is not written now: it
//! is handed over again with its next message, and at the stop everything is written. After a crash an agent's counter
//! on disk is at most so old as the last flush, which is the replay window that stock has too.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use muster_proto::transport::counter::Counter;
use tracing::debug;

use super::{Durability, SenderPair, read_counter, write_counter};
use crate::slot::AgentSlot;

/// Slots that wait to be written.
const QUEUE: usize = 4096;

/// Takes slots whose counters should be written soon.
#[derive(Clone)]
pub struct Keeper {
    directory: PathBuf,
    queue: SyncSender<Order>,
}

enum Order {
    Write(Arc<AgentSlot>),
    Forget(Arc<AgentSlot>),
    Stop,
}

impl Keeper {
    /// Starts the thread. It also looks every `look_every` whether another sender counter was put in place.
    pub fn start(
        directory: &Path,
        sender: Arc<SenderPair>,
        look_every: Duration,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (queue, orders) = sync_channel(QUEUE);
        let keeper = Self {
            directory: directory.to_owned(),
            queue,
        };
        let directory = directory.to_owned();
        let thread = std::thread::Builder::new()
            .name("counters".to_owned())
            .spawn(move || keep(&directory, &orders, &sender, look_every))?;
        Ok((keeper, thread))
    }

    /// Asks for this agent's counters to be written. Never waits.
    pub fn write_soon(&self, slot: &Arc<AgentSlot>) {
        // Full: the next flush of this slot, or the stop, writes it.
        let _ = self.queue.try_send(Order::Write(Arc::clone(slot)));
    }

    /// The agent is gone, or has another key: its counters must not meet whoever gets the id next. May wait for the
    /// disk.
    pub fn forget(&self, slot: &Arc<AgentSlot>) {
        slot.retire_received();
        // Ended: then nothing is written any more either.
        let _ = self.queue.send(Order::Forget(Arc::clone(slot)));
    }

    /// The operator says that the agent was set back: whatever it counts next is taken.
    pub fn reset(&self, slot: &Arc<AgentSlot>) {
        slot.forget_received();
        // Full for longer than a moment only when the disk hangs; the file's counters are then read at the next start.
        let _ = self.queue.try_send(Order::Forget(Arc::clone(slot)));
    }

    /// Takes over counters that somebody put in place of ours: a lower pair, or none at all. Says whether there were any.
    pub fn take_replacement(&self, slot: &AgentSlot) -> bool {
        let (Some(written), Some(path)) = (slot.last_written(), file_of(&self.directory, slot)) else {
            return false;
        };
        // What our own thread is writing just now is higher.
        match read_counter(&path) {
            Ok(None) => slot.forget_received(),
            Ok(Some(found)) if found < written => {
                slot.forget_received();
                slot.record(found);
                slot.received_written(found);
            }
            Ok(Some(_)) | Err(_) => return false,
        }
        true
    }

    /// Ends the thread once it has written what was asked before.
    pub fn stop(&self) {
        let _ = self.queue.send(Order::Stop);
    }

    /// The counters that were last written for an agent. A file that cannot be read counts as never heard.
    pub fn load(&self, slot: &AgentSlot) -> Option<Counter> {
        let path = file_of(&self.directory, slot)?;
        read_counter(&path).unwrap_or_else(|error| {
            debug!(%error, path = %path.display(), "cannot read an agent's counter");
            None
        })
    }

    /// Writes every slot that differs from its file, now.
    pub fn write_all<'a>(&self, slots: impl Iterator<Item = &'a Arc<AgentSlot>>) {
        for slot in slots {
            write(&self.directory, slot);
        }
    }
}

fn keep(directory: &Path, orders: &Receiver<Order>, sender: &SenderPair, look_every: Duration) {
    let mut look_at = Instant::now() + look_every;
    loop {
        let left = look_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            sender.look_for_another_file();
            look_at = Instant::now() + look_every;
        }
        match orders.recv_timeout(left) {
            Ok(Order::Write(slot)) => write(directory, &slot),
            Ok(Order::Forget(slot)) => remove(directory, &slot),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn write(directory: &Path, slot: &AgentSlot) {
    let (Some(counter), Some(path)) = (slot.received_unwritten(), file_of(directory, slot)) else {
        return;
    };
    match write_counter(&path, counter, Durability::Cached) {
        Ok(_) => slot.received_written(counter),
        Err(error) => debug!(%error, path = %path.display(), "cannot write an agent's counter"),
    }
}

fn remove(directory: &Path, slot: &AgentSlot) {
    let Some(path) = file_of(directory, slot) else { return };
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        debug!(%error, path = %path.display(), "cannot remove an agent's counter");
    }
}

/// Ids come from the key file and may be any text; one that is no plain file name has no file.
fn file_of(directory: &Path, slot: &AgentSlot) -> Option<PathBuf> {
    let id = slot.id.as_str();
    let plain = !id.is_empty()
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    (plain && id != super::SENDER_FILE).then(|| directory.join(id))
}
