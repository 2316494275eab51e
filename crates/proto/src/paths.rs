//! Where things lie, relative to the home. Daemons change into the home at start and use these as they are, since a
//! Unix socket's path may have 108 bytes only.

/// The configuration file, in the stock format.
pub const CONFIG: &str = "etc/ossec.conf";
/// Shipped internal options; the local file overrides it.
pub const INTERNAL_OPTIONS: &str = "etc/internal_options.conf";
/// The operator's internal options.
pub const LOCAL_INTERNAL_OPTIONS: &str = "etc/local_internal_options.conf";
/// The agents' keys, in the stock format. authd is the only writer.
pub const CLIENT_KEYS: &str = "etc/client.keys";
/// The enrollment password, first line.
pub const AUTHD_PASS: &str = "etc/authd.pass";
/// authd's certificate chain, PEM.
pub const AUTHD_CERT: &str = "etc/sslmanager.cert";
/// authd's private key, PEM.
pub const AUTHD_KEY: &str = "etc/sslmanager.key";
/// One directory per group.
pub const SHARED: &str = "etc/shared";
/// The merged files of agents that have several groups, a directory for each list of groups.
pub const MULTIGROUPS: &str = "var/multigroups";

/// analysisd's event queue in the Wazuh layout: datagram, stock format.
pub const ANALYSIS_QUEUE: &str = "queue/sockets/queue";
/// analysisd's event queue in the OSSEC layout: datagram, stock format without ids.
pub const ANALYSIS_QUEUE_OSSEC: &str = "queue/ossec/queue";
/// authd's local socket: stream, stock JSON behind a u32 length.
pub const AUTH_SOCKET: &str = "queue/sockets/auth";
/// Key requests from remoted: datagram, stock text.
pub const KEY_REQUEST_SOCKET: &str = "queue/sockets/krequest";
/// Requests to agents: stream, stock format.
pub const REMOTE_SOCKET: &str = "queue/sockets/remote";
/// Orders to agents: datagram, stock format.
pub const ACTIVE_RESPONSE_SOCKET: &str = "queue/alerts/ar";
/// SCA requests to agents: datagram, stock format.
pub const SCA_SOCKET: &str = "queue/alerts/cfgarq";

/// The directory of our own sockets.
pub const MUSTER_SOCKETS: &str = "queue/muster";
/// natsd takes events from every daemon here: stream, frames of [`crate::ipc`].
pub const EVENTS_SOCKET: &str = "queue/muster/events";

/// Message counters, one file an agent, and `sender_counter`.
pub const RIDS: &str = "queue/rids";
/// remoted's store of liveness and of events not yet taken by natsd (SQLite).
pub const AGENTS_DB: &str = "queue/db/agents.db";
/// authd's store of registration times, groups, and events not yet taken by natsd (SQLite).
pub const ENROLLMENT_DB: &str = "queue/db/enrollment.db";
/// keypolld's store of events not yet taken by natsd (SQLite).
pub const KEYPOLL_DB: &str = "queue/db/keypoll.db";
/// Registration times in the stock text format, kept for stock readers.
pub const AGENTS_TIMESTAMP: &str = "queue/agents-timestamp";
/// natsd's spool.
pub const SPOOL: &str = "queue/nats";

/// Pid files: `<daemon>-<pid>.pid`.
pub const RUN: &str = "var/run";
/// Log files, when a daemon does not write to the journal or a terminal.
pub const LOGS: &str = "logs";

/// The control socket of a daemon, by its short name (`remoted`, not `muster-remoted`).
pub fn control_socket(daemon: &str) -> String {
    format!("{MUSTER_SOCKETS}/{daemon}.ctl")
}
