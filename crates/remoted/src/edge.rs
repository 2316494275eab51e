//! The network edge: workers that read agents' messages, answer them at once, pass events on, and tell the roster.
//!
//! One thread per processor, each with its own share of the sockets and everything that a message touches, so that
//! nothing on the way of an event is locked or allocated. [`Edge::start`] starts them, the key watcher and the thread
//! that keeps counters; [`Edge`] is what the rest of the daemon holds.
//!
//! | part | job |
//! | --- | --- |
//! | [`sockets`] | bind ports before privileges are dropped |
//! | `tcp`, `udp` | read, in turns |
//! | `worker` | all that happens to one message |
//! | `outgoing` | seal and write |
//! | `courier` | what other threads want sent |
//! | `launch` | how a worker begins |
//! | `gather` | how one wake-up serves many |
//! | `strangers` | bounds on connections that have not proved a key |
//! | [`tally`] | what is counted |
//! | [`talkers`] | who sends most |
//!
//! **Invariant:** an acknowledgement waits for nothing but the processor: not for the roster, the disk or the analysis
//! daemon.

mod courier;
mod gather;
mod launch;
mod outgoing;
mod pieces;
pub mod sockets;
mod strangers;
pub mod talkers;
pub mod tally;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod worker;

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use muster_config::{Settings, WhenFull};
use muster_proto::{ipc::control::QueueStatus, local::Layout, paths};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::{
    courier::{COMMAND_QUEUE, Command, WorkerCourier},
    launch::{Limits, Seed},
    talkers::{Talker, Watch},
    worker::Common,
};
pub use self::{
    sockets::{BindError, Listening, Sockets},
    tally::{Gauges, Tallies, Tally},
};
use crate::{
    analysis::{AnalysisTarget, CAP},
    archives::{self, ArchiveOptions, Archives},
    counters::{SenderPair, received::Keeper},
    keys::{
        KeyTable,
        watcher::{KeySource, KeyWatcher},
    },
    requests::registry::{Registry, RequestIds},
    session::{KeyRequests, Rules, Verify},
    shared::Carrier,
    slot::{AgentSlot, Courier, News, SendError},
};

/// What the network edge is made of.
pub struct EdgeParts<'a> {
    /// The home; empty when the process is in it.
    pub home: &'a Path,
    /// The configuration.
    pub settings: &'a Settings,
    /// The ports.
    pub sockets: Sockets,
    /// To the roster. The first news is the key file.
    pub news: mpsc::Sender<News>,
    /// Who is asked for keys that we do not have.
    pub key_requests: Arc<dyn KeyRequests>,
    /// The time, for a sender counter that was lost.
    pub unix_seconds: u32,
    /// Where the numbers of requests come from.
    pub request_ids: RequestIds,
}

