//! Which agents' absences are open findings, so that their return can close them. Only in OCSF: there a finding that
//! nobody closes stays open.
//!
//! **Invariant:** a finding that consumers know of stands in the [`Journal`] as long as they do not know of its end,
//! whatever instant natsd is killed at. An end may be told twice.

mod journal;

use std::{collections::BTreeMap, path::Path};

use muster_config::EventFormat;
use muster_proto::{
    agent::AgentStatus,
    event::{Event, Kind, header},
};

use self::journal::Journal;
use crate::format::Finding;

/// Findings that are remembered. Further ones stay open.
const MAX_OPEN: usize = 200_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Findings(Option<Book>);

#[derive(Debug)]
struct Book {
    /// Since when, in Unix milliseconds, behind the agent's id.
    open: BTreeMap<String, u64>,
    /// What the commit that is under way changes: since when, or the end.
    pending: BTreeMap<String, Option<u64>>,
    journal: Journal,
}

impl Findings {
    /// Those that the process before us has left open.
    pub(super) fn open(format: EventFormat, directory: &Path) -> Self {
        Self(matches!(format, EventFormat::Ocsf | EventFormat::Ocsf19).then(|| {
            let (journal, open) = Journal::open(directory, MAX_OPEN);
            Book {
                open,
                pending: BTreeMap::new(),
                journal,
            }
        }))
    }

    /// A commit begins. What the last one wanted to change and could not does not count.
    pub(super) fn begin(&mut self) {
        if let Some(book) = &mut self.0 {
            book.pending.clear();
        }
    }

    /// The second event that an event leads to, if it does: an alert, or the end of one.
    pub(super) fn copy_of(&mut self, event: &Event) -> Option<(Event, Option<Finding>)> {
        let alert = event.disconnect_alert();
        let Some(book) = &mut self.0 else {
            return alert.map(|alert| (alert, None));
        };
        match alert {
            Some(alert) => {
                let finding = if leads_to(&alert, AgentStatus::Disconnected) {
                    book.tell(&alert)
                } else {
                    // Of an agent that is there, such as a key used from two places: nothing that time would end.
                    Finding::New(alert.created_ms)
                };
                Some((alert, Some(finding)))
            }
            None if is_end(event) => {
                let end = Event {
                    kind: Kind::DisconnectAlert,
                    ..event.clone()
                };
                Some((end, Some(book.close(&event.subject_key)?)))
            }
            None => None,
        }
    }

    /// Before the events of a commit are safe.
    pub(super) fn prepare(&mut self) {
        if let Some(book) = &mut self.0 {
            let opened = book.pending.iter().filter_map(|(id, since)| Some((id, (*since)?)));
            let new: Vec<_> = opened.filter(|(id, since)| book.open.get(*id) != Some(since)).collect();
            book.journal.opened(&new);
        }
    }

    /// They are safe.
    pub(super) fn committed(&mut self) {
        let Some(book) = &mut self.0 else { return };
        let mut closed = Vec::new();
        for (id, since) in std::mem::take(&mut book.pending) {
            match since {
                Some(since) => {
                    book.open.insert(id, since);
                }
                None => {
                    book.open.remove(&id);
                    closed.push(id);
                }
            }
        }
        book.journal.closed(&closed, &book.open);
    }
}

impl Book {
    fn since(&self, id: &str) -> Option<u64> {
        let pending = self.pending.get(id).copied();
        pending.unwrap_or_else(|| self.open.get(id).copied())
    }

    /// An alert, of an absence that is new or goes on.
    fn tell(&mut self, alert: &Event) -> Finding {
        let id = &alert.subject_key;
        match self.since(id) {
            // The same one again: it was not taken before.
            Some(since) if since != alert.created_ms => Finding::GoesOn(since),
            _ => {
                if self.open.len() + self.pending.len() < MAX_OPEN {
                    self.pending.insert(id.clone(), Some(alert.created_ms));
                }
                Finding::New(alert.created_ms)
            }
        }
    }

    fn close(&mut self, id: &str) -> Option<Finding> {
        let since = self.since(id)?;
        self.pending.insert(id.to_owned(), None);
        Some(Finding::Over(since))
    }
}

/// The agent is back, or is no agent any more.
fn is_end(event: &Event) -> bool {
    match event.kind {
        Kind::StatusChange => leads_to(event, AgentStatus::Active),
        Kind::Removed => true,
        _ => false,
    }
}

