//! Every default that is a number or a name, in one place. Those of stock options are stock's own.

use std::time::Duration;

use crate::value::{ManagerVersion, Rate};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

// ---- what a configuration file may be ----

/// Bytes of one configuration file. A real one has some tens of kilobytes.
pub const MAX_FILE_LEN: u64 = 8 * 1024 * 1024;
/// How deep elements may be nested. A real file has six levels.
pub const MAX_DEPTH: usize = 64;
/// Options of one internal options file. A stock one has about 300.
pub const MAX_INTERNAL_OPTIONS: usize = 10_000;
/// Problems that are reported before the rest is only counted.
pub const MAX_DIAGNOSTICS: usize = 200;

// ---- <muster>, <global> ----

/// The version that we present: the stock manager whose behaviour we follow.
pub const MANAGER_VERSION: ManagerVersion = ManagerVersion {
    major: 4,
    minor: 14,
    patch: 7,
};
/// `agents_disconnection_time` of stock 4.14.
pub const AGENTS_DISCONNECTION_TIME: Duration = Duration::from_secs(15 * MINUTE);

// ---- <remote> ----

/// The agents' port.
pub const REMOTE_PORT: u16 = 1514;
/// The port of syslog connections.
pub const SYSLOG_PORT: u16 = 514;
/// `queue_size` of stock.
pub const REMOTE_QUEUE_SIZE: usize = 131_072;
/// `rids_closing_time` of stock.
pub const RIDS_CLOSING_TIME: Duration = Duration::from_secs(5 * MINUTE);
/// `connection_overtake_time` of stock.
pub const CONNECTION_OVERTAKE_TIME: Duration = Duration::from_secs(60);
/// Manager keepalive: once a minute.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// Manager keepalive: three minutes of silence.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(180);
/// Manager keepalive: or three intervals.
pub const KEEPALIVE_MAX_MISSED: u32 = 3;
/// Manager keepalive: what could not be sent is tried again.
pub const KEEPALIVE_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Connections of one port.
pub const REMOTE_MAX_CONNECTIONS: usize = 50_000;
/// Connections that have not proved a key.
pub const REMOTE_MAX_UNIDENTIFIED: usize = 8192;
/// The same from one address. A whole site may be behind one, and all come back at once after a restart.
pub const REMOTE_MAX_UNIDENTIFIED_PER_ADDRESS: usize = 2048;
/// A quiet device says something every hour.
pub const SYSLOG_SILENT_AFTER: Duration = Duration::from_secs(3600);
/// A stock agent sends its startup at once, and again within a few seconds.
pub const REMOTE_IDENTIFY_TIMEOUT: Duration = Duration::from_secs(60);

// ---- <auth> ----

/// The enrollment port.
pub const AUTH_PORT: u16 = 1515;
/// `ciphers` of stock.
pub const AUTH_CIPHERS: &str = "HIGH:!ADH:!EXP:!MD5:!RC4:!3DES:!CAMELLIA:@STRENGTH";
/// `disconnected_time` of stock.
pub const FORCE_DISCONNECTED_TIME: Duration = Duration::from_secs(HOUR);
/// `after_registration_time` of stock.
pub const FORCE_AFTER_REGISTRATION_TIME: Duration = Duration::from_secs(HOUR);
/// Stock's pool has room for 999.
pub const AUTH_MAX_CONNECTIONS: usize = 999;
/// TLS over a bad line takes a second or two.
pub const AUTH_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent sends its line at once.
pub const AUTH_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A site behind one address, or behind a balancer, rolls out all its agents from there. What one address can take up is
/// bounded all the same: places go to who holds fewer, and each step has a deadline.
pub const AUTH_RATE_PER_ADDRESS: Rate = Rate::OFF;
/// More handshakes than one processor does, so that only a flood feels it.
pub const AUTH_RATE_TOTAL: Rate = Rate {
    per_second: 2000,
    burst: 5000,
};

// ---- <key_request> ----

/// `timeout` of stock.
pub const KEY_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// `threads` of stock.
pub const KEY_REQUEST_THREADS: u16 = 1;
/// `queue_size` of stock.
pub const KEY_REQUEST_QUEUE_SIZE: u32 = 1024;
/// Long enough to stop a flood, short enough for an agent that is being added.
pub const KEY_REQUEST_NEGATIVE_CACHE: Duration = Duration::from_secs(60);
/// Look-ups that one source may cause.
pub const KEY_REQUEST_RATE_PER_ADDRESS: Rate = Rate {
    per_second: 10,
    burst: 100,
};
/// Look-ups in all.
pub const KEY_REQUEST_RATE_TOTAL: Rate = Rate {
    per_second: 5000,
    burst: 10_000,
};
/// After two minutes the agent has tried again anyway.
pub const KEY_REQUEST_DEADLINE: Duration = Duration::from_secs(2 * MINUTE);
/// Failures in a row, not answers of "no such agent".
pub const KEY_REQUEST_BREAKER_FAILURES: u32 = 10;
/// A database restart takes about so long.
pub const KEY_REQUEST_BREAKER_PAUSE: Duration = Duration::from_secs(30);
/// A hundred times what an answer needs, so that words behind it do no harm.
pub const KEY_REQUEST_MAX_OUTPUT: u64 = 64 << 10;
/// An interpreter with a database driver needs a tenth of it.
pub const KEY_REQUEST_MAX_MEMORY: u64 = 1 << 30;

// ---- <nats> ----

/// `subject_prefix`.
pub const SUBJECT_PREFIX: &str = "wazuh.xdr";
/// `security.source` of event bodies.
pub const EVENT_SOURCE: &str = "wazuh-manager";
/// Time between two tries to connect.
pub const RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// The signing key's seed.
pub const SIGNING_KEY: &str = "etc/nats/signing.nk";
/// How long consumers have to hear of a new signing key before it signs.
pub const KEY_OVERLAP: Duration = Duration::from_secs(10 * 60);
/// When an absence is published again.
pub const ESCALATION: [Duration; 2] = [Duration::from_secs(3600), Duration::from_secs(24 * 3600)];
/// Events on their way at once.
pub const PUBLISH_WINDOW: u32 = 256;
/// An acknowledgement takes milliseconds; a cluster that elects a leader takes seconds.
pub const PUBLISH_ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests of one control key.
pub const CONTROL_RATE: Rate = Rate {
    per_second: 2,
    burst: 20,
};
/// What may wait while NATS is away.
pub const SPOOL_MAX_BYTES: u64 = 1 << 30;
/// A long weekend.
pub const SPOOL_MAX_AGE: Duration = Duration::from_secs(3 * DAY);
/// The bucket of agents' states.
pub const KV_BUCKET: &str = "agents";
/// The bucket of who has which agent.
pub const OWNER_BUCKET: &str = "agent_owner";

// ---- others ----

/// `frequency` of an agentless entry.
pub const AGENTLESS_FREQUENCY: Duration = Duration::from_secs(DAY);
/// `monitord.delete_old_agents`: never.
pub const DELETE_OLD_AGENTS: Duration = Duration::ZERO;
