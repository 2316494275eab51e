use std::{net::SocketAddr, path::PathBuf};

use muster_config::KeepaliveEvents;
use muster_proto::{agent::AgentStatus, keys::file};
use muster_service::outbox;
use rusqlite::Connection;
use tokio::task::JoinHandle;

use super::*;
use crate::{
    monitor::MonitorSettings,
    roster::RosterSettings,
    schedule::{Policy, ProbeChoice, Sending},
    slot::{Protocol, SendError},
    store::Store,
};

#[derive(Default)]
struct Post {
    sent: Mutex<Vec<String>>,
}

impl Courier for Post {
    fn send(&self, slot: &Arc<AgentSlot>, payload: &[u8]) -> Result<(), SendError> {
        self.sent
            .lock()
            .unwrap()
            .push(format!("{} {}", slot.id, String::from_utf8_lossy(payload)));
        Ok(())
    }
}

/// A desk at work on a database of its own.
struct Office {
    directory: tempfile::TempDir,
    news: Option<mpsc::Sender<News>>,
    window: Window,
    post: Arc<Post>,
    lines: Arc<Mutex<Vec<String>>>,
    slots: Vec<Arc<AgentSlot>>,
    work: JoinHandle<anyhow::Result<()>>,
}

impl Office {
    async fn open(policy: Policy) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("agents.db")).unwrap();
        let settings = RosterSettings {
            policy,
            node: "mgr".to_owned(),
            keepalive_events: KeepaliveEvents::All,
            keepalive_received: false,
            escalation: Vec::new(),
            monitor: MonitorSettings::default(),
        };
        let (news, inbox) = mpsc::channel(NEWS_QUEUE);
        let (post, lines) = (Arc::new(Post::default()), Arc::new(Mutex::new(Vec::new())));
        let said = Arc::clone(&lines);
        let clock = Arc::new(Clock::start());
        let parts = DeskParts {
            clock: Arc::clone(&clock),
            news: inbox,
            courier: Arc::clone(&post) as Arc<dyn Courier>,
            own_line: Box::new(move |_, program, text| said.lock().unwrap().push(format!("{program}: {text}"))),
            listener: Box::new(|_| {}),
            writer: Writer::start(store.store, || {}).unwrap(),
        };
        let desk = Desk::new(Roster::new(settings, clock.now(), store.rows, 1), parts);
        let window = desk.window();
        let entries = file::parse(b"001 a any k\n002 b any k\n").entries;
        let slots: Vec<_> = entries.iter().map(|entry| Arc::new(AgentSlot::new(entry))).collect();
        let added = slots.clone();
        news.send(News::KeysReloaded {
            added,
            changed: Vec::new(),
            removed: Vec::new(),
        })
        .await
        .unwrap();
        let work = tokio::spawn(desk.run());
        Self {
            directory,
            news: Some(news),
            window,
            post,
            lines,
            slots,
            work,
        }
    }

    async fn tell(&self, news: News) {
        self.news.as_ref().unwrap().send(news).await.unwrap();
    }

    async fn keepalive(&self, place: usize) {
        let (slot, at) = (Arc::clone(&self.slots[place]), Millis::now());
        slot.hear(at);
        let said = slot.say("Linux - Wazuh v4.14.7\nx merged.mg\n");
        let peer = SocketAddr::from(([127, 0, 0, 1], 7));
        self.tell(News::Keepalive {
            slot,
            at,
            peer,
            protocol: Protocol::Tcp,
            said,
        })
        .await;
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join("agents.db")
    }

    /// Statuses and events as another process would find them.
    fn stored(&self) -> (Vec<String>, u64) {
        let database = Connection::open(self.database()).unwrap();
        let mut statement = database
            .prepare("SELECT id || ' ' || status FROM agent JOIN liveness USING (place) ORDER BY id")
            .unwrap();
        let rows = statement
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        (rows, outbox::contents(&database).unwrap().events)
    }

    async fn close(mut self) -> (Vec<String>, u64) {
        self.news = None;
        let work = std::mem::replace(&mut self.work, tokio::spawn(async { Ok(()) }));
        work.await.unwrap().unwrap();
        self.stored()
    }
}

