//! The connection to the broker: how it is made, and what it tells.

use std::{path::Path, sync::Arc, time::Duration};

use async_nats::{Client, ConnectOptions, Event};
use muster_config::Nats;
use thiserror::Error;
use tokio::sync::watch;

use crate::status::{Counters, Link, Report};

/// A dead peer is noticed within two of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Behind `max_reconnects` failures in a row: the pace at which it goes on for ever.
const SLOW_PACE: Duration = Duration::from_secs(30);
/// Commands that may wait for the client's own task. Publishing stops while there is no connection, so it never fills.
const CLIENT_CAPACITY: usize = 4096;

/// Why there can be no connection at all.
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
    #[error("cannot connect to {servers}")]
    Connect {
        servers: String,
        #[source]
        source: async_nats::ConnectError,
    },
}

/// A client that connects for ever. The receiver counts connections: odd while connected.
pub(crate) async fn connect(
    nats: &Nats,
    node: &str,
    report: &Arc<Report>,
    counters: &Arc<Counters>,
) -> Result<(Client, watch::Receiver<bool>), ConnectError> {
    let (up, link) = watch::channel(false);
    let options = with_credentials(options(nats, node, report), nats).await?;
    let options = options.event_callback({
        let (report, counters) = (Arc::clone(report), Arc::clone(counters));
        move |event| {
            note(&event, &report, &counters, &up);
            async {}
        }
    });
    let client = options.connect(&nats.servers).await;
    let client = client.map_err(|source| ConnectError::Connect {
        servers: nats.servers.join(", "),
        source,
    })?;
    Ok((client, link))
}

fn options(nats: &Nats, node: &str, report: &Arc<Report>) -> ConnectOptions {
    let (delay, max_reconnects) = (nats.reconnect_delay, nats.max_reconnects);
    let attempts = Arc::clone(report);
    let mut options = ConnectOptions::new()
        .name(format!("muster-natsd {node}"))
        .retry_on_initial_connect()
        .max_reconnects(None)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIMEOUT)
        .client_capacity(CLIENT_CAPACITY)
        .custom_inbox_prefix(format!("_INBOX.{}", muster_proto::event::subject::token("natsd")))
        .reconnect_delay_callback(move |failures| {
            let failures = u32::try_from(failures).unwrap_or(u32::MAX);
            attempts.change(|facts| facts.failures = failures);
            pause(failures, delay, max_reconnects, jitter())
        });
    // Never plaintext by silence: whoever asks for encrypted messages gets TLS or no connection.
    if nats.encrypt_messages || nats.servers.iter().any(|server| server.starts_with("tls://")) {
        options = options.require_tls(true);
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
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

/// How long to wait behind so many failures in a row: the configured delay, or a slow pace behind the configured
/// number; a fifth more or less, so that managers do not all come at once. `jitter` is from 0 to 1.
fn pause(failures: u32, delay: Duration, max_reconnects: u32, jitter: f64) -> Duration {
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
fn jitter() -> f64 {
    f64::from(muster_service::clock::unix_ms() as u8 ^ std::process::id() as u8) / 255.0
}

fn note(event: &Event, report: &Report, counters: &Counters, up: &watch::Sender<bool>) {
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            counters.nats_connections_total.increment();
            report.change(|facts| {
                facts.link = Link::Up;
                facts.failures = 0;
                facts.last_error = None;
            });
            up.send_replace(true);
        }
        Event::Disconnected | Event::Closed | Event::Draining => {
            tracing::warn!("connection to NATS is lost; events wait in the spool");
            report.change(|facts| facts.link = Link::Down(event.to_string()));
            up.send_replace(false);
        }
        Event::ServerError(_) | Event::ClientError(_) => {
            counters.nats_errors_total.increment();
            let text = event.to_string();
            let news = report.read().last_error.as_ref() != Some(&text);
            if news {
                tracing::warn!(error = text, "NATS reports an error");
            }
            report.change(|facts| facts.last_error = Some(text));
        }
        Event::LameDuckMode | Event::SlowConsumer(_) => tracing::info!(%event, "NATS says something"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_within_a_fifth_of_the_configured_delay() {
        let delay = Duration::from_secs(5);
        assert_eq!(pause(3, delay, 10, 0.0), Duration::from_secs(4));
        assert_eq!(pause(3, delay, 10, 1.0), Duration::from_secs(6));
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
