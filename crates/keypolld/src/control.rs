//! `queue/muster/keypolld.ctl`: status, reload, and a look-up that registers nothing.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use muster_config::KeyRequest;
use muster_proto::{
    ipc::control::{DaemonStatus, KeyPollAgent, KeyPollReport, QueueStatus, Request, Response},
    paths,
};
use muster_service::{
    Reloader,
    control::{self, Handler, StatusSource},
    ipc::Peer,
    outbox,
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    counters::Counters,
    engine::{Setup, Window},
    events::Events,
    flow::MAX_REGISTERING,
    lookup::Lookup,
    loud::Loud,
    options,
    outcome::{Found, chain},
    process::limits,
    registrar::Change,
    source::Sources,
};

/// Look-ups by operators at a time, beside those for agents.
const MAX_TRIES: usize = 2;

/// Answers on the control socket.
#[derive(Debug)]
pub struct Control {
    status: StatusSource,
    reloader: Reloader,
    home: PathBuf,
    setup: watch::Sender<Arc<Setup>>,
    window: Window,
    counters: Arc<Counters>,
    events: Events,
    outbox: outbox::Sender,
    loud: Arc<Loud>,
    may_run_programs: bool,
    tries: Semaphore,
}

/// What it is made of.
#[derive(Debug)]
pub struct ControlParts {
    /// The common part of the status.
    pub status: StatusSource,
    /// Reads the configuration again.
    pub reloader: Reloader,
    /// The home.
    pub home: PathBuf,
    /// Settings of the moment.
    pub setup: watch::Sender<Arc<Setup>>,
    /// The engine's gauges.
    pub window: Window,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Events that are written.
    pub events: Events,
    /// Events that are sent.
    pub outbox: outbox::Sender,
    /// Keeps strangers from filling the log.
    pub loud: Arc<Loud>,
    /// Whether file access was left open for programs.
    pub may_run_programs: bool,
}

impl Control {
    /// Ready to answer.
    pub fn new(parts: ControlParts) -> Self {
        let ControlParts {
            status,
            reloader,
            home,
            setup,
            window,
            counters,
            events,
            outbox,
            loud,
            may_run_programs,
        } = parts;
        Self {
            status,
            reloader,
            home,
            setup,
            window,
            counters,
            events,
            outbox,
            loud,
            may_run_programs,
            tries: Semaphore::new(MAX_TRIES),
        }
    }

    async fn try_look_up(&self, lookup: &str, value: &str) -> Response {
        let lookup = match Lookup::new(lookup, value) {
            Ok(lookup) => lookup,
            Err(error) => return Response::Failed(error.to_string()),
        };
        let Ok(_permit) = self.tries.try_acquire() else {
            return Response::Failed(format!(
                "{MAX_TRIES} such look-ups are under way; try again when they have ended"
            ));
        };
        self.counters.keypoll_tries_total.increment();
        let setup = Arc::clone(&self.setup.borrow());
        let began = Instant::now();
        let deadline = began + longest(&setup.sources);
        let looked = setup.sources.look_up(&lookup, setup.sources.route(), deadline).await;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut report = KeyPollReport {
            lookup: lookup.by().as_str().to_owned(),
            value: lookup.value().to_owned(),
            source: looked.written.as_ref().map(|(kind, _)| kind.as_str().to_owned()),
            duration_ms,
            errors: looked
                .errors
                .iter()
                .map(|(kind, error)| format!("{}: {}", kind.as_str(), chain(error)))
                .collect(),
            ..KeyPollReport::default()
        };
        match Found::of(&looked, &lookup) {
            Found::Nothing(outcome, reason) => {
                report.outcome = outcome.as_str().to_owned();
                report.reason = reason;
            }
            Found::Agent(agent) => {
                let registered = match setup.registrar.compare(&agent).await {
                    Ok(Change::New) => "nothing",
                    Ok(Change::Different) => "another",
                    Ok(Change::None) => "the same",
                    Err(error) => {
                        report.errors.push(chain(&error));
                        "unknown"
                    }
                };
                report.outcome = "found".to_owned();
                report.agent = Some(KeyPollAgent {
                    id: agent.id.to_string(),
                    name: agent.name,
                    ip: agent.address.text().to_owned(),
                    key_length: u32::try_from(agent.key.expose().len()).unwrap_or(u32::MAX),
                    registered: registered.to_owned(),
                });
            }
        }
        Response::KeyPoll(Box::new(report))
    }

    fn new_setup(&self, settings: &KeyRequest) -> Result<Setup, String> {
        if settings.exec_path.is_some() && !self.may_run_programs {
            return Err("<exec_path> is new: restart keypolld, whose file access was restricted without it".to_owned());
        }
        options::setup(settings, &self.home, &self.loud).map_err(|error| error.to_string())
    }
}

/// How long the sources may take together.
fn longest(sources: &Sources) -> Duration {
    sources.timeout().saturating_mul(2).min(Duration::from_secs(86_400))
}

impl Handler for Control {
    async fn status(&self) -> DaemonStatus {
        let setup = Arc::clone(&self.setup.borrow());
        let gauges = *self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let outbox = self.outbox.status();
        let mut degraded = Vec::new();
        if gauges.down.socket {
            degraded.push("the key source behind <socket> is down and left alone for a while; see the log".to_owned());
        }
        if gauges.down.command {
            degraded
                .push("the key source behind <exec_path> is down and left alone for a while; see the log".to_owned());
        }
        if let Some(error) = self.events.error() {
            degraded.push(format!("events cannot be kept and are dropped: {error}"));
        }
        let limits = setup.limits;
        let full = self.counters.keypoll_requests_queue_full_total.value();
        DaemonStatus {
            degraded,
            listening: vec![paths::KEY_REQUEST_SOCKET.to_owned()],
            queues: vec![
                queue("requests", gauges.waiting, limits.queue, "requests", full),
                queue("returning", gauges.returning, limits.queue, "requests", 0),
                queue("look-ups", gauges.looking, limits.threads, "look-ups", 0),
                queue("registrations", gauges.registering, MAX_REGISTERING, "agents", 0),
                outbox.queue(),
            ],
            counters: self.counters.values(),
            facts: vec![
                ("sources".to_owned(), setup.sources.to_string()),
                ("remembered answers".to_owned(), gauges.remembered.to_string()),
                (
                    "natsd".to_owned(),
                    if outbox.connected {
                        "connected"
                    } else {
                        "away: events wait"
                    }
                    .to_owned(),
                ),
            ],
            ..self.status.status()
        }
    }

    async fn reload(&self) -> Result<String, String> {
        let settings = self.reloader.load()?;
        let Some(settings) = settings.key_request.filter(|settings| settings.enabled) else {
            return Err("key polling is switched off in the configuration: stop keypolld instead".to_owned());
        };
        let setup = self.new_setup(&settings)?;
        limits::set_memory(settings.max_memory);
        self.setup.send_replace(Arc::new(setup));
        Ok("sources, limits and rates are the new ones; remembered answers are forgotten".to_owned())
    }

    async fn handle(&self, request: Request, _peer: Peer) -> control::Answer {
        match request {
            Request::KeyPollTry { lookup, value } => self.try_look_up(&lookup, &value).await.into(),
            _ => Response::Unknown.into(),
        }
    }
}

fn queue(name: &str, used: usize, capacity: usize, unit: &str, dropped: u64) -> QueueStatus {
    let number = |value| u64::try_from(value).unwrap_or(u64::MAX);
    QueueStatus {
        name: name.to_owned(),
        used: number(used),
        capacity: number(capacity),
        unit: unit.to_owned(),
        dropped,
    }
}
