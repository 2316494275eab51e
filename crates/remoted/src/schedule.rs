//! When an agent is sent our keepalive, and after how much silence it counts as gone. Rules only: no clock, no socket.
//!
//! * *Heard* is the time of the last valid message from the agent, never of one that we sent.
//! * The agent is gone when the time-out has passed since then, or when it has missed as many whole intervals as are
//!   allowed, whichever comes first ([`Policy::limits`]).
//! * An agent whose own keepalives are further apart than our interval is given intervals of one and a half times its
//!   own, so that one that speaks every ten minutes does not go and come all day. One that answers our requests is
//!   heard at our own pace and needs no such patience.
//! * Without a `<manager_keepalive>` block nothing is sent, and `agents_disconnection_time` is the time-out; only OSSEC
//!   agents, which speak so seldom, are given more if they need it.

use std::time::Duration;

use muster_proto::transport::keepalive::Family;

use crate::slot::Millis;

/// The longest time-out that an agent's own period can earn it: three of OSSEC's periods of 600 s and half a minute,
/// after which OSSEC's own tools give an agent up.
pub const LONGEST_EARNED_TIMEOUT: Duration = Duration::from_secs(1830);
/// The period of a Wazuh agent that was not watched yet: the default of its `notify_time`.
const WAZUH_PERIOD: Duration = Duration::from_secs(20);
/// The same of an OSSEC agent.
pub const OSSEC_PERIOD: Duration = Duration::from_secs(600);
/// So many requests in a row unanswered by an agent that did speak meanwhile, and it is taken not to know requests.
const UNANSWERED_REQUESTS: u8 = 2;

/// What `<manager_keepalive>` and `agents_disconnection_time` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How often our keepalive is sent, and what an agent misses when it is silent.
    pub interval: Duration,
    /// Silence after which an agent is gone.
    pub timeout: Duration,
    /// Missed intervals after which an agent is gone.
    pub max_missed: u32,
    /// What is sent every interval; nothing without a `<manager_keepalive>` block.
    pub sending: Option<Sending>,
}

/// How our own keepalive is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// What it is.
    pub probe: ProbeChoice,
    /// How soon one that could not be sent is tried again.
    pub retry: Duration,
}

/// What `<probe>` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeChoice {
    /// Requests to agents that answer them, acknowledgements to the others.
    #[default]
    Auto,
    /// `#!-agent keepalive <name> <unix time>`, which agents log as unknown.
    Keepalive,
    /// `#!-agent ack `, which agents take without a word.
    Ack,
    /// `#!-req <n> agent getstate`; acknowledgements to agents that would not understand.
    Request,
}

/// What one agent is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The literal message.
    Keepalive,
    /// An acknowledgement that nobody asked for.
    Ack,
    /// A request, whose answer proves the round trip.
    Request,
}

/// What holds for one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The silence that counts as one missed interval.
    pub interval: Duration,
    /// The silence after which it is gone.
    pub timeout: Duration,
}

impl Policy {
    /// The stock behaviour: nothing is sent, silence for `agents_disconnection_time` means gone.
    pub fn stock(disconnection_time: Duration) -> Self {
        Self {
            interval: disconnection_time,
            timeout: disconnection_time,
            max_missed: 1,
            sending: None,
        }
    }

    /// Whether agents may be given up before they have missed as many intervals as count.
    pub fn is_impatient(&self) -> bool {
        self.timeout < self.interval.saturating_mul(self.max_missed)
    }

    /// What holds for an agent that sends its own keepalives at this period, as far as it matters.
    pub fn limits(&self, period: Option<Duration>) -> Limits {
        let ours = self.interval.max(Duration::from_millis(1));
        let base = self.timeout.min(ours.saturating_mul(self.max_missed.max(1)));
        let interval = period.map_or(ours, |period| ours.max(period.saturating_mul(3) / 2));
        if interval == ours {
            return Limits {
                interval,
                timeout: base,
            };
        }
        // Both ways of being gone stretch alike: with the default of three intervals, to three of the longer ones.
        let stretch = interval.as_secs_f64() / ours.as_secs_f64();
        let stretched = Duration::try_from_secs_f64(self.timeout.as_secs_f64() * stretch)
            .unwrap_or(Duration::MAX)
            .min(interval.saturating_mul(self.max_missed.max(1)));
        Limits {
            interval: interval.min(LONGEST_EARNED_TIMEOUT.max(ours)),
            timeout: stretched.min(LONGEST_EARNED_TIMEOUT).max(base),
        }
    }
}

impl Limits {
    /// Whole intervals missed after so much silence.
    pub fn missed(&self, silence: Duration) -> u32 {
        u32::try_from(silence.as_millis() / self.interval.as_millis().max(1)).unwrap_or(u32::MAX)
    }
}

/// The period of an agent's own keepalives, as seen: the median of the last few gaps, so that one lost datagram or one
/// hurried keepalive after a reconnection does not shift it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rhythm {
    last: Millis,
    gaps: [u32; Self::MEMORY],
    seen: u8,
}

impl Rhythm {
    /// Gaps that are remembered.
    const MEMORY: usize = 5;

    /// What was learned before a restart.
    pub fn remembered(period: Duration) -> Self {
        let mut rhythm = Self::default();
        rhythm.remember(period);
        rhythm
    }

