//! Disks that are full or damaged, and producers that are broken or overdo it.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::ipc::events::{FromNatsd, NumberedEvent, ToNatsd};
use muster_service::ipc::Connection;

use crate::{
    accepted, block_on,
    disk::Disk,
    json,
    natsd::{Home, Natsd},
    producer, provisioned,
    server::Server,
    state_and_audit, verifier, wait_for,
};

fn degraded(home: &Home) -> String {
    home.status()
        .map(|status| status.degraded.join("\n"))
        .unwrap_or_default()
}

fn told(home: &Home, what: &str) -> usize {
    home.log().matches(what).count()
}

/// Every place from 0 on once and in order, all signed, and nothing that is missing or is said to be although it is there.
fn check_places(server: &Server, home: &Home, count: u64) {
    let (state, audit) = state_and_audit(server);
    let mut verifier = verifier(home);
    let lost = accepted(&mut verifier, &audit)
        .iter()
        .map(|message| json(message)["spool"].take())
        .filter(|gap| gap["reason"] == "outbox_full")
        .count();
    assert_eq!(lost, 0, "no producer has dropped anything");
    let places: Vec<_> = accepted(&mut verifier, &state)
        .iter()
        .map(|message| json(message)["status_change"]["missed_keepalives"].as_u64())
        .collect();
    assert_eq!(places, (0..count).map(Some).collect::<Vec<_>>());
    assert!(verifier.undeclared().is_empty());
}

fn put(producer: &mut producer::Producer, places: std::ops::Range<u32>) {
    // Of one agent only one change is on its way at a time.
    places.for_each(|place| producer.put(producer::change(place % 100, place)));
}

/// A natsd whose spool is on a small disk of its own, and a producer that it has taken the changes 0..20 of.
fn on_small_disk(server: &Server, size: &str) -> Option<(Home, Disk, Natsd, producer::Producer)> {
    let home = provisioned(server, "<message_signing>yes</message_signing>");
    let disk = Disk::mount(home.path("queue/nats"), size)?;
    let natsd = home.start();
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), "remoted");
    put(&mut producer, 0..20);
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    Some((home, disk, natsd, producer))
}

#[test]
fn full_disk_below_the_spool_is_told_and_events_go_to_the_broker_from_memory() {
    let server = Server::start();
    let Some((home, disk, natsd, mut producer)) = on_small_disk(&server, "4m") else {
        return;
    };

    disk.fill();
    put(&mut producer, 20..1500);
    block_on(producer.hand_over_all());
    let (state, _) = state_and_audit(&server);
    assert_eq!(state.len(), 1500, "what is said to be safe is the broker's");
    assert!(
        degraded(&home).contains("the spool takes no events"),
        "{}",
        degraded(&home)
    );
    assert!(degraded(&home).contains("No space left"), "{}", degraded(&home));
    assert!(told(&home, "the spool cannot take events") <= 2, "{}", home.log());
    // Killed and started on the full disk, it is there again and knows what it has taken.
    natsd.kill();
    let natsd = home.start();
    disk.free();
    put(&mut producer, 1500..1600);
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    wait_for("nothing is degraded", || degraded(&home).is_empty());
    natsd.stop();
    check_places(&server, &home, 1600);
}

#[test]
fn full_disk_without_a_broker_makes_producers_wait_and_loses_nothing() {
    let mut server = Server::start();
    let Some((home, disk, natsd, mut producer)) = on_small_disk(&server, "8m") else {
        return;
    };
    server.kill();

    disk.fill();
    put(&mut producer, 20..1500);
    block_on(producer.hand_over(Duration::from_secs(3)));
    assert!(producer.waiting() > 0, "nobody has them");
    disk.free();
    // What is held in memory goes to the disk.
    block_on(producer.hand_over_all());
    disk.fill();
    put(&mut producer, 1500..3000);
    block_on(producer.hand_over(Duration::from_secs(3)));
    assert!(producer.waiting() > 0, "nobody has them");
    natsd.kill();
    disk.free();
    let natsd = home.start();
    server.restart();
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    natsd.stop();
    check_places(&server, &home, 3000);
}

