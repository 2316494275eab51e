//! One key used from two places: when it is worth saying, and how often.
//!
//! A worker tells each time that somebody who has the key was refused, or took over, while another connection spoke for
//! the agent. From another address that is a second user of the key. From the same address it may be the agent itself,
//! back before its old connection was known to be dead; only when the old connection has spoken since is it a second one.
//!
//! Over UDP nobody is refused: whoever spoke last is answered. An agent that moves to another address goes there and
//! stays; one that comes and goes between two of them is two.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use muster_proto::agent::AgentId;

use crate::slot::{Millis, plain_ip};

/// So many times an agent has to be back at an address that it had left, until it is two. OSSEC agents that speak every
/// ten minutes do so in twenty.
const RETURNS: u32 = 3;
/// The same conflict is not said again before.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// Conflicts that are remembered. Each takes two who have a key; one that finds no room is only counted.
const MAX_REMEMBERED: usize = 10_000;

/// Two who use one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The one whose connection the agent's was.
    pub holder: SocketAddr,
    /// The other one.
    pub other: SocketAddr,
    /// Who has it now.
    pub kept: Kept,
}

/// Who keeps the agent's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The one that was there.
    First,
    /// The one that came.
    Newest,
    /// Whoever spoke last, over UDP: now the one, now the other.
    Both,
}

impl Kept {
    /// The word in events and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Newest => "newest",
            Self::Both => "both",
        }
    }
}

/// The conflicts of late.
#[derive(Debug, Default)]
pub struct Conflicts {
    known: HashMap<AgentId, Known>,
}

#[derive(Debug)]
struct Known {
    first: Millis,
    told: Option<Millis>,
    /// Where it went from last, over UDP.
    left: Option<IpAddr>,
    returns: u32,
}

impl Known {
    fn new(now: Millis) -> Self {
        Self {
            first: now,
            told: None,
            left: None,
            returns: 0,
        }
    }

    /// It moved over UDP. Says whether it has done so to and fro.
    fn moves(&mut self, conflict: &Conflict) -> bool {
        let (from, to) = (plain_ip(conflict.holder.ip()), plain_ip(conflict.other.ip()));
        let left = self.left.replace(from);
        // Of two moves within a second we hear of one: whoever leaves the same place again has been back there unseen.
        self.returns += u32::from(left == Some(to) || left == Some(from));
        self.returns >= RETURNS
    }
}

impl Conflicts {
    /// Whether this is to be said now. `heard` is when the agent's session was last heard.
    pub fn is_news(&mut self, id: &AgentId, conflict: &Conflict, heard: Millis, now: Millis) -> bool {
        if !self.known.contains_key(id) && self.known.len() >= MAX_REMEMBERED {
            self.known.retain(|_, known| now.since(known.first) < AGAIN_AFTER);
            if self.known.len() >= MAX_REMEMBERED {
                return false;
            }
        }
        let known = self.known.entry(id.clone()).or_insert_with(|| Known::new(now));
        if now.since(known.told.unwrap_or(known.first)) >= AGAIN_AFTER {
            *known = Known::new(now);
        }
        let two_addresses = plain_ip(conflict.holder.ip()) != plain_ip(conflict.other.ip());
        let is_second = match conflict.kept {
            Kept::First => two_addresses || heard > known.first,
            Kept::Newest => two_addresses,
            Kept::Both => known.moves(conflict),
        };
        if known.told.is_some() || !is_second {
            return false;
        }
        known.told = Some(now);
        true
    }

    /// The agent is gone, or has another key.
    pub fn forget(&mut self, id: &AgentId) {
        self.known.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Millis = Millis(1_000_000);

    fn conflict(other: &str) -> Conflict {
        Conflict {
            holder: "192.0.2.1:1000".parse().unwrap(),
            other: other.parse().unwrap(),
            kept: Kept::First,
        }
    }

    #[test]
    fn second_address_is_said_at_once_and_again_after_an_hour() {
        let (mut conflicts, id) = (Conflicts::default(), AgentId::new("001"));
        let two = conflict("192.0.2.2:1000");
        assert!(conflicts.is_news(&id, &two, START, START));
        assert!(!conflicts.is_news(&id, &two, START, START + Duration::from_secs(3599)));
        assert!(conflicts.is_news(&id, &two, START, START + Duration::from_secs(3600)));
        conflicts.forget(&id);
        assert!(conflicts.is_news(&id, &two, START, START + Duration::from_secs(3601)));
    }

    #[test]
    fn agent_that_comes_back_before_its_old_connection_is_known_to_be_dead_is_no_conflict() {
        let (mut conflicts, id) = (Conflicts::default(), AgentId::new("001"));
        let back = conflict("192.0.2.1:2000");
        for seconds in 0..60 {
            assert!(!conflicts.is_news(&id, &back, START, START + Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn two_behind_one_address_are_a_conflict_once_the_first_has_spoken_again() {
        let (mut conflicts, id) = (Conflicts::default(), AgentId::new("001"));
        let clone = conflict("192.0.2.1:2000");
        assert!(!conflicts.is_news(&id, &clone, START, START + Duration::from_secs(1)));
        let heard = START + Duration::from_secs(5);
        assert!(conflicts.is_news(&id, &clone, heard, START + Duration::from_secs(6)));
    }

    #[test]
    fn agent_that_moves_is_one_and_one_that_comes_and_goes_over_udp_is_two() {
        let (mut conflicts, id) = (Conflicts::default(), AgentId::new("001"));
        let (home, office) = ("192.0.2.1:1000", "192.0.2.2:1000");
        let moved = |from: &str, to: &str| Conflict {
            holder: from.parse().unwrap(),
            other: to.parse().unwrap(),
            kept: Kept::Both,
        };
        let way = [moved(home, office), moved(office, home)];
        let mut at = START;
        let told: Vec<bool> = (0..6)
            .map(|step| {
                at = at + Duration::from_secs(300);
                conflicts.is_news(&id, &way[step % 2], START, at)
            })
            .collect();
        assert_eq!(told, [false, false, false, true, false, false]);
        // Two that speak shortly one after the other: only the moves in one direction are heard of.
        let told: Vec<bool> = (0..4)
            .map(|_| conflicts.is_news(&AgentId::new("003"), &way[0], START, START))
            .collect();
        assert_eq!(told, [false, false, false, true]);
        // Always to a new place.
        let mut from = home.to_owned();
        for host in 10..100 {
            let to = format!("192.0.2.{host}:1000");
            assert!(!conflicts.is_news(&AgentId::new("002"), &moved(&from, &to), START, START));
            from = to;
        }
    }

    #[test]
    fn no_number_of_conflicts_takes_more_than_its_share_of_memory() {
        let mut conflicts = Conflicts::default();
        for number in 0..MAX_REMEMBERED + 10 {
            conflicts.is_news(
                &AgentId::new(&number.to_string()),
                &conflict("192.0.2.2:1"),
                START,
                START,
            );
        }
        assert_eq!(conflicts.known.len(), MAX_REMEMBERED);
        let later = START + AGAIN_AFTER;
        assert!(conflicts.is_news(&AgentId::new("x"), &conflict("192.0.2.2:1"), START, later));
        assert_eq!(conflicts.known.len(), 1);
    }
}
