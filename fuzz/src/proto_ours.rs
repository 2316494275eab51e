//! Our own frames and events, and merged files.

use std::fmt::Debug;

use muster_proto::{
    command::{self, Address, Reply, TicketResult, Verb},
    event::{Event, Kind, body::complete_keepalive, header, subject},
    ipc::{
        Hello, codec,
        control::{Request, Response},
        events::{FromNatsd, ToNatsd},
    },
    shared::{self, unpack},
};
use serde::{Serialize, de::DeserializeOwned};

use super::draw::Draw;

/// A small limit, so that frames over it occur.
const LIMIT: usize = 4096;

/// Frames between our daemons, of every type that they carry.
pub(super) fn ipc(input: &[u8]) {
    if let Ok(Some((frame, used))) = codec::split(input, LIMIT) {
        assert!(used <= input.len() && frame.payload.len() <= LIMIT);
    }
    let mut draw = Draw::new(input);
    let kind = draw.below(5);
    let payload = draw.rest();
    match kind {
        0 => value::<Request>(payload),
        1 => value::<Response>(payload),
        2 => value::<ToNatsd>(payload),
        3 => value::<FromNatsd>(payload),
        _ => value::<Hello>(payload),
    }
}

fn value<T: Serialize + DeserializeOwned + PartialEq + Debug>(payload: &[u8]) {
    let Ok(value) = codec::decode::<T>(payload) else { return };
    let bytes = codec::encode(1, &value).expect("what was read can be written");
    let (frame, used) = codec::split(&bytes, codec::MAX_PAYLOAD_LEN)
        .expect("within the limit")
        .expect("whole");
    assert_eq!(used, bytes.len());
    assert_eq!(codec::decode::<T>(frame.payload), Ok(value));
}

/// Whatever an event is about, its subject is one that can be published, and of its own place.
pub(super) fn event(input: &[u8]) {
    let mut draw = Draw::new(input);
    let event = Event {
        kind: Kind::ALL[draw.below(Kind::ALL.len())],
        alert_level: draw.byte(),
        created_ms: draw.u64(),
        subject_key: draw.text(),
        headers: Vec::new(),
        body: draw.bytes().to_vec(),
    };
    let node = draw.text();
    let subject = event.subject("muster", &node);
    assert!(
        subject.split('.').all(|token| !token.is_empty())
            && subject
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"*>".contains(&byte)),
        "{subject:?}"
    );
    assert!(subject.len() < 512, "{subject:?}");
    let streams = muster_proto::event::Stream::ALL.into_iter().filter(|stream| {
        let patterns = stream.subjects("muster");
        patterns.iter().any(|pattern| takes(pattern, &subject))
    });
    assert_eq!(streams.collect::<Vec<_>>(), [event.kind.stream()], "{subject}");
    let (one, other) = (draw.text(), draw.text());
    if one != other {
        assert_ne!(subject::token(&one), subject::token(&other));
    }
    let _ = (event.class(), event.disconnect_alert(), header::is_for_producers(&one));
    let complete = complete_keepalive(&event.body, "source", "1", 7);
    assert!(complete.len() >= event.body.len());
}

/// NATS's own rule.
fn takes(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for part in pattern.split('.') {
        match (part, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (part, Some(token)) if part == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Merged files, as agents take them apart.
pub(super) fn shared(input: &[u8]) {
    let Ok(unpacked) = unpack(input) else { return };
    let parts: usize = unpacked
        .files
        .iter()
        .map(|(path, content)| path.len() + content.len())
        .sum();
    assert!(parts <= input.len());
    let mut again = format!("#{}\n", unpacked.title).into_bytes();
    for (path, content) in &unpacked.files {
        again.extend_from_slice(format!("!{} {path}\n", content.len()).as_bytes());
        again.extend_from_slice(content);
    }
    assert_eq!(unpack(&again), Ok(unpacked.clone()));
    assert_eq!(shared::sum(&again).len(), 32);
    for (path, content) in unpacked.files {
        let _ = (
            shared::RelativePath::new(path.to_owned()),
            shared::admit_content(content),
        );
    }
}

/// Requests over NATS and the replies to them: subjects and bodies. The first line is a subject.
pub(super) fn command(input: &[u8]) {
    const PREFIX: &str = "wazuh.xdr";
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let subject = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let body = parts.next().unwrap_or_default();
    for subject in [subject.to_string(), format!("{PREFIX}.control.{subject}")] {
        let Ok(address) = Address::parse(PREFIX, &subject) else {
            continue;
        };
        assert!(address.agent.is_some() == address.verb.is_of_an_agent());
        assert!(Verb::from_text(address.verb.as_str()) == Some(address.verb));
        assert_eq!(Address::parse(PREFIX, &address.subject(PREFIX)).as_ref(), Ok(&address));
        assert!(address.subject(PREFIX) == subject, "one subject for each request");
        assert!(takes(&command::listen(PREFIX, &address.node), &subject));
    }
    json::<command::Request>(body);
    json::<Reply>(body);
    json::<TicketResult>(body);
}

fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(body) {
        let again = serde_json::to_vec(&value).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<T>(&again).ok(), Some(value));
    }
}
