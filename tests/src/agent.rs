//! An agent, as far as the manager can see one.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use md5::{Digest, Md5};

use crate::{
    wait::SOON,
    wire::{self, Form, Opened, Pair},
};

/// What an agent is registered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Registered address.
    pub address: String,
    /// Key.
    pub key: String,
}

/// What kind of agent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Wazuh 4.x as it comes.
    WazuhAes,
    /// Wazuh 4.x with Blowfish.
    WazuhBlowfish,
    /// OSSEC 3.x: Blowfish.
    Ossec3,
    /// OSSEC 4.x: AES with random vectors.
    Ossec4,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::WazuhAes, Self::WazuhBlowfish, Self::Ossec3, Self::Ossec4];

    /// How it seals.
    pub fn form(self) -> Form {
        match self {
            Self::WazuhAes => Form::WazuhAes,
            Self::WazuhBlowfish | Self::Ossec3 => Form::Blowfish,
            Self::Ossec4 => Form::OssecAes,
        }
    }

    /// Whether it is one of OSSEC's.
    pub fn is_ossec(self) -> bool {
        matches!(self, Self::Ossec3 | Self::Ossec4)
    }

    /// What it calls itself.
    pub fn version(self) -> &'static str {
        match self {
            Self::WazuhAes | Self::WazuhBlowfish => "Wazuh v4.14.7",
            Self::Ossec3 => "OSSEC HIDS v3.7.0",
            Self::Ossec4 => "OSSEC HIDS v4.2.0",
        }
    }
}

/// What carries its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Frames on a connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// The largest datagram that an OSSEC agent reads.
const OSSEC_DATAGRAM: usize = 1024;

enum Link {
    Tcp { stream: TcpStream, read: Vec<u8> },
    Udp(UdpSocket),
}

/// One agent and its connection.
pub struct Agent {
    /// What it is registered with.
    pub key: Key,
    /// What kind it is.
    pub family: Family,
    /// The counters of its last message; set it to continue where another run ended.
    pub pair: Pair,
    /// The counters of the manager's last message that it took.
    pub manager_pair: Option<Pair>,
    /// How many messages it dropped because the manager's counters went back (OSSEC agents).
    pub stale: usize,
    /// Whether requests are answered, as Wazuh agents do.
    pub answers_requests: bool,
    /// Whether files are taken in and their sum is reported, as agents do, or handed to the test message by message.
    pub takes_files: bool,
    /// The sum of the file that it has; `x` when it has none.
    pub merged_sum: String,
    /// Its labels, a line of each with its end.
    pub labels: String,
    /// The sum that was announced of a file on its way, and what came of it.
    incoming: Option<(String, Md5)>,
    derived: String,
    carrier: Carrier,
    manager: SocketAddr,
    link: Option<Link>,
    heard: VecDeque<Opened>,
    random: u16,
}

impl Agent {
    /// An agent that has not connected yet.
    pub fn new(key: Key, family: Family, carrier: Carrier, port: u16) -> Self {
        Self {
            derived: wire::derive(&key.id, &key.name, &key.key),
            key,
            family,
            pair: Pair { global: 0, local: 0 },
            manager_pair: None,
            stale: 0,
            answers_requests: !family.is_ossec(),
            takes_files: true,
            merged_sum: "x".to_owned(),
            labels: String::new(),
            incoming: None,
            carrier,
            manager: SocketAddr::from(([127, 0, 0, 1], port)),
            link: None,
            heard: VecDeque::new(),
            random: 4711,
        }
    }

    /// Talks to the manager at another address than 127.0.0.1.
    #[must_use]
    pub fn at(mut self, manager: SocketAddr) -> Self {
        self.manager = manager;
        self
    }

