//! `queue/db/enrollment.db`: since when agents are registered, how they came, their groups, and the outbox of events.
//!
//! `client.keys` is the truth about who has a key; this database is reconciled with it at the start. A change goes into
//! both, the file first, so that a crash in between leaves a line without a row and never a row without a line.

use std::{collections::HashMap, path::Path};

use muster_proto::{
    agent::AgentId,
    enrollment::{Rejection, group},
    event::Event,
    ipc::control::{AgentGroups, GroupMode},
};
use muster_service::outbox::{self, OutboxError};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use thiserror::Error;

use crate::{
    change::{Agent, Change},
    groups,
    leases::Block,
};

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
    CREATE TABLE IF NOT EXISTS id_blocks (
        first INTEGER PRIMARY KEY,
        count INTEGER NOT NULL
    );
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
    /// An agent would be in too many groups.
    #[error("agent {0} would be in more than {max} groups", max = group::MAX_GROUPS)]
    TooManyGroups(AgentId),
}

/// Bytes of groups in one page, so that it fits a frame whatever their names are.
const MAX_PAGE_BYTES: usize = 1024 * 1024;

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

    /// The groups of at most `limit` agents behind `after`, by id as text, and whether more follow.
    pub fn groups(&self, after: Option<&AgentId>, limit: usize) -> Result<(Vec<AgentGroups>, bool), DatabaseError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, groups FROM agents WHERE id > ?1 ORDER BY id")?;
        let mut rows = statement.query([after.map_or("", AgentId::as_str)])?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            if page.len() == limit || bytes > MAX_PAGE_BYTES {
                return Ok((page, true));
            }
            let list = row.get_ref(1)?.as_str().unwrap_or_default();
            bytes += list.len();
            page.push(AgentGroups {
                id: AgentId::new(row.get_ref(0)?.as_str().unwrap_or_default()),
                groups: group::distinct(list),
            });
        }
        Ok((page, false))
    }

    /// Changes the groups of agents, all or none. Gives what they have then; those that have no row are left out.
    pub fn set_groups(
        &mut self,
        agents: &[AgentId],
        named: &[String],
        mode: GroupMode,
    ) -> Result<Vec<AgentGroups>, DatabaseError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut after = Vec::with_capacity(agents.len());
        for id in agents {
            let list = transaction
                .prepare_cached("SELECT groups FROM agents WHERE id = ?1")?
                .query_row([id.as_str()], |row| row.get::<_, String>(0))
                .optional()?;
            let Some(list) = list else { continue };
            let current = group::distinct(&list);
            let groups = groups::change(&current, named, mode)
                .map_err(|_: Rejection| DatabaseError::TooManyGroups(id.clone()))?;
            if groups != current {
                transaction
                    .prepare_cached("UPDATE agents SET groups = ?2 WHERE id = ?1")?
                    .execute(params![id.as_str(), groups.join(",")])?;
            }
            after.push(AgentGroups { id: id.clone(), groups });
        }
        transaction.commit()?;
        Ok(after)
    }

    /// Puts changes and events into a transaction that is still to be committed.
    pub fn stage(&mut self, changes: &[Change], events: &[Event]) -> Result<Transaction<'_>, DatabaseError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for change in changes {
            match change {
                Change::Enrolled(agent) => upsert(&transaction, agent, OldGroups::Go)?,
                Change::KeyRotated(agent) | Change::Renamed(agent) => upsert(&transaction, agent, OldGroups::Stay)?,
                Change::Removed { agent, .. } => delete(&transaction, &agent.id)?,
            }
        }
        for event in events {
            outbox::append(&transaction, event)?;
        }
        Ok(transaction)
    }

    /// The blocks of ids that are ours alone, in their order.
    pub fn blocks(&self) -> Result<Vec<Block>, DatabaseError> {
        let mut statement = self
            .connection
            .prepare("SELECT first, count FROM id_blocks ORDER BY first")?;
        let blocks = statement.query_map([], |row| {
            Ok(Block {
                first: row.get(0)?,
                count: row.get(1)?,
            })
        })?;
        Ok(blocks.collect::<Result<_, _>>()?)
    }

    /// One more.
    pub fn add_block(&self, block: Block) -> Result<(), DatabaseError> {
        self.connection.execute(
            "INSERT INTO id_blocks (first, count) VALUES (?1, ?2)",
            params![block.first, block.count],
        )?;
        Ok(())
    }

    /// Makes rows without a word to anybody.
    pub fn import(&mut self, missing: &[Agent]) -> Result<(), DatabaseError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        missing
            .iter()
            .try_for_each(|agent| upsert(&transaction, agent, OldGroups::Go))?;
        Ok(transaction.commit()?)
    }
}

