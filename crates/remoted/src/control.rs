//! What remoted answers on `queue/muster/remoted.ctl`.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_config::Settings;
use muster_proto::ipc::control::{DaemonStatus, MaintenanceWindow, Request, Response};
use muster_service::{
    Reloader,
    control::{Answer, Handler, StatusSource},
    ipc::Peer,
    outbox::Sender,
};
use tokio::time::{sleep, timeout};

use crate::{
    desk::Window,
    edge::Edge,
    key_requests::KeyRequestQueue,
    options,
    orders::OrderCounters,
    reach::Reach,
    requests::serve::RequestCounters,
    roster::maintenance::{self, Maintenance},
    shared::Shared,
    syslog::serve::SyslogStatus,
    wazuh_db::writer::StockRows,
};

/// The largest page of agents: with everything that an agent can report, still within a frame.
const MAX_PAGE: u32 = 200;

/// How long whoever says that the keys have changed waits until they are known.
const KEYS_DEADLINE: Duration = Duration::from_secs(3);

/// How often it is looked whether the roster has heard of them.
const NEWS_LOOK: Duration = Duration::from_millis(1);

/// The handler.
pub struct Control {
    /// The common part of the status.
    pub status: StatusSource,
    /// Questions for keys.
    pub key_requests: KeyRequestQueue,
    /// Reads the configuration again.
    pub reloader: Reloader,
    /// The configuration in force, as it was read last.
    pub settings: Mutex<Arc<Settings>>,
    /// The roster.
    pub window: Window,
    /// Shared files.
    pub shared: Shared,
    /// Rows in the stock database, where there is one.
    pub stock_rows: StockRows,
    /// The network.
    pub edge: Arc<Mutex<Edge>>,
    /// The way to natsd.
    pub outbox: Sender,
    /// The manager's name where no other is set.
    pub host: String,
    /// What went wrong at the start and goes on to matter.
    pub complaints: Vec<String>,
    /// Who may be sent what.
    pub reach: Arc<Reach>,
    /// Held while the maintenance windows change.
    pub maintaining: Mutex<()>,
    /// What local programs wanted.
    pub local: LocalCounters,
}

/// What was counted of local programs and of hosts without an agent.
pub struct LocalCounters {
    /// Requests to agents.
    pub requests: Arc<RequestCounters>,
    /// Orders to agents.
    pub orders: Arc<OrderCounters>,
    /// Lines of hosts without an agent, if any may send them.
    pub syslog: Option<SyslogStatus>,
}

impl Control {
    /// Lets the key file be looked at now: whether what it says is known, or `None` when we are being stopped.
    async fn read_keys(&self) -> Option<bool> {
        let (read, tables) = {
            let edge = self.edge.try_lock().ok()?;
            (edge.keys_read(), edge.tables())
        };
        let known = async {
            read.await;
            // The roster takes its news a few milliseconds later, many at a time.
            while self.window.roster().len() != tables.borrow().len() {
                sleep(NEWS_LOOK).await;
            }
        };
        Some(timeout(KEYS_DEADLINE, known).await.is_ok())
    }
}

impl Control {
    fn add_shared(&self, status: &mut DaemonStatus) {
        let shared = self.shared.status();
        status.queues.push(self.shared.queue());
        let counted = shared.counters.into_iter();
        status
            .counters
            .extend(counted.map(|(name, value)| (format!("remoted_{name}"), value)));
        status.facts.extend([
            ("groups".to_owned(), shared.groups.to_string()),
            (
                "shared_files".to_owned(),
                format!("{} running, {} waiting", shared.running, shared.waiting),
            ),
        ]);
        if let Some(error) = shared.away {
            status
                .degraded
                .push(format!("authd does not say which groups agents have: {error}"));
        }
    }

    /// Changes the maintenance windows: on the disk first, so that whoever was told of one can rely on it.
    fn maintain(
        &self,
        reason: &str,
        change: impl FnOnce(&mut Maintenance, u64) -> Result<Vec<MaintenanceWindow>, String>,
    ) -> Response {
        let now = self.window.now();
        let _alone = self.maintaining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut maintenance = self.window.roster().maintenance().clone();
        let changed = match change(&mut maintenance, now.wall_ms / 1000) {
            Ok(changed) => changed,
            Err(why) => return Response::Failed(why),
        };
        if let Err(error) = maintenance.save(Path::new(maintenance::FILE)) {
            return Response::Failed(format!("cannot write {}: {error}", maintenance::FILE));
        }
        self.window.roster().set_maintenance(now, maintenance, &changed, reason);
        Response::Maintenance(changed)
    }

    /// Another manager has the agent: its connection here ends.
    fn let_go(&self, id: &str, since_ms: u64) -> Response {
        match self.window.roster().let_go(self.window.now(), id, since_ms) {
            Ok(slot) => {
                // While we are being stopped it ends anyhow.
                if let Ok(edge) = self.edge.try_lock() {
                    edge.close(&slot);
                }
                Response::Done(format!("agent {id} was let go"))
            }
            Err(why) => Response::Failed(why),
        }
    }

    /// authd has written the keys, or groups have changed.
    async fn files_changed(&self) -> Option<bool> {
        self.shared.look_now();
        self.read_keys().await
    }
}

