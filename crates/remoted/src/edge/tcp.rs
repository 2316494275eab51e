//! Agents over TCP: taking connections in, reading them in turns, closing them.
//!
//! A connection is a task that owns next to nothing while it is idle: reads land in the worker's one buffer, and are
//! handled there. After each full read the others get their turn.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    ops::ControlFlow,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use muster_config::WhenFull;
use muster_proto::transport::proxy::{self, Preface};
use tokio::{
    io::{AsyncRead, Interest, ReadBuf},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    task::{spawn_local, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    pieces::Pieces,
    tally::Tally,
    worker::{Memory, Shared, Stop, Worker},
};
use crate::{
    analysis::{Flow, LONGEST_PAUSE},
    session::Origin,
    slot::{ConnectionId, Ending, Millis, News, Route, plain_ip},
};

/// One read, and one turn: some tens of messages.
pub(crate) const READ_LEN: usize = 16 * 1024;
/// One read while the analysis daemon is slow, so that connections that do not know yet that they must wait bring little.
const READ_LEN_WHEN_FULL: usize = 4 * 1024;
/// What each stranger may have half sent. A first message has some hundred bytes.
const STRANGERS_SHARE: usize = 4 * 1024;
/// What all strangers of a worker together may have half sent beyond that.
const STRANGERS_POOL: usize = 16 * 1024 * 1024;
/// How long nothing is accepted when the kernel has no descriptors or memory for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// While a connection is paused its agent counts as alive; so often it is said.
const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// Accepts connections for as long as the worker runs. No error ends it.
pub(crate) async fn accept(worker: Shared, listener: TcpListener, block: usize, limit: usize) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => admit(&worker, stream, peer, block, limit),
            Err(error) => {
                worker.borrow().tallies.count(Tally::AcceptErrors);
                // A peer that left before we came is no reason to wait; a lack of descriptors or memory is.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    warn!(%error, "cannot accept a connection: trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn admit(shared: &Shared, stream: TcpStream, peer: SocketAddr, block: usize, limit: usize) {
    let mut worker = shared.borrow_mut();
    let worker = &mut *worker;
    worker.tallies.count(Tally::ConnectionsAccepted);
    if worker.common.connections.load(Ordering::Relaxed) >= limit {
        let Some((oldest, ip)) = worker.strangers.oldest() else {
            worker.tallies.count(Tally::ConnectionsRefused);
            debug!(%peer, "connection closed: there are too many");
            return;
        };
        evict(worker, oldest, ip);
    }
    worker.sequence += 1;
    let id = ConnectionId::new(worker.index, worker.sequence);
    let ip = plain_ip(peer.ip());
    if let Some((oldest, ip)) = worker.strangers.admit(ip, id) {
        evict(worker, oldest, ip);
    }
    worker.common.connections.fetch_add(1, Ordering::Relaxed);
    let (read, write) = stream.into_split();
    worker.outgoing.open(id, write, Millis::now());
    spawn_local(serve(shared.clone(), read, Memory::new(id, ip), peer, block));
}

fn evict(worker: &mut Worker, connection: ConnectionId, ip: std::net::IpAddr) {
    worker.tallies.count(Tally::ConnectionsEvicted);
    worker.strangers.forget(ip, connection);
    worker.outgoing.shut_down(connection);
}

/// Closes connections that have waited too long with their first valid message.
pub(crate) async fn close_the_unidentified(worker: Shared, limit: Duration) {
    loop {
        sleep(Duration::from_secs(1).min(limit)).await;
        let mut worker = worker.borrow_mut();
        let now = Millis::now();
        while let Some((oldest, ip)) = worker.strangers.oldest() {
            if worker
                .outgoing
                .accepted(oldest)
                .is_some_and(|accepted| now.since(accepted) < limit)
            {
                break;
            }
            worker.tallies.count(Tally::ConnectionsUnidentified);
            worker.strangers.forget(ip, oldest);
            worker.outgoing.shut_down(oldest);
        }
    }
}

/// What a connection does after a turn.
enum Turn {
    /// The read was full: others first, then on.
    Yield,
    /// Nothing is left to read for now.
    Wait,
    /// The roster must hear this first.
    Tell(News),
    /// The analysis daemon must catch up first.
    Pause,
    Closed(Ending),
}

/// Whether a connection waits for the analysis daemon.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Left,
    /// It has waited as long as agents bear: one read, come what may.
    Over,
}

