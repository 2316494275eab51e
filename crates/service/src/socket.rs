//! Binding sockets so that nobody slips in between, and taking those that the service manager has bound for us.

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use listenfd::ListenFd;
use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, chown},
};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

/// The longest path that a Unix socket can be bound to.
pub const MAX_PATH_LEN: usize = 107;

/// Why a socket could not be bound.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Somebody answers there.
    #[error("cannot bind {0}: address in use; is another instance running?")]
    InUse(String),
    /// Something else lies at the path, and we do not remove what we have not made.
    #[error("cannot bind {0}: a file that is not a socket is in the way")]
    NotASocket(String),
    /// The path is longer than the kernel takes.
    #[error("cannot bind {0}: the path is longer than {MAX_PATH_LEN} bytes")]
    PathTooLong(String),
    /// The kernel said no.
    #[error("cannot bind {name}")]
    Bind {
        /// Path or address.
        name: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// It is bound, but owner or mode could not be set.
    #[error("cannot set owner and mode of {name}")]
    Permissions {
        /// Path.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A socket that the service manager gave us is of another type than its name promises.
    #[error("cannot take the inherited socket {name}")]
    Inherited {
        /// Its name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Who may connect to a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// The mode, such as 0o660.
    pub mode: u32,
    /// The owner, if it is not to be the current user.
    pub user: Option<Uid>,
    /// The group, if it is not to be the current one.
    pub group: Option<Gid>,
}

impl Permissions {
    /// The current user and group, with this mode.
    pub fn mode(mode: u32) -> Self {
        Self {
            mode,
            user: None,
            group: None,
        }
    }
}

/// Binds a datagram socket at a path, non-blocking.
pub fn bind_datagram(path: &Path, permissions: Permissions) -> Result<UnixDatagram, SocketError> {
    let socket = bind(path, permissions, || UnixDatagram::bind(path))?;
    socket
        .set_nonblocking(true)
        .map_err(|source| failed(&path.display(), source))?;
    Ok(socket)
}

/// Binds and listens at a path, non-blocking.
pub fn bind_stream(path: &Path, permissions: Permissions) -> Result<UnixListener, SocketError> {
    let listener = bind(path, permissions, || UnixListener::bind(path))?;
    listener
        .set_nonblocking(true)
        .map_err(|source| failed(&path.display(), source))?;
    Ok(listener)
}

/// Listens on a TCP address, non-blocking. An IPv6 wildcard takes IPv6 only, so that IPv4 can have a socket of its own.
pub fn bind_tcp(address: SocketAddr, backlog: i32) -> Result<TcpListener, SocketError> {
    let socket = internet(address, Type::STREAM, Protocol::TCP)?;
    let bound = socket
        .set_reuse_address(true)
        .and_then(|()| socket.bind(&address.into()));
    bound
        .and_then(|()| socket.listen(backlog))
        .map_err(|source| failed(&address, source))?;
    Ok(socket.into())
}

/// Binds a UDP address, non-blocking, and asks for a receive buffer of so many bytes (the kernel may give less).
pub fn bind_udp(address: SocketAddr, receive_buffer: usize) -> Result<UdpSocket, SocketError> {
    let socket = internet(address, Type::DGRAM, Protocol::UDP)?;
    socket
        .bind(&address.into())
        .map_err(|source| failed(&address, source))?;
    if let Err(error) = socket.set_recv_buffer_size(receive_buffer) {
        tracing::debug!(%error, bytes = receive_buffer, "cannot set the receive buffer");
    }
    Ok(socket.into())
}

fn internet(address: SocketAddr, kind: Type, protocol: Protocol) -> Result<Socket, SocketError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    open().map_err(|source| failed(&address, source))
}

fn failed(name: &dyn fmt::Display, source: io::Error) -> SocketError {
    match source.kind() {
        io::ErrorKind::AddrInUse => SocketError::InUse(name.to_string()),
        _ => SocketError::Bind {
            name: name.to_string(),
            source,
        },
    }
}

fn bind<T>(path: &Path, permissions: Permissions, bind: impl FnOnce() -> io::Result<T>) -> Result<T, SocketError> {
    let name = path.display().to_string();
    if path.as_os_str().as_bytes().len() > MAX_PATH_LEN {
        return Err(SocketError::PathTooLong(name));
    }
    remove_stale(path)?;
    // Nobody but us may connect between bind and chown.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind();
    umask(before);
    let socket = bound.map_err(|source| failed(&name, source))?;
    give(path, permissions)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(permissions.mode)))
        .map_err(|source| SocketError::Permissions { name, source })?;
    Ok(socket)
}

/// Changes the owner only where it is another one: a service manager may forbid the call altogether.
fn give(path: &Path, to: Permissions) -> io::Result<()> {
    let now = fs::symlink_metadata(path)?;
    let user = to.user.filter(|user| user.as_raw() != now.uid());
    let group = to.group.filter(|group| group.as_raw() != now.gid());
    if user.is_some() || group.is_some() {
        chown(path, user, group)?;
    }
    Ok(())
}

/// Removes a socket that nobody listens on any more, and nothing else.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let name = || path.display().to_string();
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Bind { name: name(), source }),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(name()));
    }
    match UnixStream::connect(path) {
        // Only this says that the socket has no process behind it; a socket of the other type would say otherwise.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| SocketError::Bind { name: name(), source })
        }
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            Err(SocketError::Bind { name: name(), source })
        }
        _ => Err(SocketError::InUse(name())),
    }
}

/// Sockets that the service manager bound and passed on, found by the name in `FileDescriptorName=`.
pub struct Inherited {
    names: Vec<String>,
    sockets: ListenFd,
}

