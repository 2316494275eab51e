//! Who is alive: the decisions. What workers tell and what time brings go in, with the time as an argument; what is to
//! be sent, told and stored comes out.
//!
//! Statuses go like this. An agent with a key that was never heard is *never connected*. A startup makes it *pending*,
//! its keepalive makes it *active*. Silence or a goodbye makes it *disconnected*, and whatever is heard of a
//! disconnected agent makes it active again. A lost connection changes nothing by itself.
//!
//! **Invariant:** each change of a status is one event, in order per agent, handed over together with the row that it
//! tells of. Nobody is disconnected for silence while we ourselves were away ([`pulse`]).
//!
//! Read first: [`Roster::on_news`], [`Roster::on_tick`] and [`Actions`].

pub mod agent;
pub mod guard;
pub mod level;
pub mod pulse;
pub mod restore;
mod table;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use muster_config::KeepaliveEvents;
use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{Event, HIGH_ALERT_THRESHOLD, body::KeepaliveType},
    ipc::control::{AgentInfo, Liveness},
    transport::{
        control::{REQUEST_ACK, RequestId, ToAgent},
        keepalive::Keepalive,
    },
};

use self::{
    agent::{Agent, Flapping},
    guard::{Guard, Mass},
    level::{Change, level},
    pulse::Pulse,
    restore::Restored,
    table::Table,
};
use crate::{
    events::{self, StatusChange},
    schedule::{Policy, Probe, Sending},
    slot::{AgentSlot, Millis, News, Protocol, SendError, StartupOutcome},
    store::Row,
    wheel::Wheel,
};

/// Length of the wheel's ticks: how late a time-out may be noticed.
pub const TICK: Duration = Duration::from_millis(100);
/// Agents that are looked at in one call, so that news and the store get their turn when a whole fleet is due at once.
pub const MAX_DUE_AT_ONCE: usize = 10_000;
/// An agent that was enrolled and did not come within a day is worth a notice.
const NEVER_CONNECTED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// After how long an absence is said again.
const ESCALATE_AFTER: [Duration; 2] = [Duration::from_secs(3600), Duration::from_secs(24 * 3600)];

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// For deciding.
    pub mono: Millis,
    /// Unix milliseconds, for showing. It may step; nothing is decided by it.
    pub wall_ms: u64,
}

impl Times {
    /// What the wall clock would have shown at a moment that is not far away.
    pub fn wall_of(self, at: Millis) -> u64 {
        (self.wall_ms + at.0.saturating_sub(self.mono.0)).saturating_sub(self.mono.0.saturating_sub(at.0))
    }
}

/// What the configuration says about the roster.
#[derive(Clone, Debug, PartialEq)]
pub struct RosterSettings {
    /// When agents are sent keepalives, and when they count as gone.
    pub policy: Policy,
    /// The name of this manager in events.
    pub node: String,
    /// Which keepalive events are made.
    pub keepalive_events: KeepaliveEvents,
    /// Whether an absence is said again after an hour and after a day.
    pub escalation: bool,
}

/// What is to be done. The caller empties it.
#[derive(Default)]
pub struct Actions {
    /// Messages to agents; the caller reports what became of each to [`Roster::on_sent`].
    pub sends: Vec<Outgoing>,
    /// Events, in order.
    pub events: Vec<Event>,
    /// Log lines about agents for the analysis daemon.
    pub notices: Vec<Notice>,
}

/// A message to an agent.
pub struct Outgoing {
    /// To whom.
    pub slot: Arc<AgentSlot>,
    /// Control header included.
    pub payload: Vec<u8>,
    /// What for.
    pub purpose: Purpose,
}

/// What a message to an agent is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Our keepalive; the counter when it is a request.
    Keepalive(Option<u32>),
    /// Telling a UDP agent that its answer has come. Nobody waits for it.
    Courtesy,
}

/// A line about an agent, to be sent as if the agent had sent it from `location`.
#[derive(Clone, Debug)]
pub struct Notice {
    /// About whom.
    pub slot: Arc<AgentSlot>,
    /// Which program of the manager says so.
    pub location: &'static str,
    /// The line.
    pub text: String,
}

