//! The figures of `getstats` and `getagentsstats`.

use serde::Serialize;

/// Who says so, in the words of stock.
const NAME: &str = "wazuh-remoted";

/// All that remoted has counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Unix seconds at which it started.
    pub started: u64,
    /// Unix seconds now.
    pub now: u64,
    /// Bytes read from agents.
    pub bytes_received: u64,
    /// Bytes written to them.
    pub bytes_sent: u64,
    /// How often the key file was read since the start.
    pub keys_reloads: u64,
    /// Messages from agents.
    pub received: Received,
    /// Messages that came when nobody could take them.
    pub discarded: u64,
    /// Pings.
    pub pings: u64,
    /// Messages that could not be read.
    pub unknown: u64,
    /// Messages to agents.
    pub sent: Sent,
    /// What may wait for the event path.
    pub queue_size: u64,
    /// What waits.
    pub queue_usage: u64,
    /// Connections now.
    pub tcp_sessions: u64,
    /// Control messages that wait for the roster.
    pub control_waiting: u64,
    /// Control messages that it was told of.
    pub control_inserted: u64,
}

/// Messages from agents, or from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Control messages, those of no known kind included.
    pub control: u64,
    /// By kind.
    pub kinds: ControlBreakdown,
    /// Events.
    pub events: u64,
}

/// Control messages by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ControlBreakdown {
    /// Keepalives.
    pub keepalive: u64,
    /// Answers to requests.
    pub request: u64,
    /// Goodbyes.
    pub shutdown: u64,
    /// Hellos.
    pub startup: u64,
}

/// Messages to agents, or to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Acknowledgements.
    pub ack: u64,
    /// Active responses and other orders.
    pub ar: u64,
    /// Messages that could not be sent.
    pub discarded: u64,
    /// Requests.
    pub request: u64,
    /// SCA requests.
    pub sca: u64,
    /// Pieces of shared files.
    pub shared: u64,
}

/// What was counted of one agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentStats {
    /// Its number.
    pub id: u32,
    /// Unix seconds since which it is counted.
    pub since: u64,
    /// From it.
    pub received: Received,
    /// To it.
    pub sent: Sent,
}

impl Stats {
    /// The `data` member of the answer.
    pub fn data(&self) -> impl Serialize + use<> {
        let queue = Queue {
            size: self.queue_size,
            usage: self.queue_usage,
        };
        let processed = self.control_inserted.saturating_sub(self.control_waiting);
        Document {
            uptime: self.started,
            timestamp: self.now,
            name: NAME,
            metrics: Metrics {
                bytes: Bytes {
                    received: self.bytes_received,
                    sent: self.bytes_sent,
                },
                keys_reload_count: self.keys_reloads,
                messages: Messages {
                    received_breakdown: All {
                        control: self.received.control,
                        control_breakdown: self.received.kinds,
                        dequeued_after: 0,
                        discarded: self.discarded,
                        event: self.received.events,
                        ping: self.pings,
                        unknown: self.unknown,
                    },
                    sent_breakdown: self.sent,
                },
                queues: Queues { received: queue },
                tcp_sessions: self.tcp_sessions,
                control_messages_queue_usage: self.control_waiting,
                control_messages_queue_breakdown: Handled {
                    inserted: self.control_inserted,
                    replaced: 0,
                    processed,
                },
            },
        }
    }
}

impl AgentStats {
    /// The `data` member of the answer about these agents.
    pub fn data(agents: &[Self], now: u64) -> impl Serialize + use<> {
        AgentsDocument {
            timestamp: now,
            name: NAME,
            agents: agents.iter().map(Self::document).collect(),
        }
    }

    fn document(&self) -> AgentDocument {
        AgentDocument {
            uptime: self.since,
            id: self.id,
            metrics: AgentMetrics {
                messages: AgentMessages {
                    received_breakdown: OfAgent {
                        control: self.received.control,
                        control_breakdown: self.received.kinds,
                        event: self.received.events,
                    },
                    sent_breakdown: self.sent,
                },
            },
        }
    }
}

#[derive(Serialize)]
struct Document {
    uptime: u64,
    timestamp: u64,
    name: &'static str,
    metrics: Metrics,
}

#[derive(Serialize)]
struct Metrics {
    bytes: Bytes,
    keys_reload_count: u64,
    messages: Messages,
    queues: Queues,
    tcp_sessions: u64,
    control_messages_queue_usage: u64,
    control_messages_queue_breakdown: Handled,
}

#[derive(Serialize)]
struct Bytes {
    received: u64,
    sent: u64,
}

#[derive(Serialize)]
struct Messages {
    received_breakdown: All,
    sent_breakdown: Sent,
}

#[derive(Serialize)]
struct All {
    control: u64,
    control_breakdown: ControlBreakdown,
    dequeued_after: u64,
    discarded: u64,
    event: u64,
    ping: u64,
    unknown: u64,
}

#[derive(Serialize)]
struct Queues {
    received: Queue,
}

#[derive(Serialize)]
struct Queue {
    size: u64,
    usage: u64,
}

#[derive(Serialize)]
struct Handled {
    inserted: u64,
    replaced: u64,
    processed: u64,
}

#[derive(Serialize)]
struct AgentsDocument {
    timestamp: u64,
    name: &'static str,
    agents: Vec<AgentDocument>,
}

#[derive(Serialize)]
struct AgentDocument {
    uptime: u64,
    id: u32,
    metrics: AgentMetrics,
}

#[derive(Serialize)]
struct AgentMetrics {
    messages: AgentMessages,
}

#[derive(Serialize)]
struct AgentMessages {
    received_breakdown: OfAgent,
    sent_breakdown: Sent,
}

#[derive(Serialize)]
struct OfAgent {
    control: u64,
    control_breakdown: ControlBreakdown,
    event: u64,
}
