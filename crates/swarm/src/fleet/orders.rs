//! What a running fleet does when it is ordered to.

use std::{
    cell::RefCell,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{Group, Order, Running, session};
use crate::{
    account::Line,
    agent::EventLoad,
    command::{Command, Flooding, Vanish, Who},
    session::{Seat, Wish},
};

/// Clones that there may be: each needs a socket.
const MAX_CLONES: usize = 1000;
/// Between two events of a flood without a rate: faster than any connection takes.
const WITHOUT_PAUSE: Duration = Duration::from_nanos(1);

impl Running {
    /// Carries out an order; what there is to tell.
    pub(super) fn carry_out(&mut self, order: Order) -> Vec<Line> {
        let command = match order {
            Order::Do(command) => command,
            Order::Bad(text) => return vec![Line::Error { text }],
        };
        let mut lines = command.who().map_or_else(Vec::new, |who| self.strangers(who));
        match command {
            Command::Stop => {}
            Command::Status => lines.push(Line::Status(self.report())),
            Command::Kill(who, how) => {
                let wish = match how {
                    Vanish::Closed => Wish::Gone,
                    Vanish::Reset => Wish::Reset,
                    Vanish::Silent => Wish::Silent,
                };
                let chosen = self.choose_alive(&who);
                let names = self.ask(&chosen, wish);
                lines.push(Line::Killed {
                    count: names.len(),
                    names,
                });
            }
            Command::Revive(who) => {
                let away = |seat: &Seat| !seat.wish().is_there() || seat.deaf.get();
                let chosen = self.choose(&who, away);
                for seat in &chosen {
                    seat.turn_deaf(false);
                }
                let names = self.ask(&chosen, Wish::Live);
                lines.push(Line::Revived {
                    count: names.len(),
                    names,
                });
            }
            Command::Storm(who) => {
                let chosen = self.choose_alive(&who);
                lines.push(Line::Storm { count: chosen.len() });
                self.ask(&chosen, Wish::Again);
            }
            Command::Stall(who) => {
                let chosen = self.choose_alive(&who);
                for seat in &chosen {
                    seat.turn_deaf(true);
                }
                lines.push(Line::Stalled {
                    count: chosen.len(),
                    names: names(&chosen),
                });
            }
            Command::Flood(who, flooding) => {
                let chosen = self.choose_alive(&who);
                flood(&chosen, flooding);
                lines.push(Line::Flooding {
                    count: chosen.len(),
                    names: names(&chosen),
                });
            }
            Command::Clone(who, source) => {
                let mut chosen = self.choose_alive(&who);
                let room = MAX_CLONES.saturating_sub(self.clones.len());
                if chosen.len() > room {
                    chosen.truncate(room);
                    lines.push(Line::Error {
                        text: format!("there can be {MAX_CLONES} clones and no more"),
                    });
                }
                for seat in &chosen {
                    self.add_clone(seat, source);
                }
                lines.push(Line::Cloned {
                    count: chosen.len(),
                    names: names(&chosen),
                });
            }
            Command::Unclone => {
                for seat in &self.clones {
                    seat.ask(Wish::Leave);
                }
            }
        }
        lines
    }

    pub(super) fn ask_all_to_leave(&self) {
        for seat in self.seats.iter().chain(&self.clones) {
            seat.ask(Wish::Leave);
        }
    }

    /// Names and groups that there are not.
    fn strangers(&self, who: &Who) -> Vec<Line> {
        let error = |text| Line::Error { text };
        match who {
            Who::Names(names) => names
                .iter()
                .filter(|name| !self.seats.iter().any(|seat| seat.name() == **name))
                .map(|name| error(format!("no agent is named `{name}`")))
                .collect(),
            Who::Some { group: Some(name), .. } if !self.groups.iter().any(|group| group.name == *name) => {
                vec![error(format!("no group is called `{name}`"))]
            }
            Who::Some { .. } => Vec::new(),
        }
    }

    fn choose_alive(&mut self, who: &Who) -> Vec<Rc<Seat>> {
        self.choose(who, |seat| seat.wish().is_there())
    }

    /// Whom an order is for, of those that `fit`, in the fleet's order.
    fn choose(&mut self, who: &Who, fit: impl Fn(&Seat) -> bool) -> Vec<Rc<Seat>> {
        let there = |seat: &&Rc<Seat>| fit(seat);
        match who {
            Who::Names(names) => {
                let named = |seat: &&Rc<Seat>| names.iter().any(|name| name == seat.name());
                self.seats.iter().filter(there).filter(named).cloned().collect()
            }
            Who::Some { group, count } => {
                let of_group = |seat: &&Rc<Seat>| group.as_ref().is_none_or(|name| seat.group.name == *name);
                let all: Vec<Rc<Seat>> = self.seats.iter().filter(of_group).filter(there).cloned().collect();
                let count = count.of(all.len());
                if count == all.len() {
                    return all;
                }
                let mut left: Vec<usize> = (0..all.len()).collect();
                let mut chosen: Vec<usize> = (0..count)
                    .map(|_| {
                        let pick = self.dice.below(u64::try_from(left.len()).unwrap_or(u64::MAX));
                        left.swap_remove(usize::try_from(pick).unwrap_or(0))
                    })
                    .collect();
                chosen.sort_unstable();
                chosen.into_iter().filter_map(|place| all.get(place).cloned()).collect()
            }
        }
    }

    fn ask(&mut self, chosen: &[Rc<Seat>], wish: Wish) -> Vec<String> {
        if !chosen.is_empty() && wish.is_there() {
            self.incomplete_since = Some(Instant::now());
        }
        for seat in chosen {
            if wish == Wish::Again {
                // Not only when it has noticed: until then the fleet would look complete.
                self.fleet.now_connected(seat, false);
            }
            seat.ask(wish);
        }
        self.wanted = self.seats.iter().filter(|seat| seat.wish().is_there()).count();
        names(chosen)
    }

    /// Another agent with the keys of this one, as after a copied disk: counters begin where its own are.
    fn add_clone(&mut self, seat: &Rc<Seat>, source: Option<IpAddr>) {
        let name = format!("{} (clones)", seat.group.name);
        let known = self.clone_groups.iter().find(|group| group.name == name).cloned();
        let group = known.unwrap_or_else(|| {
            let group = Rc::new(Group {
                name,
                kind: seat.group.kind,
                habits: Rc::clone(&seat.group.habits),
                tally: RefCell::default(),
            });
            self.clone_groups.push(Rc::clone(&group));
            group
        });
        let mut clone = Seat::new(Rc::clone(&seat.person), group, seat.counter.get());
        clone.source = source.or(seat.source);
        clone.is_clone = true;
        let clone = Rc::new(clone);
        self.clones.push(Rc::clone(&clone));
        let session = session(clone, &self.fleet, &mut self.dice);
        self.sessions.spawn_local(session.run());
    }
}

fn names(seats: &[Rc<Seat>]) -> Vec<String> {
    seats.iter().map(|seat| seat.name().to_owned()).collect()
}

fn flood(seats: &[Rc<Seat>], flooding: Flooding) {
    let every = flooding
        .rate
        .and_then(|rate| Duration::try_from_secs_f64(1.0 / rate).ok())
        .unwrap_or(WITHOUT_PAUSE)
        .max(WITHOUT_PAUSE);
    let Some(until) = Instant::now().checked_add(flooding.time) else {
        return;
    };
    for seat in seats {
        seat.flood(EventLoad::even(every, flooding.size), until);
    }
}
