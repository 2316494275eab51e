use muster_proto::{
    keys::file,
    local::Layout,
    transport::{control::UP_FILE, envelope::CryptoForm},
};

use super::*;
use crate::slot::Route;

const NOW: Millis = Millis(1_000_000);
const JSON: &str = r#"{"command":"restart-wazuh0","parameters":{"extra_args":[],"alert":{}}}"#;
const TEXT: &str = "restart-ossec0 - null (from_the_server) (no_rule_id)";

fn table() -> KeyTable {
    let file = file::parse(b"001 dyn any k\n002 stat 127.0.0.2 k\n005 dyn5 any k\n");
    let (table, _) = KeyTable::default().next(&file);
    for slot in table.slots() {
        slot.hear(NOW);
        slot.set_form(CryptoForm::WazuhAes);
        slot.set_family(Family::Wazuh);
        slot.set_version("Wazuh v4.14.7");
        slot.bind(Route::Udp {
            worker: 0,
            socket: 0,
            peer: "127.0.0.1:9".parse().unwrap(),
        });
    }
    table
}

fn reach() -> Reach {
    Reach::new(Duration::from_secs(40))
}

/// Who gets what, as `<id> <message>`.
fn sent(table: &KeyTable, datagram: &str) -> Vec<String> {
    let order = Order::parse(Layout::Wazuh, datagram.as_bytes()).unwrap().unwrap();
    let slots = recipients(&order.audience, table).unwrap_or_else(|id| panic!("{id} is unknown"));
    let mut sent: Vec<String> = slots
        .into_iter()
        .map(|slot| Planned {
            message: message(&order, &slot),
            slot,
        })
        .filter(|planned| judge(planned, &reach(), NOW) == Outcome::Send)
        .map(|planned| format!("{} {}", planned.slot.id, String::from_utf8_lossy(&planned.message)))
        .collect();
    sent.sort();
    sent
}

#[test]
fn order_goes_to_its_audience() {
    let table = table();
    let everyone = ["001 #!-execd b", "002 #!-execd b", "005 #!-execd b"];
    for (datagram, expected) in [
        ("(x) [] NNS 001 b", &["001 #!-execd b"][..]),
        ("(x) [] NRN 001 b", &["001 #!-execd b"]),
        ("(x) [] ANN (null) b", &everyone),
        ("(x) [] ARS 777 b", &everyone),
        ("(x) [] NNN 001 b", &[]),
        ("(x) [] N!N 001 b", &[]),
        ("(x) [] N!S 001 force_reconnect", &["001 #!-force_reconnect"]),
    ] {
        assert_eq!(sent(&table, datagram), expected, "{datagram}");
    }
    let order = Order::parse(Layout::Wazuh, b"(x) [] NNS 1 b").unwrap().unwrap();
    assert_eq!(recipients(&order.audience, &table).err(), Some("1"));
}

#[test]
fn agents_without_json_get_text_and_everybody_else_what_came() {
    let table = table();
    let version = |id: &str, family, version: &str| {
        let slot = table.by_id(id).unwrap();
        slot.set_family(family);
        slot.set_version(version);
    };
    version("002", Family::Wazuh, "Wazuh v3.13.6");
    version("005", Family::Ossec, "OSSEC HIDS v4.2.0");
    assert_eq!(
        sent(&table, &format!("(msg_to_agent) [] ANN (null) {JSON}")),
        [
            format!("001 #!-execd {JSON}"),
            format!("002 #!-execd {TEXT}"),
            format!("005 #!-execd {TEXT}"),
        ]
    );
    assert_eq!(
        sent(&table, &format!("(x) [] NNS 005 {TEXT}")),
        [format!("005 #!-execd {TEXT}")]
    );
    version("002", Family::Wazuh, "Wazuh v4.2.0");
    assert_eq!(
        sent(&table, &format!("(x) [] NNS 002 {JSON}")),
        [format!("002 #!-execd {JSON}")]
    );
}

#[test]
fn order_that_would_destroy_a_file_waits_for_its_end_and_keeps_its_place() {
    let table = table();
    let slot = table.by_id("001").unwrap();
    slot.set_receives_file(true);
    let planned = |message: &str| Planned {
        slot: Arc::clone(slot),
        message: message.as_bytes().to_vec(),
    };
    let mut held = Held::default();
    assert_eq!(judge(&planned("#!-execd x"), &reach(), NOW), Outcome::Send);
    for message in ["#!-force_reconnect", "#!-syscheck restart"] {
        assert_eq!(judge(&planned(message), &reach(), NOW), Outcome::Hold);
        assert!(held.push(planned(message), NOW));
    }
    assert!(held.ready(&reach(), NOW).is_empty());
    slot.set_receives_file(false);
    let ready: Vec<_> = held
        .ready(&reach(), NOW)
        .into_iter()
        .map(|planned| planned.message)
        .collect();
    assert_eq!(ready, [&b"#!-force_reconnect"[..], b"#!-syscheck restart"]);
    assert!(held.is_empty());
}

#[test]
fn held_orders_are_bounded_in_number_and_time() {
    let table = table();
    let slot = table.by_id("001").unwrap();
    slot.set_receives_file(true);
    let mut held = Held::default();
    let planned = || Planned {
        slot: Arc::clone(slot),
        message: UP_FILE.to_vec(),
    };
    for _ in 0..MAX_HELD {
        assert!(held.push(planned(), NOW));
    }
    assert!(!held.push(planned(), NOW));
    let later = NOW + HELD_FOR;
    slot.hear(later);
    assert!(held.ready(&reach(), later).is_empty());
    assert!(held.is_empty());
}

#[test]
fn only_sca_dumps_are_taken_from_their_socket() {
    assert_eq!(sca(b"001:sca-dump abc\0x"), Some(("001", b"#!-sca-dump abc".to_vec())));
    for other in [&b"001:syscheck restart"[..], b"001 sca-dump", b"", b":", b"001:"] {
        assert_eq!(sca(other), None);
    }
    assert!(is_sca(b"#!-sca-dump abc") && !is_sca(b"#!-execd sca-dump"));
}
