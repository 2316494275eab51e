//! A TCP stream cut into messages, with no buffer of its own while nothing is half read.
//!
//! Messages that lie whole in what was read are handled where they lie. Only what is left over, the beginning of a
//! message or what must wait because the handler said stop, is copied and kept until the next read.

use std::ops::ControlFlow;

use muster_proto::transport::frame::{FrameError, HEADER_LEN, Split, split};

/// What is kept of one stream between two reads.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    kept: Vec<u8>,
}

impl Pieces {
    /// Hands every whole message to `handle`, in order, until it breaks; all bytes behind that message stay.
    pub(crate) fn feed<B>(
        &mut self,
        mut read: &[u8],
        mut handle: impl FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, FrameError> {
        if !self.kept.is_empty() {
            let mut kept = std::mem::take(&mut self.kept);
            let mut done = 0;
            let flow = loop {
                match split(kept.get(done..).unwrap_or_default())? {
                    Split::Message { message, .. } => {
                        let end = done + HEADER_LEN + message.len();
                        let flow = handle(message);
                        done = end;
                        if flow.is_break() {
                            break flow;
                        }
                    }
                    // The kept bytes are used up: go on in what was read.
                    Split::Partial { .. } if done == kept.len() => break ControlFlow::Continue(()),
                    Split::Partial { .. } if read.is_empty() => break ControlFlow::Continue(()),
                    Split::Partial { missing } => {
                        let (more, rest) = read.split_at(missing.min(read.len()));
                        kept.extend_from_slice(more);
                        read = rest;
                    }
                }
            };
            if done < kept.len() {
                kept.drain(..done);
                kept.extend_from_slice(read);
                self.kept = kept;
                return Ok(flow);
            }
            if flow.is_break() {
                self.kept = read.to_vec();
                return Ok(flow);
            }
        }
        loop {
            match split(read)? {
                Split::Message { message, rest } => {
                    read = rest;
                    let flow = handle(message);
                    if flow.is_break() {
                        self.kept = read.to_vec();
                        return Ok(flow);
                    }
                }
                Split::Partial { .. } => {
                    self.kept = read.to_vec();
                    return Ok(ControlFlow::Continue(()));
                }
            }
        }
    }

    /// How many bytes are kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::transport::frame::append;
    use proptest::prelude::*;

    use super::*;

    fn stream(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            append(&mut out, message);
        }
        out
    }

    #[test]
    fn whole_messages_leave_nothing_behind() {
        let mut pieces = Pieces::default();
        let flow = pieces.feed::<()>(&stream(&[b"a".to_vec(), vec![]]), |_| ControlFlow::Continue(()));
        assert_eq!(flow, Ok(ControlFlow::Continue(())));
        assert_eq!((pieces.len(), pieces.kept.capacity()), (0, 0));
    }

    #[test]
    fn announced_length_over_the_limit_is_refused_before_anything_is_kept() {
        let mut pieces = Pieces::default();
        assert!(
            pieces
                .feed::<()>(&[1, 0, 1, 0, 7], |_| ControlFlow::Continue(()))
                .is_err()
        );
        assert_eq!(pieces.kept.capacity(), 0);
    }

    proptest! {
        #[test]
        fn pieces_and_stops_change_neither_order_nor_content(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            cuts in proptest::collection::vec(1_usize..60, 1..20),
            stops in proptest::collection::vec(any::<bool>(), 1..8),
        ) {
            let bytes = stream(&messages);
            let (mut pieces, mut seen, mut handled) = (Pieces::default(), Vec::new(), 0_usize);
            let mut handle = |message: &[u8]| {
                seen.push(message.to_vec());
                handled += 1;
                if stops[handled % stops.len()] { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let (mut rest, mut turn) = (bytes.as_slice(), 0_usize);
            while !rest.is_empty() {
                let (read, after) = rest.split_at(cuts[turn % cuts.len()].min(rest.len()));
                (rest, turn) = (after, turn + 1);
                let mut flow = pieces.feed(read, &mut handle).unwrap();
                while flow.is_break() {
                    flow = pieces.feed(&[], &mut handle).unwrap();
                }
            }
            prop_assert_eq!(seen, messages);
            prop_assert_eq!(pieces.len(), 0);
        }
    }
}