muster_service::counters! {
    /// What the roster did.
    pub struct RosterCounters {
        /// Startups that were told.
        startups_total,
        /// Keepalives that were told.
        keepalives_total,
        /// Goodbyes that were told.
        shutdowns_total,
        /// Connections lost without a goodbye.
        connections_lost_total,
        /// Status changes.
        status_changes_total,
        /// Agents that timed out.
        timeouts_total,
        /// Keepalives that we sent.
        keepalives_sent_total,
        /// Keepalives that we could not send.
        keepalives_failed_total,
        /// Answers to our requests.
        answers_total,
        /// Answers that nobody waits for.
        stray_answers_total,
        /// News of agents that are not, or no longer, registered.
        news_of_strangers_total,
        /// Times that this process stood still.
        stalls_total,
        /// Times that many agents timed out at once.
        mass_expiries_total,
    }
}

/// The agents that came up in one tick. They are looked at in several goes when there are very many.
#[derive(Default)]
struct Round {
    due: Vec<u32>,
    next: usize,
    /// So many of them time out that it is a mass.
    mass: bool,
}

/// Who is alive.
pub struct Roster {
    settings: RosterSettings,
    table: Table,
    wheel: Wheel,
    pulse: Pulse,
    guard: Guard,
    active: usize,
    restored: Restored,
    /// Places whose status the store does not have yet: they go with the events that tell of it.
    changed: Vec<u32>,
    /// Places whose rows the store does not have yet in any other respect; each is in it once.
    dirty: Vec<u32>,
    /// Ids whose rows the store must drop.
    gone: Vec<AgentId>,
    next_request: u32,
    round: Round,
    counters: RosterCounters,
}

impl Roster {
    /// The roster as an earlier process left it; agents are in it once [`News::KeysReloaded`] has named them.
    /// `seed` is where the numbers of our requests begin.
    pub fn new(settings: RosterSettings, now: Times, rows: Vec<Row>, seed: u32) -> Self {
        let base = settings.policy.limits(None).timeout.max(settings.policy.timeout);
        Self {
            wheel: Wheel::new(tick_of(now.mono)),
            pulse: Pulse::start(now.mono, base),
            guard: Guard::new(settings.policy.interval),
            settings,
            table: Table::default(),
            active: 0,
            restored: Restored::new(rows),
            changed: Vec::new(),
            dirty: Vec::new(),
            gone: Vec::new(),
            next_request: seed,
            round: Round::default(),
            counters: RosterCounters::default(),
        }
    }

