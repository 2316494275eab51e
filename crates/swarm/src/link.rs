//! The socket under an agent: a TCP connection with its frames, a connected UDP socket, or a part of a shared one.

pub(crate) mod shared;

use std::{
    collections::VecDeque,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    rc::Rc,
};

use muster_proto::transport::frame;
use nix::{
    libc,
    sys::socket::{Shutdown, setsockopt, shutdown, sockopt},
};
use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream, UdpSocket},
};

use self::shared::{Letter, Member, Port};
use crate::{
    account::Tally,
    agent::{Room, What},
    mix::Carrier,
    session::Seat,
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
    /// Where in that count each message ends that is not yet out.
    ends: VecDeque<(u64, What)>,
    /// The beginning of a message that has not come whole (TCP).
    partial: frame::FrameReader,
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Shared(Rc<Port>, Rc<Member>),
}

/// Where a connection begins: the wanted address, and any port.
fn local(source: Option<IpAddr>, manager: SocketAddr) -> SocketAddr {
    let any: IpAddr = if manager.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    (source.unwrap_or(any), 0).into()
}

impl Link {
    /// Connects an agent from its source address, or joins the socket that it shares.
    pub(crate) async fn open(seat: &Rc<Seat>, manager: SocketAddr) -> io::Result<Self> {
        let source = seat.source;
        let socket = match (seat.group.kind.carrier, &seat.port) {
            (Carrier::Tcp, _) => {
                let socket = if manager.is_ipv4() {
                    TcpSocket::new_v4()?
                } else {
                    TcpSocket::new_v6()?
                };
                if source.is_some() {
                    socket.bind(local(source, manager))?;
                }
                let stream = socket.connect(manager).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            (Carrier::Udp, Some(port)) => Socket::Shared(Rc::clone(port), port.join(seat).await?),
            (Carrier::Udp, None) => {
                let socket = UdpSocket::bind(local(source, manager)).await?;
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
            ends: VecDeque::new(),
            partial: frame::FrameReader::new(),
        })
    }

    /// Waits until there is something to read, if that is wanted, or, while bytes wait, until some can be written.
    pub(crate) async fn ready(&self, reads: bool) -> io::Result<()> {
        let interest = match (reads, self.waiting.is_empty()) {
            (true, true) => Interest::READABLE,
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (false, false) => Interest::WRITABLE,
            (false, true) => return pending().await,
        };
        match &self.socket {
            Socket::Tcp(stream) => stream.ready(interest).await.map(drop),
            Socket::Udp(socket) => socket.ready(interest).await.map(drop),
            Socket::Shared(_, member) => {
                member.arrived().await;
                Ok(())
            }
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
        let sent = match &self.socket {
            Socket::Tcp(_) => {
                let before = self.waiting.len();
                frame::append(&mut self.waiting, sealed);
                self.put += as_u64(self.waiting.len() - before);
                self.ends.push_back((self.put, what));
                return;
            }
            // A refusal that was reported for an earlier datagram is not this one's: try once more.
            Socket::Udp(socket) => socket.try_send(sealed).or_else(|_| socket.try_send(sealed)),
            Socket::Shared(port, member) => {
                if matches!(what, What::Startup | What::Keepalive | What::Answer) {
                    port.expect(member);
                }
                port.send(sealed)
            }
        };
        match sent {
            Ok(bytes) => {
                tally.bytes_sent += as_u64(bytes);
                tally.sent(what);
            }
            Err(_) => tally.unsent(what),
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
        while let Some((_, what)) = self.ends.pop_front_if(|(end, _)| *end <= self.left) {
            tally.sent(what);
        }
        if self.ends.is_empty() {
            self.ends = VecDeque::new();
        }
        outcome
    }

    /// Reads once into `scratch`. `Ok(None)` = nothing there now; `Ok(Some(0))` on TCP = the manager has closed.
    pub(crate) fn read(&mut self, scratch: &mut [u8], tally: &mut Tally) -> io::Result<Option<usize>> {
        let read = match &self.socket {
            Socket::Tcp(stream) => stream.try_read(scratch),
            Socket::Udp(socket) => socket.try_recv(scratch),
            Socket::Shared(..) => return Ok(None),
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
            Socket::Udp(_) | Socket::Shared(..) => Carrier::Udp,
        }
    }

    /// What came through a shared socket.
    pub(crate) fn next_letter(&self) -> Option<Letter> {
        match &self.socket {
            Socket::Tcp(_) | Socket::Udp(_) => None,
            Socket::Shared(_, member) => member.next_letter(),
        }
    }

    /// Nothing more will be sent; what the manager sends is still heard.
    pub(crate) fn finish(&self) {
        if let Socket::Tcp(stream) = &self.socket {
            let _ = shutdown(stream.as_raw_fd(), Shutdown::Write);
        }
    }

    /// When it is closed, the manager gets a reset.
    pub(crate) fn reset_on_close(&self) {
        if let Socket::Tcp(stream) = &self.socket {
            let at_once = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let _ = setsockopt(stream, sockopt::Linger, &at_once);
        }
    }

    /// The messages of a TCP stream.
    pub(crate) fn frames(&mut self) -> &mut frame::FrameReader {
        &mut self.partial
    }

    /// The connection is over: counts the messages that it takes along.
    pub(crate) fn close(self, tally: &mut Tally) {
        for (_, what) in &self.ends {
            tally.unsent(*what);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Socket::Shared(port, member) = &self.socket {
            port.leave(member);
        }
    }
}

fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
