//! `queue/db/enrollment.db`: since when agents are registered, how they came, their groups, and the outbox of events.
//!
//! `client.keys` is the truth about who has a key; this database is reconciled with it at the start. A change goes into
//! both, the file first, so that a crash in between leaves a line without a row and never a row without a line.

use std::{collections::HashMap, path::Path};

use muster_proto::{agent::AgentId, event::Event};
use muster_service::outbox::{self, OutboxError};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use thiserror::Error;

use crate::change::{Agent, Change};

/// The form of the tables.
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS agents (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        registered_at INTEGER NOT NULL,
        groups TEXT NOT NULL,
        method TEXT NOT NULL
    ) WITHOUT ROWID;
";

/// Why the database did not do as told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// SQLite failed.
    #[error("database failed")]
    Sqlite(#[from] rusqlite::Error),
    /// The outbox failed.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// A later release has been here.
    #[error("the database has form {0}, this release knows {SCHEMA_VERSION}; use the newer release again")]
    TooNew(i64),
}

/// The database.
pub struct Database {
    connection: Connection,
}

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The agent's name when the row was written.
    pub name: String,
    /// Unix seconds; 0 = unknown.
    pub registered_at: i64,
}

impl Database {
    /// Opens or makes it.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        Self::prepare(Connection::open(path)?)
    }

    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Connection::open_in_memory()
            .map_err(DatabaseError::from)
            .and_then(Self::prepare)
            .expect("a database")
    }

    fn prepare(connection: Connection) -> Result<Self, DatabaseError> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(DatabaseError::TooNew(version));
        }
        connection.execute_batch(SCHEMA)?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        outbox::create(&connection)?;
        Ok(Self { connection })
    }

    /// All rows by id.
    pub fn rows(&self) -> Result<HashMap<AgentId, Row>, DatabaseError> {
        let mut statement = self.connection.prepare("SELECT id, name, registered_at FROM agents")?;
        let rows = statement.query_map([], |row| {
            let id: String = row.get(0)?;
            Ok((
                AgentId::new(&id),
                Row {
                    name: row.get(1)?,
                    registered_at: row.get(2)?,
                },
            ))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Puts changes and events into a transaction that is still to be committed.
    pub fn stage(&mut self, changes: &[Change], events: &[Event]) -> Result<Transaction<'_>, DatabaseError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for change in changes {
            match change {
                Change::Enrolled(agent) | Change::KeyRotated(agent) | Change::Renamed(agent) => {
                    upsert(&transaction, agent)?
                }
                Change::Removed { agent, .. } => delete(&transaction, &agent.id)?,
            }
        }
        for event in events {
            outbox::append(&transaction, event)?;
        }
        Ok(transaction)
    }

    /// Makes rows without a word to anybody.
    pub fn import(&mut self, missing: &[Agent]) -> Result<(), DatabaseError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        missing.iter().try_for_each(|agent| upsert(&transaction, agent))?;
        Ok(transaction.commit()?)
    }
}

fn upsert(database: &Connection, agent: &Agent) -> Result<(), DatabaseError> {
    database
        .prepare_cached(
            "INSERT INTO agents (id, name, registered_at, groups, method) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET name = ?2, registered_at = ?3, groups = ?4, method = ?5",
        )?
        .execute(params![
            agent.id.as_str(),
            agent.name,
            agent.registered_at,
            agent.groups.join(","),
            agent.method.as_str()
        ])?;
    Ok(())
}

fn delete(database: &Connection, id: &AgentId) -> Result<(), DatabaseError> {
    database
        .prepare_cached("DELETE FROM agents WHERE id = ?1")?
        .execute([id.as_str()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{change::Removal, registry::Method};

    fn agent(id: &str, registered_at: i64) -> Agent {
        Agent {
            id: AgentId::new(id),
            name: format!("n{id}"),
            address: "any".to_owned(),
            registered_at,
            groups: vec!["g1".to_owned(), "g2".to_owned()],
            method: Method::Local,
            reason: "new",
            replaced: None,
        }
    }

    fn commit(database: &mut Database, changes: &[Change]) {
        database
            .stage(changes, &[])
            .expect("staged")
            .commit()
            .expect("committed");
    }

    #[test]
    fn a_row_replaced_under_the_same_id_stays() {
        let mut database = Database::in_memory();
        commit(&mut database, &[Change::Enrolled(agent("050", 1))]);
        commit(
            &mut database,
            &[
                Change::Removed {
                    agent: agent("050", 1),
                    reason: Removal::Replaced,
                },
                Change::KeyRotated(agent("050", 2)),
            ],
        );
        let rows = database.rows().expect("rows");
        assert_eq!(
            rows[&AgentId::new("050")],
            Row {
                name: "n050".to_owned(),
                registered_at: 2
            }
        );
    }

    #[test]
    fn what_is_staged_and_not_committed_is_not_there() {
        let mut database = Database::in_memory();
        drop(
            database
                .stage(&[Change::Enrolled(agent("001", 1))], &[])
                .expect("staged"),
        );
        assert!(database.rows().expect("rows").is_empty());
    }

    #[test]
    fn a_database_of_a_newer_release_is_not_touched() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("enrollment.db");
        drop(Database::open(&path).expect("made"));
        Connection::open(&path)
            .expect("opened")
            .pragma_update(None, "user_version", 9)
            .expect("set");
        assert!(matches!(Database::open(&path), Err(DatabaseError::TooNew(9))));
    }
}
