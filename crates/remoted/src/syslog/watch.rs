//! Senders that fall silent. The same wheel as for agents, and pure as that: times in, what is to be told out.
//!
//! Single addresses that may send are watched from the start; senders in networks from their first line.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use crate::{
    roster::pulse::{LONGEST_NAP, Pulse},
    slot::Millis,
    wheel::Wheel,
};

/// Senders that are watched; further ones are taken and not watched.
pub const MAX_SENDERS: usize = 65_536;
/// Length of the wheel's ticks.
const TICK: Duration = LONGEST_NAP;

/// What is to be told of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Who.
    pub sender: IpAddr,
    /// Whether it fell silent, or spoke again.
    pub silent: bool,
    /// When it was last heard before; `None`: never since we started.
    pub last_heard: Option<Millis>,
    /// How long it was silent.
    pub silence: Duration,
}

/// The senders of one port.
pub struct Watch {
    silent_after: Duration,
    wheel: Wheel,
    pulse: Pulse,
    places: HashMap<IpAddr, u32>,
    senders: Vec<Sender>,
}

struct Sender {
    ip: IpAddr,
    heard: Option<Millis>,
    since: Millis,
    silent: bool,
}

impl Watch {
    /// Watches these from the start. A time of zero watches nobody.
    pub fn new(silent_after: Duration, listed: impl IntoIterator<Item = IpAddr>, now: Millis) -> Self {
        let mut watch = Self {
            silent_after,
            wheel: Wheel::new(tick_of(now)),
            pulse: Pulse::start(now, Duration::ZERO),
            places: HashMap::new(),
            senders: Vec::new(),
        };
        for ip in listed {
            watch.add(ip, None, now);
        }
        watch
    }

    /// How many are watched.
    pub fn len(&self) -> usize {
        self.senders.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// How many are silent now.
    pub fn silent(&self) -> usize {
        self.senders.iter().filter(|sender| sender.silent).count()
    }

    /// A line came.
    pub fn heard(&mut self, ip: IpAddr, now: Millis) -> Option<Change> {
        let Some(place) = self.places.get(&ip).copied() else {
            self.add(ip, Some(now), now);
            return None;
        };
        let sender = self.senders.get_mut(place as usize)?;
        let change = sender.silent.then(|| Change {
            sender: ip,
            silent: false,
            last_heard: sender.heard,
            silence: now.since(sender.since),
        });
        (sender.heard, sender.since, sender.silent) = (Some(now), now, false);
        if change.is_some() {
            self.wheel.arm(place, tick_of(now + self.silent_after) + 1);
        }
        change
    }

    /// Time has passed. To be called once a second at least.
    pub fn tick(&mut self, now: Millis) -> Vec<Change> {
        // While we stood still nobody could be heard.
        self.pulse.beat(now, self.silent_after);
        let mut due = Vec::new();
        self.wheel.advance(tick_of(now), &mut due);
        let mut changes = Vec::new();
        for place in due {
            let Some(sender) = self.senders.get_mut(place as usize) else {
                continue;
            };
            let deadline = (sender.since + self.silent_after).max(self.pulse.patient_until());
            if now < deadline {
                self.wheel.arm(place, tick_of(deadline) + 1);
                continue;
            }
            sender.silent = true;
            changes.push(Change {
                sender: sender.ip,
                silent: true,
                last_heard: sender.heard,
                silence: now.since(sender.since),
            });
        }
        changes
    }

    fn add(&mut self, ip: IpAddr, heard: Option<Millis>, now: Millis) {
        let full = self.senders.len() >= MAX_SENDERS;
        if self.silent_after.is_zero() || full || self.places.contains_key(&ip) {
            return;
        }
        let place = u32::try_from(self.senders.len()).unwrap_or(u32::MAX);
        self.senders.push(Sender {
            ip,
            heard,
            since: now,
            silent: false,
        });
        self.places.insert(ip, place);
        self.wheel.arm(place, tick_of(now + self.silent_after) + 1);
    }
}

fn tick_of(at: Millis) -> u64 {
    at.0 / TICK.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: Millis = Millis(10_000_000);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// Lets time pass second by second.
    fn pass(watch: &mut Watch, from: Millis, time: Duration) -> (Millis, Vec<Change>) {
        let mut changes = Vec::new();
        let mut now = from;
        for _ in 0..time.as_secs() {
            now = now + Duration::from_secs(1);
            changes.extend(watch.tick(now));
        }
        (now, changes)
    }

    #[test]
    fn listed_sender_that_never_comes_is_told_once() {
        let mut watch = Watch::new(HOUR, [ip(1)], START);
        let (now, changes) = pass(&mut watch, START, HOUR - Duration::from_secs(1));
        assert_eq!(changes, []);
        let (_, changes) = pass(&mut watch, now, 3 * HOUR);
        assert_eq!(changes.len(), 1);
        assert_eq!(
            (changes[0].sender, changes[0].silent, changes[0].last_heard),
            (ip(1), true, None)
        );
    }

    #[test]
    fn sender_that_talks_is_left_alone_and_one_that_returns_is_told() {
        let mut watch = Watch::new(HOUR, [], START);
        assert_eq!(watch.heard(ip(1), START), None);
        let mut now = START;
        for _ in 0..10 {
            let (later, changes) = pass(&mut watch, now, HOUR / 2);
            assert_eq!(changes, []);
            assert_eq!(watch.heard(ip(1), later), None);
            now = later;
        }
        let (later, changes) = pass(&mut watch, now, 2 * HOUR);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].last_heard, Some(now));
        assert_eq!(watch.silent(), 1);
        let back = watch.heard(ip(1), later).unwrap();
        assert_eq!((back.silent, back.silence), (false, 2 * HOUR));
        assert_eq!(watch.heard(ip(1), later), None);
        let (_, changes) = pass(&mut watch, later, 2 * HOUR);
        assert_eq!(changes.len(), 1, "and silent again");
    }

    #[test]
    fn nobody_is_silent_because_we_stood_still() {
        let mut watch = Watch::new(HOUR, [ip(1)], START);
        let now = START + 5 * HOUR;
        assert_eq!(watch.tick(now), []);
        assert_eq!(watch.heard(ip(1), now), None);
        let (_, changes) = pass(&mut watch, now, HOUR - Duration::from_secs(1));
        assert_eq!(changes, []);
    }

    #[test]
    fn zero_watches_nobody_and_strangers_are_bounded() {
        let mut watch = Watch::new(Duration::ZERO, [ip(1)], START);
        watch.heard(ip(2), START);
        assert!(watch.is_empty());
        let mut watch = Watch::new(HOUR, [], START);
        for number in 0..=u32::try_from(MAX_SENDERS).unwrap() {
            watch.heard(IpAddr::from(number.to_be_bytes()), START);
        }
        assert_eq!(watch.len(), MAX_SENDERS);
    }
}