fn policy(interval_ms: u64, sending: bool) -> Policy {
    let retry = Duration::from_millis(interval_ms);
    Policy {
        interval: Duration::from_millis(interval_ms),
        timeout: Duration::from_millis(3 * interval_ms),
        max_missed: 3,
        sending: sending.then_some(Sending {
            probe: ProbeChoice::Ack,
            retry,
        }),
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn change_of_status_is_stored_with_its_event_while_the_desk_works() {
    let office = Office::open(policy(60_000, false)).await;
    office.keepalive(0).await;
    until("stored", || {
        office.stored() == (vec!["001 active".to_owned(), "002 never_connected".to_owned()], 1)
    })
    .await;
    office.close().await;
}

#[tokio::test]
async fn everything_told_before_the_end_is_stored() {
    let office = Office::open(policy(60_000, false)).await;
    office.keepalive(0).await;
    office.keepalive(1).await;
    office
        .tell(News::Shutdown {
            slot: Arc::clone(&office.slots[1]),
            at: Millis::now(),
        })
        .await;
    let lines = Arc::clone(&office.lines);
    let (rows, events) = office.close().await;
    assert_eq!(
        (rows, events),
        (vec!["001 active".to_owned(), "002 disconnected".to_owned()], 3)
    );
    assert_eq!(
        *lines.lock().unwrap(),
        ["wazuh-remoted: ossec: Agent stopped: 'b->any'."]
    );
}

#[tokio::test]
async fn keepalives_go_out_by_the_clock_and_are_told() {
    let office = Office::open(policy(200, true)).await;
    office.keepalive(0).await;
    until("sent", || office.post.sent.lock().unwrap().len() >= 3).await;
    assert!(
        office
            .post
            .sent
            .lock()
            .unwrap()
            .iter()
            .all(|sent| sent == "001 #!-agent ack ")
    );
    let (_, events) = office.close().await;
    assert!(events >= 4, "{events}");
}

#[tokio::test]
async fn store_that_cannot_be_written_holds_up_neither_news_nor_time() {
    let office = Office::open(policy(60_000, false)).await;
    until("stored", || office.stored().0.len() == 2).await;
    let database = Connection::open(office.database()).unwrap();
    database
        .execute_batch("CREATE TRIGGER full BEFORE INSERT ON liveness BEGIN SELECT RAISE(FAIL, 'full'); END")
        .unwrap();
    for _ in 0..3 {
        office.keepalive(0).await;
        office
            .tell(News::Shutdown {
                slot: Arc::clone(&office.slots[0]),
                at: Millis::now(),
            })
            .await;
    }
    office.keepalive(0).await;
    until("failing", || office.window.writer().error.is_some()).await;
    until("heard", || office.slots[0].status() == AgentStatus::Active).await;
    assert_eq!(office.stored().1, 0);
    database.execute_batch("DROP TRIGGER full").unwrap();
    until("stored at last", || office.stored().1 == 7).await;
    assert_eq!(office.close().await.0[0], "001 active");
}

#[test]
fn moment_is_the_same_second_whenever_it_is_asked_for_and_a_step_is_followed() {
    let clock = Clock {
        offset: AtomicI64::new(1_000_000),
    };
    assert_eq!(
        clock.shown(Millis(500), 1_000_507).wall_ms,
        1_000_500,
        "two readings take a moment"
    );
    assert_eq!(clock.shown(Millis(600), 1_000_590).wall_ms, 1_000_600);
    assert_eq!(clock.shown(Millis(700), 5_000_700).wall_ms, 5_000_700);
    assert_eq!(clock.shown(Millis(800), 800).wall_ms, 800);
}
