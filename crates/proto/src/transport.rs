//! What goes over port 1514 between an agent and the manager.
//!
//! From the outside in:
//!
//! | module | layer |
//! | --- | --- |
//! | [`proxy`] | TCP: what a load balancer writes first |
//! | [`frame`] | TCP: a length before each message |
//! | [`envelope`] | who sends it, and the sealed bytes: cipher, zlib, checksum |
//! | [`counter`] | the number pair in each message, and what counts as a replay |
//! | [`control`] | payloads that begin with `#!-`: hello, goodbye, answers, orders |
//! | [`keepalive`] | the control message that tells how the agent is |
//!
//! Every other payload is an event; [`crate::local::analysis`] knows how it goes on from here.
//!
//! **Invariant:** everything in here takes bytes from strangers and neither panics nor allocates more than the
//! named caps.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

pub mod control;
pub mod counter;
pub mod envelope;
pub mod frame;
pub mod keepalive;
pub mod proxy;

/// The largest message on the wire, without the TCP header, and the largest inflated one (`MAXSTR` of stock code).
pub const MAX_MESSAGE_LEN: usize = 65_536;
/// The largest payload that a sender takes: [`MAX_MESSAGE_LEN`] less 128 bytes kept for envelope and checksum.
pub const MAX_PAYLOAD_LEN: usize = MAX_MESSAGE_LEN - 128;
/// The largest datagram that an OSSEC agent reads. Everything sent to one must stay within it.
pub const OSSEC_AGENT_DATAGRAM_LEN: usize = 1024;
