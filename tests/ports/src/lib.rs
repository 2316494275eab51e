//! Ports for servers that are started by tests and by the demo, which run side by side in many processes.
//!
//! A port that the system chose, and that was closed again, may be given to somebody else before the server has bound
//! it. A [`Port`] comes from below the range that the system chooses from, and a lock on a file keeps it from every
//! other test while the value lives: over restarts of its server, too.

use std::{
    env, fs,
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Ports are taken from here: below those that the system gives to outgoing connections.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 32_000;

/// A port that nobody else has while this value lives.
#[derive(Debug)]
pub struct Port {
    /// Its number.
    pub number: u16,
    _reserved: File,
}

impl Port {
    /// Finds a port that is free for TCP and UDP on every address, and keeps other tests off it.
    ///
    /// # Errors
    ///
    /// The folder of reservations cannot be written, or all ports are taken.
    pub fn free() -> io::Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let folder = env::temp_dir().join("muster-tests-ports");
        fs::create_dir_all(&folder)?;
        let span = LAST_PORT - FIRST_PORT;
        // Processes that start one after another begin far from each other.
        let begin = u16::try_from(process::id().wrapping_mul(97) % u32::from(span)).unwrap_or_default();
        for _ in 0..span {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % span;
            let number = FIRST_PORT + (begin + step) % span;
            let reserved = File::create(folder.join(number.to_string()))?;
            if reserved.try_lock().is_ok()
                && TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok()
                && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok()
            {
                return Ok(Self {
                    number,
                    _reserved: reserved,
                });
            }
        }
        Err(io::Error::other(format!(
            "no port from {FIRST_PORT} to {LAST_PORT} is free for both TCP and UDP"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_once() {
        let (one, two) = (Port::free().unwrap(), Port::free().unwrap());
        assert_ne!(one.number, two.number);
    }
}
