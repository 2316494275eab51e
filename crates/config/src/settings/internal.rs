//! Internal options: `name=value` lines of `internal_options.conf`, with `local_internal_options.conf` over them.

use std::time::Duration;

use serde::Serialize;

use crate::limits;

/// The internal options of our daemons. Those of other daemons are passed over.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Internal {
    /// `remoted.*`
    pub remoted: RemotedInternal,
    /// `auth.*`
    pub auth: AuthInternal,
    /// `monitord.*`, as far as they concern agents.
    pub monitord: MonitordInternal,
    /// `<daemon>.debug`
    pub debug: DebugLevel,
}

/// `remoted.*`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemotedInternal {
    /// Valid messages after which receive counters are stored.
    pub recv_counter_flush: u32,
    /// Messages after which the average compression is logged. Read for the local socket's `getconfig`.
    pub comp_average_printout: u32,
    /// Whether receive counters are checked.
    pub verify_msg_id: bool,
    /// Whether an empty key file is no reason to stop.
    pub pass_empty_keyfile: bool,
    /// Threads that push files to agents.
    pub sender_pool: u32,
    /// Requests to agents that may run at once.
    pub request_pool: u32,
    /// How long a request may wait for its turn.
    #[serde(serialize_with = "crate::json::seconds")]
    pub request_timeout: Duration,
    /// How long an agent's answer may take.
    #[serde(serialize_with = "crate::json::seconds")]
    pub response_timeout: Duration,
    /// Seconds before a request over UDP is sent again; see [`RemotedInternal::request_rto`].
    pub request_rto_sec: u32,
    /// Milliseconds to be added to them.
    pub request_rto_msec: u32,
    /// How often a request over UDP is sent.
    pub max_attempts: u32,
    /// How often shared files are looked at.
    #[serde(serialize_with = "crate::json::seconds")]
    pub shared_reload: Duration,
    /// Open files that the daemon asks for.
    pub rlimit_nofile: u64,
    /// How long one read may take.
    #[serde(serialize_with = "crate::json::seconds")]
    pub recv_timeout: Duration,
    /// Whether shared files are merged into one.
    pub merge_shared: bool,
    /// Whether merged files are kept on disk rather than in memory.
    pub disk_storage: bool,
    /// How often the key file is looked at.
    #[serde(serialize_with = "crate::json::seconds")]
    pub keyupdate_interval: Duration,
    /// Threads that handle messages.
    pub worker_pool: u32,
    /// How often the state file is written; zero: never.
    #[serde(serialize_with = "crate::json::seconds")]
    pub state_interval: Duration,
    /// Whether an agent without a group gets one by what it reports.
    pub guess_agent_group: bool,
    /// Bytes of one read.
    pub receive_chunk: usize,
    /// Bytes of one write.
    pub send_chunk: usize,
    /// Whether and how buffers give memory back.
    pub buffer_relax: u32,
    /// Bytes that may wait for one TCP agent.
    pub send_buffer_size: usize,
    /// How long to wait for room in it.
    #[serde(serialize_with = "crate::json::seconds")]
    pub send_timeout_to_retry: Duration,
    /// Silence after which the kernel probes a TCP connection.
    #[serde(serialize_with = "crate::json::seconds")]
    pub tcp_keepidle: Duration,
    /// Time between two such probes.
    #[serde(serialize_with = "crate::json::seconds")]
    pub tcp_keepintvl: Duration,
    /// Unanswered probes after which the connection is given up.
    pub tcp_keepcnt: u32,
    /// Agents whose control messages may wait for the store.
    pub control_msg_queue_size: u32,
    /// Stock: whether inventory is kept from the router.
    pub router_forwarding_disabled: bool,
}

impl RemotedInternal {
    /// How long to wait before a request over UDP is sent again.
    pub fn request_rto(&self) -> Duration {
        Duration::from_secs(self.request_rto_sec.into()) + Duration::from_millis(self.request_rto_msec.into())
    }
}

impl Default for RemotedInternal {
    fn default() -> Self {
        Self {
            recv_counter_flush: 128,
            comp_average_printout: 19_999,
            verify_msg_id: false,
            pass_empty_keyfile: true,
            sender_pool: 8,
            request_pool: 1024,
            request_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(60),
            request_rto_sec: 1,
            request_rto_msec: 0,
            max_attempts: 4,
            shared_reload: Duration::from_secs(10),
            rlimit_nofile: 458_752,
            recv_timeout: Duration::from_secs(1),
            merge_shared: true,
            disk_storage: false,
            keyupdate_interval: Duration::from_secs(10),
            worker_pool: 4,
            state_interval: Duration::from_secs(5),
            guess_agent_group: false,
            receive_chunk: 4096,
            send_chunk: 4096,
            buffer_relax: 1,
            send_buffer_size: 131_072,
            send_timeout_to_retry: Duration::from_secs(1),
            tcp_keepidle: Duration::from_secs(30),
            tcp_keepintvl: Duration::from_secs(10),
            tcp_keepcnt: 3,
            control_msg_queue_size: 16_384,
            router_forwarding_disabled: false,
        }
    }
}

/// `auth.*`: how long a client of the local socket may be silent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuthInternal {
    /// Whole seconds; see [`AuthInternal::timeout`].
    pub timeout_seconds: u32,
    /// Microseconds to be added to them.
    pub timeout_microseconds: u32,
}

impl AuthInternal {
    /// How long a client of the local socket may be silent.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into()) + Duration::from_micros(self.timeout_microseconds.into())
    }
}

impl Default for AuthInternal {
    fn default() -> Self {
        Self {
            timeout_seconds: 1,
            timeout_microseconds: 0,
        }
    }
}

/// `monitord.*`, as far as they concern agents: our authd and remoted do that part of monitord's work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MonitordInternal {
    /// Whether alerts about disconnected agents are sent.
    pub monitor_agents: bool,
    /// Time of disconnection after which an agent is deleted; zero: never. Written in minutes.
    #[serde(serialize_with = "crate::json::seconds")]
    pub delete_old_agents: Duration,
}

impl Default for MonitordInternal {
    fn default() -> Self {
        Self {
            monitor_agents: true,
            delete_old_agents: limits::DELETE_OLD_AGENTS,
        }
    }
}

/// `<daemon>.debug`: 0, 1 or 2, as if `-d` had been given so often.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DebugLevel {
    /// `authd.debug`
    pub authd: u8,
    /// `remoted.debug`
    pub remoted: u8,
    /// `natsd.debug`
    pub natsd: u8,
    /// `keypolld.debug`
    pub keypolld: u8,
    /// `agentlessd.debug`
    pub agentlessd: u8,
}
