//! An agent's key line, the address it is registered for, and the secret in it.
//!
//! * [`address`]: `any`, a host or a network, as text and as a test on a peer's address.
//! * [`cipher`]: the keys that seal messages, derived from the secret.
//! * [`mod@file`]: `etc/client.keys`, both directions.
//! * [`Secret`]: a key or a password that does not end up in a log.

pub mod address;
pub mod cipher;
pub mod file;
mod secret;

pub use secret::Secret;
