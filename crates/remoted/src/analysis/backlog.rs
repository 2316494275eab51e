//! Datagrams that wait for the analysis daemon, one behind the other in one piece of memory.

use std::collections::VecDeque;

/// A queue that has given its last datagram away keeps so much memory for the next.
const KEPT_CAPACITY: usize = 256 * 1024;
/// The front is cut off when it is so long, and longer than what follows: then each byte is moved once at most.
const COMPACT_AT: usize = 64 * 1024;

/// First in, first out. Pushing and popping allocate only when the queue grows beyond what it held before.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: Vec<u8>,
    /// Where the first waiting datagram begins.
    head: usize,
    lengths: VecDeque<usize>,
    popped: u64,
}

impl Backlog {
    /// Takes one more datagram: whatever `write` appends. Nothing appended is nothing queued.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len() - before;
        if length > 0 {
            self.lengths.push_back(length);
        }
    }

    /// The waiting datagrams, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[self.head..];
        self.lengths.iter().map(move |length| {
            let (datagram, behind) = rest.split_at(*length);
            rest = behind;
            datagram
        })
    }

    /// The oldest `count` are gone.
    pub(crate) fn pop(&mut self, count: usize) {
        let count = count.min(self.lengths.len());
        self.popped += count as u64;
        self.head += self.lengths.drain(..count).sum::<usize>();
        if self.lengths.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_CAPACITY);
            self.lengths.shrink_to(KEPT_CAPACITY / 64);
            self.head = 0;
        } else if self.head >= COMPACT_AT && self.head > self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    /// How many are gone, of all that ever came.
    pub(crate) fn popped(&self) -> u64 {
        self.popped
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// What they come to.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len() - self.head
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_given_back_when_the_queue_is_empty() {
        let mut backlog = Backlog::default();
        for _ in 0..100 {
            backlog.push(|out| out.extend_from_slice(&[1; 60_000]));
        }
        backlog.pop(100);
        assert_eq!(backlog.bytes(), 0);
        assert!(backlog.bytes.capacity() <= KEPT_CAPACITY);
    }

    proptest! {
        #[test]
        fn behaves_like_a_queue_of_vectors(steps in proptest::collection::vec((0_usize..30_000, 0_usize..4), 1..60)) {
            let (mut backlog, mut model) = (Backlog::default(), VecDeque::new());
            for (index, (length, pops)) in steps.into_iter().enumerate() {
                let datagram = vec![index as u8; length];
                backlog.push(|out| out.extend_from_slice(&datagram));
                if length > 0 { model.push_back(datagram); }
                let pops = pops.min(model.len());
                backlog.pop(pops);
                model.drain(..pops);
                prop_assert_eq!(backlog.bytes(), model.iter().map(Vec::len).sum::<usize>());
                prop_assert!(backlog.iter().eq(model.iter().map(Vec::as_slice)));
            }
        }
    }
}
