//! Messages to agents: sealed here, and written to the socket that the agent is reached by.
//!
//! What the socket takes at once is never copied. What it does not take waits in the connection's own buffer, which is
//! bounded; a message that finds no room there is dropped and counted, since the next acknowledgement says the same.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io,
    net::{Shutdown, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use muster_proto::transport::{
    control::ACK,
    envelope::{PONG, SealError, Sealer},
    frame,
};
use socket2::SockRef;
use tokio::{
    net::{UdpSocket, tcp::OwnedWriteHalf},
    sync::Notify,
    task::spawn_local,
};

use super::tally::{Tallies, Tally};
use crate::{
    counters::SenderPair,
    shared::push::{Stopped, Taken},
    slot::{AgentSlot, ConnectionId, Message, Millis, Route},
};

/// What may wait for a peer that has not proved a key: some pongs.
const STRANGERS_BUFFER: usize = 2048;
/// A buffer that has been written keeps no more than this.
const KEPT_CAPACITY: usize = 1024;

/// Acknowledgements that wait for the others of their round.
const ACKS_AT_ONCE: usize = 64;

/// All ways out of one worker.
pub(crate) struct Outgoing {
    sealer: Sealer,
    entropy: Entropy,
    counter: Arc<SenderPair>,
    connections: HashMap<ConnectionId, Entry, BuildHasherDefault<Spread>>,
    udp: Vec<Rc<UdpSocket>>,
    /// Bytes that may wait for one agent.
    send_buffer: usize,
    tallies: Arc<Tallies>,
    acks: Vec<(Arc<AgentSlot>, Route)>,
    /// Wakes the task that sends them.
    acks_wait: Rc<Notify>,
}

struct Entry {
    way: Rc<Way>,
    accepted: Millis,
    identified: bool,
}

/// The writing half of a connection, and what it has not taken yet.
struct Way {
    half: OwnedWriteHalf,
    waiting: RefCell<Vec<u8>>,
    flushing: Cell<bool>,
}

/// Spreads the numbers of connections, which are ours and follow each other, so that nobody can choose them.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Why a message did not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// No such connection or socket any more.
    Gone,
    /// The peer takes too little.
    Full,
    /// The message is none.
    Unsealable(SealError),
}

impl Outgoing {
    pub(crate) fn new(
        counter: Arc<SenderPair>,
        udp: Vec<Rc<UdpSocket>>,
        send_buffer: usize,
        tallies: Arc<Tallies>,
    ) -> Self {
        Self {
            sealer: Sealer::new(),
            entropy: Entropy::new(),
            counter,
            connections: HashMap::default(),
            udp,
            send_buffer,
            tallies,
            acks: Vec::with_capacity(ACKS_AT_ONCE),
            acks_wait: Rc::default(),
        }
    }

    pub(crate) fn open(&mut self, connection: ConnectionId, half: OwnedWriteHalf, now: Millis) {
        let way = Rc::new(Way {
            half,
            waiting: RefCell::default(),
            flushing: Cell::new(false),
        });
        self.connections.insert(
            connection,
            Entry {
                way,
                accepted: now,
                identified: false,
            },
        );
    }

    /// The connection has proved a key.
    pub(crate) fn identified(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.connections.get_mut(&connection) {
            entry.identified = true;
        }
    }

    /// When the connection was accepted.
    pub(crate) fn accepted(&self, connection: ConnectionId) -> Option<Millis> {
        self.connections.get(&connection).map(|entry| entry.accepted)
    }

    /// Forgets a connection whose reader has ended.
    pub(crate) fn forget(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.connections.remove(&connection)
            && entry.way.flushing.get()
        {
            // Wakes the task that waits for room, which then ends.
            entry.way.shut_down();
        }
    }

    /// Ends a connection from outside: its reader sees the end of the stream and cleans up.
    pub(crate) fn shut_down(&self, connection: ConnectionId) -> bool {
        match self.connections.get(&connection) {
            Some(entry) => {
                entry.way.shut_down();
                true
            }
            None => false,
        }
    }

    /// Seals a payload for an agent in the form of its latest message, and sends it.
    pub(crate) fn send(&mut self, slot: &AgentSlot, route: &Route, payload: &[u8]) -> Result<(), Lost> {
        let result = self.try_send(slot, route, payload);
        match result {
            Ok(()) => {
                self.tallies.count(Tally::MessagesSent);
                if payload == ACK {
                    self.tallies.count(Tally::Acks);
                    slot.counts().add(Message::Ack);
                }
            }
            Err(_) => self.tallies.count(Tally::RepliesDropped),
        }
        result
    }

    /// Acknowledges what an agent said, once the other connections that can be read now have had their turn: what is
    /// done many times in a row costs much less each time, and whoever waits for the answers is woken once for many.
    pub(crate) fn acknowledge(&mut self, slot: &Arc<AgentSlot>, route: Route) {
        if self.acks.len() >= ACKS_AT_ONCE {
            self.send_acks();
        }
        if self.acks.is_empty() {
            self.acks_wait.notify_one();
        }
        self.acks.push((Arc::clone(slot), route));
    }

    /// Sends the acknowledgements that wait.
    pub(crate) fn send_acks(&mut self) {
        let mut acks = std::mem::take(&mut self.acks);
        for (slot, route) in acks.drain(..) {
            // Lost: it was counted, and the agent asks again.
            let _ = self.send(&slot, &route, ACK);
        }
        self.acks = acks;
    }

    /// Told when acknowledgements wait.
    pub(crate) fn acks_wait(&self) -> Rc<Notify> {
        Rc::clone(&self.acks_wait)
    }

