//! One simulated agent as decisions only: payloads and time come in, payloads go out.
//!
//! It does what agents of its family are seen to do: a startup until it is acknowledged, then keepalives and events;
//! it answers requests, takes shared files, reconnects when told to or when the manager has been silent for too long.
//! Sealing, framing and sockets belong to the session around it.
//!
//! **Invariant:** between a startup and its ack the agent sends nothing else.

mod habits;
mod inbox;
mod outbox;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use muster_proto::transport::counter::Counter;

use self::inbox::{Answer, Incoming};
pub use self::{
    habits::{EventLoad, Habits, Identity},
    outbox::{Outbox, What},
};
use crate::{account::Tally, dice::Dice, mix::Kind};

/// The moment at which something happens.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For time-outs.
    pub at: Instant,
    /// Unix seconds, for texts.
    pub unix: i64,
}

/// Where the agent stands with the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No connection.
    Away,
    /// The startup is out; nothing else may be sent.
    Greeting,
    /// The startup was acknowledged.
    Connected,
}

/// What the edge should do when the agent wants another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnect {
    /// At once.
    Now,
    /// After the retry interval.
    Later,
}

/// One agent.
pub struct Agent {
    identity: Identity,
    kind: Kind,
    habits: Rc<Habits>,
    dice: Dice,
    phase: Phase,
    /// When the startup went out, or when the manager was last heard.
    heard: Option<Instant>,
    /// When the startup is given up or repeated.
    hello_until: Option<Instant>,
    next_keepalive: Option<Instant>,
    next_event: Option<Instant>,
    events_made: u64,
    started_once: bool,
    unacked_keepalives: u32,
    last_keepalive_unix: Option<i64>,
    merged_sum: Option<String>,
    incoming: Option<Incoming>,
    answers: Vec<Answer>,
    manager_counter: Option<Counter>,
}

