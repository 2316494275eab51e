//! Who sends most: looked at every [`LOOK_EVERY`], kept for the status, and told when events had to wait or were lost.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use muster_proto::agent::AgentId;
use tokio::sync::{mpsc, watch};

use super::tally::{Tallies, Tally};
use crate::{
    keys::KeyTable,
    slot::{AgentSlot, Millis, News, Traffic},
};

/// How often agents' traffic is compared with what it was.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// So many are named.
const NAMED: usize = 5;
/// The same trouble is not told again before.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// An agent that sends much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Talker {
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: Arc<str>,
    /// Events a second.
    pub events: u64,
    /// Bytes of events a second.
    pub bytes: u64,
    /// Events dropped since the last look.
    pub dropped: u64,
}

impl fmt::Display for Talker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {} {} events/s {} KiB/s",
            self.id,
            self.name,
            self.events,
            self.bytes / 1024
        )
    }
}

/// Events had to wait, or were lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overload {
    /// Times that a connection was not read, since the last look.
    pub pauses: u64,
    /// Events dropped since the last look.
    pub dropped: u64,
    /// Who sends most, the first most of all.
    pub talkers: Vec<Talker>,
}

/// The comparison.
#[derive(Default)]
pub(crate) struct Talkers {
    /// Agents that have sent events.
    before: HashMap<AgentId, Traffic>,
    looked: Millis,
    pauses: u64,
    dropped: u64,
    told: Option<Millis>,
}

impl Talkers {
    /// Who sent most since the last look.
    pub(crate) fn look<'a>(&mut self, now: Millis, slots: impl Iterator<Item = &'a Arc<AgentSlot>>) -> Vec<Talker> {
        let elapsed = (now.since(self.looked).as_millis() as u64).max(1);
        let first = self.looked.is_never();
        self.looked = now;
        let mut talkers = Vec::new();
        let mut after = HashMap::with_capacity(self.before.len());
        for slot in slots {
            let traffic = slot.traffic();
            if traffic.events == 0 {
                continue;
            }
            // A changed key line begins at nothing again.
            let before = self.before.get(&slot.id).copied().unwrap_or_default();
            let rate = |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1000) / elapsed;
            let talker = Talker {
                id: slot.id.clone(),
                name: Arc::clone(&slot.name),
                events: rate(traffic.events, before.events),
                bytes: rate(traffic.bytes, before.bytes),
                dropped: traffic.dropped.saturating_sub(before.dropped),
            };
            if !first && talker.events > 0 {
                talkers.push(talker);
            }
            after.insert(slot.id.clone(), traffic);
        }
        self.before = after;
        talkers.sort_unstable_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.id.cmp(&other.id)));
        talkers.truncate(NAMED);
        talkers
    }

    /// Whether there is trouble to be told: connections were paused or events were dropped since the last look.
    pub(crate) fn trouble(&mut self, now: Millis, pauses: u64, dropped: u64, talkers: &[Talker]) -> Option<Overload> {
        let overload = Overload {
            pauses: pauses.saturating_sub(self.pauses),
            dropped: dropped.saturating_sub(self.dropped),
            talkers: talkers.to_vec(),
        };
        if overload.pauses == 0 && overload.dropped == 0 {
            (self.pauses, self.dropped) = (pauses, dropped);
            return None;
        }
        // What is not told now is counted into what is told later.
        if self.told.is_some_and(|told| now.since(told) < AGAIN_AFTER) {
            return None;
        }
        self.told = Some(now);
        (self.pauses, self.dropped) = (pauses, dropped);
        Some(overload)
    }
}

/// What the thread looks at.
pub(crate) struct Watch {
    pub(crate) tables: watch::Receiver<Arc<KeyTable>>,
    pub(crate) tallies: Vec<Arc<Tallies>>,
    pub(crate) news: mpsc::Sender<News>,
    /// Who sends most, for the status.
    pub(crate) top: Arc<Mutex<Vec<Talker>>>,
}

impl Watch {
    /// Looks until the other end of `stop` is gone.
    pub(crate) fn run(self, stop: &Receiver<()>) {
        let mut talkers = Talkers::default();
        loop {
            let now = Millis::now();
            let table = Arc::clone(&self.tables.borrow());
            let top = talkers.look(now, table.slots());
            let sum = |tally| self.tallies.iter().map(|tallies| tallies.read(tally)).sum::<u64>();
            let dropped = sum(Tally::EventsDroppedFull) + sum(Tally::EventsDroppedNoReader);
            if let Some(overload) = talkers.trouble(now, sum(Tally::Pauses), dropped, &top) {
                // No room: the trouble is told at the next look, if it lasts.
                let _ = self.news.try_send(News::Overload { at: now, overload });
            }
            *self.top.lock().unwrap_or_else(PoisonError::into_inner) = top;
            if stop.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::keys::file;

    use super::*;

    fn slots() -> Vec<Arc<AgentSlot>> {
        let keys = file::parse(b"001 a any k1\n002 b any k2\n003 c any k3\n");
        keys.entries
            .iter()
            .map(|entry| Arc::new(AgentSlot::new(entry)))
            .collect()
    }

    #[test]
    fn whoever_sends_most_is_named_first_with_rates_since_the_last_look() {
        let (slots, mut talkers) = (slots(), Talkers::default());
        let start = Millis(1000);
        slots[0].count_event(500_000, start);
        assert_eq!(talkers.look(start, slots.iter()), [], "nothing to compare with");
        for _ in 0..100 {
            slots[1].count_event(1000, start);
        }
        slots[2].count_event(10, start);
        let top = talkers.look(start + Duration::from_secs(10), slots.iter());
        let named: Vec<_> = top.iter().map(|talker| (talker.id.as_str(), talker.events)).collect();
        assert_eq!(named, [("002", 10)]);
        assert_eq!(top[0].to_string(), "002 b 10 events/s 9 KiB/s");
    }

    #[test]
    fn trouble_is_told_once_a_minute_and_nothing_of_it_is_forgotten() {
        let mut talkers = Talkers::default();
        let after = |seconds| Millis(1000) + Duration::from_secs(seconds);
        assert_eq!(talkers.trouble(after(0), 0, 0, &[]), None);
        assert_eq!(talkers.trouble(after(10), 1, 0, &[]).map(|told| told.pauses), Some(1));
        assert_eq!(talkers.trouble(after(20), 4, 7, &[]), None);
        let told = talkers.trouble(after(70), 5, 9, &[]).unwrap();
        assert_eq!((told.pauses, told.dropped), (4, 9));
        assert_eq!(talkers.trouble(after(200), 5, 9, &[]), None);
    }
}
