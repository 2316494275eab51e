//! All agents together: starts them, carries out orders and the story, keeps the account.

mod orders;

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    path::PathBuf,
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
    account::{Line, Part, Report, Standing, Tally},
    agent::{Agent, Habits, Outbox},
    command::Command,
    dice::Dice,
    enroll::Enrolled,
    link::shared::Port,
    mix::{Carrier, Kind},
    scenario::{Scenario, Scene},
    session::{Person, SCRATCH_LEN, Seat, Session, Workbench},
};

/// TCP handshakes under way at the same time.
const CONNECTING_AT_ONCE: usize = 256;
/// How long all goodbyes may take together, and for each thousand agents beside.
const FAREWELL: Duration = Duration::from_secs(10);
const FAREWELL_PER_THOUSAND: Duration = Duration::from_secs(1);
/// The story begins when every agent was acknowledged, but at the latest then.
const LATEST_BEGIN: Duration = Duration::from_secs(120);
/// Notes that nobody has told yet; further ones are dropped, as they say the same.
const MAX_NOTES: usize = 16;

/// Agents that have much in common, at work.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) habits: Rc<Habits>,
    pub(crate) tally: RefCell<Tally>,
}

/// What agents share.
pub(crate) struct Fleet {
    pub(crate) manager: SocketAddr,
    pub(crate) connecting: Semaphore,
    pub(crate) bench: RefCell<Workbench>,
    pub(crate) keep_files: Option<PathBuf>,
    up: Cell<usize>,
    progress: Notify,
    notes: RefCell<Vec<String>>,
    told_why: Cell<bool>,
}

impl Fleet {
    /// An agent's startup was acknowledged, or its connection is gone.
    pub(crate) fn now_connected(&self, seat: &Seat, connected: bool) {
        if seat.connected.replace(connected) != connected && !seat.is_clone {
            let up = self.up.get();
            self.up.set(if connected { up + 1 } else { up.saturating_sub(1) });
            self.progress.notify_one();
        }
    }

