//! What JSON commands are answered: figures of ourselves and of agents, groups, and what [`configuration`] says.

use std::sync::{Arc, Mutex};

use muster_config::Settings;
use muster_proto::{
    agent::{AgentId, AgentStatus},
    local::remote::{
        AgentStats, AgentsWanted, Command, ControlBreakdown, MAX_AGENTS, Received, Section, Sent, Stats, answer,
    },
};
use muster_service::clock::unix_s;
use serde::Serialize;

use super::{configuration, serve::RequestCounters};
use crate::{
    edge::{Edge, Tally},
    keys::KeyTable,
    orders::OrderCounters,
    reach::Reach,
    slot::{AgentSlot, Message},
};

/// The group of an agent without any.
const DEFAULT_GROUP: &str = "default";

/// Which groups an agent is in, as one text.
pub type GroupsOf = Box<dyn Fn(&AgentId) -> Option<String> + Send + Sync>;

/// Where the answers come from.
pub struct Figures {
    /// What workers count.
    pub edge: Arc<Mutex<Edge>>,
    /// The configuration that we started with.
    pub settings: Arc<Settings>,
    /// What of it may have changed.
    pub reach: Arc<Reach>,
    /// How talkative we are: 0, 1 or 2.
    pub debug: u8,
    /// Unix seconds at which we started.
    pub started: u64,
    /// Requests to agents.
    pub requests: Arc<RequestCounters>,
    /// Orders to agents.
    pub orders: Arc<OrderCounters>,
    /// Groups of agents.
    pub groups: GroupsOf,
}

#[derive(Serialize)]
struct Group<'a> {
    group: &'a str,
}

impl Figures {
    /// The payload of the answer.
    pub fn answer(&self, command: &Command, table: &KeyTable) -> Vec<u8> {
        match command {
            Command::GetStats => answer(&self.stats(table).data(), false),
            Command::GetAgentsStats(wanted) => {
                let (agents, more) = agents(table, wanted, self.started);
                answer(&AgentStats::data(&agents, unix_s()), more)
            }
            Command::GetConfig(section) => match section {
                Section::Remote => answer(&configuration::remotes(&self.settings), false),
                Section::Global => {
                    let alert_time = self.settings.global.agents_disconnection_alert_time;
                    answer(
                        &configuration::global(alert_time, self.reach.disconnection_time()),
                        false,
                    )
                }
                Section::Internal => answer(&configuration::internal(&self.settings, self.debug), false),
            },
            Command::AssignGroup { agent, md5: _ } => {
                let groups = (self.groups)(&AgentId::new(agent)).filter(|groups| !groups.is_empty());
                let group = groups.as_deref().unwrap_or(DEFAULT_GROUP);
                answer(&Group { group }, false)
            }
        }
    }

    fn stats(&self, table: &KeyTable) -> Stats {
        let mut stats = Stats {
            started: self.started,
            now: unix_s(),
            keys_reloads: table.reloads(),
            queue_size: self
                .settings
                .secure_remotes()
                .map(|remote| remote.queue_size as u64)
                .sum(),
            sent: Sent {
                ar: self.orders.orders_sent_total.value(),
                sca: self.orders.sca_sent_total.value(),
                request: self.requests.requests_sent_total.value(),
                shared: table.slots().map(|slot| slot.counts().of(Message::Shared)).sum(),
                ..Sent::default()
            },
            ..Stats::default()
        };
        // While it is being stopped there is nothing to be said about it.
        if let Ok(edge) = self.edge.try_lock() {
            let count = |tally| edge.count(tally);
            stats.bytes_received = count(Tally::BytesReceived);
            stats.bytes_sent = count(Tally::BytesSent);
            stats.pings = count(Tally::Pings);
            stats.received.events = count(Tally::Events);
            stats.received.kinds = ControlBreakdown {
                keepalive: count(Tally::Keepalives),
                request: count(Tally::Answers),
                shutdown: count(Tally::Shutdowns),
                startup: count(Tally::Startups) + count(Tally::StartupsRefused),
            };
            let ControlBreakdown {
                keepalive,
                request,
                shutdown,
                startup,
            } = stats.received.kinds;
            stats.control_inserted = keepalive + request + shutdown + startup;
            stats.received.control = stats.control_inserted + count(Tally::ControlUnknown);
            stats.unknown = REFUSED.into_iter().map(count).sum();
            stats.discarded = DISCARDED.into_iter().map(count).sum();
            stats.sent.ack = count(Tally::Acks);
            stats.sent.discarded = count(Tally::RepliesDropped);
            stats.tcp_sessions = edge.connections() as u64;
        }
        stats
    }
}

/// What could not be read or may not come in.
const REFUSED: [Tally; 9] = [
    Tally::RefusedMalformed,
    Tally::RefusedUnknownId,
    Tally::RefusedSource,
    Tally::RefusedAddress,
    Tally::RefusedKey,
    Tally::RefusedCorrupt,
    Tally::RefusedReplay,
    Tally::RefusedConflict,
    Tally::RefusedCipher,
];

/// What nobody took.
const DISCARDED: [Tally; 3] = [
    Tally::EventsDroppedFull,
    Tally::EventsDroppedNoReader,
    Tally::EventsDroppedTooLong,
];

/// A page of agents, of those that are active, and whether another follows.
fn agents(table: &KeyTable, wanted: &AgentsWanted, since: u64) -> (Vec<AgentStats>, bool) {
    let active = |slot: &AgentSlot| slot.status() == AgentStatus::Active;
    match wanted {
        AgentsWanted::Listed(ids) => {
            let page = ids.iter().filter_map(|id| {
                let slot = table.by_id(AgentId::from_number(*id).as_str())?;
                active(slot).then(|| agent_stats(*id, slot, since))
            });
            (page.collect(), false)
        }
        AgentsWanted::Behind { last_id } => {
            let numbered = table.slots().filter_map(|slot| Some((slot.id.number()?, slot)));
            let mut behind: Vec<_> = numbered
                .filter(|(number, slot)| number > last_id && active(slot))
                .collect();
            behind.sort_unstable_by_key(|(number, _)| *number);
            let more = behind.len() > MAX_AGENTS;
            let page = behind.into_iter().take(MAX_AGENTS);
            (page.map(|(id, slot)| agent_stats(id, slot, since)).collect(), more)
        }
    }
}

fn agent_stats(id: u32, slot: &AgentSlot, since: u64) -> AgentStats {
    let of = |message| slot.counts().of(message);
    let kinds = ControlBreakdown {
        keepalive: of(Message::Keepalive),
        request: of(Message::Answer),
        shutdown: of(Message::Shutdown),
        startup: of(Message::Startup),
    };
    AgentStats {
        id,
        since,
        received: Received {
            control: kinds.keepalive + kinds.request + kinds.shutdown + kinds.startup + of(Message::Unknown),
            kinds,
            events: slot.traffic().events,
        },
        sent: Sent {
            ack: of(Message::Ack),
            ar: of(Message::Order),
            discarded: of(Message::Lost),
            request: of(Message::Request),
            sca: of(Message::Sca),
            shared: of(Message::Shared),
        },
    }
}
