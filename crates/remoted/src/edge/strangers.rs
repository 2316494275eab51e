//! TCP connections that have not yet sent a valid message: how many there may be, and who goes when there are more.
//!
//! Nobody is refused for what strangers do: when a bound is reached the stranger that has waited longest makes room,
//! from the same address when that address is the one with too many. An agent sends its first message at once, so it
//! is among the oldest only for a moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use crate::slot::ConnectionId;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) total: usize,
    pub(crate) per_address: usize,
}

/// One worker's strangers. Connection numbers grow, so the smallest is the oldest.
pub(crate) struct Strangers {
    bounds: Bounds,
    by_age: BTreeMap<ConnectionId, IpAddr>,
    by_address: BTreeSet<(IpAddr, ConnectionId)>,
    counts: HashMap<IpAddr, usize>,
}

impl Strangers {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            by_age: BTreeMap::new(),
            by_address: BTreeSet::new(),
            counts: HashMap::new(),
        }
    }

    /// Takes a new connection in. Gives back the one that must be closed for it, which is no longer counted.
    pub(crate) fn admit(&mut self, ip: IpAddr, connection: ConnectionId) -> Option<(ConnectionId, IpAddr)> {
        let leaves = if self.counts.get(&ip).copied().unwrap_or(0) >= self.bounds.per_address {
            self.oldest_of(ip).map(|oldest| (oldest, ip))
        } else if self.by_age.len() >= self.bounds.total {
            self.oldest()
        } else {
            None
        };
        if let Some((oldest, ip)) = leaves {
            self.forget(ip, oldest);
        }
        self.by_age.insert(connection, ip);
        if self.by_address.insert((ip, connection)) {
            *self.counts.entry(ip).or_default() += 1;
        }
        leaves
    }

    /// The connection has proved a key, or is closed.
    pub(crate) fn forget(&mut self, ip: IpAddr, connection: ConnectionId) {
        self.by_age.remove(&connection);
        if self.by_address.remove(&(ip, connection))
            && let Some(count) = self.counts.get_mut(&ip)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&ip);
            }
        }
    }

    /// The stranger that has waited longest.
    pub(crate) fn oldest(&self) -> Option<(ConnectionId, IpAddr)> {
        self.by_age.first_key_value().map(|(connection, ip)| (*connection, *ip))
    }

    fn oldest_of(&self, ip: IpAddr) -> Option<ConnectionId> {
        self.by_address
            .range((ip, ConnectionId::FIRST)..)
            .next()
            .filter(|(of, _)| *of == ip)
            .map(|(_, connection)| *connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn connection(sequence: u64) -> ConnectionId {
        ConnectionId::new(0, sequence)
    }

    #[test]
    fn address_with_too_many_loses_its_own_oldest() {
        let mut strangers = Strangers::new(Bounds {
            total: 100,
            per_address: 2,
        });
        assert_eq!(strangers.admit(ip(9), connection(1)), None);
        assert_eq!(strangers.admit(ip(1), connection(2)), None);
        assert_eq!(strangers.admit(ip(1), connection(3)), None);
        assert_eq!(strangers.admit(ip(1), connection(4)), Some((connection(2), ip(1))));
        assert_eq!(strangers.by_age.len(), 3);
    }

    #[test]
    fn when_all_are_too_many_the_oldest_of_all_goes() {
        let mut strangers = Strangers::new(Bounds {
            total: 2,
            per_address: 2,
        });
        strangers.admit(ip(1), connection(1));
        strangers.admit(ip(2), connection(2));
        assert_eq!(strangers.admit(ip(3), connection(3)), Some((connection(1), ip(1))));
        assert_eq!(strangers.oldest(), Some((connection(2), ip(2))));
    }

    #[test]
    fn who_proved_a_key_is_no_stranger_any_more() {
        let mut strangers = Strangers::new(Bounds {
            total: 2,
            per_address: 1,
        });
        strangers.admit(ip(1), connection(1));
        strangers.forget(ip(1), connection(1));
        strangers.forget(ip(1), connection(1));
        assert_eq!(strangers.admit(ip(1), connection(2)), None);
        assert_eq!(strangers.by_age.len(), 1);
        assert!(strangers.counts.len() == 1 && strangers.by_address.len() == 1);
    }
}
