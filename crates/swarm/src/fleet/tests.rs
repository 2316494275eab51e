//! The fleet against a manager of a few lines: real sockets, no daemon.

mod orders;
mod sockets;

use std::future::pending;

use muster_proto::{
    keys::Secret,
    transport::{envelope, frame},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
    task::{LocalSet, spawn_local},
};

use super::*;
use crate::{
    agent::{EventLoad, Identity},
    mix::Mix,
    scenario::{self, Naming},
};

/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &str = "9f1c6b0e5a7d4832c1e0f9a8b7c6d5e4f30211aa42bb53cc64dd75ee86ff9700";

/// Acknowledges every control message, in the form in which it came, and keeps all payloads.
struct Manager {
    opener: Opener,
    sealer: Sealer,
    counter: SenderCounter,
    heard: Vec<(String, String)>,
    /// Where they came from.
    peers: Vec<SocketAddr>,
    /// How many connections ended with a reset.
    resets: usize,
}

type SharedManager = Rc<RefCell<Manager>>;

impl Manager {
    fn new() -> SharedManager {
        Rc::new(RefCell::new(Self {
            opener: Opener::new(),
            sealer: Sealer::new(),
            counter: SenderCounter::default(),
            heard: Vec::new(),
            peers: Vec::new(),
            resets: 0,
        }))
    }

    fn answer(&mut self, peer: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
        self.peers.push(peer);
        let packet = envelope::split(message).unwrap();
        let id = packet
            .id
            .expect("agents registered with `any` name themselves")
            .to_owned();
        let keys = CipherKeys::derive(&id, &name(&id), KEY);
        let opened = self.opener.open(&keys, packet.sealed, None).unwrap();
        let text = String::from_utf8_lossy(opened.payload).into_owned();
        let acknowledged = text.starts_with("#!-") && !text.starts_with("#!-agent shutdown");
        let form = opened.form;
        self.heard.push((id, text));
        acknowledged.then(|| {
            let counter = self.counter.next();
            self.sealer
                .seal(&keys, form, counter, 1, [3; 16], b"#!-agent ack ", None)
                .unwrap()
                .to_vec()
        })
    }

    fn count(&self, begin: &str) -> usize {
        self.heard.iter().filter(|(_, text)| text.starts_with(begin)).count()
    }
}

fn name(id: &str) -> String {
    format!("sim-{id}")
}

async fn serve_connection(mut stream: TcpStream, manager: SharedManager) {
    let mut frames = frame::FrameReader::new();
    let mut chunk = [0; 4096];
    let peer = stream.peer_addr().unwrap();
    loop {
        let bytes = match stream.read(&mut chunk).await {
            Ok(0) => return,
            Ok(bytes) => bytes,
            Err(_) => {
                manager.borrow_mut().resets += 1;
                return;
            }
        };
        frames.push(&chunk[..bytes]);
        let mut out = Vec::new();
        while let Some(message) = frames.next_message().unwrap() {
            if let Some(answer) = manager.borrow_mut().answer(peer, message) {
                frame::append(&mut out, &answer);
            }
        }
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

/// A listener for both carriers on one port.
async fn listen(manager: &SharedManager) -> SocketAddr {
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (tcp, udp);
        }
    };
    let address = tcp.local_addr().unwrap();
    let for_tcp = Rc::clone(manager);
    spawn_local(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            spawn_local(serve_connection(stream, Rc::clone(&for_tcp)));
        }
    });
    let for_udp = Rc::clone(manager);
    spawn_local(async move {
        let mut datagram = vec![0; 65_536];
        while let Ok((bytes, peer)) = udp.recv_from(&mut datagram).await {
            let answer = for_udp.borrow_mut().answer(peer, &datagram[..bytes]);
            if let Some(answer) = answer {
                udp.send_to(&answer, peer).await.unwrap();
            }
        }
    });
    address
}

fn of(mix: &str, habits: &Habits) -> Scenario {
    let mix: Mix = mix.parse().unwrap();
    let groups = mix.shares().iter();
    Scenario {
        groups: groups
            .map(|(kind, share)| scenario::Group::of_kind(*kind, *share, habits.clone()))
            .collect(),
        ..Scenario::default()
    }
}

fn agents(scenario: &Scenario) -> Vec<Enrolled> {
    let recruits = scenario.recruits(scenario.agents(), Naming::Through("sim-"));
    let agents = recruits.into_iter().enumerate().map(|(place, recruit)| {
        let id = format!("{:03}", place + 1);
        let identity = Identity {
            name: name(&id),
            id,
            address: "any".to_owned(),
            version: Rc::clone(&recruit.version),
        };
        Enrolled {
            recruit,
            identity,
            key: Secret::new(KEY.to_owned()),
        }
    });
    agents.collect()
}

/// A fleet at work, and the lines that it tells.
struct Stage {
    orders: mpsc::Sender<Order>,
    lines: mpsc::Receiver<Line>,
    report: oneshot::Receiver<Report>,
}

impl Stage {
    fn start(address: SocketAddr, habits: &Habits, mix: &str) -> Self {
        Self::playing(address, of(mix, habits), usize::MAX)
    }

    fn playing(address: SocketAddr, scenario: Scenario, udp_sockets: usize) -> Self {
        let (orders, mut receiver) = mpsc::channel(8);
        let (tell, lines) = mpsc::channel(64);
        let (done, report) = oneshot::channel();
        let agents = agents(&scenario);
        let running = Running::start(Launch {
            manager: address,
            scenario,
            agents,
            counters: Counters::New,
            dice: Dice::new(1),
            standing: Standing::default(),
            udp_sockets,
        })
        .unwrap();
        spawn_local(async move {
            let tell = |line: &Line| tell.try_send(line.clone()).expect("room for every line");
            let report = running.run(&mut receiver, None, pending(), tell).await;
            let _ = done.send(report);
        });
        Self { orders, lines, report }
    }

