//! `<auth>`: the enrollment daemon.

use std::{path::PathBuf, time::Duration};

use muster_proto::paths;
use serde::Serialize;

use super::{KeyRequest, remote::AgentsBlock};
use crate::{
    kind::{Special, address, maybe, number, path, rate, seconds, span, text, yes_no, yes_no_any_case},
    limits,
    value::Rate,
    walk::{Block, Need, Origin, Repeated, Walk},
};

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

const DAY: u64 = 86_400;
const YEAR: u64 = 365 * DAY;

/// The element `<auth>`, which also holds the key request.
#[derive(Default)]
pub(super) struct AuthBlock {
    pub(super) auth: Auth,
    pub(super) key_request: Option<KeyRequest>,
}

impl Block for AuthBlock {
    fn found(&mut self) {
        self.auth.disabled = false;
    }

    fn walk<W: Walk>(&mut self, walk: &mut W) {
        let auth = &mut self.auth;
        walk.stock("disabled", yes_no(), &mut auth.disabled);
        walk.stock("port", number(1, 65535), &mut auth.port);
        walk.stock("ipv6", yes_no_any_case(), &mut auth.ipv6);
        walk.own("local_ip", maybe(address()), &mut auth.local_ip);
        walk.stock("use_source_ip", yes_no(), &mut auth.use_source_ip);
        walk.block(Origin::Stock, "force", &mut auth.force);
        auth.walk_old_force(walk);
        walk.stock("purge", yes_no(), &mut auth.purge);
        walk.stock("use_password", yes_no(), &mut auth.use_password);
        walk.stock("remote_enrollment", yes_no(), &mut auth.remote_enrollment);
        walk.stock("ciphers", text(4096), &mut auth.ciphers);
        walk.stock("ssl_agent_ca", maybe(path()), &mut auth.ssl_agent_ca);
        walk.stock("ssl_verify_host", yes_no(), &mut auth.ssl_verify_host);
        walk.stock("ssl_manager_cert", path(), &mut auth.ssl_manager_cert);
        walk.stock("ssl_manager_key", path(), &mut auth.ssl_manager_key);
        walk.stock("ssl_auto_negotiate", yes_no(), &mut auth.ssl_auto_negotiate);
        let mut agents = AgentsBlock {
            allow_higher_versions: auth.allow_higher_versions,
        };
        walk.block(Origin::Stock, "agents", &mut agents);
        auth.allow_higher_versions = agents.allow_higher_versions;
        walk.block(Origin::Own, "limits", &mut auth.limits);
        walk.optional(
            Origin::Stock,
            "key_request",
            Repeated::FirstCounts,
            &mut self.key_request,
        );
        walk.unused(&["limit_maxagents"]);
        auth.check(walk);
    }
}

impl Auth {
    /// The options that `<force>` has taken the place of. They count where there is no `<force>`.
    fn walk_old_force<W: Walk>(&mut self, walk: &mut W) {
        let insert = walk.old("force_insert", yes_no(), "<force><enabled>");
        let time = walk.old("force_time", seconds(0, YEAR), "<force><disconnected_time>");
        if !walk.lacks("force") {
            return;
        }
        if let Some(insert) = insert {
            self.force.enabled = insert;
        }
        if let Some(time) = time {
            self.force.disconnected_time = (!time.is_zero()).then_some(time);
        }
    }

    /// Legal and unwise.
    fn check<W: Walk>(&self, walk: &mut W) {
        if self.disabled {
            return;
        }
        if self.ssl_verify_host && self.ssl_agent_ca.is_none() {
            let message = "this has no effect without <ssl_agent_ca>: agents are not asked for a certificate";
            walk.warning("ssl_verify_host", message);
        }
        if self.ssl_auto_negotiate {
            let message =
                "TLS before 1.2 is not offered, so this has no effect; agents too old for TLS 1.2 cannot enroll";
            walk.warning("ssl_auto_negotiate", message);
        }
        if self.ciphers != limits::AUTH_CIPHERS {
            let message =
                "this has no effect: our TLS has a fixed list of strong suites (AES-GCM and ChaCha20 with ECDHE)";
            walk.warning("ciphers", message);
        }
    }
}

impl Block for Force {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("enabled", yes_no(), &mut self.enabled);
        walk.stock("key_mismatch", yes_no(), &mut self.key_mismatch);
        let mut time = DisconnectedTime {
            enabled: self.disconnected_time.is_some(),
            time: self.disconnected_time.unwrap_or(limits::FORCE_DISCONNECTED_TIME),
        };
        walk.block(Origin::Stock, "disconnected_time", &mut time);
        self.disconnected_time = time.enabled.then_some(time.time);
        walk.stock(
            "after_registration_time",
            span(0, YEAR),
            &mut self.after_registration_time,
        );
    }
}

/// `<disconnected_time enabled="yes">1h</disconnected_time>`.
struct DisconnectedTime {
    enabled: bool,
    time: Duration,
}

impl Default for DisconnectedTime {
    fn default() -> Self {
        Self {
            enabled: true,
            time: limits::FORCE_DISCONNECTED_TIME,
        }
    }
}

impl Block for DisconnectedTime {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.attribute(Origin::Stock, Need::Required, "enabled", yes_no(), &mut self.enabled);
        if self.enabled {
            walk.text(span(0, YEAR), &mut self.time);
        } else {
            // Stock does not look at the time when it is switched off, so any text may stand there.
            walk.text(any_text(), &mut String::new());
        }
    }
}

fn any_text() -> Special<String> {
    Special {
        accepts: "any text",
        read: |_| Some(String::new()).into(),
        write: |text| Some(text.clone()),
    }
}

impl Block for AuthLimits {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.own("max_connections", number(1, 100_000), &mut self.max_connections);
        walk.own("handshake_timeout", span(1, 600), &mut self.handshake_timeout);
        walk.own("read_timeout", span(1, 600), &mut self.read_timeout);
        walk.own("rate_per_address", rate(), &mut self.rate_per_address);
        walk.own("rate_total", rate(), &mut self.rate_total);
        walk.own("max_agents", number(0, 99_999_999), &mut self.max_agents);
    }
}
