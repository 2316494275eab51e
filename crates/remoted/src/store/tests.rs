use std::{sync::Arc, time::Duration};

use muster_proto::{
    agent::{AgentStatus, Reason},
    event::Kind,
    ipc::control::OsInfo,
    transport::envelope::CryptoForm,
};

use super::*;
use crate::{
    roster::agent::{Inventory, SharedState},
    slot::Protocol,
};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("agents.db")
    }

    fn open(&self) -> Opened {
        Store::open(&self.path()).unwrap()
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = self.open().rows;
        rows.sort_by(|one, other| one.id.cmp(&other.id));
        rows
    }

    fn events(&self) -> u64 {
        outbox::contents(&Connection::open(self.path()).unwrap())
            .unwrap()
            .events
    }
}

fn row(id: &str, status: AgentStatus) -> Row {
    Row {
        id: AgentId::new(id),
        name: format!("agent-{id}").as_str().into(),
        inventory: Some(Arc::new(Inventory {
            version: Some("Wazuh v4.14.7".to_owned()),
            os: Some(OsInfo {
                name: Some("Debian GNU/Linux".to_owned()),
                ..OsInfo::default()
            }),
            labels: vec!["#\"a\":b".to_owned()],
            merged_sum: Some("x".to_owned()),
            config_sum: None,
            reported_ip: Some("10.0.0.9".to_owned()),
            shared: SharedState {
                groups: vec!["default".to_owned(), "web".to_owned()],
                synced: Some(false),
            },
        })),
        liveness: LivenessRow {
            status,
            settled: AgentStatus::Disconnected,
            reason: Some(Reason::KeepaliveTimeout),
            since_ms: 1_795_000_000_001,
            first_seen_ms: 1,
            heard_ms: 1_795_000_000_002,
            keepalive_ms: 3,
            sent_ms: 4,
            missed: 5,
            level: 8,
            escalations: 1,
            period_ms: 20_000,
            peer: Some("[2001:db8::1]:7".parse().unwrap()),
            protocol: Some(Protocol::Udp),
            form: CryptoForm::OssecAes,
        },
    }
}

fn event(created_ms: u64) -> Event {
    Event {
        kind: Kind::StatusChange,
        subject_key: "001".to_owned(),
        created_ms,
        alert_level: 8,
        body: b"{}".to_vec(),
        headers: Vec::new(),
    }
}

#[test]
fn everything_about_an_agent_comes_back_as_it_was() {
    let home = Home::new();
    for (id, status) in (0..4).map(|code| (format!("00{code}"), AgentStatus::from_code(code).unwrap())) {
        home.open()
            .store
            .write(&Batch {
                rows: vec![row(&id, status)],
                ..Batch::default()
            })
            .unwrap();
        assert_eq!(home.rows().pop(), Some(row(&id, status)));
    }
    let bare = Row {
        inventory: Some(Arc::default()),
        liveness: LivenessRow {
            reason: None,
            peer: None,
            protocol: None,
            ..row("9", AgentStatus::Active).liveness
        },
        ..row("9", AgentStatus::Active)
    };
    home.open()
        .store
        .write(&Batch {
            rows: vec![bare.clone()],
            ..Batch::default()
        })
        .unwrap();
    assert_eq!(home.rows().pop(), Some(bare));
}

#[test]
fn row_that_differs_in_any_way_is_stored_as_it_is() {
    let home = Home::new();
    let first = row("001", AgentStatus::Active);
    let later = LivenessRow {
        heard_ms: 1_795_000_060_000,
        keepalive_ms: 1_795_000_060_000,
        sent_ms: 1_795_000_060_001,
        period_ms: 30_000,
        ..first.liveness
    };
    let mut store = home.open().store;
    let elsewhere = Some("10.0.0.1:9".parse().unwrap());
    for liveness in [
        first.liveness,
        later,
        first.liveness,
        LivenessRow { missed: 6, ..later },
        LivenessRow {
            peer: elsewhere,
            ..first.liveness
        },
    ] {
        let row = Row {
            liveness,
            ..first.clone()
        };
        let batch = Batch {
            rows: vec![row.clone()],
            ..Batch::default()
        };
        store.write(&batch).unwrap();
        assert_eq!(home.rows().pop(), Some(row));
    }
}

