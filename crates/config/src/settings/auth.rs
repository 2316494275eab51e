//! `<auth>`: the enrollment daemon.

use std::{path::PathBuf, time::Duration};

use muster_proto::paths;
use serde::Serialize;

use crate::limits;

/// The `<auth>` block. Paths are relative to the home unless absolute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Auth {
    /// Whether the daemon has nothing to do: so without the block, and with `<disabled>yes</disabled>`.
    pub disabled: bool,
    /// The TLS port.
    pub port: u16,
    /// Whether the socket is IPv6, taking IPv4 as well.
    pub ipv6: bool,
    /// The address to listen at; every address when absent.
    pub local_ip: Option<std::net::IpAddr>,
    /// Whether an agent is registered with the address that it comes from rather than `any`.
    pub use_source_ip: bool,
    /// When an agent that exists gives way to one that enrolls.
    pub force: Force,
    /// Whether removed agents leave no line in `client.keys`.
    pub purge: bool,
    /// Whether `etc/authd.pass` is asked for.
    pub use_password: bool,
    /// Whether the TLS port is open at all. The local socket always is.
    pub remote_enrollment: bool,
    /// An OpenSSL cipher list for TLS 1.2. Kept as written: our TLS has safe suites only, and says so.
    pub ciphers: String,
    /// The CA that signs agents' certificates. With it, a client certificate is mandatory.
    pub ssl_agent_ca: Option<PathBuf>,
    /// Whether the client certificate must name the address that the agent comes from.
    pub ssl_verify_host: bool,
    /// Our certificate chain, PEM.
    pub ssl_manager_cert: PathBuf,
    /// Our private key, PEM.
    pub ssl_manager_key: PathBuf,
    /// Stock: whether old TLS versions stay on. Ours are 1.2 and 1.3 either way.
    pub ssl_auto_negotiate: bool,
    /// Whether agents newer than the version that we present may enroll.
    pub allow_higher_versions: bool,
    /// Bounds against strangers.
    pub limits: AuthLimits,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            disabled: true,
            port: limits::AUTH_PORT,
            ipv6: false,
            local_ip: None,
            use_source_ip: false,
            force: Force::default(),
            purge: false,
            use_password: false,
            remote_enrollment: true,
            ciphers: limits::AUTH_CIPHERS.to_owned(),
            ssl_agent_ca: None,
            ssl_verify_host: false,
            ssl_manager_cert: paths::AUTHD_CERT.into(),
            ssl_manager_key: paths::AUTHD_KEY.into(),
            ssl_auto_negotiate: false,
            allow_higher_versions: false,
            limits: AuthLimits::default(),
        }
    }
}

/// `<force>`: when an agent with the same id, name or address gives way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Force {
    /// Off: never.
    pub enabled: bool,
    /// An agent that shows the hash of its right key has no need of a new one and is refused.
    pub key_mismatch: bool,
    /// How long the old agent must have been disconnected. `None`: that is not asked.
    #[serde(serialize_with = "crate::json::maybe_seconds")]
    pub disconnected_time: Option<Duration>,
    /// How long ago the old agent must have been registered. Zero: that is not asked.
    #[serde(serialize_with = "crate::json::seconds")]
    pub after_registration_time: Duration,
}

impl Default for Force {
    fn default() -> Self {
        Self {
            enabled: true,
            key_mismatch: true,
            disconnected_time: Some(limits::FORCE_DISCONNECTED_TIME),
            after_registration_time: limits::FORCE_AFTER_REGISTRATION_TIME,
        }
    }
}

/// `<limits>` in `<auth>`: bounds against strangers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuthLimits {
    /// Connections at one time. One more is closed at once.
    pub max_connections: usize,
    /// How long the TLS handshake may take.
    #[serde(serialize_with = "crate::json::seconds")]
    pub handshake_timeout: Duration,
    /// How long the request line may take after the handshake.
    #[serde(serialize_with = "crate::json::seconds")]
    pub read_timeout: Duration,
    /// Connections that one address may open.
    pub rate_per_address: Rate,
    /// Connections that all addresses together may open.
    pub rate_total: Rate,
    /// How many agents there may be; zero: as many as come.
    pub max_agents: u32,
}

impl Default for AuthLimits {
    fn default() -> Self {
        Self {
            max_connections: limits::AUTH_MAX_CONNECTIONS,
            handshake_timeout: limits::AUTH_HANDSHAKE_TIMEOUT,
            read_timeout: limits::AUTH_READ_TIMEOUT,
            rate_per_address: limits::AUTH_RATE_PER_ADDRESS,
            rate_total: limits::AUTH_RATE_TOTAL,
            max_agents: 0,
        }
    }
}

/// A token bucket. As text: `50/s burst 500`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// Tokens that come back each second. Zero: there is no limit.
    pub per_second: u32,
    /// Tokens that may be saved up.
    pub burst: u32,
}

impl Rate {
    /// No limit.
    pub const OFF: Self = Self {
        per_second: 0,
        burst: 0,
    };

    /// Whether there is no limit.
    pub fn is_off(&self) -> bool {
        self.per_second == 0
    }
}
