//! Scenario files: sections in brackets, and below them lines of a key, an equals sign and a value.
//!
//! ```text
//! # What all groups have unless they say otherwise, and the fleet as a whole.
//! [fleet]
//! notify_time = 20s
//! duration = 5m
//!
//! [group laptops]
//! kind = wazuh-aes-tcp
//! agents = 600
//! versions = 4.9.2:1, 4.14.7:3
//! events = 12/m
//! event_size = 200:90, 1000..4000:10
//!
//! [story]
//! 30s = storm laptops 50%
//! 1m = stop
//! ```
//!
//! **Invariant:** every problem names its file and line and says what would be right.

use std::{path::PathBuf, time::Duration};

use thiserror::Error;

use super::{Group, Scenario, Scene, words};
use crate::{
    agent::{EventLoad, Habits, Rhythm, Sizes},
    command::{Command, Who},
    mix::Kind,
};

/// The largest fleet that a file may ask for.
const MAX_AGENTS: u32 = 10_000_000;
/// The event size of whoever gives a rate and no size.
const EVENT_SIZE: usize = 200;

/// What is wrong with a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}:{line}: {problem}")]
pub struct ScenarioError {
    /// The file as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there, and what would be right.
    pub problem: String,
}

/// Reads the text of a scenario file; `file` is its name for errors.
///
/// # Errors
///
/// The first problem, with its line.
///
/// ```
/// use muster_swarm::scenario::file::parse;
///
/// let error = parse("office", "[group a]\nkind = wazuh\n").unwrap_err();
/// assert!(error.to_string().starts_with("office:2: unknown kind of agent `wazuh`; one of wazuh-aes-tcp,"));
/// ```
pub fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
    let mut reader = Reader::default();
    let lines = text.lines().enumerate().map(|(place, line)| (place + 1, line));
    for (number, line) in lines {
        let line = line.split_once('#').map_or(line, |(before, _)| before).trim();
        if !line.is_empty() {
            reader.line(number, line).map_err(|problem| ScenarioError {
                file: file.to_owned(),
                line: number,
                problem,
            })?;
        }
    }
    reader.finish().map_err(|(line, problem)| ScenarioError {
        file: file.to_owned(),
        line,
        problem,
    })
}

/// Where the next line belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Fleet,
    Group,
    Story,
}

/// A group as far as it has been read. What a group leaves out it has from the fleet.
#[derive(Clone, Default)]
struct Draft {
    line: usize,
    name: String,
    keys: Vec<String>,
    kind: Option<Kind>,
    agents: Option<u32>,
    versions: Option<Vec<(std::rc::Rc<str>, u32)>>,
    notify_time: Option<Duration>,
    reconnect_after: Option<Duration>,
    retry_interval: Option<Duration>,
    events: Option<f64>,
    event_size: Option<Sizes>,
    rhythm: Option<Rhythm>,
    sources: Option<Vec<std::net::IpAddr>>,
}

#[derive(Default)]
struct Reader {
    section: Option<Section>,
    scenario: Scenario,
    fleet: Draft,
    groups: Vec<Draft>,
    scenes: Vec<(usize, Scene)>,
}

const SECTIONS: &str = "[fleet], [group NAME] or [story]";
const FLEET_KEYS: &str = "duration, seed, udp_sockets, keep_files";
const GROUP_KEYS: &str = "notify_time, reconnect_after, retry_interval, events, event_size, rhythm, sources";

