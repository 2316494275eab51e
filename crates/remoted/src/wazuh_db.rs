//! Among stock daemons: the agents' rows in the stock database, where the API, the dashboard, `agent_control` and
//! monitord look, and the groups of agents where no authd of ours knows them.
//!
//! [`rows`] decides what is written, [`writer`] writes it, [`client`] speaks with the database.
//!
//! **Invariant:** nobody waits for the database. In a home that has none, nothing is kept for it.

pub mod client;
pub mod rows;
pub mod writer;

/// Where it listens.
pub const SOCKET: &str = "queue/db/wdb";