#[test]
fn full_disk_below_the_audit_trail_is_told_and_stops_no_event() {
    let server = Server::start();
    let home = provisioned(
        &server,
        "<message_signing>yes</message_signing><audit_logging>yes</audit_logging>",
    );
    let Some(disk) = Disk::mount(home.path("logs"), "128k") else {
        return;
    };
    let natsd = home.start();
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), "authd");
    producer.put(producer::enrollment(1));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    disk.fill();
    // A page may have room still.
    (2..100).for_each(|agent| producer.put(producer::enrollment(agent)));
    block_on(producer.hand_over_all());
    wait_for("it is told", || {
        degraded(&home).contains("acts are missing in the audit trail")
    });
    home.wait_until_all_is_published();
    assert!(told(&home, "cannot write to the audit trail") > 0);
    disk.free();
    producer.put(producer::enrollment(100));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    wait_for("nothing is degraded", || degraded(&home).is_empty());
    natsd.stop();
    muster_natsd::audit::check(&home.path("logs/natsd-audit.json")).expect("the chain holds");
    let (state, _) = state_and_audit(&server);
    assert_eq!(state.len(), 100);
}

/// The segments that anything was written to, in order; one that is only ready for what comes next is not among them.
fn written_segments(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.path("queue/nats")).expect("lists");
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut segments: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "seg"))
        .filter(|path| fs::read(path).expect("reads").iter().any(|byte| *byte != 0))
        .collect();
    segments.sort();
    segments
}

/// Where a segment holds this.
fn find(segments: &[PathBuf], wanted: &str) -> (PathBuf, usize) {
    let place_in = |path: &PathBuf| {
        let bytes = fs::read(path).expect("reads");
        bytes
            .windows(wanted.len())
            .position(|window| window == wanted.as_bytes())
    };
    let found = segments.iter().find_map(|path| Some((path.clone(), place_in(path)?)));
    found.expect("the event is in a segment")
}

#[test]
fn torn_flipped_and_foreign_bytes_in_the_spool_cost_what_they_hit_and_are_declared() {
    let mut server = Server::start();
    let home = provisioned(&server, "<message_signing>yes</message_signing>");
    let natsd = home.start();
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), "remoted");
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    server.kill();
    for place in 1..10 {
        producer.put(producer::change(1, place));
        block_on(producer.hand_over_all());
    }
    natsd.kill();
    let segments = written_segments(&home);
    let (hit, place) = find(&segments, "\"missed_keepalives\":4");
    let mut bytes = fs::read(&hit).expect("reads");
    bytes[place + 3] ^= 1;
    fs::write(&hit, bytes).expect("writes");
    let segment = segments.last().expect("a segment");
    let mut bytes = fs::read(segment).expect("reads");
    // A commit that a crash has cut short, where the next one would have stood.
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("something") + 1;
    let torn = bytes[..100].to_vec();
    bytes.splice(end..(end + 100).min(bytes.len()), torn);
    fs::write(segment, bytes).expect("writes");
    fs::write(home.path("queue/nats/README"), "not ours").expect("writes");
    fs::write(home.path("queue/nats/000000000000.seg"), [0xa5; 5000]).expect("writes");
    let natsd = home.start();
    server.restart();
    home.wait_until_all_is_published();
    producer.put(producer::change(1, 10));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    natsd.stop();
    assert!(told(&home, "records of the spool were damaged") == 1, "{}", home.log());
    assert!(home.path("queue/nats/README").exists(), "foreign files are left alone");
    let (state, audit) = state_and_audit(&server);
    let mut verifier = verifier(&home);
    accepted(&mut verifier, &audit);
    let places: Vec<_> = accepted(&mut verifier, &state)
        .iter()
        .map(|message| json(message)["status_change"]["missed_keepalives"].as_u64())
        .collect();
    assert_eq!(
        places,
        (0..=10).filter(|place| *place != 4).map(Some).collect::<Vec<_>>()
    );
    assert!(verifier.undeclared().is_empty(), "the damage is declared");
}

