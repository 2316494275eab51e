//! A real nats-server of one test's own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, jetstream};
use muster_natsd::verify::Message;
use muster_test_ports::Port;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait_for;

/// Names another server to test against than the one that is installed.
const OTHER_SERVER: &str = "MUSTER_TEST_NATS_SERVER";

pub(crate) struct Server {
    program: PathBuf,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) port: u16,
    _reserved: Port,
    child: Option<Child>,
}

impl Server {
    /// With JetStream, open to everybody.
    pub(crate) fn start() -> Self {
        Self::with_config(|store, port| {
            format!(
                "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n",
                store.display()
            )
        })
    }

    /// With a configuration of its own, from its store and its port.
    pub(crate) fn with_config(config: impl FnOnce(&Path, u16) -> String) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let reserved = Port::free().expect("a port");
        let port = reserved.number;
        let text = config(&directory.path().join("store"), port);
        fs::write(directory.path().join("server.conf"), text).expect("writes");
        let mut server = Self {
            program: program(),
            directory,
            port,
            _reserved: reserved,
            child: None,
        };
        server.restart();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        let log = fs::File::create(self.directory.path().join("log")).expect("log");
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(self.directory.path().join("server.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts nats-server");
        self.child = Some(child);
        wait_for("nats-server listens", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        // It listens before JetStream has recovered.
        wait_for("nats-server is ready", || self.log().contains("Server is ready"));
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal).expect("signals");
        }
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_with(ConnectOptions::new()).await
    }

    pub(crate) async fn client_with(&self, options: ConnectOptions) -> Client {
        let options = options.connection_timeout(Duration::from_secs(5));
        options.connect(self.url()).await.expect("connects")
    }

    /// Everything in a stream, in order.
    pub(crate) async fn messages(client: &Client, stream: &str) -> Vec<Message> {
        let jetstream = jetstream::new(client.clone());
        let mut stream = jetstream.get_stream(stream).await.expect("the stream");
        let state = stream.info().await.expect("info").state.clone();
        let mut messages = vec![];
        if state.messages > 0 {
            for sequence in state.first_sequence..=state.last_sequence {
                if let Ok(raw) = stream.get_raw_message(sequence).await {
                    let headers = raw
                        .headers
                        .iter()
                        .map(|(name, values)| (name.to_string(), values[0].as_str().to_owned()));
                    messages.push(Message {
                        subject: raw.subject.to_string(),
                        headers: headers.collect(),
                        body: raw.payload.to_vec(),
                        from_stream: true,
                    });
                }
            }
        }
        messages
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().skip(20).collect();
            eprintln!("--- nats-server ---\n{}", lines.join("\n"));
        }
        self.kill();
    }
}

fn program() -> PathBuf {
    if let Some(other) = env::var_os(OTHER_SERVER) {
        return other.into();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let target = Path::new(env!("CARGO_BIN_EXE_muster-natsd")).ancestors().nth(2);
    folders.extend(target.map(|target| target.join("tools/usr/sbin")));
    folders
        .into_iter()
        .map(|folder| folder.join("nats-server"))
        .find(|program| program.exists())
        .expect("there is no nats-server; install Debian's package nats-server, or run `cargo xtask tools`")
}