/// What becomes of the groups of a row that is there, when the change names none.
#[derive(Clone, Copy)]
enum OldGroups {
    /// It is the same agent.
    Stay,
    /// It is another one.
    Go,
}

fn upsert(database: &Connection, agent: &Agent, old: OldGroups) -> Result<(), DatabaseError> {
    let statement = match old {
        OldGroups::Go => {
            "INSERT INTO agents (id, name, registered_at, groups, method) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET name = ?2, registered_at = ?3, groups = ?4, method = ?5"
        }
        OldGroups::Stay => {
            "INSERT INTO agents (id, name, registered_at, groups, method) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET name = ?2, registered_at = ?3, method = ?5,
             groups = CASE WHEN ?4 = '' THEN groups ELSE ?4 END"
        }
    };
    database.prepare_cached(statement)?.execute(params![
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

    fn ids(ids: &[&str]) -> Vec<AgentId> {
        ids.iter().map(|id| AgentId::new(id)).collect()
    }

    fn groups_of(database: &Database, id: &str) -> String {
        let (agents, _) = database.groups(None, 100).expect("groups");
        let found = agents.into_iter().find(|agent| agent.id.as_str() == id);
        found.map_or_else(|| "none".to_owned(), |agent| agent.groups.join(","))
    }

    #[test]
    fn groups_are_changed_for_all_or_none_and_unknown_agents_are_left_out() {
        let mut database = Database::in_memory();
        commit(
            &mut database,
            &[Change::Enrolled(agent("001", 1)), Change::Enrolled(agent("002", 1))],
        );
        let set = |database: &mut Database, agents: &[&str], groups: &[&str], mode| {
            let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
            database.set_groups(&ids(agents), &groups, mode)
        };
        let answer = set(&mut database, &["001", "999"], &["web"], GroupMode::Override).expect("set");
        assert_eq!(answer.len(), 1);
        assert_eq!(
            (groups_of(&database, "001"), groups_of(&database, "002")),
            ("web".to_owned(), "g1,g2".to_owned())
        );
        let answer = set(&mut database, &["001", "002"], &["default"], GroupMode::EmptyOnly).expect("set");
        assert_eq!(answer[0].groups, ["web"]);

        let many: Vec<_> = (0..127).map(|number| format!("n{number}")).collect();
        let error = database.set_groups(&ids(&["001", "002"]), &many, GroupMode::Append);
        assert!(matches!(error, Err(DatabaseError::TooManyGroups(id)) if id.as_str() == "002"));
        assert_eq!(groups_of(&database, "001"), "web");
    }

    #[test]
    fn an_agent_that_gets_another_name_or_key_keeps_its_groups() {
        let mut database = Database::in_memory();
        let without = |id| Agent {
            groups: Vec::new(),
            ..agent(id, 2)
        };
        commit(
            &mut database,
            &[Change::Enrolled(agent("001", 1)), Change::Enrolled(agent("002", 1))],
        );
        commit(
            &mut database,
            &[Change::Renamed(without("001")), Change::Enrolled(without("002"))],
        );
        assert_eq!(
            (groups_of(&database, "001"), groups_of(&database, "002")),
            ("g1,g2".to_owned(), String::new())
        );
    }

    #[test]
    fn pages_follow_each_other_by_id() {
        let mut database = Database::in_memory();
        let changes: Vec<_> = ["003", "001", "1000", "002"]
            .map(|id| Change::Enrolled(agent(id, 1)))
            .into();
        commit(&mut database, &changes);
        let (first, more) = database.groups(None, 3).expect("a page");
        assert_eq!(
            first.iter().map(|agent| agent.id.as_str()).collect::<Vec<_>>(),
            ["001", "002", "003"]
        );
        assert!(more);
        let (second, more) = database.groups(Some(&AgentId::new("003")), 3).expect("a page");
        assert_eq!((second[0].id.as_str(), more), ("1000", false));
        assert_eq!(database.groups(None, 0).expect("none").0, []);
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
