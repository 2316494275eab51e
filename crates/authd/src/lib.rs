//! The enrollment daemon: agents get their keys here, and nobody else writes `etc/client.keys`.
//!
//! Two doors lead in: port 1515 ([`remote`]), where agents speak TLS, and `queue/sockets/auth` ([`local`]), where
//! programs of this machine speak JSON. Behind both stands the [`enroll::Enroller`], and behind it, in a thread of its
//! own, the [`store`] with the [`ledger::Ledger`]: the agents in memory, their file, and a database with registration
//! times and unsent events.
//!
//! Decisions are made without I/O: [`registry`] (who gets a key), [`keystore`] (ids, and the text of the file),
//! [`merge`] and [`reconcile`] (what others did to the file), [`admission`] (who may connect), [`host_check`].
//!
//! **Invariant:** a "yes" is sent when the key is durable, and not before.
//!
//! **It must never** hand out a key that [`registry`] has not granted, or replace a key file that it could not read.

pub mod admission;
pub mod certificate;
pub mod change;
pub mod cli;
pub mod contested;
pub mod control;
pub mod counters;
pub mod database;
pub mod enroll;
pub mod file;
pub mod get_config;
pub mod groups;
pub mod host_check;
pub mod keystore;
pub mod leases;
pub mod ledger;
pub mod live;
pub mod liveness;
pub mod local;
pub mod merge;
pub mod password;
pub mod reconcile;
pub mod registry;
pub mod remote;
pub mod run;
pub mod stale;
pub mod store;
pub mod timestamps;
pub mod tls;

pub use cli::Cli;
pub use run::start;
