//! What stock daemons say to each other on this machine, over Unix sockets, byte for byte.
//!
//! * [`auth`]: authd's JSON, by which local programs add, remove and look up agents.

pub mod auth;
