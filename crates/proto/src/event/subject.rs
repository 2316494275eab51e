//! Where each kind of event is published.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::{Event, Kind};

/// The longest token that a name becomes, before its mark.
const MAX_TOKEN_LEN: usize = 64;
/// Tokens of the longest key: `<agent id>.<log type>.<query>`.
const MAX_KEY_TOKENS: usize = 3;
/// How many hex digits of the hash tell two names apart that look alike as tokens.
const MARK_DIGITS: usize = 6;

/// A name as one token of a subject: `[A-Za-z0-9_-]`, everything else replaced by `_`, cut at 64 bytes. If that
/// changed anything, `~` and six hex digits of the name's SHA-256 follow, so that two names never meet.
///
/// ```
/// use muster_proto::event::subject::token;
///
/// assert_eq!(token("web-01"), "web-01");
/// assert_ne!(token("a.b"), token("a_b"));
/// ```
pub fn token(name: &str) -> Cow<'_, str> {
    if is_plain(name) {
        return Cow::Borrowed(name);
    }
    let mut token: String = name
        .bytes()
        .take(MAX_TOKEN_LEN)
        .map(|byte| if is_plain_byte(byte) { char::from(byte) } else { '_' })
        .collect();
    token.push('~');
    let digest = Sha256::digest(name.as_bytes());
    let hex = digest.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    token.extend(
        hex.take(MARK_DIGITS)
            .filter_map(|digit| char::from_digit(u32::from(digit), 16)),
    );
    Cow::Owned(token)
}

/// The subject of an event: `prefix` is configured, `node` the name of this manager.
pub fn of(event: &Event, prefix: &str, node: &str) -> String {
    let key = &event.subject_key;
    let node = token(node);
    match event.kind {
        Kind::Keepalive => format!("{prefix}.manager.keepalive.{}", token(key)),
        Kind::StatusChange => format!("{prefix}.agent.{}.status_change", token(key)),
        Kind::Connection => format!("{prefix}.agent.{}.connection", token(key)),
        Kind::Enrolled => format!("{prefix}.agent.{}.enrolled", token(key)),
        Kind::Removed => format!("{prefix}.agent.{}.removed", token(key)),
        Kind::KeyRotated => format!("{prefix}.agent.{}.key_rotated", token(key)),
        Kind::Renamed => format!("{prefix}.agent.{}.renamed", token(key)),
        Kind::EnrollmentRejected => format!("{prefix}.manager.enrollment.{node}.rejected"),
        Kind::KeyPolling => format!("{prefix}.manager.keypoll.{node}.{}", token(key)),
        Kind::ControlResult => format!("{prefix}.agent.{}.control_result", token(key)),
        Kind::Health => format!("{prefix}.manager.health.{node}"),
        Kind::SpoolGap => format!("{prefix}.manager.spool.{node}"),
        Kind::Audit => format!("{prefix}.manager.audit.{node}"),
        Kind::KeyAnnouncement => format!("{prefix}.manager.keys.{node}"),
        Kind::RuleAlert => format!("{prefix}.alerts.rule.{}.{}", band(event.alert_level), token(key)),
        Kind::Archive => format!("{prefix}.archives.{}", token(key)),
        Kind::Agentless => format!("{prefix}.agentless.{}", tokens(key)),
        Kind::Osquery => format!("{prefix}.osquery.{}", tokens(key)),
        Kind::DisconnectAlert => format!("{prefix}.alerts.agent_disconnected"),
    }
}

/// Whether an event of this kind may be under this subject, whatever the prefix, the node and the key are. The kind is in a
/// header that no signature covers; the subject is covered.
///
/// A node, a host or a key may be called as a family is. So of several kinds whose subjects end like this one it is the
/// kind of which most tokens are told by the kind.
pub fn fits(kind: Kind, subject: &str) -> bool {
    let tokens: Vec<&str> = subject.split('.').collect();
    let most = Kind::ALL.into_iter().filter_map(|other| told(other, &tokens)).max();
    most.is_some() && told(kind, &tokens) == most
}

/// The length of the end that subjects of this kind have, if this one has it; of two that are as long, the one with more
/// tokens of the key behind it.
fn told(kind: Kind, tokens: &[&str]) -> Option<(usize, usize)> {
    let end: &[&str] = match kind {
        Kind::Keepalive => &["manager", "keepalive", "*"],
        Kind::StatusChange => &["agent", "*", "status_change"],
        Kind::Connection => &["agent", "*", "connection"],
        Kind::Enrolled => &["agent", "*", "enrolled"],
        Kind::Removed => &["agent", "*", "removed"],
        Kind::KeyRotated => &["agent", "*", "key_rotated"],
        Kind::Renamed => &["agent", "*", "renamed"],
        Kind::ControlResult => &["agent", "*", "control_result"],
        Kind::EnrollmentRejected => &["manager", "enrollment", "*", "rejected"],
        Kind::KeyPolling => &["manager", "keypoll", "*", "*"],
        Kind::Health => &["manager", "health", "*"],
        Kind::SpoolGap => &["manager", "spool", "*"],
        Kind::Audit => &["manager", "audit", "*"],
        Kind::KeyAnnouncement => &["manager", "keys", "*"],
        Kind::RuleAlert => &["alerts", "rule", "*", "*"],
        Kind::Archive => &["archives", "*"],
        Kind::DisconnectAlert => &["alerts", "agent_disconnected"],
        // Their keys are one token to three.
        Kind::Agentless => return before_a_key("agentless", tokens),
        Kind::Osquery => return before_a_key("osquery", tokens),
    };
    let begin = tokens.len().checked_sub(end.len())?;
    let mut pairs = tokens.iter().skip(begin).zip(end);
    pairs
        .all(|(token, wanted)| *wanted == "*" || token == wanted)
        .then_some((end.len(), 0))
}

