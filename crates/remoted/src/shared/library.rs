//! The merged files there are, by the groups that they are for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use muster_proto::shared::sum;

/// A merged file in memory: pushes go on with it even when the group changes meanwhile.
#[derive(Debug, PartialEq, Eq)]
pub struct MergedFile {
    /// Its MD5, by which agents say what they have.
    pub sum: String,
    /// The bytes.
    pub content: Vec<u8>,
}

impl MergedFile {
    /// This content.
    pub fn of(content: Vec<u8>) -> Self {
        Self {
            sum: sum(&content),
            content,
        }
    }
}

/// All merged files as one look at the disk found them.
#[derive(Clone, Debug, Default)]
pub struct Library {
    /// By group.
    pub groups: BTreeMap<String, Arc<MergedFile>>,
    /// By the list of groups, `a,b,c`, where it has more than one.
    pub lists: HashMap<String, Arc<MergedFile>>,
}

impl Library {
    /// The file of an agent with these groups; `None` while there is none.
    pub fn of(&self, groups: &[String]) -> Option<&Arc<MergedFile>> {
        match groups {
            [] => None,
            [group] => self.groups.get(group),
            several => self.lists.get(&several.join(",")),
        }
    }

    /// A group whose file has this sum.
    pub fn group_with(&self, sum: &str) -> Option<&str> {
        let found = self.groups.iter().find(|(_, file)| file.sum == sum);
        found.map(|(group, _)| group.as_str())
    }
}
