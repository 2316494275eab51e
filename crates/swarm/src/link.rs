//! The socket under an agent: a TCP connection with its frames, or a connected UDP socket.

use std::{collections::VecDeque, io, net::SocketAddr};

use muster_proto::transport::frame;
use tokio::{
    io::Interest,
    net::{TcpStream, UdpSocket},
};

use crate::{
    account::Tally,
    agent::{Room, What},
    mix::Carrier,
};

/// With more than this waiting for the operating system, no further events are made.
const EVENTS_WAIT_ABOVE: usize = 32 * 1024;

/// A socket and what waits to go out through it.
pub(crate) struct Link {
    socket: Socket,
    /// Bytes that the operating system has not taken (TCP).
    waiting: Vec<u8>,
    /// How many bytes have been put into `waiting`, and how many have left it, since the connection began.
    put: u64,
    left: u64,
    /// Where in that count each event ends that is not yet out.
    event_ends: VecDeque<u64>,
    /// The beginning of a message that has not come whole (TCP).
    partial: frame::FrameReader,
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Link {
    pub(crate) async fn open(carrier: Carrier, manager: SocketAddr) -> io::Result<Self> {
        let socket = match carrier {
            Carrier::Tcp => {
                let stream = TcpStream::connect(manager).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            Carrier::Udp => {
                let any: SocketAddr = if manager.is_ipv4() {
                    ([0, 0, 0, 0], 0).into()
                } else {
                    ([0_u16; 8], 0).into()
                };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(manager).await?;
                // Until tokio has once seen the socket writable, nothing is sent at all.
                socket.writable().await?;
                Socket::Udp(socket)
            }
        };
        Ok(Self {
            socket,
            waiting: Vec::new(),
            put: 0,
            left: 0,
            event_ends: VecDeque::new(),
            partial: frame::FrameReader::new(),
        })
    }

    /// Waits until there is something to read, or, while bytes wait, until some can be written.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        let interest = if self.waiting.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        match &self.socket {
            Socket::Tcp(stream) => stream.ready(interest).await.map(drop),
            Socket::Udp(socket) => socket.ready(Interest::READABLE).await.map(drop),
        }
    }

    pub(crate) fn room(&self) -> Room {
        if self.waiting.len() > EVENTS_WAIT_ABOVE {
            Room::None
        } else {
            Room::Some
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Puts a sealed message on its way. A datagram that the operating system does not take at once is lost, as
    /// datagrams are.
    pub(crate) fn put(&mut self, what: What, sealed: &[u8], tally: &mut Tally) {
        match &self.socket {
            Socket::Tcp(_) => {
                let before = self.waiting.len();
                frame::append(&mut self.waiting, sealed);
                self.put += as_u64(self.waiting.len() - before);
                if what == What::Event {
                    self.event_ends.push_back(self.put);
                }
            }
            Socket::Udp(socket) => {
                // A refusal that was reported for an earlier datagram is not this one's: try once more.
                let sent = socket.try_send(sealed).or_else(|_| socket.try_send(sealed));
                match sent {
                    Ok(bytes) => tally.bytes_sent += as_u64(bytes),
                    Err(_) if what == What::Event => {
                        tally.events_unsent += 1;
                        return;
                    }
                    Err(_) => return,
                }
                if what == What::Event {
                    tally.events_sent += 1;
                }
            }
        }
    }

    /// Writes what waits, as far as the operating system takes it now.
    pub(crate) fn flush(&mut self, tally: &mut Tally) -> io::Result<()> {
        let Socket::Tcp(stream) = &self.socket else {
            return Ok(());
        };
        let mut written = 0;
        let outcome = loop {
            match self.waiting.get(written..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match stream.try_write(rest) {
                    Ok(bytes) => written += bytes,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                    Err(error) => break Err(error),
                },
            }
        };
        self.waiting.drain(..written);
        if self.waiting.is_empty() {
            // Thousands of idle agents should not each keep the buffer of their busiest moment.
            self.waiting = Vec::new();
        }
        self.left += as_u64(written);
        tally.bytes_sent += as_u64(written);
        while self.event_ends.front().is_some_and(|end| *end <= self.left) {
            self.event_ends.pop_front();
            tally.events_sent += 1;
        }
        outcome
    }

    /// Reads once into `scratch`. `Ok(None)` = nothing there now; `Ok(Some(0))` on TCP = the manager has closed.
    pub(crate) fn read(&mut self, scratch: &mut [u8], tally: &mut Tally) -> io::Result<Option<usize>> {
        let read = match &self.socket {
            Socket::Tcp(stream) => stream.try_read(scratch),
            Socket::Udp(socket) => socket.try_recv(scratch),
        };
        match read {
            Ok(bytes) => {
                tally.bytes_received += as_u64(bytes);
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // Nobody listens at the port at this moment. The agent will notice by its own time-outs.
            Err(error) if matches!(self.socket, Socket::Udp(_)) && error.kind() == io::ErrorKind::ConnectionRefused => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn carrier(&self) -> Carrier {
        match self.socket {
            Socket::Tcp(_) => Carrier::Tcp,
            Socket::Udp(_) => Carrier::Udp,
        }
    }

    /// The messages of a TCP stream.
    pub(crate) fn frames(&mut self) -> &mut frame::FrameReader {
        &mut self.partial
    }

    /// The connection is over: counts the events that it takes along.
    pub(crate) fn close(self, tally: &mut Tally) {
        tally.events_unsent += as_u64(self.event_ends.len());
    }
}

fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
