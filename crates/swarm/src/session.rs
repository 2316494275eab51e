//! The life of one agent: connect, talk until something ends it, connect again. One task each; everything large is
//! shared between them.

use std::{
    cell::{Cell, RefCell},
    fs,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use muster_proto::{
    keys::cipher::CipherKeys,
    transport::{
        OSSEC_AGENT_DATAGRAM_LEN,
        counter::{Counter, SenderCounter},
        envelope::{Opener, Sealer, split},
    },
};
use tokio::{sync::Notify, time};

use crate::{
    account::Tally,
    agent::{Agent, EventLoad, Identity, Now, Outbox, Reconnect},
    dice::Dice,
    fleet::{Fleet, Group},
    link::{Link, shared::Port},
    mix::Carrier,
};

/// The largest read, and the largest message.
pub(crate) const SCRATCH_LEN: usize = 64 * 1024;
/// How long a goodbye may take to leave.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(2);

/// What the fleet wants of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Be there.
    Live,
    /// Be gone, connection and all.
    Gone,
    /// The same, with a reset.
    Reset,
    /// Be gone, and leave the connection open and dead.
    Silent,
    /// Drop the connection and be there.
    Again,
    /// Say goodbye and end.
    Leave,
}

impl Wish {
    /// Whether the agent should be there.
    pub(crate) fn is_there(self) -> bool {
        matches!(self, Self::Live | Self::Again)
    }
}

/// Who an agent is and what it seals with; its clones are the same.
pub(crate) struct Person {
    pub(crate) identity: Rc<Identity>,
    pub(crate) keys: CipherKeys,
    /// Whether the envelope carries the id: not for agents registered with a single address.
    pub(crate) names_itself: bool,
}

/// An agent's place in the fleet, or a clone's.
pub(crate) struct Seat {
    pub(crate) person: Rc<Person>,
    pub(crate) group: Rc<Group>,
    /// Where its connections come from.
    pub(crate) source: Option<IpAddr>,
    /// The socket that it shares.
    pub(crate) port: Option<Rc<Port>>,
    /// Whether another agent has these keys by right.
    pub(crate) is_clone: bool,
    /// Whether its startup is acknowledged; the fleet's count hangs on it.
    pub(crate) connected: Cell<bool>,
    /// Reads nothing.
    pub(crate) deaf: Cell<bool>,
    /// Its last message's counter; a clone begins there too.
    pub(crate) counter: Cell<SenderCounter>,
    flood: RefCell<Option<(EventLoad, Instant)>>,
    wish: Cell<Wish>,
    changed: Notify,
}

impl Seat {
    pub(crate) fn new(person: Rc<Person>, group: Rc<Group>, counter: SenderCounter) -> Self {
        Self {
            person,
            group,
            source: None,
            port: None,
            is_clone: false,
            connected: Cell::new(false),
            deaf: Cell::new(false),
            counter: Cell::new(counter),
            flood: RefCell::new(None),
            wish: Cell::new(Wish::Live),
            changed: Notify::new(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.person.identity.name
    }

    pub(crate) fn wish(&self) -> Wish {
        self.wish.get()
    }

    pub(crate) fn ask(&self, wish: Wish) {
        self.wish.set(wish);
        self.changed.notify_one();
    }

    pub(crate) fn turn_deaf(&self, deaf: bool) {
        self.deaf.set(deaf);
        self.changed.notify_one();
    }

    pub(crate) fn flood(&self, load: EventLoad, until: Instant) {
        self.flood.replace(Some((load, until)));
        self.changed.notify_one();
    }
}

/// Buffers that all agents use in turn: none of them holds one across an await.
pub(crate) struct Workbench {
    pub(crate) opener: Opener,
    pub(crate) sealer: Sealer,
    pub(crate) scratch: Vec<u8>,
    pub(crate) outbox: Outbox,
}

/// Why a conversation ended.
enum End {
    /// The manager closed, or the network did.
    Closed,
    /// The agent wants another connection.
    Reconnect(Reconnect),
    /// The fleet wants something else of the agent.
    Asked,
}

/// One agent at its seat.
pub(crate) struct Session {
    pub(crate) agent: Agent,
    pub(crate) dice: Dice,
    pub(crate) seat: Rc<Seat>,
    pub(crate) fleet: Rc<Fleet>,
}

impl Session {
    /// Lives until the fleet wants it to leave.
    pub(crate) async fn run(mut self) {
        let mut closed_before = false;
        loop {
            match self.seat.wish() {
                Wish::Live => {}
                Wish::Again => self.seat.wish.set(Wish::Live),
                Wish::Gone | Wish::Reset | Wish::Silent => {
                    self.seat.changed.notified().await;
                    continue;
                }
                Wish::Leave => return,
            }
            let retry = self.seat.group.habits.retry_interval;
            let Some(mut link) = self.connect().await else {
                self.pause(retry).await;
                continue;
            };
            let end = self.talk(&mut link).await;
            let acknowledged = self.agent.is_connected();
            if matches!(end, End::Asked) && self.seat.wish() == Wish::Leave && !self.seat.is_clone {
                self.say_goodbye(&mut link).await;
            }
            self.agent.disconnected(&mut self.seat.group.tally.borrow_mut());
            self.fleet.now_connected(&self.seat, false);
            match end {
                End::Asked => {
                    while self.seat.wish() == Wish::Silent {
                        self.seat.changed.notified().await;
                    }
                    if self.seat.wish() == Wish::Reset {
                        link.reset_on_close();
                    }
                }
                End::Closed => {
                    self.seat.group.tally.borrow_mut().closed_by_manager += 1;
                    // An agent whose connection is closed tries again at once, then at its interval.
                    closed_before = !acknowledged || closed_before;
                }
                End::Reconnect(Reconnect::Now) => closed_before = false,
                End::Reconnect(Reconnect::Later) => closed_before = true,
            }
            link.close(&mut self.seat.group.tally.borrow_mut());
            if self.seat.wish() == Wish::Live && closed_before {
                self.pause(retry).await;
            }
            closed_before = !acknowledged;
        }
    }

    async fn connect(&mut self) -> Option<Link> {
        // Held for the handshake only: a fleet that starts at once should not overrun the manager's backlog.
        let turn = self.fleet.connecting.acquire().await;
        let link = Link::open(&self.seat, self.fleet.manager).await;
        drop(turn);
        let mut tally = self.seat.group.tally.borrow_mut();
        match link {
            Ok(link) => {
                tally.connects += 1;
                Some(link)
            }
            Err(error) => {
                tally.connect_failures += 1;
                drop(tally);
                self.fleet.cannot_connect(&self.seat, &error);
                None
            }
        }
    }

    /// Waits, but not longer than until the fleet wants something.
    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = time::sleep(wait) => {}
            () = self.seat.changed.notified() => {}
        }
    }

