//! The story: a fleet enrolls, reports, partly dies, and comes back; and what must be seen of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{
    KILLED,
    fleet::Fleet,
    manager::{Agent, Event, Manager},
    view::View,
};

/// How long one chapter may take.
const CHAPTER: Duration = Duration::from_secs(20);
/// How long the watcher of the endless demo may look at each state.
const PAUSE: Duration = Duration::from_secs(10);
/// How often the roster is read.
const LOOK: Duration = Duration::from_millis(250);
/// The longest time-out of an agent whose rhythm the manager has learned.
const LEARNED_TIMEOUT_SECONDS: u64 = 10;

const ACTIVE: u64 = 0;
const DISCONNECTED: u64 = 1;

pub(super) struct Story {
    // Dropped in this order: the fleet first, so that it does not complain of a manager that goes.
    fleet: Fleet,
    manager: Manager,
    events: Receiver<Event>,
    agents: usize,
    stop: Arc<AtomicBool>,
    view: View,
    seen: Seen,
}

/// What the events told.
#[derive(Default)]
struct Seen {
    /// Agent names that a keepalive event told of.
    keepalives: BTreeSet<String>,
    /// For each agent name, its status changes in order: previous, current, reason.
    changes: BTreeMap<String, Vec<(u64, u64, String)>>,
}

impl Story {
    pub(super) fn new(
        manager: Manager,
        fleet: Fleet,
        events: Receiver<Event>,
        agents: usize,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            fleet,
            manager,
            events,
            agents,
            stop,
            view: View::new(),
            seen: Seen::default(),
        }
    }

    /// Plays every chapter once. Whether all was seen that had to be.
    pub(super) fn play_once(&mut self) -> Result<bool> {
        let start = Instant::now();
        self.enroll()?;
        let killed = self.kill()?;
        self.revive()?;
        let settled = |seen: &Seen| seen.faults(&killed, usize::MAX).is_empty();
        let deadline = Instant::now() + CHAPTER;
        while !settled(&self.seen) && Instant::now() < deadline {
            self.look()?;
        }
        let faults = self.seen.faults(&killed, self.agents);
        for fault in &faults {
            println!("FAULT  {fault}");
        }
        let changes: usize = self.seen.changes.values().map(Vec::len).sum();
        println!(
            "{}: {} agents, {} killed and back, {changes} status changes and keepalives of {} agents read, in {:.1} s",
            if faults.is_empty() {
                "demo passed"
            } else {
                "demo FAILED"
            },
            self.agents,
            killed.len(),
            self.seen.keepalives.len(),
            start.elapsed().as_secs_f64(),
        );
        Ok(faults.is_empty())
    }

    pub(super) fn play_for_ever(&mut self) -> Result<()> {
        let ended = |outcome: Result<()>, stop: &AtomicBool| match outcome {
            Err(_) if stop.load(Ordering::Relaxed) => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(!stop.load(Ordering::Relaxed)),
        };
        let outcome = self.enroll();
        let mut going = ended(outcome, &self.stop)?;
        while going {
            let outcome = self
                .watch(PAUSE)
                .and_then(|()| self.kill().map(drop))
                .and_then(|()| self.watch(PAUSE));
            let outcome = outcome.and_then(|()| self.revive());
            going = ended(outcome, &self.stop)?;
        }
        self.view.close();
        Ok(())
    }

    fn enroll(&mut self) -> Result<()> {
        self.view.chapter(&format!("{} agents enroll and report", self.agents));
        let expected = self.agents;
        self.wait_until("every agent active, and its rhythm learned", |agents| {
            agents.len() == expected
                && agents.iter().all(|agent| agent.status == "active")
                && agents
                    .iter()
                    .all(|agent| agent.timeout.is_some_and(|timeout| timeout <= LEARNED_TIMEOUT_SECONDS))
        })
    }

    fn kill(&mut self) -> Result<Vec<String>> {
        let killed = self.fleet.kill(KILLED)?;
        self.view
            .chapter(&format!("{} of them vanish without a goodbye", killed.len()));
        let names = killed.clone();
        self.wait_until("exactly the killed agents disconnected", move |agents| {
            agents.iter().all(|agent| {
                let expected = if names.contains(&agent.name) {
                    "disconnected"
                } else {
                    "active"
                };
                agent.status == expected
            })
        })?;
        Ok(killed)
    }

    fn revive(&mut self) -> Result<()> {
        self.fleet.revive()?;
        self.view.chapter("they come back");
        self.wait_until("every agent active again", |agents| {
            agents.iter().all(|agent| agent.status == "active")
        })
    }

    fn watch(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.look()?;
        }
        Ok(())
    }

    fn wait_until(&mut self, what: &str, reached: impl Fn(&[Agent]) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let agents = self.look()?;
            if reached(&agents) {
                self.view.reached(what, start.elapsed());
                return Ok(());
            }
            if start.elapsed() > CHAPTER {
                let mut count: BTreeMap<(String, String), usize> = BTreeMap::new();
                for agent in agents {
                    *count.entry((agent.status, agent.reason)).or_default() += 1;
                }
                bail!(
                    "not seen within {} s: {what}; the roster has {count:?}",
                    CHAPTER.as_secs()
                );
            }
        }
    }

    /// Reads the roster and the events that came, and shows them.
    fn look(&mut self) -> Result<Vec<Agent>> {
        thread::park_timeout(LOOK);
        if self.stop.load(Ordering::Relaxed) {
            bail!("stopped");
        }
        let agents = self.manager.agents()?;
        while let Ok(event) = self.events.try_recv() {
            self.seen.note(&event);
            self.view.event(&event);
        }
        self.view.show(&agents);
        Ok(agents)
    }
}

