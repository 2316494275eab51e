use muster_proto::{
    agent::AgentId,
    event::{Event, Kind},
    ipc::control::{MaintenanceScope, PublishedEvent},
};

use super::*;
use crate::client::{Client, ClientError};

struct Daemon;

impl Handler for Daemon {
    async fn status(&self) -> DaemonStatus {
        StatusSource::new("natsd").status()
    }

    async fn reload(&self) -> Result<String, String> {
        Err("etc/ossec.conf:3:1: bad".to_owned())
    }

    async fn handle(&self, request: Request, _: Peer) -> Answer {
        match request {
            Request::FollowEvents { backlog } => {
                let (sender, receiver) = mpsc::channel(8);
                tokio::spawn(async move {
                    for sequence in 1..=u64::from(backlog) {
                        if sender
                            .send(Response::Event(Box::new(published(sequence))))
                            .await
                            .is_err()
                        {
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

fn published(sequence: u64) -> PublishedEvent {
    let event = Event {
        kind: Kind::Health,
        subject_key: String::new(),
        created_ms: 0,
        alert_level: 0,
        body: Vec::new(),
        headers: Vec::new(),
    };
    PublishedEvent {
        subject: "s".to_owned(),
        sequence,
        producer: "p".to_owned(),
        event,
    }
}

async fn client(stop: &CancellationToken) -> (tempfile::TempDir, Client) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("natsd.ctl");
    let listener = UnixListener::bind(&path).expect("bound");
    tokio::spawn(serve("natsd", listener, Arc::new(Daemon), stop.clone()));
    let client = Client::connect(&path, "control", Duration::from_secs(5))
        .await
        .expect("connected");
    (directory, client)
}

#[tokio::test]
async fn one_connection_answers_many_requests() {
    let (_directory, mut client) = client(&CancellationToken::new()).await;
    for _ in 0..3 {
        let Response::Status(status) = client.ask(&Request::Status).await.expect("answered") else {
            panic!("no status");
        };
        assert_eq!((status.daemon.as_str(), status.pid), ("natsd", std::process::id()));
    }
    let failed = Response::Failed("etc/ossec.conf:3:1: bad".to_owned());
    assert_eq!(client.ask(&Request::Reload).await.expect("answered"), failed);
    let unknown = client
        .ask(&Request::Agent(AgentId::new("001")))
        .await
        .expect("answered");
    assert_eq!(unknown, Response::Unknown);
}

#[tokio::test]
async fn stream_of_answers_comes_in_order_and_ends_with_its_source() {
    let (_directory, client) = client(&CancellationToken::new()).await;
    let mut events = client
        .follow(&Request::FollowEvents { backlog: 100 })
        .await
        .expect("following");
    for expected in 1..=100 {
        let Some(Response::Event(event)) = events.next().await.expect("received") else {
            panic!("no event")
        };
        assert_eq!(event.sequence, expected);
    }
    assert_eq!(events.next().await.expect("ended"), None);
}

#[tokio::test]
async fn stop_ends_connections() {
    let stop = CancellationToken::new();
    let (_directory, mut client) = client(&stop).await;
    client.ask(&Request::Status).await.expect("answered");
    stop.cancel();
    assert!(client.ask(&Request::Status).await.is_err());
}

#[tokio::test]
async fn strangers_may_read_and_not_change() {
    let stranger = Peer {
        uid: 4242,
        gid: 4242,
        pid: None,
    };
    let status = answer(&Daemon, Request::Status, stranger, 1000).await;
    assert!(matches!(status, Answer::One(Response::Status(_))));
    let scope = MaintenanceScope::All;
    for request in [
        Request::Reload,
        Request::ResetCounter(AgentId::new("001")),
        Request::MaintenanceStart { scope, seconds: 60 },
        Request::MaintenanceStop { scope: None },
    ] {
        let denied = answer(&Daemon, request, stranger, 1000).await;
        assert!(matches!(denied, Answer::One(Response::Denied)));
    }
    let passed_on = answer(&Daemon, Request::KeysChanged, stranger, 1000).await;
    assert!(matches!(passed_on, Answer::One(Response::Unknown)));
    for uid in [0, 1000] {
        let allowed = answer(&Daemon, Request::Reload, Peer { uid, ..stranger }, 1000).await;
        assert!(matches!(allowed, Answer::One(Response::Failed(_))));
    }
}

#[tokio::test]
async fn absent_daemon_is_unreachable_rather_than_broken() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("gone.ctl");
    let error = Client::connect(&path, "control", Duration::from_secs(5))
        .await
        .expect_err("unreachable");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let error = Client::connect(&path, "control", Duration::from_secs(5))
        .await
        .expect_err("unreachable");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}