    async fn talk(&mut self, link: &mut Link) -> End {
        self.agent.connected(now(), &mut self.fleet.bench.borrow_mut().outbox);
        if self.send(link).is_err() {
            return End::Closed;
        }
        self.heed();
        let alarm = time::sleep(Duration::ZERO);
        tokio::pin!(alarm);
        loop {
            // While nothing more fits, time alone changes nothing for events; the socket will wake us.
            let due = self.agent.next_due().unwrap_or_else(far_away);
            let floor = Instant::now()
                + if link.is_drained() {
                    Duration::ZERO
                } else {
                    BACKED_UP_PAUSE
                };
            alarm.as_mut().reset(due.max(floor).into());
            tokio::select! {
                biased;
                () = self.seat.changed.notified() => {
                    if self.seat.wish() != Wish::Live {
                        return End::Asked;
                    }
                    self.heed();
                }
                ready = link.ready(!self.seat.deaf.get()) => {
                    if ready.is_err() {
                        return End::Closed;
                    }
                    match self.receive(link) {
                        Ok(None) => {}
                        Ok(Some(reconnect)) => return End::Reconnect(reconnect),
                        Err(Gone) => return End::Closed,
                    }
                }
                () = &mut alarm => {}
            }
            let room = link.room();
            let given_up = self.agent.due(
                now(),
                room,
                &mut self.fleet.bench.borrow_mut().outbox,
                &mut self.seat.group.tally.borrow_mut(),
            );
            if self.send(link).is_err() {
                return End::Closed;
            }
            if let Some(reconnect) = given_up {
                return End::Reconnect(reconnect);
            }
        }
    }

    /// Does what the fleet has asked for beside coming and going.
    fn heed(&mut self) {
        if self.seat.deaf.get() {
            self.agent.deafen();
        }
        if let Some((load, until)) = self.seat.flood.take() {
            self.agent.flood(Instant::now(), load, until);
        }
    }

    /// Seals and sends what the agent has put into the outbox.
    fn send(&mut self, link: &mut Link) -> Result<(), Gone> {
        let bench = &mut *self.fleet.bench.borrow_mut();
        let tally = &mut *self.seat.group.tally.borrow_mut();
        let person = &self.seat.person;
        let id = person.names_itself.then_some(person.identity.id.as_str());
        let form = self.agent.kind().form;
        let mut counter = self.seat.counter.get();
        for (what, payload) in bench.outbox.payloads() {
            let sealed = bench.sealer.seal(
                &person.keys,
                form,
                counter.next(),
                self.dice.field(),
                self.dice.vector(),
                payload,
                id,
            );
            match sealed {
                Ok(sealed) => link.put(what, sealed, tally),
                Err(error) => tracing::warn!(%error, bytes = payload.len(), "cannot seal a message"),
            }
        }
        self.seat.counter.set(counter);
        bench.outbox.clear();
        link.flush(tally).map_err(|_| Gone)
    }

