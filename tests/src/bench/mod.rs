//! What `cargo xtask bench` measures with: a fleet whose messages were sealed beforehand, a reader in the analysis
//! daemon's place, the processor time of a daemon, and a table.
//!
//! Nothing here judges: a figure is printed beside its target, whatever it is.

pub mod fairness;
pub mod fleet;
pub mod keepalives;
pub mod process;
pub mod reader;
pub mod report;
