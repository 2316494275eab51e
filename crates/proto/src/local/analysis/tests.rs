#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

use proptest::prelude::*;

use super::*;

fn source(layout: Layout, id: &str, name: &str, address: &str) -> Source {
    Source::new(
        layout,
        &AgentId::new(id),
        name,
        &RegisteredAddress::parse(address).expect("an address"),
    )
}

fn forward(source: &Source, payload: &[u8]) -> Result<Vec<u8>, NotForwarded> {
    let mut out = Vec::new();
    write_event(&mut out, source, payload).map(|()| out)
}

fn dyn_agent() -> Source {
    source(Layout::Wazuh, "001", "dyn", "any")
}

#[test]
fn datagrams_are_those_of_a_recorded_session() {
    let agent = dyn_agent();
    for (payload, datagram) in [
        (
            &b"1:/var/log/syslog:hello"[..],
            &b"1:[001] (dyn) any->/var/log/syslog:hello\0"[..],
        ),
        (
            br"1:C|:\x|| y:msg with : colon",
            b"1:[001] (dyn) any->C|:\\x|| y:msg with : colon\0",
        ),
        (
            b"1:noloc-no-second-colon",
            b"1:[001] (dyn) any->noloc-no-second-colon\0",
        ),
        (b"1::empty location", b"1:[001] (dyn) any->:empty location\0"),
        (b"1:", b"1:[001] (dyn) any->\0"),
        (b"1:a->b:m", b"1:[001] (dyn) any->a->b:m\0"),
        (b"1:a:new\nline", b"1:[001] (dyn) any->a:new\nline\0"),
        (b"1:a:before\0after", b"1:[001] (dyn) any->a:before\0"),
        (b"1:a:\xc3\xa9\xff\xfe ", b"1:[001] (dyn) any->a:\xc3\xa9\xff\xfe \0"),
        (b"x:syslog:foo", b"x:[001] (dyn) any->syslog:foo\0"),
        (b"9:rootcheck:r", b"9:[001] (dyn) any->rootcheck:r\0"),
        (b"4:sec:x", b"4:[001] (dyn) any->sec:x\0"),
        (b"\x01:sec:x", b"\x01:[001] (dyn) any->sec:x\0"),
        (b"::a:b", b"::[001] (dyn) any->a:b\0"),
        (
            b"1:wazuh-agent:keepalive",
            b"1:[001] (dyn) any->wazuh-agent:keepalive\0",
        ),
        (
            b"1:wazuh-agent:ossec: Agent started: 'dyn->any'.",
            b"1:[001] (dyn) any->wazuh-agent:ossec: Agent started: 'dyn->any'.\0",
        ),
    ] {
        assert_eq!(forward(&agent, payload), Ok(datagram.to_vec()), "{payload:?}");
    }
}

#[test]
fn source_is_escaped_and_has_the_registered_address_without_prefix() {
    let event = |agent: &Source| String::from_utf8(forward(agent, b"1:/v:x").expect("forwarded")).expect("ascii");
    assert_eq!(
        event(&source(Layout::Wazuh, "002", "stat", "127.0.0.2")),
        "1:[002] (stat) 127.0.0.2->/v:x\0"
    );
    assert_eq!(
        event(&source(Layout::Wazuh, "003", "cidr", "127.1.0.0/16")),
        "1:[003] (cidr) 127.1.0.0->/v:x\0"
    );
    assert_eq!(
        event(&source(Layout::Wazuh, "004", "v6", "::1")),
        "1:[004] (v6) 0000|:0000|:0000|:0000|:0000|:0000|:0000|:0001->/v:x\0"
    );
    assert_eq!(
        event(&source(Layout::Wazuh, "013", "p|pe:x", "any")),
        "1:[013] (p||pe|:x) any->/v:x\0"
    );
}

#[test]
fn ossec_layout_has_no_id_and_escapes_nothing() {
    let agent = source(Layout::Ossec, "1024", "p|pe:x", "fe80::1/64");
    assert_eq!(
        forward(&agent, b"1:/var/log/auth.log:a:b|c").expect("forwarded"),
        b"1:(p|pe:x) FE80:0000:0000:0000:0000:0000:0000:0001->/var/log/auth.log:a:b|c\0"
    );
}

