//! One worker: everything that a message touches on its way, owned by one thread, so that nothing is locked for it.
//!
//! This part is synchronous: it is handed messages and says what the connection does next. Reading and waiting are
//! next door.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
};

use muster_config::{KeyConflict, WhenFull};
use muster_proto::transport::{counter::Counter, envelope::Opener};
use muster_service::clock::unix_ms;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};
use tracing::{debug, info, trace, warn};

use super::{
    courier::Command,
    outgoing::Outgoing,
    strangers::Strangers,
    tally::{Tallies, Tally},
};
use crate::{
    analysis::{Analysis, HasAnalysis},
    archives::Archives,
    counters::received::Keeper,
    keys::KeyTable,
    requests::registry::Registry,
    roster::conflict::{Conflict, Kept},
    session::{
        Binding, Cause, KeyRequests, Origin, Ownership, Refusal, Reply, Rules, Sender, admit, decide, identify,
        identify_again, ownership, refusal_of,
    },
    slot::{AgentSlot, ConnectionId, Ending, Message, Millis, News, Route, StartupOutcome, plain_ip},
};

/// What all workers of a process have in common.
pub(crate) struct Common {
    /// TCP connections of all workers.
    pub(crate) connections: AtomicUsize,
    /// The way to each worker, by its number.
    pub(crate) workers: Vec<mpsc::Sender<Command>>,
    /// Who is asked for keys that we do not have.
    pub(crate) key_requests: Arc<dyn KeyRequests>,
    /// Who waits for agents' answers.
    pub(crate) registry: Arc<Registry>,
}

/// One worker's world.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) common: Arc<Common>,
    pub(crate) table: Arc<KeyTable>,
    /// Counts the tables that there were.
    table_number: u64,
    pub(crate) tables: watch::Receiver<Arc<KeyTable>>,
    pub(crate) rules: Rc<[Rules]>,
    pub(crate) when_full: WhenFull,
    pub(crate) opener: Opener,
    pub(crate) outgoing: Outgoing,
    pub(crate) analysis: Analysis,
    pub(crate) archives: Option<Archives>,
    pub(crate) strangers: Strangers,
    /// What strangers have half sent.
    pub(crate) stranger_bytes: usize,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) keeper: Keeper,
    pub(crate) valid_since_flush: u32,
    pub(crate) flush_every: u32,
    pub(crate) tallies: Arc<Tallies>,
    pub(crate) sequence: u64,
    /// Where reads land. Taken out while it is in use.
    pub(crate) scratch: Box<[u8]>,
    payload: Vec<u8>,
}

pub(crate) type Shared = Rc<RefCell<Worker>>;

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) common: Arc<Common>,
    pub(crate) tables: watch::Receiver<Arc<KeyTable>>,
    pub(crate) rules: Rc<[Rules]>,
    pub(crate) when_full: WhenFull,
    pub(crate) outgoing: Outgoing,
    pub(crate) analysis: Analysis,
    pub(crate) archives: Option<Archives>,
    pub(crate) strangers: Strangers,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) keeper: Keeper,
    pub(crate) flush_every: u32,
    pub(crate) tallies: Arc<Tallies>,
    pub(crate) scratch: Box<[u8]>,
}

/// What one TCP connection remembers; a datagram has none of it.
pub(crate) struct Memory {
    /// The connection.
    pub(crate) id: ConnectionId,
    /// Its source, as registered addresses are compared.
    pub(crate) ip: IpAddr,
    /// Whether a valid message has come over it.
    pub(crate) identified: bool,
    /// The agent of the last valid message.
    pub(crate) speaker: Option<Arc<AgentSlot>>,
    /// The number of the table that it was found in.
    speaker_of: u64,
    /// Agents that are answered over this connection, and whether they have said goodbye. Nearly always one.
    pub(crate) bound: Vec<(Arc<AgentSlot>, Farewell)>,
    /// Whether its last read brought events: only then does it wait for the analysis daemon.
    pub(crate) brings_events: bool,
    /// What of [`Worker::stranger_bytes`] is this connection's.
    pub(crate) kept_as_stranger: usize,
}

/// Whether an agent has said goodbye on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    Said,
    NotSaid,
}

impl Memory {
    pub(crate) fn new(id: ConnectionId, ip: IpAddr) -> Self {
        Self {
            id,
            ip,
            identified: false,
            speaker: None,
            speaker_of: 0,
            bound: Vec::new(),
            brings_events: false,
            kept_as_stranger: 0,
        }
    }

