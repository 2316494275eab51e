//! What stock leaves to monitord and rules know by its words: that an agent has gone silent, and that one was removed
//! because it stayed away. Pure.
//!
//! A line about a silent agent is due `agents_disconnection_alert_time` after its status changed, if it has not come
//! back by then. So is the line about a goodbye, which is stock remoted's and which stock sends at once.
//!
//! **Invariant:** each absence is told once at most, and nobody is in the list who is there.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    path::Path,
    time::Duration,
};

use muster_proto::agent::AgentId;
use muster_service::pid_file;

use crate::slot::Millis;

/// Lines that are told at once; the next ones follow after [`PACE`]. When a whole site vanishes the analysis daemon
/// gets 5000 of them a second.
const LINES_AT_ONCE: usize = 500;
const PACE: Duration = Duration::from_millis(100);
/// How old the knowledge may be that a stock monitord runs.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Whose words these lines are, as rules know them.
pub const PROGRAM: &str = "wazuh-monitord";
/// How the line about a silent agent begins.
pub const DISCONNECTED: &str = "ossec: Agent disconnected: ";
/// What the daemon that we stand in for is called.
const STOCK_NAMES: [&str; 2] = ["wazuh-monitord", "ossec-monitord"];

/// What the configuration says about these lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MonitorSettings {
    /// How long after the status the line is sent; `None`: never.
    pub alert_after: Option<Duration>,
    /// How long an agent may stay away before it is removed; `None`: for ever.
    pub delete_after: Option<Duration>,
}

/// How an agent went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It was given up for its silence.
    Silent,
    /// It said goodbye.
    Stopped,
}

/// Whose absence is still to be told.
#[derive(Debug, Default)]
pub struct Monitor {
    due: BTreeSet<(Millis, AgentId)>,
    by_agent: HashMap<AgentId, (Millis, Absence)>,
    resting_until: Millis,
}

impl Monitor {
    /// An agent is gone.
    pub fn gone(&mut self, id: &AgentId, since: Millis, absence: Absence, settings: MonitorSettings) {
        self.back(id);
        if let Some(after) = settings.alert_after {
            let at = since + after;
            self.due.insert((at, id.clone()));
            self.by_agent.insert(id.clone(), (at, absence));
        }
    }

    /// It is back, or was removed.
    pub fn back(&mut self, id: &AgentId) {
        if let Some((at, _)) = self.by_agent.remove(id) {
            self.due.remove(&(at, id.clone()));
        }
    }

    /// Whose absence is to be told now; they are forgotten.
    pub fn take_due(&mut self, now: Millis) -> Vec<(AgentId, Absence)> {
        let mut taken = Vec::new();
        if now < self.resting_until {
            return taken;
        }
        while taken.len() < LINES_AT_ONCE
            && let Some((at, id)) = self.due.pop_first()
        {
            if at > now {
                self.due.insert((at, id));
                break;
            }
            if let Some((_, absence)) = self.by_agent.remove(&id) {
                taken.push((id, absence));
            }
        }
        if !taken.is_empty() {
            self.resting_until = now + PACE;
        }
        taken
    }

    /// When somebody is due.
    pub fn next(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| (*at).max(self.resting_until))
    }
}

impl MonitorSettings {
    /// Whether a goodbye is told later than it is said.
    pub fn delays_goodbyes(&self) -> bool {
        self.alert_after.is_some_and(|after| !after.is_zero())
    }
}

/// Whether a removed agent had been away for so long that this was why.
pub fn was_stale(away: Duration, settings: MonitorSettings) -> bool {
    settings.delete_after.is_some_and(|longest| away > longest)
}

/// Whether a stock monitord runs in this home, which says all this itself. Looked up at most once every
/// [`LOOK_EVERY`], however many lines there are.
#[derive(Debug, Default)]
pub struct StockMonitord(Cell<Option<(Millis, bool)>>);

