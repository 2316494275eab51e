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
    habits::{EventLoad, Habits, Identity, Rhythm, Sizes},
    inbox::SharedFile,
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
    identity: Rc<Identity>,
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
    flood: Option<Flood>,
    /// When the only keepalive that is not acknowledged was sent.
    asked: Option<Instant>,
    greeted: Option<Instant>,
    events_made: u64,
    started_once: bool,
    unacked_keepalives: u32,
    last_keepalive_unix: Option<i64>,
    merged_sum: Option<String>,
    incoming: Option<Incoming>,
    taken: Option<SharedFile>,
    answers: Vec<Answer>,
    manager_counter: Option<Counter>,
}

impl Agent {
    /// An agent that has a key and no connection yet.
    pub fn new(identity: Rc<Identity>, kind: Kind, habits: Rc<Habits>, dice: Dice) -> Self {
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
            flood: None,
            asked: None,
            greeted: None,
            events_made: 0,
            started_once: false,
            unacked_keepalives: 0,
            last_keepalive_unix: None,
            merged_sum: None,
            incoming: None,
            taken: None,
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
    pub fn connected(&mut self, now: Now, out: &mut Outbox) {
        self.phase = Phase::Greeting;
        self.say_hello(now, out);
    }

    /// The connection is gone.
    pub fn disconnected(&mut self, tally: &mut Tally) {
        self.phase = Phase::Away;
        self.hello_until = None;
        self.next_keepalive = None;
        self.next_event = None;
        self.unacked_keepalives = 0;
        self.asked = None;
        self.answers.clear();
        if self.incoming.take().is_some() {
            tally.pushes_broken += 1;
        }
    }

    /// It is being stopped: says goodbye if its family does.
    pub fn goodbye(&mut self, out: &mut Outbox) {
        if self.phase == Phase::Connected && !self.kind.family.is_ossec() {
            out.push(What::Shutdown, b"#!-agent shutdown ");
        }
    }

    /// Sends these events instead of its own until then.
    pub fn flood(&mut self, now: Instant, load: EventLoad, until: Instant) {
        self.flood = Some(Flood { load, until });
        if self.phase == Phase::Connected {
            self.next_event = Some(now);
        }
    }

    /// Nothing is read for it from now on: it misses nothing and gives nobody up.
    pub fn deafen(&mut self) {
        self.heard = None;
        self.asked = None;
    }

    /// The shared file that has come whole, if it keeps them.
    pub fn take_file(&mut self) -> Option<SharedFile> {
        self.taken.take()
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
                    self.say_hello(now, out);
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
                self.keepalive_if_due(now, out);
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

    fn say_hello(&mut self, now: Now, out: &mut Outbox) {
        self.greeted = Some(now.at);
        if self.kind.family.is_ossec() {
            out.push(What::Startup, b"#!-agent startup ");
            self.hello_until = now.at.checked_add(self.spread(self.habits.hello_repeat));
        } else {
            let text = format!(r#"#!-agent startup {{"version":"v{}"}}"#, self.identity.version);
            out.push(What::Startup, text.as_bytes());
            self.hello_until = now.at.checked_add(self.habits.ack_wait);
        }
    }

    /// The startup was acknowledged.
    fn settle(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        tally.startups_acked += 1;
        if let Some(greeted) = self.greeted.take() {
            tally.startup_wait.note(now.at.saturating_duration_since(greeted));
        }
        self.phase = Phase::Connected;
        self.hello_until = None;
        if !self.started_once {
            self.started_once = true;
            let Identity { name, address, .. } = &*self.identity;
            let module = if self.kind.family.is_ossec() {
                "ossec"
            } else {
                "wazuh-agent"
            };
            let text = format!("1:{module}:ossec: Agent started: '{name}->{address}'.");
            tally.events_made += 1;
            out.push(What::Event, text.as_bytes());
        }
        self.send_keepalive(now, out);
        // The rhythm begins anywhere within one period, so that a fleet started at once does not beat as one.
        let phase = self.part_of(self.habits.notify_time);
        self.next_keepalive = now.at.checked_add(phase);
        let habits = Rc::clone(&self.habits);
        if self.flood.is_some() {
            self.next_event = Some(now.at);
        } else if let Some(load) = &habits.events {
            let phase = self.part_of(load.every);
            self.next_event = now.at.checked_add(phase);
        }
    }

    fn keepalive_if_due(&mut self, now: Now, out: &mut Outbox) {
        if self.next_keepalive.is_some_and(|at| now.at >= at) {
            self.send_keepalive(now, out);
            self.next_keepalive = now.at.checked_add(self.habits.notify_time);
        }
    }

    fn send_keepalive(&mut self, now: Now, out: &mut Outbox) {
        self.asked = (self.unacked_keepalives == 0).then_some(now.at);
        self.unacked_keepalives = self.unacked_keepalives.saturating_add(1);
        self.last_keepalive_unix = Some(now.unix);
        let text = habits::keepalive_text(
            &self.identity,
            self.kind.family,
            self.merged_sum.as_deref().unwrap_or("x"),
            &mut self.dice,
        );
        out.push(What::Keepalive, text.as_bytes());
    }

    fn events_if_due(&mut self, now: Now, room: Room, out: &mut Outbox, tally: &mut Tally) {
        let habits = Rc::clone(&self.habits);
        if self.flood.as_ref().is_some_and(|flood| now.at >= flood.until) {
            self.flood = None;
            let ordinary = habits.events.as_ref().map(|load| load.gap(&mut self.dice));
            self.next_event = ordinary.and_then(|gap| now.at.checked_add(gap));
        }
        let flood = self.flood.take();
        let load = flood.as_ref().map(|flood| &flood.load).or(habits.events.as_ref());
        let mut made = 0;
        while let (Some(load), Some(at)) = (load, self.next_event.filter(|at| now.at >= *at)) {
            if room == Room::None || made >= MAX_EVENTS_AT_ONCE {
                // Called again when the connection has drained; the schedule stands, so nothing is skipped.
                break;
            }
            self.events_made += 1;
            tally.events_made += 1;
            made += 1;
            let text = load.text(&self.identity.name, self.events_made, &mut self.dice);
            out.push(What::Event, &text);
            self.next_event = at.checked_add(load.gap(&mut self.dice));
        }
        self.flood = flood;
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

/// Events beyond the ordinary ones.
struct Flood {
    load: EventLoad,
    until: Instant,
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