    /// Something that the user should know.
    pub(crate) fn note(&self, text: String) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < MAX_NOTES {
            notes.push(text);
            self.progress.notify_one();
        }
    }

    /// A connection could not be opened: the first one is worth a note.
    pub(crate) fn cannot_connect(&self, seat: &Seat, error: &std::io::Error) {
        tracing::debug!(%error, agent = seat.name(), "cannot connect");
        if !self.told_why.replace(true) {
            let cure = match error.kind() {
                std::io::ErrorKind::AddrNotAvailable => {
                    "; an address has some 28,000 ports for connections to one manager: give more `sources`"
                }
                std::io::ErrorKind::ConnectionRefused => "; does the manager listen there?",
                _ => "",
            };
            self.note(format!(
                "{} cannot connect to {}: {error}{cure}",
                seat.name(),
                self.manager
            ));
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

/// What a fleet needs to start.
pub(crate) struct Launch {
    pub(crate) manager: SocketAddr,
    pub(crate) scenario: Scenario,
    pub(crate) agents: Vec<Enrolled>,
    pub(crate) counters: Counters,
    pub(crate) dice: Dice,
    pub(crate) standing: Standing,
    /// Sockets of all UDP agents together.
    pub(crate) udp_sockets: usize,
}

/// A running fleet.
pub(crate) struct Running {
    fleet: Rc<Fleet>,
    groups: Vec<Rc<Group>>,
    seats: Vec<Rc<Seat>>,
    clones: Vec<Rc<Seat>>,
    clone_groups: Vec<Rc<Group>>,
    sessions: JoinSet<()>,
    /// Those that hand out what comes through shared sockets.
    ports: JoinSet<()>,
    dice: Dice,
    began: Instant,
    /// How many agents should be there.
    wanted: usize,
    incomplete_since: Option<Instant>,
    standing: Standing,
    story: std::vec::IntoIter<Scene>,
    /// When the story began.
    curtain: Option<Instant>,
}

impl Running {
    /// Starts every agent. Must be called inside a local task set.
    ///
    /// # Errors
    ///
    /// A shared socket cannot be opened.
    pub(crate) fn start(launch: Launch) -> std::io::Result<Self> {
        let Launch {
            manager,
            scenario,
            agents,
            counters,
            mut dice,
            standing,
            udp_sockets,
        } = launch;
        let fleet = Rc::new(Fleet {
            manager,
            connecting: Semaphore::new(CONNECTING_AT_ONCE),
            bench: RefCell::new(Workbench {
                opener: Opener::new(),
                sealer: Sealer::with_effort(Effort::Best),
                scratch: vec![0; SCRATCH_LEN],
                outbox: Outbox::default(),
            }),
            keep_files: scenario.keep_files,
            up: Cell::new(0),
            progress: Notify::new(),
            notes: RefCell::default(),
            told_why: Cell::new(false),
        });
        let groups: Vec<Rc<Group>> = scenario
            .groups
            .iter()
            .map(|group| {
                Rc::new(Group {
                    name: group.name.clone(),
                    kind: group.kind,
                    habits: Rc::new(group.habits.clone()),
                    tally: RefCell::default(),
                })
            })
            .collect();
        let mut switchboard = Switchboard::new(&scenario.groups, &agents, udp_sockets);
        let (mut sessions, mut ports) = (JoinSet::new(), JoinSet::new());
        let mut seats = Vec::with_capacity(agents.len());
        for Enrolled { recruit, identity, key } in agents {
            let Some(group) = groups.get(recruit.group) else {
                continue;
            };
            let person = Person {
                keys: CipherKeys::derive(&identity.id, &identity.name, key.expose()),
                names_itself: RegisteredAddress::parse(&identity.address).map_or(true, |address| {
                    !address.single_host().is_some_and(|host| host.is_ipv4())
                }),
                identity: Rc::new(identity),
            };
            let counter = match counters {
                Counters::New => SenderCounter::default(),
                Counters::Unknown => SenderCounter::begin_at(unix_seconds()),
            };
            let mut seat = Seat::new(Rc::new(person), Rc::clone(group), counter);
            seat.source = recruit.source;
            if recruit.kind.carrier == Carrier::Udp {
                seat.port = switchboard.port(&recruit, group, &fleet, &mut ports)?;
            }
            let seat = Rc::new(seat);
            seats.push(Rc::clone(&seat));
            sessions.spawn_local(session(seat, &fleet, &mut dice).run());
        }
        let (began, wanted) = (Instant::now(), seats.len());
        Ok(Self {
            fleet,
            groups,
            seats,
            clones: Vec::new(),
            clone_groups: Vec::new(),
            sessions,
            ports,
            dice,
            began,
            wanted,
            incomplete_since: Some(began),
            standing,
            story: scenario.story.into_iter(),
            curtain: None,
        })
    }

    /// Carries out orders and the story until one says stop, `duration` is over, or `quit` ends; then says goodbye.
    pub(crate) async fn run(
        mut self,
        orders: &mut mpsc::Receiver<Order>,
        duration: Option<Duration>,
        quit: impl Future<Output = ()>,
        tell: impl Fn(&Line),
    ) -> Report {
        let end = time::sleep(duration.unwrap_or(FOREVER));
        let latest = time::sleep(LATEST_BEGIN);
        tokio::pin!(end, latest, quit);
        let mut listening = true;
        loop {
            let scene = self.next_scene();
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
                () = time::sleep_until(scene.unwrap_or_else(Instant::now).into()), if scene.is_some() => {
                    let Some(Scene { at, command, text }) = self.story.next() else { continue };
                    tell(&Line::Scene { at_ms: millis(at), order: text });
                    if command == Command::Stop {
                        break;
                    }
                    for line in self.carry_out(Order::Do(command)) {
                        tell(&line);
                    }
                }
                () = &mut latest, if self.curtain.is_none() && !self.story.as_slice().is_empty() => {
                    self.curtain = Some(Instant::now());
                    tell(&Line::Note {
                        text: format!("the story begins with {} of {} agents", self.fleet.up.get(), self.wanted),
                    });
                }
                () = &mut end => break,
                () = &mut quit => break,
            }
            for text in self.fleet.notes.take() {
                tell(&Line::Note { text });
            }
            if let Some(line) = self.ready_line() {
                self.curtain.get_or_insert_with(Instant::now);
                tell(&line);
            }
        }
        self.farewell().await
    }

    fn next_scene(&self) -> Option<Instant> {
        let scene = self.story.as_slice().first()?;
        self.curtain?.checked_add(scene.at)
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
        let mut tally = Tally::default();
        let mut parts = Vec::with_capacity(self.groups.len() + self.clone_groups.len());
        let sides = [(&self.groups, &self.seats), (&self.clone_groups, &self.clones)];
        for (group, seats) in sides
            .iter()
            .flat_map(|(groups, seats)| groups.iter().map(move |group| (group, seats)))
        {
            let members = || seats.iter().filter(|seat| Rc::ptr_eq(&seat.group, group));
            let part = Part {
                name: group.name.clone(),
                kind: group.kind.name().to_owned(),
                members: members().count(),
                members_connected: members().filter(|seat| seat.connected.get()).count(),
                tally: group.tally.borrow().clone(),
            };
            tally.add(&part.tally);
            parts.push(part);
        }
        Report {
            standing: Standing {
                connected: self.fleet.up.get(),
                killed: self.seats.iter().filter(|seat| !seat.wish().is_there()).count(),
                ..self.standing.clone()
            },
            tally,
            elapsed_ms: millis(self.began.elapsed()),
            groups: parts,
        }
    }

    async fn farewell(mut self) -> Report {
        let before = self.report();
        self.ask_all_to_leave();
        let thousands = u32::try_from(self.seats.len() / 1000).unwrap_or(u32::MAX);
        let patience = FAREWELL.saturating_add(FAREWELL_PER_THOUSAND.saturating_mul(thousands));
        let all = async { while self.sessions.join_next().await.is_some() {} };
        if time::timeout(patience, all).await.is_err() {
            self.sessions.shutdown().await;
        }
        self.ports.shutdown().await;
        let mut report = self.report();
        for (part, before) in report.groups.iter_mut().zip(&before.groups) {
            part.members_connected = before.members_connected;
        }
        Report {
            standing: before.standing,
            ..report
        }
    }
}

/// An agent at its seat, before it has done anything.
fn session(seat: Rc<Seat>, fleet: &Rc<Fleet>, dice: &mut Dice) -> Session {
    let identity = Rc::clone(&seat.person.identity);
    let habits = Rc::clone(&seat.group.habits);
    Session {
        agent: Agent::new(identity, seat.group.kind, habits, dice.fork()),
        dice: dice.fork(),
        seat,
        fleet: Rc::clone(fleet),
    }
}

/// Which UDP agents share which sockets.
struct Switchboard {
    groups: Vec<Board>,
}

/// The sockets of one group: none when each of its agents has its own.
struct Board {
    ports: Vec<Option<Rc<Port>>>,
    next: usize,
}

impl Switchboard {
    fn new(groups: &[crate::scenario::Group], agents: &[Enrolled], udp_sockets: usize) -> Self {
        let udp = agents
            .iter()
            .filter(|agent| agent.recruit.kind.carrier == Carrier::Udp)
            .count();
        let boards = groups.iter().enumerate().map(|(place, group)| {
            let members = agents.iter().filter(|agent| agent.recruit.group == place).count();
            let ports = if udp_sockets >= udp {
                0
            } else {
                // A whole number of rounds through the sources, so that an agent's socket has the agent's address.
                let sources = group.sources.len().max(1);
                let share = members.saturating_mul(udp_sockets).checked_div(udp).unwrap_or(0);
                (share / sources).max(1) * sources
            };
            Board {
                ports: vec![None; ports],
                next: 0,
            }
        });
        Self {
            groups: boards.collect(),
        }
    }

    fn port(
        &mut self,
        recruit: &crate::scenario::Recruit,
        group: &Rc<Group>,
        fleet: &Rc<Fleet>,
        tasks: &mut JoinSet<()>,
    ) -> std::io::Result<Option<Rc<Port>>> {
        let Some(board) = self
            .groups
            .get_mut(recruit.group)
            .filter(|board| !board.ports.is_empty())
        else {
            return Ok(None);
        };
        let place = board.next.checked_rem(board.ports.len()).unwrap_or(0);
        board.next += 1;
        let Some(slot) = board.ports.get_mut(place) else {
            return Ok(None);
        };
        if let Some(port) = slot {
            return Ok(Some(Rc::clone(port)));
        }
        let port = Port::open(recruit.source, fleet.manager, Rc::clone(group))?;
        tasks.spawn_local(Rc::clone(&port).serve(Rc::clone(fleet)));
        Ok(Some(Rc::clone(slot.insert(port))))
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
