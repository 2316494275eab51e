//! The trace of an event: the producer's, or one that natsd gives it, on everything that is made of it, and the same
//! however often it is sent.

use std::collections::BTreeMap;

use muster_natsd::verify::Message;

use crate::{Server, block_on, delivery::delete_and_make_again, producer, provisioned, wait_for};

const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The trace of each message of the stream, by its id.
fn traces(server: &Server) -> BTreeMap<String, String> {
    let header = |message: &Message, name: &str| message.header(name).expect(name).to_owned();
    let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
    let traces = messages.iter();
    traces
        .map(|message| (header(message, "Nats-Msg-Id"), header(message, "traceparent")))
        .collect()
}

#[test]
fn trace_is_the_same_on_the_alert_and_when_it_is_sent_again() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let _natsd = home.start();
    let mut producer = producer(&home);
    let mut traced = producer::change_of_level(1, 0, 8);
    traced.headers.push(("traceparent".to_owned(), GIVEN.to_owned()));
    producer.put(traced);
    // As a daemon of an earlier release makes it.
    producer.put(producer::change_of_level(2, 0, 8));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    let sent = traces(&server);
    assert_eq!(sent.len(), 4, "each with its alert: {sent:?}");
    let mut by_trace: BTreeMap<&str, usize> = BTreeMap::new();
    for trace in sent.values() {
        *by_trace.entry(trace).or_default() += 1;
    }
    assert_eq!(by_trace.remove(GIVEN), Some(2));
    let (other, count) = by_trace.pop_first().expect("another trace");
    assert_eq!((other.len(), count), (GIVEN.len(), 2), "{other}");

    delete_and_make_again(&home, &server);
    producer.put(producer::change(1, 1));
    block_on(producer.hand_over_all());
    wait_for("everything is there again", || {
        let again = traces(&server);
        sent.keys().all(|id| again.contains_key(id))
    });
    let again = traces(&server);
    assert!(
        sent.iter().all(|(id, trace)| again.get(id) == Some(trace)),
        "{sent:?} {again:?}"
    );
}
