//! The agents of `client.keys` in memory, and the text that is written for them.
//!
//! **Invariant:** reading the text that [`KeyStore::image`] gives makes an equal store, so that the file can be the
//! truth and a failed write can be taken back by reading what was written before.
//!
//! The order of the text is the stock one, since other programs and people compare files: live agents in the order of
//! their adding, the last one moving into the place of one that goes; then lines that could not be read; then the lines
//! of removed agents in the order of their removal.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use muster_proto::{
    agent::AgentId,
    keys::file::{self, KeyEntry, KeyFile, RemovedLine, cut},
};
use zeroize::Zeroizing;

/// The highest id that agents take: 8 digits.
pub const HIGHEST_ID: u32 = 99_999_999;

/// What stays of an agent that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// A line, so that its id is not given to another.
    Line,
    /// Nothing.
    Nothing,
}

/// The agents, found by id, name and address.
#[derive(Default)]
pub struct KeyStore {
    live: Vec<KeyEntry>,
    removed: Vec<RemovedLine>,
    /// Lines that could not be read and may hold somebody's key.
    unreadable: Vec<Zeroizing<Vec<u8>>>,
    by_id: HashMap<AgentId, usize>,
    by_name: HashMap<Box<str>, usize>,
    by_host: HashMap<Box<str>, usize>,
    /// Whether an id, a name or an address occurs twice: only a file can bring that about. The indexes then know the
    /// first of them, and searches look at all.
    has_doubles: bool,
    highest_number: u32,
    live_text: LiveText,
    news: News,
}

/// What the file does not say yet.
#[derive(Default)]
struct News {
    /// The lines of agents that were added.
    lines: Zeroizing<Vec<u8>>,
    /// Whether something else happened, too.
    is_more: bool,
}

/// The text of the live agents, kept while agents only come.
#[derive(Default)]
struct LiveText {
    bytes: Zeroizing<Vec<u8>>,
    is_stale: bool,
}

impl KeyStore {
    /// The agents of a file.
    pub fn new(file: KeyFile) -> Self {
        let unreadable = file.problems.into_iter().filter_map(|problem| problem.keep).collect();
        let mut store = Self {
            live: file.entries,
            removed: file.removed,
            unreadable,
            highest_number: file.highest_number,
            live_text: LiveText {
                is_stale: true,
                ..LiveText::default()
            },
            ..Self::default()
        };
        store.index();
        store
    }

    /// The agents that can be looked up.
    pub fn live(&self) -> &[KeyEntry] {
        &self.live
    }

    /// The lines of agents that are gone.
    pub fn removed(&self) -> &[RemovedLine] {
        &self.removed
    }

    /// The agent with this id, the first one of the file if there are several.
    pub fn get(&self, id: &str) -> Option<&KeyEntry> {
        self.by_id.get(id).and_then(|place| self.live.get(*place))
    }

    /// All agents with this id.
    pub fn with_id(&self, id: &AgentId) -> Vec<&KeyEntry> {
        self.holders(self.by_id.get(id), |entry| entry.id == *id)
    }

    /// All agents with this name.
    pub fn with_name(&self, name: &str) -> Vec<&KeyEntry> {
        let name = cut(name);
        self.holders(self.by_name.get(name), |entry| entry.name == name)
    }

    /// All agents that are registered for an address with this text, prefixes left aside. `any` is nobody's.
    pub fn with_host(&self, host_text: &str) -> Vec<&KeyEntry> {
        self.holders(self.by_host.get(host_text), |entry| {
            !entry.address.is_any() && entry.address.host_text() == host_text
        })
    }

    fn holders(&self, first: Option<&usize>, is_one: impl Fn(&KeyEntry) -> bool) -> Vec<&KeyEntry> {
        match first {
            None => Vec::new(),
            Some(_) if self.has_doubles => self.live.iter().filter(|entry| is_one(entry)).collect(),
            Some(place) => self.live.get(*place).into_iter().collect(),
        }
    }

    /// The id that the next new agent gets, if there is one left.
    pub fn next_id(&self) -> Option<AgentId> {
        (self.highest_number < HIGHEST_ID).then(|| AgentId::from_number(self.highest_number.saturating_add(1)))
    }

    /// The highest number given out. New ids are counted up from it.
    pub fn highest_number(&self) -> u32 {
        self.highest_number
    }

    /// Raises the number that new ids are counted up from.
    pub fn raise_highest_number(&mut self, number: u32) {
        self.highest_number = self.highest_number.max(number);
    }

    /// Adds an agent behind the others. Its name is cut as every reader of the file cuts it.
    pub fn add(&mut self, mut entry: KeyEntry) {
        if let Some(number) = entry.id.number() {
            self.raise_highest_number(number);
        }
        entry.name = cut(&entry.name).to_owned();
        if !self.live_text.is_stale {
            file::write_entry(&entry, &mut self.live_text.bytes);
        }
        if !self.news.is_more {
            file::write_entry(&entry, &mut self.news.lines);
        }
        let place = self.live.len();
        self.has_doubles |= !self.enter(&entry, place);
        self.live.push(entry);
    }

    /// Removes an agent; the last one takes its place.
    pub fn remove(&mut self, id: &AgentId, trace: Trace) -> Option<KeyEntry> {
        let place = *self.by_id.get(id)?;
        Some(self.take_out(place, trace))
    }