async fn introduced(socket: &Path, name: &str) -> Connection {
    let mut connection = Connection::connect(socket, name).await.expect("connects");
    let produce = ToNatsd::Produce {
        producer: name.to_owned(),
        incarnation: 1,
    };
    connection.send(&produce).await.expect("sends");
    let answer: Option<FromNatsd> = connection.receive().await.expect("answers");
    assert!(matches!(answer, Some(FromNatsd::Resume { taken: 0 })));
    connection
}

#[test]
fn garbage_and_floods_of_one_producer_do_not_hurt_another() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let natsd = home.start();
    let socket = home.path("queue/muster/events");
    let lines_before = home.log().lines().count();
    for seed in 0..40_u8 {
        let mut stream = UnixStream::connect(&socket).expect("connects");
        let garbage: Vec<u8> = (0..5000_u32)
            .map(|place| (place.wrapping_mul(31) >> 3) as u8 ^ seed)
            .collect();
        // It may be thrown out before it has said all.
        let _ = stream.write_all(&garbage);
    }
    block_on(async {
        // Numbers that do not grow, and one that says nothing more.
        let mut wrong = introduced(&socket, "wrong").await;
        let twice = [5, 5].map(|number| NumberedEvent {
            number,
            event: producer::change(1, 0),
        });
        wrong.send(&ToNatsd::Batch(twice.to_vec())).await.expect("sends");
        let ended = wrong.receive::<FromNatsd>().await;
        assert!(!matches!(ended, Ok(Some(_))), "it is thrown out");
        let _silent = introduced(&socket, "silent").await;

        // One that never reads what it is told, with all that it can send.
        let (_reader, mut writer) = introduced(&socket, "flood").await.into_split();
        let flood = async {
            for batch in 0..100_u64 {
                let events = (1..=500).map(|place| NumberedEvent {
                    number: batch * 500 + place,
                    event: producer::keepalive(u32::try_from(place).expect("small")),
                });
                if writer.send(&ToNatsd::Batch(events.collect())).await.is_err() {
                    break;
                }
            }
        };
        let orderly = async {
            let mut producer = producer::Producer::new(socket.clone(), "remoted");
            (0..200).for_each(|place| producer.put(producer::change(1, place)));
            producer.hand_over_all().await;
        };
        tokio::join!(flood, orderly);
    });
    home.wait_until_all_is_published();
    let (state, _) = state_and_audit(&server);
    assert_eq!(state.len(), 200);
    assert!(home.status().is_some(), "it still answers");
    let lines = home.log().lines().count() - lines_before;
    assert!(lines < 30, "{lines} lines: {}", home.log());
    natsd.stop();
}

#[test]
fn what_an_outbox_had_to_drop_is_declared_once() {
    let server = Server::start();
    let home = provisioned(&server, "<message_signing>yes</message_signing>");
    let natsd = home.start();
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), "remoted");
    (0..5).for_each(|place| producer.put(producer::change(1, place)));
    block_on(producer.hand_over_all());
    natsd.stop();
    (5..1005).for_each(|agent| producer.put(producer::keepalive(agent)));
    producer.drop_oldest(700);
    let natsd = home.start();
    block_on(producer.hand_over_all());
    (0..5).for_each(|place| producer.put(producer::change(2, place)));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    natsd.stop();
    let (_, audit) = state_and_audit(&server);
    let gaps: Vec<_> = audit
        .iter()
        .map(json)
        .filter(|body| body["spool"]["reason"] == "outbox_full")
        .collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(
        (&gaps[0]["spool"]["count"], &gaps[0]["spool"]["producer"]),
        (&700.into(), &"remoted".into())
    );
}
