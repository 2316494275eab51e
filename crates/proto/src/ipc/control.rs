//! What `queue/muster/<daemon>.ctl` carries: questions and orders to a daemon, one answer each.
//!
//! Every answer serialises to the JSON that `muster-control --output json` prints, so field names here are a public
//! contract: they may be added, never renamed.

use serde::{Deserialize, Serialize};

use crate::{
    agent::{AgentId, AgentStatus, Reason},
    event::{Event, key::KeyRecord},
};

/// A question or an order. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How is the daemon? Every daemon answers with [`Response::Status`].
    Status,
    /// Read the configuration again. Every daemon answers [`Response::Done`] or [`Response::Failed`]; a bad file
    /// changes nothing.
    Reload,
    /// remoted: the agents whose id is greater than `after`, in order of number, at most `limit` of them.
    /// Answer: [`Response::Agents`].
    Agents {
        /// Where the last page ended.
        after: Option<AgentId>,
        /// The largest page wanted; the daemon may send fewer.
        limit: u32,
    },
    /// remoted: one agent. Answer: [`Response::Agents`] with one or none.
    Agent(AgentId),
    /// remoted: is the agent there, and since when? Asked by authd for the force rules.
    /// Answer: [`Response::Liveness`].
    Liveness(AgentId),
    /// remoted: `client.keys` has been written; look at it now. Answer: [`Response::Done`].
    KeysChanged,
    /// natsd: every event from now on, as it is taken. Answer: [`Response::Event`] again and again, until the client
    /// closes. The last `backlog` events come first, as far as natsd still has them.
    FollowEvents {
        /// How many past events.
        backlog: u32,
    },
    /// keypolld: what a request would give, without registering anything. It asks the operator's source, so it is no
    /// mere reading. Answer: [`Response::KeyPoll`].
    KeyPollTry {
        /// `id` or `ip`.
        lookup: String,
        /// The id or address.
        value: String,
    },
    /// authd: the groups of the agents whose id, as text, is greater than `after`, at most `limit` of them.
    /// Answer: [`Response::Groups`].
    Groups {
        /// Where the last page ended.
        after: Option<AgentId>,
        /// The largest page wanted; none at all asks for the version only.
        limit: u32,
    },
    /// authd: change the groups of agents. Answer: [`Response::Groups`] with what these agents have now, those left
    /// out that authd does not know; or [`Response::Failed`].
    SetGroups {
        /// Whose, at most [`MAX_GROUP_CHANGES`].
        agents: Vec<AgentId>,
        /// Which groups, in their order.
        groups: Vec<String>,
        /// How.
        mode: GroupMode,
    },
    /// remoted: forget the counters of an agent's messages, so that it is heard again after it was set back.
    /// Answer: [`Response::Done`] or [`Response::Failed`].
    ResetCounter(AgentId),
    /// natsd: publish a probe, read it back, and time each step. Answer: [`Response::NatsTest`] or [`Response::Failed`].
    NatsTest,
    /// remoted: which maintenance windows are open? Answer: [`Response::Maintenance`].
    Maintenance,
    /// remoted: open a window, in the place of one that the same agents have. Answer: [`Response::Maintenance`] with it,
    /// or [`Response::Failed`].
    MaintenanceStart {
        /// Whose absence is expected.
        scope: MaintenanceScope,
        /// How long.
        seconds: u64,
    },
    /// remoted: end the window of these agents, or all windows. Answer: [`Response::Maintenance`] with those that ended.
    MaintenanceStop {
        /// Which one; all without.
        scope: Option<MaintenanceScope>,
    },
    /// natsd: the keys that events are signed with. Answer: [`Response::NatsKeys`] or [`Response::Failed`].
    NatsKeys,
    /// remoted: when each agent was heard last, of those that were heard of late. Answer: [`Response::Heard`].
    Heard {
        /// How late, in milliseconds before now.
        within_ms: u64,
        /// Where the last page ended.
        after: Option<AgentId>,
    },
    /// remoted: another manager has this agent now; close its connection, and keep its key. Answer: [`Response::Done`], or
    /// [`Response::Failed`] when it is not here, or came back meanwhile.
    LetGo {
        /// Which one.
        agent: AgentId,
        /// Since when it was active here, in Unix milliseconds: if it came later than that, it stays.
        since_ms: u64,
    },
    /// authd: how many ids it may still give, where several managers lease them. Answer: [`Response::IdBlocks`].
    IdBlocks,
    /// authd: these ids are this manager's alone to give. Answer: [`Response::Done`] when that is on the disk, or
    /// [`Response::Failed`].
    AddIdBlock {
        /// The lowest.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// The most agents of one [`Request::SetGroups`].
pub const MAX_GROUP_CHANGES: usize = 1000;

/// What becomes of the groups that an agent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupMode {
    /// They stay; only who has none gets the new ones. This is what remoted does at the first keepalive.
    EmptyOnly,
    /// They go.
    Override,
    /// They stay, and the new ones come behind them.
    Append,
    /// Those named go.
    Remove,
}

