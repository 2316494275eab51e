//! One commit: every event gets its number and its shape, and all stand in the spool or none.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use muster_proto::{
    event::{Event, Kind, Stream, body::SpoolGap, header},
    ipc::control::PublishedEvent,
};
use muster_service::{clock, trace};
use serde_json::{Value, json};

use super::{Batch, Keeper};
use crate::{
    message::{CopyOf, Numbers},
    owners::Admission,
    spool::{
        SpoolError,
        record::{self, Mark, Name, Stored},
    },
};

/// The act of the audit trail.
pub(super) const DROPPED: &str = "dropped";

/// Events on their way into the spool.
struct Composed {
    stored: Vec<Stored>,
    /// As followers see them, if anybody wants to.
    shown: Option<Vec<PublishedEvent>>,
    /// What goes into the audit trail once they are safe.
    acts: Vec<(&'static str, Value)>,
    /// Events that nobody hears of: another manager tells of their agents.
    suppressed: Vec<Mark>,
}

impl Keeper {
    pub(super) fn commit(&mut self, batches: &[Batch]) -> Result<(), SpoolError> {
        if !self.anyway {
            self.drop_for(batches);
        }
        let last_before = self.last_of_stream.clone();
        self.findings.begin();
        let committed = self.try_commit(batches);
        if let Err(error) = &committed {
            if self.disk.is_due(Instant::now()) {
                // Not even numbers could be given.
                self.disk_failed(error, false);
            }
            // The numbers are used up, but no event has them.
            self.last_of_stream = last_before;
        }
        committed
    }

    fn try_commit(&mut self, batches: &[Batch]) -> Result<(), SpoolError> {
        let mut commit = Composed {
            shown: (self.shared.followers.receiver_count() > 0 || self.shared.roll.is_some()).then(Vec::new),
            stored: Vec::new(),
            acts: Vec::new(),
            suppressed: Vec::new(),
        };
        let mut taken: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        for batch in batches {
            let source = (batch.producer.as_str(), batch.incarnation);
            let known = match taken.get(&source) {
                Some(number) => *number,
                None => self.shared.spool().known(source.0, source.1),
            };
            let mut highest = known;
            for event in &batch.events {
                if event.number > highest {
                    let missing = event.number - highest - 1;
                    // Of a producer that was never heard before nobody knows where it began.
                    if highest > 0 && missing > 0 {
                        self.declare_outbox(source.0, missing, event.event.created_ms, &mut commit)?;
                    }
                    highest = event.number;
                    let mark = Mark {
                        producer: batch.producer.clone(),
                        incarnation: batch.incarnation,
                        number: event.number,
                    };
                    commit.acts.extend(self.act_of(&event.event));
                    self.compose(&event.event, &mark, &mut commit)?;
                }
            }
            taken.insert(source, highest);
        }
        let own = std::mem::take(&mut self.own);
        for event in &own {
            if let Err(error) = self.compose(event, &nobody(), &mut commit) {
                self.own = own;
                return Err(error);
            }
        }
        let count = commit.stored.len();
        if count == 0 {
            self.pass_over(&commit.suppressed);
            return Ok(());
        }
        self.findings.prepare();
        match self.store(commit.stored) {
            Ok(gaps) => {
                self.findings.committed();
                self.declare(&gaps);
            }
            Err(error) => {
                self.own = own;
                return Err(error);
            }
        }
        self.pass_over(&commit.suppressed);
        for (act, detail) in &commit.acts {
            if *act == DROPPED {
                tracing::warn!(%detail, "a daemon dropped events before they could be taken");
            }
            self.audit_act(act, detail);
        }
        let owners = self.shared.owners();
        if let Some(mut roll) = self.shared.roll() {
            let is_ours = |id: &str| owners.as_ref().is_none_or(|owners| !owners.is_foreign(id));
            let shown = commit.shown.iter().flatten();
            for event in shown.filter(|event| is_ours(&event.event.subject_key)) {
                roll.note(&event.event, event.sequence);
            }
        }
        drop(owners);
        self.shared.committed.send_modify(|commits| *commits += 1);
        let shown = match commit.shown {
            Some(shown) => shown,
            // Somebody follows since, and may have looked back before these events were there.
            None if self.shared.followers.receiver_count() > 0 => {
                let newest = self.shared.spool().newest(count);
                newest.into_iter().map(published).collect()
            }
            None => Vec::new(),
        };
        for event in shown {
            // Followers that went away do not matter.
            let _ = self.shared.followers.send(Arc::new(event));
        }
        Ok(())
    }

