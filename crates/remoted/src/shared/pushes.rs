//! All pushes: who waits for a file, who is getting one, and whose turn it is.
//!
//! * *waiting*: each agent once, so that no more can wait than there are agents.
//! * *begun*: at most [`Limits::begun`]. Over UDP most of a push is pauses, so that many more may have begun than are
//!   active.
//! * *active*: at most [`Limits::active`] have messages at a worker; they take turns.
//!
//! **Invariant:** a push is never begun anew because of a keepalive. It ends when the file has gone out, when the agent
//! came back on another route (which closed its file), or when it takes nothing for a minute.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use muster_proto::agent::AgentId;

use super::{
    library::MergedFile,
    push::{Push, Step, Stopped, Taken},
};
use crate::slot::{AgentSlot, Millis, Route, SendError};

/// How long an agent that got a file may go on reporting its old sum before it gets it again: a keepalive may have been
/// under way. Short, since stock waits for nothing.
const SETTLING: Duration = Duration::from_millis(500);
/// An agent that goes on reporting another sum may get the same file so often in a row, as fast as it asks.
const QUICK_ATTEMPTS: u32 = 3;
/// After that it has to wait so long, and twice as long each time: its disk is full, or it does not check files at all.
const PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_PATIENCE: Duration = Duration::from_secs(960);

/// How long an agent that got a file so often is not given it again.
fn settling_after(attempts: u32) -> Duration {
    match attempts.checked_sub(QUICK_ATTEMPTS) {
        None => SETTLING,
        Some(more) => PATIENCE
            .saturating_mul(2_u32.saturating_pow(more))
            .min(LONGEST_PATIENCE),
    }
}

/// How much happens at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pushes with messages at a worker.
    pub active: usize,
    /// Pushes that have begun.
    pub begun: usize,
}

/// Messages for a worker.
#[derive(Debug)]
pub struct Job {
    /// To whom.
    pub slot: Arc<AgentSlot>,
    /// Where to; if the agent is not there any more, nothing is sent.
    pub route: Route,
    /// In this order.
    pub messages: Vec<Vec<u8>>,
    /// Which push; its result must carry it.
    pub ticket: u64,
}

/// What became of a [`Job`].
#[derive(Clone, Debug)]
pub struct JobResult {
    /// Whose.
    pub id: AgentId,
    /// Which push.
    pub ticket: u64,
    /// What.
    pub taken: Taken,
}

impl JobResult {
    /// The result of a job that no worker took.
    pub(crate) fn nothing(job: &Job) -> impl FnOnce(SendError) -> Self + use<> {
        let (id, ticket) = (job.slot.id.clone(), job.ticket);
        move |error| Self {
            id,
            ticket,
            taken: Taken {
                count: 0,
                stopped: Some(match error {
                    SendError::QueueFull => Stopped::Full,
                    _ => Stopped::Gone,
                }),
            },
        }
    }
}

muster_service::counters! {
    /// What became of pushes.
    pub struct PushCounters {
        /// Pushes that began.
        pushes_begun_total,
        /// Files that went out whole.
        pushes_done_total,
        /// Pushes that the agent broke off, by coming back or going away.
        pushes_broken_off_total,
        /// Pushes to agents that took nothing any more.
        pushes_given_up_total,
    }
}

/// All pushes.
pub struct Pushes {
    limits: Limits,
    /// Who waits, in the order of asking.
    waiting: BTreeMap<u64, AgentId>,
    states: HashMap<AgentId, State>,
    /// Whose messages may go now.
    ready: VecDeque<AgentId>,
    /// Whose may not yet.
    paused: BTreeSet<(Millis, AgentId)>,
    active: usize,
    begun: usize,
    last_ticket: u64,
    last_place: u64,
    counters: PushCounters,
}

enum State {
    /// It waits for its turn.
    Waiting {
        slot: Arc<AgentSlot>,
        file: Arc<MergedFile>,
        place: u64,
        attempts: u32,
    },
    /// It gets its file.
    Running(Box<Running>),
    /// It got this one.
    Settling { sum: String, until: Millis, attempts: u32 },
}

struct Running {
    slot: Arc<AgentSlot>,
    push: Push,
    ticket: u64,
    /// How often it got this file before, and still reports another sum.
    attempts: u32,
    /// Messages are at a worker.
    is_active: bool,
}

