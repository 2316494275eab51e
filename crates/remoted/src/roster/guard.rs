//! When many agents go silent at once: one summary, and no alarm for each.
//!
//! A switch that dies and a manager that was deaf look alike from here. So as soon as more than a fifth of the active
//! agents, and at least ten, have timed out within one window, one event says so, and the levels of those that follow
//! in the window are capped at medium. When the window ends, a second event says how many it came to; what times out
//! after that is judged as usual.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use super::agent::Agent;
use crate::slot::Millis;

/// Fewer than this are never a mass.
const MIN_MASS: usize = 10;
/// More than one in so many of the active agents are.
const MASS_DIVISOR: usize = 5;
/// Addresses that are remembered for naming a common network; further ones are only counted.
const MAX_ADDRESSES: usize = 100_000;
/// Groups that are counted; agents of further ones are counted without.
const MAX_GROUPS: usize = 1000;
/// A shorter common prefix says nothing about where the agents are.
const SHORTEST_PREFIX_V4: u32 = 8;
/// The same of IPv6.
const SHORTEST_PREFIX_V6: u32 = 32;

/// Watches the agents that time out.
#[derive(Debug)]
pub struct Guard {
    length: Duration,
    window: Option<Window>,
}

#[derive(Debug)]
struct Window {
    ends: Millis,
    active_before: usize,
    expired: usize,
    announced: bool,
    addresses: Vec<IpAddr>,
    /// How many of each group timed out.
    groups: HashMap<String, usize>,
}

/// An agent that times out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Where it was.
    pub address: Option<IpAddr>,
    /// Its groups.
    pub groups: Vec<String>,
}

impl Gone {
    pub(super) fn of(agent: &Agent) -> Self {
        Self {
            address: agent.peer.map(|peer| peer.ip().to_canonical()),
            groups: agent.inventory.shared.groups.clone(),
        }
    }
}

/// What is said about many at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mass {
    /// How many timed out.
    pub count: usize,
    /// Of how many that were active.
    pub active_before: usize,
    /// The network that they share, and how many of them are in it.
    pub network: Option<(String, usize)>,
    /// The group that most of them are in, and how many that is.
    pub group: Option<(String, usize)>,
    /// The window has ended and this is what it came to.
    pub confirmed: bool,
}

impl Guard {
    /// A guard whose windows are as long as one interval, within reason.
    pub fn new(interval: Duration) -> Self {
        Self {
            length: interval.clamp(Duration::from_secs(1), Duration::from_secs(60)),
            window: None,
        }
    }

    /// These agents time out in this tick, out of so many that were active before it. Says whether their levels are
    /// capped; `said` gets what is to be announced.
    pub fn expire(&mut self, now: Millis, active: usize, gone: &[Gone], said: &mut Vec<Mass>) -> bool {
        said.extend(self.close(now));
        if gone.is_empty() {
            return false;
        }
        let window = self.window.get_or_insert_with(|| Window {
            ends: now + self.length,
            active_before: active,
            expired: 0,
            announced: false,
            addresses: Vec::new(),
            groups: HashMap::new(),
        });
        window.expired += gone.len();
        let room = MAX_ADDRESSES.saturating_sub(window.addresses.len());
        let addresses = gone.iter().filter_map(|gone| gone.address);
        window.addresses.extend(addresses.take(room));
        for group in gone.iter().flat_map(|gone| &gone.groups) {
            if window.groups.len() < MAX_GROUPS || window.groups.contains_key(group) {
                *window.groups.entry(group.clone()).or_default() += 1;
            }
        }
        let mass = window.expired >= MIN_MASS && window.expired * MASS_DIVISOR > window.active_before;
        if mass && !window.announced {
            window.announced = true;
            said.push(window.mass(false));
        }
        mass
    }

    /// What the window came to, if it was a mass and has ended.
    pub fn close(&mut self, now: Millis) -> Option<Mass> {
        let window = self.window.take_if(|window| window.ends <= now)?;
        window.announced.then(|| window.mass(true))
    }

    /// When [`Guard::close`] has something to do.
    pub fn ends(&self) -> Option<Millis> {
        self.window.as_ref().map(|window| window.ends)
    }
}

impl Window {
    fn mass(&self, confirmed: bool) -> Mass {
        Mass {
            count: self.expired,
            active_before: self.active_before,
            network: common_network(&self.addresses),
            group: common_group(&self.groups, self.expired),
            confirmed,
        }
    }
}

/// The group that holds most of them, if it holds at least half; of two alike the one that is first by name.
fn common_group(groups: &HashMap<String, usize>, expired: usize) -> Option<(String, usize)> {
    let most = groups.iter().max_by_key(|(name, count)| (**count, Reverse(*name)))?;
    (most.1 * 2 >= expired).then(|| (most.0.clone(), *most.1))
}

