//! The waiting around the decisions of [`core`](super::core): the disk, authd, workers, and the clock.
//!
//! What happens when something is full:
//! * *what is heard* ([`HEARD_QUEUE`]): a keepalive that finds no room does not count; the next one does. A key reload
//!   that finds none makes everything be asked for again.
//! * *the roster's news*: it is told with the agent's next keepalive.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_config::Settings;
use muster_proto::{
    ipc::control::{AgentGroups, GroupMode, QueueStatus, Request, Response},
    paths,
};
use muster_service::client::{Client, ClientError};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    core::{Answer, Core, Look, Options, Question, Registrar, Sign, Told},
    database,
    library::Library,
    membership::{Guess, Reported},
    pushes::{Job, JobResult, Limits},
    scan::{Merging, Scanner},
};
use crate::{
    slot::{Millis, News, SendError},
    wazuh_db,
};

/// What may be heard and wait.
pub const HEARD_QUEUE: usize = 8192;
/// How much is taken in before pushes get their turn.
const HEARD_AT_ONCE: usize = 256;
/// Pushes that have begun, for each that may be active: over UDP a push is pauses, most of the time.
const BEGUN_FOR_EACH_ACTIVE: usize = 64;
/// How long authd may take for an answer.
const AUTHD_DEADLINE: Duration = Duration::from_secs(5);
/// Agents of one page of groups.
const GROUPS_PAGE: u32 = 5000;

/// Who brings messages to the workers.
pub trait Carrier: Send + Sync {
    /// Hands a job to the worker of its route. What became of it comes back through `results`, which must have room,
    /// unless this fails.
    fn carry(&self, job: Job, results: &mpsc::Sender<JobResult>) -> Result<(), SendError>;
}

/// What the rest of the daemon holds.
#[derive(Clone)]
pub struct Shared {
    heard: mpsc::Sender<Sign>,
    prompt: Arc<Notify>,
    missed: Arc<Missed>,
    status: watch::Receiver<SharedStatus>,
}

#[derive(Default)]
struct Missed {
    keys: AtomicBool,
    signs: AtomicU64,
}

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedStatus {
    /// Groups that have files.
    pub groups: usize,
    /// Agents that wait for a file.
    pub waiting: usize,
    /// Agents that get one.
    pub running: usize,
    /// Why authd does not say which groups agents have.
    pub away: Option<String>,
    /// What was counted.
    pub counters: Vec<(String, u64)>,
}