impl Handler for Control {
    async fn status(&self) -> DaemonStatus {
        let mut status = self.status.status();
        status.degraded.clone_from(&self.complaints);
        // While it is being stopped there is nothing to be said about it.
        if let Ok(edge) = self.edge.try_lock() {
            status.listening = edge
                .listening()
                .iter()
                .map(|at| format!("{} {}", at.protocol.as_str(), at.address))
                .collect();
            status.queues = edge.queues();
            status.counters = edge.counters();
            status.degraded.extend(edge.degraded());
            status
                .facts
                .push(("connections".to_owned(), edge.connections().to_string()));
            let talkers: Vec<String> = edge.top_talkers().iter().map(ToString::to_string).collect();
            if !talkers.is_empty() {
                status.facts.push(("top_talkers".to_owned(), talkers.join(", ")));
            }
        }
        if let Some(syslog) = &self.local.syslog {
            status.listening.extend(syslog.listening().cloned());
            status.counters.extend(syslog.counters());
            if syslog.is_degraded() {
                status
                    .degraded
                    .push("nobody takes the lines that come over syslog".to_owned());
            }
        }
        let LocalCounters { requests, orders, .. } = &self.local;
        let counted = requests.values().into_iter().chain(orders.values());
        status
            .counters
            .extend(counted.map(|(name, value)| (format!("remoted_{name}"), value)));
        let asked = self.key_requests.counters().values().into_iter();
        status
            .counters
            .extend(asked.map(|(name, value)| (format!("remoted_{name}"), value)));
        self.add_shared(&mut status);
        status.queues.extend(self.stock_rows.queue());
        let rows = self.stock_rows.counters().into_iter();
        status
            .counters
            .extend(rows.map(|(name, value)| (format!("remoted_{name}"), value)));
        if self.stock_rows.is_away() {
            status
                .degraded
                .push("wazuh-db is away: what stock programs show of agents is old".to_owned());
        }
        let outbox = self.outbox.status();
        status
            .queues
            .extend([self.window.queue(), self.key_requests.queue(), outbox.queue()]);
        if let Some(error) = outbox.error {
            status.degraded.push(format!("natsd does not take events: {error}"));
        }
        if let Some(error) = self.window.writer().error {
            status.degraded.push(format!("cannot store agents and events: {error}"));
        }
        let roster = self.window.roster();
        status.counters.extend(
            roster
                .counters()
                .values()
                .into_iter()
                .map(|(name, value)| (format!("roster_{name}"), value)),
        );
        status
            .facts
            .push(("keepalive".to_owned(), options::in_words(&roster.settings().policy)));
        if !roster.maintenance().windows().is_empty() {
            let count = roster.maintenance().windows().len();
            status.facts.push(("maintenance_windows".to_owned(), count.to_string()));
        }
        let [active, disconnected, pending, never] = roster.census();
        let facts = [
            ("agents", roster.len()),
            ("active", active),
            ("pending", pending),
            ("disconnected", disconnected),
            ("never_connected", never),
        ];
        status
            .facts
            .extend(facts.map(|(name, count)| (name.to_owned(), count.to_string())));
        status
    }

    async fn reload(&self) -> Result<String, String> {
        let new = Arc::new(self.reloader.load()?);
        // Whoever edited the configuration by hand may have edited the keys as well.
        self.read_keys().await;
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let restart = options::need_restart(&settings, &new);
        let wanted = options::roster_settings(&new, &self.host);
        self.reach.set_disconnection_time(new.global.agents_disconnection_time);
        let mut roster = self.window.roster();
        let changed = wanted != *roster.settings();
        if changed {
            roster.reconfigure(self.window.now(), wanted);
        }
        *settings = new;
        let taken = if changed {
            "keepalive settings are in force"
        } else {
            "nothing has changed that can while running"
        };
        Ok(match restart.as_slice() {
            [] => taken.to_owned(),
            names => format!("{taken}; {} counts after a restart", names.join(", ")),
        })
    }

    async fn handle(&self, request: Request, _: Peer) -> Answer {
        let now = self.window.now();
        let answer = match request {
            Request::Heard { within_ms, after } => {
                let within = Duration::from_millis(within_ms);
                let (agents, next) = self.window.roster().heard(now, within, after.as_ref());
                // No status is in it, so nothing has to be on the disk.
                return Response::Heard { agents, next }.into();
            }
            Request::Agents { after, limit } => {
                let limit = limit.clamp(1, MAX_PAGE) as usize;
                let (agents, more) = self.window.roster().page(now, after.as_ref(), limit);
                Response::Agents { agents, more }
            }
            Request::Agent(id) => {
                let agents = self.window.roster().agent(now, id.as_str()).into_iter().collect();
                Response::Agents { agents, more: false }
            }
            Request::Liveness(id) => Response::Liveness(self.window.roster().liveness(id.as_str())),
            Request::LetGo { agent, since_ms } => self.let_go(agent.as_str(), since_ms),
            Request::ResetCounter(id) => match self.edge.try_lock().map(|edge| edge.reset_counter(id.as_str())) {
                Ok(true) => Response::Done(format!("the counters of agent {id} begin anew")),
                Ok(false) => Response::Failed(format!("there is no agent {id}")),
                Err(_) => Response::Failed("remoted is stopping".to_owned()),
            },
            Request::Maintenance => {
                let windows = self.window.roster().maintenance().windows().to_vec();
                Response::Maintenance(windows)
            }
            Request::MaintenanceStart { scope, seconds } => self
                .maintain("maintenance_started", |maintenance, now_s| {
                    maintenance.start(scope, seconds, now_s).map(|window| vec![window])
                }),
            Request::MaintenanceStop { scope } => self.maintain("maintenance_ended", |maintenance, _| {
                Ok(maintenance.stop(scope.as_ref()))
            }),
            Request::KeysChanged => match self.files_changed().await {
                Some(true) => Response::Done("the key file was read".to_owned()),
                Some(false) => Response::Done("the key file is being read".to_owned()),
                None => Response::Failed("remoted is stopping".to_owned()),
            },
            _ => Response::Unknown,
        };
        self.window.settle().await;
        answer.into()
    }
}
