//! What local programs say to authd on `queue/sockets/auth`: add, remove and look up agents.
//!
//! ```text
//! length u32 little-endian | {"function":"add","arguments":{"name":"web-01","ip":"any"}}
//! length u32 little-endian | {"error":0,"data":{"id":"001","name":"web-01","ip":"any","key":"<64 hex>"}}
//! ```
//!
//! One request and one answer a connection. A payload that does not begin with `{` is a text command. The reader is as
//! lenient as the programs that rely on it: member names in any letter case, the first of two equal ones, text behind
//! the value. Where the stock daemon crashes, the answer is [`ErrorCode::Json`].

mod json;

use std::fmt;

use json::{Json, Object};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    agent::AgentId,
    enrollment::{force::Rules, group, name},
    keys::{Secret, file::MAX_FIELD_LEN},
};

/// The longest payload, both ways.
pub const MAX_PAYLOAD_LEN: usize = 65_536;

/// A payload as it goes over the socket.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes(), payload].concat()
}

/// The length that a frame announces, if a reader should go on.
pub fn payload_len(header: [u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(header))
        .ok()
        .filter(|length| (1..=MAX_PAYLOAD_LEN).contains(length))
}

/// What a payload asks for.
#[derive(Clone, PartialEq, Eq)]
pub enum Request {
    /// A new agent.
    Add(Box<Add>),
    /// An agent that shall be there as it is given here: like `add`, unless it is. Ours; a stock authd answers
    /// [`ErrorCode::Internal`] and does nothing.
    Ensure(Box<Add>),
    /// Remove an agent.
    Remove {
        /// The id as text: `2` is not `002`.
        id: AgentId,
        /// Whether no line of it shall stay.
        purge: bool,
    },
    /// Look up an agent.
    Get {
        /// The id as text.
        id: AgentId,
    },
    /// `getconfig <section>`.
    GetConfig(String),
}

/// A new agent.
#[derive(Clone, PartialEq, Eq)]
pub struct Add {
    /// Its name. The rules of enrollment do not apply, only those of a key line.
    pub name: String,
    /// Its address as given, not yet checked: groups and id come first.
    pub ip: String,
    /// The id that it shall have.
    pub id: Option<AgentId>,
    /// The key that it shall have.
    pub key: Option<Secret>,
    /// Its groups without repetitions, not yet looked up.
    pub groups: Vec<String>,
    /// The hash of the key line that it holds.
    pub key_hash: Option<String>,
    /// Rules that replace the configured ones.
    pub force: Option<Rules>,
}

/// What went wrong. The numbers are those that callers map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// Unknown function, or the change could not be made durable.
    Internal = 9001,
    /// No JSON, or a value of the wrong type.
    Json = 9002,
    /// `function` is missing.
    NoFunction = 9003,
    /// `arguments` is missing.
    NoArgument = 9004,
    /// `name` is missing or cannot stand in a key line.
    NoName = 9005,
    /// `ip` is missing or invalid.
    NoIp = 9006,
    /// The address belongs to an agent that may not be replaced.
    DuplicateIp = 9007,
    /// The name belongs to an agent that may not be replaced, or is the manager's own.
    DuplicateName = 9008,
    /// The key cannot be used.
    Key = 9009,
    /// `id` is missing or invalid.
    NoId = 9010,
    /// There is no agent with this id.
    IdNotFound = 9011,
    /// The id belongs to an agent that may not be replaced.
    DuplicateId = 9012,
    /// No id is left.
    TooManyAgents = 9013,
    /// A group does not exist.
    InvalidGroups = 9014,
}

impl ErrorCode {
    /// The text that goes with it.
    pub fn message(self) -> &'static str {
        match self {
            Self::Internal => "Internal error",
            Self::Json => "Parsing JSON input",
            Self::NoFunction => "No such function",
            Self::NoArgument => "No such argument",
            Self::NoName => "No such name",
            Self::NoIp => "No such IP",
            Self::DuplicateIp => "Duplicate IP",
            Self::DuplicateName => "Duplicate name",
            Self::Key => "Issue generating key",
            Self::NoId => "No such agent ID",
            Self::IdNotFound => "Agent ID not found",
            Self::DuplicateId => "Duplicate ID",
            Self::TooManyAgents => "Maximum number of agents reached",
            Self::InvalidGroups => "Invalid Group(s) Name(s)",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.message(), *self as u16)
    }
}

/// Why a payload is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// Answered in JSON.
    Json(ErrorCode),
    /// Answered with this text.
    Text(&'static str),
}

/// The answer to `getconfig` with a section that authd does not have.
pub const UNKNOWN_SECTION: &str = "err Could not get requested section";

