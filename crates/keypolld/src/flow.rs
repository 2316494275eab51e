//! Which look-ups are made, and when: the decisions between remoted's requests and the operator's database.
//!
//! A request for what is under way is merged with it; one that was answered a moment ago is dropped; the rest waits
//! until one of the workers is free. No clock, no socket: time is a parameter.
//!
//! Requests carry no address of who caused them, so fairness between sources is remoted's part. Here it is between
//! texts: each has its own rate, and a request that had to be turned away for want of room waits in a line of its own
//! when it comes again. Agents do come again; a stranger who makes up ids does not, so however many he makes up, every
//! second look-up is for somebody who was here before.
//!
//! **Invariant:** of equal requests at most one is under way. **Invariant:** at most `threads` look-ups run, at most
//! [`MAX_REGISTERING`] registrations, and at most twice `queue` requests wait.

mod breaker;
mod memory;

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use muster_proto::bucket::{KeyedBuckets, Rate, TokenBucket};

pub use self::breaker::{BreakerRule, Health, Turn};
use self::{breaker::Breaker, memory::Memory};
use crate::lookup::Lookup;

/// Registrations that may be under way with authd. It commits those that wait together and tells remoted before it
/// answers, which takes a tenth of a second among 20,000 agents: thousands a second need hundreds of them. authd serves
/// 1024 connections at a time, and others need some.
pub const MAX_REGISTERING: usize = 768;
/// Look-ups whose answer is remembered.
const MAX_REMEMBERED: usize = 100_000;
/// Requests that were turned away and may come again.
const MAX_TURNED_AWAY: usize = 65_536;
/// How long a turned away request may take to come again: longer than any agent waits.
const COMES_AGAIN_WITHIN: Duration = Duration::from_secs(120);
/// Texts that have a rate of their own.
const MAX_BUCKETS: usize = 65_536;
/// How long a failure is remembered that may be over soon.
const BRIEFLY: Duration = Duration::from_secs(2);
/// How long remoted may take to read a new key.
const SETTLE: Duration = Duration::from_secs(2);

/// The settings, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Look-ups at a time.
    pub threads: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Look-ups of one text.
    pub per_text: Rate,
    /// Look-ups in all.
    pub total: Rate,
    /// How long "no such agent" is remembered.
    pub negative_cache: Duration,
    /// How long a request may take in all.
    pub deadline: Duration,
    /// When a source counts as down.
    pub breaker: BreakerRule,
    /// Which sources there are.
    pub sources: Route,
}

/// Which sources are asked, the socket first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The socket.
    pub socket: bool,
    /// The command.
    pub command: bool,
}

/// What becomes of a request at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It waits for its turn.
    Queued,
    /// The same is under way.
    Merged,
    /// It was answered a moment ago.
    Remembered,
    /// Too many of this text, or in all.
    TooMany,
    /// Too many wait.
    Full,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look this up, and report with [`Flow::looked`].
    Run(Job),
    /// Its time was over before its turn came.
    Expired(Lookup),
    /// Every source is down.
    NoSource(Lookup),
}

/// A look-up whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// What.
    pub lookup: Lookup,
    /// Which sources may be asked.
    pub route: Route,
    /// When nobody wants the answer any more.
    pub deadline: Instant,
}

/// What a look-up has found out about the sources; `None` = not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The socket.
    pub socket: Option<Health>,
    /// The command.
    pub command: Option<Health>,
}

/// What a report has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// The socket.
    pub socket: Turn,
    /// The command.
    pub command: Turn,
}

/// How long the end of a request is remembered: the same is not looked up meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remember {
    /// Not at all.
    No,
    /// As long as remoted may need to know the new key.
    UntilSettled,
    /// For some seconds, if there is a negative cache at all.
    Briefly,
    /// As long as the negative cache says.
    Fully,
}

/// How many are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Requests that wait for the first time.
    pub waiting: usize,
    /// Requests that wait after having been turned away.
    pub returning: usize,
    /// Look-ups that run.
    pub looking: usize,
    /// Registrations that run.
    pub registering: usize,
    /// Answers that are remembered.
    pub remembered: usize,
    /// Sources that are down.
    pub down: Route,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Looking(Route),
    Registering,
}

#[derive(Debug)]
struct Waiting {
    lookup: Lookup,
    deadline: Instant,
}

/// Two lines, served in turn.
#[derive(Debug, Default)]
struct Lines {
    first_time: VecDeque<Waiting>,
    returning: VecDeque<Waiting>,
    returning_is_next: bool,
}

impl Lines {
    fn next(&mut self) -> Option<Waiting> {
        let (next, other) = if self.returning_is_next {
            (&mut self.returning, &mut self.first_time)
        } else {
            (&mut self.first_time, &mut self.returning)
        };
        self.returning_is_next = !self.returning_is_next;
        next.pop_front().or_else(|| other.pop_front())
    }
}

