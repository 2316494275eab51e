//! Internal options: `name=value` lines of `internal_options.conf`, with `local_internal_options.conf` over them.

use std::time::Duration;

use serde::Serialize;

use crate::{
    kind::{flag, maybe, minutes, number, seconds},
    limits,
    walk::{Block, Origin, Walk},
};

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
    /// Whether receive counters are checked. When it is not said: those of OSSEC's agents are, those of Wazuh's are
    /// not, as their own managers do.
    pub verify_msg_id: Option<bool>,
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
    /// Milliseconds that messages may be left to gather, so that one wake-up of a thread serves many connections; see
    /// [`RemotedInternal::gather`].
    pub gather_msec: u32,
}

impl RemotedInternal {
    /// How long to wait before a request over UDP is sent again.
    pub fn request_rto(&self) -> Duration {
        Duration::from_secs(self.request_rto_sec.into()) + Duration::from_millis(self.request_rto_msec.into())
    }

    /// How long messages may be left to gather.
    pub fn gather(&self) -> Duration {
        Duration::from_millis(self.gather_msec.into())
    }
}

impl Default for RemotedInternal {
    fn default() -> Self {
        Self {
            recv_counter_flush: 128,
            comp_average_printout: 19_999,
            verify_msg_id: None,
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
            gather_msec: 5,
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

impl Block for Internal {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.block(Origin::Stock, "remoted", &mut self.remoted);
        walk.block(Origin::Stock, "auth", &mut self.auth);
        walk.block(Origin::Stock, "monitord", &mut self.monitord);
        walk.block(Origin::Stock, "debug", &mut self.debug);
    }
}

impl Block for RemotedInternal {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("recv_counter_flush", number(10, 999_999), &mut self.recv_counter_flush);
        walk.stock(
            "comp_average_printout",
            number(10, 999_999),
            &mut self.comp_average_printout,
        );
        walk.stock("verify_msg_id", maybe(flag()), &mut self.verify_msg_id);
        walk.stock("pass_empty_keyfile", flag(), &mut self.pass_empty_keyfile);
        walk.stock("sender_pool", number(1, 64), &mut self.sender_pool);
        walk.stock("request_pool", number(1, 4096), &mut self.request_pool);
        walk.stock("request_timeout", seconds(1, 600), &mut self.request_timeout);
        walk.stock("response_timeout", seconds(1, 3600), &mut self.response_timeout);
        walk.stock("request_rto_sec", number(0, 60), &mut self.request_rto_sec);
        walk.stock("request_rto_msec", number(0, 999), &mut self.request_rto_msec);
        walk.stock("max_attempts", number(1, 16), &mut self.max_attempts);
        walk.stock("shared_reload", seconds(1, 18_000), &mut self.shared_reload);
        walk.stock("rlimit_nofile", number(1024, 1_048_576), &mut self.rlimit_nofile);
        walk.stock("recv_timeout", seconds(1, 60), &mut self.recv_timeout);
        walk.stock("merge_shared", flag(), &mut self.merge_shared);
        walk.stock("disk_storage", flag(), &mut self.disk_storage);
        walk.stock("keyupdate_interval", seconds(1, 3600), &mut self.keyupdate_interval);
        walk.stock("worker_pool", number(1, 16), &mut self.worker_pool);
        walk.stock("state_interval", seconds(0, 86_400), &mut self.state_interval);
        walk.stock("guess_agent_group", flag(), &mut self.guess_agent_group);
        walk.stock("receive_chunk", number(1024, 16_384), &mut self.receive_chunk);
        walk.stock("send_chunk", number(512, 16_384), &mut self.send_chunk);
        walk.stock("buffer_relax", number(0, 2), &mut self.buffer_relax);
        walk.stock(
            "send_buffer_size",
            number(65_536, 1_048_576),
            &mut self.send_buffer_size,
        );
        walk.stock("send_timeout_to_retry", seconds(1, 60), &mut self.send_timeout_to_retry);
        walk.stock("tcp_keepidle", seconds(1, 7200), &mut self.tcp_keepidle);
        walk.stock("tcp_keepintvl", seconds(1, 100), &mut self.tcp_keepintvl);
        walk.stock("tcp_keepcnt", number(1, 50), &mut self.tcp_keepcnt);
        walk.stock(
            "control_msg_queue_size",
            number(4096, 1_048_576),
            &mut self.control_msg_queue_size,
        );
        walk.stock(
            "router_forwarding_disabled",
            flag(),
            &mut self.router_forwarding_disabled,
        );
        walk.own("gather_msec", number(0, 20), &mut self.gather_msec);
    }
}

impl Block for AuthInternal {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("timeout_seconds", number(0, 2_147_483_647), &mut self.timeout_seconds);
        walk.stock(
            "timeout_microseconds",
            number(0, 999_999),
            &mut self.timeout_microseconds,
        );
    }
}

impl Block for MonitordInternal {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("monitor_agents", flag(), &mut self.monitor_agents);
        walk.stock("delete_old_agents", minutes(0, 9600), &mut self.delete_old_agents);
        walk.unused(&[
            "compress",
            "daily_rotations",
            "day_wait",
            "debug",
            "keep_log_days",
            "rotate_log",
            "sign",
            "size_rotate",
        ]);
    }
}

/// The names turn round here: `debug` is the last part of each.
impl Block for DebugLevel {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("authd", number(0, 2), &mut self.authd);
        walk.stock("remoted", number(0, 2), &mut self.remoted);
        walk.own("natsd", number(0, 2), &mut self.natsd);
        walk.own("keypolld", number(0, 2), &mut self.keypolld);
        walk.stock("agentlessd", number(0, 2), &mut self.agentlessd);
    }
}
