use std::{path::Path, time::Duration};

use muster_proto::ipc::events::{FromNatsd, ToNatsd};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::ipc;

fn event(kind: Kind, mark: u64) -> Event {
    Event {
        kind,
        subject_key: "001".to_owned(),
        created_ms: mark,
        alert_level: 0,
        body: b"{}".to_vec(),
        headers: Vec::new(),
    }
}

fn database(path: &Path) -> Connection {
    let database = Connection::open(path).expect("opened");
    database.pragma_update(None, "journal_mode", "WAL").expect("set");
    create(&database).expect("created");
    database
}

fn numbers(database: &Connection) -> Vec<u64> {
    read_behind(database, 0, 10_000, usize::MAX)
        .expect("read")
        .events
        .iter()
        .map(|(event, _)| event.number)
        .collect()
}

#[test]
fn event_is_there_exactly_when_its_transaction_was_committed() {
    let directory = tempfile::tempdir().expect("directory");
    let mut database = database(&directory.path().join("db"));
    let transaction = database.transaction().expect("begun");
    append(&transaction, &event(Kind::StatusChange, 1)).expect("appended");
    drop(transaction);
    assert_eq!(numbers(&database), [0; 0]);
    let transaction = database.transaction().expect("begun");
    append(&transaction, &event(Kind::StatusChange, 1)).expect("appended");
    transaction.commit().expect("committed");
    assert_eq!(contents(&database).expect("contents").events, 1);
}

#[test]
fn numbers_are_never_given_twice() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("db");
    let mut first = database(&path);
    for mark in 0..3 {
        append(&first, &event(Kind::Keepalive, mark)).expect("appended");
    }
    delete_up_to(&mut first, 3).expect("deleted");
    drop(first);
    let again = database(&path);
    assert_eq!(append(&again, &event(Kind::Keepalive, 4)).expect("appended"), 4);
    assert_eq!(highest(&again).expect("read"), 4);
}

#[test]
fn incarnation_survives_reopening() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("db");
    let first = contents(&database(&path)).expect("contents").incarnation;
    assert_eq!(contents(&database(&path)).expect("contents").incarnation, first);
    let other = contents(&database(&directory.path().join("other")))
        .expect("contents")
        .incarnation;
    assert_ne!(first, other);
}

#[test]
fn full_outbox_drops_the_oldest_keepalives_and_never_a_status_change() {
    let directory = tempfile::tempdir().expect("directory");
    let database = database(&directory.path().join("db"));
    let bound = Bound {
        events: 3000,
        bytes: u64::MAX,
    };
    database.execute_batch("BEGIN").expect("begun");
    for mark in 0..2000 {
        append_within(&database, &event(Kind::StatusChange, mark), bound).expect("appended");
        append_within(&database, &event(Kind::Keepalive, mark), bound).expect("appended");
    }
    database.execute_batch("COMMIT").expect("committed");
    let now = contents(&database).expect("contents");
    assert_eq!((now.events, now.dropped), (3000, 1000));
    let left = read_behind(&database, 0, 10_000, usize::MAX).expect("read").events;
    let count = |kind| left.iter().filter(|(numbered, _)| numbered.event.kind == kind).count();
    assert_eq!((count(Kind::StatusChange), count(Kind::Keepalive)), (2000, 1000));
    assert!(
        left.iter()
            .all(|(numbered, _)| { numbered.event.kind == Kind::StatusChange || numbered.event.created_ms >= 1000 })
    );
    let bytes: usize = left.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(now.bytes, u64::try_from(bytes).expect("fits"));
}

#[test]
fn what_strangers_can_cause_does_not_fill_the_disk() {
    let directory = tempfile::tempdir().expect("directory");
    let database = database(&directory.path().join("db"));
    let bound = Bound {
        events: 1500,
        bytes: u64::MAX,
    };
    database.execute_batch("BEGIN").expect("begun");
    for mark in 0..5000 {
        append_within(&database, &event(Kind::KeyPolling, mark), bound).expect("appended");
    }
    database.execute_batch("COMMIT").expect("committed");
    assert!(contents(&database).expect("contents").events <= 1500);
}