    /// What a daemon had to drop while natsd did not take it. It stands in the same commit as the first event behind it, so
    /// that it is told once.
    fn declare_outbox(
        &mut self,
        producer: &str,
        count: u64,
        until_ms: u64,
        commit: &mut Composed,
    ) -> Result<(), SpoolError> {
        let now = clock::unix_ms();
        let gap = SpoolGap {
            class: "unknown",
            node: &self.composer.node,
            epoch: self.composer.epoch,
            from_seq: 0,
            to_seq: 0,
            count,
            first_ts: 0,
            last_ts: until_ms / 1000,
            reason: "outbox_full",
            stream: "-",
            prev_last_seq: None,
            producer: Some(producer),
            runs: &[],
            spool_age: self.spool_age(now),
        };
        let event = gap.into_event(now);
        let detail = json!({"producer": producer, "count": count, "reason": "outbox_full"});
        commit.acts.push((DROPPED, detail));
        self.compose(&event, &nobody(), commit)
    }

    /// Whoever got or lost a key is in the audit trail too.
    fn act_of(&self, event: &Event) -> Option<(&'static str, Value)> {
        self.audit.as_ref()?;
        let act = match event.kind {
            Kind::Enrolled => "enrolled",
            Kind::Removed => "removed",
            Kind::KeyRotated => "key_rotated",
            Kind::Renamed => "renamed",
            _ => return None,
        };
        let mut body: Value = serde_json::from_slice(&event.body).unwrap_or_default();
        Some((act, body["enrollment"].take()))
    }

    fn compose(&mut self, event: &Event, mark: &Mark, commit: &mut Composed) -> Result<(), SpoolError> {
        // Before it gets a number: what is not told leaves no gap.
        let admission = self.shared.owners.as_ref().map(|room| room.admit(event));
        let owner = match admission {
            Some(Admission::Suppressed) => {
                commit.suppressed.push(mark.clone());
                return Ok(());
            }
            Some(Admission::Owned(revision)) => Some(revision),
            Some(Admission::Free) | None => None,
        };
        // Ours, and those of a daemon of an earlier release; the copy below belongs to the same trace.
        let traced = (!event.is_traced()).then(|| traced(event));
        let event = traced.as_ref().unwrap_or(event);
        let sequence = self.compose_one(event, mark, None, owner.as_deref(), commit)?;
        if let Some((copy, finding)) = self.findings.copy_of(event) {
            let copy_of = Some(CopyOf { sequence, finding });
            self.compose_one(&copy, mark, copy_of, owner.as_deref(), commit)?;
        }
        Ok(())
    }

    /// Events that are nobody's business count as taken all the same.
    fn pass_over(&self, suppressed: &[Mark]) {
        if !suppressed.is_empty() {
            let count = u64::try_from(suppressed.len()).unwrap_or(u64::MAX);
            self.counters.events_suppressed_total.add(count);
            let mut spool = self.shared.spool();
            suppressed.iter().for_each(|mark| spool.pass_over(mark));
        }
    }

    fn compose_one(
        &mut self,
        event: &Event,
        mark: &Mark,
        copy_of: Option<CopyOf>,
        owner: Option<&str>,
        commit: &mut Composed,
    ) -> Result<u64, SpoolError> {
        let numbers = self.number(event.kind.stream())?;
        let mut stored = self.composer.compose(event, mark.clone(), numbers, copy_of);
        // Not signed, as no header but those of the preamble is.
        let owner = owner.map(|owner| (Name::Borrowed(header::OWNER), owner.to_owned()));
        stored.headers.extend(owner);
        if let Some(shown) = &mut commit.shown {
            // Followers on this machine see what was said before it was sealed or put into another form.
            shown.push(PublishedEvent {
                subject: stored.subject.clone(),
                sequence: stored.seq,
                producer: mark.producer.clone(),
                event: event.clone(),
            });
        }
        // Nobody but natsd itself announces keys.
        if event.kind == Kind::KeyAnnouncement && mark.producer.is_empty() {
            self.shared.announce(event, &stored);
        }
        commit.stored.push(stored);
        Ok(numbers.seq)
    }

    fn number(&mut self, stream: Stream) -> Result<Numbers, SpoolError> {
        let seq = self.sequencer.next()?;
        let prev = self.last_of_stream.insert(stream, seq).unwrap_or(0);
        Ok(Numbers { seq, prev })
    }
}

/// With a trace of its own.
fn traced(event: &Event) -> Event {
    let mut event = event.clone();
    event.headers.push((header::TRACE.to_owned(), trace::traceparent()));
    event
}

/// Events that natsd makes itself have no producer.
fn nobody() -> Mark {
    Mark {
        producer: String::new(),
        incarnation: 0,
        number: 0,
    }
}

/// An event of the spool as followers see it.
pub(crate) fn published(stored: Stored) -> PublishedEvent {
    PublishedEvent {
        subject: stored.subject,
        sequence: stored.seq,
        producer: stored.source.producer,
        event: Event {
            kind: stored.kind,
            subject_key: stored.key,
            created_ms: stored.created_ms,
            alert_level: stored.alert_level,
            body: stored.body,
            headers: record::owned(stored.headers),
        },
    }
}