impl Request {
    /// Whether any peer that may open the socket may ask this; the others are for root and the daemon's own user.
    /// A new request changes things until it is listed here. `KeysChanged` only makes remoted look earlier at a file
    /// that it watches anyway, and comes from authd, which has another user. Groups for agents that have none are asked
    /// for by remoted, again another user, and take nothing away from anybody. An agent that is let go comes back at once if
    /// it has nowhere else to go; natsd, which asks for it, may have another user, and whoever may open the socket may also
    /// tell agents to reconnect. Ids come from natsd as well; whoever may open authd's socket may enroll whom they like.
    pub fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Status
                | Self::NatsKeys
                | Self::Heard { .. }
                | Self::LetGo { .. }
                | Self::IdBlocks
                | Self::AddIdBlock { .. }
                | Self::Agents { .. }
                | Self::Agent(_)
                | Self::Liveness(_)
                | Self::FollowEvents { .. }
                | Self::KeysChanged
                | Self::Maintenance
                | Self::Groups { .. }
                | Self::SetGroups {
                    mode: GroupMode::EmptyOnly,
                    ..
                }
        )
    }
}

/// An answer. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// The order was carried out; the text says what was done, for people.
    Done(String),
    /// It was not, and why.
    Failed(String),
    /// The peer may not ask this.
    Denied,
    /// This daemon does not know the request.
    Unknown,
    /// How the daemon is.
    Status(Box<DaemonStatus>),
    /// Agents, and whether more follow behind the last one.
    Agents {
        /// This page.
        agents: Vec<AgentInfo>,
        /// Whether another page follows.
        more: bool,
    },
    /// An agent's liveness, or `None` when remoted does not know the id.
    Liveness(Option<Liveness>),
    /// One event that natsd took.
    Event(Box<PublishedEvent>),
    /// What a look-up of a key gave.
    KeyPoll(Box<KeyPollReport>),
    /// Groups of agents, in the order of their ids as text.
    Groups {
        /// This page.
        agents: Vec<AgentGroups>,
        /// Whether another page follows.
        more: bool,
        /// Another number than before: groups have changed, or authd was restarted.
        version: u64,
    },
    /// What a probe met on its way to the broker and back.
    NatsTest(Box<NatsReport>),
    /// Maintenance windows, oldest first.
    Maintenance(Vec<MaintenanceWindow>),
    /// Signing keys, oldest first.
    NatsKeys(Vec<SigningKey>),
    /// Agents in the order of their numbers, those left out that were silent.
    Heard {
        /// This page; it may be empty although another follows.
        agents: Vec<Heard>,
        /// The agent behind which the next page begins; `None` on the last one.
        next: Option<AgentId>,
    },
    /// Ids that may be given.
    IdBlocks(IdBlocks),
}

/// What authd knows of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdBlocks {
    /// How many it may still give; nothing where ids are not leased.
    pub free: Option<u32>,
    /// The highest number that an agent has or had.
    pub highest: u32,
}

/// When an agent was heard last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Who.
    pub id: AgentId,
    /// Unix seconds of its last valid message.
    pub at: u64,
    /// Seconds that count as one interval of its: there is no need to look at it more often.
    pub interval: u64,
}

/// A signing key, as natsd knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// As it is announced.
    pub record: KeyRecord,
    /// Whether it signs now.
    pub in_force: bool,
    /// Unix milliseconds from which it signs; nothing while it waits for the trust key.
    pub signs_from: Option<u64>,
}

/// Whose absence a maintenance window expects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaintenanceScope {
    /// Every agent's.
    All,
    /// That of the agents of a group.
    Group(String),
    /// One agent's.
    Agent(AgentId),
}

/// A time in which agents are expected to go away. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceWindow {
    /// Which agents.
    pub scope: MaintenanceScope,
    /// Since when.
    pub since: u64,
    /// Until when.
    pub until: u64,
}

/// The groups of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentGroups {
    /// Whose.
    pub id: AgentId,
    /// In their order; none = it gets one when it is first heard.
    pub groups: Vec<String>,
}

/// How a daemon is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Short name.
    pub daemon: String,
    /// Release.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Unix seconds at which it started.
    pub since: u64,
    /// Whether it does its whole job now.
    pub ready: bool,
    /// What it cannot do now, or does worse than it should, and why; empty when all is well.
    pub degraded: Vec<String>,
    /// Addresses and paths that it listens on.
    pub listening: Vec<String>,
    /// Every queue with a bound.
    pub queues: Vec<QueueStatus>,
    /// Counters since the start, by metric name without the `muster_` prefix; drops and refusals included.
    pub counters: Vec<(String, u64)>,
    /// Further facts for people, such as the server that natsd is connected to.
    pub facts: Vec<(String, String)>,
}

/// How full a queue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its name, such as `analysis`.
    pub name: String,
    /// What is in it, in `unit`s.
    pub used: u64,
    /// Its bound.
    pub capacity: u64,
    /// `events`, `bytes`, `messages` …
    pub unit: String,
    /// What could not get in and was dropped, since the start.
    pub dropped: u64,
}

/// What the force rules of enrollment ask of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// Its status.
    pub status: AgentStatus,
    /// Unix seconds at which it was disconnected; 0 while it is not.
    pub disconnected_at: u64,
}