impl Reader {
    fn line(&mut self, number: usize, line: &str) -> Result<(), String> {
        if let Some(title) = line.strip_prefix('[') {
            let title = title.strip_suffix(']').ok_or("the section has no closing bracket")?;
            return self.begin(number, title.trim());
        }
        let (key, value) = line
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()))
            .ok_or_else(|| format!("`{}` should be a key, an equals sign and a value", line.escape_debug()))?;
        match self.section {
            None => Err(format!("a line in front of the first section; begin with {SECTIONS}")),
            Some(Section::Story) => self.scene(number, key, value),
            Some(Section::Fleet) => self.fleet(key, value),
            Some(Section::Group) => match self.groups.last_mut() {
                Some(group) => group.set(key, value, true),
                None => Err(format!("a key outside of {SECTIONS}")),
            },
        }
    }

    fn begin(&mut self, line: usize, title: &str) -> Result<(), String> {
        let mut words = title.split_whitespace();
        self.section = Some(match (words.next(), words.next(), words.next()) {
            (Some("fleet"), None, None) => Section::Fleet,
            (Some("story"), None, None) => Section::Story,
            (Some("group"), Some(name), None) => {
                check_name(name)?;
                if let Some(other) = self.groups.iter().find(|group| group.name == name) {
                    return Err(format!("group `{name}` begins in line {} already", other.line));
                }
                self.groups.push(Draft {
                    line,
                    name: name.to_owned(),
                    ..Draft::default()
                });
                Section::Group
            }
            _ => return Err(format!("`[{}]` should be {SECTIONS}", title.escape_debug())),
        });
        Ok(())
    }

    fn fleet(&mut self, key: &str, value: &str) -> Result<(), String> {
        let scenario = &mut self.scenario;
        match key {
            "duration" => scenario.duration = Some(words::period(value)?),
            "seed" => scenario.seed = Some(whole(value)?),
            "udp_sockets" => {
                scenario.udp_sockets = Some(
                    whole(value)
                        .ok()
                        .filter(|sockets| *sockets > 0)
                        .ok_or_else(|| format!("`{}` is not a number of sockets, 1 or more", value.escape_debug()))?,
                );
            }
            "keep_files" => scenario.keep_files = Some(PathBuf::from(value)),
            _ => return self.fleet.set(key, value, false),
        }
        self.fleet.once(key)
    }

    fn scene(&mut self, line: usize, key: &str, value: &str) -> Result<(), String> {
        let at = words::duration(key)?;
        let command: Command = value.parse()?;
        self.scenes.push((
            line,
            Scene {
                at,
                command,
                text: value.to_owned(),
            },
        ));
        Ok(())
    }

    fn finish(self) -> Result<Scenario, (usize, String)> {
        let Self {
            mut scenario,
            fleet,
            groups,
            mut scenes,
            ..
        } = self;
        if groups.is_empty() {
            return Err((1, "no agents: add a section such as [group laptops]".to_owned()));
        }
        let mut total = 0_u32;
        for draft in groups {
            let line = draft.line;
            let group = draft.group(&fleet).map_err(|problem| (line, problem))?;
            total = total.saturating_add(group.agents);
            scenario.groups.push(group);
            if total > MAX_AGENTS {
                return Err((line, format!("more than {MAX_AGENTS} agents; run several fleets")));
            }
        }
        for (line, scene) in &scenes {
            if let Some(Who::Some { group: Some(name), .. }) = scene.command.who()
                && !scenario.groups.iter().any(|group| group.name == *name)
            {
                let names: Vec<&str> = scenario.groups.iter().map(|group| group.name.as_str()).collect();
                return Err((
                    *line,
                    format!("no group is called `{name}`; there are {}", names.join(", ")),
                ));
            }
        }
        scenes.sort_by_key(|(_, scene)| scene.at);
        scenario.story = scenes.into_iter().map(|(_, scene)| scene).collect();
        let keeps_files = scenario.keep_files.is_some();
        for group in &mut scenario.groups {
            group.habits.keeps_files = keeps_files;
        }
        Ok(scenario)
    }
}