    fn note(&mut self, slot: &Arc<AgentSlot>, farewell: Farewell) {
        match self.bound.iter_mut().find(|(bound, _)| Arc::ptr_eq(bound, slot)) {
            Some((_, said)) => *said = farewell,
            None => self.bound.push((Arc::clone(slot), farewell)),
        }
    }
}

/// Why reading stops after a message.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The connection is closed.
    Close(Ending),
    /// The roster has no room for this now: it must be told before the next message is read.
    Tell(News),
}

impl Worker {
    pub(crate) fn new(parts: Parts) -> Self {
        let table = Arc::clone(&parts.tables.borrow());
        Self {
            index: parts.index,
            common: parts.common,
            table,
            table_number: 1,
            tables: parts.tables,
            rules: parts.rules,
            when_full: parts.when_full,
            opener: Opener::new(),
            outgoing: parts.outgoing,
            analysis: parts.analysis,
            archives: parts.archives,
            strangers: parts.strangers,
            stranger_bytes: 0,
            news: parts.news,
            keeper: parts.keeper,
            valid_since_flush: 0,
            flush_every: parts.flush_every.max(1),
            tallies: parts.tallies,
            sequence: 0,
            scratch: parts.scratch,
            payload: Vec::new(),
        }
    }

    /// Takes the latest key table, if there is a newer one.
    pub(crate) fn refresh_table(&mut self) {
        if self.tables.has_changed().unwrap_or(false) {
            self.table = Arc::clone(&self.tables.borrow_and_update());
            self.table_number += 1;
        }
    }

