//! One question on a Unix stream socket: connect and write.
//!
//! Connecting to a Unix socket never has to wait for the other side, except for room in its backlog. So both are done at
//! once, without the event loop in between: thousands of look-ups a second make three connections each.

use std::{
    io::{self, ErrorKind, Write},
    os::{fd::AsRawFd, unix::net},
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::{io::AsyncWriteExt, net::UnixStream};

/// Connects and writes a request.
///
/// # Errors
/// [`Dial::Connect`] with [`ErrorKind::WouldBlock`] when the backlog is full.
pub async fn ask(path: &Path, request: &[u8]) -> Result<UnixStream, Dial> {
    let mut stream = open(path).map_err(Dial::Connect)?;
    let written = match stream.write(request) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        other => other.map_err(Dial::Write)?,
    };
    let mut stream = UnixStream::from_std(stream).map_err(Dial::Write)?;
    let rest = request.get(written..).unwrap_or_default();
    stream.write_all(rest).await.map_err(Dial::Write)?;
    Ok(stream)
}

/// What went wrong.
#[derive(Debug)]
pub enum Dial {
    /// Nobody listens, or there is no room.
    Connect(io::Error),
    /// The request was not taken.
    Write(io::Error),
}

fn open(path: &Path) -> io::Result<net::UnixStream> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_request_of_any_length_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        for length in [0, 6, 1_000_000] {
            let request = vec![b'x'; length];
            let (asked, heard) = tokio::join!(
                async {
                    drop(ask(&path, &request).await.unwrap());
                },
                async {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut heard = Vec::new();
                    stream.read_to_end(&mut heard).await.unwrap();
                    heard
                }
            );
            let () = asked;
            assert_eq!(heard.len(), length);
        }
    }

    #[tokio::test]
    async fn nobody_and_a_full_backlog_are_said_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let kind = |result: Result<UnixStream, Dial>| match result {
            Ok(_) => None,
            Err(Dial::Connect(error) | Dial::Write(error)) => Some(error.kind()),
        };
        assert_eq!(kind(ask(&path, b"id:001").await), Some(ErrorKind::NotFound));
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        assert_eq!(kind(ask(&path, b"id:001").await), Some(ErrorKind::ConnectionRefused));
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut held = Vec::new();
        let refused = loop {
            match ask(&path, b"id:001").await {
                Ok(stream) if held.len() < 10 => held.push(stream),
                other => break kind(other),
            }
        };
        assert_eq!(refused, Some(ErrorKind::WouldBlock));
    }
}
