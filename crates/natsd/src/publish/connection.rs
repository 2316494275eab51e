//! The connection to the broker: how it is made, and what it tells.
//!
//! A client is used for one connection only. One that comes back by itself would first send what was still in its queue,
//! so that a later event could arrive before an earlier one that the break has swallowed.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event};
use muster_config::Nats;
use thiserror::Error;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::tls::{Peer, client_config};

/// A dead peer is noticed within two of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Behind `max_reconnects` failures in a row: the pace at which it goes on for ever.
const SLOW_PACE: Duration = Duration::from_secs(30);
/// Commands that may wait for the client's own task; more than any window.
const CLIENT_CAPACITY: usize = 4096;
/// What the client tells that was not yet read; what is over is lost, but never a lost connection.
const MAX_NEWS: usize = 256;
/// What our own subjects begin with. Other clients of the account must not listen there.
pub(crate) const INBOX_PREFIX: &str = "_INBOX.natsd";
/// Longer than any of our connections waits for its own end.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Why there is no connection.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("cannot read the credentials file {}", path.display())]
    Credentials {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the nkey file {}", path.display())]
    Nkey {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot connect to {server}")]
    Connect {
        server: String,
        #[source]
        source: async_nats::ConnectError,
    },
    #[error("cannot connect to {server}: no answer within {} s", CONNECT_TIMEOUT.as_secs() * 2)]
    TimedOut { server: String },
}

/// What a connection tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It is over.
    Lost(String),
    /// The broker reports an error, such as a missing permission.
    Error(String),
    /// The broker is about to stop.
    LameDuck,
}

/// One connection to one server, with the credentials and certificates that are in the files now.
pub(crate) async fn connect(
    nats: &Nats,
    node: &str,
    server: &str,
) -> Result<(Client, mpsc::Receiver<News>), ConnectError> {
    connect_noting(nats, node, server, &Peer::default()).await
}

/// The same, noting whom we have met.
pub(crate) async fn connect_noting(
    nats: &Nats,
    node: &str,
    server: &str,
    peer: &Peer,
) -> Result<(Client, mpsc::Receiver<News>), ConnectError> {
    let (sender, news) = mpsc::channel(MAX_NEWS);
    let options = with_credentials(options(nats, node, server, peer), nats).await?;
    let options = options.event_callback(move |event| {
        let told = match &event {
            Event::Disconnected | Event::Closed => Some(News::Lost(event.to_string())),
            Event::ServerError(_) | Event::ClientError(_) => Some(News::Error(event.to_string())),
            Event::LameDuckMode => Some(News::LameDuck),
            Event::Connected | Event::Draining | Event::SlowConsumer(_) => None,
        };
        let sender = sender.clone();
        async move {
            match told {
                // That it is over must arrive; the receiver is read until then.
                Some(lost @ News::Lost(_)) => drop(sender.send(lost).await),
                Some(news) => drop(sender.try_send(news)),
                None => {}
            }
        }
    });
    let connected = tokio::time::timeout(CONNECT_TIMEOUT * 2, options.connect(server)).await;
    let client = match connected {
        Ok(connected) => connected.map_err(|source| ConnectError::Connect {
            server: server.to_owned(),
            source,
        })?,
        Err(_) => {
            let server = server.to_owned();
            return Err(ConnectError::TimedOut { server });
        }
    };
    Ok((client, news))
}

