//! Two queues on one way: what agents bring that bring little goes before what the others bring, so that one agent that
//! floods does not make all others late.
//!
//! **Invariant:** one agent's events keep their order: as long as one of them waits in the slow lane, all that come
//! behind it go there too. And the slow lane moves whatever comes in the quick one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{backlog::Backlog, valve::Talker};

/// Of datagrams sent at once, so many are of the slow lane if it has them: one in four.
const SLOW_SHARE: usize = 4;
/// Bits of a [`Mark`] for a place in a lane.
const PLACE_BITS: u32 = 48;

/// Behind which event in a slow lane an agent's next one must stay: which lanes, and which place. Zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) u64);

/// The queues.
pub(super) struct Lanes {
    number: u64,
    quick: Backlog,
    slow: Backlog,
}

impl Lanes {
    pub(super) fn new() -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed) << PLACE_BITS,
            quick: Backlog::default(),
            slow: Backlog::default(),
        }
    }

    /// Takes an event of an agent whose events so far left this mark; a new mark comes back when it takes the slow lane.
    pub(super) fn push(&mut self, talker: Talker, mark: Mark, write: impl FnOnce(&mut Vec<u8>)) -> Option<Mark> {
        let is_elsewhere = mark.0 >> PLACE_BITS != self.number >> PLACE_BITS;
        let has_gone = is_elsewhere || mark.0 - self.number <= self.slow.popped();
        if talker == Talker::Quiet && has_gone {
            self.quick.push(write);
            return None;
        }
        self.slow.push(write);
        Some(Mark(self.number + self.slow.popped() + self.slow.len() as u64))
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
    }

    fn shares(&self, most: usize) -> (usize, usize) {
        let slow = self.slow.len().min(most / SLOW_SHARE);
        let quick = self.quick.len().min(most - slow);
        (quick, self.slow.len().min(most - quick))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(lanes: &mut Lanes, talker: Talker, mark: &mut Mark, byte: u8) {
        if let Some(new) = lanes.push(talker, *mark, |out| out.push(byte)) {
            *mark = new;
        }
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
        assert_eq!(lanes.push(Talker::Quiet, mark, |out| out.push(2)), None);
    }

    proptest! {
        #[test]
        fn order_of_each_agent_is_kept(
            steps in proptest::collection::vec((0_usize..3, any::<bool>(), 0_usize..6), 1..200),
        ) {
            let (mut lanes, mut marks, mut sent) = (Lanes::new(), [Mark::default(); 3], Vec::new());
            let mut numbers = [0_u8; 3];
            for (agent, is_loud, pops) in steps {
                let talker = if is_loud { Talker::Loud } else { Talker::Quiet };
                let text = [agent as u8, numbers[agent]];
                numbers[agent] = numbers[agent].wrapping_add(1);
                if let Some(mark) = lanes.push(talker, marks[agent], |out| out.extend_from_slice(&text)) {
                    marks[agent] = mark;
                }
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