    /// Sends the next messages of a file until the way is half full: a file that an agent takes slowly must leave room
    /// for its acknowledgements.
    pub(crate) fn push(&mut self, slot: &AgentSlot, route: &Route, messages: &[Vec<u8>]) -> Taken {
        for (count, message) in messages.iter().enumerate() {
            let sent = if self.has_room(route) {
                self.try_send(slot, route, message)
            } else {
                Err(Lost::Full)
            };
            let stopped = match sent {
                Ok(()) => None,
                Err(Lost::Full) => Some(Stopped::Full),
                Err(Lost::Gone | Lost::Unsealable(_)) => Some(Stopped::Gone),
            };
            if stopped.is_some() {
                return Taken { count, stopped };
            }
            self.tallies.count(Tally::MessagesSent);
            slot.counts().add(Message::Shared);
        }
        Taken {
            count: messages.len(),
            stopped: None,
        }
    }

    fn has_room(&self, route: &Route) -> bool {
        match route {
            Route::Tcp { connection, .. } => self
                .connections
                .get(connection)
                .is_none_or(|entry| entry.way.waiting.borrow().len() < self.send_buffer / 2),
            Route::Udp { .. } => true,
        }
    }

    fn try_send(&mut self, slot: &AgentSlot, route: &Route, payload: &[u8]) -> Result<(), Lost> {
        self.sealer
            .seal(
                &slot.keys,
                slot.form(),
                self.counter.next(),
                self.entropy.number(),
                self.entropy.block(),
                payload,
                None,
            )
            .map_err(Lost::Unsealable)?;
        let framed = self.sealer.framed();
        match route {
            Route::Tcp { connection, .. } => {
                let entry = self.connections.get(connection).ok_or(Lost::Gone)?;
                entry.write(framed, self.send_buffer, &self.tallies)
            }
            Route::Udp { socket, peer, .. } => {
                let bare = framed.get(frame::HEADER_LEN..).unwrap_or_default();
                self.send_datagram(*socket, *peer, bare)
            }
        }
    }

    /// Answers a ping, whoever sent it.
    pub(crate) fn pong(&self, route: &Route) -> Result<(), Lost> {
        match route {
            Route::Tcp { connection, .. } => {
                let mut framed = [0; frame::HEADER_LEN + PONG.len()];
                let (header, message) = framed.split_at_mut(frame::HEADER_LEN);
                header.copy_from_slice(&frame::header(PONG.len()));
                message.copy_from_slice(PONG);
                let entry = self.connections.get(connection).ok_or(Lost::Gone)?;
                entry.write(&framed, self.send_buffer, &self.tallies)
            }
            Route::Udp { socket, peer, .. } => self.send_datagram(*socket, *peer, PONG),
        }
    }

    fn send_datagram(&self, socket: usize, peer: SocketAddr, bytes: &[u8]) -> Result<(), Lost> {
        let socket = self.udp.get(socket).ok_or(Lost::Gone)?;
        match socket.try_send_to(bytes, peer) {
            Ok(sent) => {
                self.tallies.add(Tally::BytesSent, sent as u64);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Lost::Full),
            Err(_) => Err(Lost::Gone),
        }
    }
}

impl Entry {
    fn write(&self, framed: &[u8], send_buffer: usize, tallies: &Tallies) -> Result<(), Lost> {
        let room = if self.identified { send_buffer } else { STRANGERS_BUFFER };
        let mut waiting = self.way.waiting.borrow_mut();
        let mut rest = framed;
        if waiting.is_empty() {
            match self.way.half.try_write(framed) {
                Ok(sent) => rest = framed.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Lost::Gone),
            }
        } else if waiting.len() + framed.len() > room {
            return Err(Lost::Full);
        }
        tallies.add(Tally::BytesSent, framed.len() as u64);
        // The rest of a message that was begun must follow, whatever it takes; that is one message at most.
        waiting.extend_from_slice(rest);
        if !rest.is_empty() && !self.way.flushing.replace(true) {
            spawn_local(flush(Rc::clone(&self.way)));
        }
        Ok(())
    }
}

impl Way {
    fn shut_down(&self) {
        // An error means that the connection is down already.
        let _ = SockRef::from(AsRef::<tokio::net::TcpStream>::as_ref(&self.half)).shutdown(Shutdown::Both);
    }
}

/// Writes what waits, and ends when nothing does.
async fn flush(way: Rc<Way>) {
    loop {
        let ready = way.half.writable().await;
        let mut waiting = way.waiting.borrow_mut();
        let written = ready.and_then(|()| way.half.try_write(&waiting));
        match written {
            Ok(sent) => {
                waiting.drain(..sent);
                if waiting.is_empty() {
                    waiting.shrink_to(KEPT_CAPACITY);
                    way.flushing.set(false);
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                *waiting = Vec::new();
                way.flushing.set(false);
                way.shut_down();
                return;
            }
        }
    }
}

/// Random bytes, fetched from the kernel a block at a time.
struct Entropy {
    pool: [u8; 1024],
    used: usize,
}

impl Entropy {
    fn new() -> Self {
        let pool = [0; 1024];
        Self { used: pool.len(), pool }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.pool.len() - self.used < N {
            // Cannot fail on a system that is up; if it did, bytes would repeat, which makes equal messages look
            // equal and nothing else.
            let _ = getrandom::fill(&mut self.pool);
            self.used = 0;
        }
        let taken = self
            .pool
            .get(self.used..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .unwrap_or([0; N]);
        self.used += N;
        taken
    }

    fn number(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn block(&mut self) -> [u8; 16] {
        self.take()
    }
}
