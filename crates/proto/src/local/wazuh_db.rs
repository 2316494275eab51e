//! What a remoted among stock daemons tells wazuh-db, and asks it, at `queue/db/wdb`: one command and one answer after
//! the other on a connection, each behind a u32 little-endian length.
//!
//! ```text
//! global <command> <argument> NUL     ->  ok ..   err ..   due ..   ign ..      (without NUL)
//! ```
//!
//! The API, the dashboard, `agent_control` and monitord read the rows that these commands write.
//!
//! **Invariant:** order and form of the members are those of stock.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use serde::{Deserialize, Serialize};

use crate::transport::keepalive::Fields;

/// The longest command, its NUL included, and the longest answer.
pub const MAX_FRAME_LEN: usize = 65_536;
/// What a row says about its place in a cluster. Ours is not in one.
const SYNCED: &str = "synced";

/// All agents that are not known to be away become disconnected: said when remoted starts.
pub const RESET: &str = "global reset-agents-connection synced";

/// The word in `connection_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// It said hello, and no more so far.
    Pending,
    /// It is there.
    Active,
    /// It is not.
    Disconnected,
}

/// The number in `status_code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusCode {
    /// Its version is too high.
    InvalidVersion,
    /// It did not say its version.
    NoVersion,
    /// It said goodbye.
    Shutdown,
    /// It was silent for too long.
    NoKeepalive,
}

impl StatusCode {
    fn number(self) -> u8 {
        match self {
            Self::InvalidVersion => 1,
            Self::NoVersion => 2,
            Self::Shutdown => 3,
            Self::NoKeepalive => 4,
        }
    }
}

/// The agent was heard, and there is nothing else to be said.
pub fn update_keepalive(id: u32, status: Connection) -> String {
    #[derive(Serialize)]
    struct Argument {
        id: u32,
        connection_status: Connection,
        sync_status: &'static str,
    }
    command(
        "update-keepalive",
        &Argument {
            id,
            connection_status: status,
            sync_status: SYNCED,
        },
    )
}

/// The agent is gone.
pub fn update_connection_status(id: u32, status: Connection, code: StatusCode) -> String {
    #[derive(Serialize)]
    struct Argument {
        id: u32,
        connection_status: Connection,
        sync_status: &'static str,
        status_code: u8,
    }
    command(
        "update-connection-status",
        &Argument {
            id,
            connection_status: status,
            sync_status: SYNCED,
            status_code: code.number(),
        },
    )
}

/// The agent was refused. `version` is what it said of itself: `v4.15.0`.
pub fn update_status_code(id: u32, code: StatusCode, version: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Argument {
        id: u32,
        status_code: u8,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        sync_status: &'static str,
    }
    const PRODUCT: &str = "Wazuh ";
    let version = version.map(|version| format!("{PRODUCT}{}", version.strip_prefix(PRODUCT).unwrap_or(version)));
    command(
        "update-status-code",
        &Argument {
            id,
            status_code: code.number(),
            version,
            sync_status: SYNCED,
        },
    )
}

/// Who writes a row, as it stands in it.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'m> {
    /// The machine.
    pub host: &'m str,
    /// Its name in the cluster.
    pub node: &'m str,
}

/// All that a keepalive says, which makes the agent active.
pub fn update_agent_data(id: u32, said: &Fields<'_>, manager: Manager<'_>, synced: bool) -> String {
    #[derive(Serialize)]
    struct Argument<'a> {
        id: u32,
        #[serde(flatten)]
        sums: Sums<'a>,
        manager_host: &'a str,
        node_name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        agent_ip: Option<&'a str>,
        labels: String,
        connection_status: Connection,
        sync_status: &'static str,
        group_config_status: &'static str,
        #[serde(flatten)]
        os: Os<'a>,
    }
    let mut argument = Argument {
        id,
        sums: Sums::of(said),
        manager_host: manager.host,
        node_name: manager.node,
        agent_ip: said.agent_ip,
        labels: labels(said, manager),
        connection_status: Connection::Active,
        sync_status: SYNCED,
        group_config_status: if synced { SYNCED } else { "not synced" },
        os: Os::of(said),
    };
    let text = command("update-agent-data", &argument);
    if text.len() < MAX_FRAME_LEN {
        return text;
    }
    // Labels are what can be so long; the rest counts more.
    argument.labels = own_labels(said, manager).join("\n");
    command("update-agent-data", &argument)
}

#[derive(Serialize)]
struct Sums<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_sum: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged_sum: Option<&'a str>,
}

impl<'a> Sums<'a> {
    fn of(said: &Fields<'a>) -> Self {
        Self {
            version: said.version,
            config_sum: said.config_sum,
            merged_sum: said.merged_sum,
        }
    }
}

