//! The edge over real sockets, in this process: a home in a temporary directory, agents that speak the protocol.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use muster_config::{Protocols, Remote};
use muster_proto::{
    agent::AgentStatus,
    keys::cipher::CipherKeys,
    transport::{
        counter::SenderCounter,
        envelope::{CryptoForm, Opener, Sealer},
        frame,
    },
};

use super::*;
use crate::{
    session::{KeyRequest, Origin},
    slot::{Ending, Millis, Protocol, StartupOutcome},
};

mod counters;
mod events;
mod hostile;
mod keys;
mod places;
mod sessions;

const KEYS: &str = "001 dyn any k1\n002 stat 127.0.0.2 k2\n003 cidr 127.1.0.0/16 k3\n004 v6 ::1 k4\n005 web any k5\n";
/// Long enough for a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for something to arrive that should not.
const SILENCE: Duration = Duration::from_millis(150);

/// A home, the edge in it, and both of its neighbours.
struct Stage {
    home: tempfile::TempDir,
    edge: Edge,
    news: mpsc::Receiver<News>,
    requests: Arc<Requests>,
    tcp: SocketAddr,
    udp: SocketAddr,
}

#[derive(Default)]
struct Requests(Mutex<Vec<String>>);

impl KeyRequests for Requests {
    fn ask(&self, request: KeyRequest<'_>, _: &Origin) {
        self.0.lock().unwrap().push(request.text());
    }
}

struct Setting {
    settings: Settings,
    workers: usize,
    news: usize,
    analysis: Option<&'static str>,
}

impl Default for Setting {
    fn default() -> Self {
        let remote = Remote {
            port: 0,
            ipv6: true,
            protocols: Protocols { tcp: true, udp: true },
            ..Remote::default()
        };
        Self {
            settings: Settings {
                remotes: vec![remote],
                ..Settings::default()
            },
            workers: 2,
            news: 1024,
            analysis: None,
        }
    }
}

impl Setting {
    fn remote(mut self, change: impl FnOnce(&mut Remote)) -> Self {
        change(&mut self.settings.remotes[0]);
        self
    }

    fn start(self) -> Stage {
        let home = tempfile::tempdir().unwrap();
        for directory in ["etc", "queue/sockets"] {
            fs::create_dir_all(home.path().join(directory)).unwrap();
        }
        fs::write(home.path().join(paths::CLIENT_KEYS), KEYS).unwrap();
        if let Some(directory) = self.analysis {
            fs::create_dir_all(home.path().join(directory)).unwrap();
            // What tells an OSSEC home.
            fs::create_dir_all(home.path().join("queue/agent-info")).unwrap();
        }
        self.start_in(home)
    }

    fn start_in(self, home: tempfile::TempDir) -> Stage {
        let sockets = Sockets::bind(&self.settings, self.workers).unwrap();
        let (sender, news) = mpsc::channel(self.news);
        let requests = Arc::new(Requests::default());
        let edge = Edge::start(EdgeParts {
            home: home.path(),
            settings: &self.settings,
            sockets,
            news: sender,
            key_requests: Arc::clone(&requests) as Arc<dyn KeyRequests>,
            unix_seconds: 1_800_000_000,
            request_ids: 1.into(),
        })
        .unwrap();
        let port = |protocol| {
            edge.listening()
                .iter()
                .find(|listening| listening.protocol == protocol)
                .map(|found| found.address.port())
        };
        let local = |port: Option<u16>| SocketAddr::from(([127, 0, 0, 1], port.unwrap_or(0)));
        let (tcp, udp) = (local(port(Protocol::Tcp)), local(port(Protocol::Udp)));
        let mut stage = Stage {
            home,
            edge,
            news,
            requests,
            tcp,
            udp,
        };
        let News::KeysReloaded { changed, removed, .. } = stage.news() else {
            panic!("first the keys")
        };
        assert!(changed.is_empty() && removed.is_empty());
        stage
    }
}

fn start() -> Stage {
    Setting::default().start()
}