    /// Opens a new connection or socket in place of the old one.
    pub fn connect(&mut self) -> Result<()> {
        self.link = None;
        self.heard.clear();
        self.incoming = None;
        self.link = Some(match self.carrier {
            Carrier::Tcp => {
                let stream = TcpStream::connect(self.manager)
                    .with_context(|| format!("{} connecting to {}", self.key.name, self.manager))?;
                stream.set_nodelay(true)?;
                // A manager may leave a connection unread for 20 s.
                stream.set_write_timeout(Some(3 * SOON))?;
                Link::Tcp {
                    stream,
                    read: Vec::new(),
                }
            }
            Carrier::Udp => {
                let own = if self.manager.is_ipv4() {
                    "127.0.0.1:0"
                } else {
                    "[::1]:0"
                };
                let socket = UdpSocket::bind(own)?;
                socket.connect(self.manager)?;
                Link::Udp(socket)
            }
        });
        Ok(())
    }

    /// Closes the connection without a word.
    pub fn vanish(&mut self) {
        self.link = None;
    }

    /// A payload as it goes over the wire, with the counters that come next.
    pub fn sealed(&mut self, payload: &[u8]) -> Vec<u8> {
        self.pair = self.pair.next();
        self.random = self.random.wrapping_mul(25_173).wrapping_add(13_849);
        // Unpredictable is not asked of a test; different each time is.
        let mut vector = [0; 16];
        vector[..2].copy_from_slice(&self.random.to_le_bytes());
        vector[8..12].copy_from_slice(&self.pair.local.to_le_bytes());
        let sealed = wire::seal(
            self.family.form(),
            &self.derived,
            self.pair,
            self.random,
            vector,
            payload,
        );
        let mut message = Vec::new();
        // Only an agent that is registered with one IPv4 address leaves its id out.
        if self.key.address.parse::<std::net::Ipv4Addr>().is_err() {
            message.extend_from_slice(format!("!{}!", self.key.id).as_bytes());
        }
        message.extend_from_slice(&sealed);
        message
    }

    /// Sends a payload.
    pub fn send(&mut self, payload: &[u8]) -> Result<()> {
        let message = self.sealed(payload);
        self.send_message(&message)
    }

    /// Sends a message as it is; only the length is put in front on TCP.
    pub fn send_message(&mut self, message: &[u8]) -> Result<()> {
        match self.link.as_mut().context("not connected")? {
            Link::Tcp { stream, .. } => {
                let mut frame = u32::try_from(message.len())?.to_le_bytes().to_vec();
                frame.extend_from_slice(message);
                stream.write_all(&frame).context("sending")
            }
            Link::Udp(socket) => {
                // A refusal that the last datagram met is reported at this one.
                if socket.send(message).is_err() {
                    socket.send(message).context("sending")?;
                }
                Ok(())
            }
        }
    }

