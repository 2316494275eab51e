//! What natsd itself has to say: how it is, the keys, the gaps, and the acts of the audit trail.

use std::{sync::PoisonError, time::Instant};

use muster_proto::event::{
    Event, Kind, Stream,
    body::{Health, SpoolGap, manager_event, wrapped},
};
use muster_service::clock;
use serde_json::{Value, json};

use super::{Audited, Errand, Keeper, PROBE, chain, commit::DROPPED};
use crate::{alert::What, spool::Gap};

/// How often the manager's health is told.
const HEALTH_INTERVAL_MS: u64 = 30 * 1000;
/// Why the manager's health is told: it is time.
const PERIODIC: &str = "periodic";
/// The same: the clock of this machine was stepped.
const CLOCK_STEP: &str = "clock_step";
/// Looking at two clocks takes less.
const MAX_LOOK_MS: u64 = 1000;

impl Keeper {
    /// The hole that a crash left in the sequence, and what the disk has damaged.
    pub(super) fn begin_epoch(&mut self, gaps: &[Gap]) {
        let now = clock::unix_ms();
        self.declare(gaps);
        let first = self.sequencer.last() + 1;
        let hole = first - 1 - self.sequencer.known.min(first - 1);
        let gap = SpoolGap {
            class: "unknown",
            node: &self.composer.node,
            epoch: self.composer.epoch,
            from_seq: first - hole,
            to_seq: first - 1,
            count: hole,
            first_ts: 0,
            last_ts: now / 1000,
            reason: "restart",
            stream: "-",
            prev_last_seq: Some(self.sequencer.before),
            producer: None,
            runs: &[],
            spool_age: self.spool_age(now),
        };
        self.own.push(gap.into_event(now));
        let detail = json!({"epoch": self.composer.epoch, "state_lost": self.sequencer.state_lost});
        self.audit_act("started", &detail);
    }

    pub(super) fn tidy(&mut self) {
        let now = clock::unix_ms();
        self.run_errands();
        self.watch_clock();
        if !self.composer.history {
            self.settle_keys(now);
            self.tell_health(now);
            let keyring = self.composer.keyring.as_ref();
            match self.audit.as_mut().map(|audit| audit.tidy(keyring, now)) {
                Some(Ok(Some(head))) => self.tell_act(&head, now),
                Some(Err(error)) => tracing::error!(%error, "cannot tidy the audit trail"),
                Some(Ok(None)) | None => {}
            }
        }
        self.commit_own();
        self.try_disk_again();
        self.tidy_spool(now);
    }

    /// A stepped clock is told at once: consumers judge events by their time.
    fn watch_clock(&mut self) {
        let (before, now, after) = (clock::monotonic_ms(), clock::unix_ms(), clock::monotonic_ms());
        // Whoever is stopped between two looks sees a step that is none.
        if after - before > MAX_LOOK_MS {
            return;
        }
        let Some(by_ms) = self.steps.look(now, after) else {
            return;
        };
        tracing::warn!(by_ms, "the clock of this machine was stepped");
        self.audit_act("clock_stepped", &json!({"by_ms": by_ms}));
        if !self.composer.history {
            let health = self.health(now, CLOCK_STEP, by_ms);
            self.own.push(health);
        }
    }

    pub(super) fn run_errands(&mut self) {
        let errands = std::mem::take(&mut *self.shared.errands.lock().unwrap_or_else(PoisonError::into_inner));
        for errand in errands {
            match errand {
                Errand::Audit(act, detail, unsigned, answer) => {
                    let written = self.audit_act(act, &detail);
                    let keyring = self.composer.keyring.as_ref();
                    let reply = unsigned.zip(keyring);
                    let reply = reply.map(|(unsigned, ring)| unsigned.sign(ring.key_id(), |bytes| ring.sign(bytes)));
                    // Whoever asked may be gone.
                    drop(answer.send(Audited { written, reply }));
                }
                Errand::Note(act, detail) => drop(self.audit_act(act, &detail)),
                Errand::Event(event) => self.own.push(event),
                Errand::Health => {
                    let now = clock::unix_ms();
                    let health = self.health(now, PROBE, 0);
                    self.own.push(health);
                }
                Errand::Keys(answer) => {
                    let reloaded = self.reload_keys();
                    // Whoever asked may be gone.
                    let _ = answer.send(reloaded);
                }
            }
        }
        let missed = self.shared.take_missed();
        if missed > 0 {
            self.audit_act("acts_missed", &json!({"count": missed}));
        }
        let gaps = self.shared.spool().take_untold();
        self.declare(&gaps);
        self.commit_own();
    }

