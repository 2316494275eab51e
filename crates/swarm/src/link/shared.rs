//! A UDP socket that many agents share, so that a fleet can have more of them than the system grants descriptors.
//!
//! What the manager sends does not say whom it is for. Whose key opens it, that is who: first tried are the agents that
//! wait for an answer, in the order in which they asked, so the first attempt is nearly always right.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr, UdpSocket as StdUdpSocket},
    rc::Rc,
};

use muster_proto::transport::{
    OSSEC_AGENT_DATAGRAM_LEN,
    counter::Counter,
    envelope::{CryptoForm, Opener, split},
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{net::UdpSocket, sync::Notify};

use super::as_u64;
use crate::{
    fleet::{Fleet, Group},
    session::Seat,
};

/// Answers that an agent has not looked at. What comes beyond them is lost, as datagrams are: an agent that reads at
/// all empties its inbox each time it is woken.
const MAX_LETTERS: usize = 256;
/// Answers that are expected on one socket. Beyond them the oldest expectation is forgotten, which costs time only.
const MAX_EXPECTED: usize = 4096;
/// Many agents' answers come at once; the system may grant less.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// The shared socket.
pub(crate) struct Port {
    socket: UdpSocket,
    group: Rc<Group>,
    members: RefCell<Vec<Rc<Member>>>,
    expected: RefCell<VecDeque<Rc<Member>>>,
    /// Which datagram this is: nobody's key is tried twice on one.
    round: Cell<u64>,
}

/// One agent's part of the socket.
pub(crate) struct Member {
    seat: Rc<Seat>,
    letters: RefCell<VecDeque<Letter>>,
    arrived: Notify,
    tried: Cell<u64>,
}

/// An opened message.
pub(crate) struct Letter {
    pub(crate) counter: Counter,
    pub(crate) payload: Vec<u8>,
}

impl Port {
    pub(crate) fn open(source: Option<IpAddr>, manager: SocketAddr, group: Rc<Group>) -> io::Result<Rc<Self>> {
        let socket = StdUdpSocket::bind(super::local(source, manager))?;
        socket.connect(manager)?;
        socket.set_nonblocking(true)?;
        let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        Ok(Rc::new(Self {
            socket: UdpSocket::from_std(socket)?,
            group,
            members: RefCell::new(Vec::new()),
            expected: RefCell::new(VecDeque::new()),
            round: Cell::new(0),
        }))
    }

    pub(crate) async fn join(&self, seat: &Rc<Seat>) -> io::Result<Rc<Member>> {
        // Until tokio has once seen the socket writable, nothing is sent at all.
        self.socket.writable().await?;
        let member = Rc::new(Member {
            seat: Rc::clone(seat),
            letters: RefCell::new(VecDeque::new()),
            arrived: Notify::new(),
            tried: Cell::new(0),
        });
        self.members.borrow_mut().push(Rc::clone(&member));
        Ok(member)
    }

    pub(crate) fn leave(&self, member: &Rc<Member>) {
        self.members.borrow_mut().retain(|other| !Rc::ptr_eq(other, member));
        self.expected.borrow_mut().retain(|other| !Rc::ptr_eq(other, member));
    }

    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        // A refusal that was reported for an earlier datagram is not this one's: try once more.
        self.socket
            .try_send(datagram)
            .or_else(|_| self.socket.try_send(datagram))
    }

    /// The member has sent something that the manager answers.
    pub(crate) fn expect(&self, member: &Rc<Member>) {
        let mut expected = self.expected.borrow_mut();
        if expected.len() >= MAX_EXPECTED {
            expected.pop_front();
        }
        expected.push_back(Rc::clone(member));
    }

    /// Hands out what comes, until dropped.
    pub(crate) async fn serve(self: Rc<Self>, fleet: Rc<Fleet>) {
        while self.socket.readable().await.is_ok() {
            let bench = &mut *fleet.bench.borrow_mut();
            loop {
                match self.socket.try_recv(&mut bench.scratch) {
                    Ok(bytes) => {
                        let datagram = bench.scratch.get(..bytes).unwrap_or_default();
                        self.hand_out(datagram, &mut bench.opener);
                    }
                    // Nobody listens at the port at this moment. The agents will notice by their own time-outs.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(_) => break,
                }
            }
        }
    }

    fn hand_out(&self, datagram: &[u8], opener: &mut Opener) {
        let tally = &mut *self.group.tally.borrow_mut();
        tally.bytes_received += as_u64(datagram.len());
        let Some((member, letter)) = self.addressee(datagram, opener) else {
            tally.messages_received += 1;
            tally.unclaimed += 1;
            return;
        };
        if self.group.kind.family.is_ossec() && datagram.len() > OSSEC_AGENT_DATAGRAM_LEN {
            tally.messages_received += 1;
            tally.oversized += 1;
            return;
        }
        let mut letters = member.letters.borrow_mut();
        if letters.len() < MAX_LETTERS {
            letters.push_back(letter);
        }
        member.arrived.notify_one();
    }

    fn addressee(&self, datagram: &[u8], opener: &mut Opener) -> Option<(Rc<Member>, Letter)> {
        let sealed = split(datagram).ok()?.sealed;
        let round = self.round.get() + 1;
        self.round.set(round);
        let form = self.group.kind.form;
        let expected = &mut *self.expected.borrow_mut();
        for (place, member) in expected.iter().enumerate() {
            if let Some(letter) = member.opens(sealed, form, round, opener) {
                let member = Rc::clone(member);
                expected.remove(place);
                return Some((member, letter));
            }
        }
        // Nobody waits for it: an order, a request, a piece of a file.
        self.members
            .borrow()
            .iter()
            .find_map(|member| Some((Rc::clone(member), member.opens(sealed, form, round, opener)?)))
    }
}

impl Member {
    fn opens(&self, sealed: &[u8], form: CryptoForm, round: u64, opener: &mut Opener) -> Option<Letter> {
        if self.tried.replace(round) == round {
            return None;
        }
        let opened = opener.open(&self.seat.person.keys, sealed, Some(form)).ok()?;
        (opened.form == form).then(|| Letter {
            counter: opened.counter,
            payload: opened.payload.to_vec(),
        })
    }

    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub(crate) fn next_letter(&self) -> Option<Letter> {
        self.letters.borrow_mut().pop_front()
    }
}
