//! The life of one agent: connect, talk until something ends it, connect again. One task each; everything large is
//! shared between them.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use muster_proto::{
    keys::cipher::CipherKeys,
    transport::{
        OSSEC_AGENT_DATAGRAM_LEN,
        counter::SenderCounter,
        envelope::{Opener, Sealer, split},
    },
};
use tokio::{sync::Notify, time};

use crate::{
    account::Tally,
    agent::{Agent, Now, Outbox, Reconnect},
    dice::Dice,
    fleet::Fleet,
    link::Link,
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
    /// Be gone, and leave the connection open and dead.
    Silent,
    /// Say goodbye and end.
    Leave,
}

/// An agent's place in the fleet.
pub(crate) struct Seat {
    pub(crate) name: String,
    /// Whether its startup is acknowledged; the fleet's count hangs on it.
    pub(crate) connected: Cell<bool>,
    wish: Cell<Wish>,
    changed: Notify,
}

impl Seat {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            connected: Cell::new(false),
            wish: Cell::new(Wish::Live),
            changed: Notify::new(),
        }
    }

    pub(crate) fn wish(&self) -> Wish {
        self.wish.get()
    }

    pub(crate) fn ask(&self, wish: Wish) {
        self.wish.set(wish);
        self.changed.notify_one();
    }
}

/// Buffers that all agents use in turn: none of them holds one across an await.
pub(crate) struct Workbench {
    pub(crate) opener: Opener,
    pub(crate) sealer: Sealer,
    pub(crate) scratch: Vec<u8>,
    pub(crate) outbox: Outbox,
    pub(crate) tally: Tally,
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

/// One agent and what it seals with.
pub(crate) struct Session {
    pub(crate) agent: Agent,
    pub(crate) keys: CipherKeys,
    pub(crate) counter: SenderCounter,
    pub(crate) dice: Dice,
    pub(crate) seat: Rc<Seat>,
    pub(crate) fleet: Rc<Fleet>,
    /// Whether the envelope carries the id: not for agents registered with a single address.
    pub(crate) names_itself: bool,
}

impl Session {
    /// Lives until the fleet wants it to leave.
    pub(crate) async fn run(mut self) {
        let mut closed_before = false;
        loop {
            match self.seat.wish() {
                Wish::Live => {}
                Wish::Gone | Wish::Silent => {
                    self.seat.changed.notified().await;
                    continue;
                }
                Wish::Leave => return,
            }
            let retry = self.fleet.habits.retry_interval;
            let Some(mut link) = self.connect().await else {
                self.pause(retry).await;
                continue;
            };
            let end = self.talk(&mut link).await;
            let acknowledged = self.agent.is_connected();
            if matches!(end, End::Asked) && self.seat.wish() == Wish::Leave {
                self.say_goodbye(&mut link).await;
            }
            self.with_bench(|agent, bench| agent.disconnected(&mut bench.tally));
            self.fleet.now_connected(&self.seat, false);
            match end {
                End::Asked => {
                    while self.seat.wish() == Wish::Silent {
                        self.seat.changed.notified().await;
                    }
                }
                End::Closed => {
                    self.with_bench(|_, bench| bench.tally.closed_by_manager += 1);
                    // An agent whose connection is closed tries again at once, then at its interval.
                    closed_before = !acknowledged || closed_before;
                }
                End::Reconnect(Reconnect::Now) => closed_before = false,
                End::Reconnect(Reconnect::Later) => closed_before = true,
            }
            self.with_bench(|_, bench| link.close(&mut bench.tally));
            if self.seat.wish() == Wish::Live && closed_before {
                self.pause(retry).await;
            }
            closed_before = !acknowledged;
        }
    }

