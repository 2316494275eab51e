//! Events on their way to natsd, kept in the daemon's own database until natsd has made them durable.
//!
//! **Invariant:** [`append`] is called in the same transaction as the change that the event tells of, so that after a
//! crash there is either both or neither. A row is deleted only when natsd says that it has the event; an event that
//! is sent twice is spooled once, because its number never changes.
//!
//! When natsd stays away, the outbox grows to [`Bound`]. Beyond it, the oldest keepalives, key look-ups (which strangers
//! can cause), archived log lines and osquery logs are dropped first and counted; status changes, enrollments and all
//! other events are never dropped, so an outbox of nothing but those grows until the disk is full. An event that is larger
//! than any message may be is not kept at all: it is counted, and named in the log.
//!
//! ```
//! use muster_proto::event::{Event, Kind};
//! use muster_service::outbox;
//!
//! let mut database = rusqlite::Connection::open_in_memory()?;
//! outbox::create(&database)?;
//! let change = database.transaction()?;
//! // … the change itself …
//! # let event = Event { kind: Kind::Health, subject_key: String::new(), created_ms: 0, alert_level: 0,
//! #     body: Vec::new(), headers: Vec::new() };
//! let number = outbox::append(&change, &event)?;
//! change.commit()?;
//! assert_eq!(number, 1);
//! // Behind the commit: outbox::Sender::wake.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod sender;
mod traced;

use muster_proto::{
    event::{Event, Kind, body::MAX_BODY_LEN},
    ipc::{VERSION, codec, events::NumberedEvent},
};
use rusqlite::{Connection, OptionalExtension, params};
use thiserror::Error;

use self::traced::Traced;
pub use sender::{Sender, SenderOptions, SenderStatus};

/// The longest encoded event: a batch of one must fit a frame.
pub const MAX_EVENT_LEN: usize = codec::MAX_PAYLOAD_LEN - 1024;
/// How many rows are dropped at once when the outbox is full, so that the next events do not each pay for it.
const DROP_AT_ONCE: u32 = 1000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS outbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        droppable INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        event BLOB NOT NULL
    );
    CREATE INDEX IF NOT EXISTS outbox_droppable ON outbox (number) WHERE droppable;
    CREATE TABLE IF NOT EXISTS outbox_state (
        only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
        incarnation INTEGER NOT NULL,
        events INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        dropped INTEGER NOT NULL
    );
";

/// Why the outbox did not do as told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The database failed.
    #[error("outbox: database failed")]
    Database(#[from] rusqlite::Error),
    /// No randomness for a new incarnation.
    #[error("outbox: the system gave no random number: {0}")]
    Random(getrandom::Error),
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Events.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Default for Bound {
    fn default() -> Self {
        Self {
            events: 1_000_000,
            bytes: 512 * 1024 * 1024,
        }
    }
}

/// What is in an outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Drawn at random when the outbox was created.
    pub incarnation: u64,
    /// Events that natsd has not taken.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events dropped because the outbox was full or they were too large, since it was created.
    pub dropped: u64,
}

/// Makes the tables in the daemon's database, if they are missing. Call it once, after `PRAGMA journal_mode = WAL`.
pub fn create(database: &Connection) -> Result<(), OutboxError> {
    database.execute_batch(SCHEMA)?;
    let known = database
        .query_row("SELECT 1 FROM outbox_state", [], |_| Ok(()))
        .optional()?;
    if known.is_none() {
        database.execute(
            "INSERT OR IGNORE INTO outbox_state VALUES (1, ?1, 0, 0, 0)",
            [random_incarnation()?],
        )?;
    }
    Ok(())
}

/// Puts an event in, with a trace of its own unless it has one, and gives its number. Takes a transaction too, since that derefs to a connection.
pub fn append(database: &Connection, event: &Event) -> Result<u64, OutboxError> {
    append_within(database, event, Bound::default())
}

/// As [`append`], with a bound of the caller's choice.
pub fn append_within(database: &Connection, event: &Event, bound: Bound) -> Result<u64, OutboxError> {
    append_all_within(database, std::slice::from_ref(event), bound)
}

/// Puts several events in, for less than one after the other costs, and gives the number of the last one. Call it in a
/// transaction: an error may come when some are in.
pub fn append_all_within(database: &Connection, events: &[Event], bound: Bound) -> Result<u64, OutboxError> {
    let mut insert = database.prepare_cached("INSERT INTO outbox (droppable, bytes, event) VALUES (?1, ?2, ?3)")?;
    let mut sum = 0_i64;
    let mut refused = 0;
    for event in events {
        let Some(blob) = encoded(event) else {
            // Its number is used up all the same: by that natsd knows that something is missing, and tells.
            insert.execute(params![true, 0, [0_u8; 0]])?;
            let number = database.last_insert_rowid();
            database
                .prepare_cached("DELETE FROM outbox WHERE number = ?1")?
                .execute([number])?;
            tracing::error!(
                number,
                kind = event.kind.type_name(),
                subject_key = event.subject_key.escape_default().to_string(),
                bytes = event.body.len(),
                limit = MAX_BODY_LEN,
                "an event is larger than any message may be, and is dropped"
            );
            refused += 1;
            continue;
        };
        let length = signed_len(blob.len());
        insert.execute(params![is_droppable(event.kind), length, blob])?;
        sum = sum.saturating_add(length);
    }
    let number = unsigned(database.last_insert_rowid());
    let (events, bytes) = database
        .prepare_cached(
            "UPDATE outbox_state SET events = events + ?1, bytes = bytes + ?2, dropped = dropped + ?3
             RETURNING events, bytes",
        )?
        .query_row([signed_len(events.len()) - refused, sum, refused], |row| {
            Ok((unsigned(row.get(0)?), unsigned(row.get(1)?)))
        })?;
    if events > bound.events || bytes > bound.bytes {
        make_room(database)?;
    }
    Ok(number)
}