    async fn order(&self, line: &str) {
        self.orders.send(Order::Do(line.parse().unwrap())).await.unwrap();
    }

    /// The next line; notes are passed over.
    async fn line(&mut self) -> Line {
        loop {
            let line = time::timeout(Duration::from_secs(20), self.lines.recv()).await;
            match line.expect("a line in time").expect("a line") {
                Line::Note { .. } => {}
                line => return line,
            }
        }
    }

    async fn ready(&mut self) -> usize {
        match self.line().await {
            Line::Ready { connected, .. } => connected,
            other => panic!("{other:?}"),
        }
    }

    async fn until_connected(&mut self, count: usize) -> Report {
        self.until(|report| report.standing.connected == count).await
    }

    async fn until(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        let begun = time::Instant::now();
        loop {
            self.order("status").await;
            let line = self.line().await;
            match line {
                Line::Status(report) if wanted(&report) => return report,
                _ => time::sleep(Duration::from_millis(5)).await,
            }
            assert!(begun.elapsed() < PATIENCE, "in vain: {line:?}");
        }
    }

    async fn stop(self) -> Report {
        self.order("stop").await;
        time::timeout(Duration::from_secs(20), self.report)
            .await
            .expect("an end in time")
            .expect("a report")
    }
}

fn on_a_stage(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, story);
}

const ALL: &str = "wazuh-aes-tcp=4,wazuh-blowfish-udp=2,ossec3=2,ossec4=2";

#[test]
fn every_kind_connects_and_says_goodbye_as_its_family_does() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let mut stage = Stage::start(address, &Habits::stock(Duration::from_secs(20)), ALL);
        assert_eq!(stage.ready().await, 10);
        let report = stage.stop().await;
        assert_eq!(report.standing.connected, 10);
        let Tally {
            startups_sent,
            startups_acked,
            shutdowns_sent,
            undecodable,
            ..
        } = report.tally;
        assert_eq!(
            (startups_sent, startups_acked, shutdowns_sent, undecodable),
            (10, 10, 6, 0)
        );
        assert_eq!(manager.borrow().count("#!-agent startup "), 10);
    });
}

#[test]
fn killed_agents_are_named_stay_away_and_come_back() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let mut stage = Stage::start(address, &Habits::stock(Duration::from_secs(20)), ALL);
        stage.ready().await;
        stage.order("kill 3").await;
        let Line::Killed { count: 3, names } = stage.line().await else {
            panic!("three are killed")
        };
        assert_eq!(names.len(), 3);
        assert_eq!(stage.until_connected(7).await.standing.killed, 3);
        assert_eq!(manager.borrow().count("#!-agent shutdown "), 0);
        stage.order("revive").await;
        assert_eq!(stage.line().await, Line::Revived { count: 3, names });
        assert_eq!(stage.ready().await, 10);
        stage.stop().await;
    });
}

#[test]
fn a_silent_kill_keeps_the_connection_open() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let mut stage = Stage::start(address, &Habits::stock(Duration::from_secs(20)), "wazuh-aes-tcp=1");
        stage.ready().await;
        stage.order("kill-names sim-001 silent").await;
        assert_eq!(
            stage.line().await,
            Line::Killed {
                count: 1,
                names: vec!["sim-001".to_owned()]
            }
        );
        stage.until_connected(0).await;
        stage.order("revive").await;
        stage.line().await;
        stage.ready().await;
        let report = stage.stop().await;
        assert_eq!((report.tally.connects, report.tally.closed_by_manager), (2, 0));
    });
}

#[test]
fn every_event_sent_arrives_and_the_account_is_exact() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let mut habits = Habits::stock(Duration::from_secs(20));
        habits.events = Some(EventLoad::even(Duration::from_millis(2), 300));
        let mut stage = Stage::start(address, &habits, "wazuh-aes-tcp=3");
        stage.ready().await;
        while manager.borrow().count("1:/var/log/syslog:") < 500 {
            time::sleep(Duration::from_millis(5)).await;
        }
        let report = stage.stop().await;
        let Tally {
            events_made,
            events_sent,
            events_unsent,
            ..
        } = report.tally;
        assert_eq!((events_made, events_unsent), (events_sent, 0));
        // What is still on its way when the last agent has left arrives all the same.
        let arrived = || u64::try_from(manager.borrow().count("1:")).unwrap();
        time::timeout(Duration::from_secs(20), async {
            while arrived() < events_sent {
                time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("all events arrive");
        assert_eq!(arrived(), events_sent);
    });
}

#[test]
fn agents_wait_for_a_manager_that_is_not_there_yet() {
    on_a_stage(async {
        let spare = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = spare.local_addr().unwrap();
        drop(spare);
        let mut habits = Habits::stock(Duration::from_secs(1));
        habits.retry_interval = Duration::from_millis(50);
        let mut stage = Stage::start(address, &habits, "wazuh-aes-tcp=1");
        let failures = loop {
            stage.order("status").await;
            match stage.line().await {
                Line::Status(report) if report.tally.connect_failures >= 2 => break report.tally.connect_failures,
                _ => time::sleep(Duration::from_millis(10)).await,
            }
        };
        assert!(failures >= 2);
        let late = TcpListener::bind(address).await.unwrap();
        let manager = Manager::new();
        spawn_local(async move {
            let (stream, _) = late.accept().await.unwrap();
            serve_connection(stream, manager).await;
        });
        assert_eq!(stage.ready().await, 1);
        stage.stop().await;
    });
}