impl Shared {
    /// Hears what the roster hears.
    pub fn hear(&self, news: &News) {
        let sign = match news {
            News::Keepalive { slot, said, .. } => Sign::Reported(Reported {
                slot: Arc::clone(slot),
                sum: said.merged_sum().cloned(),
            }),
            News::Startup { slot, .. } | News::Shutdown { slot, .. } => Sign::BrokenOff(slot.id.clone()),
            News::KeysReloaded { changed, removed, .. } if !(changed.is_empty() && removed.is_empty()) => Sign::Keys {
                changed: changed.clone(),
                removed: removed.iter().map(|slot| slot.id.clone()).collect(),
            },
            _ => return,
        };
        if let Err(error) = self.heard.try_send(sign) {
            self.missed.signs.fetch_add(1, Ordering::Relaxed);
            if matches!(error.into_inner(), Sign::Keys { .. }) {
                self.missed.keys.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Files or groups may have changed: look now.
    pub fn look_now(&self) {
        self.prompt.notify_one();
    }

    /// How it goes.
    pub fn status(&self) -> SharedStatus {
        self.status.borrow().clone()
    }

    /// The queue of what is heard.
    pub fn queue(&self) -> QueueStatus {
        QueueStatus {
            name: "shared".to_owned(),
            used: (HEARD_QUEUE - self.heard.capacity()) as u64,
            capacity: HEARD_QUEUE as u64,
            unit: "messages".to_owned(),
            dropped: self.missed.signs.load(Ordering::Relaxed),
        }
    }
}

/// What it works with.
pub struct EngineParts<'a> {
    /// The home; empty when the process is in it.
    pub home: &'a Path,
    /// The configuration.
    pub settings: &'a Settings,
    /// To the roster.
    pub news: mpsc::Sender<News>,
    /// To the agents.
    pub carrier: Arc<dyn Carrier>,
}

/// The part that works.
pub struct Engine {
    core: Core,
    heard: mpsc::Receiver<Sign>,
    prompt: Arc<Notify>,
    missed: Arc<Missed>,
    status: watch::Sender<SharedStatus>,
    news: mpsc::Sender<News>,
    carrier: Arc<dyn Carrier>,
    results: (mpsc::Sender<JobResult>, mpsc::Receiver<JobResult>),
    /// At the disk while a look is under way.
    scanner: Option<Scanner>,
    looks: (mpsc::Sender<Looked>, mpsc::Receiver<Looked>),
    answers: (mpsc::Sender<Answered>, mpsc::Receiver<Answered>),
    registrars: Registrars,
}

/// Who knows the groups of agents.
#[derive(Clone)]
struct Registrars {
    authd: PathBuf,
    /// The stock database, where no authd of ours is.
    database: PathBuf,
}

type Looked = (Scanner, Library);
type Answered = (Question, Answer);

impl Engine {
    /// An engine that has not started, and what others hold of it.
    pub fn new(parts: EngineParts<'_>) -> (Self, Shared) {
        let internal = &parts.settings.internal.remoted;
        let active = usize::try_from(internal.sender_pool).unwrap_or(1).max(1);
        let options = Options {
            look_every: internal.shared_reload,
            guess: if internal.guess_agent_group {
                Guess::ByFile
            } else {
                Guess::Never
            },
            limits: Limits {
                active,
                begun: active * BEGUN_FOR_EACH_ACTIVE,
            },
            registrar: if parts.settings.auth.disabled {
                Registrar::Nobody
            } else {
                Registrar::Authd
            },
        };
        let merging = if internal.merge_shared {
            Merging::Ours
        } else {
            Merging::Theirs
        };
        let (heard, inbox) = mpsc::channel(HEARD_QUEUE);
        let (status, watched) = watch::channel(SharedStatus::default());
        let (prompt, missed) = (Arc::new(Notify::new()), Arc::new(Missed::default()));
        let engine = Self {
            core: Core::new(options, Millis::now()),
            heard: inbox,
            prompt: Arc::clone(&prompt),
            missed: Arc::clone(&missed),
            status,
            news: parts.news,
            carrier: parts.carrier,
            results: mpsc::channel(active),
            scanner: Some(Scanner::new(parts.home, merging)),
            looks: mpsc::channel(1),
            answers: mpsc::channel(1),
            registrars: Registrars {
                authd: parts.home.join(paths::control_socket("authd")),
                database: parts.home.join(wazuh_db::SOCKET),
            },
        };
        let shared = Shared {
            heard,
            prompt,
            missed,
            status: watched,
        };
        (engine, shared)
    }

    /// Works until told to stop.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut signs = Vec::with_capacity(HEARD_AT_ONCE);
        let mut told = Vec::new();
        loop {
            let wake = self.core.next_wake().since(Millis::now());
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                count = self.heard.recv_many(&mut signs, HEARD_AT_ONCE) => if count == 0 { return Ok(()) },
                Some(result) = self.results.1.recv() => self.core.pushes.on_result(Millis::now(), &result),
                Some((scanner, library)) = self.looks.1.recv() => {
                    self.scanner = Some(scanner);
                    self.core.on_library(Millis::now(), library);
                }
                Some((question, answer)) = self.answers.1.recv() => {
                    self.core.on_answer(Millis::now(), &question, answer, &mut told);
                }
                () = self.prompt.notified() => self.core.on_prompt(Millis::now()),
                () = sleep(wake) => {}
            }
            let now = Millis::now();
            if self.missed.keys.swap(false, Ordering::Relaxed) {
                self.core.on_missed_keys();
            }
            for sign in signs.drain(..) {
                self.core.on_sign(now, sign, &mut told);
            }
            self.look(now);
            self.ask(now, &mut told);
            self.push(now);
            told.drain(..).for_each(|news| self.tell(&news));
            self.report();
        }
    }

