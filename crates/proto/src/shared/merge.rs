//! Putting files together.

use std::{cmp::Ordering, collections::BTreeMap, io::Write};

use super::{AGENT_CONF, AR_CONF, EMPTY_AGENT_CONF, LeftOut, MAX_PATH_LEN};

/// A path below a group's directory, in the order in which files are merged: directory by directory, so that `sub/z`
/// comes before `sub-1`, although `-` comes before `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelativePath(String);

impl RelativePath {
    /// Takes a path whose names were admitted.
    ///
    /// # Errors
    /// It is too long.
    pub fn new(path: String) -> Result<Self, LeftOut> {
        if path.len() > MAX_PATH_LEN {
            return Err(LeftOut::LongPath);
        }
        Ok(Self(path))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for RelativePath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.split('/').cmp(other.0.split('/'))
    }
}

impl PartialOrd for RelativePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A group's own files.
pub type GroupFiles = BTreeMap<RelativePath, Vec<u8>>;

/// The merged file of one group.
pub fn merge_group(name: &str, ar_conf: Option<&[u8]>, files: &GroupFiles) -> Vec<u8> {
    let mut merged = Merged::begin(name, ar_conf);
    if !files.keys().any(is_agent_conf) {
        merged.put(AGENT_CONF, EMPTY_AGENT_CONF);
    }
    for (path, content) in files {
        if !merged.is_taken_by_manager(path) {
            merged.put(path.as_str(), content);
        }
    }
    merged.bytes
}

/// The merged file of several groups together, in the order that their agents have them: of files that several have,
/// the last one counts; their `agent.conf`s follow each other.
pub fn merge_groups(directory: &str, ar_conf: Option<&[u8]>, groups: &[(&str, &GroupFiles)]) -> Vec<u8> {
    let mut together = GroupFiles::new();
    let mut agent_conf = Vec::new();
    for (name, files) in groups {
        for (path, content) in *files {
            if is_agent_conf(path) {
                // Writing to a Vec cannot fail.
                let _ = writeln!(agent_conf, "<!-- Source file: {name}/{AGENT_CONF} -->");
                agent_conf.extend_from_slice(content);
            } else {
                together.insert(path.clone(), content.clone());
            }
        }
    }
    if !agent_conf.is_empty() {
        together.insert(RelativePath(AGENT_CONF.to_owned()), agent_conf);
    }
    merge_group(directory, ar_conf, &together)
}

fn is_agent_conf(path: &RelativePath) -> bool {
    path.as_str() == AGENT_CONF
}

struct Merged {
    bytes: Vec<u8>,
    has_ar_conf: bool,
}

impl Merged {
    fn begin(title: &str, ar_conf: Option<&[u8]>) -> Self {
        let mut merged = Self {
            bytes: format!("#{title}\n").into_bytes(),
            has_ar_conf: ar_conf.is_some(),
        };
        if let Some(content) = ar_conf {
            merged.put(AR_CONF, content);
        }
        merged
    }

    /// A second `ar.conf` would overwrite the manager's at the agent.
    fn is_taken_by_manager(&self, path: &RelativePath) -> bool {
        self.has_ar_conf && path.as_str() == AR_CONF
    }

    fn put(&mut self, path: &str, content: &[u8]) {
        // Writing to a Vec cannot fail.
        let _ = writeln!(self.bytes, "!{} {path}", content.len());
        self.bytes.extend_from_slice(content);
    }
}