struct Connection {
    read: OwnedReadHalf,
    /// What came of the load balancer's header, while that is not whole. Nothing else is read before.
    preface: Option<Vec<u8>>,
    pieces: Pieces,
    memory: Memory,
    origin: Origin,
    block: usize,
    /// Whole messages may wait in `pieces`, behind one that stopped.
    stopped: bool,
    patience: Patience,
}

async fn serve(shared: Shared, read: OwnedReadHalf, memory: Memory, peer: SocketAddr, block: usize) {
    let origin = Origin {
        route: Route::Tcp {
            connection: memory.id,
            peer,
        },
    };
    let is_of_load_balancer = shared
        .borrow()
        .rules
        .get(block)
        .is_some_and(|rules| rules.load_balancers.iter().any(|network| network.contains(&memory.ip)));
    let mut connection = Connection {
        read,
        preface: is_of_load_balancer.then(Vec::new),
        pieces: Pieces::default(),
        memory,
        origin,
        block,
        stopped: false,
        patience: Patience::Left,
    };
    let news = shared.borrow().news.clone();
    let ending = loop {
        match poll_fn(|context| connection.turn(&mut shared.borrow_mut(), context)).await {
            Turn::Wait => {}
            Turn::Yield => yield_now().await,
            Turn::Pause => connection.pause(&shared).await,
            Turn::Tell(told) => {
                if news.send(told).await.is_err() {
                    break Ending::Stopping;
                }
            }
            Turn::Closed(ending) => break ending,
        }
    };
    let farewells = {
        let mut worker = shared.borrow_mut();
        worker.outgoing.send_acks();
        worker.common.connections.fetch_sub(1, Ordering::Relaxed);
        worker.closed(&connection.memory, ending, Millis::now())
    };
    drop(connection);
    for farewell in farewells {
        if news.send(farewell).await.is_err() {
            return;
        }
    }
}

impl Connection {
    /// One read, and all that follows from it.
    fn turn(&mut self, worker: &mut Worker, context: &mut Context<'_>) -> Poll<Turn> {
        let now = Millis::now();
        worker.refresh_table();
        if self.stopped {
            self.stopped = false;
            let turn = self.handle(worker, &[], now, Turn::Yield);
            worker.analysis.flush(now);
            return Poll::Ready(turn);
        }
        if self.memory.brings_events
            && self.patience == Patience::Left
            && worker.analysis.flow(now) != Flow::Open
            && !self.is_let_pass(worker, now)
        {
            return Poll::Ready(Turn::Pause);
        }
        let length = if worker.analysis.is_full() {
            READ_LEN_WHEN_FULL
        } else {
            READ_LEN
        };
        let mut scratch = std::mem::take(&mut worker.scratch);
        let mut buffer = ReadBuf::new(scratch.get_mut(..length).unwrap_or_default());
        let polled = Pin::new(&mut self.read).poll_read(context, &mut buffer);
        let filled = buffer.filled().len();
        let turn = match polled {
            Poll::Pending => {
                worker.scratch = scratch;
                return Poll::Pending;
            }
            Poll::Ready(Err(error)) => {
                debug!(peer = %self.origin.peer(), %error, "connection ended");
                Turn::Closed(Ending::Network(error.kind()))
            }
            Poll::Ready(Ok(())) if filled == 0 => Turn::Closed(Ending::ByPeer),
            Poll::Ready(Ok(())) => {
                worker.tallies.add(Tally::BytesReceived, filled as u64);
                self.patience = Patience::Left;
                self.memory.brings_events = false;
                let next = if filled == length { Turn::Yield } else { Turn::Wait };
                self.handle(worker, scratch.get(..filled).unwrap_or_default(), now, next)
            }
        };
        worker.scratch = scratch;
        worker.analysis.flush(now);
        Poll::Ready(turn)
    }

    /// Whether its agent brings so little that it need not wait for those who bring much.
    fn is_let_pass(&self, worker: &Worker, now: Millis) -> bool {
        let speaker = self.memory.speaker.as_ref();
        speaker.is_some_and(|slot| worker.analysis.lets_pass(slot, now))
    }

