//! Every decision, without a socket.

use std::net::SocketAddr;

use muster_proto::{
    agent::AgentStatus,
    keys::file,
    transport::envelope::{Opened, Opener, Sealer},
};
use proptest::prelude::*;

use super::*;
use crate::slot::{News, StartupOutcome};

const KEYS: &str = "001 dyn any k1\n002 stat 127.0.0.2 k2\n003 cidr 127.1.0.0/16 k3\n004 v6 ::1 k4\n";
const NOW: Millis = Millis(1_000_000);

fn table() -> KeyTable {
    KeyTable::default().next(&file::parse(KEYS.as_bytes())).0
}

fn rules() -> Rules {
    Rules::new(&Remote::default(), ManagerVersion::default(), Verify::Ossec)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn peer() -> SocketAddr {
    "127.0.0.1:4000".parse().unwrap()
}

fn tcp(sequence: u64) -> Origin {
    Origin {
        route: Route::Tcp {
            connection: ConnectionId::new(0, sequence),
            peer: peer(),
        },
    }
}

fn udp() -> Origin {
    Origin {
        route: Route::Udp {
            worker: 0,
            socket: 0,
            peer: peer(),
        },
    }
}

/// Everything that happens to one packet, as the edge does it.
fn outcome(table: &KeyTable, source: &str, packet: &[u8]) -> Result<String, (Cause, Option<String>)> {
    let refused = |refusal: Refusal<'_>| (refusal.cause, refusal.key_request.map(|request| request.text()));
    match identify(table, ip(source), packet).map_err(refused)? {
        Sender::Ping => Ok("ping".to_owned()),
        Sender::Agent { slot, named, sealed } => {
            let mut opener = Opener::new();
            let Opened { form, counter, payload } = opener
                .open(&slot.keys, sealed, None)
                .map_err(|error| refused(refusal_of(error, named, Ownership::Free)))?;
            admit(slot, (form, counter), named, Ownership::Free, &rules(), |_| None).map_err(refused)?;
            Ok(format!("{} {}", slot.id, String::from_utf8_lossy(payload)))
        }
    }
}

fn sealed(table: &KeyTable, id: &str, form: CryptoForm, counter: Counter) -> Vec<u8> {
    let slot = table.by_id(id).unwrap();
    Sealer::new()
        .seal(&slot.keys, form, counter, 1, [7; 16], b"1:a:b", None)
        .unwrap()
        .to_vec()
}

fn behind(prefix: &str, rest: &[u8]) -> Vec<u8> {
    [prefix.as_bytes(), rest].concat()
}

#[test]
fn who_is_found_and_who_is_asked_for() {
    let table = table();
    let seal = |id| sealed(&table, id, CryptoForm::WazuhAes, Counter { global: 1, local: 1 });
    let (one, two, three, four) = (seal("001"), seal("002"), seal("003"), seal("004"));
    let asks = |cause, text: &str| Err((cause, Some(text.to_owned())));
    let silent = |cause| Err((cause, None));
    let v6 = "::1";
    for (source, packet, expected) in [
        ("127.0.0.1", behind("!001!", &one), Ok("001 1:a:b".to_owned())),
        ("203.0.113.9", behind("!001!", &one), Ok("001 1:a:b".to_owned())),
        ("127.0.0.2", two.clone(), Ok("002 1:a:b".to_owned())),
        ("::ffff:127.0.0.2", two.clone(), Ok("002 1:a:b".to_owned())),
        ("127.0.0.2", behind("!002!", &two), Ok("002 1:a:b".to_owned())),
        ("127.1.0.9", behind("!003!", &three), Ok("003 1:a:b".to_owned())),
        (v6, four.clone(), Ok("004 1:a:b".to_owned())),
        (v6, behind("!004!", &four), Ok("004 1:a:b".to_owned())),
        ("127.0.0.1", b"#ping".to_vec(), Ok("ping".to_owned())),
        ("127.0.0.1", b"#ping!999!".to_vec(), Ok("ping".to_owned())),
        ("127.0.0.1", behind("!999!", &one), asks(Cause::UnknownId, "id:999")),
        ("127.0.0.1", behind("!1!", &one), asks(Cause::UnknownId, "id:1")),
        ("127.0.0.1", behind("!!", &one), asks(Cause::UnknownId, "id:")),
        ("127.0.0.1", behind("!002!", &two), asks(Cause::WrongSource, "id:002")),
        ("127.2.0.1", behind("!003!", &three), asks(Cause::WrongSource, "id:003")),
        // Families do not mix.
        (v6, behind("!002!", &two), asks(Cause::WrongSource, "id:002")),
        (v6, behind("!003!", &three), asks(Cause::WrongSource, "id:003")),
        ("127.0.0.1", two.clone(), asks(Cause::UnknownAddress, "ip:127.0.0.1")),
        ("127.1.0.5", three.clone(), asks(Cause::UnknownAddress, "ip:127.1.0.5")),
        ("127.0.0.1", Vec::new(), asks(Cause::UnknownAddress, "ip:127.0.0.1")),
        (
            "2001:db8::1",
            b"x".to_vec(),
            asks(Cause::UnknownAddress, "ip:2001:0DB8:0000:0000:0000:0000:0000:0001"),
        ),
        ("127.0.0.1", behind("!001!", &two), asks(Cause::WrongKey, "id:001")),
        ("127.0.0.2", one.clone(), asks(Cause::WrongKey, "ip:127.0.0.2")),
        ("127.0.0.2", behind("!002!", &one), asks(Cause::WrongKey, "id:002")),
        ("127.0.0.1", b"!001!#AES:".to_vec(), asks(Cause::WrongKey, "id:001")),
        ("127.0.0.1", b"!001!:abc".to_vec(), asks(Cause::WrongKey, "id:001")),
        ("127.0.0.1", b"!0a1!..".to_vec(), silent(Cause::Malformed)),
        ("127.0.0.1", b"!001".to_vec(), silent(Cause::Malformed)),
        (
            "127.0.0.1",
            b"!001!#ping".to_vec(),
            silent(Cause::Corrupt(CorruptKind::Token)),
        ),
        (
            "127.0.0.1",
            b"!001!abcdef".to_vec(),
            silent(Cause::Corrupt(CorruptKind::Token)),
        ),
        (
            "127.0.0.1",
            b"!001!".to_vec(),
            silent(Cause::Corrupt(CorruptKind::Empty)),
        ),
        (
            "127.0.0.1",
            behind(&format!("!{}!", "9".repeat(5000)), &one),
            silent(Cause::UnknownId),
        ),
    ] {
        assert_eq!(
            outcome(&table, source, &packet),
            expected,
            "{source} {:?}",
            String::from_utf8_lossy(&packet)
        );
    }
}

#[test]
fn log_numbers_are_the_stock_ones() {
    for (cause, number) in [
        (Cause::Malformed, Some(1403)),
        (Cause::UnknownId, Some(1408)),
        (Cause::WrongSource, Some(1408)),
        (Cause::UnknownAddress, Some(1213)),
        (Cause::WrongKey, Some(1404)),
        (Cause::OlderGlobal, Some(1404)),
        (Cause::Replay, Some(1407)),
        (Cause::Corrupt(CorruptKind::Checksum), Some(1406)),
        (Cause::Corrupt(CorruptKind::Inflate), Some(2202)),
        (Cause::KeyInUse, None),
    ] {
        assert_eq!(cause.log_number(), number, "{cause:?}");
    }
}

fn admitted(slot: &AgentSlot, verify: Verify, form: CryptoForm, text: &str) -> Result<(), (Cause, bool)> {
    let counter = Counter::from_rids(text.as_bytes()).unwrap();
    let rules = Rules { verify, ..rules() };
    admit(
        slot,
        (form, counter),
        KeyRequest::Id("018"),
        Ownership::Free,
        &rules,
        |_| None,
    )
    .map_err(|refusal| (refusal.cause, refusal.key_request.is_some()))
}

#[test]
fn counters_are_judged_as_stock_judges_them() {
    let table = table();
    let slot = table.by_id("001").unwrap();
    let replay = Err((Cause::Replay, false));
    let older = Err((Cause::OlderGlobal, true));
    for (counter, expected) in [
        ("100:5", Ok(())),
        ("100:5", replay),
        ("100:4", replay),
        ("100:6", Ok(())),
        ("99:9000", older),
        ("101:1", Ok(())),
        ("0:0", older),
        ("101:2", Ok(())),
        ("4294967295:9999", Ok(())),
        ("4294967295:9999", replay),
        ("102:1", older),
    ] {
        assert_eq!(
            admitted(slot, Verify::All, CryptoForm::WazuhAes, counter),
            expected,
            "{counter}"
        );
    }
}

#[test]
fn counters_of_wazuh_forms_are_recorded_and_not_checked_and_those_of_ossec_are() {
    let table = table();
    let slot = table.by_id("001").unwrap();
    for counter in ["9:5", "9:5", "3:1"] {
        assert_eq!(
            admitted(slot, Verify::Ossec, CryptoForm::WazuhAes, counter),
            Ok(()),
            "{counter}"
        );
        assert_eq!(
            admitted(slot, Verify::Ossec, CryptoForm::Blowfish, counter),
            Ok(()),
            "{counter}"
        );
    }
    assert_eq!(slot.received_unwritten(), Counter::from_rids(b"3:1:"));
    assert_eq!(
        admitted(slot, Verify::Ossec, CryptoForm::OssecAes, "3:1"),
        Err((Cause::Replay, false))
    );
    // Blowfish is spoken by both families: what the agent says of itself decides.
    slot.set_family(Family::Ossec);
    assert_eq!(
        admitted(slot, Verify::Ossec, CryptoForm::Blowfish, "2:9"),
        Err((Cause::OlderGlobal, true))
    );
    slot.set_family(Family::Wazuh);
    assert_eq!(admitted(slot, Verify::Ossec, CryptoForm::Blowfish, "2:9"), Ok(()));
}

#[test]
fn stored_counter_counts_after_a_restart_and_is_asked_for_once() {
    let table = table();
    let slot = table.by_id("001").unwrap();
    let rules = Rules {
        verify: Verify::All,
        ..rules()
    };
    let mut asked = 0;
    let mut admit_at = |local| {
        let seen = (CryptoForm::WazuhAes, Counter { global: 50, local });
        admit(slot, seen, KeyRequest::Id("001"), Ownership::Free, &rules, |_| {
            asked += 1;
            Some(Counter { global: 50, local: 10 })
        })
        .is_ok()
    };
    assert!(!admit_at(10));
    assert!(admit_at(11));
    assert_eq!(asked, 1);
}

#[test]
fn counters_of_a_message_that_is_refused_are_not_recorded() {
    let table = table();
    let slot = table.by_id("001").unwrap();
    let seen = (CryptoForm::OssecAes, Counter { global: 9, local: 9 });
    let named = KeyRequest::Id("001");
    let refused = admit(slot, seen, named, Ownership::Taken, &rules(), |_| None);
    assert_eq!(refused.map_err(|refusal| refusal.cause), Err(Cause::KeyInUse));
    let aes_only = Rules {
        crypto_accept: CryptoAccept::Blowfish,
        ..rules()
    };
    let refused = admit(slot, seen, named, Ownership::Free, &aes_only, |_| None);
    assert_eq!(refused.map_err(|refusal| refusal.cause), Err(Cause::Cipher));
    assert_eq!(slot.received_unwritten(), None);
}

#[test]
fn ownership_follows_the_last_control_message_and_silence() {
    let table = table();
    let slot = table.by_id("001").unwrap();
    let minute = Duration::from_secs(60);
    let (first, second) = (tcp(1), tcp(2));
    let owner = first.connection().unwrap();
    slot.hear(NOW);
    assert_eq!(
        ownership(slot, &second, NOW, &rules()),
        Ownership::Free,
        "nobody owns it yet"
    );
    slot.bind(first.route);
    assert_eq!(ownership(slot, &first, NOW, &rules()), Ownership::Free);
    assert_eq!(ownership(slot, &second, NOW + minute, &rules()), Ownership::Taken);
    assert_eq!(ownership(slot, &udp(), NOW + minute, &rules()), Ownership::Taken);
    let later = NOW + minute + Duration::from_millis(1);
    assert_eq!(ownership(slot, &second, later, &rules()), Ownership::Overtakes(owner));
    assert_eq!(ownership(slot, &udp(), later, &rules()), Ownership::Overtakes(owner));

    let never = Rules {
        overtake_after: None,
        ..rules()
    };
    assert_eq!(ownership(slot, &second, later + minute, &never), Ownership::Taken);
    let newest = Rules {
        key_conflict: KeyConflict::Newest,
        ..rules()
    };
    assert_eq!(ownership(slot, &second, NOW, &newest), Ownership::Overtakes(owner));

    // An agent last seen over UDP may open TCP at any time.
    slot.bind(udp().route);
    assert_eq!(ownership(slot, &second, NOW, &rules()), Ownership::Free);
    // And ownership ends with the connection, not with another's end.
    slot.bind(first.route);
    assert!(!slot.unbind(ConnectionId::new(0, 2)));
    assert_eq!(ownership(slot, &second, NOW, &rules()), Ownership::Taken);
    assert!(slot.unbind(owner));
    assert_eq!(ownership(slot, &second, NOW, &rules()), Ownership::Free);
}

#[test]
fn owned_agents_refusals_say_nothing_about_the_key() {
    let named = KeyRequest::Id("001");
    for error in [OpenError::WrongKey, OpenError::Corrupt(CorruptKind::Checksum)] {
        assert_eq!(
            refusal_of(error, named, Ownership::Taken),
            Refusal::silent(Cause::KeyInUse)
        );
    }
    let overtakes = Ownership::Overtakes(ConnectionId::new(0, 1));
    assert_eq!(
        refusal_of(OpenError::WrongKey, named, overtakes),
        Refusal::asking(Cause::WrongKey, named)
    );
}

fn decided(slot: &Arc<AgentSlot>, payload: &[u8]) -> (Binding, Option<String>, Option<News>, bool) {
    let rules = rules();
    let decision = decide(slot, payload, &tcp(1), NOW, &rules);
    let reply = decision.reply.map(|reply| {
        let mut payload = Vec::new();
        reply.write(&mut payload);
        String::from_utf8(payload).unwrap()
    });
    (decision.binding, reply, decision.news, decision.event.is_some())
}

fn active(id: &str) -> Arc<AgentSlot> {
    let slot = Arc::clone(table().by_id(id).unwrap());
    slot.set_status(AgentStatus::Active);
    slot
}

#[test]
fn startups_are_answered_by_version() {
    let slot = active("001");
    let accepted = |version: Option<&str>| StartupOutcome::Accepted {
        version: version.map(str::to_owned),
    };
    let refused = |version: &str| StartupOutcome::RefusedVersion {
        version: version.to_owned(),
    };
    let ack = "#!-agent ack ";
    let higher = r##"#!-err {"message":"Agent version must be lower or equal to manager version"}"##;
    let none = r##"#!-err {"message":"Couldn't retrieve version"}"##;
    for (hello, answer, expected) in [
        (r#"{"version":"v4.15.0"}"#, higher, refused("v4.15.0")),
        (r#"{"version":"v5.0.0"}"#, higher, refused("v5.0.0")),
        (r#"{"version":"v4.14.9"}"#, ack, accepted(Some("v4.14.9"))),
        (r#"{"version":"v4.9.2"}"#, ack, accepted(Some("v4.9.2"))),
        (r#"{"version":"4.14.7"}"#, ack, accepted(Some("4.14.7"))),
        (r#"{"version":"Wazuh v4.14.7"}"#, ack, accepted(Some("Wazuh v4.14.7"))),
        (r#"{"version":""}"#, ack, accepted(Some(""))),
        (r#"{"version":"garbage"}"#, ack, accepted(Some("garbage"))),
        ("{}", none, StartupOutcome::NoVersion),
        (r#"{"a":1}"#, none, StartupOutcome::NoVersion),
        (r#"{"version":5}"#, none, StartupOutcome::NoVersion),
        ("{bad", ack, accepted(None)),
        ("[]", ack, accepted(None)),
        ("null", ack, accepted(None)),
        ("5", ack, accepted(None)),
        ("hello", ack, accepted(None)),
        ("", ack, accepted(None)),
        ("\n", ack, accepted(None)),
    ] {
        let (binding, reply, news, event) = decided(&slot, format!("#!-agent startup {hello}").as_bytes());
        assert_eq!(reply.as_deref(), Some(answer), "{hello}");
        let Some(News::Startup {
            outcome,
            at,
            peer: from,
            protocol,
            ..
        }) = news
        else {
            panic!("{hello}")
        };
        assert_eq!(
            (outcome, at, from, protocol),
            (expected, NOW, peer(), Protocol::Tcp),
            "{hello}"
        );
        assert_eq!((binding, event), (Binding::Bind, false), "bound all the same: {hello}");
    }
}

#[test]
fn only_keepalives_with_a_line_feed_are_acknowledged() {
    let slot = active("001");
    for text in [
        "#!-agent foo\n",
        "#!-agent shutdown \n",
        "#!-\n",
        "#!-Linux |a - Wazuh v4.14.7\nx merged.mg",
    ] {
        let (binding, reply, news, _) = decided(&slot, text.as_bytes());
        assert_eq!(
            (binding, reply.as_deref()),
            (Binding::Bind, Some("#!-agent ack ")),
            "{text:?}"
        );
        assert!(matches!(news, Some(News::Keepalive { .. })), "{text:?}");
    }
    for text in [
        "#!-agent shutdown",
        "#!-agent startup",
        "#!-agent startupX",
        "#!-agent ack ",
        "#!-foo",
        "#!-",
        "#!-req 1f",
    ] {
        let (binding, reply, news, event) = decided(&slot, text.as_bytes());
        assert_eq!((binding, reply, event), (Binding::Bind, None, false), "{text:?}");
        assert!(news.is_none(), "{text:?}");
    }
}

#[test]
fn goodbye_is_not_acknowledged_and_does_not_bind() {
    let (binding, reply, news, event) = decided(&active("001"), b"#!-agent shutdown ");
    assert_eq!((binding, reply, event), (Binding::Goodbye, None, false));
    assert!(matches!(news, Some(News::Shutdown { at: NOW, .. })));
}

#[test]
fn answers_are_passed_on_with_every_byte() {
    let slot = active("001");
    let (binding, reply, news, _) = decided(&slot, b"#!-req 56143fb0 a\0b\xff\xfe");
    assert_eq!((binding, reply), (Binding::Bind, None));
    let Some(News::Answer { counter, body, .. }) = news else {
        panic!("answer")
    };
    assert_eq!(
        (counter.as_str(), body.as_slice()),
        ("56143fb0", b"a\0b\xff\xfe".as_slice())
    );
    let (_, reply, news, _) = decided(&slot, b"#!-req 56143fb0 ack");
    assert!(reply.is_none() && news.is_none(), "only says that it is at work");
}

#[test]
fn keepalive_digest_follows_the_text_up_to_its_last_line_feed() {
    let slot = active("001");
    let digest_of = |text: &str| match decided(&slot, text.as_bytes()).2 {
        Some(News::Keepalive { said, .. }) => said.digest(),
        _ => panic!("keepalive"),
    };
    let base = "#!-Linux h - OSSEC HIDS v4.2.0\nx merged.mg\n\n";
    assert_eq!(
        digest_of(&format!("{base}k#!0random")),
        digest_of(&format!("{base}other"))
    );
    assert_ne!(digest_of(base), digest_of(&base.replace("4.2.0", "4.2.1")));
}

#[test]
fn events_change_no_binding_and_revive_once() {
    let slot = active("001");
    let (binding, reply, news, event) = decided(&slot, b"1:a:b");
    assert_eq!((binding, reply, event), (Binding::Keep, None, true));
    assert!(news.is_none());
    slot.set_status(AgentStatus::Disconnected);
    assert!(matches!(
        decided(&slot, b"1:a:b").2,
        Some(News::HeardAgain { at: NOW, .. })
    ));
    assert!(decided(&slot, b"1:a:b").2.is_none());
    slot.revival_untold();
    assert!(decided(&slot, b"").2.is_some(), "an empty event is a sign of life too");
}

proptest! {
    #[test]
    fn no_packet_of_a_stranger_does_anything(
        packet in proptest::collection::vec(any::<u8>(), 0..200),
        prefix in prop_oneof![Just(""), Just("!001!"), Just("!001!#AES:"), Just("!001!:"), Just("#AES:"), Just("!")],
    ) {
        let table = table();
        let packet = behind(prefix, &packet);
        if let Ok(what) = outcome(&table, "127.0.0.2", &packet) {
            prop_assert_eq!(what, "ping");
        }
        for slot in table.slots() {
            prop_assert!(slot.heard().is_never() && slot.route().is_none());
            prop_assert_eq!(slot.received_unwritten(), None);
        }
    }
}

#[test]
fn speaker_is_found_again_only_by_its_own_id_and_from_where_it_may_talk() {
    let slot = Arc::new(AgentSlot::new(&file::parse(b"001 a 10.0.0.1 k\n").entries[0]));
    let found = |source: &str, packet: &'static [u8]| match identify_again(&slot, ip(source), packet) {
        Some(Sender::Agent { named, sealed, .. }) => Some((named.text(), sealed)),
        Some(Sender::Ping) => panic!("a ping is nobody's"),
        None => None,
    };
    let sealed = b"#AES:x".as_slice();
    assert_eq!(found("10.0.0.1", b"!001!#AES:x"), Some(("id:001".to_owned(), sealed)));
    for (source, packet) in [
        ("10.0.0.2", b"!001!#AES:x".as_slice()),
        ("10.0.0.1", b"!0012!#AES:x"),
        ("10.0.0.1", b"!002!#AES:x"),
        ("10.0.0.1", b":sealed"),
        ("10.0.0.1", b"#ping"),
        ("10.0.0.1", b"!"),
    ] {
        assert_eq!(found(source, packet), None, "{packet:?} from {source}");
    }
}