/// All that remoted knows of an agent. Times are Unix seconds; absent = never or unknown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Id.
    pub id: AgentId,
    /// Name.
    pub name: String,
    /// Registered address: `any`, an address or a network.
    pub ip: String,
    /// Status.
    pub status: AgentStatus,
    /// Why it has that status.
    pub reason: Option<Reason>,
    /// Since when.
    pub since: Option<u64>,
    /// The version that it reports, such as `Wazuh v4.14.7` or `OSSEC HIDS v4.2.0`.
    pub version: Option<String>,
    /// When the last valid message came.
    pub last_heard: Option<u64>,
    /// When the last keepalive came.
    pub last_keepalive: Option<u64>,
    /// When the manager last sent its own keepalive.
    pub last_sent: Option<u64>,
    /// Whole intervals missed.
    pub missed: u32,
    /// Seconds of silence after which it counts as disconnected, as worked out for this agent.
    pub timeout: Option<u64>,
    /// Seconds between its own keepalives, as seen.
    pub observed_interval: Option<u64>,
    /// The address and port that it talks from.
    pub peer: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: Option<String>,
    /// `wazuh-aes`, `ossec-aes` or `blowfish`.
    pub crypto: Option<String>,
    /// The address that it reports of itself.
    pub reported_ip: Option<String>,
    /// Operating system, as it reports it.
    pub os: Option<OsInfo>,
    /// MD5 of its `merged.mg`, or `x` when it has none.
    pub merged_sum: Option<String>,
    /// MD5 of its unpacked `agent.conf`.
    pub config_sum: Option<String>,
    /// Labels, as `key:value` lines with their `#` and `!` marks.
    pub labels: Vec<String>,
    /// Its groups, as remoted knows them; none before its first keepalive.
    pub groups: Vec<String>,
    /// `synced` when the agent has its groups' file, `not synced` when not; `None` before its first keepalive.
    pub group_config_status: Option<String>,
}

/// What an agent reports of its operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsInfo {
    /// `Debian GNU/Linux`.
    pub name: Option<String>,
    /// `12`.
    pub version: Option<String>,
    /// `12`.
    pub major: Option<String>,
    /// Digits behind the first dot.
    pub minor: Option<String>,
    /// Windows build.
    pub build: Option<String>,
    /// `bookworm`.
    pub codename: Option<String>,
    /// `debian`.
    pub platform: Option<String>,
    /// `x86_64`.
    pub arch: Option<String>,
    /// The whole uname line.
    pub uname: Option<String>,
}

/// What a look-up of a key gave. The key itself is never in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPollReport {
    /// `id` or `ip`.
    pub lookup: String,
    /// The id or address.
    pub value: String,
    /// `found`, or why not: `not_found`, `source_error`, `malformed`, `other_agent`, `timed_out`, `source_failed`.
    pub outcome: String,
    /// The same for people; empty when an agent was found.
    pub reason: String,
    /// The source that answered: `socket` or `exec_path`.
    pub source: Option<String>,
    /// How long the sources took.
    pub duration_ms: u64,
    /// What went wrong on the way, such as a socket that nobody listens at.
    pub errors: Vec<String>,
    /// The agent.
    pub agent: Option<KeyPollAgent>,
}

/// An agent that a key source knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPollAgent {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Registered address.
    pub ip: String,
    /// How many characters its key has.
    pub key_length: u32,
    /// What authd has: `nothing`, `the same`, `another`, or `unknown` when it could not be asked.
    pub registered: String,
}

/// What a probe met on its way to the broker and back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatsReport {
    /// The URL of the server that was tried, the last one if several were.
    pub server: String,
    /// The name that the server has; empty when it said none.
    pub server_name: String,
    /// Its version.
    pub version: String,
    /// Whether it keeps streams at all.
    pub jetstream: bool,
    /// The largest message that it takes, in bytes, headers included.
    pub max_payload: u64,
    /// Version of TLS and SHA-256 of the server's certificate; absent without TLS.
    pub tls: Option<String>,
    /// The subject of the probe.
    pub subject: String,
    /// The probe's sequence number; 0 = it got none.
    pub sequence: u64,
    /// Events that waited for the broker before it.
    pub waiting: u64,
    /// The steps that were taken, in order.
    pub legs: Vec<NatsLeg>,
    /// Where it ended, if it did not come back.
    pub failed: Option<NatsFault>,
}

/// A step of [`NatsReport`] that went well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatsLeg {
    /// `connect`, `tls`, `log_in`, `spool`, `acknowledge`, `read_back` or `verify`.
    pub leg: String,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// What else there is to say; often empty.
    pub note: String,
}

/// The step of [`NatsReport`] that did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatsFault {
    /// As in [`NatsLeg`].
    pub leg: String,
    /// What happened.
    pub why: String,
    /// What to do about it.
    pub cure: String,
}

/// An event as natsd took it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedEvent {
    /// The whole subject.
    pub subject: String,
    /// natsd's sequence number.
    pub sequence: u64,
    /// Who made it.
    pub producer: String,
    /// The event; a keepalive's body is complete.
    pub event: Event,
}