    /// Takes over new settings; whoever is due by them is due from now on.
    pub fn reconfigure(&mut self, now: Times, settings: RosterSettings) {
        self.guard = Guard::new(settings.policy.interval);
        self.settings = settings;
        let places: Vec<u32> = self.table.behind(None).collect();
        for place in places {
            if let Some(agent) = self.table.get_mut(place) {
                let next = first_send(place, self.settings.policy.interval);
                agent.schedule.postpone(now.mono + next);
            }
            self.arm(place);
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &RosterSettings {
        &self.settings
    }

    /// What it did so far.
    pub fn counters(&self) -> &RosterCounters {
        &self.counters
    }

    /// How many agents are registered.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// How many agents have each status: active, disconnected, pending, never connected.
    pub fn census(&self) -> [usize; 4] {
        let mut census = [0; 4];
        for agent in self.table.iter() {
            census[usize::from(agent.status.code())] += 1;
        }
        census
    }

    /// One agent.
    pub fn agent(&self, now: Times, id: &str) -> Option<AgentInfo> {
        Some(self.table.get(self.table.place(id)?)?.info(now, &self.settings.policy))
    }

    /// At most `limit` agents behind `after`, in the order of their numbers, and whether more follow.
    pub fn page(&self, now: Times, after: Option<&AgentId>, limit: usize) -> (Vec<AgentInfo>, bool) {
        let mut behind = self.table.behind(after).filter_map(|place| self.table.get(place));
        let page = behind
            .by_ref()
            .take(limit)
            .map(|agent| agent.info(now, &self.settings.policy))
            .collect();
        (page, behind.next().is_some())
    }

    /// Whether an agent is there, for the force rules of enrollment.
    pub fn liveness(&self, id: &str) -> Option<Liveness> {
        Some(self.table.get(self.table.place(id)?)?.liveness())
    }

    /// How many rows the store does not have.
    pub fn unstored(&self) -> usize {
        self.changed.len() + self.dirty.len() + self.gone.len()
    }

    /// Rows that the store does not have, and the ids that it must drop; they count as stored now. With the events that
    /// were made until now they belong into one transaction: every row whose status changed is among them, and at most
    /// `limit` others.
    pub fn take_rows(&mut self, now: Times, limit: usize) -> (Vec<Row>, Vec<AgentId>) {
        let from = self.dirty.len().saturating_sub(limit);
        let mut rows = Vec::with_capacity(self.changed.len() + self.dirty.len() - from);
        for place in self.changed.drain(..).chain(self.dirty.drain(from..)) {
            if let Some(agent) = self.table.get_mut(place).filter(|agent| agent.changed || agent.dirty) {
                (agent.changed, agent.dirty) = (false, false);
                rows.push(agent.row(now));
            }
        }
        (rows, std::mem::take(&mut self.gone))
    }

    /// When [`Roster::on_tick`] has something to do, which may be at once; it must also come every [`pulse::LONGEST_NAP`].
    pub fn next_tick(&self) -> Option<Millis> {
        if self.round.next < self.round.due.len() {
            return Some(Millis(1));
        }
        let wheel = self
            .wheel
            .next_tick()
            .map(|tick| Millis(tick.saturating_mul(TICK.as_millis() as u64)));
        [wheel, self.guard.ends()].into_iter().flatten().min()
    }

    /// A worker or the key watcher has something to tell.
    pub fn on_news(&mut self, now: Times, news: News, out: &mut Actions) {
        match news {
            News::Startup {
                slot,
                at,
                peer,
                protocol,
                outcome,
            } => {
                self.counters.startups_total.increment();
                let Some(place) = self.find(&slot) else { return };
                self.met(place, peer, protocol);
                self.on_startup(place, now, at, outcome, out);
            }
            News::Keepalive {
                slot,
                at,
                peer,
                protocol,
                keepalive,
                digest,
            } => {
                self.counters.keepalives_total.increment();
                let Some(place) = self.find(&slot) else { return };
                self.met(place, peer, protocol);
                self.on_keepalive(place, now, at, &keepalive, digest, out);
            }
            News::Shutdown { slot, at } => {
                self.counters.shutdowns_total.increment();
                let Some(place) = self.find(&slot) else { return };
                self.on_shutdown(place, now, at, out);
            }
            News::HeardAgain {
                slot,
                at,
                peer,
                protocol,
            } => {
                let Some(place) = self.find(&slot) else { return };
                self.met(place, peer, protocol);
                self.on_heard_again(place, now, at, out);
            }
            News::ConnectionLost { slot, at, peer: _ } => {
                let Some(place) = self.find(&slot) else { return };
                self.on_connection_lost(place, now, at, out);
            }
            News::KeysReloaded {
                added,
                changed,
                removed,
            } => self.on_keys(now, added, changed, removed, out),
            News::Answer {
                slot,
                at: _,
                counter,
                body,
            } => {
                let Some(place) = self.find(&slot) else { return };
                self.on_answer(place, &counter, &body, out);
            }
        }
    }

    /// Time has passed: who is due?
    pub fn on_tick(&mut self, now: Times, out: &mut Actions) {
        if let Some(late) = self.pulse.beat(now.mono, self.settings.policy.interval) {
            self.counters.stalls_total.increment();
            tracing::warn!(
                late_ms = late.as_millis() as u64,
                "stood still: agents get time to be heard again"
            );
        }
        if self.round.next == self.round.due.len() {
            self.begin_round(now, out);
        }
        let mut round = std::mem::take(&mut self.round);
        for place in round.due.iter().skip(round.next).take(MAX_DUE_AT_ONCE) {
            self.review(*place, now, round.mass, out);
        }
        round.next = round.due.len().min(round.next + MAX_DUE_AT_ONCE);
        self.round = round;
    }

    fn begin_round(&mut self, now: Times, out: &mut Actions) {
        self.round.due.clear();
        self.round.next = 0;
        self.wheel.advance(tick_of(now.mono), &mut self.round.due);
        let expiring: Vec<Option<IpAddr>> = self
            .round
            .due
            .iter()
            .filter_map(|place| self.table.get(*place))
            .filter(|agent| agent.status == AgentStatus::Active && self.is_silent(agent, now.mono))
            .map(|agent| agent.peer.map(|peer| peer.ip().to_canonical()))
            .collect();
        let mut said = Vec::new();
        self.round.mass = self.guard.expire(now.mono, self.active, &expiring, &mut said);
        for mass in &said {
            self.announce(mass, now, out);
        }
    }

    /// What became of a message of [`Actions::sends`].
    pub fn on_sent(&mut self, now: Times, sent: &Outgoing, outcome: Result<(), SendError>, out: &mut Actions) {
        let Purpose::Keepalive(request) = sent.purpose else {
            return;
        };
        let Some(sending) = self.settings.policy.sending else {
            return;
        };
        let Some(place) = self.find(&sent.slot) else { return };
        let interval = self.settings.policy.interval;
        let Some(agent) = self.table.get_mut(place) else { return };
        let (what, next) = match outcome {
            Ok(()) => {
                self.counters.keepalives_sent_total.increment();
                agent.schedule.sent_now(now.mono, request);
                agent.sent_ms = now.wall_ms;
                agent.sends = agent.sends.wrapping_add(1);
                (KeepaliveType::KeepaliveSent, interval)
            }
            Err(error) => {
                self.counters.keepalives_failed_total.increment();
                tracing::debug!(agent_id = %agent.slot.id, %error, "keepalive not sent");
                (KeepaliveType::KeepaliveFailed, sending.retry)
            }
        };
        agent.schedule.postpone(now.mono + next);
        let publish = match self.settings.keepalive_events {
            KeepaliveEvents::All => true,
            KeepaliveEvents::Sample(every) => {
                what == KeepaliveType::KeepaliveFailed || agent.sends % every.max(1) == 1 % every.max(1)
            }
            KeepaliveEvents::Off => false,
        };
        if publish {
            out.events.push(events::keepalive(
                agent,
                what,
                now.wall_ms,
                interval.as_secs(),
                &self.settings.node,
            ));
        }
        self.arm(place);
    }

    fn on_startup(&mut self, place: u32, now: Times, at: Millis, outcome: StartupOutcome, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        agent.lost = false;
        agent.schedule.rhythm.interrupt();
        agent.schedule.forget_answers();
        match outcome {
            StartupOutcome::Accepted { version } => {
                if let Some(version) = version {
                    agent.set_version(&version);
                }
                self.mark_dirty(place);
                if self.status(place) != AgentStatus::Pending {
                    self.change(place, now, at, AgentStatus::Pending, Reason::Startup, out);
                }
            }
            StartupOutcome::RefusedVersion { version } => {
                agent.set_version(&version);
                self.refuse(place, now, at, out);
            }
            StartupOutcome::NoVersion => self.refuse(place, now, at, out),
        }
    }

    /// It was refused, and is not there: whoever was active or pending is not any more. It comes back every few
    /// seconds, so that it is said once.
    fn refuse(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        self.mark_dirty(place);
        let Some(agent) = self.table.get(place) else { return };
        if agent.reason == Some(Reason::VersionRefused) {
            return;
        }
        let to = match agent.status {
            AgentStatus::Active | AgentStatus::Pending => AgentStatus::Disconnected,
            away => away,
        };
        self.change(place, now, at, to, Reason::VersionRefused, out);
    }

    fn on_keepalive(
        &mut self,
        place: u32,
        now: Times,
        at: Millis,
        keepalive: &Keepalive,
        digest: u64,
        out: &mut Actions,
    ) {
        let Some(agent) = self.table.get_mut(place) else { return };
        if agent.digest != digest {
            agent.digest = digest;
            agent.take_inventory(keepalive);
        }
        agent.lost = false;
        agent.schedule.rhythm.keepalive(at);
        agent.keepalive_ms = now.wall_of(at);
        self.mark_dirty(place);
        match self.table.get(place).map(|agent| (agent.status, agent.settled)) {
            Some((AgentStatus::Active, _)) => self.arm_if_sooner(place),
            Some((AgentStatus::Disconnected, _) | (_, AgentStatus::Disconnected)) => {
                self.change(place, now, at, AgentStatus::Active, Reason::Reconnected, out);
            }
            Some(_) => self.change(place, now, at, AgentStatus::Active, Reason::Startup, out),
            None => {}
        }
    }

    fn on_shutdown(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        agent.lost = false;
        let (slot, address) = (Arc::clone(&agent.slot), agent.slot.address.host_text().to_owned());
        let text = format!("ossec: Agent stopped: '{}->{address}'.", slot.name);
        out.notices.push(Notice {
            slot,
            location: "wazuh-remoted",
            text,
        });
        if self.status(place) != AgentStatus::Disconnected {
            self.change(place, now, at, AgentStatus::Disconnected, Reason::AgentStopped, out);
        }
        self.mark_dirty(place);
    }

    /// An event or an answer of an agent that was away. One that is pending stays so until its keepalive.
    fn on_heard_again(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        let reason = match self.status(place) {
            AgentStatus::Disconnected => Reason::Reconnected,
            AgentStatus::NeverConnected => Reason::Startup,
            AgentStatus::Active | AgentStatus::Pending => return,
        };
        self.change(place, now, at, AgentStatus::Active, reason, out);
    }

    fn on_connection_lost(&mut self, place: u32, now: Times, at: Millis, out: &mut Actions) {
        self.counters.connections_lost_total.increment();
        let Some(agent) = self.table.get_mut(place) else { return };
        if agent.lost || !matches!(agent.status, AgentStatus::Active | AgentStatus::Pending) {
            return;
        }
        agent.lost = true;
        out.events.push(events::connection_lost(
            agent,
            now.wall_of(at),
            level::MEDIUM,
            &self.settings.node,
        ));
    }

    fn on_answer(&mut self, place: u32, counter: &str, body: &[u8], out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        let ours = RequestId::from_text(counter.as_bytes()).filter(|id| agent.schedule.answer(id.0));
        let Some(id) = ours else {
            self.counters.stray_answers_total.increment();
            return;
        };
        // Over UDP the first thing that comes back is that the request has come.
        if body == REQUEST_ACK {
            return;
        }
        self.counters.answers_total.increment();
        if agent.protocol == Some(Protocol::Udp) {
            out.sends.push(Outgoing {
                slot: Arc::clone(&agent.slot),
                payload: ToAgent::RequestAck(id).to_bytes(),
                purpose: Purpose::Courtesy,
            });
        }
        self.arm_if_sooner(place);
    }

    fn on_keys(
        &mut self,
        now: Times,
        added: Vec<Arc<AgentSlot>>,
        changed: Vec<Arc<AgentSlot>>,
        removed: Vec<Arc<AgentSlot>>,
        out: &mut Actions,
    ) {
        for slot in removed {
            if let Some(place) = self.table.place(slot.id.as_str()) {
                self.remove(place, now, out);
            }
        }
        for slot in changed {
            match self.table.place(slot.id.as_str()) {
                Some(place) => self.replace(place, slot),
                None => self.add(slot, now),
            }
        }
        for slot in added {
            match self.table.place(slot.id.as_str()) {
                Some(place) => self.replace(place, slot),
                None => self.add(slot, now),
            }
        }
        if !self.is_empty() {
            for row in self.restored.leftovers() {
                tracing::info!(agent_id = %row.id, "agent was removed while we were away");
                self.gone.push(row.id);
            }
        }
    }

    fn add(&mut self, slot: Arc<AgentSlot>, now: Times) {
        let row = self.restored.claim(&slot);
        let is_new = row.is_none();
        let agent = match row {
            Some(row) => Agent::restored(slot, row, now),
            None => Agent::new(slot, now),
        };
        agent.slot.set_status(agent.status);
        self.active += usize::from(agent.status == AgentStatus::Active);
        let place = self.table.insert(agent);
        if let Some(agent) = self.table.get_mut(place) {
            agent
                .schedule
                .postpone(now.mono + first_send(place, self.settings.policy.interval));
        }
        if is_new {
            self.mark_dirty(place);
        }
        self.arm(place);
    }

    /// The same agent with another name, address or key.
    fn replace(&mut self, place: u32, slot: Arc<AgentSlot>) {
        let Some(agent) = self.table.get_mut(place) else { return };
        agent.floor = agent.heard();
        slot.set_status(agent.status);
        agent.slot = slot;
        self.mark_dirty(place);
        self.arm(place);
    }

    fn remove(&mut self, place: u32, now: Times, out: &mut Actions) {
        if matches!(self.status(place), AgentStatus::Active | AgentStatus::Pending) {
            self.change(place, now, now.mono, AgentStatus::Disconnected, Reason::KeyRemoved, out);
        }
        self.wheel.cancel(place);
        if let Some(agent) = self.table.remove(place) {
            self.gone.push(agent.slot.id.clone());
        }
    }

    /// Looks at an agent that came up.
    fn review(&mut self, place: u32, now: Times, mass: bool, out: &mut Actions) {
        let Some(agent) = self.table.get(place) else { return };
        match agent.status {
            AgentStatus::Active if self.is_silent(agent, now.mono) => self.expire(place, now, mass, out),
            AgentStatus::Active => self.send_if_due(place, now, out),
            AgentStatus::Pending if self.is_stuck(agent, now.mono) => self.give_up_pending(place, now, out),
            AgentStatus::Pending => {}
            AgentStatus::Disconnected => self.escalate(place, now, out),
            AgentStatus::NeverConnected => self.remind(place, now, out),
        }
        self.arm(place);
    }

    fn expire(&mut self, place: u32, now: Times, mass: bool, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        let heard = agent.heard();
        agent.slot.set_status(AgentStatus::Disconnected);
        // A worker that heard it just now saw it active and said nothing, so this is the last look.
        if agent.heard() > heard {
            agent.slot.set_status(AgentStatus::Active);
            return;
        }
        agent.missed = agent.limits(&self.settings.policy).missed(now.mono.since(heard));
        self.counters.timeouts_total.increment();
        self.change_in(
            place,
            now,
            now.mono,
            AgentStatus::Disconnected,
            Reason::KeepaliveTimeout,
            mass,
            out,
        );
    }

    fn send_if_due(&mut self, place: u32, now: Times, out: &mut Actions) {
        let Some(Sending { probe, retry }) = self.settings.policy.sending else {
            return;
        };
        let Some(agent) = self.table.get_mut(place) else { return };
        if agent.schedule.next_send() > now.mono {
            return;
        }
        if !agent.is_reachable() {
            // Not heard by this process, so there is nowhere to send to: that is no failure of the agent's.
            agent.schedule.postpone(now.mono + self.settings.policy.interval);
            return;
        }
        // Until it is known what became of it.
        agent.schedule.postpone(now.mono + retry);
        let (message, counter) = match agent.schedule.probe(probe, agent.slot.family(), agent.slot.heard()) {
            Probe::Keepalive => (
                ToAgent::Keepalive {
                    name: &agent.slot.name,
                    unix_seconds: now.wall_ms / 1000,
                },
                None,
            ),
            Probe::Ack => (ToAgent::Ack, None),
            Probe::Request => {
                let counter = self.next_request;
                self.next_request = self.next_request.wrapping_add(1);
                (
                    ToAgent::Request {
                        id: RequestId(counter),
                        text: b"agent getstate",
                    },
                    Some(counter),
                )
            }
        };
        out.sends.push(Outgoing {
            slot: Arc::clone(&agent.slot),
            payload: message.to_bytes(),
            purpose: Purpose::Keepalive(counter),
        });
    }

    /// It said hello, and no keepalive came. One that does send events is only told of.
    fn give_up_pending(&mut self, place: u32, now: Times, out: &mut Actions) {
        let Some(agent) = self.table.get(place) else { return };
        let silence = now.mono.since(agent.heard());
        let to = if silence >= self.patience() {
            AgentStatus::Disconnected
        } else {
            AgentStatus::Pending
        };
        if to == AgentStatus::Pending && agent.reason == Some(Reason::StuckPending) {
            return;
        }
        let missed = agent.limits(&self.settings.policy).missed(silence);
        if let Some(agent) = self.table.get_mut(place) {
            agent.missed = missed;
        }
        self.change(place, now, now.mono, to, Reason::StuckPending, out);
    }

    /// Says again that it is away, a level higher.
    fn escalate(&mut self, place: u32, now: Times, out: &mut Actions) {
        let Some(agent) = self.table.get_mut(place) else { return };
        let Some(reason) = agent.reason.filter(|_| self.settings.escalation) else {
            return;
        };
        let absent = now.mono.since(agent.since);
        let due = ESCALATE_AFTER.iter().filter(|after| absent >= **after).count();
        let due = u8::try_from(due).unwrap_or(u8::MAX);
        if due <= agent.escalations {
            return;
        }
        agent.escalations = due;
        let status = AgentStatus::Disconnected;
        let change = StatusChange {
            from: status,
            to: status,
            reason,
            missed: agent.missed,
            level: agent.level.saturating_add(due).min(15),
            flapping: None,
            at_ms: now.wall_ms,
        };
        out.events.push(events::status_change(agent, &change));
        self.mark_dirty(place);
    }

    /// Says that it has a key and never came.
    fn remind(&mut self, place: u32, now: Times, out: &mut Actions) {
        let Some(agent) = self.table.get(place) else { return };
        if agent.reason.is_none() && now.mono.since(agent.since) >= NEVER_CONNECTED_AFTER {
            self.change(
                place,
                now,
                now.mono,
                AgentStatus::NeverConnected,
                Reason::NeverConnected,
                out,
            );
        }
    }

    fn announce(&self, mass: &Mass, now: Times, out: &mut Actions) {
        self.counters.mass_expiries_total.increment();
        tracing::warn!(
            count = mass.count,
            active_before = mass.active_before,
            network = mass.network.as_ref().map(|(network, _)| network),
            confirmed = mass.confirmed,
            "many agents timed out at once"
        );
        out.events
            .push(events::mass_expiry(mass, now.wall_ms, level::HIGH, &self.settings.node));
    }

    fn change(&mut self, place: u32, now: Times, at: Millis, to: AgentStatus, reason: Reason, out: &mut Actions) {
        self.change_in(place, now, at, to, reason, false, out);
    }

    /// The one place where a status changes: agent, slot, event, row and wheel together.
    #[expect(
        clippy::too_many_arguments,
        reason = "private, and each of them differs from caller to caller"
    )]
    fn change_in(
        &mut self,
        place: u32,
        now: Times,
        at: Millis,
        to: AgentStatus,
        reason: Reason,
        mass: bool,
        out: &mut Actions,
    ) {
        let Some(agent) = self.table.get_mut(place) else { return };
        let (from, at_ms) = (agent.status, now.wall_of(at));
        if to != from {
            agent.since = now.mono;
            agent.since_ms = at_ms;
        }
        agent.status = to;
        agent.reason = Some(reason);
        agent.escalations = 0;
        agent.slot.set_status(to);
        let mut flapping = None;
        if to != AgentStatus::Pending {
            if to != agent.settled && agent.settled != AgentStatus::NeverConnected {
                flapping = agent.moved(at_ms);
            }
            agent.settled = to;
        }
        match to {
            AgentStatus::Active => {
                agent.missed = 0;
                agent.floor = at;
                if from != AgentStatus::Active {
                    agent.schedule.begin(now.mono, self.settings.policy.interval);
                }
            }
            AgentStatus::Disconnected => agent.schedule.rhythm.interrupt(),
            AgentStatus::Pending => agent.missed = 0,
            AgentStatus::NeverConnected => {}
        }
        agent.level = level(&Change {
            from,
            to,
            reason,
            critical_agent: agent.inventory.is_critical(),
            mass,
            escalations: 0,
        });
        if agent.level >= HIGH_ALERT_THRESHOLD {
            // Also when it does not flap yet: the first alert of a flapping agent is the one before it did.
            let alert = agent.may_alert(at_ms);
            flapping = flapping.map(|flapping| Flapping { alert, ..flapping });
        }
        let change = StatusChange {
            from,
            to,
            reason,
            missed: agent.missed,
            level: agent.level,
            flapping,
            at_ms,
        };
        out.events.push(events::status_change(agent, &change));
        tracing::info!(agent_id = %agent.slot.id, from = %from, to = %to, reason = %reason, "agent's status changed");
        self.counters.status_changes_total.increment();
        self.active += usize::from(to == AgentStatus::Active);
        self.active -= usize::from(from == AgentStatus::Active);
        if !std::mem::replace(&mut agent.changed, true) {
            self.changed.push(place);
        }
        self.arm(place);
    }

