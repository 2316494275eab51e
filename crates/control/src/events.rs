//! `events`: what natsd takes, as it takes it.

use muster_proto::ipc::control::{PublishedEvent, Request, Response};
use muster_service::exit::{DONE, Exit, UNREACHABLE};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cli::{self, OutputFormat},
    context::{Context, denied, explain, mismatched, unknown},
    output::{self, tame},
};

/// How much of a body is shown to people.
const SHOWN_BODY_CHARS: usize = 300;

pub(crate) async fn events(context: &Context, arguments: &cli::Events) -> anyhow::Result<u8> {
    let client = context.connect("natsd").await?;
    let request = Request::FollowEvents {
        backlog: arguments.backlog,
    };
    let mut answers = client.follow(&request).await.map_err(|error| explain("natsd", error))?;
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        match answers.next().await.map_err(|error| explain("natsd", error))? {
            Some(Response::Event(event)) => match context.output {
                OutputFormat::Json => output::line(to_json(&event)?)?,
                OutputFormat::Text => output::line(to_text(&event))?,
            },
            Some(Response::Denied) => return Err(denied("natsd")),
            Some(Response::Unknown) => return Err(unknown("natsd")),
            Some(_) => return Err(mismatched("natsd")),
            None => return Err(Exit::new(UNREACHABLE, "natsd has ended the stream of events").into()),
        }
        left -= 1;
    }
    Ok(DONE)
}

/// Everything but headers and body.
#[derive(Serialize)]
struct Envelope<'a> {
    sequence: u64,
    subject: &'a str,
    producer: &'a str,
    kind: muster_proto::event::Kind,
    created_ms: u64,
    alert_level: u8,
}

/// One line. The body is put in byte for byte, so that the order of its keys stays what consumers see.
fn to_json(published: &PublishedEvent) -> anyhow::Result<Vec<u8>> {
    let event = &published.event;
    let envelope = Envelope {
        sequence: published.sequence,
        subject: &published.subject,
        producer: &published.producer,
        kind: event.kind,
        created_ms: event.created_ms,
        alert_level: event.alert_level,
    };
    let headers: serde_json::Map<_, _> = event
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
        .collect();
    let mut line = serde_json::to_vec(&envelope)?;
    line.pop();
    line.extend_from_slice(b",\"headers\":");
    line.extend(serde_json::to_vec(&headers)?);
    line.extend_from_slice(b",\"body\":");
    match serde_json::from_slice::<serde::de::IgnoredAny>(&event.body) {
        Ok(_) if !event.body.contains(&b'\n') => line.extend_from_slice(&event.body),
        Ok(_) => line.extend(serde_json::to_vec(&serde_json::from_slice::<Value>(&event.body)?)?),
        Err(_) => line.extend(serde_json::to_vec(&String::from_utf8_lossy(&event.body))?),
    }
    line.push(b'}');
    Ok(line)
}

fn to_text(published: &PublishedEvent) -> String {
    let event = &published.event;
    let time = output::time(event.created_ms / 1000);
    let changes: Vec<_> = event.headers.iter().map(|(_, value)| tame(value)).collect();
    let body: String = tame(&String::from_utf8_lossy(&event.body))
        .chars()
        .take(SHOWN_BODY_CHARS)
        .collect();
    let shown = if changes.is_empty() {
        body
    } else {
        format!("[{}] {body}", changes.join(", "))
    };
    format!("{time} {:>8} {} {shown}", published.sequence, tame(&published.subject))
}

#[cfg(test)]
mod tests {
    use muster_proto::event::{Event, Kind};

    use super::*;

    fn event(body: &str) -> PublishedEvent {
        let event = Event {
            kind: Kind::StatusChange,
            subject_key: "001".to_owned(),
            created_ms: 1_700_000_000_000,
            alert_level: 3,
            body: body.as_bytes().to_vec(),
            headers: vec![("Muster-Status".to_owned(), "active>disconnected".to_owned())],
        };
        PublishedEvent {
            subject: "p.s.001".to_owned(),
            sequence: 7,
            producer: "remoted".to_owned(),
            event,
        }
    }

    #[test]
    fn body_keeps_the_order_of_its_keys() {
        let line = String::from_utf8(to_json(&event(r#"{"z":1,"a":2}"#)).expect("encodes")).expect("text");
        assert_eq!(
            line,
            r#"{"sequence":7,"subject":"p.s.001","producer":"remoted","kind":"status_change","created_ms":1700000000000,"alert_level":3,"headers":{"Muster-Status":"active>disconnected"},"body":{"z":1,"a":2}}"#
        );
    }

    #[test]
    fn body_that_is_no_json_or_has_several_lines_still_makes_one_line_of_json() {
        for body in ["not json", "{\"a\":\n1}", "{\"a\":1} trailing", ""] {
            let line = to_json(&event(body)).expect("encodes");
            assert!(!line.contains(&b'\n'));
            serde_json::from_slice::<Value>(&line).expect("is JSON");
        }
    }
}
