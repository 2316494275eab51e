//! The task that carries out what [`Flow`] decides: takes datagrams, lets look-ups and registrations run beside it, and
//! takes their ends.
//!
//! It never waits for a source, for authd or for a disk, so remoted's datagrams are read as fast as they come.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use muster_proto::agent::AgentId;
use muster_service::clock;
use tokio::{
    net::UnixDatagram,
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Agent,
    counters::Counters,
    events::{Events, Writer},
    flow::{Flow, Gauges, Job, Limits, Step, Turn},
    lookup::{Lookup, MAX_REQUEST_LEN},
    loud::Loud,
    outcome::{Found, Outcome, chain},
    process::leftovers,
    registrar::{Change, Registrar, RegistrarError},
    source::{Kind, Looked, Sources},
};

/// Datagrams that are taken before others get their turn.
const DATAGRAMS_AT_ONCE: usize = 64;
/// How often we look for processes that programs have left behind.
const SWEEP_PERIOD: Duration = Duration::from_secs(5);

/// Behind a registration further ones are gathered for so long: authd then writes once for all of them, and remoted looks
/// once. A single one does not wait.
const GATHER: Duration = Duration::from_millis(40);
/// So many do not wait either.
const ENOUGH: usize = 64;

/// What the configuration gives; changed as a whole.
#[derive(Debug)]
pub struct Setup {
    /// Where keys come from.
    pub sources: Sources,
    /// Where they go.
    pub registrar: Registrar,
    /// What is allowed.
    pub limits: Limits,
}

/// What the engine is made of.
#[derive(Debug)]
pub struct EngineParts {
    /// remoted's requests.
    pub intake: UnixDatagram,
    /// Settings of the moment.
    pub setup: watch::Receiver<Arc<Setup>>,
    /// Where events go.
    pub events: Events,
    /// Who writes them; ends with the engine.
    pub writer: Writer,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Keeps strangers from filling the log.
    pub loud: Arc<Loud>,
}

/// What others may see of it.
pub type Window = Arc<Mutex<Gauges>>;

/// The task.
#[derive(Debug)]
pub struct Engine {
    parts: EngineParts,
    current: Arc<Setup>,
    flow: Flow,
    tasks: JoinSet<Done>,
    gathered: Vec<Registration>,
    /// Until when registrations are gathered.
    gather_until: Instant,
    window: Window,
}

/// An agent that is to be registered.
#[derive(Debug)]
struct Registration {
    lookup: Lookup,
    began: Instant,
    agent: Agent,
}

/// What has ended.
#[derive(Debug)]
struct Done {
    lookup: Lookup,
    began: Instant,
    what: What,
}

#[derive(Debug)]
enum What {
    Looked(Looked),
    Registered(AgentId, Result<Change, RegistrarError>),
}

impl Engine {
    /// Ready to run.
    pub fn new(mut parts: EngineParts) -> Self {
        let current = Arc::clone(&parts.setup.borrow_and_update());
        Self {
            flow: Flow::new(current.limits, Instant::now()),
            current,
            tasks: JoinSet::new(),
            gathered: Vec::new(),
            gather_until: Instant::now(),
            window: Window::default(),
            parts,
        }
    }

    /// Its gauges, as they were a moment ago.
    pub fn window(&self) -> Window {
        Arc::clone(&self.window)
    }

