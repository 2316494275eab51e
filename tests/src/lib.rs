//! What the stories in `tests/` are told with: an agent written from the protocol's description, the daemons as
//! processes in a home of their own, an analysis daemon's socket, and a real nats-server.
//!
//! Everything waits for conditions with a deadline, never for a guessed time; every port is free when it is taken;
//! whatever was started ends when its value is dropped. Nothing leaves 127.0.0.1.

pub mod agent;
pub mod analysis;
pub mod bench;
pub mod daemon;
pub mod enroll;
pub mod home;
pub mod keys_database;
pub mod live;
pub mod nats;
pub mod remote;
pub mod swarm;
pub mod wait;
pub mod wire;