fn leads_to(event: &Event, status: AgentStatus) -> bool {
    let words = event.headers.iter().find(|(name, _)| name == header::STATUS);
    words.and_then(|(_, words)| words.rsplit('>').next()) == Some(&status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(id: &str, at: u64, level: u8, words: &str) -> Event {
        Event {
            kind: Kind::StatusChange,
            subject_key: id.to_owned(),
            created_ms: at,
            alert_level: level,
            body: Vec::new(),
            headers: vec![(header::STATUS.to_owned(), words.to_owned())],
        }
    }

    fn lost(at: u64) -> Event {
        change("001", at, 8, "active>disconnected")
    }

    fn back(at: u64) -> Event {
        change("001", at, 3, "disconnected>active")
    }

    fn ocsf(directory: &Path) -> Findings {
        Findings::open(EventFormat::Ocsf, directory)
    }

    fn finding(findings: &mut Findings, event: &Event) -> Option<Finding> {
        findings.copy_of(event)?.1
    }

    /// What is told of events that are committed together.
    fn commit(findings: &mut Findings, events: &[Event]) -> Vec<Option<Finding>> {
        findings.begin();
        let told = events.iter().map(|event| finding(findings, event)).collect();
        findings.prepare();
        findings.committed();
        told
    }

    #[test]
    fn return_closes_an_open_finding_once() {
        let directory = tempfile::tempdir().expect("directory");
        let mut findings = ocsf(directory.path());
        assert_eq!(commit(&mut findings, &[back(1)]), [None], "nothing is open");
        assert_eq!(commit(&mut findings, &[lost(2)]), [Some(Finding::New(2))]);
        let still_away = change("001", 3, 9, "disconnected>disconnected");
        assert_eq!(commit(&mut findings, &[still_away]), [Some(Finding::GoesOn(2))]);
        let pending = change("001", 4, 3, "disconnected>pending");
        let other = change("002", 5, 3, "disconnected>active");
        assert_eq!(commit(&mut findings, &[pending, other]), [None, None]);
        let told = commit(&mut findings, &[back(6), back(7), lost(8), back(9)]);
        assert_eq!(
            told,
            [
                Some(Finding::Over(2)),
                None,
                Some(Finding::New(8)),
                Some(Finding::Over(8))
            ]
        );
    }

    #[test]
    fn alert_of_an_agent_that_is_there_opens_no_absence_and_ends_none() {
        let directory = tempfile::tempdir().expect("directory");
        let mut findings = ocsf(directory.path());
        let conflict = |at| change("001", at, 12, "active>active");
        let told = commit(&mut findings, &[conflict(1), back(2), lost(3), back(4), conflict(5)]);
        assert_eq!(
            told,
            [
                Some(Finding::New(1)),
                None,
                Some(Finding::New(3)),
                Some(Finding::Over(3)),
                Some(Finding::New(5))
            ]
        );
    }

    #[test]
    fn commit_that_failed_has_opened_and_closed_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let mut findings = ocsf(directory.path());
        for _ in 0..2 {
            findings.begin();
            assert_eq!(finding(&mut findings, &lost(1)), Some(Finding::New(1)));
            findings.prepare();
        }
        findings.committed();
        for _ in 0..2 {
            findings.begin();
            assert_eq!(finding(&mut findings, &back(2)), Some(Finding::Over(1)));
            findings.prepare();
        }
    }

    #[test]
    fn finding_of_an_earlier_process_is_closed() {
        let directory = tempfile::tempdir().expect("directory");
        // Killed before the commit, behind it, and in an orderly way: it is there in any case.
        let mut findings = ocsf(directory.path());
        findings.begin();
        findings.copy_of(&lost(1));
        findings.prepare();
        let mut findings = ocsf(directory.path());
        assert_eq!(
            finding(&mut findings, &lost(1)),
            Some(Finding::New(1)),
            "nobody was told"
        );
        assert_eq!(commit(&mut findings, &[back(2)]), [Some(Finding::Over(1))]);
        assert_eq!(commit(&mut findings, &[lost(3)]), [Some(Finding::New(3))]);
        let mut findings = ocsf(directory.path());
        let removed = Event {
            kind: Kind::Removed,
            ..change("001", 4, 3, "")
        };
        assert_eq!(commit(&mut findings, &[removed]), [Some(Finding::Over(3))]);
        let mut findings = ocsf(directory.path());
        assert_eq!(commit(&mut findings, &[back(5)]), [None]);
    }

    #[test]
    fn other_formats_know_alerts_and_no_findings() {
        let directory = tempfile::tempdir().expect("directory");
        let mut findings = Findings::open(EventFormat::Native, directory.path());
        assert_eq!(
            findings.copy_of(&lost(1)),
            lost(1).disconnect_alert().map(|alert| (alert, None))
        );
        assert_eq!(findings.copy_of(&back(2)), None);
        assert_eq!(std::fs::read_dir(directory.path()).expect("lists").count(), 0);
    }
}