    /// Handles one message. `memory` is there for TCP.
    pub(crate) fn handle(
        &mut self,
        origin: &Origin,
        block: usize,
        mut memory: Option<&mut Memory>,
        packet: &[u8],
        now: Millis,
    ) -> ControlFlow<Stop> {
        self.tallies.count(Tally::MessagesReceived);
        let Some(rules) = self.rules.get(block) else {
            return ControlFlow::Break(Stop::Close(Ending::Stopping));
        };
        let source = plain_ip(origin.peer().ip());
        let speaker = memory
            .as_deref()
            .filter(|memory| memory.speaker_of == self.table_number)
            .and_then(|memory| memory.speaker.clone());
        let again = speaker
            .as_ref()
            .and_then(|speaker| identify_again(speaker, source, packet));
        let sender = again.map_or_else(|| identify(&self.table, source, packet), Ok);
        let (slot, named, sealed) = match sender {
            Ok(Sender::Agent { slot, named, sealed }) => (slot, named, sealed),
            Ok(Sender::Ping) => {
                self.tallies.count(Tally::Pings);
                // A pong that finds no room was not waited for.
                let _ = self.outgoing.pong(&origin.route);
                return ControlFlow::Continue(());
            }
            Err(refusal) => return self.refuse(origin, None, refusal),
        };
        let ownership = ownership(slot, origin, now, rules);
        let opened = match self.opener.open(&slot.keys, sealed, Some(slot.form())) {
            Ok(opened) => opened,
            Err(error) => {
                let refusal = refusal_of(error, named, ownership);
                return self.refuse(origin, Some(slot), refusal);
            }
        };
        let keeper = &self.keeper;
        let admitted = admit(slot, (opened.form, opened.counter), named, ownership, rules, |slot| {
            keeper.load(slot)
        });
        if let Err(refusal) = admitted {
            match refusal.cause {
                Cause::KeyInUse => tell_intruder(&self.news, slot, origin, Kept::First, now),
                Cause::Replay | Cause::OlderGlobal => complain(&self.keeper, slot, origin, opened.counter, now),
                _ => {}
            }
            return self.refuse(origin, Some(slot), refusal);
        }

        // From here on the sender has proved the agent's key.
        slot.hear(now);
        if slot.form() != opened.form {
            slot.set_form(opened.form);
        }
        // Nobody asks for counters that are not checked, except whoever takes over from us when we stop in good order.
        if rules.verify.applies(slot, opened.form) {
            self.valid_since_flush += 1;
            if self.valid_since_flush >= self.flush_every {
                self.valid_since_flush = 0;
                self.keeper.write_soon(slot);
            }
        }
        if let Ownership::Overtakes(owner) = ownership {
            self.tallies.count(Tally::ConnectionsOvertaken);
            // After a long silence it is the agent itself that came back. Two who fight for a key are told of elsewhere.
            if rules.key_conflict == KeyConflict::Newest {
                debug!(agent_id = %slot.id, peer = %origin.peer(), "newer connection: the old one is closed");
                tell_intruder(&self.news, slot, origin, Kept::Newest, now);
            } else {
                info!(agent_id = %slot.id, peer = %origin.peer(), reason = "overtaken", "agent's connection ended");
            }
            slot.unbind(owner);
            close_elsewhere(&self.common, self.index, &self.outgoing, owner);
        }
        if let Some(memory) = memory.as_deref_mut() {
            if !memory.identified {
                memory.identified = true;
                self.strangers.forget(memory.ip, memory.id);
                self.outgoing.identified(memory.id);
                self.stranger_bytes -= std::mem::take(&mut memory.kept_as_stranger);
            }
            if !memory
                .speaker
                .as_ref()
                .is_some_and(|speaker| Arc::ptr_eq(speaker, slot))
            {
                memory.speaker = Some(Arc::clone(slot));
            }
            memory.speaker_of = self.table_number;
        }

        let mut decision = decide(slot, opened.payload, origin, now, rules);
        self.tallies.count(decision.tally);
        if let Some(message) = kind_of(decision.tally) {
            slot.counts().add(message);
        }
        // What a local program waits for is its own; the roster only hears who is back.
        if decision.tally == Tally::Answers
            && self.common.registry.offer(slot, opened.payload)
            && matches!(decision.news, Some(News::Answer { .. }))
        {
            decision.news = None;
        }
        match decision.binding {
            Binding::Keep => {}
            Binding::Bind => {
                let before = slot.bind(origin.route);
                if let Some(Route::Udp { peer: holder, .. }) = before
                    && plain_ip(holder.ip()) != plain_ip(origin.peer().ip())
                {
                    tell_conflict(&self.news, slot, (holder, origin.peer()), Kept::Both, now);
                }
                if let Some(memory) = memory.as_deref_mut() {
                    memory.note(slot, Farewell::NotSaid);
                }
            }
            Binding::Goodbye => {
                self.keeper.write_soon(slot);
                if let Some(memory) = memory.as_deref_mut() {
                    memory.note(slot, Farewell::Said);
                }
            }
        }
        if let Some(News::Startup {
            outcome: StartupOutcome::Accepted { version: Some(version) },
            ..
        }) = &decision.news
        {
            slot.set_version(version);
        }
        match decision.reply {
            Some(Reply::Ack) => self.outgoing.acknowledge(slot, origin.route),
            Some(refusal) => {
                self.payload.clear();
                refusal.write(&mut self.payload);
                // Lost: it was counted, and the agent asks again.
                let _ = self.outgoing.send(slot, &origin.route, &self.payload);
            }
            None => {}
        }
        if let Some(payload) = decision.event {
            slot.count_event(payload.len(), now);
            if let Some(archives) = self.archives.as_ref().filter(|_| rules.archives)
                && archives.offer(slot, payload, unix_ms()).is_err()
            {
                self.tallies.count(Tally::ArchivesDropped);
            }
            self.analysis.offer(slot, payload, memory.is_some(), now);
            if let Some(memory) = memory.as_deref_mut() {
                memory.brings_events = true;
            }
        }
        match decision.news {
            Some(news) => self.tell(news, memory.is_some()),
            None => ControlFlow::Continue(()),
        }
    }

    /// Tells the roster, if it has room. Over TCP the connection waits otherwise; what came over UDP is not told.
    fn tell(&self, news: News, can_wait: bool) -> ControlFlow<Stop> {
        match self.news.try_send(news) {
            Err(TrySendError::Full(news)) if can_wait => return ControlFlow::Break(Stop::Tell(news)),
            Err(TrySendError::Full(news)) => {
                self.tallies.count(Tally::NewsDropped);
                if let News::HeardAgain { slot, .. } = news {
                    slot.revival_untold();
                }
            }
            // The roster ends before the network only when the process does.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
        }
        ControlFlow::Continue(())
    }

    fn refuse(&self, origin: &Origin, slot: Option<&AgentSlot>, refusal: Refusal<'_>) -> ControlFlow<Stop> {
        let Refusal { cause, key_request } = refusal;
        self.tallies.count(cause.tally());
        debug!(
            peer = %origin.peer(),
            agent_id = slot.map(|slot| slot.id.as_str()),
            number = cause.log_number(),
            reason = cause.as_str(),
            "message refused"
        );
        if let Cause::Corrupt(kind) = cause {
            trace!(peer = %origin.peer(), %kind, "corrupt message");
        }
        if let Some(request) = key_request {
            self.common.key_requests.ask(request, origin);
        }
        ControlFlow::Break(Stop::Close(Ending::Refused(cause)))
    }