    /// The agent of a slot, if the slot is still the one in force.
    fn find(&self, slot: &Arc<AgentSlot>) -> Option<u32> {
        let place = self.table.place(slot.id.as_str());
        let found = place.filter(|place| {
            self.table
                .get(*place)
                .is_some_and(|agent| Arc::ptr_eq(&agent.slot, slot))
        });
        if found.is_none() {
            self.counters.news_of_strangers_total.increment();
        }
        found
    }

    fn met(&mut self, place: u32, peer: SocketAddr, protocol: Protocol) {
        if let Some(agent) = self.table.get_mut(place) {
            agent.peer = Some(peer);
            agent.protocol = Some(protocol);
        }
    }

    fn status(&self, place: u32) -> AgentStatus {
        self.table
            .get(place)
            .map_or(AgentStatus::NeverConnected, |agent| agent.status)
    }

    fn is_silent(&self, agent: &Agent, now: Millis) -> bool {
        now >= self.deadline(agent)
    }

    fn deadline(&self, agent: &Agent) -> Millis {
        (agent.heard() + agent.limits(&self.settings.policy).timeout).max(self.pulse.patient_until())
    }

    fn is_stuck(&self, agent: &Agent, now: Millis) -> bool {
        now >= (agent.since + self.patience()).max(self.pulse.patient_until())
    }

