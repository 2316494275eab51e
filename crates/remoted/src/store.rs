//! `queue/db/agents.db`: the roster as it survives a restart, and the outbox of events that natsd has not taken yet.
//!
//! **Invariant:** a change of status and the event that tells of it are written in one transaction, which is on the
//! disk when [`Store::write`] returns. What only says that an agent was heard may be lost in a power cut: nobody is
//! disconnected for it, since a restart gives everybody a whole time-out.

mod row;
mod writer;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::{agent::AgentId, event::Event};
use muster_service::{clock, outbox};
use rusqlite::{Connection, ErrorCode, Transaction, params};
use thiserror::Error;

pub use self::{
    row::{LivenessRow, Row},
    writer::{Writer, WriterStatus},
};

/// The layout of the tables that this build writes.
const SCHEMA_VERSION: i32 = 1;
/// How long a write waits for the outbox's sender, which deletes what natsd has taken.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    CREATE TABLE agent (
        place INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        version TEXT,
        merged_sum TEXT,
        config_sum TEXT,
        reported_ip TEXT,
        details TEXT NOT NULL DEFAULT '{}'
    );
    -- Apart from the rest, because it is written with every keepalive: narrow rows make few pages.
    CREATE TABLE liveness (
        place INTEGER PRIMARY KEY REFERENCES agent ON DELETE CASCADE,
        status TEXT NOT NULL,
        settled TEXT NOT NULL,
        reason TEXT,
        since_ms INTEGER NOT NULL,
        first_seen_ms INTEGER NOT NULL,
        heard_ms INTEGER NOT NULL,
        keepalive_ms INTEGER NOT NULL,
        sent_ms INTEGER NOT NULL,
        missed INTEGER NOT NULL,
        level INTEGER NOT NULL,
        escalations INTEGER NOT NULL,
        period_ms INTEGER NOT NULL,
        peer TEXT,
        protocol TEXT,
        form TEXT NOT NULL
    );
";

/// Why the store did not do as told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database failed.
    #[error("{0}: database failed")]
    Database(PathBuf, #[source] rusqlite::Error),
    /// The outbox failed.
    #[error("{0}: outbox failed")]
    Outbox(PathBuf, #[source] outbox::OutboxError),
    /// A newer release wrote it.
    #[error(
        "{path} was written by a newer release (layout {found}, this one knows {SCHEMA_VERSION}); upgrade, or move it away to begin anew"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its layout.
        found: i32,
    },
    /// A broken database could not be moved out of the way.
    #[error("cannot move the broken {0} aside")]
    MoveAside(PathBuf, #[source] io::Error),
}

/// The database, opened for its one writer.
pub struct Store {
    database: Connection,
    path: PathBuf,
    places: HashMap<AgentId, Stored>,
}

/// What the database has of an agent.
struct Stored {
    place: i64,
    liveness: LivenessRow,
}

/// What was found on opening.
pub struct Opened {
    /// The database.
    pub store: Store,
    /// Every agent in it.
    pub rows: Vec<Row>,
    /// Where a broken one was moved to, if the one in use is a new one in its place.
    pub moved_aside: Option<PathBuf>,
}

/// What is written in one transaction.
#[derive(Default)]
pub struct Batch {
    /// Agents that changed.
    pub rows: Vec<Row>,
    /// Agents that are gone.
    pub gone: Vec<AgentId>,
    /// Events that tell of it, in order.
    pub events: Vec<Event>,
}

impl Store {
    /// Opens the database, or makes it. A broken one is moved aside, and a new one takes its place: a manager that
    /// does not start because of it would be worse than one that has to learn its agents anew.
    pub fn open(path: &Path) -> Result<Opened, StoreError> {
        match Self::open_as_it_is(path) {
            Err(StoreError::Database(_, error) | StoreError::Outbox(_, outbox::OutboxError::Database(error)))
                if is_broken(&error) =>
            {
                let aside = move_aside(path).map_err(|error| StoreError::MoveAside(path.to_owned(), error))?;
                tracing::error!(%error, path = %path.display(), moved_to = %aside.display(), "store of agents is broken: beginning anew");
                Ok(Opened {
                    moved_aside: Some(aside),
                    ..Self::open_as_it_is(path)?
                })
            }
            opened => opened,
        }
    }

    fn open_as_it_is(path: &Path) -> Result<Opened, StoreError> {
        let failed = |error| StoreError::Database(path.to_owned(), error);
        let database = Connection::open(path).map_err(failed)?;
        let found = prepare(&database).map_err(failed)?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found,
            });
        }
        outbox::create(&database).map_err(|error| StoreError::Outbox(path.to_owned(), error))?;
        let (rows, places) = load(&database).map_err(failed)?;
        let store = Self {
            database,
            path: path.to_owned(),
            places,
        };
        Ok(Opened {
            store,
            rows,
            moved_aside: None,
        })
    }

    /// Writes a batch: all of it or nothing.
    pub fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.write_rows(batch).map_err(|error| match error {
            outbox::OutboxError::Database(error) => StoreError::Database(self.path.clone(), error),
            error => StoreError::Outbox(self.path.clone(), error),
        })
    }

    fn write_rows(&mut self, batch: &Batch) -> Result<(), outbox::OutboxError> {
        // An event must be on the disk before anybody hears of it; that an agent was heard need not be.
        let durable = if batch.events.is_empty() { "NORMAL" } else { "FULL" };
        self.database.pragma_update(None, "synchronous", durable)?;
        let transaction = self
            .database
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for id in &batch.gone {
            transaction
                .prepare_cached("DELETE FROM agent WHERE id = ?1")?
                .execute([id.as_str()])?;
        }
        let mut places = Vec::with_capacity(batch.rows.len());
        for row in &batch.rows {
            let known = self.places.get(&row.id).filter(|_| !batch.gone.contains(&row.id));
            let place = write_agent(&transaction, row, known.map(|stored| stored.place))?;
            match known {
                Some(stored) if stored.liveness.differs_in_times_only(&row.liveness) => {
                    write_times(&transaction, place, &row.liveness)?;
                }
                _ => write_liveness(&transaction, place, &row.liveness)?,
            }
            places.push(place);
        }
        for event in &batch.events {
            outbox::append(&transaction, event)?;
        }
        transaction.commit()?;
        for id in &batch.gone {
            self.places.remove(id);
        }
        for (row, place) in batch.rows.iter().zip(places) {
            let liveness = row.liveness;
            match self.places.get_mut(&row.id) {
                Some(stored) => *stored = Stored { place, liveness },
                None => drop(self.places.insert(row.id.clone(), Stored { place, liveness })),
            }
        }
        Ok(())
    }

    /// Brings everything from the log into the database file, so that the next start is quick.
    pub fn close(self) -> Result<(), StoreError> {
        let Self { database, path, .. } = self;
        database
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .and_then(|()| database.close().map_err(|(_, error)| error))
            .map_err(|error| StoreError::Database(path, error))
    }
}

