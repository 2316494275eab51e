//! `<remote>`: where agents talk to us, and how we find out that they no longer do.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use crate::limits;

/// One `<remote>` block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remote {
    /// What is spoken here.
    pub connection: Connection,
    /// The port. Default 1514 for secure, 514 for syslog.
    pub port: u16,
    /// The carriers. Both are possible for secure only.
    pub protocols: Protocols,
    /// Whether the socket is IPv6, taking IPv4 as well.
    pub ipv6: bool,
    /// The address to listen at; every address when absent.
    pub local_ip: Option<IpAddr>,
    /// Syslog only: who may send.
    #[serde(serialize_with = "crate::json::texts")]
    pub allowed_ips: Vec<IpNet>,
    /// Syslog only: who may not.
    #[serde(serialize_with = "crate::json::texts")]
    pub denied_ips: Vec<IpNet>,
    /// How many messages may wait between the sockets and the event path.
    pub queue_size: usize,
    /// How long an unused counter file stays open.
    #[serde(serialize_with = "crate::json::seconds")]
    pub rids_closing_time: Duration,
    /// An owner of an agent's session that has been silent for longer than this gives way to a newer connection.
    /// Zero: never.
    #[serde(serialize_with = "crate::json::seconds")]
    pub connection_overtake_time: Duration,
    /// Whether agents newer than the version that we present may come in.
    pub allow_higher_versions: bool,
    /// Which ciphers agents may use.
    pub crypto_accept: CryptoAccept,
    /// The manager's own keepalive. Without it nothing is sent, and `agents_disconnection_time` is the time-out.
    pub manager_keepalive: Option<ManagerKeepalive>,
    /// What to do with events when nobody takes them, after reading has been paused for as long as agents bear.
    pub when_full: WhenFull,
    /// Whether each event also goes to natsd as an archive record.
    pub archives: bool,
    /// Who keeps the session when one key is used from two places.
    pub key_conflict: KeyConflict,
    /// Bounds against strangers.
    pub limits: RemoteLimits,
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            connection: Connection::Secure,
            port: limits::REMOTE_PORT,
            protocols: Protocols { tcp: true, udp: false },
            ipv6: false,
            local_ip: None,
            allowed_ips: Vec::new(),
            denied_ips: Vec::new(),
            queue_size: limits::REMOTE_QUEUE_SIZE,
            rids_closing_time: limits::RIDS_CLOSING_TIME,
            connection_overtake_time: limits::CONNECTION_OVERTAKE_TIME,
            allow_higher_versions: false,
            crypto_accept: CryptoAccept::Both,
            manager_keepalive: None,
            when_full: WhenFull::Drop,
            archives: false,
            key_conflict: KeyConflict::First,
            limits: RemoteLimits::default(),
        }
    }
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// The agents' encrypted protocol.
    Secure,
    /// Plain syslog.
    Syslog,
}

/// The carriers of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Protocols {
    /// Messages in a stream.
    pub tcp: bool,
    /// A message a datagram.
    pub udp: bool,
}

/// Which ciphers agents may use (the option is OSSEC's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CryptoAccept {
    /// Every form that we know.
    Both,
    /// Only AES, in Wazuh's or OSSEC's form.
    Aes,
    /// Only Blowfish.
    Blowfish,
}

/// `<manager_keepalive>`: the manager's own keepalive, and when a silent agent is given up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ManagerKeepalive {
    /// Off is the same as leaving the block out.
    pub enabled: bool,
    /// Time between two keepalives to one agent, and the unit in which missed ones are counted.
    #[serde(serialize_with = "crate::json::seconds")]
    pub interval: Duration,
    /// Silence after which the agent is disconnected.
    #[serde(serialize_with = "crate::json::seconds")]
    pub timeout: Duration,
    /// Whole intervals of silence after which the agent is disconnected, if that comes first.
    pub max_missed: u32,
    /// How soon a keepalive that could not be sent is tried again.
    #[serde(serialize_with = "crate::json::seconds")]
    pub retry_interval: Duration,
    /// What is sent.
    pub probe: Probe,
}

impl Default for ManagerKeepalive {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: limits::KEEPALIVE_INTERVAL,
            timeout: limits::KEEPALIVE_TIMEOUT,
            max_missed: limits::KEEPALIVE_MAX_MISSED,
            retry_interval: limits::KEEPALIVE_RETRY_INTERVAL,
            probe: Probe::Auto,
        }
    }
}

/// What the manager sends to an agent as its keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A request to agents that answer requests, an acknowledgement to the others.
    Auto,
    /// The text `#!-agent keepalive <name> <time>`, which stock agents log as unknown.
    Keepalive,
    /// The stock acknowledgement, silent.
    Ack,
    /// A stock request, whose answer proves the round trip.
    Request,
}

/// What to do with events when nobody takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Read on, drop events, count them by reason.
    Drop,
    /// Do not read until there is room.
    Block,
}

/// Who keeps the session when one key is used from two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyConflict {
    /// The connection that was there, until `connection_overtake_time` has passed in silence (stock).
    First,
    /// The connection that came last.
    Newest,
}

/// `<limits>` in `<remote>`: bounds against strangers. None of them touches an agent that has proved its key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemoteLimits {
    /// TCP connections in all.
    pub max_connections: usize,
    /// TCP connections that have not yet sent a valid message, in all.
    pub max_unidentified: usize,
    /// The same from one address.
    pub max_unidentified_per_address: usize,
    /// How long a TCP connection may go without its first valid message.
    #[serde(serialize_with = "crate::json::seconds")]
    pub identify_timeout: Duration,
}

impl Default for RemoteLimits {
    fn default() -> Self {
        Self {
            max_connections: limits::REMOTE_MAX_CONNECTIONS,
            max_unidentified: limits::REMOTE_MAX_UNIDENTIFIED,
            max_unidentified_per_address: limits::REMOTE_MAX_UNIDENTIFIED_PER_ADDRESS,
            identify_timeout: limits::REMOTE_IDENTIFY_TIMEOUT,
        }
    }
}
