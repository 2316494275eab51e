//! `muster-natsd`: takes the events of all daemons, keeps them in a durable spool, and publishes them to NATS.
//!
//! ```text
//! queue/muster/events ─▶ intake ─▶ keeper (numbers, spool, one sync for all that wait) ─▶ publish ─▶ NATS
//!                                     └─▶ followers (`muster-control events`)
//! ```
//!
//! **It must never** acknowledge an event to its producer that is not on the disk, nor let a broker that is slow or
//! away slow anybody but itself. Without a `<nats>` block it takes and keeps events all the same, for those who follow
//! them: the oldest go when the spool has reached its size.
//!
//! Read first: `spool`, then `keeper`, then `publish`; requests the other way are `command`'s. For consumers of events:
//! [`verify`] and [`signature`].

#![allow(
    unreachable_pub,
    reason = "the counters macro makes public fields in a crate-private struct"
)]

mod alert;
mod aside;
pub mod audit;
mod bundle;
mod census;
mod cli;
mod command;
mod control;
mod format;
#[cfg(any(test, feature = "__fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod intake;
mod keeper;
pub mod keys;
mod message;
mod neighbours;
mod owners;
mod probe;
mod provision;
mod publish;
pub mod seal;
mod sequence;
pub mod signature;
mod spool;
mod status;
pub mod verify;

pub use cli::{command, run};