    /// A keepalive came.
    pub fn keepalive(&mut self, at: Millis) {
        if !self.last.is_never() {
            self.remember(at.since(self.last));
        }
        self.last = at;
    }

    /// The agent was away or began anew: the time since its last keepalive says nothing.
    pub fn interrupt(&mut self) {
        self.last = Millis::NEVER;
    }

    /// The period; of an even number of gaps, the longer of the two in the middle.
    pub fn period(&self) -> Option<Duration> {
        let seen = usize::from(self.seen).min(Self::MEMORY);
        let mut gaps = self.gaps;
        let gaps = &mut gaps[..seen];
        gaps.sort_unstable();
        gaps.get(seen / 2).map(|&gap| Duration::from_millis(u64::from(gap)))
    }

    fn remember(&mut self, gap: Duration) {
        let gap = u32::try_from(gap.as_millis()).unwrap_or(u32::MAX);
        self.gaps[usize::from(self.seen) % Self::MEMORY] = gap;
        // Counts on to twice the memory and back to it, so that it says both how many there are and where the next goes.
        self.seen = if usize::from(self.seen) + 1 == 2 * Self::MEMORY {
            Self::MEMORY as u8
        } else {
            self.seen + 1
        };
    }
}

/// Whether an agent answers requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// It was not asked, or the answer may still come.
    #[default]
    Unknown,
    /// It did.
    Yes,
    /// It spoke, but did not answer.
    No,
}

/// The keepalive of one agent: when the next one is due, and what became of the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The agent's own keepalives.
    pub rhythm: Rhythm,
    /// Whether it answers requests.
    pub answers: Answers,
    next_send: Millis,
    sent: Millis,
    /// The request that was sent last, and whether it was answered.
    request: Option<Request>,
    unanswered: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    counter: u32,
    sent: Millis,
    answered: bool,
}

impl Schedule {
    /// The agent is there from now on: the first keepalive is due after `first`. One that answered requests before it
    /// was given up has to do so again: perhaps it was given up because it does not any more.
    pub fn begin(&mut self, now: Millis, first: Duration) {
        if self.answers == Answers::Yes {
            self.answers = Answers::Unknown;
        }
        self.next_send = now + first;
        self.request = None;
        self.unanswered = 0;
    }

    /// The agent introduced itself anew: it may be another version.
    pub fn forget_answers(&mut self) {
        self.answers = Answers::Unknown;
        self.unanswered = 0;
        self.request = None;
    }

    /// When the next keepalive is due.
    pub fn next_send(&self) -> Millis {
        self.next_send
    }

    /// Sent or not, the next one is due at `next`.
    pub fn postpone(&mut self, next: Millis) {
        self.next_send = next;
    }

    /// When one was last sent, or [`Millis::NEVER`].
    pub fn sent(&self) -> Millis {
        self.sent
    }

    /// What to send now. `heard` tells whether an agent that left a request unanswered was there to hear it.
    pub fn probe(&mut self, choice: ProbeChoice, family: Option<Family>, heard: Millis) -> Probe {
        if let Some(request) = self
            .request
            .take_if(|request| !request.answered && heard > request.sent)
        {
            tracing::trace!(
                counter = request.counter,
                "request unanswered by an agent that is there"
            );
            self.unanswered = self.unanswered.saturating_add(1);
            if self.unanswered >= UNANSWERED_REQUESTS {
                self.answers = Answers::No;
            }
        }
        match choice {
            ProbeChoice::Keepalive => Probe::Keepalive,
            ProbeChoice::Ack => Probe::Ack,
            // An OSSEC agent logs a warning for each request, and gives up a file that it is receiving.
            ProbeChoice::Request if family != Some(Family::Ossec) => Probe::Request,
            ProbeChoice::Auto if family == Some(Family::Wazuh) && self.answers != Answers::No => Probe::Request,
            ProbeChoice::Request | ProbeChoice::Auto => Probe::Ack,
        }
    }

    /// A keepalive went out; `request` is the counter of one that asks for an answer.
    pub fn sent_now(&mut self, now: Millis, request: Option<u32>) {
        self.sent = now;
        if let Some(counter) = request {
            self.request = Some(Request {
                counter,
                sent: now,
                answered: false,
            });
        }
    }

    /// An answer came. Says whether it is to the request that we sent last; over UDP it may come several times.
    pub fn answer(&mut self, counter: u32) -> bool {
        match &mut self.request {
            Some(request) if request.counter == counter => {
                request.answered = true;
                self.answers = Answers::Yes;
                self.unanswered = 0;
                true
            }
            _ => false,
        }
    }

    /// The agent's own period, as far as its limits depend on it: not when it answers at our pace, and not where nothing
    /// is sent, since a Wazuh agent is then given the time that the configuration names, as stock does. Of one that was
    /// not watched yet its family's default is assumed.
    pub fn period(&self, family: Option<Family>, sending: Option<Sending>) -> Option<Duration> {
        if family == Some(Family::Ossec) {
            return Some(self.rhythm.period().unwrap_or(OSSEC_PERIOD));
        }
        let asked = matches!(sending?.probe, ProbeChoice::Auto | ProbeChoice::Request);
        if asked && self.answers == Answers::Yes {
            return None;
        }
        Some(self.rhythm.period().unwrap_or(WAZUH_PERIOD))
    }
}

#[cfg(test)]
mod tests;
