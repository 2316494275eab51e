//! `<agentless>`: hosts that are looked at over ssh. Each block is one entry. The blocks are read and checked; no
//! daemon uses them yet.

use std::time::Duration;

use serde::Serialize;

use crate::{
    kind::{Reading, Special, maybe, number, seconds, text},
    limits,
    walk::{Block, Need, Origin, Walk},
};

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

impl Block for Agentless {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.option(Origin::Stock, Need::Required, "type", script(), &mut self.kind);
        walk.stock("frequency", seconds(0, 365 * 86_400), &mut self.frequency);
        walk.list(Origin::Stock, Need::Required, "host", host(), &mut self.hosts);
        self.walk_states(walk);
        walk.stock("arguments", arguments(), &mut self.arguments);
        walk.stock("port", maybe(number(1, 65535)), &mut self.port);
        walk.stock("run_command", maybe(text(4096)), &mut self.run_command);
        if self.periodic && !self.diff && self.frequency.is_zero() {
            walk.error("frequency", "<frequency> must be more than 0 for the state 'periodic'");
        }
        if self.stay_connected {
            walk.warning("state", "'stay_connected' is accepted and never run");
        }
    }
}

impl Agentless {
    /// `<state>` may be repeated, and adds up.
    fn walk_states<W: Walk>(&mut self, walk: &mut W) {
        let mut states = Vec::new();
        match (self.periodic, self.diff) {
            (_, true) => states.push(State::PeriodicDiff),
            (true, false) => states.push(State::Periodic),
            (false, false) => {}
        }
        if self.stay_connected {
            states.push(State::StayConnected);
        }
        let words = crate::kind::word(&[
            ("periodic", State::Periodic),
            ("periodic_diff", State::PeriodicDiff),
            ("stay_connected", State::StayConnected),
        ]);
        walk.list(Origin::Stock, Need::Required, "state", words, &mut states);
        self.periodic = states
            .iter()
            .any(|state| matches!(state, State::Periodic | State::PeriodicDiff));
        self.diff = states.contains(&State::PeriodicDiff);
        self.stay_connected = states.contains(&State::StayConnected);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Periodic,
    PeriodicDiff,
    StayConnected,
}

/// A file below `agentless/`, and nothing above it.
fn script() -> Special<String> {
    Special {
        accepts: "the name of a script below agentless/",
        read: |text| {
            let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
            let fits = text.len() <= 255 && !text.chars().any(char::is_control) && text.split('/').all(is_part);
            fits.then(|| text.to_owned()).into()
        },
        write: |name| Some(name.clone()),
    }
}

/// Free text, which may be empty.
fn arguments() -> Special<String> {
    Special {
        accepts: "a text of up to 4096 bytes",
        read: |text| {
            (text.len() <= 4096 && !text.chars().any(char::is_control))
                .then(|| text.to_owned())
                .into()
        },
        write: |text| Some(text.clone()),
    }
}

fn host() -> Special<AgentlessHost> {
    Special {
        accepts: "user@host, with 'use_su ' or 'use_sudo ' before it if needed",
        read: |text| {
            let prefixes = [("use_sudo ", Elevation::Sudo), ("use_su ", Elevation::Su)];
            let found = prefixes
                .iter()
                .find_map(|(prefix, elevation)| Some((text.strip_prefix(prefix)?, *elevation)));
            let (target, elevation) = found.unwrap_or((text, Elevation::None));
            let is_plain = |c: char| !c.is_whitespace() && !c.is_control();
            let fits = target.len() <= 255
                && target
                    .split_once('@')
                    .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
                && target.chars().all(is_plain);
            if fits {
                Reading::Value(AgentlessHost {
                    elevation,
                    target: target.to_owned(),
                })
            } else {
                Reading::Refused
            }
        },
        write: |host| {
            let prefix = match host.elevation {
                Elevation::None => "",
                Elevation::Su => "use_su ",
                Elevation::Sudo => "use_sudo ",
            };
            Some(format!("{prefix}{}", host.target))
        },
    }
}
