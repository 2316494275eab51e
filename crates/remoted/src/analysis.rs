//! Events on their way to the analysis daemon: one datagram each, in the stock format.
//!
//! Every worker has a line of its own. Events are laid one behind the other in memory and sent many at a time; what
//! the daemon does not take at once waits, within bounds: what agents bring that bring little goes first ([`lanes`]).
//! Acknowledgements never wait for any of this.
//!
//! When the queue is full (its bound is [`valve::CAP`] bytes per worker): connections that bring events are not read
//! until there is room, for 20 s at most; then `<when_full>` says whether events are dropped and counted or the wait
//! goes on. Events over UDP cannot wait and are dropped and counted from the high mark on.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    os::{fd::AsRawFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use muster_config::{HomeKind, Layout, WhenFull, home_kind};
use muster_proto::{
    local::{
        Layout as DatagramLayout,
        analysis::{NotForwarded, write_event},
    },
    paths,
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, sendmmsg},
};
use socket2::SockRef;
use tokio::{
    io::Interest,
    sync::Notify,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

mod backlog;
mod lanes;
mod lines;
mod valve;

use self::{
    lanes::Lanes,
    valve::{Talker, Valve},
};
pub(crate) use self::{
    lanes::Mark,
    valve::{CAP, Flow, LONGEST_PAUSE},
};
use crate::{
    edge::{Gauges, Tallies, Tally},
    slot::{AgentSlot, Millis},
};

/// Datagrams handed to the kernel at once.
const BATCH: usize = 64;
/// What the kernel may hold for a reader that is slow.
const SEND_BUFFER: usize = 4 * 1024 * 1024;
/// The first wait before connecting again; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest one.
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Who holds this file in place wants no datagrams for now.
const WAIT_FILE: &str = "queue/sockets/.wait";
/// How often that is looked at.
const WAIT_FILE_CHECK: Duration = Duration::from_secs(1);

/// Where the analysis daemon listens, and in which words it wants its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnalysisTarget {
    /// The socket.
    pub path: PathBuf,
    /// The words.
    pub layout: DatagramLayout,
    wait_file: PathBuf,
}

impl AnalysisTarget {
    /// The target in a home. With [`Layout::Auto`], what is in it tells whose it is.
    pub fn new(home: &Path, layout: Layout) -> Self {
        let ossec = match layout {
            Layout::Ossec => true,
            Layout::Wazuh => false,
            Layout::Auto => home_kind(home) == HomeKind::Ossec,
        };
        let (path, layout) = if ossec {
            (paths::ANALYSIS_QUEUE_OSSEC, DatagramLayout::Ossec)
        } else {
            (paths::ANALYSIS_QUEUE, DatagramLayout::Wazuh)
        };
        Self {
            path: home.join(path),
            layout,
            wait_file: home.join(WAIT_FILE),
        }
    }
}

/// Whether events have another way than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// None: they wait for the analysis daemon.
    Needed,
    /// The archives: when there is no socket here, events do not wait for one.
    Optional,
}

/// One worker's line to the analysis daemon.
pub(crate) struct Analysis {
    target: Rc<AnalysisTarget>,
    backlog: Lanes,
    valve: Valve,
    line: Line,
    /// Wakes the task that sends what the kernel did not take at once.
    work: Rc<Notify>,
    /// Wakes the connections that wait for room.
    room: Rc<Notify>,
    headers: MultiHeaders<()>,
    tallies: Arc<Tallies>,
    gauges: Arc<Gauges>,
    need: Need,
    /// There is no socket, and none is needed.
    absent: bool,
    /// The kernel did not take all: [`drain`] waits until it takes more.
    blocked: bool,
    looked_for_wait_file: Millis,
}

enum Line {
    /// Nobody waits at this socket while all goes well: else the kernel would wake us for each datagram that is read.
    Up(Rc<UnixDatagram>),
    Down {
        was_up: bool,
    },
    /// Somebody put the wait file in place.
    Held,
}

impl Analysis {
    pub(crate) fn new(
        target: AnalysisTarget,
        when_full: WhenFull,
        need: Need,
        tallies: Arc<Tallies>,
        gauges: Arc<Gauges>,
    ) -> Self {
        Self {
            target: Rc::new(target),
            backlog: Lanes::new(),
            valve: Valve::new(when_full),
            line: Line::Down { was_up: true },
            work: Rc::default(),
            room: Rc::default(),
            headers: MultiHeaders::preallocate(BATCH, None),
            tallies,
            gauges,
            need,
            absent: false,
            blocked: false,
            looked_for_wait_file: Millis::NEVER,
        }
    }

