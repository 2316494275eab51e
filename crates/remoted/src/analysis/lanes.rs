//! Two queues on one way: what agents bring that bring little goes before what the others bring, so that one agent that
//! floods does not make all others late.
//!
//! **Invariant:** one agent's events keep their order. As long as one of them waits in the slow lane, all that come
//! behind it go there too; and one that takes the slow lane while others of its agent wait in the quick one does not
//! leave before them. And the slow lane moves whatever comes in the quick one.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{backlog::Backlog, valve::Talker};

/// Of datagrams sent at once, so many are of the slow lane if it has them: one in four.
const SLOW_SHARE: usize = 4;
/// Bits of a [`Mark`] for a place in a lane, counted from one; above them one for the lane, then the lanes' number.
const PLACE_BITS: u32 = 47;
const SLOW_BIT: u64 = 1 << PLACE_BITS;
const PLACES: u64 = SLOW_BIT - 1;

/// Where an agent's last event went: which lanes, which of the two, which place. Zero: nowhere yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) u64);

/// The queues.
pub(super) struct Lanes {
    number: u64,
    quick: Backlog,
    slow: Backlog,
    gates: VecDeque<Gate>,
}

/// An event of the slow lane that leaves only behind one of the quick lane. Both places grow from gate to gate.
struct Gate {
    slow: u64,
    quick: u64,
}

