//! The account: what the fleet did, counted where it happens, and told in lines that a program can read.

use std::time::Duration;

use serde::Serialize;

/// Everything that is counted. Field names are what `--output json` prints and never change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Connections opened (TCP), sockets opened (UDP).
    pub connects: u64,
    /// Connections that could not be opened.
    pub connect_failures: u64,
    /// Connections that the manager closed.
    pub closed_by_manager: u64,
    /// Startups sent.
    pub startups_sent: u64,
    /// Startups acknowledged.
    pub startups_acked: u64,
    /// Startups answered with an error.
    pub startups_refused: u64,
    /// Startups that nobody answered in time.
    pub startups_unanswered: u64,
    /// Keepalives sent.
    pub keepalives_sent: u64,
    /// Keepalives acknowledged.
    pub keepalives_acked: u64,
    /// Acks that nobody had asked for: the manager's own sign of life.
    pub unasked_acks: u64,
    /// Times that an agent gave the manager up because it heard nothing.
    pub manager_lost: u64,
    /// Goodbyes sent.
    pub shutdowns_sent: u64,
    /// Events made.
    pub events_made: u64,
    /// Events handed to the operating system whole.
    pub events_sent: u64,
    /// Events made and then lost with their connection before the operating system had taken them.
    pub events_unsent: u64,
    /// Requests answered.
    pub requests_answered: u64,
    /// Answers repeated because the manager did not acknowledge them (UDP).
    pub answers_repeated: u64,
    /// Active responses received.
    pub orders_received: u64,
    /// Orders to reconnect.
    pub reconnect_orders: u64,
    /// Shared files received whole.
    pub pushes_taken: u64,
    /// Shared files whose sum was wrong, or that were broken off.
    pub pushes_broken: u64,
    /// Messages that an agent of this family does not know.
    pub unknown_messages: u64,
    /// Messages dropped because the manager's counter went back (OSSEC agents).
    pub stale_counters: u64,
    /// Messages that did not open.
    pub undecodable: u64,
    /// Datagrams longer than an OSSEC agent reads.
    pub oversized: u64,
    /// Bytes handed to the operating system, headers of TCP messages included.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
}

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

/// Standing, counters and time in one flat object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How the fleet stands.
    #[serde(flatten)]
    pub standing: Standing,
    /// What it did.
    #[serde(flatten)]
    pub tally: Tally,
    /// Since the program began.
    pub elapsed_ms: u64,
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
            Self::Killed { count, names } => format!("killed {count}: {}", names.join(" ")),
            Self::Revived { count, names } => format!("revived {count}: {}", names.join(" ")),
            Self::Status(report) => report.text("status"),
            Self::Account(report) => report.text("account"),
        }
    }
}

impl Report {
    fn text(&self, title: &str) -> String {
        let Self {
            standing,
            tally,
            elapsed_ms,
        } = self;
        format!(
            "{title} after {:.1} s: {} of {} agents connected, {} killed\n  \
             startups {} sent, {} acknowledged, {} refused, {} unanswered\n  \
             keepalives {} sent, {} acknowledged; {} unasked acks\n  \
             events {} made, {} sent, {} unsent; {} bytes out, {} in\n  \
             connections {} opened, {} failed, {} closed by the manager, {} given up\n  \
             requests {} answered, orders {}, files {} taken and {} broken\n  \
             refused by agents: {} unknown, {} stale counters, {} undecodable, {} oversized",
            Duration::from_millis(*elapsed_ms).as_secs_f32(),
            standing.connected,
            standing.agents,
            standing.killed,
            tally.startups_sent,
            tally.startups_acked,
            tally.startups_refused,
            tally.startups_unanswered,
            tally.keepalives_sent,
            tally.keepalives_acked,
            tally.unasked_acks,
            tally.events_made,
            tally.events_sent,
            tally.events_unsent,
            tally.bytes_sent,
            tally.bytes_received,
            tally.connects,
            tally.connect_failures,
            tally.closed_by_manager,
            tally.manager_lost,
            tally.requests_answered,
            tally.orders_received,
            tally.pushes_taken,
            tally.pushes_broken,
            tally.unknown_messages,
            tally.stale_counters,
            tally.undecodable,
            tally.oversized,
        )
    }
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