#[derive(Serialize)]
struct Os<'a> {
    #[serde(rename = "os_name", skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(rename = "os_version", skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(rename = "os_major", skip_serializing_if = "Option::is_none")]
    major: Option<&'a str>,
    #[serde(rename = "os_minor", skip_serializing_if = "Option::is_none")]
    minor: Option<&'a str>,
    #[serde(rename = "os_codename", skip_serializing_if = "Option::is_none")]
    codename: Option<&'a str>,
    #[serde(rename = "os_platform", skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
    #[serde(rename = "os_build", skip_serializing_if = "Option::is_none")]
    build: Option<&'a str>,
    #[serde(rename = "os_uname", skip_serializing_if = "Option::is_none")]
    uname: Option<&'a str>,
    #[serde(rename = "os_arch", skip_serializing_if = "Option::is_none")]
    arch: Option<&'a str>,
}

impl<'a> Os<'a> {
    fn of(said: &Fields<'a>) -> Self {
        Self {
            name: said.os_name,
            version: said.os_version,
            major: said.os_major,
            minor: said.os_minor,
            codename: said.os_codename,
            platform: said.os_platform,
            build: said.os_build,
            uname: said.os_uname,
            arch: said.os_arch,
        }
    }
}

/// The agent's labels, and the manager's behind them.
fn labels(said: &Fields<'_>, manager: Manager<'_>) -> String {
    let agents = said.labels.iter().map(|label| (*label).to_owned());
    agents.chain(own_labels(said, manager)).collect::<Vec<_>>().join("\n")
}

fn own_labels(said: &Fields<'_>, manager: Manager<'_>) -> Vec<String> {
    let label = |key: &str, value: &str| format!("#\"_{key}\":{value}");
    let mut labels = vec![label("manager_hostname", manager.host)];
    labels.extend(said.agent_ip.map(|ip| label("agent_ip", ip)));
    labels.push(label("node_name", manager.node));
    labels.extend(said.version.map(|version| label("wazuh_version", version)));
    labels
}

/// Which groups an agent has.
pub fn select_agent_group(id: u32) -> String {
    format!("global select-agent-group {id}")
}

/// Gives a group to an agent that has none; one that has some keeps them.
pub fn set_first_group(id: u32, group: &str) -> String {
    #[derive(Serialize)]
    struct Argument<'a> {
        mode: &'static str,
        sync_status: &'static str,
        data: [Member<'a>; 1],
    }
    #[derive(Serialize)]
    struct Member<'a> {
        id: u32,
        groups: [&'a str; 1],
    }
    command(
        "set-agent-groups",
        &Argument {
            mode: "empty_only",
            sync_status: SYNCED,
            data: [Member { id, groups: [group] }],
        },
    )
}

fn command(name: &str, argument: &impl Serialize) -> String {
    let json = serde_json::to_string(argument).unwrap_or_default();
    format!("global {name} {json}")
}

/// A command as it goes over the socket; `None` if it is too long.
pub fn frame(command: &str) -> Option<Vec<u8>> {
    let length = command.len().checked_add(1).filter(|length| *length <= MAX_FRAME_LEN)?;
    let header = u32::try_from(length).ok()?.to_le_bytes();
    let mut frame = header.to_vec();
    frame.extend_from_slice(command.as_bytes());
    frame.push(0);
    Some(frame)
}

/// How long the answer is; `None` if no answer is so long.
pub fn answer_len(header: [u8; 4]) -> Option<usize> {
    let length = usize::try_from(u32::from_le_bytes(header)).ok()?;
    (length <= MAX_FRAME_LEN).then_some(length)
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Done; what follows is what was asked for.
    Ok(&'a str),
    /// Not done, and why.
    Refused(&'a str),
}

impl<'a> Answer<'a> {
    /// Reads the payload of a frame.
    pub fn parse(payload: &'a [u8]) -> Self {
        let end = memchr::memchr(0, payload).unwrap_or(payload.len());
        let text = payload.get(..end).and_then(|text| std::str::from_utf8(text).ok());
        let Some(text) = text else {
            return Self::Refused("an answer that is no text");
        };
        match text.split_once(' ').unwrap_or((text, "")) {
            ("ok" | "ign" | "due", rest) => Self::Ok(rest),
            ("err", why) => Self::Refused(why),
            _ => Self::Refused(text),
        }
    }
}

/// What is known of an agent's groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// The agent has no row.
    NoRow,
    /// It has none.
    None,
    /// These, in their order.
    Groups(Vec<String>),
}

impl Membership {
    /// Reads what [`select_agent_group`] is answered; `None` if it is something else.
    pub fn parse(rows: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Row {
            group: Option<String>,
        }
        let rows: Vec<Row> = serde_json::from_str(rows).ok()?;
        let Some(row) = rows.into_iter().next() else {
            return Some(Self::NoRow);
        };
        let groups: Vec<String> = row
            .group
            .as_deref()
            .unwrap_or_default()
            .split(',')
            .filter(|group| !group.is_empty())
            .map(str::to_owned)
            .collect();
        Some(if groups.is_empty() {
            Self::None
        } else {
            Self::Groups(groups)
        })
    }
}

#[cfg(test)]
mod tests;