    /// How long an agent may stay pending: the time-out as configured, whatever the agent's own pace.
    fn patience(&self) -> Duration {
        self.settings.policy.limits(None).timeout
    }

    fn mark_dirty(&mut self, place: u32) {
        if let Some(agent) = self.table.get_mut(place).filter(|agent| !agent.dirty) {
            agent.dirty = true;
            self.dirty.push(place);
        }
    }

    /// Arms the wheel for the next thing that can happen to the agent by the passing of time.
    fn arm(&mut self, place: u32) {
        match self.table.get(place).and_then(|agent| self.next_due(agent)) {
            Some(due) => self.wheel.arm(place, tick_at(due)),
            None => self.wheel.cancel(place),
        }
    }

    /// The same when only something earlier than what it is armed for would matter: what is later is found out when
    /// the entry comes up.
    fn arm_if_sooner(&mut self, place: u32) {
        let due = self
            .table
            .get(place)
            .and_then(|agent| self.next_due(agent))
            .map(tick_at);
        if let Some(due) = due.filter(|due| self.wheel.armed_for(place).is_none_or(|armed| *due < armed)) {
            self.wheel.arm(place, due);
        }
    }

    fn next_due(&self, agent: &Agent) -> Option<Millis> {
        match agent.status {
            AgentStatus::Active => {
                let deadline = self.deadline(agent);
                let send = self.settings.policy.sending.map(|_| agent.schedule.next_send());
                Some(send.map_or(deadline, |send| send.min(deadline)))
            }
            AgentStatus::Pending => {
                // Once it was said, there is nothing to say until it falls silent.
                let since = if agent.reason == Some(Reason::StuckPending) {
                    agent.heard()
                } else {
                    agent.since
                };
                Some((since + self.patience()).max(self.pulse.patient_until()))
            }
            AgentStatus::Disconnected => {
                let after = ESCALATE_AFTER
                    .get(usize::from(agent.escalations))
                    .filter(|_| self.settings.escalation)?;
                Some(agent.since + *after)
            }
            AgentStatus::NeverConnected => agent.reason.is_none().then(|| agent.since + NEVER_CONNECTED_AFTER),
        }
    }
}

/// Keepalives of agents that are there when we start are spread over the interval.
fn first_send(place: u32, interval: Duration) -> Duration {
    let spread = place.wrapping_mul(0x9e37_79b9);
    interval.mul_f64(f64::from(spread) / f64::from(u32::MAX))
}

/// The tick that a moment lies in.
fn tick_of(at: Millis) -> u64 {
    at.0 / TICK.as_millis() as u64
}

/// The first tick that is not before a moment.
fn tick_at(at: Millis) -> u64 {
    at.0.div_ceil(TICK.as_millis() as u64)
}

fn seconds(ms: u64) -> Option<u64> {
    (ms > 0).then_some(ms / 1000)
}

#[cfg(test)]
mod tests;
