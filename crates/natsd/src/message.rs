//! From an event to what is published: subject, headers, body, seal, signature. Pure but for the random numbers of the
//! seal.

use muster_config::EventFormat;
use muster_proto::event::{Event, Kind, body::complete_keepalive, header, subject};

use crate::{
    format::{self, About, Finding},
    keys::Keyring,
    seal::Sealer,
    signature::Preamble,
    spool::record::{Mark, Name, Stored},
};

/// What is the same for all events of this process.
#[derive(Debug)]
pub(crate) struct Composer {
    /// What every subject begins with.
    pub(crate) prefix: String,
    /// The name of this manager.
    pub(crate) node: String,
    /// `security.source` of keepalives.
    pub(crate) source: String,
    /// `security.version` of keepalives.
    pub(crate) version: String,
    /// Which start of natsd this is.
    pub(crate) epoch: u64,
    /// Whether nothing is published: then events are kept for those who look back.
    pub(crate) history: bool,
    /// The form of bodies.
    pub(crate) format: EventFormat,
    /// Seals, if there are recipients.
    pub(crate) sealer: Option<Sealer>,
    /// Signs, if events are signed.
    pub(crate) keyring: Option<Keyring>,
}

/// An event's place in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) seq: u64,
    /// The sequence before it in the same stream; 0 = none.
    pub(crate) prev: u64,
}

/// What a [`Kind::DisconnectAlert`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyOf {
    /// Of the event that it repeats.
    pub(crate) sequence: u64,
    /// Which absence, where that is told.
    pub(crate) finding: Option<Finding>,
}

impl Composer {
    /// What is published of an event.
    pub(crate) fn compose(&self, event: &Event, source: Mark, numbers: Numbers, copy_of: Option<CopyOf>) -> Stored {
        let Numbers { seq, prev } = numbers;
        let subject = subject::of(event, &self.prefix, &self.node);
        let body = match event.kind {
            Kind::Keepalive => complete_keepalive(&event.body, &self.source, &self.version, seq),
            _ => event.body.clone(),
        };
        let message_id = self.message_id(seq);
        let about = About {
            id: &message_id,
            node: &self.node,
            epoch: self.epoch,
            key_id: self.keyring.as_ref().map(Keyring::key_id),
            finding: copy_of.and_then(|copy| copy.finding),
        };
        let written = format::write(self.format, event, body, about);
        let (content_type, sealed, body) = self.seal(event.kind, written.content_type, written.body);
        let prev = if prev == 0 { "-".to_owned() } else { prev.to_string() };
        let mut headers = Headers(Vec::with_capacity(16));
        headers.add(header::MSG_ID, message_id);
        headers.add(header::CONTENT_TYPE, content_type.to_owned());
        headers.add(header::VERSION, header::CONTRACT.to_owned());
        headers.add(header::TYPE, event.kind.type_name().to_owned());
        headers.add(header::SUBJECT, subject.clone());
        headers.add(header::NODE, self.node.clone());
        headers.add(header::EPOCH, self.epoch.to_string());
        headers.add(header::SEQUENCE, seq.to_string());
        headers.add(header::PREVIOUS, prev);
        headers.add(header::TIME, event.created_ms.to_string());
        if let Some(sealed) = sealed {
            headers.add(header::SEALED, sealed);
        }
        for (name, value) in event.headers.iter().filter_map(clean) {
            headers.add(name, value.to_owned());
        }
        if let Some(original) = copy_of {
            headers.add(header::COPY_OF, self.message_id(original.sequence));
        }
        for (name, value) in written.headers {
            headers.add(name, value);
        }
        self.sign(&mut headers, &body);
        Stored {
            history: self.history,
            kind: event.kind,
            class: event.class(),
            alert_level: event.alert_level,
            seq,
            epoch: self.epoch,
            prev: numbers.prev,
            created_ms: event.created_ms,
            source,
            key: event.subject_key.clone(),
            subject,
            headers: headers.0,
            body,
        }
    }

    fn seal(&self, kind: Kind, content_type: &'static str, body: Vec<u8>) -> (&'static str, Option<String>, Vec<u8>) {
        let Some(sealer) = self.sealer.as_ref().filter(|sealer| sealer.seals(kind)) else {
            return (content_type, None, body);
        };
        match sealer.seal(&body) {
            Ok((header, sealed)) => (header::SEALED_TYPE, Some(header), sealed),
            Err(error) => {
                // It fails when the system has no random numbers. Better an empty body than an open one.
                tracing::error!(%error, "an event cannot be sealed; it goes out without its body");
                (header::SEALED_TYPE, Some("xkv1;failed=random".to_owned()), Vec::new())
            }
        }
    }

    fn sign(&self, headers: &mut Headers, body: &[u8]) {
        let Some(keyring) = &self.keyring else { return };
        headers.add(header::ALGORITHM, header::ED25519.to_owned());
        headers.add(header::KEY_ID, keyring.key_id().to_owned());
        let preamble = Preamble::of(|name| headers.get(name));
        let signature = preamble.map(|preamble| keyring.sign(&preamble.signed_bytes(body)));
        headers.add(header::SIGNATURE, signature.unwrap_or_default());
    }

    fn message_id(&self, seq: u64) -> String {
        format!("{}:{}:{seq}", self.node, self.epoch)
    }
}

struct Headers(Vec<(Name, String)>);

impl Headers {
    fn add(&mut self, name: &'static str, value: String) {
        self.0.push((Name::Borrowed(name), value));
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A header that a producer may add, and that no broker takes for two.
fn clean((name, value): &(String, String)) -> Option<(&'static str, &str)> {
    let name = header::known(name).filter(|name| header::is_for_producers(name))?;
    let printable = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    printable.then_some((name, value))
}

#[cfg(test)]
mod tests;
