//! An agent that lives by itself in a thread: keepalives, answers, events, reconnection as agents do it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::agent::Agent;

/// What the agent does.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Between two keepalives.
    pub keepalive: Duration,
    /// Events sent before each keepalive.
    pub events: u64,
    /// Whether a lost connection is made again rather than the end.
    pub reconnects: bool,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_millis(400),
            events: 0,
            reconnects: true,
        }
    }
}

#[derive(Default)]
struct Counts {
    ended: AtomicBool,
    acks: AtomicU64,
    events: AtomicU64,
    connects: AtomicU64,
    slowest_ack_ms: AtomicU64,
}

/// A living agent.
pub struct Live {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<Result<Agent>>>,
}

impl Live {
    /// Lets a connected agent go on by itself. Event number n of it is `1:/var/log/live:<name> event <n>`.
    pub fn start(agent: Agent, life: Life) -> Self {
        let counts = Arc::new(Counts::default());
        let for_thread = Arc::clone(&counts);
        let thread = thread::spawn(move || live(agent, life, &for_thread));
        Self {
            counts,
            thread: Some(thread),
        }
    }

    /// Keepalives acknowledged so far.
    pub fn acks(&self) -> u64 {
        self.counts.acks.load(Ordering::SeqCst)
    }

    /// Events handed to the system so far.
    pub fn events(&self) -> u64 {
        self.counts.events.load(Ordering::SeqCst)
    }

    /// Connections made again so far.
    pub fn reconnects(&self) -> u64 {
        self.counts.connects.load(Ordering::SeqCst)
    }

    /// The longest wait for an ack so far.
    pub fn slowest_ack(&self) -> Duration {
        Duration::from_millis(self.counts.slowest_ack_ms.load(Ordering::SeqCst))
    }

    /// Forgets the waits so far.
    pub fn forget_waits(&self) {
        self.counts.slowest_ack_ms.store(0, Ordering::SeqCst);
    }

    /// Whether it has given up; [`Live::stop`] says why.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops, and gives the agent back as it is, still connected.
    pub fn stop(mut self) -> Result<Agent> {
        self.counts.ended.store(true, Ordering::SeqCst);
        let thread = self.thread.take().ok_or_else(|| anyhow!("stopped before"))?;
        thread.join().map_err(|_| anyhow!("the agent's thread panicked"))?
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.counts.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How long an agent tries to come back.
const RECONNECTS_FOR: Duration = Duration::from_secs(60);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(50);

fn live(mut agent: Agent, life: Life, counts: &Counts) -> Result<Agent> {
    let running = || !counts.ended.load(Ordering::SeqCst);
    while running() {
        let outcome = beat(&mut agent, life, counts);
        match outcome {
            Ok(()) => {}
            Err(error) if life.reconnects => {
                let give_up = Instant::now() + RECONNECTS_FOR;
                while running() {
                    if agent.hello_until_heard(Duration::ZERO).is_ok() {
                        counts.connects.fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                    if Instant::now() >= give_up {
                        return Err(error.context("it could not come back"));
                    }
                    thread::park_timeout(RETRY);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(agent)
}

fn beat(agent: &mut Agent, life: Life, counts: &Counts) -> Result<()> {
    for _ in 0..life.events {
        let number = counts.events.load(Ordering::SeqCst) + 1;
        let name = agent.key.name.clone();
        agent.event(&format!("1:/var/log/live:{name} event {number}."))?;
        counts.events.store(number, Ordering::SeqCst);
    }
    let sent = Instant::now();
    agent.keepalive()?;
    let waited = u64::try_from(sent.elapsed().as_millis())?;
    counts.slowest_ack_ms.fetch_max(waited, Ordering::SeqCst);
    counts.acks.fetch_add(1, Ordering::SeqCst);
    agent.listen_for(life.keepalive)
}
