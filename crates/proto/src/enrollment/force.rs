//! When an agent may take the place of one that has its id, name or address.

use std::fmt;

use crate::{
    agent::{AgentId, AgentStatus},
    ipc::control::Liveness,
};

/// The rules, from the configuration or from a local request. Times are seconds; local requests may give negative
/// ones, which hold nobody back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether agents are replaced at all.
    pub enabled: bool,
    /// Whether an agent that already holds the right key is refused another.
    pub key_mismatch: bool,
    /// How long an agent must have been disconnected; `None` = its connection does not matter.
    pub disconnected_time: Option<i64>,
    /// How long ago it must have been registered; 0 = does not matter.
    pub after_registration_time: i64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            enabled: true,
            key_mismatch: true,
            disconnected_time: Some(3600),
            after_registration_time: 3600,
        }
    }
}

/// What is known of the agent that stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incumbent {
    /// Its connection; `None` when nobody could be asked.
    pub liveness: Option<Liveness>,
    /// Unix seconds of its registration; `None` when not known.
    pub registered_at: Option<i64>,
    /// Whether the request carries the hash of the very key that this agent has.
    pub holds_same_key: bool,
}

/// Why an agent is not replaced. Its `Display` is the text of the log, made complete by [`Refusal::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The rules are switched off.
    Disabled,
    /// Liveness or registration time could not be found out.
    Unknown,
    /// It has gone, but not for long enough.
    DisconnectedTooShortly,
    /// It is there.
    NotDisconnected,
    /// It was registered too recently.
    RegisteredTooRecently,
    /// The requester holds its key.
    SameKey,
}

impl Refusal {
    /// The sentence for the log.
    pub fn of(self, id: &AgentId) -> impl fmt::Display {
        match self {
            Self::Disabled => format!("Agent '{id}' won't be removed because the force option is disabled."),
            Self::Unknown => format!("Failed to get agent-info for agent '{id}'"),
            Self::DisconnectedTooShortly => {
                format!("Agent '{id}' has not been disconnected long enough to be replaced.")
            }
            Self::NotDisconnected => format!("Agent '{id}' can't be replaced since it is not disconnected."),
            Self::RegisteredTooRecently => {
                format!("Agent '{id}' doesn't comply with the registration time to be removed.")
            }
            Self::SameKey => format!("Agent '{id}' key already exists on the manager."),
        }
    }
}

impl Rules {
    /// Whether the answer depends on the agent's connection, so that somebody must be asked.
    pub fn needs_liveness(&self) -> bool {
        self.enabled && self.disconnected_time.is_some()
    }

    /// Whether the incumbent may be removed at `now` (Unix seconds). The first rule that refuses gives the reason.
    ///
    /// # Errors
    /// The reason why not.
    pub fn judge(&self, incumbent: &Incumbent, now: i64) -> Result<(), Refusal> {
        if !self.enabled {
            return Err(Refusal::Disabled);
        }
        let registered_at = incumbent.registered_at.ok_or(Refusal::Unknown)?;
        if let Some(needed) = self.disconnected_time {
            check_connection(incumbent.liveness.ok_or(Refusal::Unknown)?, needed, now)?;
        }
        if self.after_registration_time > 0 && now.saturating_sub(registered_at) < self.after_registration_time {
            return Err(Refusal::RegisteredTooRecently);
        }
        if self.key_mismatch && incumbent.holds_same_key {
            return Err(Refusal::SameKey);
        }
        Ok(())
    }
}

