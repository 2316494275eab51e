//! Which agents' absences are open findings, so that their return can close them. Only in OCSF: there a finding that
//! nobody closes stays open.
//!
//! It is known as long as natsd runs. A finding from before is closed by nobody.

use std::collections::BTreeSet;

use muster_config::EventFormat;
use muster_proto::{
    agent::AgentStatus,
    event::{Event, Kind, header},
};

/// Agents that are remembered. Findings of further ones stay open.
const MAX_OPEN: usize = 200_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Findings {
    open: Option<BTreeSet<String>>,
}

impl Findings {
    pub(super) fn new(format: EventFormat) -> Self {
        Self {
            open: (format == EventFormat::Ocsf).then(BTreeSet::new),
        }
    }

    /// An alert is told, or the end of one.
    pub(super) fn note(&mut self, alert: &Event) {
        let Some(open) = &mut self.open else { return };
        if is_return(alert) {
            open.remove(&alert.subject_key);
        } else if open.len() < MAX_OPEN {
            open.insert(alert.subject_key.clone());
        }
    }

    /// The end of an alert, if this event is one: the agent is back.
    pub(super) fn closing(&self, event: &Event) -> Option<Event> {
        let is_open = self.open.as_ref()?.contains(&event.subject_key);
        (is_open && event.kind == Kind::StatusChange && is_return(event)).then(|| Event {
            kind: Kind::DisconnectAlert,
            ..event.clone()
        })
    }
}

fn is_return(event: &Event) -> bool {
    let status = event.headers.iter().find(|(name, _)| name == header::STATUS);
    let to = status.and_then(|(_, words)| words.rsplit('>').next());
    to == Some(&AgentStatus::Active.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(id: &str, words: &str) -> Event {
        Event {
            kind: Kind::StatusChange,
            subject_key: id.to_owned(),
            created_ms: 0,
            alert_level: 8,
            body: Vec::new(),
            headers: vec![(header::STATUS.to_owned(), words.to_owned())],
        }
    }

    #[test]
    fn return_closes_an_open_finding_once() {
        let mut findings = Findings::new(EventFormat::Ocsf);
        let back = change("001", "disconnected>active");
        assert_eq!(findings.closing(&back), None, "nothing is open");
        findings.note(
            &change("001", "active>disconnected")
                .disconnect_alert()
                .expect("an alert"),
        );
        assert_eq!(findings.closing(&change("001", "disconnected>pending")), None);
        assert_eq!(findings.closing(&change("002", "disconnected>active")), None);
        let closing = findings.closing(&back).expect("the end of it");
        assert_eq!(closing.kind, Kind::DisconnectAlert);
        findings.note(&closing);
        assert_eq!(findings.closing(&back), None);
    }

    #[test]
    fn other_formats_know_no_findings() {
        let mut findings = Findings::new(EventFormat::Native);
        findings.note(&change("001", "active>disconnected"));
        assert_eq!(findings.closing(&change("001", "disconnected>active")), None);
    }
}