    /// Removes the agent with this id and this name: in a file made by hand another one may have the same id.
    pub fn remove_named(&mut self, id: &AgentId, name: &str, trace: Trace) -> Option<KeyEntry> {
        let is_meant = |entry: &KeyEntry| entry.id == *id && entry.name == name;
        let first = *self.by_id.get(id)?;
        let place = if self.live.get(first).is_some_and(is_meant) {
            first
        } else {
            self.live.iter().position(is_meant)?
        };
        Some(self.take_out(place, trace))
    }

    fn take_out(&mut self, place: usize, trace: Trace) -> KeyEntry {
        let entry = self.live.swap_remove(place);
        self.live_text.is_stale = true;
        self.news.is_more = true;
        if trace == Trace::Line {
            self.removed.push(RemovedLine::of(&entry));
        }
        if self.has_doubles {
            self.index();
        } else {
            self.by_id.remove(&entry.id);
            self.by_name.remove(entry.name.as_str());
            self.by_host.remove(entry.address.host_text());
            self.relocate(place);
        }
        entry
    }

    /// Keeps a removed agent's line that somebody else has put into the file.
    pub fn keep_removed_line(&mut self, line: RemovedLine) {
        self.removed.push(line);
        self.news.is_more = true;
    }

    /// Keeps lines that cannot be read, unless they are kept already.
    pub fn keep_unreadable(&mut self, lines: impl Iterator<Item = Zeroizing<Vec<u8>>>) {
        let known: HashSet<&[u8]> = self.unreadable.iter().map(|line| line.as_slice()).collect();
        let mut new: Vec<_> = lines.filter(|line| !known.contains(line.as_slice())).collect();
        self.news.is_more |= !new.is_empty();
        self.unreadable.append(&mut new);
    }

    /// Puts other values in the place of agents with the same ids. Ids that are not known are passed over.
    pub fn exchange(&mut self, entries: Vec<KeyEntry>) {
        if entries.is_empty() {
            return;
        }
        for entry in entries {
            if let Some(known) = self.by_id.get(&entry.id).and_then(|place| self.live.get_mut(*place)) {
                *known = entry;
            }
        }
        self.live_text.is_stale = true;
        self.news.is_more = true;
        self.index();
    }

    /// Forgets the lines of removed agents: whoever wants no traces wants none of earlier ones either.
    pub fn forget_removed(&mut self) {
        self.news.is_more |= !self.removed.is_empty();
        self.removed.clear();
    }

    /// The lines of the agents that were added since [`KeyStore::mark_written`]. `None` when more than that happened, or
    /// nothing.
    pub fn added_lines(&self) -> Option<&[u8]> {
        (!self.news.is_more && !self.news.lines.is_empty()).then_some(self.news.lines.as_slice())
    }

    /// The file says what is known here.
    pub fn mark_written(&mut self) {
        self.news = News::default();
    }

    /// The text of the file.
    pub fn image(&mut self) -> Zeroizing<Vec<u8>> {
        if self.live_text.is_stale {
            let mut bytes = Zeroizing::new(Vec::with_capacity(self.live_text.bytes.len()));
            self.live.iter().for_each(|entry| file::write_entry(entry, &mut bytes));
            self.live_text = LiveText { bytes, is_stale: false };
        }
        let mut image = Zeroizing::new(Vec::with_capacity(self.live_text.bytes.len()));
        image.extend_from_slice(&self.live_text.bytes);
        let removed = self.removed.iter().map(|removed| &removed.line);
        self.unreadable
            .iter()
            .chain(removed)
            .for_each(|line| file::write_kept(line, &mut image));
        image
    }

    fn index(&mut self) {
        self.by_id.clear();
        self.by_name.clear();
        self.by_host.clear();
        self.has_doubles = false;
        let live = std::mem::take(&mut self.live);
        for (place, entry) in live.iter().enumerate() {
            self.has_doubles |= !self.enter(entry, place);
        }
        self.live = live;
    }

    /// Notes where an agent is, unless one before it has the same id, name or address. Returns whether all were new.
    fn enter(&mut self, entry: &KeyEntry, place: usize) -> bool {
        let mut is_new = note(&mut self.by_id, entry.id.clone(), place);
        is_new &= note(&mut self.by_name, entry.name.as_str().into(), place);
        if !entry.address.is_any() {
            is_new &= note(&mut self.by_host, entry.address.host_text().into(), place);
        }
        is_new
    }

    /// Notes that the agent that was last is now here.
    fn relocate(&mut self, place: usize) {
        let Some(entry) = self.live.get(place) else { return };
        let known = [
            self.by_id.get_mut(&entry.id),
            self.by_name.get_mut(entry.name.as_str()),
            self.by_host.get_mut(entry.address.host_text()),
        ];
        known.into_iter().flatten().for_each(|known| *known = place);
    }
}

fn note<K: std::hash::Hash + Eq>(index: &mut HashMap<K, usize>, key: K, place: usize) -> bool {
    match index.entry(key) {
        Entry::Occupied(_) => false,
        Entry::Vacant(vacant) => {
            vacant.insert(place);
            true
        }
    }
}

#[cfg(test)]
mod tests;
