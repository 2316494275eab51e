//! The real binary in a home of its own: what it says of itself, how it is told to change, how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests that cannot go on ends the test"
)]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use muster_proto::{
    agent::{AgentId, AgentStatus},
    ipc::control::{AgentInfo, DaemonStatus, Liveness, Request, Response},
    paths,
};
use muster_service::client::Client;
use muster_test_ports::Port;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PATIENCE: Duration = Duration::from_secs(20);
const KEEPALIVE: &str = "<manager_keepalive><interval>60</interval><timeout>180</timeout></manager_keepalive>";

struct Home {
    directory: tempfile::TempDir,
    port: u16,
    _reserved: Port,
}

impl Home {
    fn new(remote: &str) -> Self {
        let reserved = Port::free().unwrap();
        let home = Self {
            directory: tempfile::tempdir().unwrap(),
            port: reserved.number,
            _reserved: reserved,
        };
        fs::create_dir_all(home.path("etc")).unwrap();
        home.configure(remote);
        home.keys(&["001", "002", "010"]);
        home
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn configure(&self, remote: &str) {
        let text = format!(
            "<ossec_config><remote><connection>secure</connection><port>{}</port><local_ip>127.0.0.1</local_ip>{remote}\
             </remote></ossec_config>",
            self.port
        );
        fs::write(self.path(paths::CONFIG), text).unwrap();
    }

    fn keys(&self, ids: &[&str]) {
        let lines: String = ids.iter().map(|id| format!("{id} agent-{id} any secret\n")).collect();
        fs::write(self.path("etc/new"), lines).unwrap();
        fs::rename(self.path("etc/new"), self.path(paths::CLIENT_KEYS)).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-remoted"));
        command
            .arg("--home")
            .arg(self.directory.path())
            .args(["--workers", "1"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    async fn start(&self) -> Daemon {
        let child = self.command().stderr(Stdio::inherit()).spawn().unwrap();
        let daemon = Daemon {
            child,
            socket: self.path(&paths::control_socket("remoted")),
        };
        let deadline = Instant::now() + PATIENCE;
        while daemon.connect().await.is_none() {
            assert!(Instant::now() < deadline, "remoted does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon
    }
}

struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    async fn connect(&self) -> Option<Client> {
        Client::connect(&self.socket, "control", PATIENCE).await.ok()
    }

    async fn ask(&self, request: Request) -> Response {
        self.connect().await.unwrap().ask(&request).await.unwrap()
    }

    async fn status(&self) -> DaemonStatus {
        let Response::Status(status) = self.ask(Request::Status).await else {
            panic!("no status")
        };
        *status
    }

    async fn fact(&self, name: &str) -> String {
        let status = self.status().await;
        status.facts.into_iter().find(|(fact, _)| fact == name).unwrap().1
    }

    async fn agents(&self, after: Option<&str>, limit: u32) -> (Vec<AgentInfo>, bool) {
        let after = after.map(AgentId::new);
        let Response::Agents { agents, more } = self.ask(Request::Agents { after, limit }).await else {
            panic!("no agents")
        };
        (agents, more)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ids(agents: &[AgentInfo]) -> Vec<&str> {
    agents.iter().map(|agent| agent.id.as_str()).collect()
}

#[tokio::test]
async fn status_names_ports_queues_and_what_is_missing() {
    let home = Home::new(KEEPALIVE);
    let daemon = home.start().await;
    let status = daemon.status().await;
    assert_eq!((status.daemon.as_str(), status.ready), ("remoted", true));
    assert!(
        status.listening[0].starts_with("tcp 127.0.0.1:"),
        "{:?}",
        status.listening
    );
    let queues: Vec<&str> = status.queues.iter().map(|queue| queue.name.as_str()).collect();
    assert_eq!(
        queues,
        ["analysis", "to_agents", "shared", "store", "key requests", "outbox"]
    );
    assert!(
        status
            .counters
            .iter()
            .any(|(name, _)| name == "roster_status_changes_total")
    );
    assert_eq!(daemon.fact("agents").await, "3");
    assert_eq!(
        daemon.fact("keepalive").await,
        "auto every 60 s, disconnected after 180 s"
    );
    let deadline = Instant::now() + PATIENCE;
    while !daemon
        .status()
        .await
        .degraded
        .iter()
        .any(|why| why.starts_with("natsd does not take events"))
    {
        assert!(Instant::now() < deadline, "that nobody takes events is not said");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(daemon.stop().code(), Some(0));
}

#[tokio::test]
async fn agents_come_in_pages_and_one_by_one() {
    let home = Home::new("");
    let daemon = home.start().await;
    let (page, more) = daemon.agents(None, 2).await;
    assert_eq!((ids(&page), more), (vec!["001", "002"], true));
    let (page, more) = daemon.agents(Some("002"), 2).await;
    assert_eq!((ids(&page), more), (vec!["010"], false));
    let one = daemon.ask(Request::Agent(AgentId::new("010"))).await;
    assert!(matches!(one, Response::Agents { agents, more: false } if ids(&agents) == ["010"]));
    let none = daemon.ask(Request::Agent(AgentId::new("10"))).await;
    assert!(
        matches!(none, Response::Agents { agents, .. } if agents.is_empty()),
        "ids are text"
    );
    let expected = Liveness {
        status: AgentStatus::NeverConnected,
        disconnected_at: 0,
    };
    assert_eq!(
        daemon.ask(Request::Liveness(AgentId::new("001"))).await,
        Response::Liveness(Some(expected))
    );
    assert_eq!(
        daemon.ask(Request::Liveness(AgentId::new("999"))).await,
        Response::Liveness(None)
    );
}

#[tokio::test]
async fn new_key_is_known_when_the_word_about_it_is_answered() {
    let home = Home::new("");
    let daemon = home.start().await;
    for count in 4..10 {
        let all: Vec<String> = (1..=count).map(|number| format!("{number:03}")).collect();
        home.keys(&all.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(
            daemon.ask(Request::KeysChanged).await,
            Response::Done("the key file was read".to_owned())
        );
        assert_eq!(daemon.agents(None, 100).await.0.len(), count);
    }
}

#[tokio::test]
async fn good_configuration_is_taken_over_and_a_bad_one_changes_nothing() {
    let home = Home::new(KEEPALIVE);
    let daemon = home.start().await;
    home.configure("<manager_keepalive><interval>7</interval><timeout>nonsense</timeout></manager_keepalive>");
    let Response::Failed(why) = daemon.ask(Request::Reload).await else {
        panic!("a bad file was taken")
    };
    assert!(why.contains("ossec.conf:1:"), "{why}");
    assert_eq!(
        daemon.fact("keepalive").await,
        "auto every 60 s, disconnected after 180 s"
    );
    home.configure(
        "<manager_keepalive><interval>7</interval><timeout>20</timeout><probe>ack</probe></manager_keepalive>\
         <queue_size>9</queue_size>",
    );
    let Response::Done(done) = daemon.ask(Request::Reload).await else {
        panic!("a good file was refused")
    };
    assert_eq!(done, "keepalive settings are in force; <remote> counts after a restart");
    assert_eq!(daemon.fact("keepalive").await, "ack every 7 s, disconnected after 20 s");
    home.configure("");
    daemon.signal(Signal::SIGHUP);
    let deadline = Instant::now() + PATIENCE;
    while daemon.fact("keepalive").await != "none sent, disconnected after 900 s" {
        assert!(Instant::now() < deadline, "the signal is not obeyed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn broken_store_is_replaced_and_the_status_says_so() {
    let home = Home::new("");
    fs::create_dir_all(home.path("queue/db")).unwrap();
    fs::write(home.path(paths::AGENTS_DB), vec![7; 10_000]).unwrap();
    let daemon = home.start().await;
    let degraded = daemon.status().await.degraded;
    assert!(degraded.iter().any(|why| why.contains("begins anew")), "{degraded:?}");
    assert_eq!(daemon.agents(None, 100).await.0.len(), 3);
    assert_eq!(daemon.stop().code(), Some(0));
    let again = home.start().await;
    assert!(
        !again
            .status()
            .await
            .degraded
            .iter()
            .any(|why| why.contains("begins anew"))
    );
}

#[tokio::test]
async fn second_daemon_in_the_same_home_is_refused() {
    let home = Home::new("");
    let daemon = home.start().await;
    let output = home.command().output().unwrap();
    assert!(!output.status.success());
    assert!(!output.stderr.is_empty());
    assert_eq!(daemon.fact("agents").await, "3", "the first one works on");
}

#[test]
fn configuration_is_checked_without_starting() {
    let home = Home::new(KEEPALIVE);
    let check = |home: &Home| home.command().arg("--test-config").output().unwrap();
    assert_eq!(check(&home).status.code(), Some(0));
    let options = home.path("etc/local_internal_options.conf");
    fs::write(&options, "remoted.verify_msg_id=1\nremoted.worker_pool=4\n").unwrap();
    let output = check(&home);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("remoted.worker_pool=1"),
        "{output:?}"
    );
    fs::remove_file(&options).unwrap();
    home.configure("<port>nonsense</port>");
    let output = check(&home);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("ossec.conf:1:"),
        "{output:?}"
    );
}