#[test]
fn payload_without_a_colon_in_its_second_place_is_malformed() {
    for payload in [&b"1"[..], b"11:a:b", b"1 a:b", b"#!x:y", b"\0abc", b"", b"1\0:a:b"] {
        assert_eq!(
            forward(&dyn_agent(), payload),
            Err(NotForwarded::Malformed),
            "{payload:?}"
        );
    }
}

#[test]
fn signs_of_life_are_no_events() {
    for payload in [
        &b"1:keepalive"[..],
        b"1:keepalive:x",
        b"1:keepalived[1]: x",
        b"8:keepalive x",
        b"1:ossec-keepalive:--MARK--: $!c;7x,I4B06",
    ] {
        assert_eq!(
            forward(&dyn_agent(), payload),
            Err(NotForwarded::SignOfLife),
            "{payload:?}"
        );
    }
    assert!(forward(&dyn_agent(), b"1:ossec-keepalive:something else").is_ok());
}

#[test]
fn refused_event_leaves_the_buffer_as_it_was() {
    let mut out = b"before".to_vec();
    assert!(write_event(&mut out, &dyn_agent(), b"1").is_err());
    assert!(write_event(&mut out, &dyn_agent(), b"1:keepalive").is_err());
    assert_eq!(out, b"before");
    write_event(&mut out, &dyn_agent(), b"1:a:b").expect("forwarded");
    assert_eq!(out, b"before1:[001] (dyn) any->a:b\0");
}

#[test]
fn longest_event_passes_whole_and_is_cut_only_behind_a_long_name() {
    let payload = [b"1:a:", &[b'x'; 65_479][..]].concat();
    assert_eq!(payload.len(), 65_483);
    assert_eq!(forward(&dyn_agent(), &payload).expect("forwarded").len(), 65_501);
    let long = source(Layout::Wazuh, "001", &"n".repeat(127), "any");
    let datagram = forward(&long, &payload).expect("forwarded");
    assert_eq!(datagram.len(), 65_536);
    assert!(datagram.ends_with(b"x\0"));
}

#[test]
fn source_longer_than_a_datagram_still_gives_no_longer_one_than_itself() {
    let absurd = source(Layout::Wazuh, "001", &"n".repeat(70_000), "any");
    let datagram = forward(&absurd, b"1:a:b").expect("forwarded");
    assert!(datagram.ends_with(b"->\0"));
}

#[test]
fn notices_are_those_stock_rules_know() {
    let notice = |notice: Notice, name, address| {
        let address = RegisteredAddress::parse(address).expect("an address");
        let agent = Source::new(Layout::Wazuh, &AgentId::new("009"), name, &address);
        let payload = notice.payload(agent.layout(), name, &address);
        String::from_utf8(forward(&agent, payload.as_bytes()).expect("forwarded")).expect("ascii")
    };
    assert_eq!(
        notice(Notice::Stopped, "dyn9", "any"),
        "1:[009] (dyn9) any->wazuh-remoted:ossec: Agent stopped: 'dyn9->any'.\0"
    );
    assert_eq!(
        notice(Notice::Stopped, "v6", "::1"),
        "1:[009] (v6) 0000|:0000|:0000|:0000|:0000|:0000|:0000|:0001->wazuh-remoted:ossec: Agent stopped: \
         'v6->0000:0000:0000:0000:0000:0000:0000:0001'.\0"
    );
    assert_eq!(
        notice(Notice::Disconnected, "dyn5", "any"),
        "1:[009] (dyn5) any->wazuh-monitord:ossec: Agent disconnected: 'dyn5-any'.\0"
    );
    assert_eq!(
        notice(Notice::Removed, "dyn5", "10.0.0.0/8"),
        "1:[009] (dyn5) 10.0.0.0->wazuh-monitord:ossec: Agent removed: 'dyn5-10.0.0.0/8'.\0"
    );
}

