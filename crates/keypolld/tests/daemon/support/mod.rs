//! A private home, the real daemon in it, an authd of a few lines, and services and programs that know keys.

mod authd;
mod service;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use muster_proto::ipc::control::{DaemonStatus, KeyPollReport, Request, Response};
use muster_service::client::Client;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub(crate) use authd::FakeAuthd;
pub(crate) use service::Service;

/// Nothing here takes longer unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A key as the documentation shows it.
pub(crate) const KEY: &str = "ac575526e8bbcddf6654e5aa0a39fa60a0020e5d34ed1370916368bdaf5f0c71";

/// The answer of a source that knows this agent.
pub(crate) fn agent(id: &str, name: &str, ip: &str, key: &str) -> String {
    serde_json::json!({"error": 0, "data": {"id": id, "name": name, "ip": ip, "key": key}}).to_string()
}

/// A home with this in its `<key_request>` block.
pub(crate) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new(key_request: &str) -> Self {
        let home = Self::empty();
        home.configure(key_request);
        home
    }

    pub(crate) fn empty() -> Self {
        let home = Self {
            directory: tempfile::tempdir().expect("directory"),
        };
        for folder in ["etc", "queue/sockets", "queue/muster"] {
            fs::create_dir_all(home.path(folder)).expect("made");
        }
        home
    }

    pub(crate) fn configure(&self, key_request: &str) {
        self.write_config(&format!(
            "<auth>\n<key_request>\n{key_request}\n</key_request>\n</auth>"
        ));
    }

    pub(crate) fn write_config(&self, blocks: &str) {
        let text = format!("<ossec_config>\n{blocks}\n</ossec_config>\n");
        fs::write(self.path("etc/ossec.conf"), text).expect("written");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Writes a shell script and gives its path for `<exec_path>`.
    pub(crate) fn script(&self, name: &str, body: &str) -> String {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("made executable");
        path.display().to_string()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-keypolld"));
        command.arg("--home").arg(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub(crate) fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    /// The same as nobody, whom limits hold; as whoever we are when we are not root.
    pub(crate) fn start_as_nobody(&self) -> Daemon {
        const NOBODY: u32 = 65_534;
        if !nix::unistd::geteuid().is_root() {
            return self.start();
        }
        let mut folders = vec![self.path("")];
        while let Some(folder) = folders.pop() {
            chown(&folder, Some(NOBODY), Some(NOBODY)).expect("given away");
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(entries.map(|entry| entry.path()));
        }
        self.start_with(&["--user", "nobody"])
    }

    fn start_with(&self, options: &[&str]) -> Daemon {
        let log = format!("--log-file={}", self.path("keypolld.log").display());
        let mut child = self
            .command()
            .args(["-f", "-d", "--detached", &log])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n", "{}", self.log());
        Daemon { child }
    }

    /// Starts the daemon where it must not start.
    pub(crate) fn start_in_vain(&self) -> Output {
        self.command().arg("-f").output().expect("started")
    }

    pub(crate) fn log(&self) -> String {
        self.read("keypolld.log")
    }

    /// What remoted does.
    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) {
        let socket = UnixDatagram::unbound().expect("a socket");
        let path = self.path("queue/sockets/krequest");
        socket.send_to(request.as_ref(), path).expect("sent");
    }

    fn control(&self, request: &Request) -> Response {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let path = self.path("queue/muster/keypolld.ctl");
            let mut client = Client::connect(&path, "test", PATIENCE).await.expect("connected");
            client.ask(request).await.expect("answered")
        })
    }

    pub(crate) fn status(&self) -> DaemonStatus {
        match self.control(&Request::Status) {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn reload(&self) -> Result<String, String> {
        match self.control(&Request::Reload) {
            Response::Done(done) => Ok(done),
            Response::Failed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn try_look_up(&self, lookup: &str, value: &str) -> Result<KeyPollReport, String> {
        let request = Request::KeyPollTry {
            lookup: lookup.to_owned(),
            value: value.to_owned(),
        };
        match self.control(&request) {
            Response::KeyPoll(report) => Ok(*report),
            Response::Failed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let counters = self.status().counters;
        let found = counters.iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Waits until a counter has this value.
    pub(crate) fn wait_for(&self, counter: &str, value: u64) {
        let mut last = 0;
        until(&format!("{counter} = {value}"), || {
            last = self.counter(counter);
            last == value
        });
    }

    /// The text of every event in the outbox, in order.
    pub(crate) fn events(&self) -> Vec<String> {
        let database = rusqlite::Connection::open(self.path("queue/db/keypoll.db")).expect("opened");
        let mut statement = database
            .prepare("SELECT event FROM outbox ORDER BY number")
            .expect("prepared");
        let blobs = statement
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .expect("queried");
        blobs
            .map(|blob| String::from_utf8_lossy(&blob.expect("a blob")).into_owned())
            .collect()
    }
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Whether a process is there and not just a zombie.
pub(crate) fn is_alive(pid: &str) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{}/stat", pid.trim())) else {
        return false;
    };
    !status.contains(") Z ")
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and a good end.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("signalled");
        let began = Instant::now();
        let status = self.child.wait().expect("waited");
        assert!(status.success(), "{status}");
        assert!(
            began.elapsed() < Duration::from_secs(9),
            "it took {:?} to stop",
            began.elapsed()
        );
    }

    /// Its resident memory in KiB, at the most so far.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("read");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        line.split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Below the folder of a test's files.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().expect("a parent")
}
