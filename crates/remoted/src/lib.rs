//! The agent daemon: its network edge, and the roster of who is alive.

pub mod schedule;
pub mod slot;
pub mod wheel;
