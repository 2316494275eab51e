//! `<remote>`: where agents talk to us, and how we find out that they no longer do.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use super::Layout;
use crate::{
    kind::{Kind, Reading, Special, address, lenient, maybe, networks, number, seconds, span, word, yes_no},
    limits,
    walk::{Block, Need, Origin, Repeated, Walk},
};

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
    /// Syslog only: how long a sender may be silent before that is told. Zero: for ever.
    #[serde(serialize_with = "crate::json::seconds")]
    pub silent_after: Duration,
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
    /// Load balancers whose TCP connections begin with a PROXY protocol header; that of others is not believed.
    #[serde(serialize_with = "crate::json::texts")]
    pub proxy_protocol: Vec<IpNet>,
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
            silent_after: limits::SYSLOG_SILENT_AFTER,
            queue_size: limits::REMOTE_QUEUE_SIZE,
            rids_closing_time: limits::RIDS_CLOSING_TIME,
            connection_overtake_time: limits::CONNECTION_OVERTAKE_TIME,
            allow_higher_versions: false,
            crypto_accept: CryptoAccept::Both,
            manager_keepalive: None,
            when_full: WhenFull::Drop,
            archives: false,
            key_conflict: KeyConflict::First,
            proxy_protocol: Vec::new(),
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

const DAY: u64 = 86_400;
/// A larger queue than this is taken with a warning, as stock does.
const LARGE_QUEUE: usize = 262_144;

impl Remote {
    /// The manager's keepalive, if it is switched on.
    pub fn keepalive(&self) -> Option<&ManagerKeepalive> {
        self.manager_keepalive.as_ref().filter(|keepalive| keepalive.enabled)
    }

    /// Whether two blocks would bind the same socket.
    fn collides_with(&self, other: &Self) -> bool {
        let same_carrier = self.protocols.tcp && other.protocols.tcp || self.protocols.udp && other.protocols.udp;
        let same_address = match (self.local_ip, other.local_ip) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.port == other.port && same_carrier && same_address
    }
}

/// All `<remote>` blocks together.
pub(super) struct Listeners;

impl Listeners {
    pub(super) fn walk_all<W: Walk>(remotes: &mut Vec<Remote>, layout: Layout, walk: &mut W) {
        walk.blocks(Origin::Stock, "remote", remotes);
        let is_ossec = layout == Layout::Ossec || (layout == Layout::Auto && walk.home_is_ossec());
        for remote in remotes
            .iter_mut()
            .filter(|remote| is_ossec && remote.connection == Connection::Secure)
        {
            // OSSEC's agents know UDP only, and OSSEC's files say nothing about it or say tcp and mean udp.
            remote.protocols.udp = true;
        }
        let (secure, other): (Vec<_>, Vec<_>) = remotes
            .iter()
            .partition(|remote| remote.connection == Connection::Secure);
        if secure.len() > 1 {
            let message = format!(
                "there are {} <remote> blocks with <connection>secure</connection>; all are used here, a stock remoted \
                 takes one",
                secure.len()
            );
            walk.warning("remote", &message);
        }
        let mut seen: Vec<&Remote> = Vec::new();
        for remote in secure.into_iter().chain(other) {
            if seen.iter().any(|earlier| earlier.collides_with(remote)) {
                let message = format!(
                    "two <remote> blocks listen at port {} of the same address; change <port>, <protocol> or <local_ip> \
                     of one",
                    remote.port
                );
                walk.error("remote", &message);
            }
            seen.push(remote);
        }
    }
}

/// `tcp`, `udp`, or both with a comma. Bad words are left out with a warning, as stock does.
fn protocols() -> Special<Protocols> {
    Special {
        accepts: "'tcp', 'udp' or 'tcp,udp'",
        read: |text| {
            let mut found = Protocols { tcp: false, udp: false };
            let mut bad = None;
            for name in text.split(',').map(str::trim) {
                match name.to_ascii_lowercase().as_str() {
                    "tcp" => found.tcp = true,
                    "udp" => found.udp = true,
                    _ => bad = Some(name.to_owned()),
                }
            }
            if !found.tcp && !found.udp {
                found.tcp = true;
            }
            match bad {
                None => Reading::Value(found),
                Some(bad) => {
                    let bad = crate::source::quoted(&bad);
                    let taken = protocols().write(&found).unwrap_or_default();
                    Reading::Doubtful(
                        found,
                        format!("must be 'tcp', 'udp' or 'tcp,udp', not {bad}; {taken} is taken"),
                    )
                }
            }
        },
        write: |protocols| {
            Some(match (protocols.tcp, protocols.udp) {
                (true, true) => "tcp,udp".to_owned(),
                (false, true) => "udp".to_owned(),
                _ => "tcp".to_owned(),
            })
        },
    }
}

