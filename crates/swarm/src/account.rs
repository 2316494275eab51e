//! The account: what the fleet did, counted where it happens, and told in lines that a program can read.

mod table;
mod tally;
mod waits;

use serde::Serialize;

pub use self::{tally::Tally, waits::Waits};

/// How the fleet stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Agents asked for.
    pub agents: usize,
    /// Agents that have a key.
    pub enrolled: usize,
    /// Agents that were refused one.
    pub enroll_refused: usize,
    /// Agents with an acknowledged startup at this moment.
    pub connected: usize,
    /// Agents that are away by command.
    pub killed: usize,
}

/// One line of the program's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    /// Something that the user should know, such as a limit that made the fleet smaller.
    Note {
        /// The text.
        text: String,
    },
    /// Enrollment is over.
    Enrolled {
        /// Agents that have a key now.
        agents: usize,
        /// Agents that were refused one.
        refused: usize,
        /// The first few refusals in the manager's words.
        reasons: Vec<String>,
        /// How long it took.
        elapsed_ms: u64,
    },
    /// Every agent that should be there has its startup acknowledged.
    Ready {
        /// How many that are.
        connected: usize,
        /// Since the first connection, or since the order that made the fleet incomplete.
        elapsed_ms: u64,
    },
    /// An order of the scenario is carried out.
    Scene {
        /// Since every agent was acknowledged for the first time.
        at_ms: u64,
        /// The order.
        order: String,
    },
    /// Agents reconnect all at once.
    Storm {
        /// How many.
        count: usize,
    },
    /// Agents send and read no more.
    Stalled {
        /// How many.
        count: usize,
        /// Which.
        names: Vec<String>,
    },
    /// Agents send more events than before for a while.
    Flooding {
        /// How many.
        count: usize,
        /// Which.
        names: Vec<String>,
    },
    /// Further agents appear that have the keys of these.
    Cloned {
        /// How many.
        count: usize,
        /// Whose keys they have.
        names: Vec<String>,
    },
    /// Agents went away without goodbye.
    Killed {
        /// How many.
        count: usize,
        /// Which.
        names: Vec<String>,
    },
    /// Killed agents are coming back.
    Revived {
        /// How many.
        count: usize,
        /// Which.
        names: Vec<String>,
    },
    /// Answer to `status`.
    Status(Report),
    /// The last line.
    Account(Report),
    /// A command was not understood.
    Error {
        /// What was wrong with it.
        text: String,
    },
}

/// Standing, counters and time in one flat object, and the same counters for each part of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How the fleet stands.
    #[serde(flatten)]
    pub standing: Standing,
    /// What it did.
    #[serde(flatten)]
    pub tally: Tally,
    /// Since the first connection was asked for.
    pub elapsed_ms: u64,
    /// The parts of the fleet; their counters add up to those above.
    pub groups: Vec<Part>,
}

/// What one part of the fleet did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its name: that of the scenario, or of its kind of agents.
    pub name: String,
    /// Its kind of agents.
    pub kind: String,
    /// How many agents, or clones, it has.
    pub members: usize,
    /// How many of them have an acknowledged startup at this moment.
    pub members_connected: usize,
    /// What they did.
    #[serde(flatten)]
    pub tally: Tally,
}

impl Line {
    /// The line as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"event\":\"error\",\"text\":\"{error}\"}}"))
    }

    /// The line for people.
    pub fn text(&self) -> String {
        match self {
            Self::Note { text } => format!("note: {text}"),
            Self::Error { text } => format!("error: {text}"),
            Self::Enrolled {
                agents,
                refused,
                reasons,
                elapsed_ms,
            } => {
                let mut text = format!("enrolled {agents} agents in {elapsed_ms} ms, {refused} refused");
                for reason in reasons {
                    text.push_str("\n  ");
                    text.push_str(reason);
                }
                text
            }
            Self::Ready { connected, elapsed_ms } => {
                format!("all {connected} agents acknowledged after {elapsed_ms} ms")
            }
            Self::Scene { at_ms, order } => format!("at {:.1} s: {order}", millis_as_seconds(*at_ms)),
            Self::Storm { count } => format!("{count} agents reconnect"),
            Self::Stalled { count, names } => format!("{count} read no more: {}", listed(names)),
            Self::Flooding { count, names } => format!("{count} flood: {}", listed(names)),
            Self::Cloned { count, names } => format!("cloned {count}: {}", listed(names)),
            Self::Killed { count, names } => format!("killed {count}: {}", listed(names)),
            Self::Revived { count, names } => format!("revived {count}: {}", listed(names)),
            Self::Status(report) => table::text(report, "status"),
            Self::Account(report) => table::text(report, "account"),
        }
    }
}

/// More names than these help nobody.
const MAX_NAMES_TOLD: usize = 20;

fn listed(names: &[String]) -> String {
    let told = names.get(..MAX_NAMES_TOLD).unwrap_or(names);
    let more = if told.len() < names.len() { " …" } else { "" };
    format!("{}{more}", told.join(" "))
}

fn millis_as_seconds(millis: u64) -> f64 {
    std::time::Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_one_flat_object_with_its_event() {
        let report = Report {
            standing: Standing {
                agents: 2,
                ..Standing::default()
            },
            ..Report::default()
        };
        let value: serde_json::Value = serde_json::from_str(&Line::Account(report).json()).unwrap();
        assert_eq!(value["event"], "account");
        assert_eq!(value["agents"], 2);
        assert_eq!(value["events_sent"], 0);
        assert_eq!(value["elapsed_ms"], 0);
    }

    #[test]
    fn killed_names_are_told() {
        let line = Line::Killed {
            count: 1,
            names: vec!["sim-001".into()],
        };
        assert_eq!(line.json(), r#"{"event":"killed","count":1,"names":["sim-001"]}"#);
        assert_eq!(line.text(), "killed 1: sim-001");
    }
}
