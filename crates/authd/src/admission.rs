//! Who may connect: a cap on connections, and token buckets per address and for all.
//!
//! **Invariant:** at most `max_connections` connections are open, and those few more that have just been told to close.
//!
//! When all places are taken, an address that holds fewer places than another gets one: the oldest connection that the
//! greediest address has not yet used for a request is closed. So a host that opens thousands of idle connections keeps
//! out itself and nobody else, and a whole site behind one address keeps all its places while nobody else wants them.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use muster_proto::bucket::{KeyedBuckets, Rate, TokenBucket};

/// As many addresses have a bucket of their own.
const MAX_ADDRESSES: usize = 65_536;
/// A host that has IPv6 has this much of it.
const IPV6_HOST_BITS: u32 = 64;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time.
    pub max_connections: usize,
    /// Connections that one address may open.
    pub per_address: Rate,
    /// Connections that all may open.
    pub total: Rate,
}

/// Why a connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// All places are taken.
    Full,
    /// This address came too often.
    AddressRate,
    /// All together came too often.
    TotalRate,
}

/// A connection that may stay. `T` is what closes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Admitted<T> {
    /// Its number.
    pub number: u64,
    /// The one that has to go for it.
    pub evicted: Option<T>,
}

/// The connections.
pub struct Admission<T> {
    limits: Limits,
    per_address: KeyedBuckets<IpAddr>,
    total: TokenBucket,
    /// Connections that have not made a request yet, the oldest of each address first.
    waiting: HashMap<IpAddr, VecDeque<(u64, T)>>,
    open: usize,
    next: u64,
}

impl<T> Admission<T> {
    /// Nobody is here yet.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            per_address: KeyedBuckets::new(limits.per_address, MAX_ADDRESSES, now),
            total: TokenBucket::new(limits.total, now),
            waiting: HashMap::new(),
            open: 0,
            next: 0,
        }
    }

    /// Changes the bounds. Who is here stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.per_address.set_rate(limits.per_address);
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Judges a new connection. If it may stay, `handle` is kept to close it, until [`Admission::serving`].
    pub fn admit(&mut self, from: IpAddr, handle: T, now: Instant) -> Result<Admitted<T>, TurnedAway> {
        let from = host(from);
        if !self.total.take(self.limits.total, now) {
            return Err(TurnedAway::TotalRate);
        }
        if !self.per_address.take(from, now) {
            // Who is held back alone does not use up what all share.
            self.total.give_back(self.limits.total);
            return Err(TurnedAway::AddressRate);
        }
        let mut evicted = None;
        if self.open >= self.limits.max_connections {
            evicted = Some(self.evict_for(from).ok_or(TurnedAway::Full)?);
        }
        self.open = self.open.saturating_add(1);
        self.next = self.next.wrapping_add(1);
        self.waiting.entry(from).or_default().push_back((self.next, handle));
        Ok(Admitted {
            number: self.next,
            evicted,
        })
    }

    /// It has made its request: it is not closed for others any more.
    pub fn serving(&mut self, from: IpAddr, number: u64) {
        let from = host(from);
        if let Some(waiting) = self.waiting.get_mut(&from) {
            waiting.retain(|(known, _)| *known != number);
            if waiting.is_empty() {
                self.waiting.remove(&from);
            }
        }
    }

    /// It is gone.
    pub fn closed(&mut self, from: IpAddr, number: u64) {
        self.serving(from, number);
        self.open = self.open.saturating_sub(1);
    }

    fn evict_for(&mut self, from: IpAddr) -> Option<T> {
        let own = self.waiting.get(&from).map_or(0, VecDeque::len);
        let (greediest, count) = self
            .waiting
            .iter()
            .map(|(address, waiting)| (*address, waiting.len()))
            .max_by_key(|(_, count)| *count)?;
        if count <= own.saturating_add(1) {
            return None;
        }
        self.waiting.get_mut(&greediest)?.pop_front().map(|(_, handle)| handle)
    }
}

/// What counts as one address: an IPv4 address, or the IPv6 network of one host.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << IPV6_HOST_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits {
        max_connections: 3,
        per_address: Rate::UNLIMITED,
        total: Rate::UNLIMITED,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn one_more_than_the_cap_is_turned_away_until_somebody_leaves() {
        let now = Instant::now();
        let mut admission = Admission::new(LIMITS, now);
        let numbers: Vec<_> = (0..3)
            .map(|handle| admission.admit(ip("10.0.0.1"), handle, now).expect("admitted").number)
            .collect();
        assert_eq!(admission.admit(ip("10.0.0.1"), 3, now), Err(TurnedAway::Full));
        admission.closed(ip("10.0.0.1"), numbers[1]);
        assert_eq!(admission.admit(ip("10.0.0.1"), 4, now).expect("admitted").evicted, None);
        assert_eq!(admission.open(), 3);
    }

    #[test]
    fn a_greedy_address_makes_room_for_others() {
        let now = Instant::now();
        let mut admission = Admission::new(LIMITS, now);
        for handle in 0..3 {
            admission.admit(ip("10.0.0.1"), handle, now).expect("admitted");
        }
        assert_eq!(
            admission.admit(ip("10.0.0.2"), 10, now).expect("admitted").evicted,
            Some(0)
        );
        assert_eq!(
            admission.admit(ip("10.0.0.2"), 11, now),
            Err(TurnedAway::Full),
            "two against one is fair"
        );
        assert_eq!(
            admission.admit(ip("10.0.0.3"), 12, now).expect("admitted").evicted,
            Some(1)
        );
    }

    #[test]
    fn who_has_made_a_request_is_not_closed_for_others() {
        let now = Instant::now();
        let mut admission = Admission::new(LIMITS, now);
        for handle in 0..3 {
            let admitted = admission.admit(ip("10.0.0.1"), handle, now).expect("admitted");
            admission.serving(ip("10.0.0.1"), admitted.number);
        }
        assert_eq!(admission.admit(ip("10.0.0.2"), 9, now), Err(TurnedAway::Full));
    }

    #[test]
    fn one_address_is_held_back_without_using_up_what_all_share() {
        let now = Instant::now();
        let limits = Limits {
            max_connections: 100,
            per_address: Rate {
                per_second: 1,
                burst: 2,
            },
            total: Rate {
                per_second: 1,
                burst: 4,
            },
        };
        let mut admission = Admission::new(limits, now);
        let outcomes: Vec<_> = (0..5).map(|_| admission.admit(ip("10.0.0.1"), (), now).err()).collect();
        assert_eq!(
            outcomes,
            [
                None,
                None,
                Some(TurnedAway::AddressRate),
                Some(TurnedAway::AddressRate),
                Some(TurnedAway::AddressRate)
            ]
        );
        assert!(admission.admit(ip("10.0.0.2"), (), now).is_ok());
        assert!(admission.admit(ip("10.0.0.3"), (), now).is_ok());
        assert_eq!(admission.admit(ip("10.0.0.4"), (), now), Err(TurnedAway::TotalRate));
        assert!(
            admission
                .admit(ip("10.0.0.1"), (), now + Duration::from_secs(1))
                .is_ok()
        );
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        assert_eq!(host(ip("2001:db8::1")), host(ip("2001:db8::2")));
        assert_ne!(host(ip("2001:db8:0:1::1")), host(ip("2001:db8::1")));
        assert_eq!(host(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }
}
