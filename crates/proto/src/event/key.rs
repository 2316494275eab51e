//! A signing key as it is announced, and the two statements about it that other keys sign.
//!
//! The introduction says that a key is a node's; the key before it signs it, and the trust key if there is one. The
//! revocation says from when on the key must not be believed; the trust key signs it. What becomes of a key besides, such
//! as its retirement, only narrows what may be believed, and is as good as the event that tells of it.
//!
//! A statement is text, a line for each value, so that a shell can put it together.

use serde::{Deserialize, Serialize};

const FIRST_LINE: &str = "MUSTERKEY1";
/// What a statement is called in its second line.
const INTRODUCTION: &str = "introduction";
const REVOCATION: &str = "revocation";

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    /// It signs, or will.
    Active,
    /// It signs no more; what it has signed is still good.
    Retired,
    /// Nothing that it signed since `compromised_since` may be believed.
    Revoked,
}

/// A signature of the trust key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoSignature {
    /// The public half of the trust key.
    pub kid: String,
    /// In base64url.
    pub sig: String,
}

/// A key as it is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The public nkey.
    pub kid: String,
    /// Whose it is.
    pub node: String,
    /// `ed25519`.
    pub alg: String,
    /// Unix milliseconds from which it is valid. It signs later, when consumers have heard of it.
    pub not_before: u64,
    /// Unix milliseconds until which it signed.
    pub not_after: Option<u64>,
    /// What became of it.
    pub status: KeyStatus,
    /// The key before it.
    pub prev_kid: Option<String>,
    /// The epoch in which it was made.
    pub epoch_from: u64,
    /// Unix seconds at which it was revoked.
    #[serde(default)]
    pub revoked_at: Option<u64>,
    /// Unix seconds from which nothing of it may be believed.
    #[serde(default)]
    pub compromised_since: Option<u64>,
    /// The introduction's signature by the key before it, in base64url.
    #[serde(default)]
    pub prev_sig: Option<String>,
    /// The introduction's signature by the trust key.
    #[serde(default)]
    pub trust: Option<CoSignature>,
    /// The revocation's signature by the trust key.
    #[serde(default)]
    pub revocation: Option<CoSignature>,
}

impl KeyRecord {
    /// A key that signs from this time and this epoch on, as its node would introduce it without anybody's word for it.
    pub fn new(kid: &str, node: &str, not_before: u64, epoch_from: u64) -> Self {
        Self {
            kid: kid.to_owned(),
            node: node.to_owned(),
            alg: super::header::ED25519.to_owned(),
            not_before,
            not_after: None,
            status: KeyStatus::Active,
            prev_kid: None,
            epoch_from,
            revoked_at: None,
            compromised_since: None,
            prev_sig: None,
            trust: None,
            revocation: None,
        }
    }

    /// The text that introduces the key. Nothing if a value could be taken for two lines.
    pub fn introduction(&self) -> Option<String> {
        statement(&[
            INTRODUCTION,
            &self.kid,
            &self.node,
            &self.alg,
            &self.not_before.to_string(),
            self.prev_kid.as_deref().unwrap_or("-"),
            &self.epoch_from.to_string(),
        ])
    }

    /// The text that revokes the key. Nothing if it is not revoked.
    pub fn revocation(&self) -> Option<String> {
        let since = self.compromised_since?;
        statement(&[
            REVOCATION,
            &self.kid,
            &self.node,
            &self.alg,
            &self.revoked_at?.to_string(),
            &since.to_string(),
        ])
    }

    /// Whether both introduce the same key in the same way.
    pub fn introduces_the_same_as(&self, other: &Self) -> bool {
        (&self.kid, &self.node, &self.alg, self.not_before) == (&other.kid, &other.node, &other.alg, other.not_before)
            && (&self.prev_kid, self.epoch_from) == (&other.prev_kid, other.epoch_from)
    }
}

fn statement(values: &[&str]) -> Option<String> {
    let mut text = format!("{FIRST_LINE}\n");
    for value in values {
        // An empty value stands for nothing that anybody could mean.
        if value.is_empty() || value.contains(char::is_control) {
            return None;
        }
        text.push_str(value);
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    fn record() -> impl Strategy<Value = KeyRecord> {
        let text = || prop_oneof!["[A-Z2-7-]{1,4}", "\\PC{0,3}", Just("a\nb".to_owned())];
        let status = prop_oneof![
            Just(KeyStatus::Active),
            Just(KeyStatus::Retired),
            Just(KeyStatus::Revoked)
        ];
        let small = || 0_u64..3;
        let signature = || option::of((text(), text()).prop_map(|(kid, sig)| CoSignature { kid, sig }));
        let who = (text(), text(), text(), option::of("[A-Z]{1,2}"));
        let times = (
            small(),
            option::of(small()),
            small(),
            option::of(small()),
            option::of(small()),
        );
        let signatures = (option::of(text()), signature(), signature());
        (who, times, status, signatures).prop_map(|(who, times, status, signatures)| KeyRecord {
            kid: who.0,
            node: who.1,
            alg: who.2,
            prev_kid: who.3,
            not_before: times.0,
            not_after: times.1,
            epoch_from: times.2,
            revoked_at: times.3,
            compromised_since: times.4,
            status,
            prev_sig: signatures.0,
            trust: signatures.1,
            revocation: signatures.2,
        })
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(record in record()) {
            let text = serde_json::to_string(&record).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<KeyRecord>(&text).expect("a record"), record);
        }

        #[test]
        fn two_records_share_an_introduction_only_if_they_say_the_same(one in record(), other in record()) {
            if let (Some(first), Some(second)) = (one.introduction(), other.introduction()) {
                prop_assert_eq!(first == second, one.introduces_the_same_as(&other));
            }
        }

        #[test]
        fn no_statement_can_be_taken_for_another(record in record()) {
            let texts = [record.introduction(), record.revocation()];
            prop_assert!(texts[0].is_none() || texts[0] != texts[1]);
            for text in texts.into_iter().flatten() {
                let lines = if text.contains(INTRODUCTION) { 8 } else { 7 };
                prop_assert_eq!(text.lines().count(), lines);
                prop_assert!(text.ends_with('\n') && !text.starts_with("MUSTER1\n"));
            }
        }
    }

    #[test]
    fn record_without_signatures_can_be_read() {
        let text = r#"{"kid":"U","node":"n","alg":"ed25519","not_before":1,"not_after":null,"status":"active",
            "prev_kid":null,"epoch_from":1,"reason":"new"}"#;
        let record: KeyRecord = serde_json::from_str(text).expect("a record");
        assert_eq!((record.trust, record.prev_sig), (None, None));
    }
}
