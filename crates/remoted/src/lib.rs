//! The agent daemon: its network edge, and the roster of who is alive.

pub mod slot;
