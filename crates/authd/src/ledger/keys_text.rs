//! What the key file says, and how the agents in memory get there.

use std::{collections::HashMap, io, path::Path};

use muster_proto::{agent::AgentId, keys::file};
use zeroize::Zeroizing;

use crate::{
    database::Row,
    file::{KeyFileOnDisk, half_line},
    keystore::KeyStore,
};

/// The file, and its text for taking back what could not be written.
pub(super) struct KeysText {
    file: KeyFileOnDisk,
    durable: Zeroizing<Vec<u8>>,
}

impl KeysText {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let (file, durable) = KeyFileOnDisk::open(path)?;
        Ok(Self { file, durable })
    }

    /// Leaves out the half line that a killed daemon may have left at the end. Its agent has no row, since its batch was
    /// not finished, and was told nothing.
    pub(super) fn leave_out_half_line(&mut self, rows: &HashMap<AgentId, Row>) {
        let Some(begin) = half_line(&self.durable) else { return };
        let half = file::parse(self.durable.get(begin..).unwrap_or_default());
        let is_known = half.entries.iter().any(|entry| rows.contains_key(&entry.id));
        // Without rows there was no daemon of ours.
        if !rows.is_empty() && !is_known {
            let id = half.entries.first().map_or("", |entry| entry.id.as_str());
            tracing::warn!(
                id,
                "the key file ends with half a line, as after a crash; it is left out"
            );
            self.durable.truncate(begin);
        }
    }

    /// What survives a crash.
    pub(super) fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// Writes what is new. Agents that were only added go behind the others, everything else replaces the file.
    pub(super) fn write(&mut self, keys: &mut KeyStore) -> io::Result<Wrote> {
        match keys.added_lines() {
            Some(lines) if self.file.append(lines) => {
                self.durable.extend_from_slice(lines);
                keys.mark_written();
                Ok(Wrote::Added)
            }
            _ => self.replace(keys).map(|()| Wrote::Whole),
        }
    }

    /// Writes everything.
    pub(super) fn replace(&mut self, keys: &mut KeyStore) -> io::Result<()> {
        let image = keys.image();
        self.file.replace(&image)?;
        self.durable = image;
        keys.mark_written();
        Ok(())
    }

    /// Puts back what survives a crash, if the file says something else.
    pub(super) fn restore(&mut self) -> io::Result<()> {
        if self.file.was_changed().unwrap_or(false) {
            self.file.replace(&self.durable)?;
        }
        Ok(())
    }

    /// What somebody else has written, if somebody has.
    pub(super) fn edited(&mut self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        if self.file.was_changed()? {
            self.file.read().map(Some)
        } else {
            Ok(None)
        }
    }

    /// An edit was taken over: this is what would be written now.
    pub(super) fn merged(&mut self, keys: &mut KeyStore) {
        self.durable = keys.image();
    }

    pub(super) fn has_grown(&self) -> bool {
        self.file.has_grown()
    }
}

/// How something was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// Nothing of the key file.
    Nothing,
    /// Lines behind the others.
    Added,
    /// The whole file.
    Whole,
}
