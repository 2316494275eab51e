//! `<agentless>`: hosts that are looked at over ssh. Each block is one entry. The blocks are read and checked; no
//! daemon uses them yet.

use std::time::Duration;

use serde::Serialize;

use crate::limits;

/// One `<agentless>` block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agentless {
    /// The script below `agentless/`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Time between two runs.
    #[serde(serialize_with = "crate::json::seconds")]
    pub frequency: Duration,
    /// Whom to look at, at least one.
    pub hosts: Vec<AgentlessHost>,
    /// Whether the script is run again and again.
    pub periodic: bool,
    /// Whether what it stores is compared with the last time.
    pub diff: bool,
    /// Accepted and never run, as in stock.
    pub stay_connected: bool,
    /// Passed to the script, split at spaces.
    pub arguments: String,
    /// Parsed and reported; not passed to scripts, as in stock.
    pub port: Option<u16>,
    /// Parsed and stored; unused, as in stock.
    pub run_command: Option<String>,
}

impl Default for Agentless {
    fn default() -> Self {
        Self {
            kind: String::new(),
            frequency: limits::AGENTLESS_FREQUENCY,
            hosts: Vec::new(),
            periodic: false,
            diff: false,
            stay_connected: false,
            arguments: String::new(),
            port: None,
            run_command: None,
        }
    }
}

/// `<host>`: `[use_su |use_sudo ]user@host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentlessHost {
    /// How the script gets more rights.
    pub elevation: Elevation,
    /// `user@host`.
    pub target: String,
}

/// How a script gets more rights on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Elevation {
    /// Not at all.
    None,
    /// With `su`.
    Su,
    /// With `sudo`.
    Sudo,
}