impl Pushes {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: BTreeMap::new(),
            states: HashMap::new(),
            ready: VecDeque::new(),
            paused: BTreeSet::new(),
            active: 0,
            begun: 0,
            last_ticket: 0,
            last_place: 0,
            counters: PushCounters::default(),
        }
    }

    /// What became of them so far.
    pub fn counters(&self) -> &PushCounters {
        &self.counters
    }

    /// How many wait, and how many have begun.
    pub fn sizes(&self) -> (usize, usize) {
        (self.waiting.len(), self.begun)
    }

    /// A keepalive said that the agent has another file than this one.
    pub fn on_differs(&mut self, now: Millis, slot: &Arc<AgentSlot>, file: &Arc<MergedFile>) {
        let (known_place, attempts) = match self.states.get(&slot.id) {
            Some(State::Running(_)) => return,
            Some(State::Settling { sum, until, .. }) if *sum == file.sum && now < *until => return,
            Some(State::Waiting { place, attempts, .. }) => (Some(*place), *attempts),
            Some(State::Settling { sum, attempts, .. }) if *sum == file.sum => (None, *attempts),
            Some(State::Settling { .. }) | None => (None, 0),
        };
        let place = known_place.unwrap_or_else(|| {
            self.last_place += 1;
            self.waiting.insert(self.last_place, slot.id.clone());
            self.last_place
        });
        let state = State::Waiting {
            slot: Arc::clone(slot),
            file: Arc::clone(file),
            place,
            attempts,
        };
        self.states.insert(slot.id.clone(), state);
    }

    /// A keepalive said that the agent has what it is to have, or there is nothing for it.
    pub fn on_agrees(&mut self, id: &AgentId) {
        if !matches!(self.states.get(id), Some(State::Running(_))) {
            self.forget(id);
        }
    }

    /// The agent said hello, or is gone: whatever it was getting is lost. Its next keepalive says what it needs.
    pub fn on_broken_off(&mut self, id: &AgentId) {
        if let Some(State::Running(_)) = self.states.get(id) {
            self.counters.pushes_broken_off_total.increment();
            self.end(id);
        } else {
            self.forget(id);
        }
    }

    /// The next messages for a worker, if any may go.
    pub fn next_job(&mut self, now: Millis) -> Option<Job> {
        self.wake(now);
        while self.active < self.limits.active {
            // A push that was begun goes before one that was not: it holds a file open.
            let id = self.ready.pop_front().or_else(|| self.begin(now))?;
            // Whoever was woken for a push that is over may be named here once too often.
            let Some(State::Running(running)) = self.states.get_mut(&id) else {
                continue;
            };
            if running.is_active {
                continue;
            }
            if running.slot.route() != Some(running.push.route()) {
                self.counters.pushes_broken_off_total.increment();
                self.end(&id);
                continue;
            }
            match running.push.step(now) {
                Step::Send(messages) => {
                    running.is_active = true;
                    self.active += 1;
                    return Some(Job {
                        slot: Arc::clone(&running.slot),
                        route: running.push.route(),
                        messages,
                        ticket: running.ticket,
                    });
                }
                Step::Wait(until) => {
                    self.paused.insert((until, id));
                }
                Step::Done => {
                    self.counters.pushes_done_total.increment();
                    let (sum, attempts) = (running.push.sum().to_owned(), running.attempts + 1);
                    self.end(&id);
                    let until = now + settling_after(attempts);
                    self.states.insert(id, State::Settling { sum, until, attempts });
                }
            }
        }
        None
    }

    /// What became of a job.
    pub fn on_result(&mut self, now: Millis, result: &JobResult) {
        let Some(State::Running(running)) = self.states.get_mut(&result.id) else {
            return;
        };
        if running.ticket != result.ticket {
            return;
        }
        running.is_active = false;
        self.active -= 1;
        running.push.taken(now, result.taken.count);
        match result.taken.stopped {
            Some(Stopped::Gone) => {
                self.counters.pushes_broken_off_total.increment();
                self.end(&result.id);
            }
            Some(Stopped::Full) if running.push.is_stuck(now) => {
                self.counters.pushes_given_up_total.increment();
                self.end(&result.id);
            }
            Some(Stopped::Full) | None => self.ready.push_back(result.id.clone()),
        }
    }

    /// When [`Pushes::next_job`] has something again that it does not have now.
    pub fn next_wake(&self) -> Option<Millis> {
        self.paused.first().map(|(at, _)| *at)
    }

    fn wake(&mut self, now: Millis) {
        while let Some((at, _)) = self.paused.first()
            && *at <= now
        {
            self.ready.extend(self.paused.pop_first().map(|(_, id)| id));
        }
    }

    /// Begins the push of the next one that waits and can be reached.
    fn begin(&mut self, now: Millis) -> Option<AgentId> {
        while self.begun < self.limits.begun {
            let (_, id) = self.waiting.pop_first()?;
            let Some(State::Waiting {
                slot, file, attempts, ..
            }) = self.states.get(&id)
            else {
                continue;
            };
            let Some(route) = slot.route() else {
                self.states.remove(&id);
                continue;
            };
            self.last_ticket += 1;
            self.begun += 1;
            self.counters.pushes_begun_total.increment();
            slot.set_receives_file(true);
            let running = Running {
                slot: Arc::clone(slot),
                push: Push::begin(Arc::clone(file), route, now),
                ticket: self.last_ticket,
                attempts: *attempts,
                is_active: false,
            };
            self.states.insert(id.clone(), State::Running(Box::new(running)));
            return Some(id);
        }
        None
    }

    /// Of one that gets nothing now.
    fn forget(&mut self, id: &AgentId) {
        if let Some(State::Waiting { place, .. }) = self.states.remove(id) {
            self.waiting.remove(&place);
        }
    }

    /// Ends a running push, however far it came.
    fn end(&mut self, id: &AgentId) {
        if let Some(State::Running(running)) = self.states.remove(id) {
            running.slot.set_receives_file(false);
            self.begun -= 1;
            self.active -= usize::from(running.is_active);
        }
    }
}

#[cfg(test)]
mod tests;