fn check_connection(liveness: Liveness, needed: i64, now: i64) -> Result<(), Refusal> {
    if liveness.status == AgentStatus::NeverConnected {
        return Ok(());
    }
    if liveness.status != AgentStatus::Disconnected || liveness.disconnected_at == 0 {
        return Err(Refusal::NotDisconnected);
    }
    let since = i64::try_from(liveness.disconnected_at).unwrap_or(i64::MAX);
    if now.saturating_sub(since) < needed {
        return Err(Refusal::DisconnectedTooShortly);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn liveness(status: AgentStatus, disconnected_at: u64) -> Option<Liveness> {
        Some(Liveness {
            status,
            disconnected_at,
        })
    }

    /// Long gone, long registered, another key.
    fn replaceable() -> Incumbent {
        Incumbent {
            liveness: liveness(AgentStatus::Disconnected, 1),
            registered_at: Some(1),
            holds_same_key: false,
        }
    }

    fn judge(rules: Rules, incumbent: Incumbent) -> Result<(), Refusal> {
        rules.judge(&incumbent, NOW)
    }

    #[test]
    fn an_agent_that_went_long_ago_is_replaced() {
        assert_eq!(judge(Rules::default(), replaceable()), Ok(()));
    }

    #[test]
    fn nothing_is_replaced_when_force_is_off() {
        let rules = Rules {
            enabled: false,
            ..Rules::default()
        };
        assert_eq!(judge(rules, replaceable()), Err(Refusal::Disabled));
    }

    #[test]
    fn what_cannot_be_found_out_is_not_replaced() {
        assert_eq!(
            judge(
                Rules::default(),
                Incumbent {
                    liveness: None,
                    ..replaceable()
                }
            ),
            Err(Refusal::Unknown)
        );
        assert_eq!(
            judge(
                Rules::default(),
                Incumbent {
                    registered_at: None,
                    ..replaceable()
                }
            ),
            Err(Refusal::Unknown)
        );
    }

    #[test]
    fn liveness_is_not_needed_when_the_connection_does_not_matter() {
        let rules = Rules {
            disconnected_time: None,
            ..Rules::default()
        };
        assert!(!rules.needs_liveness());
        assert_eq!(
            judge(
                rules,
                Incumbent {
                    liveness: None,
                    ..replaceable()
                }
            ),
            Ok(())
        );
    }

    #[test]
    fn the_disconnected_time_is_held_to_the_second() {
        for (ago, verdict) in [(3599, Err(Refusal::DisconnectedTooShortly)), (3600, Ok(()))] {
            let incumbent = Incumbent {
                liveness: liveness(AgentStatus::Disconnected, (NOW - ago) as u64),
                ..replaceable()
            };
            assert_eq!(judge(Rules::default(), incumbent), verdict, "{ago}");
        }
    }

    #[test]
    fn who_is_there_is_not_replaced_even_with_a_time_of_zero() {
        let rules = Rules {
            disconnected_time: Some(0),
            ..Rules::default()
        };
        for status in [AgentStatus::Active, AgentStatus::Pending, AgentStatus::Disconnected] {
            let incumbent = Incumbent {
                liveness: liveness(status, 0),
                ..replaceable()
            };
            assert_eq!(judge(rules, incumbent), Err(Refusal::NotDisconnected), "{status}");
        }
    }

    #[test]
    fn never_connected_is_held_back_by_the_registration_time_only() {
        let never = |registered_at| Incumbent {
            liveness: liveness(AgentStatus::NeverConnected, 0),
            registered_at: Some(registered_at),
            holds_same_key: false,
        };
        assert_eq!(judge(Rules::default(), never(NOW - 3600)), Ok(()));
        assert_eq!(
            judge(Rules::default(), never(NOW - 3599)),
            Err(Refusal::RegisteredTooRecently)
        );
    }

    #[test]
    fn a_registration_time_of_zero_or_less_holds_nobody_back() {
        for time in [0, -5] {
            let rules = Rules {
                after_registration_time: time,
                ..Rules::default()
            };
            assert_eq!(
                judge(
                    rules,
                    Incumbent {
                        registered_at: Some(NOW),
                        ..replaceable()
                    }
                ),
                Ok(())
            );
        }
    }

    #[test]
    fn the_holder_of_the_same_key_gets_no_other_unless_mismatch_does_not_count() {
        let holder = Incumbent {
            holds_same_key: true,
            ..replaceable()
        };
        assert_eq!(judge(Rules::default(), holder), Err(Refusal::SameKey));
        assert_eq!(
            judge(
                Rules {
                    key_mismatch: false,
                    ..Rules::default()
                },
                holder
            ),
            Ok(())
        );
    }

    #[test]
    fn active_agents_go_when_connection_and_registration_do_not_matter() {
        let rules = Rules {
            disconnected_time: None,
            after_registration_time: 0,
            ..Rules::default()
        };
        let active = Incumbent {
            liveness: liveness(AgentStatus::Active, 0),
            ..replaceable()
        };
        assert_eq!(judge(rules, active), Ok(()));
    }

    #[test]
    fn reasons_have_their_log_texts() {
        let id = AgentId::new("007");
        for (refusal, text) in [
            (
                Refusal::Disabled,
                "Agent '007' won't be removed because the force option is disabled.",
            ),
            (Refusal::Unknown, "Failed to get agent-info for agent '007'"),
            (
                Refusal::DisconnectedTooShortly,
                "Agent '007' has not been disconnected long enough to be replaced.",
            ),
            (
                Refusal::NotDisconnected,
                "Agent '007' can't be replaced since it is not disconnected.",
            ),
            (
                Refusal::RegisteredTooRecently,
                "Agent '007' doesn't comply with the registration time to be removed.",
            ),
            (Refusal::SameKey, "Agent '007' key already exists on the manager."),
        ] {
            assert_eq!(refusal.of(&id).to_string(), text);
        }
    }
}