impl Agent {
    /// An agent that has a key and no connection yet.
    pub fn new(identity: Identity, kind: Kind, habits: Rc<Habits>, dice: Dice) -> Self {
        Self {
            identity,
            kind,
            habits,
            dice,
            phase: Phase::Away,
            heard: None,
            hello_until: None,
            next_keepalive: None,
            next_event: None,
            events_made: 0,
            started_once: false,
            unacked_keepalives: 0,
            last_keepalive_unix: None,
            merged_sum: None,
            incoming: None,
            answers: Vec::new(),
            manager_counter: None,
        }
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether its last startup was acknowledged and its connection is still there.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// How many events it has made.
    pub fn events_made(&self) -> u64 {
        self.events_made
    }

    /// A connection is there: says hello.
    pub fn connected(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        self.phase = Phase::Greeting;
        self.say_hello(now, out, tally);
    }

    /// The connection is gone.
    pub fn disconnected(&mut self, tally: &mut Tally) {
        self.phase = Phase::Away;
        self.hello_until = None;
        self.next_keepalive = None;
        self.next_event = None;
        self.unacked_keepalives = 0;
        self.answers.clear();
        if self.incoming.take().is_some() {
            tally.pushes_broken += 1;
        }
    }

    /// It is being stopped: says goodbye if its family does.
    pub fn goodbye(&mut self, out: &mut Outbox, tally: &mut Tally) {
        if self.phase == Phase::Connected && !self.kind.family.is_ossec() {
            tally.shutdowns_sent += 1;
            out.push(What::Control, b"#!-agent shutdown ");
        }
    }

    /// When [`due`](Self::due) should be called next.
    pub fn next_due(&self) -> Option<Instant> {
        let waiting = match self.phase {
            Phase::Away => return None,
            Phase::Greeting => [self.hello_until, None, None],
            Phase::Connected => [self.next_keepalive, self.next_event, self.gives_up_at()],
        };
        waiting
            .into_iter()
            .chain(self.answers.iter().map(Answer::repeat_at))
            .flatten()
            .min()
    }

    /// Does what is due. No events are made while `room` for them is not there; they are made up for later.
    ///
    /// Returns what to do with the connection when the agent gives it up.
    pub fn due(&mut self, now: Now, room: Room, out: &mut Outbox, tally: &mut Tally) -> Option<Reconnect> {
        match self.phase {
            Phase::Away => None,
            Phase::Greeting => {
                if self.hello_until.is_none_or(|until| now.at < until) {
                    return None;
                }
                tally.startups_unanswered += 1;
                if self.kind.family.is_ossec() {
                    self.say_hello(now, out, tally);
                    None
                } else {
                    Some(Reconnect::Later)
                }
            }
            Phase::Connected => {
                if self.gives_up_at().is_some_and(|at| now.at >= at) {
                    tally.manager_lost += 1;
                    return Some(Reconnect::Now);
                }
                self.keepalive_if_due(now, out, tally);
                self.events_if_due(now, room, out, tally);
                self.repeat_answers(now, out, tally);
                None
            }
        }
    }

    fn gives_up_at(&self) -> Option<Instant> {
        self.heard
            .and_then(|heard| heard.checked_add(self.habits.reconnect_after))
    }

    fn say_hello(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        tally.startups_sent += 1;
        if self.kind.family.is_ossec() {
            out.push(What::Control, b"#!-agent startup ");
            self.hello_until = now.at.checked_add(self.spread(self.habits.hello_repeat));
        } else {
            out.push(What::Control, br#"#!-agent startup {"version":"v4.14.7"}"#);
            self.hello_until = now.at.checked_add(self.habits.ack_wait);
        }
    }

    /// The startup was acknowledged.
    fn settle(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        tally.startups_acked += 1;
        self.phase = Phase::Connected;
        self.hello_until = None;
        if !self.started_once {
            self.started_once = true;
            let Identity { name, address, .. } = &self.identity;
            let module = if self.kind.family.is_ossec() {
                "ossec"
            } else {
                "wazuh-agent"
            };
            let text = format!("1:{module}:ossec: Agent started: '{name}->{address}'.");
            tally.events_made += 1;
            out.push(What::Event, text.as_bytes());
        }
        self.send_keepalive(now, out, tally);
        // The rhythm begins anywhere within one period, so that a fleet started at once does not beat as one.
        let phase = self.part_of(self.habits.notify_time);
        self.next_keepalive = now.at.checked_add(phase);
        if let Some(load) = self.habits.events {
            let phase = self.part_of(load.every);
            self.next_event = now.at.checked_add(phase);
        }
    }

    fn keepalive_if_due(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        if self.next_keepalive.is_some_and(|at| now.at >= at) {
            self.send_keepalive(now, out, tally);
            self.next_keepalive = now.at.checked_add(self.habits.notify_time);
        }
    }

    fn send_keepalive(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        tally.keepalives_sent += 1;
        self.unacked_keepalives = self.unacked_keepalives.saturating_add(1);
        self.last_keepalive_unix = Some(now.unix);
        let text = habits::keepalive_text(
            &self.identity,
            self.kind.family,
            self.merged_sum.as_deref().unwrap_or("x"),
            &mut self.dice,
        );
        out.push(What::Control, text.as_bytes());
    }

    fn events_if_due(&mut self, now: Now, room: Room, out: &mut Outbox, tally: &mut Tally) {
        let Some(load) = self.habits.events else { return };
        let mut made = 0;
        while let Some(at) = self.next_event.filter(|at| now.at >= *at) {
            if room == Room::None || made >= MAX_EVENTS_AT_ONCE {
                // Called again when the connection has drained; the schedule stands, so nothing is skipped.
                break;
            }
            self.events_made += 1;
            tally.events_made += 1;
            made += 1;
            let text = load.text(&self.identity.name, self.events_made, &mut self.dice);
            out.push(What::Event, &text);
            self.next_event = at.checked_add(load.every);
        }
    }

    fn part_of(&mut self, whole: Duration) -> Duration {
        let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.dice.below(nanos))
    }

    /// Between one and two times as long.
    fn spread(&mut self, wait: Duration) -> Duration {
        wait.saturating_add(self.part_of(wait))
    }
}

/// How many events are made in one go, so that one agent behind its schedule does not hold up the others.
const MAX_EVENTS_AT_ONCE: usize = 64;

/// Whether the connection takes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It does.
    Some,
    /// It has not taken the last bytes yet.
    None,
}

#[cfg(test)]
mod tests;
