//! Many agents whose messages are sealed before the clock runs.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::wire::{self, Form, Pair};

/// Agents that share a source address: not so many that remoted takes them for a flood.
const PER_ADDRESS: usize = 250;
/// Connections that are being made at the same time. More only wait in the listener's queue.
const AT_ONCE: usize = 2_000;
/// How long an agent waits for its answer before it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// One agent of the fleet.
#[derive(Clone, Debug)]
pub struct Sealed {
    id: String,
    name: String,
    key: String,
    derived: String,
    startup: Arc<[u8]>,
    keepalive: Arc<[u8]>,
}

impl Sealed {
    /// The agent with this number.
    pub fn new(number: usize) -> Self {
        let (id, name) = (format!("{:03}", number + 1), format!("bench-{:05}", number + 1));
        let key = wire::hex_md5(name.as_bytes()).repeat(2);
        let mut agent = Self {
            derived: wire::derive(&id, &name, &key),
            id,
            name,
            key,
            startup: Arc::default(),
            keepalive: Arc::default(),
        };
        agent.startup = agent.frame(1, br#"#!-agent startup {"version":"v4.14.7"}"#).into();
        agent.keepalive = agent.frame(2, agent.keepalive_text(0).as_bytes()).into();
        agent
    }

    /// Its line in `client.keys`.
    pub fn key_line(&self) -> String {
        format!("{} {} any {}", self.id, self.name, self.key)
    }

    /// A message as it goes over TCP.
    pub fn frame(&self, local: u32, payload: &[u8]) -> Vec<u8> {
        let pair = Pair { global: 1, local };
        let sealed = wire::seal(Form::WazuhAes, &self.derived, pair, 4711, [0; 16], payload);
        let length = self.id.len() + 2 + sealed.len();
        let mut frame = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        frame.extend_from_slice(format!("!{}!", self.id).as_bytes());
        frame.extend_from_slice(&sealed);
        frame
    }

    /// An event of which the frame, with its length in front, has so many bytes.
    pub fn event(&self, number: u32, frame_len: usize) -> Result<Vec<u8>> {
        let text = |padding: usize| {
            let filler = wire::hex_md5(&number.to_le_bytes()).repeat(frame_len / 16);
            // Letters in no order, so that the length grows with each of them.
            let filler: String = filler
                .bytes()
                .scan(number, |state, byte| {
                    *state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345 + u32::from(byte));
                    Some(char::from(b'a' + u8::try_from((*state >> 16) % 26).unwrap_or(0)))
                })
                .take(padding)
                .collect();
            format!("1:/var/log/auth.log:sshd[{number}]: Accepted publickey for {filler}")
        };
        for padding in 0..frame_len {
            let frame = self.frame(3 + number, text(padding).as_bytes());
            if frame.len() >= frame_len {
                return Ok(frame);
            }
        }
        bail!("no event makes a frame of {frame_len} bytes")
    }

    /// A keepalive; another `version` of it says something else.
    pub fn keepalive_text(&self, version: u32) -> String {
        format!(
            "#!-Linux |{} |6.1.0-28-amd64 |#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 |x86_64 [Debian GNU/Linux|debian: \
             12 (bookworm)] - Wazuh v4.14.7 / ab73af41699f13fdd81903b5f23d8d00\n\"site\":\"{version}\"\n\
             4a8724b20dee0124ff9656783c490c4e merged.mg\n#\"_agent_ip\":10.0.0.1\n",
            self.name
        )
    }

    /// A keepalive as it goes over TCP.
    pub fn keepalive(&self, version: u32) -> Vec<u8> {
        self.frame(3, self.keepalive_text(version).as_bytes())
    }
}

/// The fleet.
pub struct Fleet {
    /// Its agents.
    pub agents: Vec<Sealed>,
    manager: SocketAddr,
}

impl Fleet {
    /// So many agents, their messages sealed.
    pub fn new(count: usize, port: u16) -> Self {
        Self {
            agents: (0..count).map(Sealed::new).collect(),
            manager: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }

    /// Writes their keys into a home.
    pub fn register(&self, home: &Path) -> Result<()> {
        let lines: String = self
            .agents
            .iter()
            .map(|agent| format!("{}\n", agent.key_line()))
            .collect();
        let path = home.join("etc/client.keys");
        fs::write(&path, lines)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        Ok(())
    }

    /// All connect, say hello, send a keepalive, and have both acknowledged. Their connections, in order.
    pub async fn connect(&self) -> Result<Vec<TcpStream>> {
        let mut connections: Vec<Option<TcpStream>> = (0..self.agents.len()).map(|_| None).collect();
        let mut tasks = JoinSet::new();
        for (number, agent) in self.agents.iter().enumerate() {
            if tasks.len() >= AT_ONCE {
                take(&mut tasks, &mut connections).await?;
            }
            tasks.spawn(hello(number, agent.clone(), self.manager));
        }
        while !tasks.is_empty() {
            take(&mut tasks, &mut connections).await?;
        }
        connections
            .into_iter()
            .collect::<Option<_>>()
            .context("an agent was lost")
    }
}

async fn take(tasks: &mut JoinSet<Result<(usize, TcpStream)>>, connections: &mut [Option<TcpStream>]) -> Result<()> {
    if let Some(joined) = tasks.join_next().await {
        let (number, stream) = joined??;
        connections[number] = Some(stream);
    }
    Ok(())
}

async fn hello(number: usize, agent: Sealed, manager: SocketAddr) -> Result<(usize, TcpStream)> {
    let work = async {
        let mut stream = connect(number, manager).await?;
        stream.write_all(&agent.startup).await?;
        read_frame(&mut stream).await?;
        stream.write_all(&agent.keepalive).await?;
        read_frame(&mut stream).await?;
        Ok((number, stream))
    };
    timeout(PATIENCE, work)
        .await
        .with_context(|| format!("{} got no answer", agent.name))?
}

async fn connect(number: usize, manager: SocketAddr) -> Result<TcpStream> {
    let last = 2 + u8::try_from(number / PER_ADDRESS % 200)?;
    loop {
        let socket = TcpSocket::new_v4()?;
        socket.set_nodelay(true)?;
        socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
        match socket.connect(manager).await {
            Ok(stream) => return Ok(stream),
            // The manager is not back yet.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error).context("connecting"),
        }
    }
}

/// Reads one message, whatever it is.
pub async fn read_frame(stream: &mut TcpStream) -> Result<()> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let length = u32::from_le_bytes(header);
    ensure!(length <= 65_536, "the manager announced {length} bytes");
    let mut message = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut message).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_length_that_is_asked_for() {
        let agent = Sealed::new(0);
        assert_eq!(agent.event(7, 174).unwrap().len(), 174);
    }
}
