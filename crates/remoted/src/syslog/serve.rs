//! The thread that serves all syslog ports.

use std::{
    cell::RefCell,
    io,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use muster_config::{Remote, WhenFull};
use muster_proto::{event::Event, keys::address::source_text};
use muster_service::clock::unix_ms;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    task::{LocalSet, spawn_local, yield_now},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    clean, expected,
    framing::{MAX_LINE_LEN, Splitter},
    permits,
    sockets::{Port, PortSocket},
    watch::{Change, Watch},
};
use crate::{
    analysis::{Analysis, AnalysisTarget, Flow, HasAnalysis, Need, drain},
    edge::{Gauges, Tallies, Tally},
    events,
    roster::pulse::LONGEST_NAP,
    slot::{Millis, News, plain_ip},
};

/// TCP connections of all ports together; a further one is closed at once.
const MAX_CONNECTIONS: u64 = 1024;
/// Datagrams that are read before others get their turn.
const DATAGRAMS_AT_ONCE: usize = 64;
/// One read of a stream.
const READ_LEN: usize = 16 * 1024;
/// How often a paused connection looks whether it may go on.
const PAUSE_LOOK: Duration = Duration::from_secs(1);
/// How long nothing is accepted when the kernel has no descriptors or memory for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// How long a stop waits for the analysis daemon to take what waits for it.
const LAST_LINES: Duration = Duration::from_secs(2);

muster_service::counters! {
    /// What came over syslog.
    pub struct SyslogCounters {
        /// Lines.
        lines_total,
        /// Datagrams and connections of senders that may not send.
        denied_total,
        /// Connections closed at once because there are too many.
        connections_refused_total,
        /// Senders that fell silent.
        senders_silent_total,
        /// Events that nobody had room for.
        events_lost_total,
    }
}

/// What the thread works with.
pub struct SyslogParts {
    /// The ports.
    pub ports: Vec<Port>,
    /// Where lines go.
    pub analysis: AnalysisTarget,
    /// The name of this manager in events.
    pub node: String,
    /// To natsd, by way of the roster.
    pub news: mpsc::Sender<News>,
    /// When to end.
    pub stop: CancellationToken,
}

/// What others may look at.
#[derive(Clone)]
pub struct SyslogStatus {
    counters: Arc<SyslogCounters>,
    tallies: Arc<Tallies>,
    gauges: Arc<Gauges>,
    listening: Arc<[String]>,
}

impl SyslogStatus {
    /// Where it listens: `syslog udp 0.0.0.0:514`.
    pub fn listening(&self) -> impl Iterator<Item = &String> {
        self.listening.iter()
    }

    /// What was counted, by metric.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let forwarded = [
            ("lines_forwarded_total", Tally::EventsForwarded),
            ("lines_dropped_full_total", Tally::EventsDroppedFull),
            ("lines_dropped_no_reader_total", Tally::EventsDroppedNoReader),
            ("lines_dropped_too_long_total", Tally::EventsDroppedTooLong),
        ];
        let forwarded = forwarded.map(|(name, tally)| (name.to_owned(), self.tallies.read(tally)));
        self.counters
            .values()
            .into_iter()
            .chain(forwarded)
            .map(|(name, value)| (format!("remoted_syslog_{name}"), value))
            .collect()
    }

    /// Whether lines came and nobody took them.
    pub fn is_degraded(&self) -> bool {
        self.gauges.analysis_down()
    }
}

/// All that a line touches, owned by one thread.
struct World {
    analysis: Analysis,
    blocks: Vec<(Remote, Watch)>,
    connections: u64,
    counters: Arc<SyslogCounters>,
    node: String,
    news: mpsc::Sender<News>,
}

type Shared = Rc<RefCell<World>>;

impl HasAnalysis for World {
    fn analysis(&mut self) -> &mut Analysis {
        &mut self.analysis
    }
}

