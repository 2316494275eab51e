//! All agents together: starts them, carries out orders, keeps the account.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use muster_proto::{
    keys::{address::RegisteredAddress, cipher::CipherKeys},
    transport::{
        counter::SenderCounter,
        envelope::{Effort, Opener, Sealer},
    },
};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
    time,
};

use crate::{
    account::{Line, Report, Standing, Tally},
    agent::{Agent, Habits, Outbox},
    command::{Command, Vanish},
    dice::Dice,
    enroll::Enrolled,
    session::{SCRATCH_LEN, Seat, Session, Wish, Workbench},
};

/// TCP handshakes under way at the same time.
const CONNECTING_AT_ONCE: usize = 256;
/// How long all goodbyes may take together.
const FAREWELL: Duration = Duration::from_secs(10);

/// What agents share.
pub(crate) struct Fleet {
    pub(crate) manager: SocketAddr,
    pub(crate) habits: Rc<Habits>,
    pub(crate) connecting: Semaphore,
    pub(crate) bench: RefCell<Workbench>,
    up: Cell<usize>,
    progress: Notify,
}

impl Fleet {
    /// An agent's startup was acknowledged, or its connection is gone.
    pub(crate) fn now_connected(&self, seat: &Seat, connected: bool) {
        if seat.connected.replace(connected) != connected {
            let up = self.up.get();
            self.up.set(if connected { up + 1 } else { up.saturating_sub(1) });
            self.progress.notify_one();
        }
    }
}

/// Whether agents' counters begin as on a first start, or above everything an earlier fleet can have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counters {
    New,
    Unknown,
}

/// An order, or the end of orders.
#[derive(Debug)]
pub(crate) enum Order {
    Do(Command),
    Bad(String),
}

/// A running fleet.
pub(crate) struct Running {
    fleet: Rc<Fleet>,
    seats: Vec<Rc<Seat>>,
    sessions: JoinSet<()>,
    dice: Dice,
    began: Instant,
    /// How many agents should be there.
    wanted: usize,
    incomplete_since: Option<Instant>,
    standing: Standing,
}

impl Running {
    /// Starts every agent. Must be called inside a local task set.
    pub(crate) fn start(
        manager: SocketAddr,
        habits: Habits,
        agents: Vec<Enrolled>,
        counters: Counters,
        mut dice: Dice,
        standing: Standing,
    ) -> Self {
        let fleet = Rc::new(Fleet {
            manager,
            habits: Rc::new(habits),
            connecting: Semaphore::new(CONNECTING_AT_ONCE),
            bench: RefCell::new(Workbench {
                opener: Opener::new(),
                sealer: Sealer::with_effort(Effort::Best),
                scratch: vec![0; SCRATCH_LEN],
                outbox: Outbox::default(),
                tally: Tally::default(),
            }),
            up: Cell::new(0),
            progress: Notify::new(),
        });
        let mut sessions = JoinSet::new();
        let mut seats = Vec::with_capacity(agents.len());
        for Enrolled { identity, key, kind } in agents {
            let seat = Rc::new(Seat::new(&identity.name));
            seats.push(Rc::clone(&seat));
            let keys = CipherKeys::derive(&identity.id, &identity.name, key.expose());
            let names_itself = RegisteredAddress::parse(&identity.address).map_or(true, |address| {
                !address.single_host().is_some_and(|host| host.is_ipv4())
            });
            let counter = match counters {
                Counters::New => SenderCounter::default(),
                Counters::Unknown => SenderCounter::begin_at(unix_seconds()),
            };
            let session = Session {
                agent: Agent::new(identity, kind, Rc::clone(&fleet.habits), dice.fork()),
                keys,
                counter,
                dice: dice.fork(),
                seat,
                fleet: Rc::clone(&fleet),
                names_itself,
            };
            sessions.spawn_local(session.run());
        }
        let (began, wanted) = (Instant::now(), seats.len());
        Self {
            fleet,
            seats,
            sessions,
            dice,
            began,
            wanted,
            incomplete_since: Some(began),
            standing,
        }
    }

    /// Carries out orders until one says stop, `duration` is over, or `quit` ends; then says goodbye.
    pub(crate) async fn run(
        mut self,
        orders: &mut mpsc::Receiver<Order>,
        duration: Option<Duration>,
        quit: impl Future<Output = ()>,
        tell: impl Fn(&Line),
    ) -> Report {
        let end = time::sleep(duration.unwrap_or(FOREVER));
        tokio::pin!(end, quit);
        let mut listening = true;
        loop {
            tokio::select! {
                () = self.fleet.progress.notified() => {}
                order = orders.recv(), if listening => match order {
                    Some(Order::Do(Command::Stop)) => break,
                    Some(order) => {
                        for line in self.carry_out(order) {
                            tell(&line);
                        }
                    }
                    None => listening = false,
                },
                () = &mut end => break,
                () = &mut quit => break,
            }
            if let Some(line) = self.ready_line() {
                tell(&line);
            }
        }
        self.farewell().await
    }

