//! How much a change of status matters, on the scale of rule levels.

use muster_proto::agent::{AgentStatus, Reason};

/// Worth keeping.
pub const LOW: u8 = 3;
/// Worth a look.
pub const MEDIUM: u8 = 5;
/// Somebody should act. From here up an event is also an alert.
pub const HIGH: u8 = 8;
/// Somebody must act now.
pub const CRITICAL: u8 = 12;
/// The top of the scale, which only escalation reaches.
const TOP: u8 = 15;

/// What a change is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The status before.
    pub from: AgentStatus,
    /// The status now; the same in a repeated or a mere notice.
    pub to: AgentStatus,
    /// Why.
    pub reason: Reason,
    /// The agent is labelled `criticality=critical`.
    pub critical_agent: bool,
    /// It is one of so many at once that the manager is the likely cause.
    pub mass: bool,
    /// How often it was said again since it happened.
    pub escalations: u8,
}

/// The level of a change. The first rule that fits counts; then what modifies it.
pub fn level(change: &Change) -> u8 {
    let timed_out = change.reason == Reason::KeepaliveTimeout && change.to == AgentStatus::Disconnected;
    let base = match change.reason {
        Reason::KeyConflict | Reason::UnexpectedRemoval => CRITICAL,
        Reason::KeepaliveTimeout if timed_out && change.critical_agent => CRITICAL,
        Reason::KeepaliveTimeout if timed_out => HIGH,
        Reason::ConnectionLost | Reason::AgentStopped | Reason::NeverConnected | Reason::StuckPending => MEDIUM,
        _ => LOW,
    };
    let base = if change.mass { base.min(MEDIUM) } else { base };
    base.saturating_add(change.escalations).clamp(LOW, TOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Change = Change {
        from: AgentStatus::Active,
        to: AgentStatus::Disconnected,
        reason: Reason::KeepaliveTimeout,
        critical_agent: false,
        mass: false,
        escalations: 0,
    };

    #[test]
    fn every_reason_has_the_level_of_the_table() {
        for (reason, expected) in [
            (Reason::KeyConflict, CRITICAL),
            (Reason::UnexpectedRemoval, CRITICAL),
            (Reason::KeepaliveTimeout, HIGH),
            (Reason::ConnectionLost, MEDIUM),
            (Reason::AgentStopped, MEDIUM),
            (Reason::NeverConnected, MEDIUM),
            (Reason::StuckPending, MEDIUM),
            (Reason::Maintenance, LOW),
            (Reason::ManagerRestart, LOW),
            (Reason::Reconnected, LOW),
            (Reason::Startup, LOW),
            (Reason::KeyRemoved, LOW),
            (Reason::VersionRefused, LOW),
            (Reason::Moved, LOW),
        ] {
            assert_eq!(level(&Change { reason, ..TIMEOUT }), expected, "{reason}");
        }
    }

    #[test]
    fn critical_agent_that_times_out_is_critical_and_one_that_stops_is_not() {
        assert_eq!(
            level(&Change {
                critical_agent: true,
                ..TIMEOUT
            }),
            CRITICAL
        );
        assert_eq!(
            level(&Change {
                critical_agent: true,
                reason: Reason::AgentStopped,
                ..TIMEOUT
            }),
            MEDIUM
        );
    }

    #[test]
    fn mass_expiry_caps_at_medium_even_for_critical_agents() {
        assert_eq!(
            level(&Change {
                mass: true,
                critical_agent: true,
                ..TIMEOUT
            }),
            MEDIUM
        );
    }

    #[test]
    fn escalation_adds_one_each_time_and_stays_on_the_scale() {
        assert_eq!(
            level(&Change {
                escalations: 1,
                ..TIMEOUT
            }),
            HIGH + 1
        );
        assert_eq!(
            level(&Change {
                escalations: 2,
                ..TIMEOUT
            }),
            HIGH + 2
        );
        assert_eq!(
            level(&Change {
                escalations: 200,
                critical_agent: true,
                ..TIMEOUT
            }),
            TOP
        );
    }
}
