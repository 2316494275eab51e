#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

fn read(datagram: &[u8]) -> Order<'_> {
    Order::parse(Layout::Wazuh, datagram)
        .expect("an order")
        .expect("not empty")
}

/// Whom it goes to and what they get.
fn sent(datagram: &[u8]) -> (Audience<'_>, Vec<u8>) {
    let order = read(datagram);
    let message = order.message().to_bytes();
    (order.audience, message)
}

fn agent(id: &str) -> Audience<'_> {
    Audience::Agent(id.into())
}

#[test]
fn orders_are_read_as_in_a_recorded_session() {
    let (event_agent, one) = (Audience::EventAgent("001".into()), agent("001"));
    for (datagram, audience, message) in [
        (
            &b"(local_source) [] NRN 001 {json}"[..],
            &event_agent,
            &b"#!-execd {json}"[..],
        ),
        (b"(local_source) [] NNS 001 {json}", &one, b"#!-execd {json}"),
        (b"(local_source) [] NRS 001 {json}", &one, b"#!-execd {json}"),
        (b"(local_source) [] SSS 001 {json}", &one, b"#!-execd {json}"),
        (b"(local_source) [] XXS 001 {json}", &one, b"#!-execd {json}"),
        (
            b"(local_source) [] ANN (null) {json}",
            &Audience::Everyone,
            b"#!-execd {json}",
        ),
        (
            b"(local_source) [] ANN 001 {json}",
            &Audience::Everyone,
            b"#!-execd {json}",
        ),
        (
            b"(local_source) [] ARS 001 {json}",
            &Audience::Everyone,
            b"#!-execd {json}",
        ),
        (
            b"(msg_to_agent) [] A!N 001 force_reconnect",
            &Audience::Everyone,
            b"#!-force_reconnect",
        ),
        (
            b"(msg_to_agent) [] N!S 001 force_reconnect",
            &one,
            b"#!-force_reconnect",
        ),
        (
            b"(msg_to_agent) [] N!S 001 syscheck restart",
            &one,
            b"#!-syscheck restart",
        ),
        (
            b"(msg_to_agent) [] NNS 001 host-deny0 - 1.2.3.4 1795249868.123 5710 (web-01) any->/var/log/auth.log - -",
            &one,
            b"#!-execd host-deny0 - 1.2.3.4 1795249868.123 5710 (web-01) any->/var/log/auth.log - -",
        ),
        (
            b"(web-01) any->/var/log/x [1.2.3.4] NRN 001 body",
            &event_agent,
            b"#!-execd body",
        ),
        (b"() [] NNS 001 body", &one, b"#!-execd body"),
        (b"(a) [] NNS 001 ", &one, b"#!-execd "),
        (b"(a) [] NNS 001 before\0after", &one, b"#!-execd before"),
        (b"(a) [] NNS 001 two\nlines", &one, b"#!-execd two\nlines"),
    ] {
        assert_eq!(sent(datagram), (audience.clone(), message.to_vec()), "{datagram:?}");
    }
}

#[test]
fn flags_in_the_wrong_column_or_case_mean_nobody() {
    for flags in ["NNN", "N!N", "RNN", "NAN", "NNA", "NNX", "nns"] {
        let datagram = format!("(a) [] {flags} 001 body");
        assert_eq!(read(datagram.as_bytes()).audience, Audience::Nobody, "{flags}");
    }
    // Read one byte further on than it looks.
    assert_eq!(read(b"(a)[]NNS 001 body").audience, Audience::Nobody);
}

#[test]
fn empty_datagram_is_passed_over() {
    assert_eq!(Order::parse(Layout::Wazuh, b""), Ok(None));
    assert_eq!(Order::parse(Layout::Wazuh, b"\0(a) [] NNS 001 body"), Ok(None));
}

#[test]
fn what_is_cut_short_is_malformed() {
    for datagram in [
        &b"(a) NNS 001 body"[..],
        b"(a) [] NNS 001",
        b"(a) [] NNS ",
        b"(a) [] NNS",
        b"(a) [] ",
        b"(a) []",
        b"(a)",
        b")",
        b"plain text",
    ] {
        assert_eq!(Order::parse(Layout::Wazuh, datagram), Err(OrderError), "{datagram:?}");
    }
}

#[test]
fn ids_are_text_and_the_byte_behind_the_flags_is_never_looked_at() {
    assert_eq!(read(b"(a) [] NNS 1 body").audience, agent("1"));
    assert_eq!(read(b"(a) [] NNS all body").audience, agent("all"));
    assert_eq!(read(b"(a) [] NNS001 body").audience, agent("01"));
    assert_eq!(read(b"(a) [] NNSS 001 body").audience, agent(""));
    assert_eq!(read(b"(a) [] NNS  001 body").audience, agent(""));
    assert_eq!(read(b"(a) [] NNS 0\xff1 body").audience, agent("0\u{fffd}1"));
}

#[test]
fn ossec_layout_has_one_word_in_place_of_the_square_brackets() {
    let order = Order::parse(
        Layout::Ossec,
        b"(web-01) 10.0.0.1->/var/log/x NRN 1024 host-deny600 - 1.2.3.4 a b c\0",
    );
    assert_eq!(
        order,
        Ok(Some(Order {
            audience: Audience::EventAgent("1024".into()),
            kind: Kind::ActiveResponse,
            body: b"host-deny600 - 1.2.3.4 a b c",
        }))
    );
    let order = Order::parse(Layout::Ossec, b"(msg_to_agent) [] N!S 1024 syscheck restart");
    assert_eq!(
        order.expect("an order").expect("not empty").message(),
        ToAgent::Other(b"syscheck restart")
    );
}

#[test]
fn written_orders_have_their_stock_bytes() {
    let order = Order {
        audience: agent("001"),
        kind: Kind::Control,
        body: b"force_reconnect",
    };
    assert_eq!(
        order.to_datagram("msg_to_agent"),
        b"(msg_to_agent) [] N!S 001 force_reconnect"
    );
    let order = Order {
        audience: Audience::Everyone,
        kind: Kind::ActiveResponse,
        body: b"{}",
    };
    assert_eq!(order.to_datagram("msg_to_agent"), b"(msg_to_agent) [] ANN (null) {}");
    let order = Order {
        audience: Audience::EventAgent("001".into()),
        kind: Kind::ActiveResponse,
        body: b"{}",
    };
    assert_eq!(order.to_datagram("local_source"), b"(local_source) [] NRN 001 {}");
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        id in "[0-9]{1,8}",
        everyone in any::<bool>(),
        control in any::<bool>(),
        body in prop::collection::vec(1..=255_u8, 0..100),
    ) {
        let order = Order {
            audience: if everyone { Audience::Everyone } else { Audience::Agent(id.into()) },
            kind: if control { Kind::Control } else { Kind::ActiveResponse },
            body: &body,
        };
        let datagram = order.to_datagram("msg_to_agent");
        for layout in [Layout::Wazuh, Layout::Ossec] {
            prop_assert_eq!(Order::parse(layout, &datagram), Ok(Some(order.clone())));
        }
    }

    #[test]
    fn arbitrary_datagrams_never_panic(
        start in prop::sample::select(vec![&b"(a) [] "[..], b"(a) [] NNS 001 ", b"(", b""]),
        rest in prop::collection::vec(prop::sample::select(b"()[] ANRS!01\0x\xff".to_vec()), 0..40),
    ) {
        let datagram = [start, &rest].concat();
        for layout in [Layout::Wazuh, Layout::Ossec] {
            let _ = Order::parse(layout, &datagram);
        }
    }
}