    fn carry_out(&mut self, order: Order) -> Vec<Line> {
        match order {
            Order::Bad(text) => vec![Line::Error { text }],
            Order::Do(Command::Status) => vec![Line::Status(self.report())],
            Order::Do(Command::Stop) => Vec::new(),
            Order::Do(Command::Kill(count, how)) => {
                let mut alive: Vec<usize> = self.places(Wish::Live).collect();
                let mut chosen = Vec::new();
                while chosen.len() < count && !alive.is_empty() {
                    let pick = self.dice.below(u64::try_from(alive.len()).unwrap_or(u64::MAX));
                    chosen.push(alive.swap_remove(usize::try_from(pick).unwrap_or(0)));
                }
                chosen.sort_unstable();
                vec![self.kill(&chosen, how)]
            }
            Order::Do(Command::KillNames(names, how)) => {
                let chosen: Vec<usize> = self
                    .places(Wish::Live)
                    .filter(|place| self.seats.get(*place).is_some_and(|seat| names.contains(&seat.name)))
                    .collect();
                let mut lines: Vec<Line> = names
                    .iter()
                    .filter(|name| !self.seats.iter().any(|seat| seat.name == **name))
                    .map(|name| Line::Error {
                        text: format!("no agent is named `{name}`"),
                    })
                    .collect();
                lines.push(self.kill(&chosen, how));
                lines
            }
            Order::Do(Command::Revive) => {
                let chosen: Vec<usize> = self.places(Wish::Gone).chain(self.places(Wish::Silent)).collect();
                let names = self.ask(&chosen, Wish::Live);
                vec![Line::Revived {
                    count: names.len(),
                    names,
                }]
            }
        }
    }

    fn kill(&mut self, chosen: &[usize], how: Vanish) -> Line {
        let wish = match how {
            Vanish::Closed => Wish::Gone,
            Vanish::Silent => Wish::Silent,
        };
        let names = self.ask(chosen, wish);
        Line::Killed {
            count: names.len(),
            names,
        }
    }

    fn ask(&mut self, chosen: &[usize], wish: Wish) -> Vec<String> {
        if !chosen.is_empty() && wish == Wish::Live {
            self.incomplete_since = Some(Instant::now());
        }
        let seats = chosen.iter().filter_map(|place| self.seats.get(*place));
        let names = seats
            .map(|seat| {
                seat.ask(wish);
                seat.name.clone()
            })
            .collect();
        self.wanted = self.places(Wish::Live).count();
        names
    }

    fn places(&self, wish: Wish) -> impl Iterator<Item = usize> {
        self.seats
            .iter()
            .enumerate()
            .filter(move |(_, seat)| seat.wish() == wish)
            .map(|(place, _)| place)
    }

    /// The line to tell when the fleet has just become complete.
    fn ready_line(&mut self) -> Option<Line> {
        let wanted = self.wanted;
        if self.fleet.up.get() < wanted {
            // From here on it is worth telling again.
            self.incomplete_since.get_or_insert_with(Instant::now);
            return None;
        }
        // Killed agents may still be on their way out.
        if self.fleet.up.get() > wanted {
            return None;
        }
        let since = self.incomplete_since.take()?;
        Some(Line::Ready {
            connected: wanted,
            elapsed_ms: millis(since.elapsed()),
        })
    }

    fn report(&self) -> Report {
        let killed = self.places(Wish::Gone).count() + self.places(Wish::Silent).count();
        Report {
            standing: Standing {
                connected: self.fleet.up.get(),
                killed,
                ..self.standing.clone()
            },
            tally: self.fleet.bench.borrow().tally.clone(),
            elapsed_ms: millis(self.began.elapsed()),
        }
    }

    async fn farewell(mut self) -> Report {
        let standing = self.report().standing;
        for seat in &self.seats {
            seat.ask(Wish::Leave);
        }
        let all = async { while self.sessions.join_next().await.is_some() {} };
        if time::timeout(FAREWELL, all).await.is_err() {
            self.sessions.shutdown().await;
        }
        Report {
            standing,
            ..self.report()
        }
    }
}

/// No end.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unix_seconds() -> u32 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    u32::try_from(now).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
