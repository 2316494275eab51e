//! From an event to what is published: subject, headers, body. Pure.

use muster_proto::event::{
    Event, Kind,
    body::complete_keepalive,
    subject::{self, alert_copy},
};

use crate::spool::record::{Mark, Stored};

/// The version of the header contract.
const HEADER_CONTRACT: &str = "1";

/// What is the same for all events of this process.
#[derive(Clone, Debug)]
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
}

/// An event's place in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) seq: u64,
    /// The sequence before it in the same stream; 0 = none.
    pub(crate) prev: u64,
}

impl Composer {
    /// What is published of an event. The subject of alerts gets a copy of its own, made with [`Self::copy`].
    pub(crate) fn compose(&self, event: &Event, source: Mark, numbers: Numbers) -> Stored {
        let subject = subject::of(event, &self.prefix, &self.node);
        let body = match event.kind {
            Kind::Keepalive => complete_keepalive(&event.body, &self.source, &self.version, numbers.seq),
            _ => event.body.clone(),
        };
        self.stored(event, source, numbers, subject, body, Vec::new())
    }

    /// The copy of a status change that matters enough, if this is one.
    pub(crate) fn copy(&self, event: &Event, source: Mark, original: u64, numbers: Numbers) -> Option<Stored> {
        let subject = alert_copy(event, &self.prefix)?;
        let of = ("Muster-Copy-Of".to_owned(), self.message_id(original));
        Some(self.stored(event, source, numbers, subject, event.body.clone(), vec![of]))
    }

    /// Whether an event has a second subject.
    pub(crate) fn has_copy(&self, event: &Event) -> bool {
        alert_copy(event, &self.prefix).is_some()
    }

    fn stored(
        &self,
        event: &Event,
        source: Mark,
        numbers: Numbers,
        subject: String,
        body: Vec<u8>,
        mut further: Vec<(String, String)>,
    ) -> Stored {
        let Numbers { seq, prev } = numbers;
        let mut headers: Vec<(String, String)> = [
            ("Nats-Msg-Id", self.message_id(seq)),
            ("Content-Type", "application/json".to_owned()),
            ("Muster-Ver", HEADER_CONTRACT.to_owned()),
            ("Muster-Type", event.kind.type_name().to_owned()),
            ("Muster-Subject", subject.clone()),
            ("Muster-Node", self.node.clone()),
            ("Muster-Epoch", self.epoch.to_string()),
            ("Muster-Seq", seq.to_string()),
            ("Muster-Prev", if prev == 0 { "-".to_owned() } else { prev.to_string() }),
            ("Muster-Time", event.created_ms.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        headers.extend(event.headers.iter().filter(|header| is_clean(header)).cloned());
        headers.append(&mut further);
        Stored {
            history: self.history,
            kind: event.kind,
            class: event.class(),
            alert_level: event.alert_level,
            seq,
            epoch: self.epoch,
            prev,
            created_ms: event.created_ms,
            source,
            key: event.subject_key.clone(),
            subject,
            headers,
            body,
        }
    }

    fn message_id(&self, seq: u64) -> String {
        format!("{}:{}:{seq}", self.node, self.epoch)
    }
}

/// Headers that a producer may add. All others are natsd's own.
const FROM_PRODUCERS: [&str; 3] = ["Muster-Status", "Muster-Flapping", "traceparent"];

/// A header that a producer may add, and that no broker takes for two.
fn is_clean((name, value): &(String, String)) -> bool {
    FROM_PRODUCERS.contains(&name.as_str()) && value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        agent::{AgentId, AgentStatus, Reason},
        event::body::{Keepalive, KeepaliveType, StatusChange},
    };

    use super::*;

    fn composer() -> Composer {
        Composer {
            prefix: "wazuh.xdr".to_owned(),
            node: "mgr-a".to_owned(),
            source: "wazuh-manager".to_owned(),
            version: "4.14.7".to_owned(),
            epoch: 17,
            history: false,
        }
    }

    fn mark() -> Mark {
        Mark {
            producer: "remoted".to_owned(),
            incarnation: 1,
            number: 1,
        }
    }

    fn status_change(alert_level: u8) -> Event {
        StatusChange {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            previous_status: AgentStatus::Active,
            current_status: AgentStatus::Disconnected,
            ip_address: "192.0.2.1",
            timestamp: 1_795_243_200,
            reason: Reason::KeepaliveTimeout,
            missed_keepalives: 3,
            alert_level,
        }
        .into_event(1_795_243_200_123)
    }

    #[test]
    fn headers_of_an_event() {
        let stored = composer().compose(
            &status_change(8),
            mark(),
            Numbers {
                seq: 123_456,
                prev: 123_450,
            },
        );
        let headers: Vec<_> = stored
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            headers,
            [
                "Nats-Msg-Id: mgr-a:17:123456",
                "Content-Type: application/json",
                "Muster-Ver: 1",
                "Muster-Type: agent.status_change",
                "Muster-Subject: wazuh.xdr.agent.001.status_change",
                "Muster-Node: mgr-a",
                "Muster-Epoch: 17",
                "Muster-Seq: 123456",
                "Muster-Prev: 123450",
                "Muster-Time: 1795243200123",
                "Muster-Status: active>disconnected",
            ]
        );
    }

    #[test]
    fn first_event_of_a_stream_has_no_previous() {
        let stored = composer().compose(&status_change(8), mark(), Numbers { seq: 1, prev: 0 });
        assert!(stored.headers.contains(&("Muster-Prev".to_owned(), "-".to_owned())));
    }

    #[test]
    fn high_status_change_has_a_copy_with_the_same_body_and_its_own_id() {
        let event = status_change(8);
        let numbers = Numbers { seq: 2, prev: 1 };
        let copy = composer().copy(&event, mark(), 1, numbers).expect("a copy");
        assert_eq!(copy.subject, "wazuh.xdr.alerts.agent_disconnected");
        assert_eq!(copy.body, event.body);
        assert!(
            copy.headers
                .contains(&("Muster-Copy-Of".to_owned(), "mgr-a:17:1".to_owned()))
        );
        assert!(
            copy.headers
                .contains(&("Nats-Msg-Id".to_owned(), "mgr-a:17:2".to_owned()))
        );
        assert_eq!(composer().copy(&status_change(7), mark(), 1, numbers), None);
    }

    #[test]
    fn keepalive_gets_its_security_object() {
        let event = Keepalive {
            agent_id: &AgentId::new("001"),
            agent_name: "web-01",
            ip_address: "192.0.2.1",
            timestamp: 1,
            event_type: KeepaliveType::KeepaliveSent,
            manager_node: "mgr-a",
            interval: 60,
        }
        .into_event(1000);
        let stored = composer().compose(&event, mark(), Numbers { seq: 9, prev: 0 });
        let body = String::from_utf8(stored.body).expect("UTF-8");
        assert!(
            body.ends_with(r#","security":{"source":"wazuh-manager","version":"4.14.7","sequence":9}}"#),
            "{body}"
        );
    }

    #[test]
    fn producer_cannot_forge_or_break_headers() {
        let mut event = status_change(3);
        event.headers = [
            ("Muster-Seq", "1"),
            ("Nats-Msg-Id", "x"),
            ("Muster-Status", "b\r\nC: d"),
            ("traceparent", "00-h"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let stored = composer().compose(&event, mark(), Numbers { seq: 5, prev: 0 });
        assert_eq!(stored.headers[10..], [("traceparent".to_owned(), "00-h".to_owned())]);
    }
}
