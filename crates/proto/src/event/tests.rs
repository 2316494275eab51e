use proptest::prelude::*;

use super::*;

fn of_kind(kind: Kind, subject_key: &str, alert_level: u8) -> Event {
    body::manager_event(kind, subject_key, 0, alert_level, b"{}".to_vec())
}

#[test]
fn status_changes_from_level_eight_on_are_copied_to_the_alerts() {
    assert_eq!(of_kind(Kind::StatusChange, "001", 7).disconnect_alert(), None);
    assert_eq!(of_kind(Kind::Connection, "001", 15).disconnect_alert(), None);
    let change = of_kind(Kind::StatusChange, "001", 8);
    let copy = change.disconnect_alert().expect("a copy");
    assert_eq!(copy.kind, Kind::DisconnectAlert);
    assert_eq!(copy.body, change.body);
    assert_eq!(copy.disconnect_alert(), None);
}

#[test]
fn numbers_of_files_and_wire_lead_back_to_their_values() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_code(kind.code()), Some(kind));
    }
    for class in Class::ALL {
        assert_eq!(Class::from_code(class.code()), Some(class));
    }
    for stream in Stream::ALL {
        assert_eq!(Stream::from_code(stream.code()), Some(stream));
    }
    assert_eq!(Kind::from_code(19), None);
}

#[test]
fn what_strangers_cause_is_never_in_the_class_that_is_never_dropped() {
    assert_eq!(of_kind(Kind::EnrollmentRejected, "", 15).class(), Class::Alert);
    assert_eq!(of_kind(Kind::KeyPolling, "failed", 15).class(), Class::Alert);
}

/// Whether a NATS subject matches a pattern.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(left), Some(right)) if left == right => {}
            _ => return false,
        }
    }
}

proptest! {
    #[test]
    fn every_subject_is_legal_and_taken_by_its_own_stream_only(
        kind in prop::sample::select(Kind::ALL.to_vec()), key in ".{0,80}", node in ".{1,80}", level in 0_u8..=15,
    ) {
        let subject = of_kind(kind, &key, level).subject("wazuh.xdr", &node);
        prop_assert!(subject.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*' && byte != b'>'), "{}", subject);
        prop_assert!(subject.split('.').all(|token| !token.is_empty()), "{}", subject);
        for stream in Stream::ALL {
            // An agentless or osquery key with too few tokens is its producer's mistake, and still goes to its stream.
            let taken = stream.subjects("wazuh.xdr").iter().any(|pattern| matches(pattern, &subject));
            prop_assert_eq!(taken, stream == kind.stream(), "{} {}", subject, stream.name());
        }
    }
}
