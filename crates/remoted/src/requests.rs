//! `queue/sockets/remote`: local programs ask agents, and ask us.
//!
//! A request gets a number, goes to the agent, and its answer goes back to whoever asked. Over UDP it is sent again
//! until the agent says that it has come.
//!
//! | part | job |
//! | --- | --- |
//! | [`exchange`] | when to send again and when to give up: pure |
//! | [`registry`] | which answer belongs to whom |
//! | [`serve`] | the socket |
//! | [`figures`] | `getstats`, `getagentsstats`, `assigngroup` |
//! | [`configuration`] | `getconfig` |
//!
//! **Invariant:** an answer reaches the program that asked that agent, or nobody: its number and the agent that it
//! came from must both fit.

pub mod configuration;
pub mod exchange;
pub mod figures;
pub mod registry;
pub mod serve;