/// Makes the tables, and gives the layout that was found.
fn prepare(database: &Connection) -> rusqlite::Result<i32> {
    database.busy_timeout(BUSY_DEADLINE)?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "foreign_keys", true)?;
    database.set_prepared_statement_cache_capacity(32);
    let found = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found == 0 {
        database.execute_batch(&format!(
            "BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        ))?;
    }
    Ok(found)
}

fn load(database: &Connection) -> rusqlite::Result<(Vec<Row>, HashMap<AgentId, Stored>)> {
    let mut statement = database.prepare(&format!(
        "SELECT {}, place FROM agent JOIN liveness USING (place)",
        row::COLUMNS
    ))?;
    let mut found = statement.query([])?;
    let (mut rows, mut places) = (Vec::new(), HashMap::new());
    while let Some(sql) = found.next()? {
        match row::read(sql) {
            Ok(row) => {
                let stored = Stored {
                    place: sql.get("place")?,
                    liveness: row.liveness,
                };
                places.insert(row.id.clone(), stored);
                rows.push(row);
            }
            // One agent that cannot be read is learned anew; it is not worth the others.
            Err(error @ (rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..))) => {
                tracing::warn!(%error, "an agent in the store cannot be read and is learned anew");
            }
            Err(error) => return Err(error),
        }
    }
    Ok((rows, places))
}

fn write_agent(transaction: &Transaction<'_>, row: &Row, known: Option<i64>) -> rusqlite::Result<i64> {
    let Some(inventory) = &row.inventory else {
        return match known {
            Some(place) => Ok(place),
            None => transaction
                .prepare_cached(
                    "INSERT INTO agent (id, name) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET name = ?2 RETURNING place",
                )?
                .query_row(params![row.id.as_str(), row.name], |row| row.get(0)),
        };
    };
    let details = row::Details::json(inventory);
    if let Some(place) = known {
        // By its place: that needs no look at the index of ids.
        let written = transaction
            .prepare_cached(
                "UPDATE agent SET name = ?2, version = ?3, merged_sum = ?4, config_sum = ?5, reported_ip = ?6, details = ?7
                 WHERE place = ?1",
            )?
            .execute(params![
                place,
                row.name,
                inventory.version,
                inventory.merged_sum,
                inventory.config_sum,
                inventory.reported_ip,
                details,
            ])?;
        if written == 1 {
            return Ok(place);
        }
    }
    transaction
        .prepare_cached(
            "INSERT INTO agent (id, name, version, merged_sum, config_sum, reported_ip, details)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET name = ?2, version = ?3, merged_sum = ?4, config_sum = ?5,
             reported_ip = ?6, details = ?7 RETURNING place",
        )?
        .query_row(
            params![
                row.id.as_str(),
                row.name,
                inventory.version,
                inventory.merged_sum,
                inventory.config_sum,
                inventory.reported_ip,
                details,
            ],
            |row| row.get(0),
        )
}

fn write_liveness(transaction: &Transaction<'_>, place: i64, row: &LivenessRow) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO liveness VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?
        .execute(params![
            place,
            row.status.as_str(),
            row.settled.as_str(),
            row.reason.map(|reason| reason.as_str()),
            time(row.since_ms),
            time(row.first_seen_ms),
            time(row.heard_ms),
            time(row.keepalive_ms),
            time(row.sent_ms),
            row.missed,
            row.level,
            row.escalations,
            time(row.period_ms),
            row.peer.map(|peer| peer.to_string()),
            row.protocol.map(|protocol| protocol.as_str()),
            row.form.as_str(),
        ])?;
    Ok(())
}

/// What nearly every keepalive changes, and nothing else.
fn write_times(transaction: &Transaction<'_>, place: i64, row: &LivenessRow) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "UPDATE liveness SET heard_ms = ?2, keepalive_ms = ?3, sent_ms = ?4, period_ms = ?5 WHERE place = ?1",
        )?
        .execute(params![
            place,
            time(row.heard_ms),
            time(row.keepalive_ms),
            time(row.sent_ms),
            time(row.period_ms),
        ])?;
    Ok(())
}

fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn is_broken(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Renames the database and what belongs to it; the outbox's sender must not run yet.
fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let with = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let aside = with(&format!(".broken-{}", clock::unix_s()));
    fs::rename(path, &aside)?;
    for ending in ["-wal", "-shm"] {
        match fs::rename(with(ending), with(&format!(".broken-{}{ending}", clock::unix_s()))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests;