    /// Cleans up after a connection. Gives back what the roster must hear.
    pub(crate) fn closed(&mut self, memory: &Memory, ending: Ending, now: Millis) -> Vec<News> {
        self.tallies.count(Tally::ConnectionsClosed);
        self.outgoing.forget(memory.id);
        self.strangers.forget(memory.ip, memory.id);
        self.stranger_bytes -= memory.kept_as_stranger;
        let mut news = Vec::new();
        for (slot, farewell) in &memory.bound {
            // After a reload another slot may stand for the agent, and be bound to this connection still.
            let current = self
                .table
                .by_id(slot.id.as_str())
                .filter(|current| !Arc::ptr_eq(current, slot));
            let peer = slot.route().map(|route| route.peer());
            let mut lost = slot.unbind(memory.id);
            if let Some(current) = current {
                lost |= current.unbind(memory.id);
            }
            self.keeper.write_soon(slot);
            if lost
                && *farewell == Farewell::NotSaid
                && let Some(peer) = peer
            {
                news.push(News::ConnectionLost {
                    slot: Arc::clone(current.unwrap_or(slot)),
                    at: now,
                    peer,
                    ending,
                });
            }
        }
        news
    }
}

/// Tells that somebody who has an agent's key spoke while the agent was connected elsewhere. Once a second is
/// enough, and what finds no room will be there again.
fn tell_intruder(news: &mpsc::Sender<News>, slot: &Arc<AgentSlot>, origin: &Origin, kept: Kept, now: Millis) {
    if let Some(Route::Tcp { peer: holder, .. }) = slot.route() {
        tell_conflict(news, slot, (holder, origin.peer()), kept, now);
    }
}

fn tell_conflict(
    news: &mpsc::Sender<News>,
    slot: &Arc<AgentSlot>,
    (holder, other): (SocketAddr, SocketAddr),
    kept: Kept,
    now: Millis,
) {
    if slot.conflict_is_due(now) {
        let conflict = Conflict { holder, other, kept };
        let _ = news.try_send(News::KeyConflict {
            slot: Arc::clone(slot),
            at: now,
            conflict,
        });
    }
}

/// An agent that has the key and counts what was counted before: a replay, or an agent that was set back.
fn complain(keeper: &Keeper, slot: &AgentSlot, origin: &Origin, counter: Counter, now: Millis) {
    if !slot.complaint_is_due(now) {
        return;
    }
    if keeper.take_replacement(slot) {
        info!(agent_id = %slot.id, "another counter of the agent was put in place: going on from it");
        return;
    }
    warn!(
        agent_id = %slot.id,
        peer = %origin.peer(),
        global = counter.global,
        local = counter.local,
        "counters of an agent's messages went back: was it restored from a snapshot, or is it there twice? If it was \
         restored, run muster-control agent reset-counter"
    );
}

/// What a control message is counted as for its agent; events are counted with their bytes.
fn kind_of(tally: Tally) -> Option<Message> {
    Some(match tally {
        Tally::Keepalives => Message::Keepalive,
        Tally::Answers => Message::Answer,
        Tally::Shutdowns => Message::Shutdown,
        Tally::Startups | Tally::StartupsRefused => Message::Startup,
        Tally::ControlUnknown => Message::Unknown,
        _ => return None,
    })
}

/// The task that sends the acknowledgements of each round. Runs as long as its worker.
pub(crate) async fn acknowledge(worker: Shared) {
    let waiting = worker.borrow().outgoing.acks_wait();
    loop {
        waiting.notified().await;
        worker.borrow_mut().outgoing.send_acks();
    }
}

impl HasAnalysis for Worker {
    fn analysis(&mut self) -> &mut Analysis {
        &mut self.analysis
    }
}

/// Closes a connection, whichever worker has it.
fn close_elsewhere(common: &Common, index: usize, outgoing: &Outgoing, connection: ConnectionId) {
    if connection.worker() == index {
        outgoing.shut_down(connection);
    } else if let Some(worker) = common.workers.get(connection.worker()) {
        // Full: the connection is not the agent's any more, and its next message finds that out.
        let _ = worker.try_send(Command::Close(connection));
    }
}