impl Request {
    /// Reads a payload.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn parse(payload: &[u8]) -> Result<Self, BadRequest> {
        if payload.first() == Some(&b'{') {
            parse_json(payload).map_err(BadRequest::Json)
        } else {
            parse_text(payload).map_err(BadRequest::Text)
        }
    }

    /// The payload that asks for this.
    pub fn to_payload(&self) -> Zeroizing<Vec<u8>> {
        let call = match self {
            Self::Add(add) => Call::Add(AddArguments::of(add)),
            Self::Ensure(add) => Call::Ensure(AddArguments::of(add)),
            Self::Remove { id, purge } => Call::Remove {
                id: id.as_str(),
                purge: *purge,
            },
            Self::Get { id } => Call::Get { id: id.as_str() },
            Self::GetConfig(section) => return Zeroizing::new(format!("getconfig {section}").into_bytes()),
        };
        Zeroizing::new(serde_json::to_vec(&call).unwrap_or_default())
    }
}

fn parse_text(payload: &[u8]) -> Result<Request, &'static str> {
    let text = payload.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    match text.split_once(' ') {
        Some(("getconfig", section)) => Ok(Request::GetConfig(section.to_owned())),
        None if text == "getconfig" => Err("err AUTHCOM getconfig needs arguments"),
        _ => Err("err Unrecognized command"),
    }
}

fn parse_json(payload: &[u8]) -> Result<Request, ErrorCode> {
    let request = json::first_object(payload).ok_or(ErrorCode::Json)?;
    let function = request
        .member("function")
        .ok_or(ErrorCode::NoFunction)?
        .text()
        .ok_or(ErrorCode::Json)?;
    if !matches!(function, "add" | "ensure" | "remove" | "get") {
        return Err(ErrorCode::Internal);
    }
    let arguments = request.member("arguments").ok_or(ErrorCode::NoArgument)?.as_object();
    match function {
        "add" => parse_add(arguments).map(|add| Request::Add(Box::new(add))),
        "ensure" => parse_add(arguments).map(|add| Request::Ensure(Box::new(add))),
        "remove" => {
            let purge = matches!(arguments.member("purge"), Some(Json::Bool(true)));
            Ok(Request::Remove {
                id: known_id(arguments)?,
                purge,
            })
        }
        _ => Ok(Request::Get {
            id: known_id(arguments)?,
        }),
    }
}

fn known_id(arguments: Object<'_>) -> Result<AgentId, ErrorCode> {
    let id = arguments.member("id").ok_or(ErrorCode::NoId)?;
    id.text().map(AgentId::new).ok_or(ErrorCode::IdNotFound)
}

fn parse_add(arguments: Object<'_>) -> Result<Add, ErrorCode> {
    let name = arguments
        .member("name")
        .ok_or(ErrorCode::NoName)?
        .text()
        .ok_or(ErrorCode::Json)?;
    let ip = arguments
        .member("ip")
        .ok_or(ErrorCode::NoIp)?
        .text()
        .ok_or(ErrorCode::Json)?;
    let groups = match arguments.member("groups") {
        Some(Json::Array(_) | Json::Object(_)) => return Err(ErrorCode::Json),
        Some(Json::String(list)) => group::distinct(list),
        _ => Vec::new(),
    };
    let force = arguments
        .member("force")
        .map(|force| parse_force(force).ok_or(ErrorCode::Json))
        .transpose()?;
    if !name::fits_a_key_line(name) {
        return Err(ErrorCode::NoName);
    }
    Ok(Add {
        name: name.to_owned(),
        ip: ip.to_owned(),
        id: arguments
            .text("id")
            .map(|id| new_id(id).ok_or(ErrorCode::NoId))
            .transpose()?,
        key: arguments
            .text("key")
            .map(|key| new_key(key).ok_or(ErrorCode::Key))
            .transpose()?,
        groups,
        key_hash: arguments.text("key_hash").map(str::to_owned),
        force,
    })
}

/// An id for a new agent: 1 to 8 digits, not 0. It is written with at least three.
pub fn new_id(text: &str) -> Option<AgentId> {
    AgentId::new(text)
        .number()
        .filter(|number| *number != 0)
        .map(AgentId::from_number)
}

/// A key for a new agent: 1 to 127 bytes that read back as one word.
pub fn new_key(text: &str) -> Option<Secret> {
    let fits = (1..=MAX_FIELD_LEN).contains(&text.len())
        && !text.contains(|letter: char| letter == ' ' || letter.is_control());
    fits.then(|| Secret::new(text.to_owned()))
}

/// The rules of a `force` object; all members must be there.
fn parse_force(force: &Json) -> Option<Rules> {
    let force = force.as_object();
    let disconnected = force.member("disconnected_time")?.as_object();
    let seconds = disconnected.member("value")?.seconds()?;
    Some(Rules {
        enabled: force.member("enabled")?.is_true(),
        key_mismatch: force.member("key_mismatch")?.is_true(),
        disconnected_time: disconnected.member("enabled")?.is_true().then_some(seconds),
        after_registration_time: force.member("after_registration_time")?.seconds()?,
    })
}