    /// Reads all that is there, if it reads at all.
    fn receive(&mut self, link: &mut Link) -> Result<Option<Reconnect>, Gone> {
        let (fleet, group) = (Rc::clone(&self.fleet), Rc::clone(&self.seat.group));
        let bench = &mut *fleet.bench.borrow_mut();
        let tally = &mut *group.tally.borrow_mut();
        link.flush(tally).map_err(|_| Gone)?;
        if self.seat.deaf.get() {
            return Ok(None);
        }
        let mut wanted = None;
        while wanted.is_none() {
            if let Some(letter) = link.next_letter() {
                tally.messages_received += 1;
                wanted = self.opened(letter.counter, &letter.payload, &mut bench.outbox, tally);
                continue;
            }
            let Some(bytes) = link.read(&mut bench.scratch, tally).map_err(|_| Gone)? else {
                break;
            };
            if link.carrier() == Carrier::Udp {
                wanted = self.datagram(bytes, bench, tally);
                continue;
            }
            if bytes == 0 {
                return Err(Gone);
            }
            let frames = link.frames();
            frames.push(bench.scratch.get(..bytes).unwrap_or_default());
            while let Some(message) = frames.next_message().map_err(|_| Gone)? {
                wanted = wanted.or(self.message(message, &mut bench.opener, &mut bench.outbox, tally));
            }
            frames.release();
        }
        Ok(wanted)
    }

    fn datagram(&mut self, bytes: usize, bench: &mut Workbench, tally: &mut Tally) -> Option<Reconnect> {
        let Workbench {
            opener,
            scratch,
            outbox,
            ..
        } = bench;
        if self.agent.kind().family.is_ossec() && bytes > OSSEC_AGENT_DATAGRAM_LEN {
            tally.messages_received += 1;
            tally.oversized += 1;
            return None;
        }
        self.message(scratch.get(..bytes)?, opener, outbox, tally)
    }

    fn message(
        &mut self,
        message: &[u8],
        opener: &mut Opener,
        outbox: &mut Outbox,
        tally: &mut Tally,
    ) -> Option<Reconnect> {
        tally.messages_received += 1;
        let form = self.agent.kind().form;
        let keys = &self.seat.person.keys;
        let opened = split(message)
            .ok()
            .and_then(|envelope| opener.open(keys, envelope.sealed, Some(form)).ok());
        // An agent knows one form only: what it cannot have opened counts as not opened.
        let Some(opened) = opened.filter(|opened| opened.form == form) else {
            tally.undecodable += 1;
            return None;
        };
        self.opened(opened.counter, opened.payload, outbox, tally)
    }

    fn opened(
        &mut self,
        counter: Counter,
        payload: &[u8],
        outbox: &mut Outbox,
        tally: &mut Tally,
    ) -> Option<Reconnect> {
        let was_connected = self.agent.is_connected();
        let wanted = self.agent.received(now(), counter, payload, outbox, tally);
        if !was_connected && self.agent.is_connected() {
            self.fleet.now_connected(&self.seat, true);
        }
        if let (Some(file), Some(folder)) = (self.agent.take_file(), &self.fleet.keep_files) {
            let path = folder.join(format!("{}.merged.mg", self.seat.name()));
            if let Err(error) = fs::write(&path, &file.content) {
                self.fleet.note(format!("cannot write {}: {error}", path.display()));
            }
        }
        wanted
    }

    /// Says goodbye, waits for it to leave the machine, and hears the manager out: what it has not read yet would be
    /// lost with a connection that is closed before.
    async fn say_goodbye(&mut self, link: &mut Link) {
        self.seat.deaf.set(false);
        self.agent.goodbye(&mut self.fleet.bench.borrow_mut().outbox);
        let patience = time::Instant::now() + GOODBYE_PATIENCE;
        let mut sending = self.send(link);
        let mut finished = false;
        loop {
            if sending.is_ok() && link.is_drained() && !finished {
                if link.carrier() == Carrier::Udp {
                    return;
                }
                link.finish();
                finished = true;
            }
            if sending.is_err() || time::timeout_at(patience, link.ready(true)).await.is_err() {
                return;
            }
            sending = self.receive(link).map(drop);
            // Nobody answers any more.
            let outbox = &mut self.fleet.bench.borrow_mut().outbox;
            for (what, _) in outbox.payloads() {
                self.seat.group.tally.borrow_mut().unsent(what);
            }
            outbox.clear();
        }
    }
}

/// The connection cannot be used any more.
struct Gone;

/// While bytes wait for the operating system, timers are looked at this often at most.
const BACKED_UP_PAUSE: Duration = Duration::from_millis(5);

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn now() -> Now {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    Now {
        at: Instant::now(),
        unix: i64::try_from(unix).unwrap_or(0),
    }
}