impl Seen {
    fn note(&mut self, event: &Event) {
        if let Some(name) = event.body["event"]["agent_name"].as_str() {
            self.keepalives.insert(name.to_owned());
        }
        let change = &event.body["status_change"];
        // High levels are published a second time, on the subject of alerts.
        if let (Some(name), true) = (change["agent_name"].as_str(), event.subject.ends_with(".status_change")) {
            let code = |key: &str| change[key].as_u64().unwrap_or(u64::MAX);
            let reason = change["reason"].as_str().unwrap_or_default().to_owned();
            let changes = self.changes.entry(name.to_owned()).or_default();
            changes.push((code("previous_status"), code("current_status"), reason));
        }
    }

    /// What should have been seen and was not, or should not have been seen and was.
    fn faults(&self, killed: &[String], agents: usize) -> Vec<String> {
        let mut faults = Vec::new();
        for name in killed {
            let changes = self.changes.get(name).map_or(&[][..], Vec::as_slice);
            let gone = changes.iter().position(|(previous, current, reason)| {
                (*previous, *current) == (ACTIVE, DISCONNECTED) && reason == "keepalive_timeout"
            });
            let back = |gone: usize| changes.iter().skip(gone).any(|(_, current, _)| *current == ACTIVE);
            match gone {
                None => faults.push(format!("no event says that {name} timed out: {changes:?}")),
                Some(gone) if !back(gone) => faults.push(format!("no event says that {name} came back: {changes:?}")),
                Some(_) => {}
            }
            if changes.windows(2).any(|pair| pair[0].1 != pair[1].0) {
                faults.push(format!(
                    "the status changes of {name} do not follow each other: {changes:?}"
                ));
            }
        }
        for (name, changes) in &self.changes {
            if !killed.contains(name) && changes.iter().any(|(_, current, _)| *current == DISCONNECTED) {
                faults.push(format!("{name} was never killed, but an event says so: {changes:?}"));
            }
        }
        if agents != usize::MAX && self.keepalives.len() < agents {
            faults.push(format!(
                "keepalive events told of {} agents, not {agents}",
                self.keepalives.len()
            ));
        }
        faults
    }
}