    /// Takes an agent's event, if there is room; what becomes of it is counted. `can_wait` says whether its sender can
    /// be paused.
    pub(crate) fn offer(&mut self, slot: &AgentSlot, payload: &[u8], can_wait: bool, now: Millis) {
        if self.absent {
            return;
        }
        let talker = talker(slot, now);
        if !self.valve.admits(self.backlog.bytes(), can_wait, talker, now) {
            slot.count_dropped_event();
            let tally = if self.is_down() {
                Tally::EventsDroppedNoReader
            } else {
                Tally::EventsDroppedFull
            };
            self.tallies.count(tally);
            return;
        }
        let source = slot.source(self.target.layout);
        let mut written = Ok(());
        let write = |out: &mut Vec<u8>| written = write_event(out, source, payload);
        slot.set_mark(self.backlog.push(talker, slot.mark(), write));
        match written {
            Ok(()) => {
                self.valve.level(self.backlog.bytes(), now);
            }
            Err(NotForwarded::SignOfLife) => self.tallies.count(Tally::EventsMarker),
            Err(_) => self.tallies.count(Tally::EventsMalformed),
        }
    }

    /// Takes a line of our own, such as that an agent has stopped. `program` is the stock daemon that says so, as
    /// Wazuh's rules know it; OSSEC's know it under its older name.
    pub(crate) fn offer_own(&mut self, slot: &AgentSlot, program: &str, text: &str, now: Millis) {
        let name = program.strip_prefix("wazuh-").unwrap_or(program);
        let family = match self.target.layout {
            DatagramLayout::Wazuh => "wazuh",
            DatagramLayout::Ossec => "ossec",
        };
        let payload = format!("1:{family}-{name}:{text}");
        self.offer(slot, payload.as_bytes(), false, now);
    }

    /// Whether connections that bring events are read now.
    pub(crate) fn flow(&self, now: Millis) -> Flow {
        self.valve.flow(now)
    }

    /// Whether this agent is read though others wait.
    pub(crate) fn lets_pass(&self, slot: &AgentSlot, now: Millis) -> bool {
        self.valve.lets_pass(self.backlog.bytes(), talker(slot, now))
    }

    /// Whether more waits than should.
    pub(crate) fn is_full(&self) -> bool {
        self.valve.full_since().is_some()
    }

    /// Whether somebody listens, or nobody was needed yet.
    pub(crate) fn is_down(&self) -> bool {
        !self.absent && matches!(self.line, Line::Down { was_up: false } | Line::Held)
    }

    /// Whether anything waits for a reader who is there.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.absent && !self.is_down() && !self.backlog.is_empty()
    }

    /// Told when there is room again.
    pub(crate) fn room(&self) -> Rc<Notify> {
        Rc::clone(&self.room)
    }

    /// What waits is sent once the other connections that can be read now have had their turn: many datagrams cost
    /// little more than one.
    pub(crate) fn flush(&mut self, now: Millis) {
        if self.backlog.is_empty() {
            return;
        }
        if self.backlog.len() >= BATCH && !self.blocked {
            self.look_for_wait_file(now);
            self.send_some(now);
        }
        if !self.backlog.is_empty() {
            self.gauges.set_analysis(self.backlog.bytes(), self.is_down());
            self.work.notify_one();
        }
    }

    fn send_some(&mut self, now: Millis) -> Sent {
        let sent = self.send_all(now);
        self.blocked = !matches!(sent, Sent::All);
        self.gauges.set_analysis(self.backlog.bytes(), self.is_down());
        sent
    }

    fn send_all(&mut self, now: Millis) -> Sent {
        let Line::Up(socket) = &self.line else {
            return Sent::Blocked;
        };
        let socket = Rc::clone(socket);
        while !self.backlog.is_empty() {
            let mut slices = [[IoSlice::new(&[])]; BATCH];
            let mut count = 0;
            for (slice, datagram) in slices.iter_mut().zip(self.backlog.next(BATCH)) {
                *slice = [IoSlice::new(datagram)];
                count += 1;
            }
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let result = sendmmsg(
                socket.as_raw_fd(),
                &mut self.headers,
                slices.iter().take(count),
                [const { None::<()> }; BATCH],
                [],
                flags,
            )
            .map(Iterator::count);
            match result {
                Ok(sent) => {
                    self.backlog.pop(sent, BATCH);
                    self.tallies.add(Tally::EventsForwarded, sent as u64);
                    if self.valve.level(self.backlog.bytes(), now) {
                        self.room.notify_waiters();
                    }
                }
                Err(Errno::EAGAIN) => return Sent::Blocked,
                Err(Errno::EINTR) => {}
                Err(Errno::EMSGSIZE) => {
                    self.backlog.pop(1, BATCH);
                    self.tallies.count(Tally::EventsDroppedTooLong);
                }
                // The kernel is short of memory: as slow as a slow reader, and over as soon.
                Err(Errno::ENOBUFS | Errno::ENOMEM) => return Sent::Starved,
                Err(error) => {
                    warn!(%error, socket = %self.target.path.display(), "analysis daemon is gone: events wait");
                    self.line = Line::Down { was_up: true };
                    return Sent::Blocked;
                }
            }
        }
        Sent::All
    }

    fn socket(&self) -> Option<Rc<UnixDatagram>> {
        match &self.line {
            Line::Up(socket) => Some(Rc::clone(socket)),
            Line::Down { .. } | Line::Held => None,
        }
    }

    /// While the file is there nothing is sent; what comes in waits.
    fn look_for_wait_file(&mut self, now: Millis) {
        if now.since(self.looked_for_wait_file) < WAIT_FILE_CHECK {
            return;
        }
        self.looked_for_wait_file = now;
        match (&self.line, self.target.wait_file.exists()) {
            (Line::Held, false) => self.line = Line::Down { was_up: true },
            (Line::Held, true) | (_, false) => {}
            (_, true) => self.line = Line::Held,
        }
    }

    fn connect(&mut self) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(&self.target.path)?;
        socket.set_nonblocking(true)?;
        // Refused above the kernel's own limit, which then stays.
        let _ = SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER);
        self.line = Line::Up(Rc::new(socket));
        self.absent = false;
        info!(socket = %self.target.path.display(), "connected to the analysis daemon");
        Ok(())
    }

    fn down(&mut self, error: &io::Error) {
        self.absent = self.need == Need::Optional && error.kind() == io::ErrorKind::NotFound;
        if self.absent {
            debug!(socket = %self.target.path.display(), "no analysis daemon: events go to the archives only");
        } else if matches!(self.line, Line::Down { was_up: true } | Line::Held) {
            warn!(%error, socket = %self.target.path.display(), "nobody takes events: they wait, then <when_full> decides");
        }
        self.line = Line::Down { was_up: false };
    }
}