#[test]
fn event_larger_than_any_message_is_counted_and_keeps_nobody_back() {
    let directory = tempfile::tempdir().expect("directory");
    let database = database(&directory.path().join("db"));
    let of_length = |length| Event {
        body: vec![b'x'; length],
        ..event(Kind::StatusChange, 0)
    };
    let three = [of_length(MAX_BODY_LEN), of_length(MAX_BODY_LEN + 1), of_length(1)];
    assert_eq!(
        append_all_within(&database, &three, Bound::default()).expect("appended"),
        3
    );
    assert_eq!(append(&database, &of_length(MAX_EVENT_LEN)).expect("passed over"), 4);
    assert_eq!(append(&database, &of_length(2)).expect("appended"), 5);
    assert_eq!(
        numbers(&database),
        [1, 3, 5],
        "their numbers are missing, which natsd tells"
    );
    let now = contents(&database).expect("read");
    assert_eq!((now.events, now.dropped), (3, 2));
}

#[test]
fn large_event_of_an_earlier_release_is_passed_over() {
    let directory = tempfile::tempdir().expect("directory");
    let database = database(&directory.path().join("db"));
    let large = Event {
        body: vec![b'x'; MAX_BODY_LEN + 1],
        ..event(Kind::StatusChange, 0)
    };
    let blob = codec::encode(VERSION, &large).expect("fits a frame");
    database
        .execute("INSERT INTO outbox (droppable, bytes, event) VALUES (0, 1, ?1)", [blob])
        .expect("inserted");
    append(&database, &event(Kind::StatusChange, 0)).expect("appended");
    assert_eq!(numbers(&database), [2]);
}

#[test]
fn event_that_is_sent_again_belongs_to_the_same_trace() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("db");
    let read = |database: &Connection| -> Vec<Event> {
        let batch = read_behind(database, 0, 100, usize::MAX).expect("read");
        batch.events.into_iter().map(|(numbered, _)| numbered.event).collect()
    };
    let first = database(&path);
    append(&first, &event(Kind::StatusChange, 1)).expect("appended");
    append(&first, &event(Kind::StatusChange, 2)).expect("appended");
    let sent = read(&first);
    assert!(sent.iter().all(Event::is_traced));
    assert_ne!(sent[0].headers, sent[1].headers);
    drop(first);
    let again = database(&path);
    assert_eq!(read(&again), sent);
    // As an earlier release has left it.
    let old = codec::encode(VERSION, &event(Kind::StatusChange, 3)).expect("encoded");
    again
        .execute("INSERT INTO outbox (droppable, bytes, event) VALUES (0, 1, ?1)", [old])
        .expect("inserted");
    assert_eq!(read(&again).last(), Some(&event(Kind::StatusChange, 3)));
}

#[test]
fn batch_ends_at_its_bytes_and_has_one_event_always() {
    let directory = tempfile::tempdir().expect("directory");
    let database = database(&directory.path().join("db"));
    for mark in 0..10 {
        append(&database, &event(Kind::StatusChange, mark)).expect("appended");
    }
    let one = read_behind(&database, 0, 100, 1).expect("read").events;
    assert_eq!(one.len(), 1);
    let three = read_behind(&database, 1, 100, 3 * one[0].1).expect("read").events;
    assert_eq!(
        three.iter().map(|(event, _)| event.number).collect::<Vec<_>>(),
        [2, 3, 4]
    );
}

/// A natsd that takes everything, for as long as it is told to.
async fn take(listener: &UnixListener, already: u64, until: u64) -> (ipc::Connection, u64, Vec<u64>) {
    let (stream, _) = listener.accept().await.expect("accepted");
    let mut connection = ipc::Connection::accept(stream, "natsd").await.expect("greeted");
    let Ok(Some(ToNatsd::Produce { producer, incarnation })) = connection.receive().await else {
        panic!("no producer");
    };
    assert_eq!(producer, "remoted");
    connection
        .send(&FromNatsd::Resume { taken: already })
        .await
        .expect("sent");
    let mut taken = Vec::new();
    while taken.last().is_none_or(|last| *last < until) {
        let Ok(Some(ToNatsd::Batch(batch))) = connection.receive().await else {
            panic!("no batch")
        };
        assert!(batch.len() <= sender::MAX_EVENTS_IN_FLIGHT);
        taken.extend(batch.iter().map(|event| event.number));
        let number = taken.last().copied().expect("a batch is never empty");
        connection.send(&FromNatsd::Taken { number }).await.expect("sent");
    }
    (connection, incarnation, taken)
}