    /// Runs until told to stop. Requests that wait are lost then: their agents come again.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut sweep = interval(SWEEP_PERIOD);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = self.tasks.join_next() => self.take_end(done.context("a look-up broke off")?),
                ready = self.parts.intake.readable() => {
                    ready.context("waiting for requests")?;
                    self.take_datagrams();
                }
                () = sleep_until(self.gather_until.into()), if !self.gathered.is_empty() => self.register_gathered(),
                Ok(()) = self.parts.setup.changed() => self.take_setup(),
                _ = sweep.tick() => self.sweep(),
            }
            self.start_what_may();
            *self.window.lock().unwrap_or_else(PoisonError::into_inner) = self.flow.gauges();
        }
        // Programs that run now are killed with their groups, those that keep running are let end.
        self.tasks.shutdown().await;
        self.current.sources.close().await;
        self.sweep();
        let writer = self.parts.writer;
        spawn_blocking(|| writer.finish()).await?;
        Ok(())
    }

    fn take_setup(&mut self) {
        let new = Arc::clone(&self.parts.setup.borrow_and_update());
        self.flow.set_limits(new.limits, Instant::now());
        let old = std::mem::replace(&mut self.current, new);
        tokio::spawn(async move { old.sources.close().await });
    }

    fn take_datagrams(&mut self) {
        // One byte more than a request may have, so that a longer one is not taken for its beginning.
        let mut buffer = [0; MAX_REQUEST_LEN + 1];
        for _ in 0..DATAGRAMS_AT_ONCE {
            match self.parts.intake.try_recv(&mut buffer) {
                Ok(0) => {}
                Ok(length) => self.take_datagram(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "cannot take a request");
                    return;
                }
            }
        }
    }

    fn take_datagram(&mut self, datagram: &[u8]) {
        let counters = &self.parts.counters;
        counters.keypoll_requests_total.increment();
        match Lookup::parse(datagram) {
            Ok(lookup) => {
                let admission = self.flow.ask(lookup.clone(), Instant::now());
                counters.admitted(admission);
                tracing::trace!(%lookup, ?admission, "request");
            }
            Err(error) => {
                counters.keypoll_requests_invalid_total.increment();
                self.parts.loud.say(format_args!(
                    "Invalid request '{}' received in Agent key request: {error}",
                    datagram.escape_ascii()
                ));
            }
        }
    }

    fn start_what_may(&mut self) {
        while let Some(step) = self.flow.next(Instant::now()) {
            let counters = &self.parts.counters;
            match step {
                Step::Run(job) => self.look_up(job),
                Step::Expired(lookup) => {
                    counters.keypoll_requests_expired_total.increment();
                    tracing::debug!(%lookup, "a request waited for too long");
                }
                Step::NoSource(lookup) => {
                    counters.keypoll_requests_source_down_total.increment();
                    tracing::debug!(%lookup, "a request found no source that works");
                }
            }
        }
    }

    fn look_up(&mut self, job: Job) {
        let Job {
            lookup,
            route,
            deadline,
        } = job;
        self.parts.counters.keypoll_lookups_total.increment();
        self.parts.events.requested(&lookup, clock::unix_ms());
        let setup = Arc::clone(&self.current);
        self.tasks.spawn(async move {
            let began = Instant::now();
            let looked = setup.sources.look_up(&lookup, route, deadline.into()).await;
            Done {
                lookup,
                began,
                what: What::Looked(looked),
            }
        });
    }

    fn take_end(&mut self, done: Done) {
        let Done { lookup, began, what } = done;
        match what {
            What::Looked(looked) => self.judge(lookup, began, &looked),
            What::Registered(id, result) => {
                let outcome = match result {
                    Ok(change) => change.into(),
                    Err(error) => {
                        let why = chain(&error);
                        let loud = &self.parts.loud;
                        loud.say(format_args!("agent '{id}' of the key source is not registered: {why}"));
                        Outcome::from(&error)
                    }
                };
                self.settle(&lookup, began, outcome, Some(&id));
            }
        }
    }

    /// Decides what to do with what the sources have said.
    fn judge(&mut self, lookup: Lookup, began: Instant, looked: &Looked) {
        let turns = self.flow.looked(&lookup, looked.report, Instant::now());
        self.tell_turn(Kind::Socket, turns.socket, looked);
        self.tell_turn(Kind::Command, turns.command, looked);
        if let Some((Kind::Command, _)) = looked.written
            && let Some((Kind::Socket, error)) = looked.errors.first()
        {
            self.parts.counters.keypoll_lookups_fallback_total.increment();
            tracing::debug!(%lookup, error = chain(error), "the socket gave nothing, so 'exec_path' was run");
        }
        match Found::of(looked, &lookup) {
            Found::Agent(agent) => self.register(Registration { lookup, began, agent }),
            Found::Nothing(outcome, why) => {
                if outcome == Outcome::NotFound {
                    tracing::debug!(%lookup, why, "no key");
                } else {
                    self.parts.loud.say(format_args!("no key for '{lookup}': {why}"));
                }
                self.settle(&lookup, began, outcome, None);
            }
        }
    }

    fn register(&mut self, registration: Registration) {
        self.gathered.push(registration);
        if self.gathered.len() >= ENOUGH || self.gather_until <= Instant::now() {
            self.register_gathered();
        }
    }

    fn register_gathered(&mut self) {
        self.gather_until = Instant::now() + GATHER;
        for Registration { lookup, began, agent } in self.gathered.drain(..) {
            let setup = Arc::clone(&self.current);
            self.tasks.spawn(async move {
                let result = setup.registrar.register(&agent).await;
                Done {
                    lookup,
                    began,
                    what: What::Registered(agent.id, result),
                }
            });
        }
    }

    fn settle(&mut self, lookup: &Lookup, began: Instant, outcome: Outcome, agent: Option<&AgentId>) {
        self.flow.settled(lookup, outcome.remember(), Instant::now());
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.parts.counters.ended(outcome);
        self.parts
            .events
            .ended(lookup, outcome, elapsed_ms, agent, clock::unix_ms());
        tracing::debug!(%lookup, outcome = outcome.as_str(), elapsed_ms, "looked up");
    }

    fn tell_turn(&self, kind: Kind, turn: Turn, looked: &Looked) {
        let source = kind.as_str();
        match turn {
            Turn::None => {}
            Turn::CameBack => tracing::info!(source, "the key source works again"),
            Turn::WentDown => {
                let error = looked.errors.iter().rev().find(|(of, _)| *of == kind);
                let error = error.map(|(_, error)| chain(error)).unwrap_or_default();
                tracing::warn!(source, error, "the key source is down and is left alone for a while");
            }
        }
    }

    fn sweep(&self) {
        let killed = leftovers::sweep();
        if killed > 0 {
            let counter = &self.parts.counters.keypoll_leftovers_killed_total;
            counter.add(u64::try_from(killed).unwrap_or(u64::MAX));
            tracing::debug!(killed, "processes that programs left behind were ended");
        }
    }
}
