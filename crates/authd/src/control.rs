//! `queue/muster/authd.ctl`: status, reload, and the groups of agents.

use std::sync::{Arc, Mutex, PoisonError};

use muster_proto::{
    agent::AgentId,
    enrollment::{Rejection, group::MAX_GROUPS},
    ipc::control::{DaemonStatus, GroupMode, IdBlocks, MAX_GROUP_CHANGES, QueueStatus, Request, Response},
};
use muster_service::{
    Reloader,
    control::{Answer, Handler, StatusSource},
    ipc::Peer,
    outbox,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission,
    cli::Cli,
    enroll::Enroller,
    groups,
    leases::Block,
    live::{Live, Password},
    store::{self, GroupsOutcome, GroupsPage, StoreGone},
};

/// Answers on the control socket.
pub struct Control {
    /// The common part.
    pub status: StatusSource,
    /// Reads the configuration again.
    pub reloader: Reloader,
    /// What stands over it.
    pub cli: Cli,
    /// Settings of the moment.
    pub live: watch::Sender<Arc<Live>>,
    /// Counters and store.
    pub enroller: Arc<Enroller>,
    /// Connections.
    pub admission: Arc<Mutex<Admission<CancellationToken>>>,
    /// Events on their way.
    pub outbox: outbox::Sender,
    /// Addresses and paths.
    pub listening: Vec<String>,
    /// The manager's own name.
    pub manager_name: String,
}

impl Handler for Control {
    async fn status(&self) -> DaemonStatus {
        let live = self.live.borrow().clone();
        let store = self.enroller.store().status();
        let outbox = self.outbox.status();
        let open = self.admission.lock().unwrap_or_else(PoisonError::into_inner).open();
        let mut degraded = Vec::new();
        if store.cannot_write {
            degraded.push("the key file cannot be written: nobody is enrolled or removed; see the log".to_owned());
        }
        if store.owes_rows {
            degraded.push("the enrollment database lags behind the key file; see the log".to_owned());
        }
        if store.free_ids == Some(0) {
            degraded.push(
                "no id is left to give, new agents are refused: natsd leases ids, and must reach authd and NATS"
                    .to_owned(),
            );
        }
        let mut facts = vec![
            ("agents".to_owned(), store.agents.to_string()),
            ("password".to_owned(), password_fact(live.password.as_ref()).to_owned()),
            (
                "natsd".to_owned(),
                if outbox.connected {
                    "connected"
                } else {
                    "away: events wait"
                }
                .to_owned(),
            ),
        ];
        facts.extend(
            store
                .free_ids
                .map(|free| ("leased_ids_left".to_owned(), free.to_string())),
        );
        DaemonStatus {
            ready: !store.cannot_write,
            degraded,
            listening: self.listening.clone(),
            queues: vec![
                queue("connections", open, live.auth.limits.max_connections, "connections", {
                    self.enroller.counters.enrollment_connections_over_cap_total.value()
                }),
                queue("store", store.waiting, store::QUEUE_LEN, "requests", 0),
                outbox.queue(),
            ],
            counters: self.enroller.counters.values(),
            facts,
            ..self.status.status()
        }
    }

    async fn reload(&self) -> Result<String, String> {
        let settings = self.reloader.load()?;
        let before = self.live.borrow().clone();
        let mut auth = self.cli.over(&settings.auth);
        let mut needs_restart = Vec::new();
        for (name, differs) in [
            ("disabled", auth.disabled != before.auth.disabled),
            ("port", auth.port != before.auth.port),
            ("ipv6", auth.ipv6 != before.auth.ipv6),
            ("local_ip", auth.local_ip != before.auth.local_ip),
            (
                "remote_enrollment",
                auth.remote_enrollment != before.auth.remote_enrollment,
            ),
        ] {
            if differs {
                needs_restart.push(name);
            }
        }
        auth.disabled = before.auth.disabled;
        auth.port = before.auth.port;
        auth.ipv6 = before.auth.ipv6;
        auth.local_ip = before.auth.local_ip;
        auth.remote_enrollment = before.auth.remote_enrollment;

        let live = Live::new(&settings, auth, Some(&before)).map_err(|error| format!("{error:#}"))?;
        self.admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set_limits(live.limits());
        self.enroller
            .store()
            .set_policy(live.store_policy(&self.manager_name))
            .await;
        self.live.send_replace(Arc::new(live));
        Ok(match needs_restart.is_empty() {
            true => "the configuration is in force".to_owned(),
            false => format!(
                "the configuration is in force, but for {}: restart authd",
                needs_restart.join(", ")
            ),
        })
    }

    async fn handle(&self, request: Request, _: Peer) -> Answer {
        match request {
            Request::Groups { after, limit } => self.groups(after, limit).await,
            Request::IdBlocks => {
                let store = self.enroller.store().status();
                Response::IdBlocks(IdBlocks {
                    free: store.free_ids,
                    highest: store.highest_number,
                })
            }
            Request::AddIdBlock { first, count } => self.take_block(Block { first, count }).await,
            Request::SetGroups { agents, groups, mode } => self.set_groups(agents, groups, mode).await,
            _ => Response::Unknown,
        }
        .into()
    }
}

/// Agents of one page of groups.
const MAX_GROUPS_PAGE: u32 = 5000;

impl Control {
    async fn groups(&self, after: Option<AgentId>, limit: u32) -> Response {
        let limit = limit.min(MAX_GROUPS_PAGE) as usize;
        answer(self.enroller.store().groups(after, limit).await)
    }

    async fn take_block(&self, block: Block) -> Response {
        match self.enroller.store().take_block(block).await {
            Ok(Ok(())) => Response::Done(format!("{} ids from {} on", block.count, block.first)),
            Ok(Err(why)) => Response::Failed(why),
            Err(gone) => Response::Failed(gone.to_string()),
        }
    }

    async fn set_groups(&self, agents: Vec<AgentId>, named: Vec<String>, mode: GroupMode) -> Response {
        if agents.len() > MAX_GROUP_CHANGES {
            return Response::Failed(format!("more than {MAX_GROUP_CHANGES} agents at once"));
        }
        // A group that is gone must still be taken from its agents.
        let exists = |group: &str| mode == GroupMode::Remove || groups::has_directory(group);
        if let Err(rejection) = groups::check(&named, exists) {
            return Response::Failed(match rejection {
                Rejection::UnknownGroup(group) => format!("there is no group {group}"),
                Rejection::TooManyGroups => format!("more than {MAX_GROUPS} groups"),
                _ => "a group's name may have letters, digits, '_', '.' and '-' only".to_owned(),
            });
        }
        answer(self.enroller.store().set_groups(agents, named, mode).await)
    }
}

fn answer(outcome: Result<GroupsOutcome, StoreGone>) -> Response {
    match outcome {
        Ok(Ok(GroupsPage { agents, more, version })) => Response::Groups { agents, more, version },
        Ok(Err(error)) => Response::Failed(format!("{:#}", anyhow::Error::new(error))),
        Err(gone) => Response::Failed(gone.to_string()),
    }
}

fn queue(name: &str, used: usize, capacity: usize, unit: &str, dropped: u64) -> QueueStatus {
    QueueStatus {
        name: name.to_owned(),
        used: used as u64,
        capacity: capacity as u64,
        unit: unit.to_owned(),
        dropped,
    }
}

fn password_fact(password: Option<&Password>) -> &'static str {
    match password {
        None => "none",
        Some(password) if password.is_random => "made for this run, see the log",
        Some(_) => "etc/authd.pass",
    }
}