/// The network that addresses share: the longest prefix common to all of them, or the /24 (IPv6: /64) that holds most
/// of them, if it holds at least half.
fn common_network(addresses: &[IpAddr]) -> Option<(String, usize)> {
    let (first, rest) = addresses.split_first()?;
    let width = width(*first);
    if rest.iter().all(|address| address.is_ipv4() == first.is_ipv4()) {
        let prefix = rest
            .iter()
            .map(|address| common_prefix(*first, *address))
            .min()
            .unwrap_or(width);
        let shortest = if first.is_ipv4() {
            SHORTEST_PREFIX_V4
        } else {
            SHORTEST_PREFIX_V6
        };
        if prefix >= shortest {
            return Some((network(*first, prefix), addresses.len()));
        }
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for address in addresses {
        *counts
            .entry(network(*address, if address.is_ipv4() { 24 } else { 64 }))
            .or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .filter(|(_, count)| count * 2 >= addresses.len())
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The bits of an address, the first one at the top of the number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn common_prefix(one: IpAddr, other: IpAddr) -> u32 {
    (bits(one) ^ bits(other)).leading_zeros().min(width(one))
}

fn network(address: IpAddr, prefix: u32) -> String {
    let masked = bits(address) & u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
    let base = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits((masked >> 96) as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(masked)),
    };
    format!("{base}/{prefix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> Vec<Gone> {
        let gone = |last| Gone {
            address: Some(IpAddr::from([10, 1, 2, last])),
            groups: vec!["default".to_owned()],
        };
        (1..=count).map(gone).collect()
    }

    fn guard() -> Guard {
        Guard::new(Duration::from_secs(60))
    }

    #[test]
    fn few_or_a_small_share_are_no_mass() {
        let mut said = Vec::new();
        assert!(!guard().expire(Millis(1), 12, &addresses(9), &mut said));
        assert!(
            !guard().expire(Millis(1), 50, &addresses(10), &mut said),
            "exactly a fifth"
        );
        assert_eq!(said, []);
    }

    #[test]
    fn mass_is_said_once_with_its_network_and_again_when_the_window_ends() {
        let (mut guard, mut said) = (guard(), Vec::new());
        assert!(!guard.expire(Millis(1000), 49, &addresses(5), &mut said));
        assert!(guard.expire(Millis(2000), 44, &addresses(6), &mut said));
        assert!(guard.expire(Millis(3000), 38, &addresses(1), &mut said));
        assert_eq!(said.len(), 1);
        assert_eq!(
            (said[0].count, said[0].active_before, said[0].confirmed),
            (11, 49, false)
        );
        assert_eq!(said[0].network, Some(("10.1.2.0/29".to_owned(), 11)));
        assert_eq!(said[0].group, Some(("default".to_owned(), 11)));
        assert_eq!(guard.close(Millis(60_999)), None);
        let confirmed = guard.close(Millis(61_000)).expect("the window has ended");
        assert_eq!((confirmed.count, confirmed.confirmed), (12, true));
        assert!(
            !guard.expire(Millis(62_000), 37, &addresses(1), &mut said),
            "a new window begins"
        );
    }

    #[test]
    fn group_is_named_that_holds_at_least_half() {
        let counts = |pairs: &[(&str, usize)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(
            common_group(&counts(&[("web", 5), ("db", 4)]), 10),
            Some(("web".to_owned(), 5))
        );
        assert_eq!(
            common_group(&counts(&[("web", 5), ("default", 5)]), 10),
            Some(("default".to_owned(), 5))
        );
        assert_eq!(common_group(&counts(&[("web", 4), ("db", 4)]), 10), None);
        assert_eq!(common_group(&counts(&[]), 10), None);
    }

    #[test]
    fn network_of_most_is_named_when_all_share_none() {
        let mut mixed: Vec<IpAddr> = addresses(6).into_iter().filter_map(|gone| gone.address).collect();
        mixed.extend(["192.0.2.1", "203.0.113.9", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert_eq!(common_network(&mixed), Some(("10.1.2.0/24".to_owned(), 6)));
        assert_eq!(
            common_network(&["10.0.0.1".parse().unwrap()]),
            Some(("10.0.0.1/32".to_owned(), 1))
        );
        let six = ["2001:db8:0:1::1", "2001:db8:0:1::2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(common_network(&six), Some(("2001:db8:0:1::/126".to_owned(), 2)));
        assert_eq!(common_network(&[]), None);
    }
}