/// Starts the thread, if there is a port to serve.
pub fn start(parts: SyslogParts) -> io::Result<Option<(SyslogStatus, JoinHandle<()>)>> {
    if parts.ports.is_empty() {
        return Ok(None);
    }
    let listening = parts
        .ports
        .iter()
        .map(|port| format!("syslog {} {}", port.protocol().as_str(), port.address));
    let status = SyslogStatus {
        counters: Arc::default(),
        tallies: Arc::default(),
        gauges: Arc::default(),
        listening: listening.collect(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let for_thread = status.clone();
    let thread = thread::Builder::new().name("syslog".to_owned()).spawn(move || {
        LocalSet::new().block_on(&runtime, async {
            if let Err(error) = serve(parts, &for_thread).await {
                warn!(%error, "syslog is not served");
            }
        });
    })?;
    Ok(Some((status, thread)))
}

async fn serve(parts: SyslogParts, status: &SyslogStatus) -> io::Result<()> {
    let blocks = parts.ports.iter().any(|port| port.remote.when_full == WhenFull::Block);
    let when_full = if blocks { WhenFull::Block } else { WhenFull::Drop };
    let now = Millis::now();
    let world = Rc::new(RefCell::new(World {
        analysis: Analysis::new(
            parts.analysis,
            when_full,
            Need::Needed,
            Arc::clone(&status.tallies),
            Arc::clone(&status.gauges),
        ),
        blocks: parts
            .ports
            .iter()
            .map(|port| {
                let watch = Watch::new(port.remote.silent_after, expected(&port.remote), now);
                (port.remote.clone(), watch)
            })
            .collect(),
        connections: 0,
        counters: Arc::clone(&status.counters),
        node: parts.node,
        news: parts.news,
    }));
    spawn_local(drain(Rc::clone(&world)));
    for (block, port) in parts.ports.into_iter().enumerate() {
        match port.socket {
            PortSocket::Udp(socket) => drop(spawn_local(receive(
                Rc::clone(&world),
                UdpSocket::from_std(socket)?,
                block,
            ))),
            PortSocket::Tcp(listener) => drop(spawn_local(accept(
                Rc::clone(&world),
                TcpListener::from_std(listener)?,
                block,
            ))),
        }
    }
    loop {
        tokio::select! {
            () = parts.stop.cancelled() => break,
            () = sleep(LONGEST_NAP) => world.borrow_mut().look_around(Millis::now()),
        }
    }
    let last = async {
        while world.borrow().analysis.is_waiting() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(LAST_LINES, last).await;
    Ok(())
}

impl World {
    /// Whether a sender may send to a block's port.
    fn admits(&self, block: usize, sender: IpAddr) -> bool {
        let permitted = self
            .blocks
            .get(block)
            .is_some_and(|(remote, _)| permits(remote, sender));
        if !permitted {
            self.counters.denied_total.increment();
            debug!(%sender, "syslog from an address that is not allowed");
        }
        permitted
    }

    /// Takes one message of a sender that may send.
    fn take(&mut self, block: usize, sender: &Sender, message: &[u8], can_wait: bool, now: Millis) {
        let Some(line) = clean(message) else { return };
        self.counters.lines_total.increment();
        self.analysis.offer_line(&sender.text, line, can_wait, now);
        let change = self
            .blocks
            .get_mut(block)
            .and_then(|(_, watch)| watch.heard(sender.ip, now));
        if let Some(change) = change {
            self.tell(&change, now);
        }
    }

    fn look_around(&mut self, now: Millis) {
        let changes: Vec<Change> = self.blocks.iter_mut().flat_map(|(_, watch)| watch.tick(now)).collect();
        for change in &changes {
            self.tell(change, now);
        }
    }

    fn tell(&self, change: &Change, now: Millis) {
        let silent_s = change.silence.as_secs();
        if change.silent {
            self.counters.senders_silent_total.increment();
            warn!(sender = %change.sender, silent_s, "syslog sender is silent");
        } else {
            info!(sender = %change.sender, silent_s, "syslog sender is back");
        }
        let event: Event = events::syslog_sender(change, now, unix_ms(), &self.node);
        if self.news.try_send(News::Event(Box::new(event))).is_err() {
            self.counters.events_lost_total.increment();
        }
    }
}

/// Who sends, and how the analysis daemon is told of it.
struct Sender {
    ip: IpAddr,
    text: String,
}

impl Sender {
    fn new(ip: IpAddr) -> Self {
        let ip = plain_ip(ip);
        Self {
            ip,
            text: source_text(ip),
        }
    }
}

async fn receive(world: Shared, socket: UdpSocket, block: usize) {
    let mut buffer = vec![0; MAX_LINE_LEN + 1024];
    loop {
        if let Err(error) = socket.readable().await {
            debug!(%error, "waiting for syslog datagrams failed");
            return;
        }
        let mut count = 0;
        while count < DATAGRAMS_AT_ONCE {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, peer)) => {
                    let mut world = world.borrow_mut();
                    let sender = Sender::new(peer.ip());
                    if world.admits(block, sender.ip) {
                        let message = buffer.get(..length.min(MAX_LINE_LEN)).unwrap_or_default();
                        world.take(block, &sender, message, false, Millis::now());
                    }
                    count += 1;
                }
                Err(_) => break,
            }
        }
        world.borrow_mut().analysis.flush(Millis::now());
        if count == DATAGRAMS_AT_ONCE {
            yield_now().await;
        }
    }
}

async fn accept(world: Shared, listener: TcpListener, block: usize) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let sender = Sender::new(peer.ip());
                let mut here = world.borrow_mut();
                if !here.admits(block, sender.ip) {
                    continue;
                }
                if here.connections >= MAX_CONNECTIONS {
                    here.counters.connections_refused_total.increment();
                    continue;
                }
                here.connections += 1;
                spawn_local(converse(Rc::clone(&world), stream, sender, block));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                warn!(%error, "cannot accept a syslog connection: trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(world: Shared, mut stream: TcpStream, sender: Sender, block: usize) {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; READ_LEN];
    loop {
        wait_for_room(&world).await;
        let read = match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => {
                debug!(sender = %sender.ip, %error, "syslog connection ended");
                break;
            }
        };
        {
            let mut world = world.borrow_mut();
            let now = Millis::now();
            splitter.feed(buffer.get(..read).unwrap_or_default(), |message| {
                world.take(block, &sender, message, true, now);
            });
            world.analysis.flush(now);
        }
        if read == READ_LEN {
            yield_now().await;
        }
    }
    let mut world = world.borrow_mut();
    let now = Millis::now();
    splitter.finish(|message| world.take(block, &sender, message, true, now));
    world.analysis.flush(now);
    world.connections -= 1;
}

/// Until the analysis daemon has caught up, or for as long as `<when_full>` bears.
async fn wait_for_room(world: &Shared) {
    let room = world.borrow().analysis.room();
    loop {
        // Made before the look at the queue, so that no wake-up falls between.
        let told = room.notified();
        if world.borrow().analysis.flow(Millis::now()) == Flow::Open {
            return;
        }
        let _ = timeout(PAUSE_LOOK, told).await;
    }
}