impl Lanes {
    pub(super) fn new() -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed) << (PLACE_BITS + 1),
            quick: Backlog::default(),
            slow: Backlog::default(),
            gates: VecDeque::new(),
        }
    }

    /// Takes an event of an agent whose last one left this mark; the new mark comes back.
    pub(super) fn push(&mut self, talker: Talker, mark: Mark, write: impl FnOnce(&mut Vec<u8>)) -> Mark {
        let is_here = mark.0 & !(SLOW_BIT | PLACES) == self.number;
        let (went_slow, place) = (mark.0 & SLOW_BIT != 0, mark.0 & PLACES);
        let waits_in_slow = is_here && went_slow && place > self.slow.popped();
        if talker == Talker::Quiet && !waits_in_slow {
            self.quick.push(write);
            return Mark(self.number | last_place(&self.quick));
        }
        self.slow.push(write);
        let slow = last_place(&self.slow);
        let waits_in_quick = is_here && !went_slow && place > self.quick.popped();
        if waits_in_quick && self.gates.back().is_none_or(|gate| gate.quick < place) {
            self.gates.push_back(Gate { slow, quick: place });
        }
        Mark(self.number | SLOW_BIT | slow)
    }

    /// The datagrams to be sent next, at most so many; [`Lanes::pop`] takes them in the same order.
    pub(super) fn next(&self, most: usize) -> impl Iterator<Item = &[u8]> {
        let (quick, slow) = self.shares(most);
        self.quick.iter().take(quick).chain(self.slow.iter().take(slow))
    }

    /// The first `count` of those that [`Lanes::next`] gives are gone.
    pub(super) fn pop(&mut self, count: usize, most: usize) {
        let (quick, _) = self.shares(most);
        let quick = quick.min(count);
        self.quick.pop(quick);
        self.slow.pop(count - quick);
        while self.gates.front().is_some_and(|gate| gate.quick <= self.quick.popped()) {
            self.gates.pop_front();
        }
    }

    fn shares(&self, most: usize) -> (usize, usize) {
        let slow = self.slow.len().min(most / SLOW_SHARE);
        let quick = self.quick.len().min(most - slow);
        let slow = self.slow.len().min(most - quick).min(self.open(quick));
        (quick, slow)
    }

    /// How many of the slow lane may leave behind so many of the quick one.
    fn open(&self, quick: usize) -> usize {
        let gone = self.quick.popped() + quick as u64;
        let shut = self.gates.iter().find(|gate| gate.quick > gone);
        shut.map_or(usize::MAX, |gate| {
            usize::try_from(gate.slow.saturating_sub(self.slow.popped() + 1)).unwrap_or(usize::MAX)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.quick.len() + self.slow.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.quick.is_empty() && self.slow.is_empty()
    }

    /// What all of them come to.
    pub(super) fn bytes(&self) -> usize {
        self.quick.bytes() + self.slow.bytes()
    }
}

/// The place of the event that came last.
fn last_place(lane: &Backlog) -> u64 {
    lane.popped() + lane.len() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(lanes: &mut Lanes, talker: Talker, mark: &mut Mark, byte: u8) {
        *mark = lanes.push(talker, *mark, |out| out.push(byte));
    }

    fn all(lanes: &mut Lanes) -> Vec<u8> {
        let mut sent = Vec::new();
        while !lanes.is_empty() {
            let next: Vec<u8> = lanes.next(8).map(|datagram| datagram[0]).collect();
            lanes.pop(next.len(), 8);
            sent.extend(next);
        }
        sent
    }

    #[test]
    fn who_brings_little_goes_before_who_brings_much() {
        let (mut lanes, mut loud) = (Lanes::new(), Mark::default());
        for byte in 0..20 {
            put(&mut lanes, Talker::Loud, &mut loud, byte);
        }
        put(&mut lanes, Talker::Quiet, &mut Mark::default(), 100);
        assert_eq!(all(&mut lanes)[0], 100);
    }

    #[test]
    fn slow_lane_moves_whatever_comes_in_the_quick_one() {
        let (mut lanes, mut loud) = (Lanes::new(), Mark::default());
        for byte in 0..20 {
            put(&mut lanes, Talker::Loud, &mut loud, byte);
        }
        for _ in 0..100 {
            put(&mut lanes, Talker::Quiet, &mut Mark::default(), 100);
        }
        let first: Vec<u8> = lanes.next(8).map(|datagram| datagram[0]).collect();
        assert_eq!(first, [100, 100, 100, 100, 100, 100, 0, 1]);
    }

    #[test]
    fn mark_of_another_worker_binds_nobody() {
        let (mut other, mut lanes, mut mark) = (Lanes::new(), Lanes::new(), Mark::default());
        put(&mut other, Talker::Loud, &mut mark, 1);
        put(&mut lanes, Talker::Loud, &mut Mark::default(), 2);
        put(&mut lanes, Talker::Quiet, &mut mark, 3);
        assert_eq!(all(&mut lanes), [3, 2]);
    }

    #[test]
    fn who_turns_loud_does_not_overtake_what_it_brought_before() {
        let (mut lanes, mut mark) = (Lanes::new(), Mark::default());
        for byte in 0..20 {
            put(&mut lanes, Talker::Quiet, &mut mark, byte);
        }
        for byte in 20..40 {
            put(&mut lanes, Talker::Loud, &mut mark, byte);
        }
        assert_eq!(all(&mut lanes), (0..40).collect::<Vec<u8>>());
    }

    proptest! {
        #[test]
        fn order_of_each_agent_is_kept(
            steps in proptest::collection::vec((0_usize..3, any::<bool>(), 0_usize..3), 1..200),
        ) {
            let (mut lanes, mut marks, mut sent) = (Lanes::new(), [Mark::default(); 3], Vec::new());
            let mut numbers = [0_u8; 3];
            for (agent, is_loud, pops) in steps {
                let talker = if is_loud { Talker::Loud } else { Talker::Quiet };
                let text = [agent as u8, numbers[agent]];
                numbers[agent] = numbers[agent].wrapping_add(1);
                marks[agent] = lanes.push(talker, marks[agent], |out| out.extend_from_slice(&text));
                let taken: Vec<Vec<u8>> = lanes.next(4).take(pops).map(<[u8]>::to_vec).collect();
                lanes.pop(taken.len(), 4);
                sent.extend(taken);
            }
            while !lanes.is_empty() {
                let taken: Vec<Vec<u8>> = lanes.next(4).map(<[u8]>::to_vec).collect();
                lanes.pop(taken.len(), 4);
                sent.extend(taken);
            }
            for agent in 0..3_u8 {
                let of_agent: Vec<u8> = sent.iter().filter(|text| text[0] == agent).map(|text| text[1]).collect();
                let expected: Vec<u8> = (0..numbers[usize::from(agent)]).collect();
                prop_assert_eq!(of_agent, expected);
            }
        }
    }
}
