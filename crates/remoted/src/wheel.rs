//! A timer wheel: who is due, at a cost that follows what is due and not the size of the fleet.
//!
//! Time is a count of ticks and comes in as an argument. Each entry is a small number that the caller chose (the place
//! of an agent in its table) and is armed for at most one tick at a time; arming it again moves it. Entries hang in
//! doubly linked lists that are threaded through one vector, so that nothing is allocated when an entry is armed,
//! moved or comes up: the vector grows only when an entry with a higher number is seen for the first time.
//!
//! **Invariant:** an entry comes up in the first [`Wheel::advance`] that reaches its tick, exactly once, never early.
//!
//! How: level `n` has 64 lists, each for 64^n ticks. An entry hangs at the level of the highest group of six bits in
//! which its tick differs from the present one; when time reaches the list, its entries move to lower levels, and from
//! level 0 they come up. Eleven levels cover all 64 bits, so no tick is out of reach. One word of bits per level says
//! which lists are not empty, so that a jump of hours costs no more than a step.

/// Bits of a tick that one level takes.
const LEVEL_BITS: u32 = 6;
/// Lists in a level.
const LISTS: usize = 1 << LEVEL_BITS;
/// Enough levels for every bit of a `u64`.
const LEVELS: usize = 64usize.div_ceil(LEVEL_BITS as usize);
/// "No entry" in a link, and "in no list" in [`Node::list`].
const NONE: u32 = u32::MAX;

/// Armed entries by the tick at which they are due.
pub struct Wheel {
    /// The tick that [`Wheel::advance`] has reached.
    now: u64,
    nodes: Vec<Node>,
    heads: Vec<u32>,
    /// Per level, a bit for each list that has entries.
    occupied: [u64; LEVELS],
    armed: usize,
}

#[derive(Clone, Copy)]
struct Node {
    at: u64,
    previous: u32,
    next: u32,
    list: u32,
}

const DISARMED: Node = Node {
    at: 0,
    previous: NONE,
    next: NONE,
    list: NONE,
};

impl Wheel {
    /// An empty wheel that stands at `now`.
    pub fn new(now: u64) -> Self {
        Self {
            now,
            nodes: Vec::new(),
            heads: vec![NONE; LEVELS * LISTS],
            occupied: [0; LEVELS],
            armed: 0,
        }
    }

    /// The tick that the wheel stands at.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// How many entries are armed.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// The tick that an entry is armed for.
    pub fn armed_for(&self, entry: u32) -> Option<u64> {
        self.nodes
            .get(entry as usize)
            .filter(|node| node.list != NONE)
            .map(|node| node.at)
    }

    /// Arms an entry, or moves it when it is armed already. A tick that has passed means the next one, so that an entry
    /// which is armed while it comes up cannot come up again in the same step.
    pub fn arm(&mut self, entry: u32, at: u64) {
        if self.nodes.len() <= entry as usize {
            self.nodes.resize(entry as usize + 1, DISARMED);
        }
        self.cancel(entry);
        self.link(entry, at.max(self.now.saturating_add(1)));
        self.armed += 1;
    }

    /// Disarms an entry. One that is not armed is left alone.
    pub fn cancel(&mut self, entry: u32) {
        if self.nodes.get(entry as usize).is_some_and(|node| node.list != NONE) {
            self.unlink(entry);
            self.armed -= 1;
        }
    }

    /// Goes to `now` and appends each entry that is due to `due`, in the order of their ticks. They are disarmed.
    pub fn advance(&mut self, now: u64, due: &mut Vec<u32>) {
        while let Some((level, list, start)) = self.first_list().filter(|&(_, _, start)| start <= now) {
            self.now = start;
            let mut entry = self.take_list(level, list);
            while entry != NONE {
                let node = self.nodes[entry as usize];
                self.nodes[entry as usize] = DISARMED;
                if node.at <= start {
                    due.push(entry);
                    self.armed -= 1;
                } else {
                    self.link(entry, node.at);
                }
                entry = node.next;
            }
        }
        self.now = self.now.max(now);
    }

    /// A tick before which nothing is due: the earliest one, or that at which entries move to a lower level.
    pub fn next_tick(&self) -> Option<u64> {
        self.first_list().map(|(_, _, start)| start)
    }

    /// The first list that time will reach, and the tick at which it does. Lower levels come first: whatever hangs at
    /// a level is due before the list that the level above is in has passed.
    fn first_list(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&lists| lists != 0)?;
        let list = self.occupied[level].trailing_zeros();
        let shift = level as u32 * LEVEL_BITS;
        // What the level's ticks have in common is what `now` has above the level's own bits.
        let above = self
            .now
            .checked_shr(shift + LEVEL_BITS)
            .map_or(0, |high| high << (shift + LEVEL_BITS));
        Some((level, list as usize, above | (u64::from(list) << shift)))
    }

    fn link(&mut self, entry: u32, at: u64) {
        let differing = (at ^ self.now) | 1;
        let level = (differing.ilog2() / LEVEL_BITS) as usize;
        let list = (at >> (level as u32 * LEVEL_BITS)) as usize % LISTS;
        let place = level * LISTS + list;
        let next = std::mem::replace(&mut self.heads[place], entry);
        if next != NONE {
            self.nodes[next as usize].previous = entry;
        }
        self.nodes[entry as usize] = Node {
            at,
            previous: NONE,
            next,
            list: place as u32,
        };
        self.occupied[level] |= 1 << list;
    }

    fn unlink(&mut self, entry: u32) {
        let Node {
            previous, next, list, ..
        } = std::mem::replace(&mut self.nodes[entry as usize], DISARMED);
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
        } else {
            let place = list as usize;
            self.heads[place] = next;
            if next == NONE {
                self.occupied[place / LISTS] &= !(1 << (place % LISTS));
            }
        }
    }

    fn take_list(&mut self, level: usize, list: usize) -> u32 {
        self.occupied[level] &= !(1 << list);
        std::mem::replace(&mut self.heads[level * LISTS + list], NONE)
    }
}

#[cfg(test)]
mod tests;