#[derive(Serialize)]
#[serde(tag = "function", content = "arguments", rename_all = "lowercase")]
enum Call<'a> {
    Add(AddArguments<'a>),
    Ensure(AddArguments<'a>),
    Remove { id: &'a str, purge: bool },
    Get { id: &'a str },
}

#[derive(Serialize)]
struct AddArguments<'a> {
    name: &'a str,
    ip: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    groups: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    force: Option<ForceArguments>,
}

#[derive(Serialize)]
struct ForceArguments {
    enabled: bool,
    key_mismatch: bool,
    disconnected_time: DisconnectedTime,
    after_registration_time: i64,
}

#[derive(Serialize)]
struct DisconnectedTime {
    enabled: bool,
    value: i64,
}

impl<'a> AddArguments<'a> {
    fn of(add: &'a Add) -> Self {
        Self {
            name: &add.name,
            ip: &add.ip,
            id: add.id.as_ref().map(AgentId::as_str),
            key: add.key.as_ref().map(Secret::expose),
            groups: add.groups.join(","),
            key_hash: add.key_hash.as_deref(),
            force: add.force.map(|rules| ForceArguments {
                enabled: rules.enabled,
                key_mismatch: rules.key_mismatch,
                disconnected_time: DisconnectedTime {
                    enabled: rules.disconnected_time.is_some(),
                    value: rules.disconnected_time.unwrap_or(0),
                },
                after_registration_time: rules.after_registration_time,
            }),
        }
    }
}

/// What authd answers to a JSON request.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer {
    /// The agent, to [`Request::Add`] and [`Request::Get`].
    Agent(AgentData),
    /// To [`Request::Ensure`].
    Ensured(Ensured),
    /// To [`Request::Remove`].
    Removed,
    /// It was not done.
    Error(ErrorCode),
}

/// What was to be done so that an agent is there as it shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ensured {
    /// There was no agent with its id.
    Added,
    /// There was one with another name, address or key.
    Replaced,
    /// Nothing.
    Unchanged,
}

/// An agent in an answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentData {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its address: to `add` as the request had it, to `get` without prefix.
    pub ip: String,
    /// Its key.
    pub key: String,
}

impl Drop for AgentData {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

const REMOVED: &str = "Agent deleted successfully.";

#[derive(Serialize)]
struct Success<T> {
    error: u16,
    data: T,
}

#[derive(Serialize, Deserialize)]
struct EnsuredData {
    ensured: Ensured,
}

#[derive(Serialize)]
struct Failure<'a> {
    error: u16,
    message: &'a str,
}

/// Why an answer cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Neither data nor error.
    #[error("the answer is not one of authd's")]
    Unreadable,
    /// An error that this build does not know.
    #[error("authd answers: {message} ({code})")]
    UnknownCode {
        /// Its number.
        code: u64,
        /// Its text.
        message: String,
    },
}

impl Answer {
    /// The payload of the answer.
    pub fn to_payload(&self) -> Zeroizing<Vec<u8>> {
        let bytes = match self {
            Self::Agent(agent) => serde_json::to_vec(&Success { error: 0, data: agent }),
            Self::Ensured(ensured) => serde_json::to_vec(&Success {
                error: 0,
                data: EnsuredData { ensured: *ensured },
            }),
            Self::Removed => serde_json::to_vec(&Success {
                error: 0,
                data: REMOVED,
            }),
            Self::Error(code) => serde_json::to_vec(&Failure {
                error: *code as u16,
                message: code.message(),
            }),
        };
        Zeroizing::new(bytes.unwrap_or_default())
    }

    /// Reads the payload of an answer.
    ///
    /// # Errors
    /// The text is not an answer, or an error with an unknown number.
    pub fn parse(payload: &[u8]) -> Result<Self, AnswerError> {
        #[derive(Deserialize)]
        struct Raw {
            error: u64,
            #[serde(default)]
            message: String,
            data: Option<RawData>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum RawData {
            Agent(AgentData),
            Ensured(EnsuredData),
            #[expect(dead_code, reason = "only its presence counts")]
            Text(String),
        }
        let raw: Raw = serde_json::from_slice(payload).map_err(|_| AnswerError::Unreadable)?;
        match (raw.error, raw.data) {
            (0, Some(RawData::Agent(agent))) => Ok(Self::Agent(agent)),
            (0, Some(RawData::Ensured(data))) => Ok(Self::Ensured(data.ensured)),
            (0, Some(RawData::Text(_))) => Ok(Self::Removed),
            (0, None) => Err(AnswerError::Unreadable),
            (code, _) => ErrorCode::from_number(code)
                .map(Self::Error)
                .ok_or(AnswerError::UnknownCode {
                    code,
                    message: raw.message,
                }),
        }
    }
}

impl ErrorCode {
    fn from_number(number: u64) -> Option<Self> {
        const ALL: [ErrorCode; 14] = [
            ErrorCode::Internal,
            ErrorCode::Json,
            ErrorCode::NoFunction,
            ErrorCode::NoArgument,
            ErrorCode::NoName,
            ErrorCode::NoIp,
            ErrorCode::DuplicateIp,
            ErrorCode::DuplicateName,
            ErrorCode::Key,
            ErrorCode::NoId,
            ErrorCode::IdNotFound,
            ErrorCode::DuplicateId,
            ErrorCode::TooManyAgents,
            ErrorCode::InvalidGroups,
        ];
        ALL.into_iter().find(|code| u64::from(*code as u16) == number)
    }
}

#[cfg(test)]
mod tests;