/// As it is kept, if a message can carry it. One that natsd must refuse would keep back all behind it.
fn encoded(event: &Event) -> Option<Vec<u8>> {
    let blob = codec::encode(VERSION, &Traced::new(event)).ok()?;
    (event.body.len() <= MAX_BODY_LEN && blob.len() <= MAX_EVENT_LEN).then_some(blob)
}

/// What is in it.
pub fn contents(database: &Connection) -> Result<Contents, OutboxError> {
    let contents = database
        .prepare_cached("SELECT incarnation, events, bytes, dropped FROM outbox_state")?
        .query_row([], |row| {
            Ok(Contents {
                incarnation: unsigned(row.get(0)?),
                events: unsigned(row.get(1)?),
                bytes: unsigned(row.get(2)?),
                dropped: unsigned(row.get(3)?),
            })
        })?;
    Ok(contents)
}

/// A stretch of the outbox.
#[derive(Default)]
struct Batch {
    /// The events, each with its bytes.
    events: Vec<(NumberedEvent, usize)>,
    /// The number that the stretch ends with; 0 when there is nothing.
    last: u64,
}

/// The events behind a number, in order, at most so many and so many bytes of them; one always, if there is one.
fn read_behind(database: &Connection, behind: u64, max_events: usize, max_bytes: usize) -> Result<Batch, OutboxError> {
    let mut statement =
        database.prepare_cached("SELECT number, event FROM outbox WHERE number > ?1 ORDER BY number LIMIT ?2")?;
    let mut rows = statement.query([signed(behind), signed_len(max_events)])?;
    let (mut batch, mut bytes) = (Batch::default(), 0);
    while let Some(row) = rows.next()? {
        let number = unsigned(row.get(0)?);
        let blob = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        if !batch.events.is_empty() && bytes + blob.len() > max_bytes {
            break;
        }
        bytes += blob.len();
        batch.last = number;
        match decode(blob) {
            Some(event) => batch.events.push((NumberedEvent { number, event }, blob.len())),
            // Written by a newer release that was taken back, or by one that knew no limit; it goes when those behind it are taken.
            None => tracing::warn!(
                number,
                "an event in the outbox is not of this release, or too large, and cannot be sent"
            ),
        }
    }
    Ok(batch)
}

fn decode(blob: &[u8]) -> Option<Event> {
    let (frame, _) = codec::split(blob, codec::MAX_PAYLOAD_LEN).ok()??;
    let event: Event = codec::decode(frame.payload).ok()?;
    (event.body.len() <= MAX_BODY_LEN).then_some(event)
}

/// Deletes everything up to a number, in one transaction with its place in the sums.
fn delete_up_to(database: &mut Connection, number: u64) -> Result<(), OutboxError> {
    let transaction = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let (events, bytes): (i64, i64) = transaction
        .prepare_cached("SELECT count(*), coalesce(sum(bytes), 0) FROM outbox WHERE number <= ?1")?
        .query_row([signed(number)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if events > 0 {
        transaction
            .prepare_cached("DELETE FROM outbox WHERE number <= ?1")?
            .execute([signed(number)])?;
        transaction
            .prepare_cached("UPDATE outbox_state SET events = events - ?1, bytes = bytes - ?2")?
            .execute([events, bytes])?;
    }
    transaction.commit()?;
    Ok(())
}

/// The highest number ever given out.
fn highest(database: &Connection) -> Result<u64, OutboxError> {
    let number = database
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'", [], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(number.map_or(0, unsigned))
}

/// Draws a new incarnation: the database was put back to an earlier state, so that its numbers have been used before.
fn renew_incarnation(database: &Connection) -> Result<u64, OutboxError> {
    let incarnation = random_incarnation()?;
    database.execute("UPDATE outbox_state SET incarnation = ?1", [incarnation])?;
    Ok(unsigned(incarnation))
}

fn make_room(database: &Connection) -> Result<(), OutboxError> {
    let mut statement = database.prepare_cached(
        "DELETE FROM outbox WHERE number IN (SELECT number FROM outbox WHERE droppable ORDER BY number LIMIT ?1)
         RETURNING bytes",
    )?;
    let mut rows = statement.query([DROP_AT_ONCE])?;
    let (mut events, mut bytes) = (0_i64, 0_i64);
    while let Some(row) = rows.next()? {
        events += 1;
        bytes += row.get::<_, i64>(0)?;
    }
    drop(rows);
    database
        .prepare_cached("UPDATE outbox_state SET events = events - ?1, bytes = bytes - ?2, dropped = dropped + ?1")?
        .execute([events, bytes])?;
    Ok(())
}

fn is_droppable(kind: Kind) -> bool {
    matches!(kind, Kind::Keepalive | Kind::KeyPolling | Kind::Archive | Kind::Osquery)
}

/// Positive in SQLite's integers, so that it prints the same everywhere.
fn random_incarnation() -> Result<i64, OutboxError> {
    Ok((getrandom::u64().map_err(OutboxError::Random)? >> 1).cast_signed())
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn signed_len(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