impl StockMonitord {
    /// By its pid file below `run` (`<home>/var/run`).
    pub fn runs(&self, run: &Path, now: Millis) -> bool {
        if let Some((looked, runs)) = self.0.get()
            && now.since(looked) < LOOK_EVERY
        {
            return runs;
        }
        let runs = STOCK_NAMES
            .into_iter()
            .any(|name| pid_file::running(run, name).is_some());
        self.0.set(Some((now, runs)));
        runs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AFTER: MonitorSettings = MonitorSettings {
        alert_after: Some(Duration::from_secs(30)),
        delete_after: None,
    };

    fn id(number: u32) -> AgentId {
        AgentId::from_number(number)
    }

    fn at(seconds: u64) -> Millis {
        Millis(1 + seconds * 1000)
    }

    #[test]
    fn silence_is_told_once_and_only_if_it_lasts() {
        let mut monitor = Monitor::default();
        monitor.gone(&id(1), at(0), Absence::Silent, AFTER);
        monitor.gone(&id(2), at(5), Absence::Silent, AFTER);
        monitor.gone(&id(3), at(6), Absence::Silent, AFTER);
        assert_eq!(monitor.next(), Some(at(30)));
        assert!(monitor.take_due(at(29)).is_empty());
        monitor.back(&id(2));
        assert_eq!(monitor.take_due(at(30)), [(id(1), Absence::Silent)]);
        assert_eq!(monitor.take_due(at(36)), [(id(3), Absence::Silent)]);
        assert_eq!(monitor.next(), None);
    }

    #[test]
    fn who_goes_again_is_told_by_the_last_time() {
        let mut monitor = Monitor::default();
        monitor.gone(&id(1), at(0), Absence::Silent, AFTER);
        monitor.gone(&id(1), at(20), Absence::Silent, AFTER);
        assert!(monitor.take_due(at(49)).is_empty());
        assert_eq!(monitor.take_due(at(50)), [(id(1), Absence::Silent)]);
    }

    #[test]
    fn vanished_site_is_told_at_a_bearable_pace() {
        let mut monitor = Monitor::default();
        for number in 0..2000 {
            monitor.gone(&id(number), at(0), Absence::Silent, AFTER);
        }
        let mut time = at(30);
        let mut told = 0;
        while told < 2000 {
            let batch = monitor.take_due(time).len();
            assert_eq!(batch, LINES_AT_ONCE);
            assert!(monitor.take_due(time).is_empty(), "no second batch at the same moment");
            told += batch;
            time = monitor.next().unwrap_or(time);
        }
    }

    #[test]
    fn nothing_is_told_when_nothing_shall_be() {
        let mut monitor = Monitor::default();
        monitor.gone(&id(1), at(0), Absence::Silent, MonitorSettings::default());
        assert_eq!(monitor.next(), None);
    }

    #[test]
    fn only_who_was_away_for_longer_than_allowed_was_stale() {
        let hour = Duration::from_secs(3600);
        let settings = MonitorSettings {
            delete_after: Some(hour),
            ..AFTER
        };
        assert!(was_stale(hour + Duration::from_secs(1), settings));
        assert!(!was_stale(hour, settings));
        assert!(!was_stale(100 * hour, AFTER));
    }

    #[test]
    fn monitord_is_looked_for_again_after_a_while() {
        let run = tempfile::tempdir().unwrap();
        let stock = StockMonitord::default();
        assert!(!stock.runs(run.path(), at(0)));
        assert!(!stock.runs(run.path(), at(1)));
        assert!(!stock.runs(run.path(), at(3)));
        assert_eq!(stock.0.get(), Some((at(3), false)));
    }

    #[test]
    fn dead_monitord_is_no_monitord() {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join("wazuh-monitord-999999999.pid"), "999999999\n").unwrap();
        assert!(!StockMonitord::default().runs(run.path(), at(0)));
    }

    proptest! {
        #[test]
        fn list_and_index_say_the_same(steps in proptest::collection::vec((0_u8..3, 0_u32..5, 0_u64..100), 1..200)) {
            let mut monitor = Monitor::default();
            for (step, agent, seconds) in steps {
                match step {
                    0 => monitor.gone(&id(agent), at(seconds), Absence::Silent, AFTER),
                    1 => monitor.back(&id(agent)),
                    _ => drop(monitor.take_due(at(seconds))),
                }
                prop_assert_eq!(monitor.due.len(), monitor.by_agent.len());
                prop_assert!(monitor.due.len() <= 5);
                prop_assert!(monitor.due.iter().all(|(at, id)| monitor.by_agent.get(id).is_some_and(|(due, _)| due == at)));
            }
        }
    }
}