/// The first place of this token that has one token to three behind it.
fn before_a_key(family: &str, tokens: &[&str]) -> Option<(usize, usize)> {
    let is_it = |behind: &usize| tokens.iter().rev().nth(*behind) == Some(&family);
    let behind = (1..=MAX_KEY_TOKENS).rev().find(is_it)?;
    Some((1, behind))
}

/// The band of a rule level. NATS filters by subject only, so the band is part of it.
fn band(level: u8) -> &'static str {
    match level {
        0..=6 => "low",
        7..=11 => "medium",
        12..=14 => "high",
        _ => "critical",
    }
}

/// A key of several tokens that its producer has made with [`token`] and joined by dots. What is no such token becomes
/// one, and dots behind the last place stay in it.
fn tokens(key: &str) -> String {
    let whole = |part| {
        if is_token(part) {
            Cow::Borrowed(part)
        } else {
            token(part)
        }
    };
    key.splitn(MAX_KEY_TOKENS, '.').map(whole).collect::<Vec<_>>().join(".")
}

/// Whether a text is what [`token`] gives.
fn is_token(text: &str) -> bool {
    match text.split_once('~') {
        None => is_plain(text),
        Some((name, mark)) => {
            name.len() <= MAX_TOKEN_LEN
                && name.bytes().all(is_plain_byte)
                && mark.len() == MARK_DIGITS
                && mark.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        }
    }
}

fn is_plain(name: &str) -> bool {
    (1..=MAX_TOKEN_LEN).contains(&name.len()) && name.bytes().all(is_plain_byte)
}

fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(kind: Kind, key: &str, alert_level: u8) -> Event {
        Event {
            kind,
            subject_key: key.to_owned(),
            created_ms: 0,
            alert_level,
            body: Vec::new(),
            headers: Vec::new(),
        }
    }

    #[test]
    fn subjects_of_the_two_oldest_kinds_are_frozen() {
        let keepalive = event(Kind::Keepalive, "001", 0);
        assert_eq!(of(&keepalive, "wazuh.xdr", "mgr"), "wazuh.xdr.manager.keepalive.001");
        let change = event(Kind::StatusChange, "001", 8);
        assert_eq!(of(&change, "wazuh.xdr", "mgr"), "wazuh.xdr.agent.001.status_change");
        let copy = change.disconnect_alert().expect("level 8 is high");
        assert_eq!(of(&copy, "wazuh.xdr", "mgr"), "wazuh.xdr.alerts.agent_disconnected");
    }

    #[test]
    fn rule_levels_fall_into_bands() {
        for (level, band) in [
            (0, "low"),
            (6, "low"),
            (7, "medium"),
            (11, "medium"),
            (12, "high"),
            (15, "critical"),
        ] {
            assert_eq!(
                of(&event(Kind::RuleAlert, "007", level), "p", "n"),
                format!("p.alerts.rule.{band}.007")
            );
        }
    }

    #[test]
    fn node_names_become_tokens() {
        assert!(
            of(&event(Kind::Health, "", 0), "p", "mgr.example.org").starts_with("p.manager.health.mgr_example_org~")
        );
    }

    #[test]
    fn empty_name_is_still_a_token() {
        assert_eq!(token("").len(), 1 + MARK_DIGITS);
    }

    #[test]
    fn every_kind_fits_its_own_subject_and_no_other() {
        for kind in Kind::ALL {
            let subject = of(&event(kind, "001", 8), "a.b", "n");
            for other in Kind::ALL {
                assert_eq!(fits(other, &subject), other == kind, "{other:?} under {subject}");
            }
        }
        for key in ["agentless", "agentless.b", "a.agentless.b", "osquery.agentless.b"] {
            let subject = of(&event(Kind::Osquery, key, 0), "wazuh.xdr", "n");
            assert!(
                fits(Kind::Osquery, &subject) && !fits(Kind::Agentless, &subject),
                "{subject}"
            );
        }
        assert!(!fits(Kind::StatusChange, "status_change"));
        // Agents, nodes and hosts that are called as a family is.
        for (subject, kind, other) in [
            ("p.agent.archives.status_change", Kind::StatusChange, Kind::Archive),
            ("p.manager.keypoll.archives.failed", Kind::KeyPolling, Kind::Archive),
            ("p.manager.health.agentless", Kind::Health, Kind::Agentless),
        ] {
            assert!(fits(kind, subject) && !fits(other, subject), "{subject}");
        }
    }

    proptest! {
        #[test]
        fn token_is_one_token(name in ".{0,200}") {
            let token = token(&name);
            prop_assert!(!token.is_empty() && token.len() <= MAX_TOKEN_LEN + 1 + MARK_DIGITS);
            prop_assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-~".contains(&byte)));
        }

        #[test]
        fn different_names_are_different_tokens(one in "[a-c._ ]{0,4}", other in "[a-c._ ]{0,4}") {
            prop_assert_eq!(one == other, token(&one) == token(&other));
        }
    }
}
