//! The first steps by hand, so that each can be timed and blamed: reaching the server, and TLS.

use std::{sync::Arc, time::Duration};

use async_nats::ServerAddr;
use muster_config::Nats;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Fault, cure};
use crate::{
    keeper::chain,
    publish::tls::{Peer, client_config},
};

/// How long each step may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest line that a server says hello with. Clusters name their members in it.
const MAX_HELLO_LEN: usize = 64 * 1024;

/// What a server says of itself before anybody has logged in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Hello {
    #[serde(default)]
    pub(super) server_name: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) jetstream: bool,
    #[serde(default)]
    pub(super) max_payload: u64,
    #[serde(default)]
    pub(super) tls_required: bool,
}

/// A server that was reached, and has said hello.
pub(super) struct Reached {
    pub(super) hello: Hello,
    pub(super) socket: TcpStream,
}

/// Reaches a server and hears its hello.
pub(super) async fn connect(server: &str) -> Result<Reached, Fault> {
    let fault = |why: String| {
        let cure = cure::of_login(&why);
        Fault::new("connect", why, cure)
    };
    let address: ServerAddr = server.parse().map_err(|error| fault(chain(&error)))?;
    let reached = timeout(DEADLINE, async {
        let mut socket = TcpStream::connect((address.host(), address.port())).await?;
        let line = hello(&mut socket).await?;
        Ok::<_, std::io::Error>((socket, line))
    });
    let (socket, line) = match reached.await {
        Ok(reached) => reached.map_err(|error| fault(error.to_string()))?,
        Err(_) => return Err(fault(format!("no answer within {} s", DEADLINE.as_secs()))),
    };
    let hello = line
        .strip_prefix(b"INFO ")
        .and_then(|json| serde_json::from_slice(json).ok());
    match hello {
        Some(hello) => Ok(Reached { hello, socket }),
        None => Err(Fault::new(
            "connect",
            "what listens there is no NATS server",
            "set <server_url> to the address of a NATS server's clients, 4222 by default",
        )),
    }
}

/// A line, without its end.
async fn hello(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(512);
    while line.len() < MAX_HELLO_LEN {
        let byte = socket.read_u8().await?;
        if byte == b'\n' {
            return Ok(line);
        }
        line.push(byte);
    }
    Ok(line)
}

/// Shakes hands, and says what came of it: the version of TLS and the server's certificate.
pub(super) async fn shake_hands(nats: &Nats, server: &str, socket: TcpStream) -> Result<String, Fault> {
    let fault = |why: String| {
        let cure = cure::of_login(&why);
        Fault::new("tls", why, cure)
    };
    let address: ServerAddr = server.parse().map_err(|error| fault(chain(&error)))?;
    let name = ServerName::try_from(address.host().to_owned()).map_err(|error| fault(chain(&error)))?;
    let peer = Peer::default();
    let config = client_config(nats, &peer).map_err(fault)?;
    let connector = TlsConnector::from(Arc::new(config));
    let shaken = timeout(DEADLINE, connector.connect(name, socket)).await;
    let mut stream = match shaken {
        Ok(shaken) => shaken.map_err(|error| fault(format!("TLS: {}", chain(&error))))?,
        Err(_) => return Err(fault(format!("TLS: no answer within {} s", DEADLINE.as_secs()))),
    };
    let (_, connection) = stream.get_ref();
    let version = connection.protocol_version().and_then(|version| version.as_str());
    let fingerprint = peer.fingerprint().unwrap_or_default();
    let told = format!(
        "{}, certificate SHA-256 {fingerprint}",
        version.unwrap_or("TLS").replace('_', ".")
    );
    // Whether the server takes our own certificate shows only when we log in.
    let _ = timeout(DEADLINE, stream.shutdown()).await;
    Ok(told)
}