#[test]
fn row_without_inventory_leaves_what_the_store_has() {
    let home = Home::new();
    let first = row("001", AgentStatus::Active);
    let later = Row {
        inventory: None,
        ..row("001", AgentStatus::Disconnected)
    };
    let mut opened = home.open();
    opened
        .store
        .write(&Batch {
            rows: vec![first.clone()],
            ..Batch::default()
        })
        .unwrap();
    opened
        .store
        .write(&Batch {
            rows: vec![later],
            ..Batch::default()
        })
        .unwrap();
    let found = home.rows().remove(0);
    assert_eq!(
        (found.liveness.status, found.inventory),
        (AgentStatus::Disconnected, first.inventory)
    );
}

#[test]
fn agent_that_is_gone_leaves_nothing_and_its_id_can_come_again() {
    let home = Home::new();
    let mut store = home.open().store;
    let agents = vec![row("001", AgentStatus::Active), row("002", AgentStatus::Active)];
    store
        .write(&Batch {
            rows: agents,
            ..Batch::default()
        })
        .unwrap();
    let newcomer = Row {
        name: "newcomer".into(),
        ..row("001", AgentStatus::NeverConnected)
    };
    let gone = vec![AgentId::new("001"), AgentId::new("002"), AgentId::new("none")];
    store
        .write(&Batch {
            rows: vec![newcomer.clone()],
            gone,
            ..Batch::default()
        })
        .unwrap();
    assert_eq!(home.rows(), [newcomer]);
}

#[test]
fn events_are_in_the_outbox_exactly_when_the_rows_are_stored() {
    let home = Home::new();
    let mut store = home.open().store;
    let batch = Batch {
        rows: vec![row("001", AgentStatus::Active)],
        gone: Vec::new(),
        events: vec![event(1), event(2)],
    };
    store.write(&batch).unwrap();
    assert_eq!(home.events(), 2);
    // The second row cannot be written, so nothing of the batch is.
    store
        .database
        .execute_batch("CREATE TRIGGER full BEFORE INSERT ON liveness BEGIN SELECT RAISE(FAIL, 'disk full'); END")
        .unwrap();
    let rows = vec![row("002", AgentStatus::Active)];
    assert!(
        store
            .write(&Batch {
                rows: rows.clone(),
                gone: Vec::new(),
                events: vec![event(3)]
            })
            .is_err()
    );
    assert_eq!(home.events(), 2);
    store.database.execute_batch("DROP TRIGGER full").unwrap();
    store
        .write(&Batch {
            rows,
            gone: Vec::new(),
            events: vec![event(3)],
        })
        .unwrap();
    assert_eq!((home.events(), home.rows().len()), (3, 2));
}

#[test]
fn broken_database_is_moved_aside_and_a_new_one_begun() {
    let home = Home::new();
    fs::write(home.path(), vec![b'x'; 8192]).unwrap();
    fs::write(home.0.path().join("agents.db-wal"), b"rest").unwrap();
    let opened = home.open();
    let aside = opened.moved_aside.unwrap();
    assert_eq!(fs::read(&aside).unwrap().len(), 8192);
    assert_eq!(opened.rows, []);
    drop(opened.store);
    assert_eq!(home.open().moved_aside, None);
}

#[test]
fn page_broken_in_the_middle_is_noticed_at_the_start() {
    let home = Home::new();
    let rows = (0..2000)
        .map(|number| row(&format!("{number:04}"), AgentStatus::Active))
        .collect();
    let mut store = home.open().store;
    store
        .write(&Batch {
            rows,
            ..Batch::default()
        })
        .unwrap();
    store.close().unwrap();
    let mut bytes = fs::read(home.path()).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 8192].fill(0xff);
    fs::write(home.path(), bytes).unwrap();
    assert!(home.open().moved_aside.is_some());
}