    fn handle(&mut self, worker: &mut Worker, read: &[u8], now: Millis, next: Turn) -> Turn {
        let Some(mut preface) = self.preface.take() else {
            return self.handle_messages(worker, read, now, next);
        };
        preface.extend_from_slice(read);
        match proxy::parse(&preface) {
            Ok(Preface::Partial) => {
                self.preface = Some(preface);
                next
            }
            Ok(Preface::Whole { length, source }) => {
                if let Some(source) = source {
                    self.come_from(worker, source);
                }
                self.handle_messages(worker, preface.get(length..).unwrap_or_default(), now, next)
            }
            Err(error) => {
                worker.tallies.count(Tally::RefusedPreface);
                debug!(peer = %self.origin.peer(), %error, "connection closed");
                Turn::Closed(Ending::Preface)
            }
        }
    }

    /// The connection is not the load balancer's but an agent's behind it.
    fn come_from(&mut self, worker: &mut Worker, source: SocketAddr) {
        debug!(peer = %source, load_balancer = %self.origin.peer(), "connection through a load balancer");
        worker.strangers.forget(self.memory.ip, self.memory.id);
        self.memory.ip = plain_ip(source.ip());
        self.origin.route = Route::Tcp {
            connection: self.memory.id,
            peer: source,
        };
        if let Some((oldest, ip)) = worker.strangers.admit(self.memory.ip, self.memory.id) {
            evict(worker, oldest, ip);
        }
    }

    fn handle_messages(&mut self, worker: &mut Worker, read: &[u8], now: Millis, next: Turn) -> Turn {
        let Self {
            pieces,
            memory,
            origin,
            block,
            ..
        } = self;
        let fed = pieces.feed(read, |message| {
            worker.handle(origin, *block, Some(memory), message, now)
        });
        match fed {
            Ok(ControlFlow::Continue(())) => {
                if self.may_keep_pieces(worker) {
                    next
                } else {
                    debug!(peer = %self.origin.peer(), "connection closed: strangers have half sent too much");
                    Turn::Closed(Ending::Crowded)
                }
            }
            Ok(ControlFlow::Break(Stop::Close(ending))) => Turn::Closed(ending),
            Ok(ControlFlow::Break(Stop::Tell(news))) => {
                self.stopped = true;
                Turn::Tell(news)
            }
            Err(error) => {
                worker.tallies.count(Tally::FramesTooLong);
                debug!(peer = %self.origin.peer(), %error, "connection closed");
                Turn::Closed(Ending::TooLong)
            }
        }
    }

    /// Keeps account of what strangers make us keep.
    fn may_keep_pieces(&mut self, worker: &mut Worker) -> bool {
        if self.memory.identified {
            return true;
        }
        let kept = self.pieces.len().saturating_sub(STRANGERS_SHARE);
        worker.stranger_bytes = worker.stranger_bytes + kept - self.memory.kept_as_stranger;
        self.memory.kept_as_stranger = kept;
        worker.stranger_bytes <= STRANGERS_POOL || kept == 0
    }

    /// Waits until the analysis daemon has caught up, or for as long as agents bear. Meanwhile the agent may be sending
    /// all the time without our knowing, so it counts as alive until its end of the connection closes.
    async fn pause(&mut self, shared: &Shared) {
        let (room, when_full) = {
            let worker = shared.borrow();
            worker.tallies.count(Tally::Pauses);
            (worker.analysis.room(), worker.when_full)
        };
        let begun = Millis::now();
        loop {
            // Not a look at the data, which waits: only whether the other end is still there.
            let ready = timeout(Duration::ZERO, self.read.ready(Interest::READABLE)).await;
            let peer_has_closed = ready.is_ok_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()));
            // Made before the look at the queue, so that no wake-up falls between.
            let told = room.notified();
            let now = Millis::now();
            if let Some(speaker) = self.memory.speaker.as_ref().filter(|_| !peer_has_closed) {
                speaker.hear(now);
            }
            let until = match shared.borrow().analysis.flow(now) {
                Flow::Open => return,
                Flow::Paused => None,
                Flow::PausedUntil(until) => Some(until),
            };
            if when_full == WhenFull::Drop && now.since(begun) >= LONGEST_PAUSE {
                self.patience = Patience::Over;
                return;
            }
            let longest = until.map_or(ALIVE_EVERY, |until| until.since(now).min(ALIVE_EVERY));
            // Either way the loop looks again.
            let _ = timeout(longest, told).await;
        }
    }
}
