//! What a worker's thread begins with, and its beginning: sockets, tasks, bounds.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use muster_config::{Settings, WhenFull};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{mpsc, watch},
    task::{LocalSet, spawn_local},
};
use tokio_util::sync::CancellationToken;

use super::{
    courier::{self, Command},
    gather,
    outgoing::Outgoing,
    sockets::{self, WorkerSockets},
    strangers::{Bounds, Strangers},
    tally::{Gauges, Tallies},
    tcp, udp,
    worker::{self, Common, Parts, Shared, Worker},
};
use crate::{
    analysis::{Analysis, AnalysisTarget, Need, drain},
    archives::Archives,
    counters::{SenderPair, received::Keeper},
    keys::KeyTable,
    session::Rules,
    slot::News,
};

/// How long a stop waits for the analysis daemon to take what waits for it.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// Descriptors that are not for connections: sockets, files, databases.
const OTHER_DESCRIPTORS: u64 = 128;

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// All connections of the process.
    connections: usize,
    /// A worker's share of those that have not proved a key.
    strangers: Bounds,
    /// How long they may take.
    identify: Duration,
}

impl Limits {
    pub(super) fn new(settings: &Settings, workers: usize) -> Self {
        let limits = || settings.secure_remotes().map(|remote| &remote.limits);
        let descriptors = sockets::raise_descriptor_limit(settings.internal.remoted.rlimit_nofile);
        let fits = usize::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX);
        let share = |total: usize| total.div_ceil(workers.max(1)).max(1);
        Self {
            connections: limits().map(|limits| limits.max_connections).sum::<usize>().min(fits),
            strangers: Bounds {
                total: share(limits().map(|limits| limits.max_unidentified).sum::<usize>().min(fits)),
                per_address: share(
                    limits()
                        .map(|limits| limits.max_unidentified_per_address)
                        .max()
                        .unwrap_or(usize::MAX),
                ),
            },
            identify: limits()
                .map(|limits| limits.identify_timeout)
                .max()
                .unwrap_or(Duration::from_secs(60)),
        }
    }
}

/// What a worker's thread begins with.
pub(super) struct Seed {
    pub(super) index: usize,
    pub(super) sockets: WorkerSockets,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) common: Arc<Common>,
    pub(super) tables: watch::Receiver<Arc<KeyTable>>,
    pub(super) news: mpsc::Sender<News>,
    pub(super) keeper: Keeper,
    pub(super) sender: Arc<SenderPair>,
    pub(super) tallies: Arc<Tallies>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) analysis: AnalysisTarget,
    pub(super) limits: Limits,
    pub(super) rules: Vec<Rules>,
    pub(super) archives: Option<Archives>,
    pub(super) when_full: WhenFull,
    pub(super) flush_every: u32,
    pub(super) send_buffer: usize,
    /// The longest that messages are left to gather.
    pub(super) gather: Duration,
    pub(super) stop: CancellationToken,
}

impl Seed {
    pub(super) fn run(self, started: &SyncSender<io::Result<()>>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(gather::before_park(self.gather, Arc::clone(&self.tallies)))
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        let tasks = LocalSet::new();
        tasks.block_on(&runtime, async {
            let stop = self.stop.clone();
            match self.spawn() {
                Ok(worker) => {
                    let _ = started.send(Ok(()));
                    stop.cancelled().await;
                    // Tasks still run, but new messages would only lengthen the goodbye.
                    let _ = tokio::time::timeout(LAST_EVENTS, last_events(&worker)).await;
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
    }

    fn spawn(self) -> io::Result<Shared> {
        let mut listeners = Vec::new();
        for bound in self.sockets.tcp {
            listeners.push((TcpListener::from_std(bound.socket)?, bound.block));
        }
        let mut udp = Vec::new();
        for bound in self.sockets.udp {
            udp.push((Rc::new(UdpSocket::from_std(bound.socket)?), bound.block));
        }
        let ways = udp.iter().map(|(socket, _)| Rc::clone(socket)).collect();
        let worker = Rc::new(RefCell::new(Worker::new(Parts {
            index: self.index,
            common: self.common,
            tables: self.tables,
            rules: self.rules.into(),
            when_full: self.when_full,
            outgoing: Outgoing::new(self.sender, ways, self.send_buffer, Arc::clone(&self.tallies)),
            analysis: Analysis::new(
                self.analysis,
                self.when_full,
                if self.archives.is_some() {
                    Need::Optional
                } else {
                    Need::Needed
                },
                Arc::clone(&self.tallies),
                self.gauges,
            ),
            archives: self.archives,
            strangers: Strangers::new(self.limits.strangers),
            news: self.news,
            keeper: self.keeper,
            flush_every: self.flush_every,
            tallies: self.tallies,
            scratch: vec![0; tcp::READ_LEN].into(),
        })));
        spawn_local(drain(Rc::clone(&worker)));
        spawn_local(worker::acknowledge(Rc::clone(&worker)));
        spawn_local(courier::obey(Rc::clone(&worker), self.commands));
        spawn_local(tcp::close_the_unidentified(Rc::clone(&worker), self.limits.identify));
        for (number, (socket, block)) in udp.into_iter().enumerate() {
            spawn_local(udp::serve(Rc::clone(&worker), socket, number, block));
        }
        for (listener, block) in listeners {
            spawn_local(tcp::accept(
                Rc::clone(&worker),
                listener,
                block,
                self.limits.connections,
            ));
        }
        Ok(worker)
    }
}

/// Waits until the analysis daemon has taken what waited when we stopped.
async fn last_events(worker: &Shared) {
    while worker.borrow().analysis.is_waiting() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
