//! Daemons that only answer.

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener as StdListener,
    sync::{Arc, Mutex, mpsc::sync_channel},
    thread,
};

use muster_proto::{
    agent::{AgentId, AgentStatus},
    event::{Event, Kind},
    ipc::control::{AgentInfo, DaemonStatus, PublishedEvent, Request, Response},
    local::auth,
    paths,
};
use muster_service::{
    control::{self, Answer, Handler, StatusSource},
    ipc::Peer,
};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::home::Home;

/// A control socket with answers behind it, until dropped.
pub(crate) struct FakeDaemon {
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeDaemon {
    /// A remoted that knows agents 1 to so many; every third one is disconnected.
    pub(crate) fn remoted(home: &Home, agents: u32) -> Self {
        Self::start(home, "remoted", Fake { agents })
    }

    /// A natsd whose stream ends behind its backlog.
    pub(crate) fn natsd(home: &Home) -> Self {
        Self::start(home, "natsd", Fake { agents: 0 })
    }

    fn start(home: &Home, daemon: &'static str, fake: Fake) -> Self {
        let path = home.path(&paths::control_socket(daemon));
        let stop = CancellationToken::new();
        let until = stop.clone();
        let (bound, wait) = sync_channel(1);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                let listener = UnixListener::bind(path).expect("bound");
                bound.send(()).expect("waited for");
                control::serve(daemon, listener, Arc::new(fake), until).await;
            });
        });
        wait.recv().expect("bound");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

struct Fake {
    agents: u32,
}

impl Handler for Fake {
    async fn status(&self) -> DaemonStatus {
        StatusSource::new("fake").status()
    }

    async fn reload(&self) -> Result<String, String> {
        Ok("all of it".to_owned())
    }

    async fn handle(&self, request: Request, _: Peer) -> Answer {
        match request {
            Request::Agents { after, limit } => {
                let first = after.and_then(|id| id.number()).unwrap_or(0) + 1;
                // Smaller pages than asked for, which a daemon may do.
                let last = self.agents.min(first + limit.min(100) - 1);
                let agents = (first..=last).map(agent).collect();
                Response::Agents {
                    agents,
                    more: last < self.agents,
                }
                .into()
            }
            Request::Agent(id) => {
                let known = id.number().filter(|number| (1..=self.agents).contains(number));
                Response::Agents {
                    agents: known.map(agent).into_iter().collect(),
                    more: false,
                }
                .into()
            }
            Request::FollowEvents { backlog } => {
                let (sender, receiver) = mpsc::channel(8);
                tokio::spawn(async move {
                    for sequence in 1..=u64::from(backlog) {
                        if sender.send(Response::Event(Box::new(event(sequence)))).await.is_err() {
                            return;
                        }
                    }
                });
                Answer::Stream(receiver)
            }
            _ => Response::Unknown.into(),
        }
    }
}

fn agent(number: u32) -> AgentInfo {
    AgentInfo {
        id: AgentId::from_number(number),
        name: format!("agent-{number}"),
        ip: "any".to_owned(),
        status: if number.is_multiple_of(3) {
            AgentStatus::Disconnected
        } else {
            AgentStatus::Active
        },
        reason: None,
        since: None,
        version: Some("Wazuh v4.14.7".to_owned()),
        last_heard: Some(1_700_000_000),
        last_keepalive: None,
        last_sent: None,
        missed: 0,
        timeout: None,
        observed_interval: None,
        peer: None,
        protocol: None,
        crypto: None,
        reported_ip: None,
        os: None,
        merged_sum: None,
        config_sum: None,
        labels: Vec::new(),
        groups: Vec::new(),
        group_config_status: None,
    }
}

fn event(sequence: u64) -> PublishedEvent {
    let event = Event {
        kind: Kind::StatusChange,
        subject_key: "001".to_owned(),
        created_ms: 1_700_000_000_000,
        alert_level: 0,
        body: format!("{{\"z\":1,\"a\":{sequence}}}").into_bytes(),
        headers: Vec::new(),
    };
    PublishedEvent {
        subject: "p.status".to_owned(),
        sequence,
        producer: "remoted".to_owned(),
        event,
    }
}

/// The stock socket of an authd that knows agent 001 only.
pub(crate) struct FakeAuthd {
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeAuthd {
    /// Its thread ends with the test program.
    pub(crate) fn start(home: &Home) -> Self {
        let listener = StdListener::bind(home.path(paths::AUTH_SOCKET)).expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                let mut header = [0; 4];
                stream.read_exact(&mut header).expect("read");
                let mut payload = vec![0; auth::payload_len(header).expect("a length")];
                stream.read_exact(&mut payload).expect("read");
                let request = String::from_utf8(payload).expect("text");
                let answer = if request.contains("\"add\"") {
                    r#"{"error":0,"data":{"id":"001","name":"web-01","ip":"any","key":"0123"}}"#
                } else if request.contains("\"001\"") {
                    r#"{"error":0,"data":"Agent deleted successfully."}"#
                } else {
                    r#"{"error":9011,"message":"Agent ID not found"}"#
                };
                heard.lock().expect("no panic").push(request);
                stream.write_all(&auth::frame(answer.as_bytes())).expect("written");
            }
        });
        Self { requests }
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}
