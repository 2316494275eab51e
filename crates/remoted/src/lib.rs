//! The agent daemon: its network edge, and the roster of who is alive.

pub mod analysis;
pub mod archives;
pub mod cli;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod desk;
pub mod edge;
pub mod events;
pub mod keys;
pub mod options;
pub mod roster;
pub mod schedule;
pub mod session;
pub mod slot;
pub mod store;
pub mod wheel;