    pub(super) fn reload_keys(&mut self) -> Result<String, String> {
        let Some(keyring) = &mut self.composer.keyring else {
            return Ok("events are not signed".to_owned());
        };
        let events = keyring.reload(clock::unix_ms()).map_err(|error| chain(&error))?;
        let (count, waiting) = (events.len(), keyring.unvouched());
        self.announce(events);
        for why in &waiting {
            self.audit_act("key_waits", &json!({"why": why}));
        }
        let mut told = format!("signing keys read again, {count} announcements made");
        for why in waiting {
            told.push_str("; ");
            told.push_str(&why);
        }
        Ok(told)
    }

    pub(super) fn settle_keys(&mut self, now: u64) {
        let Some(keyring) = &mut self.composer.keyring else {
            return;
        };
        match keyring.settle(now) {
            Ok(events) if events.is_empty() => {}
            Ok(events) => self.announce(events),
            Err(error) => tracing::error!(error = chain(&error), "cannot change the signing key"),
        }
    }

    pub(super) fn announce(&mut self, events: Vec<Event>) {
        self.report.tell_keys(self.composer.keyring.as_ref());
        let detail = |event: &Event| serde_json::from_slice(&event.body).unwrap_or_default();
        let details: Vec<Value> = events.iter().map(detail).collect();
        self.own.extend(events);
        // Behind the announcements: the acts may be signed with the key that those tell of.
        for detail in details {
            self.audit_act("key", &detail["key"]);
        }
    }

    pub(super) fn tell_health(&mut self, now: u64) {
        if now.saturating_sub(self.health_ms) < HEALTH_INTERVAL_MS {
            return;
        }
        let health = self.health(now, PERIODIC, 0);
        self.own.push(health);
        (self.health_ms, self.received_before) = (now, self.counters.events_received_total.value());
    }

    pub(super) fn health(&self, now: u64, reason: &str, clock_step_ms: i64) -> Event {
        let received = self.counters.events_received_total.value();
        let seconds = match self.health_ms {
            0 => 0,
            before => now.saturating_sub(before) / 1000,
        };
        let rate = (received - self.received_before).checked_div(seconds).unwrap_or(0);
        let (depth, capacity) = {
            let spool = self.shared.spool();
            (spool.depth(), spool.capacity())
        };
        let facts = self.report.read();
        let mut degraded = self.report.degraded();
        degraded.extend(self.shared.trouble());
        degraded.extend(self.shared.audit_trouble());
        degraded.extend(self.shared.owners.as_ref().and_then(|room| room.degraded()));
        let health = Health {
            manager_node: &self.composer.node,
            timestamp: now / 1000,
            reason,
            epoch: self.composer.epoch,
            seq: self.sequencer.last(),
            events_per_second: rate,
            spool_events: depth.waiting,
            spool_bytes: depth.bytes,
            spool_capacity: capacity,
            spool_age: depth.age_s(now),
            last_ack: facts.last_ack_ms / 1000,
            degraded: &degraded,
            clock_step_ms,
            broker_skew_ms: facts.skew_ms,
            queues: &self.shared.queues(),
        };
        health.into_event(now)
    }

