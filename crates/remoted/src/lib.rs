//! The agent daemon: its network edge, and the roster of who is alive.

pub mod events;
pub mod roster;
pub mod schedule;
pub mod slot;
pub mod store;
pub mod wheel;
