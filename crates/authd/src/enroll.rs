//! From a wish to a key: asks the store, asks remoted when somebody stands in the way, tells of refusals.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use muster_proto::{
    bucket::{Rate, TokenBucket},
    enrollment::force::Refusal,
    keys::Secret,
};
use muster_service::clock;
use tokio::sync::watch;

use crate::{
    change::{EventMaker, Rejected, RejectedFor},
    counters::Counters,
    liveness::{Remoted, until_told},
    registry::{Ask, Clash, KnownLiveness, Refused},
    store::{AddOutcome, Store},
};

/// As many agents in the way are asked about for one request; a stock key file has two at most.
const MAX_ASKED: usize = 8;
/// Refusals are told as events, but a flood of them must not fill the outbox.
const REJECTION_EVENTS: Rate = Rate {
    per_second: 5,
    burst: 100,
};
/// What strangers do is logged in full only while there is little of it.
const LOUD_LINES: Rate = Rate {
    per_second: 2,
    burst: 50,
};

/// The way to a key, for both sockets.
pub struct Enroller {
    store: Store,
    remoted: Remoted,
    told: watch::Receiver<u64>,
    events: EventMaker,
    /// Counters of the whole daemon.
    pub counters: Arc<Counters>,
    rejection_events: Mutex<TokenBucket>,
    loud_lines: Mutex<TokenBucket>,
}

/// What became of a wish.
pub enum Outcome {
    /// Here is the key; remoted has it too, or did not answer in time.
    Granted(muster_proto::keys::file::KeyEntry),
    /// No.
    Refused(Refused),
    /// It could not be done.
    Failed,
}

impl Enroller {
    /// Puts the parts together. `told` is what [`Remoted::announce`] sends on.
    pub fn new(
        store: Store,
        remoted: Remoted,
        told: watch::Receiver<u64>,
        events: EventMaker,
        counters: Arc<Counters>,
        now: Instant,
    ) -> Self {
        Self {
            store,
            remoted,
            told,
            events,
            counters,
            rejection_events: Mutex::new(TokenBucket::new(REJECTION_EVENTS, now)),
            loud_lines: Mutex::new(TokenBucket::new(LOUD_LINES, now)),
        }
    }

    /// The store, for what is no enrollment.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Asks for a key: this one, or a new one.
    pub async fn enroll(&self, ask: &Ask, key: Option<Secret>) -> Outcome {
        let mut known = KnownLiveness::new();
        loop {
            let outcome = self.store.add(ask.clone(), key.clone(), known.clone()).await;
            match outcome.unwrap_or(AddOutcome::Failed) {
                AddOutcome::Granted { entry, generation } => {
                    until_told(self.told.clone(), generation).await;
                    return Outcome::Granted(entry);
                }
                AddOutcome::Refused(refused) => {
                    self.report_refusal(ask, &refused);
                    return Outcome::Refused(refused);
                }
                AddOutcome::Failed => return Outcome::Failed,
                AddOutcome::NeedsLiveness(_) if known.len() >= MAX_ASKED => return Outcome::Failed,
                AddOutcome::NeedsLiveness(id) => {
                    let liveness = self.remoted.liveness(&id).await;
                    if let Err(error) = &liveness {
                        self.counters.liveness_unknown_total.increment();
                        self.log(format_args!(
                            "cannot ask remoted about agent '{id}', so it is not replaced: {error}"
                        ));
                    }
                    known.insert(id, liveness.ok());
                }
            }
        }
    }

    fn report_refusal(&self, ask: &Ask, refused: &Refused) {
        let reason = match refused {
            Refused::InTheWay { clash, id, why } => {
                self.log_in_the_way(ask, *clash, id, *why);
                match clash {
                    Clash::Address => RejectedFor::DuplicateIp,
                    Clash::Name | Clash::Id => RejectedFor::DuplicateName,
                }
            }
            Refused::ManagerName => RejectedFor::BlockedName,
            Refused::Full => RejectedFor::Limit,
            Refused::BadAddress => return,
        };
        self.reject(&Rejected {
            reason,
            name: Some(ask.name.clone()),
            source: ask.source,
        });
    }

    fn log_in_the_way(&self, ask: &Ask, clash: Clash, id: &muster_proto::agent::AgentId, why: Refusal) {
        let why = why.of(id);
        match clash {
            Clash::Id => self.log(format_args!("Duplicate ID, rejecting enrollment. {why}")),
            Clash::Name => self.log(format_args!(
                "Duplicate name '{}', rejecting enrollment. {why}",
                ask.name
            )),
            Clash::Address => {
                let host = ask.address.as_ref().map_or("", |given| given.address.host_text());
                self.log(format_args!("Duplicate IP '{host}', rejecting enrollment. {why}"));
            }
        }
    }

    /// Tells the world that somebody was refused, unless that happens too often.
    pub fn reject(&self, rejected: &Rejected) {
        let may = lock(&self.rejection_events).take(REJECTION_EVENTS, Instant::now());
        if !may || !self.store.tell(self.events.of_rejection(rejected, clock::unix_ms())) {
            self.counters.rejection_events_dropped_total.increment();
        }
    }

    /// Somebody was refused before it came to names.
    pub fn reject_stranger(&self, reason: RejectedFor, source: IpAddr) {
        self.reject(&Rejected {
            reason,
            name: None,
            source: Some(source),
        });
    }

    /// Logs what a stranger brought about: as a warning while there is little of it, then only for those who look.
    pub fn log(&self, line: std::fmt::Arguments<'_>) {
        if lock(&self.loud_lines).take(LOUD_LINES, Instant::now()) {
            tracing::warn!("{line}");
        } else {
            tracing::debug!("{line}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
