//! What the store keeps of an agent.

use std::{net::SocketAddr, sync::Arc};

use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    ipc::control::OsInfo,
    transport::envelope::CryptoForm,
};
use rusqlite::{Row as SqlRow, types::Type};
use serde::{Deserialize, Serialize};

use crate::{
    roster::agent::{Inventory, SharedState},
    slot::Protocol,
};

/// An agent as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its id.
    pub id: AgentId,
    /// Its name; another name under the same id is another agent.
    pub name: Arc<str>,
    /// What changes with every keepalive.
    pub liveness: LivenessRow,
    /// What it says of itself; `None` leaves what the store has.
    pub inventory: Option<Arc<Inventory>>,
}

/// Whether an agent is there, in Unix milliseconds; 0 = never.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LivenessRow {
    /// Its status.
    pub status: AgentStatus,
    /// Its last status that was not pending.
    pub settled: AgentStatus,
    /// Why it has that status.
    pub reason: Option<Reason>,
    /// Since when.
    pub since_ms: u64,
    /// When its key was first seen.
    pub first_seen_ms: u64,
    /// When it was last heard.
    pub heard_ms: u64,
    /// When its last keepalive came.
    pub keepalive_ms: u64,
    /// When ours was last sent.
    pub sent_ms: u64,
    /// Intervals missed when it was given up.
    pub missed: u32,
    /// The level of its last change.
    pub level: u8,
    /// How often its absence was said again.
    pub escalations: u8,
    /// The period of its keepalives; 0 = not known.
    pub period_ms: u64,
    /// Where it talks from.
    pub peer: Option<SocketAddr>,
    /// Over what.
    pub protocol: Option<Protocol>,
    /// How it seals its messages.
    pub form: CryptoForm,
}

impl LivenessRow {
    /// Whether the other one says the same but for the times of what was heard and sent.
    pub(super) fn differs_in_times_only(&self, other: &Self) -> bool {
        let Self {
            heard_ms,
            keepalive_ms,
            sent_ms,
            period_ms,
            ..
        } = *other;
        *other
            == Self {
                heard_ms,
                keepalive_ms,
                sent_ms,
                period_ms,
                ..*self
            }
    }
}

/// The inventory's columns that are lists or trees, as JSON, so that people can read them with the sqlite3 tool.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    os: Option<OsInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    /// `synced` or `not synced`
    #[serde(skip_serializing_if = "Option::is_none")]
    group_config_status: Option<String>,
}

impl Details {
    pub(super) fn json(inventory: &Inventory) -> String {
        let details = Self {
            os: inventory.os.clone(),
            labels: inventory.labels.clone(),
            groups: inventory.shared.groups.clone(),
            group_config_status: inventory.shared.word().map(str::to_owned),
        };
        serde_json::to_string(&details).unwrap_or_default()
    }
}

/// The columns of [`read`], in its order.
pub(super) const COLUMNS: &str = "agent.id, name, version, merged_sum, config_sum, reported_ip, details, status, settled, \
     reason, since_ms, first_seen_ms, heard_ms, keepalive_ms, sent_ms, missed, level, escalations, period_ms, peer, \
     protocol, form";

pub(super) fn read(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let details: Details = row
        .get_ref(6)?
        .as_str()
        .ok()
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let inventory = Inventory {
        version: row.get(2)?,
        os: details.os,
        labels: details.labels,
        merged_sum: row.get(3)?,
        config_sum: row.get(4)?,
        reported_ip: row.get(5)?,
        shared: SharedState {
            groups: details.groups,
            synced: details.group_config_status.map(|word| word == "synced"),
        },
    };
    Ok(Row {
        id: AgentId::new(row.get_ref(0)?.as_str()?),
        name: row.get_ref(1)?.as_str()?.into(),
        inventory: Some(Arc::new(inventory)),
        liveness: LivenessRow {
            status: status(row, 7)?,
            settled: status(row, 8)?,
            reason: row.get_ref(9)?.as_str_or_null()?.and_then(Reason::from_word),
            since_ms: time(row, 10)?,
            first_seen_ms: time(row, 11)?,
            heard_ms: time(row, 12)?,
            keepalive_ms: time(row, 13)?,
            sent_ms: time(row, 14)?,
            missed: row.get(15)?,
            level: row.get(16)?,
            escalations: row.get(17)?,
            period_ms: time(row, 18)?,
            peer: row.get_ref(19)?.as_str_or_null()?.and_then(|peer| peer.parse().ok()),
            protocol: row.get_ref(20)?.as_str_or_null()?.and_then(protocol),
            form: CryptoForm::from_word(row.get_ref(21)?.as_str()?).unwrap_or(CryptoForm::Blowfish),
        },
    })
}

fn status(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<AgentStatus> {
    let word = row.get_ref(column)?.as_str()?;
    (0..4)
        .filter_map(AgentStatus::from_code)
        .find(|status| status.as_str() == word)
        .ok_or_else(|| {
            rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("no status: {word}").into())
        })
}

fn time(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn protocol(word: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.as_str() == word)
}
