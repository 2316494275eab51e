//! The forms of a body: our own, CloudEvents, or OCSF. The subject is the same in all of them.
//!
//! CloudEvents comes in both modes of its NATS binding. In the binary one the body stays as it is, and `ce-` headers say
//! the rest; in the structured one the body is the member `data` of an envelope, byte for byte as it would be otherwise.

mod ocsf;

use jiff::Timestamp;
use muster_config::EventFormat;
use muster_proto::event::{Event, header, subject::token};
use serde::{Serialize, de::IgnoredAny};
use serde_json::Value;

use self::ocsf::Release;

/// A body and what goes with it.
pub(crate) struct Written {
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// What a form tells besides the event.
#[derive(Clone, Copy)]
pub(crate) struct About<'a> {
    /// The message id.
    pub(crate) id: &'a str,
    /// The name of this manager.
    pub(crate) node: &'a str,
    /// Which start of natsd this is.
    pub(crate) epoch: u64,
    /// The public key that signs it, if it is signed.
    pub(crate) key_id: Option<&'a str>,
    /// Of an alert: which absence it is about.
    pub(crate) finding: Option<Finding>,
}

/// An agent's absence that was worth an alert, with the Unix milliseconds of its first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It begins.
    New(u64),
    /// It is told again.
    GoesOn(u64),
    /// The agent is back, or will not come back.
    Over(u64),
}

impl Finding {
    fn since(self) -> u64 {
        match self {
            Self::New(since) | Self::GoesOn(since) | Self::Over(since) => since,
        }
    }
}

/// Puts an event's body into the configured form.
pub(crate) fn write(format: EventFormat, event: &Event, body: Vec<u8>, about: About<'_>) -> Written {
    let mut written = Written {
        content_type: header::JSON,
        body,
        headers: Vec::new(),
    };
    match format {
        EventFormat::Native => {}
        EventFormat::Cloudevents => written.headers = Attributes::of(event, about).headers(),
        EventFormat::CloudeventsStructured => {
            if let Some(body) = Attributes::of(event, about).envelope(&written.body) {
                written.content_type = header::CLOUD_EVENT;
                written.body = body;
            }
        }
        EventFormat::Ocsf | EventFormat::Ocsf19 => {
            let release = match format {
                EventFormat::Ocsf19 => Release::V1_9,
                _ => Release::V1_3,
            };
            if let Some(body) = ocsf::write(release, event, &written.body, about) {
                written.content_type = header::OCSF;
                written.body = body;
            }
        }
    }
    written
}

/// Whether a body is the envelope of a CloudEvent. A sealed one has another content type, and no body of ours has a
/// version of CloudEvents.
pub(crate) fn is_envelope(content_type: Option<&str>, body: &Value) -> bool {
    content_type == Some(header::CLOUD_EVENT)
        || content_type == Some(header::SEALED_TYPE) && body.get("specversion").is_some()
}

/// What a body says without its envelope, if it has one.
pub(crate) fn native(content_type: Option<&str>, mut body: Value) -> Value {
    if is_envelope(content_type, &body) {
        body["data"].take()
    } else {
        body
    }
}

/// The context attributes of a CloudEvent, in the order of its specification.
#[derive(Serialize)]
struct Attributes<'a> {
    specversion: &'static str,
    id: &'a str,
    source: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// May be absent and must not be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    time: String,
}

impl<'a> Attributes<'a> {
    fn of(event: &Event, About { id, node, .. }: About<'a>) -> Self {
        // Only what is one token is sure to be printable.
        let subject = (!event.subject_key.is_empty()).then(|| token(&event.subject_key).into_owned());
        Self {
            specversion: "1.0",
            id,
            source: format!("/muster/{}", token(node)),
            kind: event.kind.type_name(),
            subject,
            time: rfc3339(event.created_ms),
        }
    }

    fn headers(self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("ce-specversion", self.specversion.to_owned()),
            ("ce-id", self.id.to_owned()),
            ("ce-source", self.source),
            ("ce-type", self.kind.to_owned()),
            ("ce-time", self.time),
        ];
        headers.extend(self.subject.map(|subject| ("ce-subject", subject)));
        headers
    }

    /// Nothing for a body that is no JSON.
    fn envelope(&self, body: &[u8]) -> Option<Vec<u8>> {
        serde_json::from_slice::<IgnoredAny>(body).ok()?;
        let mut envelope = serde_json::to_vec(self).ok()?;
        envelope.pop();
        envelope.extend_from_slice(b",\"datacontenttype\":\"application/json\",\"data\":");
        envelope.extend_from_slice(body);
        envelope.push(b'}');
        Some(envelope)
    }
}

fn rfc3339(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(String::new, |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests;