impl Block for Remote {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        let connections = word(&[("secure", Connection::Secure), ("syslog", Connection::Syslog)]);
        walk.option(
            Origin::Stock,
            Need::Required,
            "connection",
            connections,
            &mut self.connection,
        );
        walk.stock("port", number(1, 65535), &mut self.port);
        walk.stock("protocol", protocols(), &mut self.protocols);
        walk.stock("ipv6", yes_no(), &mut self.ipv6);
        walk.stock("local_ip", maybe(address()), &mut self.local_ip);
        walk.list(
            Origin::Stock,
            Need::Optional,
            "allowed-ips",
            networks(),
            &mut self.allowed_ips,
        );
        walk.list(
            Origin::Stock,
            Need::Optional,
            "denied-ips",
            networks(),
            &mut self.denied_ips,
        );
        walk.own("silent_after", span(0, 365 * DAY), &mut self.silent_after);
        match self.connection {
            Connection::Secure => walk.stock("queue_size", number(1, 16_777_216), &mut self.queue_size),
            Connection::Syslog => walk.unused(&["queue_size"]),
        }
        let closing_time = lenient(span(1, 365 * DAY), limits::RIDS_CLOSING_TIME);
        walk.stock("rids_closing_time", closing_time, &mut self.rids_closing_time);
        let overtake_time = lenient(seconds(0, 3600), limits::CONNECTION_OVERTAKE_TIME);
        walk.stock(
            "connection_overtake_time",
            overtake_time,
            &mut self.connection_overtake_time,
        );
        let mut agents = AgentsBlock {
            allow_higher_versions: self.allow_higher_versions,
        };
        walk.block(Origin::Stock, "agents", &mut agents);
        self.allow_higher_versions = agents.allow_higher_versions;
        let ciphers = word(&[
            ("both", CryptoAccept::Both),
            ("aes", CryptoAccept::Aes),
            ("blowfish", CryptoAccept::Blowfish),
        ]);
        walk.stock("crypto_accept", ciphers, &mut self.crypto_accept);
        walk.optional(
            Origin::Own,
            "manager_keepalive",
            Repeated::Merged,
            &mut self.manager_keepalive,
        );
        walk.own(
            "when_full",
            word(&[("drop", WhenFull::Drop), ("block", WhenFull::Block)]),
            &mut self.when_full,
        );
        walk.own("archives", yes_no(), &mut self.archives);
        let conflicts = word(&[("first", KeyConflict::First), ("newest", KeyConflict::Newest)]);
        walk.own("key_conflict", conflicts, &mut self.key_conflict);
        walk.list(
            Origin::Own,
            Need::Optional,
            "proxy_protocol",
            networks(),
            &mut self.proxy_protocol,
        );
        walk.block(Origin::Own, "limits", &mut self.limits);
        match self.connection {
            Connection::Secure => self.check_secure(walk),
            Connection::Syslog => self.check_syslog(walk),
        }
    }
}

impl Remote {
    fn check_secure<W: Walk>(&self, walk: &mut W) {
        if self.queue_size > LARGE_QUEUE {
            walk.warning(
                "queue_size",
                "this is a very large queue; each waiting message may take 64 KB",
            );
        }
        for name in ["allowed-ips", "denied-ips", "silent_after"] {
            if !walk.lacks(name) {
                walk.warning(
                    name,
                    "this is for syslog connections only; the agents' keys decide here",
                );
            }
        }
    }

    fn check_syslog<W: Walk>(&mut self, walk: &mut W) {
        if walk.lacks("port") {
            self.port = limits::SYSLOG_PORT;
        }
        if self.protocols.tcp && self.protocols.udp {
            let message = "a syslog connection has one protocol; write two <remote> blocks to have both";
            walk.error("protocol", message);
        }
        if !walk.lacks("queue_size") {
            walk.error(
                "queue_size",
                "a syslog connection has no queue of its own; remove <queue_size>",
            );
        }
        if walk.lacks("allowed-ips") {
            walk.warning("", "nobody may send syslog here, since there is no <allowed-ips>");
        }
    }
}

/// `<agents>`, in `<remote>` and in `<auth>`.
#[derive(Default)]
pub(super) struct AgentsBlock {
    pub(super) allow_higher_versions: bool,
}

impl Block for AgentsBlock {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock(
            "allow_higher_versions",
            lenient(yes_no(), false),
            &mut self.allow_higher_versions,
        );
    }
}

impl Block for ManagerKeepalive {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.own("enabled", yes_no(), &mut self.enabled);
        walk.own("interval", span(1, DAY), &mut self.interval);
        walk.own("timeout", span(1, 7 * DAY), &mut self.timeout);
        walk.own("max_missed", number(1, 1000), &mut self.max_missed);
        walk.own("retry_interval", span(1, DAY), &mut self.retry_interval);
        let probes = word(&[
            ("auto", Probe::Auto),
            ("keepalive", Probe::Keepalive),
            ("ack", Probe::Ack),
            ("request", Probe::Request),
        ]);
        walk.own("probe", probes, &mut self.probe);
        if self.enabled {
            self.check(walk);
        }
    }
}

impl ManagerKeepalive {
    /// Legal and unwise: values of which one never has an effect.
    fn check<W: Walk>(&self, walk: &mut W) {
        let missed = self.interval.saturating_mul(self.max_missed);
        if self.timeout < self.interval {
            walk.warning(
                "timeout",
                "this is shorter than <interval>: agents are given up before they are asked",
            );
        } else if missed < self.timeout {
            let message = format!(
                "<max_missed> {} times <interval> is {}s: agents are given up then, and this time-out never comes",
                self.max_missed,
                missed.as_secs()
            );
            walk.warning("timeout", &message);
        } else if missed > self.timeout.saturating_add(self.interval) {
            let message = format!(
                "<timeout> comes after {}s: agents are given up then, and so many are never missed",
                self.timeout.as_secs()
            );
            walk.warning("max_missed", &message);
        }
        if self.retry_interval > self.interval {
            walk.warning(
                "retry_interval",
                "this is longer than <interval>: the next keepalive comes first",
            );
        }
    }
}

impl Block for RemoteLimits {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.own("max_connections", number(1, 1_000_000), &mut self.max_connections);
        walk.own("max_unidentified", number(1, 1_000_000), &mut self.max_unidentified);
        walk.own(
            "max_unidentified_per_address",
            number(1, 1_000_000),
            &mut self.max_unidentified_per_address,
        );
        walk.own("identify_timeout", span(1, DAY), &mut self.identify_timeout);
    }
}
