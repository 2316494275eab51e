//! `etc/client.keys`: one agent a line, `<id> <name> <address> <key>`.
//!
//! The reader is the stock one, with three differences, all on the safe side: a line with a bad address is set aside
//! where the stock daemon does not start; a line over [`MAX_LINE_LEN`] is set aside where the stock reader takes it
//! for two; and carriage returns at the end of a line are not part of the key.
//!
//! Nothing that could hold somebody's key is lost by reading and writing: removed lines and unreadable agent lines
//! are kept as bytes. Comments, lines that begin with a space and lines with fewer than four fields go, as stock.

use thiserror::Error;
use zeroize::Zeroizing;

use super::{Secret, address::RegisteredAddress};
use crate::agent::AgentId;

/// The longest line, without its line feed.
pub const MAX_LINE_LEN: usize = 2047;
/// Longer ids, names, addresses and keys are cut to this many bytes, by agents too.
pub const MAX_FIELD_LEN: usize = 127;

/// What a key file says.
#[derive(Default)]
pub struct KeyFile {
    /// Agents, in the order of the file. Ids may repeat; the first one counts.
    pub entries: Vec<KeyEntry>,
    /// Lines of removed agents.
    pub removed: Vec<RemovedLine>,
    /// Lines that are neither.
    pub problems: Vec<LineProblem>,
    /// The highest id that is a number of 1 to 8 digits, removed and broken lines included; 0 when there is none.
    /// New ids are counted up from here.
    pub highest_number: u32,
}

/// One agent.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// Its id, as text.
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// From where it may talk.
    pub address: RegisteredAddress,
    /// Its key.
    pub key: Secret,
}

impl std::fmt::Debug for KeyEntry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "KeyEntry({} {} {})", self.id, self.name, self.address)
    }
}

/// The line of an agent that was removed, kept so that its id is not given to another.
#[derive(Clone, PartialEq, Eq)]
pub struct RemovedLine {
    /// The id at its beginning.
    pub id: String,
    /// The whole line without its line feed: it holds the old key.
    pub line: Zeroizing<Vec<u8>>,
}

/// A line that could not be read.
#[derive(Clone, PartialEq, Eq)]
pub struct LineProblem {
    /// Counted from 1.
    pub line_number: usize,
    /// What is wrong with it.
    pub kind: ProblemKind,
    /// The text before its first space: enough to find the line, and no key.
    pub id: String,
    /// The whole line, when it has the four fields of an agent and must therefore survive the next write.
    pub keep: Option<Zeroizing<Vec<u8>>>,
}

/// What can be wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProblemKind {
    /// Fewer than four fields.
    #[error("expected `id name address key` separated by single spaces")]
    MissingField,
    /// The third field is no address.
    #[error("the address is not valid")]
    BadAddress,
    /// Bytes that are no UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// Longer than [`MAX_LINE_LEN`].
    #[error("longer than {MAX_LINE_LEN} bytes")]
    TooLong,
}

/// Reads a key file. A last line without line feed is read too.
pub fn parse(bytes: &[u8]) -> KeyFile {
    let mut file = KeyFile::default();
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if body.is_empty() {
        return file;
    }
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        file.take_line(index.saturating_add(1), line);
    }
    file
}

impl KeyFile {
    fn take_line(&mut self, line_number: usize, line: &[u8]) {
        if matches!(line.first(), Some(b'#' | b' ')) {
            return;
        }
        let id_bytes = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        let id = cut(&String::from_utf8_lossy(id_bytes)).to_owned();
        if let Some(number) = AgentId::new(&id).number() {
            self.highest_number = self.highest_number.max(number);
        }
        match read_line(line) {
            Ok(Line::Agent(entry)) => self.entries.push(entry),
            Ok(Line::Removed) => self.removed.push(RemovedLine {
                id,
                line: Zeroizing::new(line.to_vec()),
            }),
            Err(kind) => {
                let keep = (kind != ProblemKind::MissingField).then(|| Zeroizing::new(line.to_vec()));
                self.problems.push(LineProblem {
                    line_number,
                    kind,
                    id,
                    keep,
                });
            }
        }
    }
}

enum Line {
    Agent(KeyEntry),
    Removed,
}

fn read_line(line: &[u8]) -> Result<Line, ProblemKind> {
    let (_, behind_id) = split_at_space(line).ok_or(ProblemKind::MissingField)?;
    if matches!(behind_id.first(), Some(b'!' | b'#')) {
        return Ok(Line::Removed);
    }
    let (_, behind_name) = split_at_space(behind_id).ok_or(ProblemKind::MissingField)?;
    let (_, key) = split_at_space(behind_name).ok_or(ProblemKind::MissingField)?;
    if key.iter().all(|byte| *byte == b'\r') {
        return Err(ProblemKind::MissingField);
    }
    if line.len() > MAX_LINE_LEN {
        return Err(ProblemKind::TooLong);
    }
    let line = str::from_utf8(line).map_err(|_| ProblemKind::NotUtf8)?;
    let mut fields = line.splitn(4, ' ');
    let mut field = || fields.next().ok_or(ProblemKind::MissingField);
    let (id, name, address, key) = (field()?, field()?, field()?, field()?);
    // What is cut may end in carriage returns again, which the next reader would take off.
    let key = cut(key.trim_end_matches('\r')).trim_end_matches('\r');
    if key.is_empty() {
        return Err(ProblemKind::MissingField);
    }
    Ok(Line::Agent(KeyEntry {
        id: AgentId::new(cut(id)),
        name: cut(name).to_owned(),
        address: RegisteredAddress::parse(cut(address)).map_err(|_| ProblemKind::BadAddress)?,
        key: Secret::new(key.to_owned()),
    }))
}

fn split_at_space(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes
        .split_at_checked(memchr::memchr(b' ', bytes)?)
        .map(|(front, rest)| (front, rest.get(1..).unwrap_or_default()))
}

/// A field as every reader of the file cuts it: at [`MAX_FIELD_LEN`] bytes, or before the character across the cut.
pub fn cut(field: &str) -> &str {
    field.get(..field.floor_char_boundary(MAX_FIELD_LEN)).unwrap_or(field)
}

/// Writes an agent's line, line feed included.
pub fn write_entry(entry: &KeyEntry, out: &mut Vec<u8>) {
    for field in [entry.id.as_str(), &entry.name, entry.address.text()] {
        out.extend_from_slice(field.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(entry.key.expose().as_bytes());
    out.push(b'\n');
}

/// Writes a line as it was kept, line feed included.
pub fn write_kept(line: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(line);
    out.push(b'\n');
}

impl RemovedLine {
    /// The line that is left of an agent: `!` before its name, its address without prefix.
    pub fn of(entry: &KeyEntry) -> Self {
        let mut line = Vec::with_capacity(160);
        for (field, end) in [
            (entry.id.as_str(), " !"),
            (&entry.name, " "),
            (entry.address.host_text(), " "),
            (entry.key.expose(), ""),
        ] {
            line.extend_from_slice(field.as_bytes());
            line.extend_from_slice(end.as_bytes());
        }
        Self {
            id: entry.id.as_str().to_owned(),
            line: Zeroizing::new(line),
        }
    }
}

impl KeyEntry {
    /// The line without its line feed, as agents keep it and as keys are exported.
    pub fn line(&self) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "{} {} {} {}",
            self.id,
            self.name,
            self.address.text(),
            self.key.expose()
        ))
    }
}

#[cfg(test)]
mod tests;
