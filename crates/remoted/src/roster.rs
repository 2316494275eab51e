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
mod change;
pub mod conflict;
pub mod guard;
mod heard;
pub mod level;
pub mod maintenance;
mod news;
mod parting;
pub mod pulse;
mod restore;
mod table;
mod taken;
mod time;
mod windows;

use std::{borrow::Cow, sync::Arc, time::Duration};

use muster_config::KeepaliveEvents;
use muster_proto::{
    agent::AgentId,
    event::{Event, body::KeepaliveType},
    ipc::control::{AgentInfo, Liveness},
};

use self::{
    conflict::Conflicts,
    guard::Guard,
    maintenance::Maintenance,
    pulse::Pulse,
    restore::Restored,
    table::Table,
    time::{first_send, tick_of},
};
use crate::{
    events,
    monitor::{self, Monitor, MonitorSettings},
    requests::registry::RequestIds,
    schedule::Policy,
    slot::{AgentSlot, Millis, News, SendError},
    store::Row,
    wheel::Wheel,
};

/// Length of the wheel's ticks: how late a time-out may be noticed.
pub const TICK: Duration = Duration::from_millis(100);
/// Agents that are looked at in one call, so that news and the store get their turn when a whole fleet is due at once.
pub const MAX_DUE_AT_ONCE: usize = 10_000;

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
    /// Whether keepalives of agents are events too.
    pub keepalive_received: bool,
    /// After how long an absence is said again, rising.
    pub escalation: Vec<Duration>,
    /// What is said to the analysis daemon in monitord's place.
    pub monitor: MonitorSettings,
}

/// What is to be done. The caller empties it.
#[derive(Default)]
pub struct Actions {
    /// Messages to agents; the caller reports what became of each to [`Roster::on_sent`]. The wheel does not have the agent
    /// until then.
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
    pub payload: Cow<'static, [u8]>,
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

impl Notice {
    /// What monitord would say of an agent: it was disconnected, it was removed.
    fn of_monitor(slot: &Arc<AgentSlot>, what: &str) -> Self {
        Self {
            slot: Arc::clone(slot),
            location: monitor::PROGRAM,
            text: format!("ossec: Agent {what}: '{}-{}'.", slot.name, slot.address),
        }
    }
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
        /// Of these, closed by us, since something came that may not.
        connections_refused_total,
        /// Of these, ended by the network: reset, or half-open.
        connections_failed_total,
        /// Times that a key was used from two places.
        key_conflicts_total,
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
        /// Agents that were let go, since another manager has them.
        agents_let_go_total,
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
    monitor: Monitor,
    maintenance: Maintenance,
    /// When it is next looked for agents that a window has silenced and no longer covers.
    silenced_at: Millis,
    /// Events that nobody has asked for yet.
    said: Vec<Event>,
    conflicts: Conflicts,
    active: usize,
    restored: Restored,
    /// Places whose status the store does not have yet: they go with the events that tell of it.
    changed: Vec<u32>,
    /// Places whose rows the store does not have yet in any other respect; each is in it once.
    dirty: Vec<u32>,
    /// Ids whose rows the store must drop.
    gone: Vec<AgentId>,
    request_ids: RequestIds,
    round: Round,
    counters: RosterCounters,
}

impl Roster {
    /// The roster as an earlier process left it; agents are in it once [`News::KeysReloaded`] has named them.
    /// `request_ids` is where the numbers of our requests come from.
    pub fn new(settings: RosterSettings, now: Times, rows: Vec<Row>, request_ids: impl Into<RequestIds>) -> Self {
        let base = settings.policy.limits(None).timeout.max(settings.policy.timeout);
        Self {
            wheel: Wheel::new(tick_of(now.mono)),
            pulse: Pulse::start(now.mono, base),
            guard: Guard::new(settings.policy.interval),
            monitor: Monitor::default(),
            maintenance: Maintenance::default(),
            silenced_at: now.mono,
            said: Vec::new(),
            conflicts: Conflicts::default(),
            settings,
            table: Table::default(),
            active: 0,
            restored: Restored::new(rows),
            changed: Vec::new(),
            dirty: Vec::new(),
            gone: Vec::new(),
            request_ids: request_ids.into(),
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

    /// Whether a status has changed that the store does not have.
    pub fn has_unstored_changes(&self) -> bool {
        !self.changed.is_empty()
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
        if !self.said.is_empty() {
            return Some(Millis(1));
        }
        let wheel = self
            .wheel
            .next_tick()
            .map(|tick| Millis(tick.saturating_mul(TICK.as_millis() as u64)));
        [wheel, self.guard.ends(), self.monitor.next()]
            .into_iter()
            .flatten()
            .min()
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
                said,
            } => {
                self.counters.keepalives_total.increment();
                let Some(place) = self.find(&slot) else { return };
                self.met(place, peer, protocol);
                self.on_keepalive(place, now, at, &said, out);
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
            News::ConnectionLost { slot, at, peer, ending } => {
                let Some(place) = self.find(&slot) else { return };
                tracing::info!(agent_id = %slot.id, %peer, reason = ending.as_str(), "agent's connection ended");
                self.on_connection_lost(place, now, at, ending, out);
            }
            News::KeyConflict { slot, at, conflict } => {
                let Some(place) = self.find(&slot) else { return };
                self.on_key_conflict(place, now, at, &conflict, out);
            }
            News::Overload { at, overload } => self.on_overload(now, at, &overload, out),
            News::Event(event) => out.events.push(*event),
            News::KeysTaken(slots) => self.on_keys_taken(now, &slots, out),
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
            News::Shared { slot, shared } => {
                let Some(place) = self.find(&slot) else { return };
                if self.table.get_mut(place).is_some_and(|agent| agent.set_shared(shared)) {
                    self.mark_dirty(place);
                }
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
        out.events.append(&mut self.said);
        self.end_maintenance(now, out);
        if self.round.next == self.round.due.len() {
            self.begin_round(now, out);
        }
        let mut round = std::mem::take(&mut self.round);
        for place in round.due.iter().skip(round.next).take(MAX_DUE_AT_ONCE) {
            self.review(*place, now, round.mass, out);
        }
        round.next = round.due.len().min(round.next + MAX_DUE_AT_ONCE);
        self.round = round;
        self.tell_absences(now, out);
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
}

fn seconds(ms: u64) -> Option<u64> {
    (ms > 0).then_some(ms / 1000)
}

#[cfg(test)]
mod tests;