impl fmt::Debug for Inherited {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Inherited")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Inherited {
    /// Those of this process (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`); none when it was not socket-activated.
    pub fn from_environment() -> Self {
        Self {
            names: names(env::var_os("LISTEN_FDNAMES")),
            sockets: ListenFd::from_env(),
        }
    }

    /// No sockets at all.
    pub fn none() -> Self {
        Self {
            names: Vec::new(),
            sockets: ListenFd::empty(),
        }
    }

    /// The Unix listener of this name, non-blocking.
    pub fn take_stream(&mut self, name: &str) -> Result<Option<UnixListener>, SocketError> {
        self.take(name, ListenFd::take_unix_listener, |socket| {
            socket.set_nonblocking(true)
        })
    }

    /// The Unix datagram socket of this name, non-blocking.
    pub fn take_datagram(&mut self, name: &str) -> Result<Option<UnixDatagram>, SocketError> {
        self.take(name, ListenFd::take_unix_datagram, |socket| {
            socket.set_nonblocking(true)
        })
    }

    /// The TCP listener of this name, non-blocking.
    pub fn take_tcp(&mut self, name: &str) -> Result<Option<TcpListener>, SocketError> {
        self.take(name, ListenFd::take_tcp_listener, |socket| socket.set_nonblocking(true))
    }

    /// The UDP socket of this name, non-blocking.
    pub fn take_udp(&mut self, name: &str) -> Result<Option<UdpSocket>, SocketError> {
        self.take(name, ListenFd::take_udp_socket, |socket| socket.set_nonblocking(true))
    }

    fn take<T>(
        &mut self,
        name: &str,
        take: impl FnOnce(&mut ListenFd, usize) -> io::Result<Option<T>>,
        set_non_blocking: impl FnOnce(&T) -> io::Result<()>,
    ) -> Result<Option<T>, SocketError> {
        let Some(index) = self.names.iter().position(|known| known == name) else {
            return Ok(None);
        };
        let inherited = |source| SocketError::Inherited {
            name: name.to_owned(),
            source,
        };
        let taken = take(&mut self.sockets, index).map_err(inherited)?;
        if let Some(socket) = &taken {
            set_non_blocking(socket).map_err(inherited)?;
        }
        // A second socket of the same name is found by the next call.
        if let Some(used) = self.names.get_mut(index) {
            used.clear();
        }
        Ok(taken)
    }
}

fn names(variable: Option<OsString>) -> Vec<String> {
    let text = variable.and_then(|value| value.into_string().ok()).unwrap_or_default();
    text.split(':')
        .filter(|_| !text.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Removes socket files that this process bound, when it ends.
#[derive(Debug, Default)]
pub(crate) struct Bound(Vec<PathBuf>);

impl Bound {
    pub(crate) fn add(&mut self, path: &Path) {
        self.0.push(path.to_owned());
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(%error, socket = %path.display(), "cannot remove socket");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o7777
    }

    #[test]
    fn socket_gets_exactly_the_mode_asked_for() {
        let directory = tempfile::tempdir().expect("directory");
        let (stream, datagram) = (directory.path().join("s"), directory.path().join("d"));
        let _listener = bind_stream(&stream, Permissions::mode(0o660)).expect("bound");
        let _socket = bind_datagram(&datagram, Permissions::mode(0o600)).expect("bound");
        assert_eq!((mode(&stream), mode(&datagram)), (0o660, 0o600));
    }

    #[test]
    fn stale_socket_is_replaced() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("s");
        drop(bind_stream(&path, Permissions::mode(0o660)).expect("bound"));
        drop(bind_datagram(&path, Permissions::mode(0o660)).expect("bound over a dead stream socket"));
        bind_stream(&path, Permissions::mode(0o660)).expect("bound over a dead datagram socket");
    }

    #[test]
    fn living_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let (stream, datagram) = (directory.path().join("s"), directory.path().join("d"));
        let _listener = bind_stream(&stream, Permissions::mode(0o660)).expect("bound");
        let _socket = bind_datagram(&datagram, Permissions::mode(0o660)).expect("bound");
        for path in [&stream, &datagram] {
            let error = bind_stream(path, Permissions::mode(0o660)).expect_err("in use");
            assert!(matches!(error, SocketError::InUse(_)), "{error}");
            let error = bind_datagram(path, Permissions::mode(0o660)).expect_err("in use");
            assert!(matches!(error, SocketError::InUse(_)), "{error}");
        }
    }

    #[test]
    fn file_in_the_way_is_never_removed() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("f");
        fs::write(&path, "precious").expect("written");
        let error = bind_stream(&path, Permissions::mode(0o660)).expect_err("in the way");
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[test]
    fn path_over_the_kernels_limit_is_refused_with_the_reason() {
        let path = PathBuf::from("x".repeat(MAX_PATH_LEN + 1));
        let error = bind_stream(&path, Permissions::mode(0o660)).expect_err("too long");
        assert!(matches!(error, SocketError::PathTooLong(_)), "{error}");
    }

    #[test]
    fn taken_port_says_so() {
        let first = bind_tcp(SocketAddr::from(([127, 0, 0, 1], 0)), 16).expect("bound");
        let error = bind_tcp(first.local_addr().expect("address"), 16).expect_err("in use");
        assert!(
            error
                .to_string()
                .ends_with("address in use; is another instance running?"),
            "{error}"
        );
    }

    #[test]
    fn names_of_inherited_sockets_are_split_at_colons() {
        assert_eq!(names(Some("events:natsd.ctl".into())), ["events", "natsd.ctl"]);
        assert!(names(None).is_empty());
    }
}
