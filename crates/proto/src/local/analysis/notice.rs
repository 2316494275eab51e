//! The manager's own lines about its agents, which stock rules know.

use crate::{keys::address::RegisteredAddress, local::Layout};

/// What happened to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It said goodbye.
    Stopped,
    /// It was silent for too long.
    Disconnected,
    /// It was away for so long that its key was removed.
    Removed,
}

impl Notice {
    /// The payload to give to [`write_event`](super::write_event) under the agent's own source.
    pub fn payload(self, layout: Layout, name: &str, address: &RegisteredAddress) -> String {
        let program = match (layout, self) {
            (Layout::Wazuh, Self::Stopped) => "wazuh-remoted",
            (Layout::Wazuh, Self::Disconnected | Self::Removed) => "wazuh-monitord",
            (Layout::Ossec, Self::Stopped) => "ossec-remoted",
            (Layout::Ossec, Self::Disconnected | Self::Removed) => "ossec-monitord",
        };
        match self {
            Self::Stopped => format!("1:{program}:ossec: Agent stopped: '{name}->{}'.", address.host_text()),
            // Not an arrow, and with the prefix: these go back to the text that the agent was registered with.
            Self::Disconnected => format!("1:{program}:ossec: Agent disconnected: '{name}-{address}'."),
            Self::Removed => format!("1:{program}:ossec: Agent removed: '{name}-{address}'."),
        }
    }
}
