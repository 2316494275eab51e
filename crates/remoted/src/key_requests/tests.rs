use std::net::SocketAddr;

use super::*;
use crate::slot::{ConnectionId, Route};

const PATIENCE: Duration = Duration::from_secs(10);

fn tcp(ip: &str) -> Origin {
    let peer = SocketAddr::new(ip.parse().unwrap(), 40_000);
    Origin {
        route: Route::Tcp {
            connection: ConnectionId::new(0, 1),
            peer,
        },
    }
}

fn udp(ip: &str) -> Origin {
    let peer = SocketAddr::new(ip.parse().unwrap(), 40_000);
    Origin {
        route: Route::Udp {
            worker: 0,
            socket: 0,
            peer,
        },
    }
}

fn settings(per_address: u32, total: u32) -> Settings {
    let rate = |number| ConfiguredRate {
        per_second: number,
        burst: number,
    };
    Settings {
        rate_per_address: rate(per_address),
        rate_total: rate(total),
        ..Settings::default()
    }
}

/// A queue with a listener, without the task that sends.
fn heard(settings: &Settings) -> KeyRequestQueue {
    let queue = KeyRequestQueue::new(Some(settings), Instant::now());
    queue.hear(true);
    queue
}

fn waiting(queue: &KeyRequestQueue) -> usize {
    queue.state().waiting.len()
}

#[test]
fn nothing_is_kept_while_nobody_listens() {
    let queue = KeyRequestQueue::new(None, Instant::now());
    queue.ask(KeyRequest::Id("001"), &tcp("10.0.0.1"));
    assert_eq!(
        (waiting(&queue), queue.counters().key_requests_unheard_total.value()),
        (0, 1)
    );
}

#[test]
fn an_id_that_no_agent_can_have_is_not_asked_for() {
    let queue = heard(&settings(10, 100));
    for id in ["0", "abc", "1;2", "123456789", "-1"] {
        queue.ask(KeyRequest::Id(id), &tcp("10.0.0.1"));
    }
    assert_eq!(
        (waiting(&queue), queue.counters().key_requests_invalid_total.value()),
        (0, 5)
    );
}

#[test]
fn an_empty_id_is_asked_for_as_stock_does() {
    let queue = heard(&settings(100, 100));
    queue.ask(KeyRequest::Id(""), &tcp("192.0.2.1"));
    assert_eq!(queue.first().as_deref(), Some("id:"));
}

#[test]
fn a_request_that_waits_is_not_kept_twice() {
    let queue = heard(&settings(10, 100));
    for _ in 0..3 {
        queue.ask(KeyRequest::Id("001"), &tcp("10.0.0.1"));
        queue.ask(KeyRequest::Address("10.0.0.1".parse().unwrap()), &udp("10.0.0.1"));
    }
    assert_eq!(queue.state().waiting, ["id:001", "ip:10.0.0.1"]);
    assert_eq!(queue.counters().key_requests_merged_total.value(), 4);
}

#[test]
fn the_queue_is_bounded() {
    let queue = heard(&settings(0, 0));
    for id in 1..=2000 {
        queue.ask(KeyRequest::Id(&id.to_string()), &tcp("10.0.0.1"));
    }
    assert_eq!((waiting(&queue), queue.queue().dropped), (QUEUE, 2000 - QUEUE as u64));
}

#[test]
fn one_address_has_its_rate_and_takes_nothing_from_others() {
    let queue = heard(&settings(3, 100));
    for id in 100..200 {
        queue.ask(KeyRequest::Id(&id.to_string()), &tcp("10.0.0.1"));
    }
    assert_eq!(waiting(&queue), 3);
    queue.ask(KeyRequest::Id("001"), &tcp("10.0.0.2"));
    assert_eq!(waiting(&queue), 4);
}

#[test]
fn an_ipv6_network_is_one_source() {
    let queue = heard(&settings(2, 100));
    for host in 1..100 {
        queue.ask(KeyRequest::Id(&host.to_string()), &tcp(&format!("2001:db8::{host:x}")));
    }
    assert_eq!(waiting(&queue), 2);
    queue.ask(KeyRequest::Id("501"), &tcp("2001:db8:0:1::1"));
    queue.ask(KeyRequest::Id("502"), &tcp("::ffff:10.0.0.1"));
    queue.ask(KeyRequest::Id("503"), &tcp("::ffff:10.0.0.2"));
    assert_eq!(waiting(&queue), 5);
}

#[test]
fn made_up_addresses_of_datagrams_take_nothing_from_connections() {
    let queue = heard(&settings(5, 100));
    let begun = Instant::now();
    for number in 0..20_000_u32 {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).to_string();
        queue.ask(KeyRequest::Id(&(1000 + number).to_string()), &udp(&address));
    }
    let before = waiting(&queue);
    // Half of all, and what a moment is worth.
    let most = 52 + 50 * begun.elapsed().as_millis() as usize / 1000;
    assert!((50..=most).contains(&before), "{before} of {most}");
    queue.ask(KeyRequest::Id("001"), &tcp("192.168.0.1"));
    assert_eq!(waiting(&queue), before + 1);
}

#[tokio::test]
async fn the_text_arrives_bare_also_after_the_listener_was_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("krequest");
    let queue = KeyRequestQueue::new(None, Instant::now());
    let stop = CancellationToken::new();
    let task = tokio::spawn(queue.clone().send_to(path.clone(), stop.clone()));
    for id in ["001", "002"] {
        let listener = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 64];
        let heard = async {
            // The first requests may meet nobody: agents come again, and so do we.
            loop {
                queue.ask(KeyRequest::Id(id), &tcp("10.0.0.1"));
                if let Ok(received) = timeout(Duration::from_millis(50), listener.recv(&mut buffer)).await {
                    return received.unwrap();
                }
            }
        };
        let length = timeout(PATIENCE, heard).await.unwrap();
        assert_eq!(buffer[..length], *format!("id:{id}").as_bytes());
        assert!(queue.is_heard());
        std::fs::remove_file(&path).unwrap();
    }
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_listener_that_does_not_read_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("krequest");
    let _listener = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let queue = KeyRequestQueue::new(Some(&settings(0, 0)), Instant::now());
    let stop = CancellationToken::new();
    let task = tokio::spawn(queue.clone().send_to(path, stop.clone()));
    while !queue.is_heard() {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    for id in 1..=5000_u32 {
        queue.ask(KeyRequest::Id(&id.to_string()), &tcp("10.0.0.1"));
        tokio::task::yield_now().await;
    }
    assert!(began.elapsed() < PATIENCE);
    assert!(waiting(&queue) <= QUEUE && queue.queue().dropped > 0);
    stop.cancel();
    task.await.unwrap();
}
