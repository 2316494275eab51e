//! What groups share with their agents: files merged on this side, pushed to agents that have others, unpacked there.
//!
//! | part | job |
//! | --- | --- |
//! | [`library`] | the merged files there are |
//! | [`scan`] | makes them from `etc/shared`, and keeps copies where stock programs look |
//! | [`membership`] | which groups an agent has, and what its keepalive therefore means |
//! | [`push`], [`pushes`] | one file on its way, and all of them |
//! | [`self::core`] | all decisions together |
//! | [`engine`] | the waiting: disk, authd, workers, clock |
//!
//! **Invariant:** no acknowledgement, status or event waits for anything here. When the disk or authd is slow, agents
//! keep the files that they have.

pub mod core;
mod database;
pub mod engine;
pub mod library;
pub mod membership;
pub mod push;
pub mod pushes;
pub mod scan;

pub use engine::{Carrier, Engine, EngineParts, Shared};
