//! What is done while the spool is full.
//!
//! What must go is told before it is gone from the disk. Enrollments, keys and audit have room of their own, and do not wait
//! behind what has none. When even that is used up, acts stay in the audit trail's file alone, and that is counted and told.

use muster_proto::event::{Class, Event, Kind, body::SpoolGap};
use muster_service::clock;
use serde_json::json;

use super::{Batch, Keeper, chain, disk::Untold, shared::MAX_OWN};
use crate::spool::{SpoolError, record::Stored};

/// About what an event takes besides its body.
const USUAL_ROOM: usize = 1200;
/// As the trail of a daemon that had to drop events.
const OUTBOX_FULL: &str = "outbox_full";

impl Batch {
    pub(super) fn only_audit(&self) -> bool {
        self.events.iter().all(|event| event.event.class() == Class::Audit)
    }
}

/// Whether there is always room for these.
pub(super) fn only_audit(stored: &[Stored]) -> bool {
    stored.iter().all(|event| event.class == Class::Audit)
}

impl Keeper {
    /// Drops what must go for these to find room, and makes safe that it is told.
    pub(super) fn drop_for(&mut self, batches: &[Batch]) {
        if self.takes_nothing() {
            return;
        }
        let of_producers = batches.iter().flat_map(|batch| &batch.events).map(|event| &event.event);
        let bodies = of_producers.chain(&self.own).map(|event| event.body.len() + USUAL_ROOM);
        let incoming = u64::try_from(bodies.sum::<usize>()).unwrap_or(u64::MAX);
        let only_audit =
            batches.iter().all(Batch::only_audit) && self.own.iter().all(|event| event.class() == Class::Audit);
        let dropped = self.shared.spool().drop_for(incoming, only_audit, clock::unix_ms());
        match dropped {
            Ok(gaps) if gaps.is_empty() => {}
            Ok(gaps) => {
                self.declare(&gaps);
                // What fails is told where it fails, and tried again with what follows.
                let _ = self.commit_own_anyway();
            }
            Err(error) => tracing::debug!(error = chain(&error), "cannot look for what may be dropped"),
        }
    }

    /// Commits what is our own, however full the spool is.
    fn commit_own_anyway(&mut self) -> Result<(), SpoolError> {
        self.anyway = true;
        let committed = self.commit(&[]);
        self.anyway = false;
        committed
    }

    /// Of batches that found no room, those that have room of their own; the others stay. None overtakes another of the same
    /// producer, whose numbers count up.
    fn take_audit(batches: &mut Vec<Batch>) -> Vec<Batch> {
        let (mut audit, mut others): (Vec<Batch>, Vec<Batch>) = (Vec::new(), Vec::new());
        for batch in std::mem::take(batches) {
            let waits = others
                .iter()
                .any(|other| (&other.producer, other.incarnation) == (&batch.producer, batch.incarnation));
            if batch.only_audit() && !waits {
                audit.push(batch);
            } else {
                others.push(batch);
            }
        }
        *batches = others;
        audit
    }

    /// Commits of these what has room of its own.
    pub(super) fn commit_audit(&mut self, batches: &mut Vec<Batch>) {
        let audit = Self::take_audit(batches);
        if audit.is_empty() {
            return;
        }
        if self.commit_dear(&audit).is_ok() {
            self.untold.extend(audit.into_iter().map(Untold::from));
            self.tell();
        } else {
            batches.splice(0..0, audit);
        }
    }

    /// Commits these with what is our own and has room of its own, while there is none for the rest.
    fn commit_dear(&mut self, batches: &[Batch]) -> Result<(), SpoolError> {
        let full = self.disk.is_full();
        let goes = |event: &mut Event| !full || event.class() == Class::Audit;
        let dear: Vec<_> = self.own.extract_if(.., goes).collect();
        let rest = std::mem::replace(&mut self.own, dear);
        let committed = self.commit(batches);
        self.own.extend(rest);
        committed
    }

    /// Commits what is our own, if anything is and the disk takes it.
    pub(super) fn commit_own(&mut self) {
        // What fails is told where it fails, and tried again.
        if !self.own.is_empty() && (self.disk.is_full() || !self.takes_nothing()) && self.commit_dear(&[]).is_ok() {
            self.tell_spilled();
        }
        self.trim_own();
    }

    /// What waits of our own is bounded: of health only the newest matters, and acts stand in the audit trail's file.
    fn trim_own(&mut self) {
        if self.own.len() <= MAX_OWN {
            return;
        }
        let newest = self.own.iter().rposition(|event| event.kind == Kind::Health);
        let mut place = 0;
        self.own.retain(|event| {
            place += 1;
            event.kind != Kind::Health || newest == Some(place - 1)
        });
        let mut excess = self.own.len().saturating_sub(MAX_OWN);
        let before = self.own.len();
        self.own.retain(|event| {
            let goes = excess > 0 && event.kind == Kind::Audit;
            excess -= usize::from(goes);
            !goes
        });
        let spilled = u64::try_from(before - self.own.len()).unwrap_or(0);
        if spilled > 0 {
            tracing::error!(
                acts = spilled,
                "the spool takes nothing: these acts are in the audit trail's file alone, and are not published"
            );
            self.counters.acts_spilled_total.add(spilled);
            self.shared.spill(spilled);
        }
    }

    /// There is room again.
    fn tell_spilled(&mut self) {
        let count = self.shared.take_spilled();
        if count == 0 {
            return;
        }
        let now = clock::unix_ms();
        let gap = SpoolGap {
            class: Class::Audit.as_str(),
            node: &self.composer.node,
            epoch: self.composer.epoch,
            from_seq: 0,
            to_seq: 0,
            count,
            first_ts: 0,
            last_ts: now / 1000,
            reason: OUTBOX_FULL,
            stream: "-",
            prev_last_seq: None,
            producer: Some("natsd"),
            runs: &[],
            spool_age: self.spool_age(now),
        };
        self.own.push(gap.into_event(now));
        self.audit_act(
            "dropped",
            &json!({"producer": "natsd", "count": count, "reason": OUTBOX_FULL}),
        );
    }
}

#[cfg(test)]
pub(super) mod tests;