#[test]
fn received_event_tells_who_where_and_what() {
    let received = parse(Layout::Wazuh, b"1:[013] (p||pe|:x) any->C|:\\x|| y:msg : |x\0behind").expect("an event");
    assert_eq!(received.queue, b'1');
    assert_eq!(&received.location[..], br"[013] (p|pe:x) any->C:\x| y");
    assert_eq!(received.message, b"msg : |x");
    assert_eq!(
        received.origin(),
        Some(Origin {
            id: Some("013"),
            name: "p|pe:x",
            address: "any",
            location: br"C:\x| y"
        })
    );
}

#[test]
fn received_event_of_this_machine_has_no_origin() {
    let received = parse(Layout::Wazuh, b"1:wazuh-monitord:ossec: Manager started.\0").expect("an event");
    assert_eq!(
        (&received.location[..], received.origin()),
        (&b"wazuh-monitord"[..], None)
    );
}

#[test]
fn received_event_in_the_ossec_layout_may_have_colons_in_its_source() {
    let received = parse(Layout::Ossec, b"1:(v6) FE80:0001->/var/log|x:a:b\0").expect("an event");
    assert_eq!(received.message, b"a:b");
    assert_eq!(
        received.origin(),
        Some(Origin {
            id: None,
            name: "v6",
            address: "FE80:0001",
            location: b"/var/log|x"
        })
    );
    let local = parse(Layout::Ossec, b"1:ossec-monitord:a->b:c\0").expect("an event");
    assert_eq!(
        (&local.location[..], local.message),
        (&b"ossec-monitord"[..], &b"a->b:c"[..])
    );
}

#[test]
fn datagram_that_is_no_event_says_why() {
    for (datagram, error) in [
        (&b""[..], DatagramError::TooShort),
        (b"1:a\0:b", DatagramError::TooShort),
        (b"11:a:b", DatagramError::NoQueue),
        (b"1:no second colon", DatagramError::NoMessage),
        (b"1:only|:escaped", DatagramError::NoMessage),
        (b"1:odd|||:x", DatagramError::NoMessage),
    ] {
        assert_eq!(parse(Layout::Wazuh, datagram), Err(error), "{datagram:?}");
    }
}

proptest! {
    #[test]
    fn what_is_forwarded_is_received(
        name in "[ -~&&[^()]]{1,40}",
        location in "[ -~]{1,40}",
        message in prop::collection::vec(1..=255_u8, 1..200),
        queue in 1..=255_u8,
    ) {
        prop_assume!(!location.starts_with("keepalive") && !location.starts_with("ossec-keepalive"));
        prop_assume!(!name.contains("->"));
        let payload = [&[queue, b':'], escape(&location).as_bytes(), b":", &message].concat();
        let datagram = forward(&source(Layout::Wazuh, "007", &name, "::1"), &payload).expect("forwarded");
        let received = parse(Layout::Wazuh, &datagram).expect("an event");
        prop_assert_eq!(received.queue, queue);
        prop_assert_eq!(received.message, &message[..]);
        let origin = received.origin().expect("an agent");
        prop_assert_eq!((origin.id, origin.name), (Some("007"), name.as_str()));
        prop_assert_eq!(origin.address, "0000:0000:0000:0000:0000:0000:0000:0001");
        prop_assert_eq!(origin.location, location.as_bytes());
    }

    #[test]
    fn arbitrary_payloads_never_panic_and_keep_to_the_limit(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        for layout in [Layout::Wazuh, Layout::Ossec] {
            if let Ok(datagram) = forward(&source(layout, "007", "n", "any"), &payload) {
                prop_assert!(datagram.len() <= MAX_DATAGRAM_LEN);
                prop_assert_eq!(datagram.iter().position(|byte| *byte == 0), Some(datagram.len() - 1));
            }
        }
    }

    #[test]
    fn arbitrary_datagrams_never_panic(
        start in prop::sample::select(vec![&b"1:"[..], b"1:[0", b"1:(", b""]),
        rest in prop::collection::vec(prop::sample::select(b"[]() ->|:\0x\xff".to_vec()), 0..60),
    ) {
        let datagram = [start, &rest].concat();
        for layout in [Layout::Wazuh, Layout::Ossec] {
            if let Ok(received) = parse(layout, &datagram) {
                let _ = received.origin();
            }
        }
    }
}
