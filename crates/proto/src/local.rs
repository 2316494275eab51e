//! What stock daemons say to each other on this machine, over Unix sockets, byte for byte.
//!
//! * [`active_response`]: orders to agents, from the analysis daemon and from the operator.
//! * [`analysis`]: events to the analysis daemon.
//! * [`auth`]: authd's JSON, by which local programs add, remove and look up agents.
//! * [`remote`]: requests to agents, and remoted's own JSON.
//! * [`wazuh_db`]: the agents' rows in the stock database.

pub mod active_response;
pub mod analysis;
pub mod auth;
pub mod remote;
pub mod wazuh_db;

/// Whose home it is: the two families write some texts in different ways, and a home is either the one or the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Wazuh, and ours.
    #[default]
    Wazuh,
    /// OSSEC 3 and 4.
    Ossec,
}
