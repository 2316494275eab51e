use std::{os::unix::fs::MetadataExt, path::Path};

use muster_proto::enrollment::{force::Rules, request::GivenAddress};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{change::EventMaker, ledger::Places};

struct Running {
    store: Store,
    end: oneshot::Receiver<()>,
    counters: Arc<Counters>,
    stop: CancellationToken,
}

fn start(home: &Path) -> Running {
    let places = Places {
        keys: home.join("client.keys"),
        database: home.join("enrollment.db"),
        timestamps: home.join("agents-timestamp"),
    };
    let events = EventMaker { node: "mgr".to_owned() };
    let ledger = Ledger::open(&places, events, 0).expect("opened");
    let stop = CancellationToken::new();
    let options = outbox::SenderOptions {
        database: places.database,
        producer: "authd",
        socket: home.join("events"),
    };
    let (outbox, _) = outbox::Sender::start(options, stop.clone()).expect("started");
    let policy = StorePolicy {
        manager_name: "vm".to_owned(),
        max_agents: 0,
        trace: Trace::Line,
    };
    let counters = Arc::new(Counters::default());
    let (store, end) = Store::start(ledger, policy, Arc::clone(&counters), outbox).expect("started");
    Running {
        store,
        end,
        counters,
        stop,
    }
}

fn ask(name: &str) -> Ask {
    Ask {
        name: name.to_owned(),
        address: Some(GivenAddress::any()),
        id: None,
        key_hash: None,
        rules: Rules {
            enabled: false,
            ..Rules::default()
        },
        groups: Vec::new(),
        method: Method::Local,
        source: None,
    }
}

async fn add(store: &Store, name: &str) -> Option<KeyEntry> {
    match store.add(ask(name), None, KnownLiveness::new()).await {
        Ok(AddOutcome::Granted { entry, .. }) => Some(entry),
        _ => None,
    }
}

#[tokio::test]
async fn requests_that_wait_together_share_a_write() {
    let home = tempfile::tempdir().expect("directory");
    let running = start(home.path());
    let mut adds = tokio::task::JoinSet::new();
    for number in 0..500 {
        let store = running.store.clone();
        adds.spawn(async move { add(&store, &format!("n{number}")).await.is_some() });
    }
    assert!(adds.join_all().await.into_iter().all(|granted| granted));
    let counters = &running.counters;
    let writes = counters.key_file_writes_total.value() + counters.key_file_appends_total.value();
    assert!(writes < 100, "{writes} writes for 500 keys");
    let lines = std::fs::read_to_string(home.path().join("client.keys"))
        .expect("read")
        .lines()
        .count();
    assert_eq!(lines, 500);
    running.stop.cancel();
}

#[tokio::test]
async fn a_file_that_has_grown_is_written_whole_some_time_later() {
    let home = tempfile::tempdir().expect("directory");
    let running = start(home.path());
    for name in ["a1", "b1"] {
        add(&running.store, name).await.expect("granted");
    }
    let counters = &running.counters;
    assert_eq!(counters.key_file_appends_total.value(), 1);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while counters.key_file_writes_total.value() < 2 {
        assert!(std::time::Instant::now() < until, "it is not written whole");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    running.stop.cancel();
}

#[tokio::test]
async fn of_many_who_want_one_name_one_gets_it() {
    let home = tempfile::tempdir().expect("directory");
    let running = start(home.path());
    let mut adds = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = running.store.clone();
        adds.spawn(async move { add(&store, "same").await.is_some() });
    }
    let granted = adds.join_all().await.into_iter().filter(|granted| *granted).count();
    assert_eq!(granted, 1);
    running.stop.cancel();
}

#[tokio::test]
async fn a_key_that_is_taken_back_is_gone_unless_its_id_has_another_by_now() {
    let home = tempfile::tempdir().expect("directory");
    let running = start(home.path());
    let entry = add(&running.store, "a1").await.expect("granted");
    let stranger = KeyEntry {
        key: Secret::new("other".to_owned()),
        ..entry.clone()
    };
    running.store.withdraw(&stranger).await;
    assert!(running.store.get(entry.id.clone()).await.expect("answered").is_some());
    running.store.withdraw(&entry).await;
    assert_eq!(running.store.get(entry.id.clone()).await, Ok(None));
    assert_eq!(
        std::fs::read_to_string(home.path().join("client.keys")).expect("read"),
        ""
    );
    running.stop.cancel();
}

#[tokio::test]
async fn stopping_comes_behind_what_waits_and_writes_what_is_due() {
    let home = tempfile::tempdir().expect("directory");
    let running = start(home.path());
    let path = home.path().join("client.keys");
    add(&running.store, "a1").await.expect("granted");
    let before = std::fs::metadata(&path).expect("metadata").ino();
    let (entry, ()) = tokio::join!(add(&running.store, "b1"), running.store.stop());
    assert!(entry.is_some());
    running.end.await.expect("ended");
    assert_ne!(
        std::fs::metadata(&path).expect("metadata").ino(),
        before,
        "a file that has grown is written whole"
    );
    assert!(
        std::fs::read_to_string(home.path().join("agents-timestamp"))
            .expect("written")
            .starts_with("001 a1 any ")
    );
    assert_eq!(running.store.get(AgentId::new("001")).await, Err(StoreGone));
    running.stop.cancel();
}
