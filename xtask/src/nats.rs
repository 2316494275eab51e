//! A nats-server of our own, and the smallest client that can listen to it.
//!
//! The client is the plain text protocol over a socket: the demo must see what any subscriber sees, and needs no
//! client library to be built first.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// A running server with JetStream, stopped when dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: String,
}

impl Server {
    /// Starts an installed server on a free port, or gives `None` when there is none.
    pub(crate) fn start(store: &Path) -> Result<Option<Self>> {
        let Some(program) = shell::find_program("nats-server") else {
            return Ok(None);
        };
        fs::create_dir_all(store)?;
        let process = Command::new(program)
            .args(["--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--store_dir"])
            .arg(store.join("jetstream"))
            .arg("--ports_file_dir")
            .arg(store)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nats-server")?;
        let ports = store.join(format!("nats-server_{}.ports", process.id()));
        let mut server = Self {
            process,
            address: String::new(),
        };
        server.address = server.wait_for_address(&ports)?;
        Ok(Some(server))
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    fn wait_for_address(&mut self, ports: &PathBuf) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                bail!("nats-server ended at once: {status}");
            }
            if let Some(address) = fs::read(ports).ok().as_deref().and_then(address_of) {
                return Ok(address);
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        bail!("nats-server did not say on which port it listens within 10 s")
    }
}

fn address_of(ports: &[u8]) -> Option<String> {
    let ports: serde_json::Value = serde_json::from_slice(ports).ok()?;
    Some(ports["nats"][0].as_str()?.strip_prefix("nats://")?.to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already with our own Ctrl-C.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A message as a subscriber sees it.
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) body: Vec<u8>,
}

/// More than a demo ever has under way; when the demo does not read, the subscriber waits.
const MAX_PENDING_MESSAGES: usize = 4096;
/// nats-server's own default limit.
const MAX_MESSAGE_LEN: usize = 1024 * 1024;

/// Subscribes, and gives messages until the server goes away.
pub(crate) fn subscribe(address: &str, subject: &str) -> Result<Receiver<Message>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    stream.write_all(
        format!("CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}}\r\nSUB {subject} 1\r\nPING\r\n")
            .as_bytes(),
    )?;
    // Once the server has answered the ping, the subscription stands.
    while line.trim_end() != "PONG" {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.starts_with("-ERR") {
            bail!("nats-server refused the subscription: {}", line.trim_end());
        }
    }
    let (sender, receiver) = sync_channel(MAX_PENDING_MESSAGES);
    thread::spawn(move || {
        while let Ok(message) = read_message(&mut reader, &mut stream) {
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

fn read_message(reader: &mut BufReader<TcpStream>, stream: &mut TcpStream) -> Result<Message> {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("connection closed");
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // MSG subject sid [reply] size | HMSG subject sid [reply] header-size size
        let (header_len, len) = match words.as_slice() {
            ["PING"] => {
                stream.write_all(b"PONG\r\n")?;
                continue;
            }
            ["MSG", _, _, .., size] => (0, size.parse::<usize>()?),
            ["HMSG", _, _, .., header, size] => (header.parse::<usize>()?, size.parse::<usize>()?),
            _ => continue,
        };
        if len > MAX_MESSAGE_LEN || header_len > len {
            bail!("message of {len} bytes");
        }
        let mut bytes = vec![0; len + 2];
        reader.read_exact(&mut bytes)?;
        bytes.truncate(len);
        return Ok(Message {
            subject: words[1].to_owned(),
            body: bytes.split_off(header_len),
        });
    }
}
