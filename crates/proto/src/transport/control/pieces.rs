//! Cutting a file into the pieces it is pushed in.

use super::HEADER;

/// The longest piece. Sealed in any form it still fits the 1024 bytes that an OSSEC agent reads.
pub const MAX_PIECE_LEN: usize = 900;

/// The pieces of a file: all full, except the last, and except where the next piece would begin with `#!-` and so be
/// taken for a control message by the agent; there the piece ends one byte early.
///
/// A file that itself begins with `#!-`, or that has a NUL in it, cannot be pushed: agents take pieces as C strings.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    rest: &'a [u8],
}

impl<'a> Pieces<'a> {
    /// Cuts this content.
    pub fn of(content: &'a [u8]) -> Self {
        Self { rest: content }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let full = self.rest.len().min(MAX_PIECE_LEN);
        let next_is_mistaken = self.rest.get(full..).is_some_and(|next| next.starts_with(HEADER));
        let (piece, rest) = self
            .rest
            .split_at_checked(full.saturating_sub(usize::from(next_is_mistaken)))?;
        self.rest = rest;
        Some(piece)
    }
}
