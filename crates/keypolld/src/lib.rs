//! The key polling daemon: the keys of agents that nobody has enrolled come from the operator's own database.
//!
//! remoted meets an agent that it does not know, or cannot read, and sends a datagram (`id:001`, `ip:192.168.1.100`) to
//! `queue/sockets/krequest`. [`engine`] takes it, [`flow`] decides whether and when it is looked up, [`source`] asks the
//! operator's service or program, [`answer`] judges what comes back, and [`registrar`] gives a good answer to authd, which
//! writes it to the key file and tells remoted. The agent comes in at its next try.
//!
//! Read first: [`flow::Flow`] and [`answer::Answer`]; both are pure.
//!
//! **It must never** let text from the network reach a shell, register an agent that was not asked for, write a key into
//! a log, or let a source that hangs hold up anything but its own look-ups.

pub mod answer;
pub mod cli;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod dial;
pub mod engine;
pub mod events;
pub mod flow;
pub mod lookup;
pub mod loud;
pub mod options;
pub mod outcome;
pub mod process;
pub mod registrar;
pub mod scan;
pub mod source;
