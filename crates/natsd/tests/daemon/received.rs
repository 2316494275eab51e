//! The headers that are set when an event goes out, and what a start after a crash tells, as a consumer receives them.

use std::time::{Duration, Instant};

use muster_natsd::verify::Message;
use muster_proto::event::{Event, header};

use crate::{
    accepted, block_on, json,
    natsd::Home,
    producer::{self, Producer},
    provisioned,
    server::Server,
    state_and_audit, verifier,
};

fn put(home: &Home, producer: &mut Producer, events: impl IntoIterator<Item = Event>) {
    events.into_iter().for_each(|event| producer.put(event));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
}

fn number(message: &Message, name: &str) -> Option<u64> {
    message.header(name)?.parse().ok()
}

#[test]
fn events_name_their_stream_and_how_long_they_waited() {
    let server = Server::start();
    let home = provisioned(
        &server,
        "<message_signing>yes</message_signing><publish mode=\"jetstream\"/>",
    );
    let _natsd = home.start();
    let mut producer = crate::producer(&home);
    let begun = Instant::now();
    let fresh = producer::change(1, 0);
    let mut late = producer::change(1, 1);
    late.created_ms -= 3_600_000;
    put(&home, &mut producer, [fresh, late]);
    let took = begun.elapsed();
    let (state, audit) = state_and_audit(&server);
    let mut verifier = verifier(&home);
    assert_eq!(
        accepted(&mut verifier, &audit).len(),
        audit.len(),
        "a header that is not signed breaks no signature"
    );
    assert_eq!(accepted(&mut verifier, &state).len(), 2);
    for (messages, stream) in [(&state, "MUSTER_STATE"), (&audit, "MUSTER_AUDIT")] {
        for message in messages {
            assert_eq!(message.header(header::EXPECTED_STREAM), Some(stream), "{message:?}");
        }
    }
    let waited = number(&state[1], header::DELAYED).expect("it is late");
    assert!((3600..=3600 + took.as_secs() + 1).contains(&waited), "{waited}");
    match number(&state[0], header::DELAYED) {
        None => {}
        Some(waited) => assert!(
            took > Duration::from_secs(5) && waited <= took.as_secs() + 1,
            "{waited}"
        ),
    }
}

#[test]
fn stream_is_named_from_the_second_event_on_where_it_is_not_known_whether_there_are_streams() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let _natsd = home.start();
    let mut producer = crate::producer(&home);
    put(&home, &mut producer, [producer::change(1, 0)]);
    put(&home, &mut producer, [producer::change(1, 1)]);
    let (state, _) = state_and_audit(&server);
    assert_eq!(state.len(), 2);
    assert_eq!(state[1].header(header::EXPECTED_STREAM), Some("MUSTER_STATE"));
}

#[test]
fn first_gap_after_a_crash_tells_exactly_which_numbers_were_never_used() {
    let server = Server::start();
    let home = provisioned(
        &server,
        "<message_signing>yes</message_signing><audit_logging>yes</audit_logging>",
    );
    let natsd = home.start();
    let mut producer = crate::producer(&home);
    put(&home, &mut producer, (0..20).map(|place| producer::change(1, place)));
    natsd.kill();
    let natsd = home.start();
    put(&home, &mut producer, (20..25).map(|place| producer::change(1, place)));
    natsd.stop();
    let (state, audit) = state_and_audit(&server);
    let keepalive = block_on(async { Server::messages(&server.client().await, "MUSTER_KEEPALIVE").await });
    let epoch = |message: &Message| number(message, header::EPOCH).expect("an epoch");
    let first = audit.iter().map(epoch).min().expect("some");
    let gap = audit
        .iter()
        .filter(|message| epoch(message) == first + 1)
        .map(|message| json(message)["spool"].take())
        .find(|gap| gap["reason"] == "restart")
        .expect("the crash is told");
    let of = |name: &str| gap[name].as_u64().expect("a number");
    let all = || state.iter().chain(&audit).chain(&keepalive);
    let numbers = |of: u64| {
        let of_epoch = all().filter(move |message| epoch(message) == of);
        of_epoch.map(|message| number(message, header::SEQUENCE).expect("a number"))
    };
    let (last_before, first_after) = (numbers(first).max(), numbers(first + 1).min());
    assert_eq!(Some(of("from_seq") - 1), last_before, "{gap}");
    assert_eq!(Some(of("prev_last_seq") + 1), first_after, "{gap}");
    assert_eq!(of("to_seq"), of("prev_last_seq"), "{gap}");
    assert_eq!(of("count"), of("to_seq") + 1 - of("from_seq"), "{gap}");
    assert!(of("count") < 4096, "{gap}");
    let mut verifier = verifier(&home);
    accepted(&mut verifier, &audit);
    assert_eq!(accepted(&mut verifier, &state).len(), 25);
    assert_eq!(verifier.undeclared(), []);
}
