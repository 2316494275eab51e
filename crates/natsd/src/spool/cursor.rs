//! How far each stream was acknowledged, beside the segments.

use std::{collections::BTreeMap, path::Path};

use muster_proto::event::Stream;
use serde::{Deserialize, Serialize};

use super::{SpoolError, slots::Slots};

const NAME: &str = "cursor";

/// What the file says. Lost or damaged, events are sent again; the broker knows them by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// For each stream, the sequence up to which nothing waits.
    #[serde(default)]
    pub(crate) settled: BTreeMap<Stream, u64>,
    /// For each stream, where the broker said that it keeps our events, and its own highest sequence there.
    #[serde(default)]
    pub(crate) kept: BTreeMap<Stream, Kept>,
    /// Producers, their incarnations, and the numbers up to which their events are the broker's although they never were
    /// in a segment.
    #[serde(default)]
    pub(crate) told: Vec<(String, u64, u64)>,
}

/// What the broker said of one of its streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The stream's name on the broker.
    pub(crate) name: String,
    /// The highest sequence that it acknowledged.
    pub(crate) sequence: u64,
    /// When the broker says that it made the stream, in its words; empty while it has not said. One of this name that was
    /// made later holds nothing of what this one had.
    #[serde(default)]
    pub(crate) created: String,
}

/// The file.
#[derive(Debug)]
pub(super) struct CursorFile {
    slots: Slots,
    written: Cursor,
}

impl CursorFile {
    pub(super) fn open(directory: &Path) -> Result<(Self, Cursor), SpoolError> {
        let (slots, content) = Slots::open(&directory.join(NAME))?;
        let cursor: Cursor = content
            .and_then(|content| serde_json::from_slice(&content).ok())
            .unwrap_or_default();
        let file = Self {
            slots,
            written: cursor.clone(),
        };
        Ok((file, cursor))
    }

    pub(super) fn settled(&self) -> &BTreeMap<Stream, u64> {
        &self.written.settled
    }

    pub(super) fn holds(&self, cursor: &Cursor) -> bool {
        self.written == *cursor
    }
}

/// The file, on its way to hold this.
#[derive(Debug)]
pub(crate) struct Tidying {
    pub(super) file: CursorFile,
    pub(super) cursor: Cursor,
}

impl Tidying {
    /// Writes it if it has changed.
    pub(crate) fn write(&mut self) -> Result<(), SpoolError> {
        if !self.file.holds(&self.cursor) {
            // A few names and numbers always serialise.
            let bytes = serde_json::to_vec(&self.cursor).unwrap_or_default();
            self.file.slots.write(&bytes)?;
            self.file.written = self.cursor.clone();
        }
        Ok(())
    }

    /// How many events were acknowledged since it was written last.
    pub(crate) fn news(&self) -> u64 {
        let before = self.file.settled();
        let news = self.cursor.settled.iter();
        news.map(|(stream, settled)| settled.saturating_sub(before.get(stream).copied().unwrap_or(0)))
            .sum()
    }
}