impl Draft {
    /// Takes one key; `whole` groups have more of them than the fleet.
    fn set(&mut self, key: &str, value: &str, whole_group: bool) -> Result<(), String> {
        match key {
            "kind" if whole_group => self.kind = Some(value.parse().map_err(|error| format!("{error}"))?),
            "agents" if whole_group => self.agents = Some(agents(value)?),
            "versions" if whole_group => self.versions = Some(words::versions(value)?),
            "notify_time" => self.notify_time = Some(words::period(value)?),
            "reconnect_after" => self.reconnect_after = Some(words::period(value)?),
            "retry_interval" => self.retry_interval = Some(words::period(value)?),
            "events" => self.events = Some(words::rate(value)?),
            "event_size" => self.event_size = Some(words::sizes(value)?),
            "sources" => self.sources = Some(words::addresses(value)?),
            "rhythm" => {
                self.rhythm = Some(match value {
                    "even" => Rhythm::Even,
                    "random" => Rhythm::Random,
                    _ => return Err(format!("`{}` should be `even` or `random`", value.escape_debug())),
                });
            }
            _ => {
                let more = if whole_group {
                    "kind, agents, versions"
                } else {
                    FLEET_KEYS
                };
                return Err(format!(
                    "unknown key `{}`; one of {more}, {GROUP_KEYS}",
                    key.escape_debug()
                ));
            }
        }
        self.once(key)
    }

    fn once(&mut self, key: &str) -> Result<(), String> {
        if self.keys.iter().any(|known| known == key) {
            return Err(format!("`{key}` is given twice in this section"));
        }
        self.keys.push(key.to_owned());
        Ok(())
    }

    fn group(self, fleet: &Self) -> Result<Group, String> {
        let name = self.name;
        let kind = self
            .kind
            .ok_or_else(|| format!("group `{name}` has no kind; add a line such as kind = wazuh-aes-tcp"))?;
        let agents = self
            .agents
            .ok_or_else(|| format!("group `{name}` has no number; add a line such as agents = 100"))?;
        let stock = if kind.family.is_ossec() { OSSEC_NOTIFY } else { NOTIFY };
        let mut habits = Habits::stock(self.notify_time.or(fleet.notify_time).unwrap_or(stock));
        if let Some(time) = self.reconnect_after.or(fleet.reconnect_after) {
            habits.reconnect_after = time;
        }
        if let Some(time) = self.retry_interval.or(fleet.retry_interval) {
            habits.retry_interval = time;
        }
        habits.events = self.events.or(fleet.events).map(|rate| EventLoad {
            every: Duration::from_secs_f64(1.0 / rate).max(Duration::from_nanos(1)),
            rhythm: self.rhythm.or(fleet.rhythm).unwrap_or(Rhythm::Random),
            sizes: self
                .event_size
                .or_else(|| fleet.event_size.clone())
                .unwrap_or_else(|| Sizes::fixed(EVENT_SIZE)),
        });
        Ok(Group {
            versions: self.versions.unwrap_or_else(|| vec![(kind.family.version().into(), 1)]),
            sources: self.sources.or_else(|| fleet.sources.clone()).unwrap_or_default(),
            name,
            kind,
            agents,
            habits,
        })
    }
}

/// Between two keepalives of a stock Wazuh agent.
const NOTIFY: Duration = Duration::from_secs(20);
/// Between two of an OSSEC agent.
const OSSEC_NOTIFY: Duration = Duration::from_secs(600);

fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("`{}` is not a whole number", text.escape_debug()))
}

fn agents(text: &str) -> Result<u32, String> {
    whole(text)
        .ok()
        .filter(|agents| (1..=MAX_AGENTS).contains(agents))
        .ok_or_else(|| {
            format!(
                "`{}` is not a number of agents from 1 to {MAX_AGENTS}",
                text.escape_debug()
            )
        })
}

/// A group's name goes into its agents' names and into orders.
fn check_name(name: &str) -> Result<(), String> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let begins = name.starts_with(|first: char| first.is_ascii_alphabetic());
    if begins && name.chars().all(allowed) && name != "all" && name.len() <= MAX_NAME_LEN {
        Ok(())
    } else {
        Err(format!(
            "`{}` cannot be the name of a group: a letter, then letters, digits, `-`, `_` or `.`, not `all`",
            name.escape_debug()
        ))
    }
}

/// Longer names leave no room for the number in an agent's name.
const MAX_NAME_LEN: usize = 64;

#[cfg(test)]
mod tests;