    fn look(&mut self, now: Millis) {
        let Some(mut scanner) = self.scanner.take() else { return };
        let Some(look) = self.core.next_look(now) else {
            self.scanner = Some(scanner);
            return;
        };
        let found = self.looks.0.clone();
        spawn_blocking(move || {
            let Look { needed, lists, are_all } = look;
            let library = scanner.look(&needed, &lists, are_all);
            // The only look under way has the only place.
            let _ = found.try_send((scanner, library));
        });
    }

    fn ask(&mut self, now: Millis, told: &mut Vec<Told>) {
        let Some(question) = self.core.next_question(now, told) else {
            return;
        };
        let (answers, registrars) = (self.answers.0.clone(), self.registrars.clone());
        tokio::spawn(async move {
            let answer = ask(&registrars, &question).await;
            // The only question under way has the only place.
            let _ = answers.try_send((question, answer));
        });
    }

    fn push(&mut self, now: Millis) {
        while let Some(job) = self.core.pushes.next_job(now) {
            let failed = JobResult::nothing(&job);
            if let Err(error) = self.carrier.carry(job, &self.results.0) {
                self.core.pushes.on_result(now, &failed(error));
            }
        }
    }

    fn tell(&mut self, told: &Told) {
        let (slot, shared) = told.clone();
        if self.news.try_send(News::Shared { slot, shared }).is_ok() {
            self.core.told(told);
        }
    }

    fn report(&self) {
        let (waiting, running) = self.core.pushes.sizes();
        let status = SharedStatus {
            groups: self.core.groups(),
            waiting,
            running,
            away: self.core.away().map(str::to_owned),
            counters: self.core.pushes.counters().values(),
        };
        self.status.send_if_modified(|last| {
            let differs = *last != status;
            *last = status;
            differs
        });
    }
}

async fn ask(registrars: &Registrars, question: &Question) -> Answer {
    let away = |error: anyhow::Error| Answer::Away(format!("{error:#}"));
    if let Question::Look(wanted) = question {
        let looked = database::look(&registrars.database, wanted).await;
        return looked.map_or_else(|error| away(error.into()), Answer::Assigned);
    }
    match ask_authd(&registrars.authd, question).await {
        Ok(answer) => answer,
        Err(_) if database::is_there(&registrars.database).await => Answer::Database,
        Err(error) => away(error.into()),
    }
}

async fn ask_authd(authd: &Path, question: &Question) -> Result<Answer, ClientError> {
    let mut client = Client::connect(authd, "remoted", AUTHD_DEADLINE).await?;
    match question {
        Question::Version => version(&mut client).await,
        Question::All => all(&mut client).await,
        Question::Assign(wanted) | Question::Look(wanted) => {
            let mut assigned = Vec::new();
            for (group, ids) in wanted {
                let request = Request::SetGroups {
                    agents: ids.clone(),
                    groups: vec![group.clone()],
                    mode: GroupMode::EmptyOnly,
                };
                match client.ask(&request).await? {
                    Response::Groups { agents, .. } => assigned.extend(agents),
                    other => return Ok(refused(other)),
                }
            }
            Ok(Answer::Assigned(assigned))
        }
    }
}

async fn version(client: &mut Client) -> Result<Answer, ClientError> {
    let request = Request::Groups { after: None, limit: 0 };
    Ok(match client.ask(&request).await? {
        Response::Groups { version, .. } => Answer::Version(version),
        other => refused(other),
    })
}

/// Page by page. Should groups change meanwhile, the version of the first page says so the next time.
async fn all(client: &mut Client) -> Result<Answer, ClientError> {
    let mut all: Vec<AgentGroups> = Vec::new();
    let mut first_version = None;
    loop {
        let request = Request::Groups {
            after: all.last().map(|agent| agent.id.clone()),
            limit: GROUPS_PAGE,
        };
        match client.ask(&request).await? {
            Response::Groups { agents, more, version } => {
                let is_over = !more || agents.is_empty();
                all.extend(agents);
                let version = *first_version.get_or_insert(version);
                if is_over {
                    return Ok(Answer::All { agents: all, version });
                }
            }
            other => return Ok(refused(other)),
        }
    }
}

fn refused(response: Response) -> Answer {
    Answer::Refused(match response {
        Response::Failed(why) => why,
        Response::Denied => "not permitted".to_owned(),
        _ => "it does not know the question".to_owned(),
    })
}
