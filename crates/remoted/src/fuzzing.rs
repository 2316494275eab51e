//! For the fuzzer, which is another crate: what a worker does to the slot of an agent that has proved its key.
//!
//! Everything else that the fuzzer drives is public: [`crate::session`], [`crate::keys`] and [`crate::roster`].

use muster_proto::transport::{envelope::CryptoForm, keepalive::Family};

use crate::slot::{AgentSlot, ConnectionId, Millis, Route};

/// A message has proved the key.
pub fn proved(slot: &AgentSlot, now: Millis, form: CryptoForm) {
    slot.hear(now);
    slot.set_form(form);
}

/// Answers go here from now on.
pub fn bind(slot: &AgentSlot, route: Route) {
    slot.bind(route);
}

/// The connection is gone, or was overtaken. Says whether answers went there.
pub fn unbind(slot: &AgentSlot, connection: ConnectionId) -> bool {
    slot.unbind(connection)
}

/// A keepalive said whose agent it is.
pub fn set_family(slot: &AgentSlot, family: Family) {
    slot.set_family(family);
}

/// A keepalive or a startup named its version.
pub fn set_version(slot: &AgentSlot, version: &str) {
    slot.set_version(version);
}
