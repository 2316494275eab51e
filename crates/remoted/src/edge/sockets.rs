//! The sockets that agents talk to: a TCP listener and a UDP socket per worker for every `<remote>` block.
//!
//! All workers' sockets of one port share it (`SO_REUSEPORT`); the kernel keeps a peer at one worker. They are bound
//! before privileges are dropped, and say nothing until the workers run.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use muster_config::{Remote, RemotedInternal, Settings};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, TcpKeepalive, Type};
use thiserror::Error;

use crate::slot::Protocol;

/// Connections that wait to be accepted; the kernel takes its own limit when that is lower.
const BACKLOG: i32 = 4096;
/// What the kernel may keep of datagrams that we have not read: a second of a small fleet. It takes its own limit
/// (`net.core.rmem_max`) when that is lower.
const UDP_RECEIVE_BUFFER: usize = 8 * 1024 * 1024;

/// All sockets, by worker.
pub struct Sockets {
    pub(crate) workers: Vec<WorkerSockets>,
    listening: Vec<Listening>,
}

/// One worker's share.
#[derive(Default)]
pub(crate) struct WorkerSockets {
    pub(crate) tcp: Vec<Bound<TcpListener>>,
    pub(crate) udp: Vec<Bound<UdpSocket>>,
}

/// A socket and the `<remote>` block that it was bound for, counted among the secure ones.
pub(crate) struct Bound<S> {
    pub(crate) socket: S,
    pub(crate) block: usize,
}

/// Where we listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The carrier.
    pub protocol: Protocol,
    /// Address and port as bound.
    pub address: SocketAddr,
}

impl std::fmt::Display for Listening {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.protocol.as_str(), self.address)
    }
}

/// A port that cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen on {protocol} {address}{hint}", protocol = .protocol.as_str(), hint = hint(.source))]
pub struct BindError {
    protocol: Protocol,
    address: SocketAddr,
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; is another remoted running?",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; is <local_ip> an address of this machine?",
        _ => "",
    }
}

impl Sockets {
    /// Binds the ports of all secure `<remote>` blocks for so many workers.
    pub fn bind(settings: &Settings, workers: usize) -> Result<Self, BindError> {
        // While there may still be the right to do so.
        raise_descriptor_limit(settings.internal.remoted.rlimit_nofile);
        let mut sockets = Self {
            workers: (0..workers.max(1)).map(|_| WorkerSockets::default()).collect(),
            listening: Vec::new(),
        };
        for (block, remote) in settings.secure_remotes().enumerate() {
            let address = SocketAddr::new(listen_ip(remote), remote.port);
            if remote.protocols.tcp {
                sockets.add(block, Protocol::Tcp, address, &settings.internal.remoted)?;
            }
            if remote.protocols.udp {
                sockets.add(block, Protocol::Udp, address, &settings.internal.remoted)?;
            }
        }
        Ok(sockets)
    }

    /// Where we listen, in the order of the configuration.
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    fn add(
        &mut self,
        block: usize,
        protocol: Protocol,
        mut address: SocketAddr,
        options: &RemotedInternal,
    ) -> Result<(), BindError> {
        let wanted = address;
        let failed = |source| BindError {
            protocol,
            address: wanted,
            source,
        };
        refuse_a_shared_port(protocol, address).map_err(failed)?;
        for worker in &mut self.workers {
            let socket = bound(protocol, address, options).map_err(failed)?;
            // Port 0 is chosen once, for all of them.
            address = socket.local_addr().map_err(failed)?.as_socket().unwrap_or(address);
            match protocol {
                Protocol::Tcp => worker.tcp.push(Bound {
                    socket: socket.into(),
                    block,
                }),
                Protocol::Udp => worker.udp.push(Bound {
                    socket: socket.into(),
                    block,
                }),
            }
        }
        self.listening.push(Listening { protocol, address });
        Ok(())
    }
}

/// Raises the limit of open files to what is wanted, or as far as we may. Gives back what holds then.
pub(crate) fn raise_descriptor_limit(wanted: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    if soft >= wanted {
        return soft;
    }
    // Only root may raise the hard limit.
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted.max(hard)).is_ok() {
        return wanted;
    }
    let most = hard.min(wanted);
    if setrlimit(Resource::RLIMIT_NOFILE, most, hard).is_ok() {
        most
    } else {
        soft
    }
}

fn listen_ip(remote: &Remote) -> IpAddr {
    match (remote.local_ip, remote.ipv6) {
        (Some(ip), _) => ip,
        (None, true) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        (None, false) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

/// With `SO_REUSEPORT` a second process of the same user would silently get half of the agents. Without it, binding
/// says whether somebody is there.
fn refuse_a_shared_port(protocol: Protocol, address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = open(protocol, address)?;
    if protocol == Protocol::Tcp {
        // Connections of the process before us may linger; they are no reason to refuse.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    match protocol {
        Protocol::Tcp => socket.listen(1),
        Protocol::Udp => Ok(()),
    }
}

fn bound(protocol: Protocol, address: SocketAddr, options: &RemotedInternal) -> io::Result<Socket> {
    let socket = open(protocol, address)?;
    socket.set_reuse_port(true)?;
    match protocol {
        Protocol::Tcp => {
            socket.set_reuse_address(true)?;
            // Linux hands these down to accepted connections.
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_keepalive(
                &TcpKeepalive::new()
                    .with_time(options.tcp_keepidle)
                    .with_interval(options.tcp_keepintvl)
                    .with_retries(options.tcp_keepcnt),
            )?;
            // Probes are held back while something we sent is not acknowledged: a peer that vanishes just then must be
            // noticed as soon as others.
            socket.set_tcp_user_timeout(Some(options.tcp_keepidle + options.tcp_keepintvl * options.tcp_keepcnt))?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
        }
        Protocol::Udp => {
            socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER)?;
            socket.bind(&address.into())?;
        }
    }
    Ok(socket)
}

fn open(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(port: u16) -> Settings {
        let remote = Remote {
            port,
            local_ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            protocols: muster_config::Protocols { tcp: true, udp: true },
            ..Remote::default()
        };
        Settings {
            remotes: vec![remote],
            ..Settings::default()
        }
    }

    #[test]
    fn all_workers_share_one_port() {
        let sockets = Sockets::bind(&settings(0), 3).unwrap();
        let [tcp, udp] = sockets.listening() else {
            panic!("two carriers")
        };
        for worker in &sockets.workers {
            assert_eq!(worker.tcp[0].socket.local_addr().unwrap(), tcp.address);
            assert_eq!(worker.udp[0].socket.local_addr().unwrap(), udp.address);
        }
    }

    #[test]
    fn port_of_another_remoted_is_refused_though_it_could_be_shared() {
        let first = Sockets::bind(&settings(0), 2).unwrap();
        for listening in first.listening() {
            let mut second = settings(listening.address.port());
            second.remotes[0].protocols = muster_config::Protocols {
                tcp: listening.protocol == Protocol::Tcp,
                udp: listening.protocol == Protocol::Udp,
            };
            let error = Sockets::bind(&second, 2).err().expect("in use");
            assert!(error.to_string().ends_with("is another remoted running?"), "{error}");
        }
    }
}
