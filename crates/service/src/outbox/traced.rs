//! An event as it is kept: with the trace that it belongs to, which it has from here on however often it is sent.

use muster_proto::event::{Event, header};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::trace;

/// What an [`Event`] looks like with one more header; written as an event is.
pub(super) struct Traced<'a> {
    event: &'a Event,
    /// Nothing where the event came with a trace.
    trace: Option<String>,
}

impl<'a> Traced<'a> {
    pub(super) fn new(event: &'a Event) -> Self {
        Self {
            event,
            trace: (!event.is_traced()).then(trace::traceparent),
        }
    }
}

impl Serialize for Traced<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Every field, so that a new one is not forgotten here.
        let Event {
            kind,
            subject_key,
            created_ms,
            alert_level,
            body,
            headers,
        } = self.event;
        let mut all: Vec<(&str, &str)> = Vec::with_capacity(headers.len() + 1);
        all.extend(headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        all.extend(self.trace.as_deref().map(|trace| (header::TRACE, trace)));
        let mut fields = serializer.serialize_struct("Event", 6)?;
        fields.serialize_field("kind", kind)?;
        fields.serialize_field("subject_key", subject_key)?;
        fields.serialize_field("created_ms", created_ms)?;
        fields.serialize_field("alert_level", alert_level)?;
        fields.serialize_field("body", body)?;
        fields.serialize_field("headers", &all)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        event::Kind,
        ipc::{VERSION, codec},
    };

    use super::*;

    fn read_back(traced: &Traced<'_>) -> Event {
        let bytes = codec::encode(VERSION, traced).expect("encoded");
        let (frame, _) = codec::split(&bytes, codec::MAX_PAYLOAD_LEN)
            .expect("a frame")
            .expect("whole");
        codec::decode(frame.payload).expect("an event")
    }

    #[test]
    fn event_gets_a_trace_unless_it_has_one() {
        let status = ("Muster-Status".to_owned(), "active>disconnected".to_owned());
        let event = Event {
            kind: Kind::StatusChange,
            subject_key: "001".to_owned(),
            created_ms: 1_795_000_000_123,
            alert_level: 8,
            body: b"{}".to_vec(),
            headers: vec![status],
        };
        let once = read_back(&Traced::new(&event));
        assert!(once.is_traced());
        let mut without = once.clone();
        without.headers.pop();
        assert_eq!(without, event, "nothing else is different");
        assert_eq!(read_back(&Traced::new(&once)), once);
    }
}
