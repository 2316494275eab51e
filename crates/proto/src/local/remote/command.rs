//! JSON commands to remoted itself.

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// Agents that one `getagentsstats` may name, and that one page of `"all"` has.
pub const MAX_AGENTS: usize = 75;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// What remoted has counted.
    GetStats,
    /// What it has counted of agents.
    GetAgentsStats(AgentsWanted),
    /// A part of the configuration in force.
    GetConfig(Section),
    /// Which group an agent is in; one that has none gets one.
    AssignGroup {
        /// The agent's id. It need not exist.
        agent: String,
        /// The sum of the merged file that it reports.
        md5: String,
    },
}

/// Agents that are asked for. Only those that are active are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentsWanted {
    /// These.
    Listed(Vec<u32>),
    /// All, in the order of their numbers.
    Behind {
        /// The last one of the page before, or 0.
        last_id: u32,
    },
}

/// A part of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `<remote>`
    Remote,
    /// `remoted.*` of the internal options.
    Internal,
    /// What of `<global>` concerns agents.
    Global,
}

/// A command that is none. The number and the text are those of stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// 2
    #[error("Invalid JSON input")]
    InvalidJson,
    /// 3
    #[error("Empty command")]
    EmptyCommand,
    /// 4
    #[error("Unrecognized command")]
    UnrecognizedCommand,
    /// 5
    #[error("Empty parameters")]
    EmptyParameters,
    /// 6
    #[error("Empty section")]
    EmptySection,
    /// 7
    #[error("Unrecognized or not configured section")]
    UnrecognizedSection,
    /// 8
    #[error("Invalid agents parameter")]
    InvalidAgents,
    /// 9: the agents asked for are no numbers.
    #[error("Error getting agents from DB")]
    AgentsFromDatabase,
    /// 10
    #[error("Empty last id")]
    EmptyLastId,
    /// 11
    #[error("Too many agents")]
    TooManyAgents,
    /// 12
    #[error("Invalid agent or md5 parameter")]
    InvalidAgentOrMd5,
}

impl CommandError {
    /// The number in the answer.
    pub fn code(self) -> u8 {
        match self {
            Self::InvalidJson => 2,
            Self::EmptyCommand => 3,
            Self::UnrecognizedCommand => 4,
            Self::EmptyParameters => 5,
            Self::EmptySection => 6,
            Self::UnrecognizedSection => 7,
            Self::InvalidAgents => 8,
            Self::AgentsFromDatabase => 9,
            Self::EmptyLastId => 10,
            Self::TooManyAgents => 11,
            Self::InvalidAgentOrMd5 => 12,
        }
    }
}

impl Command {
    /// Reads a command. As in stock, what follows the first JSON value is not looked at, and the names of members are
    /// compared without letter case.
    pub fn parse(payload: &[u8]) -> Result<Self, CommandError> {
        let first = serde_json::Deserializer::from_slice(payload)
            .into_iter::<Value>()
            .next();
        let Some(Ok(Value::Object(request))) = first else {
            return Err(CommandError::InvalidJson);
        };
        let command = member(&request, "command")
            .and_then(Value::as_str)
            .ok_or(CommandError::EmptyCommand)?;
        let parameters = || {
            member(&request, "parameters")
                .and_then(Value::as_object)
                .ok_or(CommandError::EmptyParameters)
        };
        match command {
            "getstats" => Ok(Self::GetStats),
            "getagentsstats" => agents_wanted(parameters()?).map(Self::GetAgentsStats),
            "getconfig" => section(parameters()?).map(Self::GetConfig),
            "assigngroup" => {
                let parameters = parameters()?;
                let text = |name| member(parameters, name).and_then(Value::as_str).map(str::to_owned);
                match (text("agent"), text("md5")) {
                    (Some(agent), Some(md5)) => Ok(Self::AssignGroup { agent, md5 }),
                    _ => Err(CommandError::InvalidAgentOrMd5),
                }
            }
            _ => Err(CommandError::UnrecognizedCommand),
        }
    }
}

fn section(parameters: &Map<String, Value>) -> Result<Section, CommandError> {
    match member(parameters, "section").and_then(Value::as_str) {
        None => Err(CommandError::EmptySection),
        Some("remote") => Ok(Section::Remote),
        Some("internal") => Ok(Section::Internal),
        Some("global") => Ok(Section::Global),
        Some(_) => Err(CommandError::UnrecognizedSection),
    }
}

fn agents_wanted(parameters: &Map<String, Value>) -> Result<AgentsWanted, CommandError> {
    match member(parameters, "agents") {
        Some(Value::Array(ids)) if ids.len() > MAX_AGENTS => Err(CommandError::TooManyAgents),
        Some(Value::Array(ids)) => {
            let numbers: Option<Vec<u32>> = ids.iter().map(number).collect();
            numbers
                .map(AgentsWanted::Listed)
                .ok_or(CommandError::AgentsFromDatabase)
        }
        Some(Value::String(all)) if all == "all" => member(parameters, "last_id")
            .and_then(number)
            .map(|last_id| AgentsWanted::Behind { last_id })
            .ok_or(CommandError::EmptyLastId),
        _ => Err(CommandError::InvalidAgents),
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

#[derive(Serialize)]
struct Answer<'a, T> {
    error: u8,
    message: &'a str,
    data: T,
}

/// The payload of a good answer; `more` says that another page follows.
pub fn answer(data: &impl Serialize, more: bool) -> Vec<u8> {
    let (error, message) = if more { (1, "due") } else { (0, "ok") };
    to_json(&Answer { error, message, data })
}

/// The payload of an answer that says no.
pub fn failure(error: CommandError) -> Vec<u8> {
    to_json(&Answer {
        error: error.code(),
        message: &error.to_string(),
        data: Map::new(),
    })
}

fn to_json(answer: &impl Serialize) -> Vec<u8> {
    // Cannot fail: no map here has keys that are not strings.
    serde_json::to_vec(answer).unwrap_or_default()
}
