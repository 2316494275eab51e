#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

use std::borrow::Cow;

use proptest::prelude::*;

use super::*;

fn parse(payload: &[u8]) -> FromAgent<'_> {
    FromAgent::parse(payload).expect("a control message")
}

#[test]
fn everything_without_the_header_is_an_event() {
    for payload in [&b""[..], b"#!", b"1:a:b", b" #!-agent startup ", b"#!agent startup "] {
        assert_eq!(FromAgent::parse(payload), None, "{payload:?}");
        assert!(!is_control(payload));
    }
}

#[test]
fn startup_carries_what_follows_it() {
    assert_eq!(parse(b"#!-agent startup "), FromAgent::Startup("".into()));
    assert_eq!(
        parse(br#"#!-agent startup {"version":"v4.14.7"}"#),
        FromAgent::Startup(r#"{"version":"v4.14.7"}"#.into())
    );
    assert_eq!(parse(b"#!-agent startup {}\0tail"), FromAgent::Startup("{}".into()));
    assert_eq!(parse(b"#!-agent startup \n"), FromAgent::Startup("\n".into()));
}

#[test]
fn trailing_spaces_count() {
    assert_eq!(parse(b"#!-agent shutdown "), FromAgent::Shutdown);
    assert_eq!(parse(b"#!-agent shutdown \0"), FromAgent::Shutdown);
    for payload in [
        &b"#!-agent shutdown"[..],
        b"#!-agent shutdown  ",
        b"#!-agent startup",
        b"#!-agent startupX",
        b"#!-agent ack ",
        b"#!-foo",
        b"#!-req",
        b"#!-",
    ] {
        assert_eq!(
            parse(payload),
            FromAgent::Invalid(str::from_utf8(&payload[3..]).expect("ascii").into()),
            "{payload:?}"
        );
    }
}

#[test]
fn line_feed_makes_a_keepalive_of_anything_else() {
    assert_eq!(parse(b"#!-\n"), FromAgent::Keepalive("\n".into()));
    assert_eq!(
        parse(b"#!-agent shutdown \n"),
        FromAgent::Keepalive("agent shutdown \n".into())
    );
    assert_eq!(parse(b"#!-agent foo\n"), FromAgent::Keepalive("agent foo\n".into()));
    assert_eq!(parse(b"#!-x\0\n"), FromAgent::Invalid("x".into()));
}

#[test]
fn each_byte_outside_utf8_becomes_a_replacement_character() {
    assert_eq!(
        parse(b"#!-a\xff\xfe\n"),
        FromAgent::Keepalive("a\u{fffd}\u{fffd}\n".into())
    );
    // A character cut short is two bytes, so two replacements.
    assert_eq!(
        parse(b"#!-\xe2\x82A\n"),
        FromAgent::Keepalive("\u{fffd}\u{fffd}A\n".into())
    );
    assert!(matches!(
        parse("#!-é\n".as_bytes()),
        FromAgent::Keepalive(Cow::Borrowed("é\n"))
    ));
}

#[test]
fn answers_are_bytes_behind_a_number_and_a_space() {
    let id = RequestId(0x5614_3fb0);
    assert_eq!(
        parse(b"#!-req 56143fb0 a\0b\xff\xfe"),
        FromAgent::Answer {
            request: id,
            answer: b"a\0b\xff\xfe"
        }
    );
    assert_eq!(
        parse(b"#!-req 9500e0e "),
        FromAgent::Answer {
            request: RequestId(0x0950_0e0e),
            answer: b""
        }
    );
    assert_eq!(parse(b"#!-req 56143fb0 ack"), FromAgent::RequestAck(id));
    assert_eq!(
        parse(b"#!-req 56143fb0 acknowledged"),
        FromAgent::Answer {
            request: id,
            answer: b"acknowledged"
        }
    );
    assert_eq!(
        parse(b"#!-req 56143fb0 ack "),
        FromAgent::Answer {
            request: id,
            answer: b"ack "
        }
    );
    assert_eq!(parse(b"#!-req 437dcbb5"), FromAgent::MalformedAnswer);
    assert_eq!(parse(b"#!-req "), FromAgent::MalformedAnswer);
}

#[test]
fn number_that_is_not_spelt_like_ours_is_nobodys() {
    for payload in [
        &b"#!-req 09500e0e x"[..],
        b"#!-req 9500E0E x",
        b"#!-req 100000000 x",
        b"#!-req +1 x",
        b"#!-req  x",
    ] {
        assert_eq!(parse(payload), FromAgent::StrayAnswer, "{payload:?}");
    }
}

#[test]
fn hellos_are_judged_as_a_stock_manager_of_4_14_7_did() {
    let judge = |text: &str| startup_verdict(text, "v4.14.7", false);
    for version in ["v4.15.0", "v5.0.0"] {
        let text = format!(r#"{{"version":"{version}"}}"#);
        assert_eq!(
            judge(&text),
            StartupVerdict::Higher {
                version: version.into()
            }
        );
        assert_eq!(
            startup_verdict(&text, "v4.14.7", true),
            StartupVerdict::Accepted {
                version: Some(version.into())
            }
        );
    }
    for version in ["v4.14.9", "v4.9.2", "4.14.7", "Wazuh v4.14.7", "", "garbage"] {
        let text = format!(r#"{{"version":"{version}"}}"#);
        assert_eq!(
            judge(&text),
            StartupVerdict::Accepted {
                version: Some(version.into())
            }
        );
    }
    for text in ["{}", r#"{"a":1}"#, r#"{"version":5}"#] {
        assert_eq!(judge(text), StartupVerdict::NoVersion, "{text}");
        assert_eq!(
            startup_verdict(text, "v4.14.7", true),
            StartupVerdict::NoVersion,
            "{text}"
        );
    }
    for text in ["{bad", "[]", "null", "5", "hello", "", "\n"] {
        assert_eq!(judge(text), StartupVerdict::Accepted { version: None }, "{text}");
    }
}

#[test]
fn version_with_absurd_numbers_is_higher() {
    assert!(matches!(
        startup_verdict(r#"{"version":"v99999999999.0"}"#, "v4.14.7", false),
        StartupVerdict::Higher { .. }
    ));
}

#[test]
fn manager_messages_have_their_stock_bytes() {
    let id = RequestId(0xc8fd_dc3c);
    let md5 = "04deea3e540581c220f97c70bbcae151";
    for (message, bytes) in [
        (ToAgent::Ack, &b"#!-agent ack "[..]),
        (
            ToAgent::UpFile { md5 },
            b"#!-up file 04deea3e540581c220f97c70bbcae151 merged.mg\n",
        ),
        (ToAgent::Piece(b"#default\n"), b"#default\n"),
        (ToAgent::CloseFile, b"#!-close file "),
        (ToAgent::Execd(br#"{"version":1}"#), br#"#!-execd {"version":1}"#),
        (ToAgent::Execd(b""), b"#!-execd "),
        (ToAgent::ForceReconnect, b"#!-force_reconnect"),
        (ToAgent::SyscheckRestart, b"#!-syscheck restart"),
        (
            ToAgent::Request {
                id,
                text: b"agent getstate",
            },
            b"#!-req c8fddc3c agent getstate",
        ),
        (
            ToAgent::Request {
                id: RequestId(0x5201_6437),
                text: b"",
            },
            b"#!-req 52016437\0",
        ),
        (
            ToAgent::Request {
                id: RequestId(7),
                text: b"com write \0\x01",
            },
            b"#!-req 7 com write \0\x01",
        ),
        (ToAgent::RequestAck(id), b"#!-req c8fddc3c ack"),
        (
            ToAgent::Keepalive {
                name: "web-01",
                unix_seconds: 1_795_248_218,
            },
            b"#!-agent keepalive web-01 1795248218",
        ),
        (ToAgent::Other(b"sca-dump abc"), b"#!-sca-dump abc"),
    ] {
        assert_eq!(message.to_bytes(), bytes, "{message:?}");
        assert_eq!(ToAgent::parse(bytes), message);
    }
}

#[test]
fn refusals_have_their_stock_bytes() {
    assert_eq!(
        ToAgent::Refusal(HIGHER_VERSION.into()).to_bytes(),
        br#"#!-err {"message":"Agent version must be lower or equal to manager version"}"#
    );
    assert_eq!(
        ToAgent::Refusal(NO_VERSION.into()).to_bytes(),
        br#"#!-err {"message":"Couldn't retrieve version"}"#
    );
    for message in [HIGHER_VERSION, NO_VERSION, "quote \" and \n"] {
        let refusal = ToAgent::Refusal(message.into());
        assert_eq!(ToAgent::parse(&refusal.to_bytes()), refusal);
    }
    assert_eq!(ToAgent::parse(b"#!-err {}"), ToAgent::Other(b"err {}"));
}

#[test]
fn ack_without_its_space_is_no_ack() {
    assert_eq!(ToAgent::parse(b"#!-agent ack"), ToAgent::Other(b"agent ack"));
    assert_eq!(
        ToAgent::parse(b"#!-agent ack extra"),
        ToAgent::Other(b"agent ack extra")
    );
}

#[test]
fn pieces_are_full_but_the_last() {
    let content = [b'x'; 1941];
    assert_eq!(
        Pieces::of(&content).map(<[u8]>::len).collect::<Vec<_>>(),
        [900, 900, 141]
    );
    assert_eq!(Pieces::of(&content[..1800]).count(), 2);
    assert_eq!(Pieces::of(b"").count(), 0);
}

#[test]
fn no_piece_after_the_first_begins_like_a_control_message() {
    let mut content = vec![b'x'; 2000];
    content[900..903].copy_from_slice(b"#!-");
    let pieces: Vec<&[u8]> = Pieces::of(&content).collect();
    assert_eq!(pieces[0].len(), 899);
    assert!(pieces[1].starts_with(b"x#!-"));
    assert_eq!(pieces.concat(), content);
}

proptest! {
    #[test]
    fn arbitrary_control_messages_never_panic_and_read_back(
        header in prop::sample::select(vec![HEADER, STARTUP, SHUTDOWN, REQUEST, REFUSAL, UP_FILE, EXECD, MANAGER_KEEPALIVE, ACK]),
        rest in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let payload = [header, &rest].concat();
        let message = parse(&payload);
        let again = message.to_bytes();
        prop_assert_eq!(parse(&again), message);
        let order = ToAgent::parse(&payload);
        let again = order.to_bytes();
        prop_assert_eq!(ToAgent::parse(&again), order);
    }

    #[test]
    fn arbitrary_hellos_never_panic(text in ".{0,40}", version in "[v0-9.]{0,30}") {
        let _ = startup_verdict(&text, &version, false);
        let _ = startup_verdict(&format!(r#"{{"version":"{version}"}}"#), "v4.14.7", false);
    }

    #[test]
    fn pieces_put_together_are_the_content(content in "[#!x-]{0,4000}") {
        let pieces: Vec<&[u8]> = Pieces::of(content.as_bytes()).collect();
        prop_assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= MAX_PIECE_LEN));
        prop_assert!(pieces.iter().skip(1).all(|piece| !piece.starts_with(HEADER)));
        prop_assert_eq!(pieces.concat(), content.into_bytes());
    }
}