fn talker(slot: &AgentSlot, now: Millis) -> Talker {
    if slot.is_quiet(now) {
        Talker::Quiet
    } else {
        Talker::Loud
    }
}

enum Sent {
    All,
    Blocked,
    Starved,
}

/// Gives a task a way to the line that lives inside its worker.
pub(crate) trait HasAnalysis {
    fn analysis(&mut self) -> &mut Analysis;
}

/// The task that sends what waits: connects, waits until the kernel takes more, looks after the wait file. Runs as long
/// as its worker.
pub(crate) async fn drain<W: HasAnalysis>(worker: Rc<RefCell<W>>) {
    let work = Rc::clone(&worker.borrow_mut().analysis().work);
    let mut retry = FIRST_RETRY;
    loop {
        if worker.borrow_mut().analysis().backlog.is_empty() {
            work.notified().await;
        }
        let now = Millis::now();
        worker.borrow_mut().analysis().look_for_wait_file(now);
        let (sent, line) = {
            let mut worker = worker.borrow_mut();
            let analysis = worker.analysis();
            let sent = analysis.send_some(now);
            if matches!(analysis.line, Line::Held) {
                (Sent::Starved, None)
            } else {
                (sent, analysis.socket())
            }
        };
        match (sent, line) {
            (Sent::All, _) => retry = FIRST_RETRY,
            (Sent::Starved, _) => sleep(FIRST_RETRY).await,
            (Sent::Blocked, Some(socket)) => {
                retry = FIRST_RETRY;
                if let Err(error) = send_as_it_is_read(&worker, socket).await {
                    warn!(%error, "cannot wait for the analysis daemon");
                    sleep(FIRST_RETRY).await;
                }
            }
            (Sent::Blocked, None) => {
                let connected = worker.borrow_mut().analysis().connect();
                if let Err(error) = connected {
                    worker.borrow_mut().analysis().down(&error);
                    sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }
}

/// Waits at the socket for as long as the reader is behind. Looks up from time to time, for the wait file.
async fn send_as_it_is_read<W: HasAnalysis>(worker: &RefCell<W>, socket: Rc<UnixDatagram>) -> io::Result<()> {
    let waiting = tokio::net::UnixDatagram::from_std(socket.try_clone()?)?;
    loop {
        if let Ok(ready) = timeout(WAIT_FILE_CHECK, waiting.writable()).await {
            ready?;
        }
        let mut worker = worker.borrow_mut();
        let analysis = worker.analysis();
        let now = Millis::now();
        analysis.look_for_wait_file(now);
        if analysis.socket().is_none() {
            return Ok(());
        }
        let sent = waiting.try_io(Interest::WRITABLE, || match analysis.send_some(now) {
            Sent::Blocked => Err(io::ErrorKind::WouldBlock.into()),
            Sent::All | Sent::Starved => Ok(()),
        });
        if sent.is_ok() || analysis.socket().is_none() {
            return Ok(());
        }
    }
}
