//! Which look-ups are made, and when.
//!
//! The input is a story: requests of agents and of strangers who make up ids, workers that come back, sources that go
//! down, clocks that move, settings that change. What must hold:
//!
//! * of equal requests at most one is under way, and each has exactly one end;
//! * nothing runs or waits beyond its bound, and a source that is not configured is never asked;
//! * when nobody asks any more, everything ends.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use muster_keypolld::{
    flow::{Admission, BreakerRule, Flow, Health, Job, Limits, Remember, Report, Route, Step},
    lookup::Lookup,
};
use muster_proto::bucket::Rate;

use super::draw::Draw;

/// Longer stories teach nothing new, and cost time.
const MAX_STEPS: usize = 300;

pub(super) fn flow(input: &[u8]) {
    let mut draw = Draw::new(input);
    let now = Instant::now();
    let limits = limits(&mut draw);
    let mut stage = Stage {
        flow: Flow::new(limits, now),
        limits,
        now,
        waiting: 0,
        looking: Vec::new(),
        registering: Vec::new(),
        under_way: BTreeMap::new(),
        most_waiting: limits.queue,
        most_looking: limits.threads,
    };
    for _ in 0..MAX_STEPS {
        if draw.is_done() {
            break;
        }
        stage.step(&mut draw);
        stage.check();
    }
    stage.finish();
}

struct Stage {
    flow: Flow,
    limits: Limits,
    now: Instant,
    waiting: usize,
    looking: Vec<Job>,
    registering: Vec<Lookup>,
    /// Everything that was queued and has not ended.
    under_way: BTreeMap<String, ()>,
    /// The greatest bounds that were ever in force: what was admitted under them goes on.
    most_waiting: usize,
    most_looking: usize,
}

impl Stage {
    fn step(&mut self, draw: &mut Draw<'_>) {
        match draw.below(12) {
            0..=3 => self.ask(&lookup(draw)),
            4 | 5 => self.next(),
            6 | 7 => {
                if !self.looking.is_empty() {
                    let place = draw.below(self.looking.len());
                    let health = |choice: u8| [None, Some(Health::Works), Some(Health::Down)][usize::from(choice % 3)];
                    let report = Report {
                        socket: health(draw.byte()),
                        command: health(draw.byte()),
                    };
                    self.looked(place, report);
                }
            }
            8 => {
                if !self.registering.is_empty() {
                    let place = draw.below(self.registering.len().min(256));
                    let remember = [Remember::No, Remember::UntilSettled, Remember::Briefly, Remember::Fully];
                    self.settled(place, remember[draw.below(4)]);
                }
            }
            9 => self.now += Duration::from_millis(u64::from(draw.u16())),
            10 => {
                // Somebody reports what nobody was asked for.
                let lookup = lookup(draw);
                if !self.under_way.contains_key(&lookup.to_string()) {
                    self.flow.looked(&lookup, Report::default(), self.now);
                    self.flow.settled(&lookup, Remember::Fully, self.now);
                }
            }
            _ => {
                self.limits = limits(draw);
                self.most_waiting = self.most_waiting.max(self.limits.queue);
                self.most_looking = self.most_looking.max(self.limits.threads);
                self.flow.set_limits(self.limits, self.now);
            }
        }
    }

    fn ask(&mut self, lookup: &Lookup) {
        let is_under_way = self.under_way.contains_key(&lookup.to_string());
        match self.flow.ask(lookup.clone(), self.now) {
            Admission::Queued => {
                assert!(!is_under_way, "of equal requests one is under way");
                self.under_way.insert(lookup.to_string(), ());
                self.waiting += 1;
            }
            Admission::Merged => assert!(is_under_way),
            Admission::Remembered | Admission::TooMany => assert!(!is_under_way),
            Admission::Full => assert!(!is_under_way && self.waiting >= self.limits.queue),
        }
    }

    fn next(&mut self) {
        match self.flow.next(self.now) {
            Some(Step::Run(job)) => {
                assert!(self.now < job.deadline && job.route != Route::default());
                self.waiting -= 1;
                assert!(self.under_way.contains_key(&job.lookup.to_string()));
                assert!(!self.looking.iter().any(|other| other.lookup == job.lookup));
                let configured = self.limits.sources;
                assert!((!job.route.socket || configured.socket) && (!job.route.command || configured.command));
                self.looking.push(job);
                assert!(self.looking.len() <= self.limits.threads);
            }
            Some(Step::Expired(lookup) | Step::NoSource(lookup)) => {
                self.waiting -= 1;
                assert!(self.under_way.remove(&lookup.to_string()).is_some());
            }
            None => assert!(self.waiting == 0 || self.looking.len() >= self.limits.threads),
        }
    }

    fn looked(&mut self, place: usize, report: Report) {
        let job = self.looking.swap_remove(place);
        self.flow.looked(&job.lookup, report, self.now);
        self.registering.push(job.lookup);
    }

    fn settled(&mut self, place: usize, remember: Remember) {
        let lookup = self.registering.swap_remove(place);
        self.flow.settled(&lookup, remember, self.now);
        assert!(self.under_way.remove(&lookup.to_string()).is_some());
    }

    fn check(&self) {
        let gauges = self.flow.gauges();
        assert_eq!(gauges.waiting + gauges.returning, self.waiting);
        assert_eq!(
            (gauges.looking, gauges.registering),
            (self.looking.len(), self.registering.len())
        );
        assert!(gauges.waiting <= self.most_waiting && gauges.returning <= self.most_waiting);
        assert!(gauges.looking <= self.most_looking);
    }

    fn finish(&mut self) {
        for _ in 0..10 * MAX_STEPS {
            self.next();
            if !self.looking.is_empty() {
                self.looked(0, Report::default());
            }
            if !self.registering.is_empty() {
                self.settled(0, Remember::No);
            }
        }
        assert!(self.under_way.is_empty() && self.waiting == 0, "everything ends");
    }
}

fn lookup(draw: &mut Draw<'_>) -> Lookup {
    let choice = draw.byte();
    let text = match choice & 7 {
        0 => format!("ip:10.0.0.{}", choice >> 3),
        1 => format!("id:{}", 1000 + u32::from(draw.u16())),
        _ => format!("id:{:03}", choice & 7),
    };
    Lookup::parse(text.as_bytes()).expect("a good look-up")
}

fn limits(draw: &mut Draw<'_>) -> Limits {
    let choice = draw.byte();
    let rate = |choice: u8| match choice & 3 {
        0 | 1 => Rate::UNLIMITED,
        _ => Rate {
            per_second: 1,
            burst: 2,
        },
    };
    Limits {
        threads: 1 + usize::from(choice & 3),
        queue: 1 + usize::from(choice >> 2 & 7),
        per_text: rate(choice >> 5),
        total: rate(choice >> 6),
        negative_cache: Duration::from_secs(u64::from(draw.byte())),
        deadline: Duration::from_secs(1 + u64::from(draw.byte())),
        breaker: BreakerRule {
            failures: 1 + u32::from(draw.byte() & 3),
            pause: Duration::from_secs(u64::from(draw.byte())),
        },
        sources: [
            Route {
                socket: true,
                command: true,
            },
            Route {
                socket: true,
                command: false,
            },
            Route {
                socket: false,
                command: true,
            },
            Route::default(),
        ][draw.below(4)],
    }
}