struct Fixture {
    database: Connection,
    listener: UnixListener,
    sender: Sender,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new(before: u64) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("db");
        let database = database(&path);
        for mark in 0..before {
            append(&database, &event(Kind::StatusChange, mark)).expect("appended");
        }
        let socket = directory.path().join("events");
        let listener = UnixListener::bind(&socket).expect("bound");
        let stop = CancellationToken::new();
        let options = SenderOptions {
            database: path,
            producer: "remoted",
            socket,
        };
        let (sender, thread) = Sender::start(options, stop.clone()).expect("started");
        Self {
            database,
            listener,
            sender,
            stop,
            thread: Some(thread),
            _directory: directory,
        }
    }

    async fn emptied(&self) {
        while self.sender.status().waiting > 0 || contents(&self.database).expect("contents").events > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("ends when told to");
        }
    }
}

#[tokio::test]
async fn everything_arrives_in_order_and_is_deleted_once_taken() {
    let fixture = Fixture::new(2000);
    let (_connection, _, taken) = take(&fixture.listener, 0, 2000).await;
    assert_eq!(taken, (1..=2000).collect::<Vec<_>>());
    fixture.emptied().await;
    assert!(fixture.sender.status().connected);
    assert_eq!(fixture.sender.status().taken, 2000);
}

#[tokio::test]
async fn appended_event_is_sent_without_waiting() {
    let fixture = Fixture::new(1);
    let (mut connection, ..) = take(&fixture.listener, 0, 1).await;
    append(&fixture.database, &event(Kind::StatusChange, 1)).expect("appended");
    fixture.sender.wake();
    let Ok(Some(ToNatsd::Batch(batch))) = connection.receive().await else {
        panic!("no batch")
    };
    assert_eq!(batch[0].number, 2);
}

#[tokio::test]
async fn what_was_not_taken_is_sent_again_and_what_was_taken_is_not() {
    let fixture = Fixture::new(10);
    let (stream, _) = fixture.listener.accept().await.expect("accepted");
    let mut connection = ipc::Connection::accept(stream, "natsd").await.expect("greeted");
    let _: Option<ToNatsd> = connection.receive().await.expect("producer");
    connection.send(&FromNatsd::Resume { taken: 0 }).await.expect("sent");
    let _: Option<ToNatsd> = connection.receive().await.expect("batch");
    // It dies with all ten in its hands, of which it has made four durable without having said so.
    drop(connection);
    let (_connection, _, taken) = take(&fixture.listener, 4, 10).await;
    assert_eq!(taken, [5, 6, 7, 8, 9, 10]);
    fixture.emptied().await;
}

#[tokio::test]
async fn window_stops_the_sender_until_something_is_taken() {
    let fixture = Fixture::new(2000);
    let (stream, _) = fixture.listener.accept().await.expect("accepted");
    let mut connection = ipc::Connection::accept(stream, "natsd").await.expect("greeted");
    let _: Option<ToNatsd> = connection.receive().await.expect("producer");
    connection.send(&FromNatsd::Resume { taken: 0 }).await.expect("sent");
    let Ok(Some(ToNatsd::Batch(batch))) = connection.receive().await else {
        panic!("no batch")
    };
    assert_eq!(batch.len(), sender::MAX_EVENTS_IN_FLIGHT);
    let more = tokio::time::timeout(Duration::from_millis(100), connection.receive::<ToNatsd>()).await;
    assert!(more.is_err(), "sent beyond its window");
    connection.send(&FromNatsd::Taken { number: 1 }).await.expect("sent");
    let Ok(Some(ToNatsd::Batch(batch))) = connection.receive().await else {
        panic!("no batch")
    };
    assert_eq!(batch.len(), 1);
}

#[tokio::test]
async fn outbox_from_a_backup_takes_a_new_incarnation_rather_than_lose_events() {
    let fixture = Fixture::new(3);
    let (stream, _) = fixture.listener.accept().await.expect("accepted");
    let mut connection = ipc::Connection::accept(stream, "natsd").await.expect("greeted");
    let Ok(Some(ToNatsd::Produce { incarnation: old, .. })) = connection.receive().await else {
        panic!("no producer");
    };
    connection.send(&FromNatsd::Resume { taken: 500 }).await.expect("sent");
    let (_connection, new, taken) = take(&fixture.listener, 0, 3).await;
    assert_ne!(old, new);
    assert_eq!(taken, [1, 2, 3]);
}
