//! Blocks of ids that are this manager's alone, where several managers share a fleet: new agents get their ids from
//! these and no others, so that no two managers give the same one. Pure.

use muster_proto::agent::AgentId;

use crate::keystore::{HIGHEST_ID, KeyStore};

/// Blocks that are kept. One more is asked for only when few ids are left.
const MAX_BLOCKS: usize = 4096;

/// Ids from `first` on, so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The lowest.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Block {
    /// The highest.
    fn last(self) -> u32 {
        self.first.saturating_add(self.count.saturating_sub(1))
    }
}

/// Why a block is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// It has no id, or some that agents cannot have.
    #[error("the block has ids that agents cannot have")]
    Range,
    /// Some of its ids are in another one.
    #[error("the block has ids of another one")]
    Overlap,
    /// There are too many.
    #[error("there are more than {MAX_BLOCKS} blocks")]
    TooMany,
}

/// The blocks, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    blocks: Vec<(Block, u32)>,
}

impl Leases {
    /// Takes one more block. Ids of agents that are or were there are not given again.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn add(&mut self, block: Block, keys: &KeyStore) -> Result<(), BlockError> {
        if block.first == 0 || block.count == 0 || block.last() > HIGHEST_ID {
            return Err(BlockError::Range);
        }
        if self.blocks.len() >= MAX_BLOCKS {
            return Err(BlockError::TooMany);
        }
        let overlaps = |(other, _): &(Block, u32)| other.first <= block.last() && block.first <= other.last();
        if self.blocks.iter().any(overlaps) {
            return Err(BlockError::Overlap);
        }
        let live = keys.live().iter().map(|entry| &entry.id);
        let removed = keys.removed().iter().filter_map(|line| line.id.parse().ok());
        let used = live.filter_map(AgentId::number).chain(removed);
        let highest = used
            .filter(|number| (block.first..=block.last()).contains(number))
            .max();
        self.blocks
            .push((block, highest.map_or(block.first, |number| number.saturating_add(1))));
        Ok(())
    }

    /// The id that the next new agent gets, if there is one left.
    pub fn next_id(&self, keys: &KeyStore) -> Option<AgentId> {
        let left = self.blocks.iter().flat_map(|(block, next)| *next..=block.last());
        left.map(AgentId::from_number)
            .find(|id| keys.get(id.as_str()).is_none())
    }

    /// An id was given.
    pub fn took(&mut self, id: &AgentId) {
        let Some(number) = id.number() else { return };
        for (block, next) in &mut self.blocks {
            if (*next..=block.last()).contains(&number) {
                *next = number + 1;
            }
        }
    }

    /// How many ids are left, about.
    pub fn free(&self) -> u32 {
        let free = self
            .blocks
            .iter()
            .map(|(block, next)| (block.last() + 1).saturating_sub(*next));
        free.fold(0, u32::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::keys::file;

    use super::*;

    fn keys(lines: &str) -> KeyStore {
        KeyStore::new(file::parse(lines.as_bytes()))
    }

    fn block(first: u32, count: u32) -> Block {
        Block { first, count }
    }

    #[test]
    fn ids_come_from_the_blocks_in_their_order_and_from_nowhere_else() {
        let keys = keys("007 known any k\n");
        let mut leases = Leases::default();
        assert_eq!(leases.next_id(&keys), None);
        leases.add(block(300, 2), &keys).expect("fits");
        leases.add(block(10, 1), &keys).expect("fits");
        for id in ["300", "301", "010"] {
            assert_eq!(leases.next_id(&keys), Some(AgentId::new(id)));
            leases.took(&AgentId::new(id));
        }
        assert_eq!((leases.next_id(&keys), leases.free()), (None, 0));
    }

    #[test]
    fn ids_of_agents_that_are_or_were_there_are_passed_over() {
        let keys = keys("005 there any k\n006 *gone any k\n008 another any k\n");
        let mut leases = Leases::default();
        leases.add(block(1, 7), &keys).expect("fits");
        assert_eq!(leases.next_id(&keys), Some(AgentId::new("007")));
        leases.took(&AgentId::new("007"));
        leases.add(block(8, 3), &keys).expect("fits");
        assert_eq!((leases.next_id(&keys), leases.free()), (Some(AgentId::new("009")), 2));
    }

    #[test]
    fn block_that_cannot_be_ours_alone_is_refused() {
        let keys = keys("");
        let mut leases = Leases::default();
        leases.add(block(257, 256), &keys).expect("fits");
        for wrong in [block(257, 256), block(512, 1), block(1, 257), block(256, 1000)] {
            assert_eq!(leases.add(wrong, &keys), Err(BlockError::Overlap), "{wrong:?}");
        }
        for wrong in [
            block(0, 5),
            block(5, 0),
            block(HIGHEST_ID, 2),
            block(u32::MAX, u32::MAX),
        ] {
            assert_eq!(leases.add(wrong, &keys), Err(BlockError::Range), "{wrong:?}");
        }
        leases.add(block(513, 1), &keys).expect("fits");
        assert_eq!(leases.free(), 257);
    }
}