/// With the settings of the daemon, but for other purposes: `muster-natsd verify`, `provision`.
pub(crate) async fn connect_once(nats: &Nats, name: &str) -> Result<Client, ConnectError> {
    let mut last = None;
    for server in &nats.servers {
        match connect(nats, name, server).await {
            Ok((client, _)) => return Ok(client),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(ConnectError::TimedOut {
        server: "no server".to_owned(),
    }))
}

fn options(nats: &Nats, node: &str, server: &str, peer: &Peer) -> ConnectOptions {
    let tried = Arc::new(AtomicBool::new(false));
    let mut options = ConnectOptions::new()
        .name(format!("muster-natsd {node}"))
        .ignore_discovered_servers()
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIMEOUT)
        .client_capacity(CLIENT_CAPACITY)
        .custom_inbox_prefix(INBOX_PREFIX)
        .reconnect_delay_callback(move |_| {
            if tried.swap(true, Ordering::Relaxed) {
                NEVER
            } else {
                Duration::ZERO
            }
        });
    // Never plaintext by silence: whoever asks for encrypted messages gets TLS or no connection.
    if nats.encrypt_messages || server.starts_with("tls://") {
        options = options.require_tls(true);
    }
    // The client reads the system's authorities in any case, and fails where it cannot.
    let system_can_be_read = rustls_native_certs::load_native_certs().errors.is_empty();
    match client_config(nats, peer) {
        Ok(config) if system_can_be_read => return options.tls_client_config(config),
        Ok(_) => {}
        // The client tells, if it comes to TLS at all.
        Err(why) => tracing::debug!(why, "cannot prepare TLS"),
    }
    if let Some(ca) = &nats.tls_ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(cert), Some(key)) = (&nats.tls_cert, &nats.tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    options
}

async fn with_credentials(mut options: ConnectOptions, nats: &Nats) -> Result<ConnectOptions, ConnectError> {
    if let (Some(user), Some(password)) = (&nats.user, &nats.password) {
        options = options.user_and_password(user.clone(), password.expose().to_owned());
    }
    if let Some(token) = &nats.token {
        options = options.token(token.expose().to_owned());
    }
    if let Some(path) = &nats.nkey_file {
        let seed = read_nkey(path).map_err(|source| ConnectError::Nkey {
            path: path.clone(),
            source,
        })?;
        options = options.nkey(seed);
    }
    if let Some(path) = &nats.credentials_file {
        let read = options.credentials_file(path).await;
        options = read.map_err(|source| ConnectError::Credentials {
            path: path.clone(),
            source,
        })?;
    }
    Ok(options)
}

fn read_nkey(path: &Path) -> std::io::Result<String> {
    let text = Zeroizing::new(std::fs::read_to_string(path)?);
    let seed = text.lines().map(str::trim).find(|line| line.starts_with('S'));
    Ok(seed.unwrap_or_default().to_owned())
}

/// How long to wait behind so many failures in a row: the configured delay, or a slow pace behind the configured
/// number; a fifth more or less, so that managers do not all come at once. `jitter` is from 0 to 1.
pub(crate) fn pause(failures: u32, delay: Duration, max_reconnects: u32, jitter: f64) -> Duration {
    let pace = if max_reconnects > 0 && failures > max_reconnects {
        delay.max(SLOW_PACE)
    } else if failures <= 1 {
        delay.min(Duration::from_millis(250))
    } else {
        delay
    };
    pace.mul_f64(0.8 + 0.4 * jitter)
}

/// A number from 0 to 1 that differs between processes and moments. No secret hangs on it.
pub(crate) fn jitter() -> f64 {
    let mixed = muster_service::clock::unix_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(std::process::id());
    f64::from(u16::try_from(mixed >> 48).unwrap_or(0) ^ u16::try_from(mixed & 0xffff).unwrap_or(0)) / 65535.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_within_a_fifth_of_the_configured_delay() {
        let delay = Duration::from_secs(5);
        assert_eq!(pause(3, delay, 10, 0.0), Duration::from_secs(4));
        assert_eq!(pause(3, delay, 10, 1.0), Duration::from_secs(6));
        assert!((0.0..=1.0).contains(&jitter()));
    }

    #[test]
    fn first_attempts_come_quickly() {
        assert!(pause(1, Duration::from_secs(5), 10, 1.0) < Duration::from_secs(1));
    }

    #[test]
    fn behind_max_reconnects_it_goes_on_at_a_slow_pace() {
        assert_eq!(pause(11, Duration::from_secs(5), 10, 0.5), SLOW_PACE);
        assert_eq!(pause(1_000_000, Duration::from_secs(5), 10, 0.5), SLOW_PACE);
        assert_eq!(pause(1_000_000, Duration::from_secs(5), 0, 0.5), Duration::from_secs(5));
    }
}
