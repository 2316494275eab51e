//! `queue/sockets/auth`: local programs add, remove and look up agents.
//!
//! One request and one answer a connection, many connections at a time: a client that says nothing holds up nobody.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    enrollment::request::GivenAddress,
    keys::file::{KeyEntry, cut},
    local::auth::{self, Add, AgentData, Answer, BadRequest, Ensured, ErrorCode, Request, UNKNOWN_SECTION},
};
use muster_service::ipc::serve_connections;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    change::Removal,
    enroll::{Enroller, Outcome},
    get_config, groups,
    keystore::Trace,
    live::LiveSettings,
    registry::{Ask, Clash, Method, Refused},
    store::RemoveOutcome,
};

/// Connections that are served at one time; further ones wait in the kernel's backlog. An `add` lasts until its batch is
/// on the disk and remoted has been told, so key polling needs hundreds of them to add thousands a second.
const MAX_CONNECTIONS: usize = 1024;
/// How long an answer may take to be written.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may be silent where the configuration gives it for ever.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// What every connection needs.
pub struct LocalSide {
    /// Grants keys.
    pub enroller: Arc<Enroller>,
    /// Settings of the moment.
    pub live: LiveSettings,
}

/// Serves until told to stop.
pub async fn serve(side: Arc<LocalSide>, listener: UnixListener, stop: CancellationToken) {
    serve_connections(listener, MAX_CONNECTIONS, stop, move |stream| {
        let side = Arc::clone(&side);
        async move { side.converse(stream).await }
    })
    .await;
}

impl LocalSide {
    async fn converse(&self, mut stream: UnixStream) {
        let configured = self.live.borrow().receive_timeout;
        let silence = if configured.is_zero() {
            LONGEST_SILENCE
        } else {
            configured
        };
        // Closed without a word, as stock: nothing was asked.
        let Ok(Some(payload)) = timeout(silence, read_frame(&mut stream)).await else {
            self.enroller.counters.local_requests_incomplete_total.increment();
            return;
        };
        self.enroller.counters.local_requests_total.increment();
        let answer = Zeroizing::new(auth::frame(&self.answer(&payload).await));
        match timeout(WRITE_DEADLINE, stream.write_all(&answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a local client went before its answer"),
            Err(_) => tracing::debug!("a local client did not read its answer"),
        }
    }

    async fn answer(&self, payload: &[u8]) -> Zeroizing<Vec<u8>> {
        let outcome = match Request::parse(payload) {
            Ok(Request::Add(add)) => self.add(*add).await,
            Ok(Request::Ensure(add)) => self.ensure(*add).await,
            Ok(Request::Remove { id, purge }) => {
                let trace = purge.then_some(Trace::Nothing);
                match self
                    .enroller
                    .store()
                    .remove(id, trace, (Removal::Asked, Method::Local))
                    .await
                {
                    Ok(RemoveOutcome::Removed) => Ok(Answer::Removed),
                    Ok(RemoveOutcome::NotFound) => Err(ErrorCode::IdNotFound),
                    Ok(RemoveOutcome::Failed) | Err(_) => Err(ErrorCode::Internal),
                }
            }
            Ok(Request::Get { id }) => match self.enroller.store().get(id).await {
                Ok(Some(entry)) => Ok(Answer::Agent(AgentData {
                    id: entry.id.to_string(),
                    name: entry.name.clone(),
                    ip: entry.address.host_text().to_owned(),
                    key: entry.key.expose().to_owned(),
                })),
                Ok(None) => Err(ErrorCode::IdNotFound),
                Err(_) => Err(ErrorCode::Internal),
            },
            Ok(Request::GetConfig(section)) => return Zeroizing::new(self.get_config(&section).into_bytes()),
            Err(BadRequest::Json(code)) => Err(code),
            Err(BadRequest::Text(text)) => {
                self.enroller.counters.local_errors_total.increment();
                return Zeroizing::new(text.as_bytes().to_vec());
            }
        };
        outcome
            .unwrap_or_else(|code| {
                self.enroller.counters.local_errors_total.increment();
                tracing::debug!(%code, "a local request was answered with an error");
                Answer::Error(code)
            })
            .to_payload()
    }

    async fn add(&self, add: Add) -> Result<Answer, ErrorCode> {
        groups::check(&add.groups, groups::has_directory).map_err(|_| ErrorCode::InvalidGroups)?;
        let rules = add.force.unwrap_or_else(|| self.live.borrow().rules);
        let ask = Ask {
            name: add.name,
            address: GivenAddress::parse(&add.ip),
            id: add.id,
            key_hash: add.key_hash,
            rules,
            groups: add.groups,
            method: Method::Local,
            source: None,
        };
        match self.enroller.enroll(&ask, add.key).await {
            Outcome::Granted(entry) => {
                self.enroller.counters.local_added_total.increment();
                tracing::info!(
                    agent_id = entry.id.as_str(),
                    name = entry.name,
                    "an agent was added by a local program"
                );
                Ok(Answer::Agent(AgentData {
                    id: entry.id.to_string(),
                    name: ask.name,
                    ip: add.ip,
                    key: entry.key.expose().to_owned(),
                }))
            }
            Outcome::Refused(refused) => Err(match refused {
                Refused::InTheWay { clash: Clash::Id, .. } => ErrorCode::DuplicateId,
                Refused::InTheWay {
                    clash: Clash::Address, ..
                } => ErrorCode::DuplicateIp,
                Refused::InTheWay { clash: Clash::Name, .. } | Refused::ManagerName => ErrorCode::DuplicateName,
                Refused::BadAddress => ErrorCode::NoIp,
                Refused::Full => ErrorCode::TooManyAgents,
            }),
            Outcome::Failed => Err(ErrorCode::Internal),
        }
    }

    /// Replacing an agent by itself would reset its registration time and leave a removed line behind.
    async fn ensure(&self, add: Add) -> Result<Answer, ErrorCode> {
        let id = add.id.clone().ok_or(ErrorCode::NoId)?;
        let known = self.enroller.store().get(id).await.map_err(|_| ErrorCode::Internal)?;
        let ensured = match known {
            Some(entry) if is_as_given(&entry, &add) => return Ok(Answer::Ensured(Ensured::Unchanged)),
            Some(_) => Ensured::Replaced,
            None => Ensured::Added,
        };
        self.add(add).await.map(|_| Answer::Ensured(ensured))
    }

    fn get_config(&self, section: &str) -> String {
        if section == "auth" {
            let live = self.live.borrow();
            get_config::text(&live.auth, live.key_request.as_ref())
        } else {
            UNKNOWN_SECTION.to_owned()
        }
    }
}

fn is_as_given(entry: &KeyEntry, add: &Add) -> bool {
    let address = GivenAddress::parse(&add.ip);
    entry.name == cut(&add.name)
        && Some(entry.address.text()) == address.as_ref().map(|given| given.address.text())
        && Some(&entry.key) == add.key.as_ref()
}

async fn read_frame(stream: &mut UnixStream) -> Option<Zeroizing<Vec<u8>>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await.ok()?;
    let mut payload = Zeroizing::new(vec![0; auth::payload_len(header)?]);
    stream.read_exact(&mut payload).await.ok()?;
    Some(payload)
}