/// The state of all requests.
#[derive(Debug)]
pub struct Flow {
    limits: Limits,
    under_way: HashMap<Lookup, Stage>,
    lines: Lines,
    looking: usize,
    registering: usize,
    answered: Memory,
    turned_away: Memory,
    per_text: KeyedBuckets<Lookup>,
    total: TokenBucket,
    socket: Breaker,
    command: Breaker,
}

impl Flow {
    /// Nothing is under way.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            under_way: HashMap::new(),
            lines: Lines::default(),
            looking: 0,
            registering: 0,
            answered: Memory::new(MAX_REMEMBERED),
            turned_away: Memory::new(MAX_TURNED_AWAY),
            per_text: KeyedBuckets::new(limits.per_text, MAX_BUCKETS, now),
            total: TokenBucket::new(limits.total, now),
            socket: Breaker::default(),
            command: Breaker::default(),
        }
    }

    /// Takes over new settings. What is under way goes on; what was remembered of the sources is forgotten.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.limits = limits;
        self.per_text.set_rate(limits.per_text);
        self.total = TokenBucket::new(limits.total, now);
        self.answered.forget_all();
        self.socket = Breaker::default();
        self.command = Breaker::default();
    }

    /// Somebody wants a key.
    pub fn ask(&mut self, lookup: Lookup, now: Instant) -> Admission {
        if self.under_way.contains_key(&lookup) {
            return Admission::Merged;
        }
        if self.answered.knows(&lookup, now) {
            return Admission::Remembered;
        }
        let returns = self.turned_away.take(&lookup, now);
        let (line, kept_for) = if returns {
            (&mut self.lines.returning, &mut self.turned_away)
        } else {
            (&mut self.lines.first_time, &mut self.turned_away)
        };
        let refusal = if line.len() >= self.limits.queue {
            Some(Admission::Full)
        } else if !self.per_text.take(lookup.clone(), now) || !self.total.take(self.limits.total, now) {
            Some(Admission::TooMany)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            kept_for.remember(lookup, COMES_AGAIN_WITHIN, now);
            return refusal;
        }
        line.push_back(Waiting {
            lookup: lookup.clone(),
            deadline: now + self.limits.deadline,
        });
        self.under_way.insert(lookup, Stage::Waiting);
        Admission::Queued
    }

    /// What can be done now; to be called until there is nothing.
    pub fn next(&mut self, now: Instant) -> Option<Step> {
        if self.looking >= self.limits.threads || self.registering >= MAX_REGISTERING {
            return None;
        }
        let Waiting { lookup, deadline } = self.lines.next()?;
        if now >= deadline {
            self.under_way.remove(&lookup);
            return Some(Step::Expired(lookup));
        }
        let route = Route {
            socket: self.limits.sources.socket && self.socket.admit(now),
            command: self.limits.sources.command && self.command.admit(now),
        };
        if route == Route::default() {
            self.under_way.remove(&lookup);
            return Some(Step::NoSource(lookup));
        }
        self.looking += 1;
        self.under_way.insert(lookup.clone(), Stage::Looking(route));
        Some(Step::Run(Job {
            lookup,
            route,
            deadline,
        }))
    }

    /// A look-up has ended. Its worker is free; the request goes on with its registration, until
    /// [`settled`](Self::settled).
    pub fn looked(&mut self, lookup: &Lookup, report: Report, now: Instant) -> Turns {
        let Some(Stage::Looking(route)) = self.under_way.get(lookup).copied() else {
            return Turns {
                socket: Turn::None,
                command: Turn::None,
            };
        };
        self.looking -= 1;
        self.registering += 1;
        self.under_way.insert(lookup.clone(), Stage::Registering);
        let rule = self.limits.breaker;
        let tell = |breaker: &mut Breaker, asked: bool, health| match asked {
            true => breaker.report(health, rule, now),
            false => Turn::None,
        };
        Turns {
            socket: tell(&mut self.socket, route.socket, report.socket),
            command: tell(&mut self.command, route.command, report.command),
        }
    }

    /// A request that was looked up has come to its end.
    pub fn settled(&mut self, lookup: &Lookup, remember: Remember, now: Instant) {
        if self.under_way.get(lookup) != Some(&Stage::Registering) {
            return;
        }
        self.under_way.remove(lookup);
        self.registering -= 1;
        let negative = self.limits.negative_cache;
        let time = match remember {
            Remember::No => Duration::ZERO,
            Remember::UntilSettled => SETTLE,
            Remember::Briefly => negative.min(BRIEFLY),
            Remember::Fully => negative,
        };
        self.answered.remember(lookup.clone(), time, now);
    }

    /// How many are where.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            waiting: self.lines.first_time.len(),
            returning: self.lines.returning.len(),
            looking: self.looking,
            registering: self.registering,
            remembered: self.answered.len(),
            down: Route {
                socket: !self.socket.is_closed(),
                command: !self.command.is_closed(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
