//! The agent daemon: it speaks the encrypted protocol with the agents, passes their events on, and knows who is alive.
//!
//! Two halves meet in [`slot`]. The *network edge* ([`edge`]) has one thread per processor; each reads its share of the
//! connections, answers control messages at once and hands events to the analysis daemon. The *roster* ([`roster`])
//! has one thread for the whole fleet; it is told of startups, keepalives and goodbyes, watches the clock, and decides
//! who is there. What it decides goes to the store ([`store`]) together with the events that tell of it.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`slot`] | what both halves share about one agent, and the news from one to the other |
//! | [`edge`], [`session`], [`analysis`], [`archives`] | messages in, answers and events out |
//! | [`keys`], [`counters`] | `client.keys` and `queue/rids` |
//! | [`roster`], [`schedule`], [`wheel`] | who is alive: pure decisions, with time as an argument |
//! | [`monitor`] | what stock's monitord says about agents |
//! | [`desk`] | the waiting around the roster |
//! | [`shared`] | what groups share with their agents: merged, and pushed |
//! | [`store`], [`events`] | `queue/db/agents.db`, and what natsd is told |
//! | [`wazuh_db`], [`agent_info`] | where stock programs look for agents, when we stand among them |
//! | [`syslog`] | lines of hosts without an agent |
//! | [`local`], [`requests`], [`orders`], [`reach`] | what local programs ask of agents and order them to do, and who may be sent it |
//! | [`control`], [`options`], [`cli`], [`daemon`] | control socket, configuration, startup |
//!
//! **It must never** let an acknowledgement wait for disk, roster or analysis daemon; write `client.keys`; or disconnect
//! an agent because the manager itself stood still.
//!
//! Read first: [`slot::AgentSlot`] and [`roster::Roster`]. A taste of the rules, with the page's own settings:
//!
//! ```
//! use std::time::Duration;
//! use muster_remoted::schedule::{OSSEC_PERIOD, Policy};
//!
//! let seconds = Duration::from_secs;
//! let policy = Policy { interval: seconds(60), timeout: seconds(180), max_missed: 3, sending: None };
//! assert_eq!(policy.limits(Some(seconds(20))).timeout, seconds(180));
//! // An agent that speaks every ten minutes is given half an hour.
//! assert_eq!(policy.limits(Some(OSSEC_PERIOD)).timeout, seconds(1830));
//! ```

pub mod agent_info;
pub mod analysis;
pub mod archives;
pub mod cli;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod desk;
pub mod edge;
pub mod events;
#[doc(hidden)]
pub mod fuzzing;
pub mod key_requests;
pub mod keys;
pub mod local;
pub mod monitor;
pub mod options;
pub mod orders;
pub mod reach;
pub mod requests;
pub mod roster;
pub mod schedule;
pub mod session;
pub mod shared;
pub mod slot;
pub mod store;
pub mod syslog;
pub mod wazuh_db;
pub mod wheel;