    /// Sends bytes as they are (TCP).
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match self.link.as_mut().context("not connected")? {
            Link::Tcp { stream, .. } => stream.write_all(bytes).context("sending"),
            Link::Udp(_) => bail!("there are no bare bytes on UDP"),
        }
    }

    /// The next message that can be opened and is not answered by itself, or `None` when none comes in time.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Opened>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(opened) = self.heard.pop_front() {
                return Ok(Some(opened));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(message) = self.receive_message(left)? else {
                return Ok(None);
            };
            self.take(&message)?;
        }
    }

    fn take(&mut self, message: &[u8]) -> Result<()> {
        if self.family.is_ossec() && message.len() > OSSEC_DATAGRAM {
            bail!("{} bytes to an OSSEC agent", message.len());
        }
        let opened = match wire::open(&self.derived, message) {
            Ok(opened) => opened,
            Err(error) => bail!("{} cannot open a message: {error}", self.key.name),
        };
        ensure!(
            opened.form == self.family.form(),
            "{:?} was answered in the form {:?}",
            self.family,
            opened.form
        );
        if self.family.is_ossec() && self.manager_pair.is_some_and(|last| opened.pair <= last) {
            self.stale += 1;
            return Ok(());
        }
        self.manager_pair = Some(opened.pair);
        if let Some(request) = opened.payload.strip_prefix(b"#!-req ")
            && self.answers_requests
        {
            let request = String::from_utf8_lossy(request).into_owned();
            let counter = request.split(' ').next().unwrap_or_default();
            if !request.ends_with(" ack") {
                if self.carrier == Carrier::Udp {
                    self.send(format!("#!-req {counter} ack").as_bytes())?;
                }
                let state = r#"{"error":0,"data":{"status":"connected"}}"#;
                self.send(format!("#!-req {counter} {state}").as_bytes())?;
            }
            return Ok(());
        }
        if !(self.takes_files && self.take_file(&opened.payload)?) {
            self.heard.push_back(opened);
        }
        Ok(())
    }

    /// Takes a part of a file in. Whether it was one.
    fn take_file(&mut self, payload: &[u8]) -> Result<bool> {
        if let Some(head) = payload.strip_prefix(b"#!-up file ") {
            let head = String::from_utf8_lossy(head);
            let sum = head.strip_suffix(" merged.mg\n").context("another file")?;
            self.incoming = Some((sum.to_owned(), Md5::new()));
        } else if payload == b"#!-close file " {
            let (announced, sum) = self.incoming.take().context("the end of no file")?;
            let sum = wire::hex(&sum.finalize());
            ensure!(sum == announced, "{} got a broken file", self.key.name);
            self.merged_sum = sum;
        } else if payload.starts_with(b"#!-") {
            return Ok(false);
        } else if let Some((_, sum)) = &mut self.incoming {
            sum.update(payload);
        } else {
            bail!("{} got a piece of no file", self.key.name);
        }
        Ok(true)
    }

    /// The next message as it came, or `None` when none comes in time. A closed connection is an error.
    pub fn receive_message(&mut self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        match self.link.as_mut().context("not connected")? {
            Link::Tcp { stream, read } => loop {
                if let Some(message) = take_frame(read)? {
                    return Ok(Some(message));
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                stream.set_read_timeout(Some(left))?;
                let mut chunk = [0; 16 * 1024];
                match stream.read(&mut chunk) {
                    Ok(0) => bail!("the manager closed the connection of {}", self.key.name),
                    Ok(bytes) => read.extend_from_slice(&chunk[..bytes]),
                    Err(error) if is_time_out(&error) => return Ok(None),
                    Err(error) => return Err(error).context("reading"),
                }
            },
            Link::Udp(socket) => loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                socket.set_read_timeout(Some(left))?;
                let mut datagram = vec![0; 65_536];
                match socket.recv(&mut datagram) {
                    Ok(bytes) => {
                        datagram.truncate(bytes);
                        return Ok(Some(datagram));
                    }
                    Err(error) if is_time_out(&error) => return Ok(None),
                    // Nobody listens there at this moment.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(error).context("reading"),
                }
            },
        }
    }

    /// Waits for this payload; others that come before it are passed over.
    pub fn expect(&mut self, payload: &[u8]) -> Result<Opened> {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(opened) if opened.payload == payload => return Ok(opened),
                Some(_) => {}
                None => bail!(
                    "{} waited in vain for {:?}",
                    self.key.name,
                    String::from_utf8_lossy(payload)
                ),
            }
        }
    }

    /// Waits until the manager closes the connection (TCP).
    pub fn expect_close(&mut self) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            match self.receive_message(deadline.saturating_duration_since(Instant::now())) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Ok(()),
            }
        }
        bail!("the manager did not close the connection of {}", self.key.name)
    }

    /// Connects, says hello, and waits for the ack.
    pub fn hello(&mut self) -> Result<()> {
        self.connect()?;
        self.say_hello()
    }

    /// Says hello on the connection that is there, and waits for the ack. UDP repeats it, as agents do.
    pub fn say_hello(&mut self) -> Result<()> {
        let startup: &[u8] = if self.family.is_ossec() {
            b"#!-agent startup "
        } else {
            br#"#!-agent startup {"version":"v4.14.7"}"#
        };
        self.until_acked(startup)
    }

    /// Connects and says hello again and again until the manager answers: it may be away, or not know the key yet.
    pub fn hello_until_heard(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let outcome = self.connect().and_then(|()| self.hello_once());
            match outcome {
                Ok(true) => return Ok(()),
                Ok(false) | Err(_) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(50)),
                Ok(false) => bail!("{} was not answered", self.key.name),
                Err(error) => return Err(error),
            }
        }
    }

    fn hello_once(&mut self) -> Result<bool> {
        let startup: &[u8] = if self.family.is_ossec() {
            b"#!-agent startup "
        } else {
            br#"#!-agent startup {"version":"v4.14.7"}"#
        };
        self.send(startup)?;
        Ok(self
            .receive(Duration::from_secs(1))?
            .is_some_and(|opened| opened.payload == b"#!-agent ack "))
    }

    /// The text of a keepalive.
    pub fn keepalive_text(&self) -> String {
        let Key { name, .. } = &self.key;
        let (sum, labels) = (&self.merged_sum, &self.labels);
        let version = self.family.version();
        if self.family.is_ossec() {
            format!(
                "#!-Linux {name} 6.1.0-28-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 x86_64 - {version}\n\
                 {sum} merged.mg\n\n-M7[Bt)g#t=2d.Cc"
            )
        } else {
            format!(
                "#!-Linux |{name} |6.1.0-28-amd64 |#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 |x86_64 \
                 [Debian GNU/Linux|debian: 12 (bookworm)] - {version}\n{labels}{sum} merged.mg\n#\"_agent_ip\":127.0.0.1\n"
            )
        }
    }

    /// Sends a keepalive and waits for its ack.
    pub fn keepalive(&mut self) -> Result<()> {
        let text = self.keepalive_text();
        self.until_acked(text.as_bytes())
    }

    /// Sends a ping and waits for its pong, which no message but this one causes. What comes before it is taken.
    pub fn ping(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        self.send_message(b"#ping")?;
        loop {
            match self.receive_message(deadline.saturating_duration_since(Instant::now()))? {
                Some(message) if message == b"#pong" => return Ok(()),
                Some(message) => self.take(&message)?,
                None => bail!("{} got no pong", self.key.name),
            }
        }
    }

    /// Sends keepalives every `pause` until `time` is over, each acknowledged: so the manager sees their rhythm.
    pub fn keep_alive_for(&mut self, time: Duration, pause: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.keepalive()?;
            self.listen_for(pause)?;
        }
        Ok(())
    }

    /// Takes whatever comes for some time, answering requests.
    pub fn listen_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let left @ 1.. = end.saturating_duration_since(Instant::now()).as_millis() {
            self.receive(Duration::from_millis(u64::try_from(left)?))?;
        }
        Ok(())
    }

    fn until_acked(&mut self, message: &[u8]) -> Result<()> {
        let deadline = Instant::now() + SOON;
        self.send(message)?;
        let mut again = Instant::now() + UDP_REPEAT;
        while Instant::now() < deadline {
            match self.receive(Duration::from_millis(100))? {
                Some(opened) if opened.payload == b"#!-agent ack " => return Ok(()),
                Some(_) | None => {}
            }
            if self.carrier == Carrier::Udp && Instant::now() >= again {
                self.send(message)?;
                again = Instant::now() + UDP_REPEAT;
            }
        }
        bail!(
            "{} got no ack for {:?}",
            self.key.name,
            String::from_utf8_lossy(message)
        )
    }

    /// Sends an event's payload.
    pub fn event(&mut self, payload: &str) -> Result<()> {
        self.send(payload.as_bytes())
    }

    /// Says goodbye and closes; an OSSEC agent only falls silent.
    pub fn goodbye(&mut self) -> Result<()> {
        if !self.family.is_ossec() {
            self.send(b"#!-agent shutdown ")?;
        }
        self.vanish();
        Ok(())
    }
}

/// Before a datagram is sent again.
const UDP_REPEAT: Duration = Duration::from_secs(2);

fn take_frame(read: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some((header, rest)) = read.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = usize::try_from(u32::from_le_bytes(*header))?;
    ensure!(len <= 65_536, "the manager announced {len} bytes");
    let Some(message) = rest.get(..len).map(<[u8]>::to_vec) else {
        return Ok(None);
    };
    read.drain(..4 + len);
    Ok(Some(message))
}

fn is_time_out(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