#[test]
fn database_of_a_newer_release_is_refused_by_name_and_left_alone() {
    let home = Home::new();
    home.open()
        .store
        .database
        .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
        .unwrap();
    let error = Store::open(&home.path()).err().unwrap();
    assert!(matches!(error, StoreError::Newer { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("upgrade"));
}

#[test]
fn agent_with_a_word_that_nobody_knows_is_learned_anew_and_the_others_stay() {
    let home = Home::new();
    let mut store = home.open().store;
    let rows = vec![row("001", AgentStatus::Active), row("002", AgentStatus::Active)];
    store
        .write(&Batch {
            rows,
            ..Batch::default()
        })
        .unwrap();
    store
        .database
        .execute("UPDATE liveness SET status = 'asleep' WHERE place = 1", [])
        .unwrap();
    drop(store);
    assert_eq!(
        home.rows().iter().map(|row| row.id.as_str()).collect::<Vec<_>>(),
        ["002"]
    );
    home.open()
        .store
        .write(&Batch {
            rows: vec![row("001", AgentStatus::Pending)],
            ..Batch::default()
        })
        .unwrap();
    assert_eq!(home.rows().len(), 2);
}

#[test]
fn outboxs_sender_may_delete_while_the_store_writes() {
    let home = Home::new();
    let mut store = home.open().store;
    store
        .write(&Batch {
            events: vec![event(1)],
            ..Batch::default()
        })
        .unwrap();
    let other = Connection::open(home.path()).unwrap();
    let deleting = other.unchecked_transaction().unwrap();
    deleting.execute("DELETE FROM outbox", []).unwrap();
    let path = home.path();
    let writing = std::thread::spawn(move || {
        let outcome = store.write(&Batch {
            events: vec![event(2)],
            ..Batch::default()
        });
        (outcome, path)
    });
    std::thread::park_timeout(Duration::from_millis(50));
    deleting.commit().unwrap();
    writing.join().unwrap().0.unwrap();
}

#[tokio::test]
async fn writer_stores_what_it_was_given_before_it_ends_and_tells_of_events() {
    let home = Home::new();
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let writer = Writer::start(home.open().store, move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    })
    .unwrap();
    for number in 0..5 {
        let rows = vec![row(&format!("00{number}"), AgentStatus::Active)];
        let events = if number == 4 { vec![event(1)] } else { Vec::new() };
        writer.room().await.unwrap().send(Batch {
            rows,
            gone: Vec::new(),
            events,
        });
    }
    let status = writer.watch();
    writer.finish().await;
    let status = status.borrow().clone();
    assert_eq!((status.rows, status.events, status.error), (5, 1, None));
    assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(home.rows().len(), 5);
}

#[tokio::test]
async fn writer_tries_again_until_there_is_room_on_the_disk() {
    let home = Home::new();
    let store = home.open().store;
    store
        .database
        .execute_batch("CREATE TRIGGER full BEFORE INSERT ON liveness BEGIN SELECT RAISE(FAIL, 'disk full'); END")
        .unwrap();
    let writer = Writer::start(store, || {}).unwrap();
    let status = writer.watch();
    writer.room().await.unwrap().send(Batch {
        rows: vec![row("001", AgentStatus::Active)],
        ..Batch::default()
    });
    while status.borrow().error.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(status.borrow().error.as_ref().unwrap().contains("disk full"));
    Connection::open(home.path())
        .unwrap()
        .execute_batch("DROP TRIGGER full")
        .unwrap();
    let waiting = writer.room().await;
    drop(waiting);
    while status.borrow().rows == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(status.borrow().error, None);
    writer.finish().await;
    assert_eq!(home.rows().len(), 1);
}
