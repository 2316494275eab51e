//! The real daemon, in a home of one test's own.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use muster_proto::ipc::control::{DaemonStatus, Request, Response};
use muster_service::client::Client;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait_for;

pub(crate) struct Home {
    directory: tempfile::TempDir,
    /// What stands for the system's certificate authorities.
    roots: Option<PathBuf>,
}

impl Home {
    /// With this inside of `<nats>`.
    pub(crate) fn new(nats: &str) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let home = Self { directory, roots: None };
        fs::create_dir_all(home.path("etc")).expect("makes etc");
        home.configure(nats);
        home
    }

    pub(crate) fn configure(&self, nats: &str) {
        let text = format!("<ossec_config>\n<nats>\n{nats}\n</nats>\n</ossec_config>\n");
        fs::write(self.path("etc/ossec.conf"), text).expect("writes");
    }

    /// From now on the system knows this certificate authority and no other.
    pub(crate) fn trust(&mut self, ca: PathBuf) {
        self.roots = Some(ca);
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    pub(crate) fn start(&self) -> Natsd {
        let natsd = self.spawn();
        wait_for("natsd serves", || {
            self.path("queue/muster/natsd.ctl").exists() && self.status().is_some()
        });
        natsd
    }

    pub(crate) fn spawn(&self) -> Natsd {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("stderr"))
            .expect("log");
        let child = self
            .command()
            .arg("--foreground")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("starts natsd");
        Natsd {
            child,
            log: self.path("stderr"),
        }
    }

    /// Runs the program with these arguments to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("runs")
    }

    /// Nothing while it does not answer.
    pub(crate) fn status(&self) -> Option<DaemonStatus> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let mut client = self.control().await?;
            match client.ask(&Request::Status).await {
                Ok(Response::Status(status)) => Some(*status),
                _ => None,
            }
        })
    }

    pub(crate) async fn control(&self) -> Option<Client> {
        Client::connect(&self.path("queue/muster/natsd.ctl"), "test", Duration::from_secs(5))
            .await
            .ok()
    }

    pub(crate) fn facts(&self) -> BTreeMap<String, String> {
        self.status()
            .map(|status| status.facts.into_iter().collect())
            .unwrap_or_default()
    }

    pub(crate) fn wait_until_all_is_published(&self) {
        wait_for("everything is published", || {
            self.facts().get("waiting_events").is_some_and(|waiting| waiting == "0")
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-natsd"));
        command.arg("--home").arg(self.directory.path());
        command.envs(self.roots.iter().map(|roots| ("SSL_CERT_FILE", roots)));
        command
    }
}

pub(crate) struct Natsd {
    child: Child,
    log: PathBuf,
}

impl Natsd {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("signals");
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("ends");
    }

    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().expect("ends");
        assert!(status.success(), "natsd ended with {status}");
    }
}

impl Drop for Natsd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- natsd ---\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
