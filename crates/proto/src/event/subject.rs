//! Where each kind of event is published.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::{Event, HIGH_ALERT_THRESHOLD, Kind};

/// The longest token that a name becomes, before its mark.
const MAX_TOKEN_LEN: usize = 64;
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
    if (1..=MAX_TOKEN_LEN).contains(&name.len()) && name.bytes().all(fits) {
        return Cow::Borrowed(name);
    }
    let mut token: String = name
        .bytes()
        .take(MAX_TOKEN_LEN)
        .map(|byte| if fits(byte) { char::from(byte) } else { '_' })
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

fn fits(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
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
        Kind::Health => format!("{prefix}.manager.health.{node}"),
        Kind::SpoolGap => format!("{prefix}.manager.spool.{node}"),
        Kind::Audit => format!("{prefix}.manager.audit.{node}"),
        Kind::KeyAnnouncement => format!("{prefix}.manager.keys.{node}"),
        Kind::RuleAlert => format!("{prefix}.alerts.rule.{}.{}", band(event.alert_level), token(key)),
        Kind::Archive => format!("{prefix}.archives.{}", token(key)),
        Kind::Agentless => format!("{prefix}.agentless.{}", tokens(key)),
        Kind::Osquery => format!("{prefix}.osquery.{}", tokens(key)),
    }
}

/// The second subject of a status change that matters enough.
pub fn alert_copy(event: &Event, prefix: &str) -> Option<String> {
    let high = event.kind == Kind::StatusChange && event.alert_level >= HIGH_ALERT_THRESHOLD;
    high.then(|| format!("{prefix}.alerts.agent_disconnected"))
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

/// A key of several tokens, joined by dots, each made by [`token`] before; what is no token becomes one.
fn tokens(key: &str) -> String {
    let is_token = |part: &str| !part.is_empty() && part.bytes().all(|byte| fits(byte) || byte == b'~');
    let parts = key.split('.').map(|part| {
        if is_token(part) {
            Cow::Borrowed(part)
        } else {
            token(part)
        }
    });
    parts.collect::<Vec<_>>().join(".")
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
        assert_eq!(
            alert_copy(&change, "wazuh.xdr").as_deref(),
            Some("wazuh.xdr.alerts.agent_disconnected")
        );
        assert_eq!(alert_copy(&event(Kind::StatusChange, "001", 7), "wazuh.xdr"), None);
        assert_eq!(alert_copy(&event(Kind::Connection, "001", 15), "wazuh.xdr"), None);
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
