use muster_proto::keys::file;
use muster_service::ipc::Connection;
use serde_json::Value;
use tokio::net::UnixListener;

use super::*;

fn slot(line: &str) -> Arc<AgentSlot> {
    Arc::new(AgentSlot::new(&file::parse(line.as_bytes()).entries[0]))
}

fn options(socket: PathBuf) -> ArchiveOptions {
    ArchiveOptions {
        socket,
        manager: "vm".to_owned(),
        layout: Layout::Wazuh,
        incarnation: 7,
    }
}

fn body(line: &str, payload: &[u8]) -> Option<Value> {
    let line = Line {
        slot: slot(line),
        payload: payload.into(),
        unix_ms: 1_795_248_093_123,
    };
    let event = record(&line, &options(PathBuf::new()))?;
    Some(serde_json::from_slice(&event.body).unwrap())
}

#[test]
fn record_has_the_shape_of_archives_json() {
    let line = Line {
        slot: slot("001 web-01 any k\n"),
        payload: b"1:/var/log/auth.log:Nov 21 08:03:10 web-01 sshd[4243]: Failed"
            .as_slice()
            .into(),
        unix_ms: 1_795_248_093_123,
    };
    let event = record(&line, &options(PathBuf::new())).unwrap();
    assert_eq!(
        (event.kind, event.subject_key.as_str(), event.created_ms),
        (Kind::Archive, "001", line.unix_ms)
    );
    let text = String::from_utf8(event.body).unwrap();
    let (timestamp, rest) = text.strip_prefix(r#"{"timestamp":""#).unwrap().split_once('"').unwrap();
    assert_eq!(
        rest,
        r#","agent":{"id":"001","name":"web-01"},"manager":{"name":"vm"},"location":"/var/log/auth.log","full_log":"Nov 21 08:03:10 web-01 sshd[4243]: Failed"}"#
    );
    assert_eq!(timestamp.len(), "2026-11-21T06:41:33.123+0000".len());
    assert!(timestamp.contains(".123"), "{timestamp}");
}

#[test]
fn location_is_unescaped_and_names_with_arrows_do_not_confuse() {
    let json = body("002 a->b 10.0.0.1 k\n", br"1:C|:\x|| y:msg with : colon").unwrap();
    assert_eq!(json["location"], r"C:\x| y");
    assert_eq!(json["full_log"], "msg with : colon");
    assert_eq!(json["agent"]["ip"], "10.0.0.1");
}

#[test]
fn what_is_no_log_line_gives_no_record() {
    for payload in [
        "",
        "1",
        "1 a:b",
        "1:keepalive",
        "1:ossec-keepalive:--MARK--: x",
        "1:no-second-colon",
    ] {
        assert_eq!(body("001 a any k\n", payload.as_bytes()), None, "{payload}");
    }
}

/// natsd's end of one connection: says where it stands and hands out what comes.
struct Natsd {
    connection: Connection,
}

impl Natsd {
    async fn accept(listener: &UnixListener, taken: u64) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = Connection::accept(stream, "natsd").await.unwrap();
        let Some(ToNatsd::Produce { producer, incarnation }) = connection.receive().await.unwrap() else {
            panic!("produce first")
        };
        assert_eq!((producer.as_str(), incarnation), (PRODUCER, 7));
        connection.send(&FromNatsd::Resume { taken }).await.unwrap();
        Self { connection }
    }

    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let Some(ToNatsd::Batch(events)) = self.connection.receive().await.unwrap() else {
                panic!("a batch")
            };
            numbers.extend(events.iter().map(|event| event.number));
        }
        numbers
    }

    async fn take(&mut self, number: u64) {
        self.connection.send(&FromNatsd::Taken { number }).await.unwrap();
    }
}

#[tokio::test]
async fn records_survive_a_natsd_that_goes_away_and_come_once_when_it_took_them() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("events");
    let listener = UnixListener::bind(&socket).unwrap();
    let stop = CancellationToken::new();
    let (archives, thread) = Archives::start(options(socket), stop.clone()).unwrap();
    let slot = slot("001 a any k\n");
    for _ in 0..5 {
        archives.offer(&slot, b"1:a:b", 1000).unwrap();
    }
    let mut natsd = Natsd::accept(&listener, 0).await;
    assert_eq!(natsd.numbers(5).await, [1, 2, 3, 4, 5]);
    natsd.take(2).await;
    drop(natsd);
    // It had made 3 durable before it went, and had no time to say so.
    let mut natsd = Natsd::accept(&listener, 3).await;
    assert_eq!(natsd.numbers(2).await, [4, 5]);
    archives.offer(&slot, b"1:a:b", 1000).unwrap();
    assert_eq!(natsd.numbers(1).await, [6]);
    natsd.take(6).await;
    while archives.waiting() > 0 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    thread.join().unwrap();
}

#[test]
fn full_queue_refuses_and_remembers_nothing() {
    let home = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let (archives, thread) = Archives::start(options(home.path().join("nobody")), stop.clone()).unwrap();
    let slot = slot("001 a any k\n");
    let payload = vec![b'x'; 65_000];
    let mut taken = 0;
    while archives.offer(&slot, &payload, 0).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, QUEUE_BYTES.div_ceil(payload.len()));
    stop.cancel();
    thread.join().unwrap();
}
