//! What the broker answers to a published event: pure.

use serde::Deserialize;

/// An answer, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A stream has it.
    Kept {
        /// The stream's name.
        stream: String,
        /// Its place there.
        sequence: u64,
    },
    /// Nobody takes this subject.
    Nobody,
    /// The stream does not take it, and why.
    Refused {
        /// NATS' own number of the error.
        code: u64,
        /// In words.
        why: String,
    },
    /// Somebody else answered.
    Foreign,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The message is larger than the stream takes.
const TOO_LARGE: u64 = 10054;
/// JetStream is off.
const NOT_ENABLED: u64 = 10076;
/// The same, for this account.
const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;

impl Answer {
    /// Reads an acknowledgement.
    pub(crate) fn read(no_responders: bool, payload: &[u8]) -> Self {
        if no_responders {
            return Self::Nobody;
        }
        match serde_json::from_slice::<Raw>(payload) {
            Ok(Raw { error: Some(error), .. }) => Self::Refused {
                code: error.err_code,
                why: error.description,
            },
            Ok(Raw { stream, seq, .. }) if !stream.is_empty() && seq > 0 => Self::Kept { stream, sequence: seq },
            _ => Self::Foreign,
        }
    }

    /// Whether sending it again can never help.
    pub(crate) fn is_hopeless(&self) -> bool {
        matches!(self, Self::Refused { code: TOO_LARGE, .. })
    }
}

/// Whether an acknowledgement is of an event that the stream had already, and tells its place from then.
pub(crate) fn is_duplicate(payload: &[u8]) -> bool {
    serde_json::from_slice::<Raw>(payload).is_ok_and(|raw| raw.duplicate)
}

/// What the broker says of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The last sequence in it; 0 when there is no such stream.
    pub(crate) last: u64,
    /// When it was made, in the broker's words; empty when there is no such stream.
    pub(crate) created: String,
}

/// How far the broker's stream goes, from an answer to `STREAM.INFO`; nothing when the broker does not say.
pub(crate) fn extent(no_responders: bool, payload: &[u8]) -> Option<Extent> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        created: String,
        state: Option<State>,
        error: Option<Error>,
    }
    #[derive(Deserialize)]
    struct State {
        last_seq: u64,
    }
    #[derive(Deserialize)]
    struct Error {
        code: u64,
    }
    if no_responders {
        return None;
    }
    let info: Info = serde_json::from_slice(payload).ok()?;
    match (info.state, info.error) {
        (Some(state), _) => Some(Extent {
            last: state.last_seq,
            created: info.created,
        }),
        (None, Some(Error { code: 404 })) => Some(Extent::default()),
        _ => None,
    }
}

/// Who takes a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// A stream.
    Stream,
    /// No stream, but there could be one.
    NoStream,
    /// There is no JetStream for us.
    NoJetStream,
}

/// Who takes a subject, from an answer to `STREAM.NAMES`; nothing when the broker does not say.
pub(crate) fn takes(no_responders: bool, payload: &[u8]) -> Option<Takes> {
    #[derive(Deserialize)]
    struct Names {
        streams: Option<Vec<String>>,
        error: Option<RawError>,
    }
    if no_responders {
        return Some(Takes::NoJetStream);
    }
    let names: Names = serde_json::from_slice(payload).ok()?;
    match names.error {
        Some(error) if matches!(error.err_code, NOT_ENABLED | NOT_ENABLED_FOR_ACCOUNT) => Some(Takes::NoJetStream),
        Some(_) => None,
        None if names.streams.is_some_and(|streams| !streams.is_empty()) => Some(Takes::Stream),
        None => Some(Takes::NoStream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(
            Answer::read(false, br#"{"stream":"MUSTER_STATE","seq":7,"duplicate":true}"#),
            Answer::Kept {
                stream: "MUSTER_STATE".to_owned(),
                sequence: 7
            }
        );
        assert!(is_duplicate(br#"{"stream":"MUSTER_STATE","seq":7,"duplicate":true}"#));
        assert!(!is_duplicate(br#"{"stream":"MUSTER_STATE","seq":7}"#));
        assert_eq!(Answer::read(true, b""), Answer::Nobody);
        let refused = Answer::read(
            false,
            br#"{"type":"x","error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#,
        );
        assert!(refused.is_hopeless());
        let refused = br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"S","seq":0}"#;
        assert!(matches!(
            Answer::read(false, refused),
            Answer::Refused { code: 10077, .. }
        ));
        for foreign in [&b"pong"[..], b"", b"{}", b"\xff"] {
            assert_eq!(Answer::read(false, foreign), Answer::Foreign);
        }
    }

    #[test]
    fn missing_stream_and_missing_right_to_ask_are_different() {
        assert_eq!(
            extent(
                false,
                br#"{"created":"2026-05-01T00:00:00Z","state":{"messages":1,"last_seq":9}}"#
            ),
            Some(Extent {
                last: 9,
                created: "2026-05-01T00:00:00Z".to_owned()
            })
        );
        assert_eq!(
            extent(false, br#"{"error":{"code":404,"err_code":10059}}"#),
            Some(Extent::default())
        );
        assert_eq!(extent(false, br#"{"error":{"code":503,"err_code":10008}}"#), None);
        assert_eq!(extent(true, b""), None);
        let names = |payload: &str| takes(false, payload.as_bytes());
        assert_eq!(names(r#"{"total":0,"streams":null}"#), Some(Takes::NoStream));
        assert_eq!(names(r#"{"total":1,"streams":["A"]}"#), Some(Takes::Stream));
        assert_eq!(names(r#"{"error":{"code":503}}"#), None);
        assert_eq!(
            names(r#"{"error":{"code":503,"err_code":10039}}"#),
            Some(Takes::NoJetStream)
        );
        assert_eq!(takes(true, b""), Some(Takes::NoJetStream));
    }
}