    /// A line of the audit trail, and its event. Whether it was written.
    pub(super) fn audit_act(&mut self, act: &'static str, detail: &Value) -> bool {
        if act == DROPPED {
            self.report.change(|facts| facts.drops.note(detail));
        }
        if let Some(what) = What::of_act(act) {
            self.tell_rules(what, detail);
        }
        let Some(audit) = &mut self.audit else { return false };
        let now = clock::unix_ms();
        match audit.write(act, detail, now) {
            Ok(line) => {
                self.tell_act(&line, now);
                self.shared.set_audit_trouble(None);
                true
            }
            Err(error) => {
                // The log has it at least.
                tracing::error!(%error, act, %detail, "cannot write to the audit trail");
                self.shared.set_audit_trouble(Some(error.to_string()));
                false
            }
        }
    }

    /// A line that stands in the audit trail is an event, too.
    fn tell_act(&mut self, line: &[u8], now: u64) {
        let line: Value = serde_json::from_slice(line).unwrap_or_default();
        self.own
            .push(manager_event(Kind::Audit, "", now, 0, wrapped("audit", &line)));
    }

    /// A line for the rules of this manager.
    pub(super) fn tell_rules(&mut self, what: What, detail: &Value) {
        if let Some(alerts) = &mut self.alerts {
            alerts.tell(what, detail, Instant::now());
        }
    }

    pub(super) fn spool_age(&self, now_ms: u64) -> u64 {
        self.shared.spool().depth().age_s(now_ms)
    }

    /// What was dropped is told, as an event of our own in the next commit.
    pub(super) fn declare(&mut self, gaps: &[Gap]) {
        let now = clock::unix_ms();
        for gap in gaps {
            let stream = gap.stream.map_or("-", Stream::name);
            tracing::warn!(
                stream,
                from_seq = gap.from_seq,
                to_seq = gap.to_seq,
                count = gap.count,
                reason = gap.reason,
                "events were dropped from the spool"
            );
            let body = SpoolGap {
                class: gap.class.map_or("unknown", muster_proto::event::Class::as_str),
                node: &self.composer.node,
                epoch: gap.epoch.unwrap_or(self.composer.epoch),
                from_seq: gap.from_seq,
                to_seq: gap.to_seq,
                count: gap.count,
                first_ts: gap.first_ms / 1000,
                last_ts: gap.last_ms / 1000,
                reason: gap.reason,
                stream,
                prev_last_seq: None,
                producer: None,
                runs: &gap.runs,
                spool_age: self.spool_age(now),
            };
            self.own.push(body.into_event(now));
            let detail = json!({
                "stream": stream, "from_seq": gap.from_seq, "to_seq": gap.to_seq, "count": gap.count, "reason": gap.reason
            });
            self.audit_act(DROPPED, &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::full::tests::Stage;

    #[test]
    fn stepped_clock_is_an_act_and_told_at_once() {
        const HOUR_MS: u64 = 3_600_000;
        let directory = tempfile::tempdir().expect("directory");
        let mut stage = Stage::new(directory.path());
        stage.keeper.tidy();
        let begun = clock::unix_ms().saturating_sub(HOUR_MS);
        stage.keeper.steps.look(begun, clock::monotonic_ms());
        stage.keeper.tidy();
        let trail = std::fs::read_to_string(directory.path().join("audit.json")).expect("a trail");
        let lines = trail
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let steps: Vec<_> = lines.filter(|line| line["act"] == "clock_stepped").collect();
        assert_eq!(steps.len(), 1);
        let by_ms = steps[0]["detail"]["by_ms"].as_u64().expect("a number");
        assert!(by_ms.abs_diff(HOUR_MS) < 1000, "{by_ms}");
        let told = stage.keeper.shared.spool().waiting(Stream::Keepalive, 0, usize::MAX);
        let told = told.iter().map(|place| place.read().expect("reads").body);
        let told = told.map(|body| serde_json::from_slice::<Value>(&body).expect("JSON")["health"].take());
        let told: Vec<_> = told.filter(|health| health["reason"] == CLOCK_STEP).collect();
        assert_eq!((told.len(), &told[0]["clock_step_ms"]), (1, &json!(by_ms)));
    }
}
