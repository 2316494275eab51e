//! Ports for syslog. 514 is a port that only root may bind, so this comes before privileges are dropped.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use muster_config::{Connection, Remote, Settings};
use socket2::{Domain, Socket, Type};
use thiserror::Error;

use crate::slot::Protocol;

const BACKLOG: i32 = 256;
/// What the kernel may keep of lines that we have not read; it takes its own limit when that is lower.
const UDP_RECEIVE_BUFFER: usize = 8 * 1024 * 1024;

/// One port.
pub struct Port {
    /// Its block.
    pub remote: Remote,
    /// Where it is bound.
    pub address: SocketAddr,
    pub(crate) socket: PortSocket,
}

pub(crate) enum PortSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// A port that cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen for syslog on {protocol} {address}: {source}", protocol = .protocol.as_str())]
pub struct BindError {
    protocol: Protocol,
    address: SocketAddr,
    source: io::Error,
}

impl Port {
    /// What carries the lines.
    pub fn protocol(&self) -> Protocol {
        match self.socket {
            PortSocket::Tcp(_) => Protocol::Tcp,
            PortSocket::Udp(_) => Protocol::Udp,
        }
    }
}

/// Binds the ports of all syslog blocks.
pub fn bind(settings: &Settings) -> Result<Vec<Port>, BindError> {
    let blocks = settings
        .remotes
        .iter()
        .filter(|remote| remote.connection == Connection::Syslog);
    blocks.map(bind_one).collect()
}

fn bind_one(remote: &Remote) -> Result<Port, BindError> {
    let ip = match (remote.local_ip, remote.ipv6) {
        (Some(ip), _) => ip,
        (None, true) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        (None, false) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let address = SocketAddr::new(ip, remote.port);
    let protocol = if remote.protocols.udp {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    let open = || {
        let kind = match protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
        };
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        match protocol {
            Protocol::Tcp => {
                socket.set_reuse_address(true)?;
                socket.set_keepalive(true)?;
                socket.bind(&address.into())?;
                socket.listen(BACKLOG)?;
            }
            Protocol::Udp => {
                socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER)?;
                socket.bind(&address.into())?;
            }
        }
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        let socket = match protocol {
            Protocol::Tcp => PortSocket::Tcp(socket.into()),
            Protocol::Udp => PortSocket::Udp(socket.into()),
        };
        Ok((bound, socket))
    };
    let (address, socket) = open().map_err(|source| BindError {
        protocol,
        address,
        source,
    })?;
    Ok(Port {
        remote: remote.clone(),
        address,
        socket,
    })
}