    async fn connect(&mut self) -> Option<Link> {
        // Held for the handshake only: a fleet that starts at once should not overrun the manager's backlog.
        let turn = self.fleet.connecting.acquire().await;
        let link = Link::open(self.agent.kind().carrier, self.fleet.manager).await;
        drop(turn);
        let mut bench = self.fleet.bench.borrow_mut();
        match link {
            Ok(link) => {
                bench.tally.connects += 1;
                Some(link)
            }
            Err(error) => {
                tracing::debug!(%error, agent = self.seat.name, "cannot connect");
                bench.tally.connect_failures += 1;
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
        self.with_bench(|agent, bench| agent.connected(now(), &mut bench.outbox, &mut bench.tally));
        if self.send(link).is_err() {
            return End::Closed;
        }
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
                }
                ready = link.ready() => {
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
            let given_up = self.with_bench(|agent, bench| agent.due(now(), room, &mut bench.outbox, &mut bench.tally));
            if self.send(link).is_err() {
                return End::Closed;
            }
            if let Some(reconnect) = given_up {
                return End::Reconnect(reconnect);
            }
        }
    }

    /// Seals and sends what the agent has put into the outbox.
    fn send(&mut self, link: &mut Link) -> Result<(), Gone> {
        let bench = &mut *self.fleet.bench.borrow_mut();
        let id = self.names_itself.then_some(self.agent.identity().id.as_str());
        let form = self.agent.kind().form;
        for (what, payload) in bench.outbox.payloads() {
            let counter = self.counter.next();
            let sealed = bench.sealer.seal(
                &self.keys,
                form,
                counter,
                self.dice.field(),
                self.dice.vector(),
                payload,
                id,
            );
            match sealed {
                Ok(sealed) => link.put(what, sealed, &mut bench.tally),
                Err(error) => tracing::warn!(%error, bytes = payload.len(), "cannot seal a message"),
            }
        }
        bench.outbox.clear();
        link.flush(&mut bench.tally).map_err(|_| Gone)
    }

    /// Reads all that is there.
    fn receive(&mut self, link: &mut Link) -> Result<Option<Reconnect>, Gone> {
        let fleet = Rc::clone(&self.fleet);
        let bench = &mut *fleet.bench.borrow_mut();
        link.flush(&mut bench.tally).map_err(|_| Gone)?;
        let mut wanted = None;
        while wanted.is_none() {
            let Some(bytes) = link.read(&mut bench.scratch, &mut bench.tally).map_err(|_| Gone)? else {
                break;
            };
            if link.carrier() == Carrier::Udp {
                wanted = self.datagram(bytes, bench);
                continue;
            }
            if bytes == 0 {
                return Err(Gone);
            }
            let frames = link.frames();
            frames.push(bench.scratch.get(..bytes).unwrap_or_default());
            while let Some(message) = frames.next_message().map_err(|_| Gone)? {
                wanted = wanted.or(self.message(message, &mut bench.opener, &mut bench.outbox, &mut bench.tally));
            }
            frames.release();
        }
        Ok(wanted)
    }

    fn datagram(&mut self, bytes: usize, bench: &mut Workbench) -> Option<Reconnect> {
        let Workbench {
            opener,
            scratch,
            outbox,
            tally,
            ..
        } = bench;
        if self.agent.kind().family.is_ossec() && bytes > OSSEC_AGENT_DATAGRAM_LEN {
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
        let form = self.agent.kind().form;
        let opened = split(message)
            .ok()
            .and_then(|envelope| opener.open(&self.keys, envelope.sealed, Some(form)).ok());
        // An agent knows one form only: what it cannot have opened counts as not opened.
        let Some(opened) = opened.filter(|opened| opened.form == form) else {
            tally.undecodable += 1;
            return None;
        };
        let was_connected = self.agent.is_connected();
        let wanted = self
            .agent
            .received(now(), opened.counter, opened.payload, outbox, tally);
        if !was_connected && self.agent.is_connected() {
            self.fleet.now_connected(&self.seat, true);
        }
        wanted
    }

    /// Says goodbye, and waits for it to leave the machine.
    async fn say_goodbye(&mut self, link: &mut Link) {
        self.with_bench(|agent, bench| agent.goodbye(&mut bench.outbox, &mut bench.tally));
        let patience = time::Instant::now() + GOODBYE_PATIENCE;
        let mut sending = self.send(link);
        while sending.is_ok() && !link.is_drained() {
            if time::timeout_at(patience, link.ready()).await.is_err() {
                break;
            }
            sending = self.receive(link).map(drop);
        }
    }

    fn with_bench<T>(&mut self, work: impl FnOnce(&mut Agent, &mut Workbench) -> T) -> T {
        work(&mut self.agent, &mut self.fleet.bench.borrow_mut())
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