impl Stage {
    fn news(&mut self) -> News {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.news.try_recv() {
                Ok(news) => return news,
                Err(_) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(1)),
                Err(_) => panic!("no news"),
            }
        }
    }

    fn no_news(&mut self) {
        std::thread::park_timeout(SILENCE);
        assert!(self.news.try_recv().is_err());
    }

    fn requests(&self) -> Vec<String> {
        self.requests.0.lock().unwrap().clone()
    }

    /// Binds the analysis daemon's socket.
    fn analysis(&self) -> UnixDatagram {
        let socket = UnixDatagram::bind(self.home.path().join(paths::ANALYSIS_QUEUE)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn write_keys(&self, text: &str) {
        let new = self.home.path().join("etc/new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.home.path().join(paths::CLIENT_KEYS)).unwrap();
        self.edge.keys_changed();
    }

    fn wait_for(&self, tally: Tally, at_least: u64) {
        wait_until(|| self.edge.count(tally) >= at_least);
    }

    fn connect(&self) -> Link {
        Link::Tcp(TcpStream::connect(self.tcp).unwrap()).patient()
    }

    fn datagrams(&self) -> Link {
        self.datagrams_from("127.0.0.1:0", self.udp)
    }

    fn datagrams_from(&self, local: &str, to: SocketAddr) -> Link {
        let socket = UdpSocket::bind(local).unwrap();
        socket.connect(to).unwrap();
        Link::Udp(socket).patient()
    }
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn receive(analysis: &UnixDatagram) -> Vec<u8> {
    let mut datagram = vec![0; 70_000];
    let length = analysis.recv(&mut datagram).unwrap();
    datagram.truncate(length);
    datagram
}

fn receive_text(analysis: &UnixDatagram) -> String {
    String::from_utf8(receive(analysis)).unwrap()
}

/// What an agent talks over.
enum Link {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Link {
    fn patient(self) -> Self {
        match &self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(PATIENCE)).unwrap(),
            Self::Udp(socket) => socket.set_read_timeout(Some(PATIENCE)).unwrap(),
        }
        self
    }

    /// How long the next message may take.
    fn wait_for_up_to(&mut self, longest: Duration) {
        match &self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(longest)).unwrap(),
            Self::Udp(socket) => socket.set_read_timeout(Some(longest)).unwrap(),
        }
    }

    fn send(&mut self, message: &[u8]) {
        match self {
            Self::Tcp(stream) => {
                let mut framed = Vec::new();
                frame::append(&mut framed, message);
                stream.write_all(&framed).unwrap();
            }
            Self::Udp(socket) => assert_eq!(socket.send(message).unwrap(), message.len()),
        }
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).unwrap(),
            Self::Udp(socket) => drop(socket.send(bytes).unwrap()),
        }
    }

    fn receive(&mut self) -> Vec<u8> {
        match self {
            Self::Tcp(stream) => {
                let mut header = [0; 4];
                stream.read_exact(&mut header).unwrap();
                let mut message = vec![0; u32::from_le_bytes(header) as usize];
                stream.read_exact(&mut message).unwrap();
                message
            }
            Self::Udp(socket) => {
                let mut datagram = vec![0; 70_000];
                let length = socket.recv(&mut datagram).unwrap();
                datagram.truncate(length);
                datagram
            }
        }
    }

    /// Nothing more comes but the end of the stream.
    fn is_closed(&mut self) -> bool {
        let Self::Tcp(stream) = self else {
            panic!("only TCP closes")
        };
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset && rest.is_empty(),
        }
    }

    /// Nothing comes for a while.
    fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        let result = match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(SILENCE)).unwrap();
                stream.peek(&mut byte)
            }
            Self::Udp(socket) => {
                socket.set_read_timeout(Some(SILENCE)).unwrap();
                socket.recv(&mut byte)
            }
        };
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(PATIENCE)).unwrap(),
            Self::Udp(socket) => socket.set_read_timeout(Some(PATIENCE)).unwrap(),
        }
        matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// An agent: what it needs to seal and open.
struct Agent {
    keys: CipherKeys,
    prefix: Option<&'static str>,
    form: CryptoForm,
    counter: SenderCounter,
    sealer: Sealer,
    opener: Opener,
}

impl Agent {
    fn new(id: &str, name: &str, key: &str, prefix: Option<&'static str>, form: CryptoForm) -> Self {
        Self {
            keys: CipherKeys::derive(id, name, key),
            prefix,
            form,
            counter: SenderCounter::begin_at(7),
            sealer: Sealer::new(),
            opener: Opener::new(),
        }
    }

    /// Agent 001 of [`KEYS`].
    fn dynamic() -> Self {
        Self::new("001", "dyn", "k1", Some("001"), CryptoForm::WazuhAes)
    }

    /// Agent 005.
    fn other() -> Self {
        Self::new("005", "web", "k5", Some("005"), CryptoForm::WazuhAes)
    }

    fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        let counter = self.counter.next();
        self.sealer
            .seal(&self.keys, self.form, counter, 12345, [9; 16], payload, self.prefix)
            .unwrap()
            .to_vec()
    }

    fn say(&mut self, link: &mut Link, payload: impl AsRef<[u8]>) {
        let message = self.seal(payload.as_ref());
        link.send(&message);
    }

    /// What the manager says, with its form checked.
    fn hear(&mut self, link: &mut Link) -> String {
        let message = link.receive();
        let opened = self
            .opener
            .open(&self.keys, &message, Some(self.form))
            .expect("sealed for us");
        assert_eq!(opened.form, self.form, "answered in the form that was used");
        String::from_utf8(opened.payload.to_vec()).unwrap()
    }
}

const STARTUP: &str = r#"#!-agent startup {"version":"v4.14.7"}"#;
const KEEPALIVE: &str = "#!-Linux |dyn |6.1 |#1 |x86_64 [Debian GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7\nx merged.mg\n#\"_agent_ip\":127.0.0.1\n";
const ACK: &str = "#!-agent ack ";
