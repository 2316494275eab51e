//! Every byte format that Muster speaks, as pure functions and small state machines.
//!
//! Bytes come in, values go out, and back again. Nothing here opens a file or a socket, reads a clock or draws a
//! random number: time and randomness are parameters. That is what lets every decoder be fuzzed and every rule be
//! tested in a millisecond.
//!
//! The rooms:
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`agent`] | who an agent is: id, registered address, status, and why the status changed |
//! | [`transport`] | what goes over port 1514: framing, envelope, counters, control messages, keepalives |
//! | [`enrollment`] | what goes over port 1515, and the rules for names, groups and addresses |
//! | [`keys`] | `client.keys` lines and the keys derived from them |
//! | [`local`] | what stock daemons say to each other on this machine: analysis datagrams, authd's JSON, active response |
//! | [`bucket`] | rate limits, with time as a parameter |
//! | [`event`] | what the manager tells the world: subjects and JSON bodies |
//! | [`command`] | what the world may ask of the manager over NATS, and the replies |
//! | [`ipc`] | our own frames between our own daemons |
//! | [`shared`] | groups' files, merged into the one that agents get |
//! | [`paths`] | where sockets and files lie below the home |
//!
//! **It must never** depend on tokio, touch the file system, or know what a daemon does with a value.

pub mod agent;
pub mod bucket;
pub mod command;
pub mod enrollment;
pub mod event;
pub mod ipc;
pub mod keys;
pub mod local;
pub mod paths;
pub mod shared;
pub mod transport;