/// Why the network edge does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// A directory of ours cannot be made.
    #[error("cannot make {path}: {source}")]
    Directory {
        /// Which one.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No thread or no socket.
    #[error("cannot start the {0}: {1}")]
    Thread(&'static str, io::Error),
    /// Nobody listens to the news.
    #[error("nobody takes the news of agents")]
    NoRoster,
}

/// The running network edge.
pub struct Edge {
    courier: Arc<WorkerCourier>,
    keys: KeyWatcher,
    tables: watch::Receiver<Arc<KeyTable>>,
    keeper: Keeper,
    keeper_thread: Option<JoinHandle<()>>,
    sender: Arc<SenderPair>,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
    workers: Vec<(Arc<Tallies>, Arc<Gauges>)>,
    listening: Vec<Listening>,
    analysis: AnalysisTarget,
    archives: Option<Archives>,
    top: Arc<Mutex<Vec<Talker>>>,
    /// Ends the thread that looks who sends most.
    talkers: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Edge {
    /// Reads the key file, tells the roster, and starts to talk to agents.
    pub fn start(parts: EdgeParts<'_>) -> Result<Self, StartError> {
        let EdgeParts {
            home,
            settings,
            sockets,
            news,
            key_requests,
            unix_seconds,
            request_ids,
        } = parts;
        let options = &settings.internal.remoted;
        let rids = home.join(paths::RIDS);
        std::fs::create_dir_all(&rids).map_err(|source| StartError::Directory {
            path: rids.display().to_string(),
            source,
        })?;
        let sender = Arc::new(SenderPair::open(&rids, unix_seconds));
        let (keeper, keeper_thread) = Keeper::start(&rids, Arc::clone(&sender), options.keyupdate_interval)
            .map_err(|error| StartError::Thread("keeper of counters", error))?;

        let mut source = KeySource::new(&home.join(paths::CLIENT_KEYS));
        let changes = source.look().unwrap_or_default();
        info!(agents = source.table().len(), "agents' keys read");
        news.try_send(changes.into()).map_err(|_| StartError::NoRoster)?;
        let (tables, table) = watch::channel(Arc::clone(source.table()));

        let listening = sockets.listening().to_vec();
        let (senders, receivers): (Vec<_>, Vec<_>) = sockets
            .workers
            .iter()
            .map(|_| mpsc::channel::<Command>(COMMAND_QUEUE))
            .unzip();
        let common = Arc::new(Common {
            connections: AtomicUsize::new(0),
            workers: senders,
            key_requests,
            registry: Arc::new(Registry::new(request_ids)),
        });
        let analysis = AnalysisTarget::new(home, settings.muster.layout);
        let stop = CancellationToken::new();
        let mut edge = Self {
            courier: Arc::new(WorkerCourier {
                common: Arc::clone(&common),
            }),
            keys: KeyWatcher::start(source, options.keyupdate_interval, tables, news.clone(), keeper.clone())
                .map_err(|error| StartError::Thread("key watcher", error))?,
            tables: table.clone(),
            keeper: keeper.clone(),
            keeper_thread: Some(keeper_thread),
            sender: Arc::clone(&sender),
            stop: stop.clone(),
            threads: Vec::new(),
            workers: Vec::new(),
            listening,
            analysis: analysis.clone(),
            archives: None,
            top: Arc::default(),
            talkers: None,
        };
        let rules = rules_of(settings);
        if rules.iter().any(|rules| rules.archives) {
            let options = ArchiveOptions {
                socket: home.join(paths::EVENTS_SOCKET),
                manager: manager_name(settings),
                layout: analysis.layout,
                incarnation: getrandom::u64().unwrap_or_else(|_| u64::from(unix_seconds)),
            };
            let (archives, thread) = Archives::start(options, stop.clone())
                .map_err(|error| StartError::Thread("sender of archives", error))?;
            edge.archives = Some(archives);
            edge.threads.push(thread);
        }
        let limits = Limits::new(settings, sockets.workers.len());
        let (started, ready) = sync_channel(sockets.workers.len());
        for (index, (sockets, commands)) in sockets.workers.into_iter().zip(receivers).enumerate() {
            let seed = Seed {
                index,
                sockets,
                commands,
                common: Arc::clone(&common),
                tables: table.clone(),
                news: news.clone(),
                keeper: keeper.clone(),
                sender: Arc::clone(&sender),
                tallies: Arc::default(),
                gauges: Arc::default(),
                analysis: analysis.clone(),
                limits,
                rules: rules.clone(),
                archives: edge.archives.clone(),
                when_full: when_full_of(settings),
                flush_every: options.recv_counter_flush,
                send_buffer: options.send_buffer_size,
                gather: options.gather(),
                stop: stop.clone(),
            };
            edge.workers.push((Arc::clone(&seed.tallies), Arc::clone(&seed.gauges)));
            let started = started.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || seed.run(&started))
                .map_err(|error| StartError::Thread("worker", error))?;
            edge.threads.push(thread);
        }
        for _ in 0..edge.workers.len() {
            let outcome = ready
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("a worker has ended")));
            outcome.map_err(|error| StartError::Thread("worker", error))?;
        }
        let watch = Watch {
            tables: table,
            tallies: edge.workers.iter().map(|(tallies, _)| Arc::clone(tallies)).collect(),
            news,
            top: Arc::clone(&edge.top),
        };
        let (stop, stopped) = sync_channel(0);
        let thread = std::thread::Builder::new()
            .name("talkers".to_owned())
            .spawn(move || watch.run(&stopped))
            .map_err(|error| StartError::Thread("watch on top talkers", error))?;
        edge.talkers = Some((stop, thread));
        Ok(edge)
    }

    /// How agents are reached.
    pub fn courier(&self) -> Arc<dyn Courier> {
        Arc::clone(&self.courier) as Arc<dyn Courier>
    }

    /// In whose words this home speaks to its analysis daemon, and to us.
    pub fn layout(&self) -> Layout {
        self.analysis.layout
    }

    /// Who is registered: the latest table, and those that come.
    pub fn tables(&self) -> watch::Receiver<Arc<KeyTable>> {
        self.tables.clone()
    }

    /// Where workers bring the answers to requests of local programs.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.courier.common.registry)
    }

    /// How files reach agents.
    pub fn carrier(&self) -> Arc<dyn Carrier> {
        Arc::clone(&self.courier) as Arc<dyn Carrier>
    }

    /// The key file was written: look at it now.
    pub fn keys_changed(&self) {
        self.keys.look_now();
    }

    /// The same; what comes back is done when roster and workers know what the file says now.
    pub fn keys_read(&self) -> impl Future<Output = ()> + Send + use<> {
        self.keys.look()
    }

    /// Gives the analysis daemon a line about an agent, as if it came from `program` (a stock daemon's name) there.
    pub fn own_line(&self, slot: &Arc<AgentSlot>, program: &'static str, text: &str) -> Result<(), SendError> {
        self.courier.own_line(slot, program, text)
    }

    /// Forgets the counters of an agent's messages. Says whether there is such an agent.
    pub fn reset_counter(&self, id: &str) -> bool {
        let table = self.tables.borrow();
        let slot = table.by_id(id);
        if let Some(slot) = slot {
            info!(agent_id = %slot.id, "the agent's counters are forgotten");
            self.keeper.reset(slot);
        }
        slot.is_some()
    }

    /// Closes an agent's connection, if it has one.
    pub fn close(&self, slot: &AgentSlot) {
        if let Some(connection) = slot.owner() {
            self.courier.close(connection);
        }
    }

    /// Where we listen.
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    /// Everything counted, by metric.
    pub fn counters(&self) -> Vec<(String, u64)> {
        Tally::ALL
            .into_iter()
            .map(|tally| (tally.metric().to_owned(), self.count(tally)))
            .collect()
    }

    /// One count, over all workers.
    pub fn count(&self, tally: Tally) -> u64 {
        self.workers.iter().map(|(tallies, _)| tallies.read(tally)).sum()
    }

    /// TCP connections there are now.
    pub fn connections(&self) -> usize {
        self.courier.common.connections.load(Ordering::Relaxed)
    }

    /// Queues with a bound.
    pub fn queues(&self) -> Vec<QueueStatus> {
        let waiting: usize = self.workers.iter().map(|(_, gauges)| gauges.analysis_bytes()).sum();
        let dropped = [
            Tally::EventsDroppedFull,
            Tally::EventsDroppedNoReader,
            Tally::EventsDroppedTooLong,
        ];
        let commands = &self.courier.common.workers;
        let mut queues = vec![
            QueueStatus {
                name: "analysis".to_owned(),
                used: waiting as u64,
                capacity: (CAP * self.workers.len()) as u64,
                unit: "bytes".to_owned(),
                dropped: dropped.into_iter().map(|tally| self.count(tally)).sum(),
            },
            QueueStatus {
                name: "to_agents".to_owned(),
                used: commands
                    .iter()
                    .map(|queue| (queue.max_capacity() - queue.capacity()) as u64)
                    .sum(),
                capacity: commands.iter().map(|queue| queue.max_capacity() as u64).sum(),
                unit: "messages".to_owned(),
                dropped: self.count(Tally::CommandsFailed),
            },
        ];
        queues.extend(self.archives.as_ref().map(|archives| QueueStatus {
            name: "archives".to_owned(),
            used: archives.waiting() as u64,
            capacity: archives::QUEUE_BYTES as u64,
            unit: "bytes".to_owned(),
            dropped: self.count(Tally::ArchivesDropped),
        }));
        queues
    }

    /// What does not work as it should, in words.
    pub fn degraded(&self) -> Vec<String> {
        let mut degraded = Vec::new();
        if self.workers.iter().any(|(_, gauges)| gauges.analysis_down()) {
            degraded.push(format!("nobody takes events at {}", self.analysis.path.display()));
        }
        if self.sender.is_unreserved() {
            degraded.push(format!(
                "cannot write {}/sender_counter: after a crash OSSEC agents may not hear us",
                paths::RIDS
            ));
        }
        degraded
    }

    /// Who sent most events of late, the first most of all.
    pub fn top_talkers(&self) -> Vec<Talker> {
        self.top.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Agents in the key file.
    pub fn agents(&self) -> usize {
        self.tables.borrow().len()
    }

    /// Ends all threads: what waits for the analysis daemon is sent if it takes it soon, counters are written. Blocks
    /// for two seconds at most, and what was sent to agents by then is all that is sent.
    pub fn stop(&mut self) {
        self.keys.stop();
        if let Some((stop, thread)) = self.talkers.take() {
            drop(stop);
            let _ = thread.join();
        }
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a worker ended with a panic");
            }
        }
        self.keeper.stop();
        if let Some(thread) = self.keeper_thread.take() {
            let _ = thread.join();
            self.keeper.write_all(self.tables.borrow().slots());
            self.sender.close();
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stop();
    }
}

fn rules_of(settings: &Settings) -> Vec<Rules> {
    let verify = match settings.internal.remoted.verify_msg_id {
        Some(true) => Verify::All,
        Some(false) => Verify::Nobody,
        None => Verify::Ossec,
    };
    settings
        .secure_remotes()
        .map(|remote| Rules::new(remote, settings.muster.manager_version, verify))
        .collect()
}

/// What archives call this manager.
fn manager_name(settings: &Settings) -> String {
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    settings
        .node_name()
        .map(str::to_owned)
        .or_else(host)
        .unwrap_or_else(|| "manager".to_owned())
}

/// There is one way to the analysis daemon, so one answer to its being slow: to wait, if any block says so.
fn when_full_of(settings: &Settings) -> WhenFull {
    if settings
        .secure_remotes()
        .any(|remote| remote.when_full == WhenFull::Block)
    {
        WhenFull::Block
    } else {
        WhenFull::Drop
    }
}
