//! Looking at `etc/shared`: what is there, what of it has changed, and the merged files that follow.
//!
//! A look costs one `stat` a file; files are read again only when one of their group has changed. Copies of the merged
//! files go to where stock programs look for them, whole or not at all, and only when their sum has changed. Agents are
//! served from memory, so that a directory that cannot be written is a nuisance and no more.
//!
//! **Invariant:** nothing from outside `etc/shared` is merged. Several daemons may write there, and a link to the key
//! file would hand every agent's key to every agent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, Metadata, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_proto::{
    enrollment::group::is_valid_name,
    paths,
    shared::{
        AGENT_CONF, AR_CONF, EMPTY_AGENT_CONF, GroupFiles, LeftOut, MERGED, RelativePath, admit_content, admit_name,
        is_multigroup_name, merge_group, merge_groups, multigroup_name,
    },
};
use nix::fcntl::OFlag;
use tracing::{info, warn};

use super::library::{Library, MergedFile};

/// Files of one group; more are left out.
const MAX_FILES: usize = 10_000;
/// Bytes of one group's files; what would go beyond is left out.
const MAX_GROUP_LEN: u64 = 64 * 1024 * 1024;

/// How files are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merging {
    /// By us.
    Ours,
    /// By somebody else, who puts merged files where ours would be: the stock option `merge_shared`, switched off.
    Theirs,
}

/// What was found by the last look.
pub struct Scanner {
    shared: PathBuf,
    multigroups: PathBuf,
    merging: Merging,
    groups: BTreeMap<String, Found>,
    lists: HashMap<String, Found>,
    /// What has been complained of, so that it is said once.
    complaints: BTreeSet<String>,
}

/// A merged file and what it was made of.
struct Found {
    /// Changes with the files that it was made of.
    print: u64,
    file: Arc<MergedFile>,
}

/// A regular file below a group's directory.
struct Entry {
    path: PathBuf,
    stamp: Stamp,
}

/// Another stamp, another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stamp {
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

type Listing = BTreeMap<RelativePath, Entry>;

impl Scanner {
    /// Looks below this home; empty when the process is in it.
    pub fn new(home: &Path, merging: Merging) -> Self {
        Self {
            shared: home.join(paths::SHARED),
            multigroups: home.join(paths::MULTIGROUPS),
            merging,
            groups: BTreeMap::new(),
            lists: HashMap::new(),
            complaints: BTreeSet::new(),
        }
    }

    /// Looks again. `needed` groups are made when they are not there; `lists` are those of agents with several groups.
    /// When these are all lists that there are, directories of others are removed.
    pub fn look(&mut self, needed: &BTreeSet<String>, lists: &BTreeSet<Vec<String>>, are_all: bool) -> Library {
        for group in needed {
            self.make_group(group);
        }
        let orders = self.orders();
        let mut listings = BTreeMap::new();
        for group in self.group_names() {
            let directory = self.shared.join(&group);
            let listing = self.list(&directory);
            listings.insert(group, listing);
        }
        self.groups.retain(|group, _| listings.contains_key(group));
        for (group, listing) in &listings {
            self.refresh_group(group, listing, orders.as_ref());
        }
        let known: BTreeSet<&Vec<String>> = lists
            .iter()
            .filter(|list| list.iter().all(|group| listings.contains_key(group)))
            .collect();
        self.lists
            .retain(|list, _| known.iter().any(|known| known.join(",") == *list));
        for list in known {
            self.refresh_list(list, &listings, orders.as_ref());
        }
        if are_all && self.merging == Merging::Ours {
            self.remove_unused_lists(lists);
        }
        Library {
            groups: files_of(&self.groups),
            lists: files_of(&self.lists),
        }
    }

    /// The manager's orders, if it has any.
    fn orders(&mut self) -> Option<(Stamp, Vec<u8>)> {
        let path = self.shared.join(AR_CONF);
        let metadata = fs::metadata(&path).ok().filter(Metadata::is_file)?;
        match read_no_link(&path) {
            Ok(content) => match admit_content(&content) {
                Ok(()) => return Some((Stamp::of(&metadata), content)),
                Err(why) => self.left_out(&path, why),
            },
            Err(error) => self.complain(&path, &format!("cannot be read: {error}")),
        }
        None
    }

    fn group_names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.shared) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_valid_name(name) && !name.starts_with('.'))
            .collect()
    }

    /// The files of a directory and of those below it.
    fn list(&mut self, directory: &Path) -> Listing {
        let mut listing = Listing::new();
        if self.merging == Merging::Theirs {
            let path = directory.join(MERGED);
            if let Ok(metadata) = fs::metadata(&path)
                && metadata.is_file()
                && let Ok(name) = RelativePath::new(MERGED.to_owned())
            {
                let stamp = Stamp::of(&metadata);
                listing.insert(name, Entry { path, stamp });
            }
            return listing;
        }
        let mut directories = vec![(directory.to_owned(), String::new())];
        while let Some((directory, prefix)) = directories.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) => {
                    self.complain(&directory, &format!("cannot be read: {error}"));
                    continue;
                }
            };
            for entry in entries.flatten() {
                self.list_entry(&entry, &prefix, &mut directories, &mut listing);
            }
        }
        listing
    }

    fn list_entry(
        &mut self,
        entry: &fs::DirEntry,
        prefix: &str,
        directories: &mut Vec<(PathBuf, String)>,
        listing: &mut Listing,
    ) {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return self.complain(&path, "is left out: its name is not UTF-8");
        };
        let place = match admit_name(&name).and_then(|()| RelativePath::new(format!("{prefix}{name}"))) {
            Ok(place) => place,
            Err(why) => return self.left_out(&path, why),
        };
        let Ok(kind) = entry.file_type() else { return };
        if kind.is_dir() {
            directories.push((path, format!("{}/", place.as_str())));
            return;
        }
        // A link to a file of a group is that file; one to a directory could lead round in a circle.
        let path = match kind.is_symlink().then(|| self.inside(&path)) {
            None => path,
            Some(Some(target)) => target,
            Some(None) => return self.complain(&path, "is left out: it leads out of the shared files"),
        };
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
        {
            if listing.len() >= MAX_FILES {
                return self.complain(&path, "is left out: the group has too many files");
            }
            let stamp = Stamp::of(&metadata);
            listing.insert(place, Entry { path, stamp });
        }
    }

    /// What a link leads to, if that is a shared file.
    fn inside(&self, link: &Path) -> Option<PathBuf> {
        let target = link.canonicalize().ok()?;
        let shared = self.shared.canonicalize().ok()?;
        target.starts_with(shared).then_some(target)
    }

    fn refresh_group(&mut self, group: &str, listing: &Listing, orders: Option<&(Stamp, Vec<u8>)>) {
        let print = print_of([listing], orders);
        if self.groups.get(group).is_some_and(|found| found.print == print) {
            return;
        }
        let content = match self.merging {
            Merging::Ours => {
                let files = self.read(listing);
                merge_group(group, orders.map(|(_, content)| content.as_slice()), &files)
            }
            Merging::Theirs => match self.read(listing).into_values().next() {
                Some(content) => content,
                None => {
                    self.groups.remove(group);
                    return;
                }
            },
        };
        let path = self.shared.join(group).join(MERGED);
        let before = self.groups.get(group).map(|found| Arc::clone(&found.file));
        let file = self.publish(group, &path, content, before);
        self.groups.insert(group.to_owned(), Found { print, file });
    }

    fn refresh_list(
        &mut self,
        list: &[String],
        listings: &BTreeMap<String, Listing>,
        orders: Option<&(Stamp, Vec<u8>)>,
    ) {
        let name = multigroup_name(list);
        let directory = self.multigroups.join(&name);
        let key = list.join(",");
        let theirs = (self.merging == Merging::Theirs).then(|| self.list(&directory));
        let parts: Vec<&Listing> = match &theirs {
            Some(listing) => vec![listing],
            None => list.iter().filter_map(|group| listings.get(group)).collect(),
        };
        let print = print_of(parts.iter().copied(), orders);
        if self.lists.get(&key).is_some_and(|found| found.print == print) {
            return;
        }
        let files: Vec<GroupFiles> = parts.into_iter().map(|listing| self.read(listing)).collect();
        let content = match self.merging {
            Merging::Ours => {
                let named: Vec<_> = list.iter().map(String::as_str).zip(&files).collect();
                merge_groups(&name, orders.map(|(_, content)| content.as_slice()), &named)
            }
            Merging::Theirs => match files.into_iter().next().and_then(|files| files.into_values().next()) {
                Some(content) => content,
                None => return,
            },
        };
        if self.merging == Merging::Ours
            && let Err(error) = fs::create_dir_all(&directory)
        {
            self.complain(&directory, &format!("cannot be made: {error}"));
        }
        let before = self.lists.get(&key).map(|found| Arc::clone(&found.file));
        let file = self.publish(&key, &directory.join(MERGED), content, before);
        self.lists.insert(key, Found { print, file });
    }

    /// Reads the files of a listing, as far as they can be pushed.
    fn read(&mut self, listing: &Listing) -> GroupFiles {
        let mut files = GroupFiles::new();
        let mut room = MAX_GROUP_LEN;
        for (name, entry) in listing {
            if entry.stamp.len > room {
                self.complain(&entry.path, "is left out: the group's files are too large together");
                continue;
            }
            match read_no_link(&entry.path) {
                Ok(content) => match admit_content(&content) {
                    Ok(()) => {
                        room = room.saturating_sub(content.len() as u64);
                        files.insert(name.clone(), content);
                    }
                    Err(why) => self.left_out(&entry.path, why),
                },
                // It went away just now.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    self.complain(&entry.path, &format!("is left out, it cannot be read: {error}"));
                }
            }
        }
        files
    }

    /// Keeps what has not changed, and puts a copy of what has where stock programs look.
    fn publish(
        &mut self,
        what: &str,
        path: &Path,
        content: Vec<u8>,
        before: Option<Arc<MergedFile>>,
    ) -> Arc<MergedFile> {
        let file = MergedFile::of(content);
        if let Some(before) = before.filter(|before| before.sum == file.sum) {
            return before;
        }
        info!(
            group = what,
            sum = file.sum,
            bytes = file.content.len(),
            "shared files are merged"
        );
        let is_there = || fs::read(path).is_ok_and(|content| content == file.content);
        if self.merging == Merging::Ours
            && !is_there()
            && let Err(error) = replace(path, &file.content)
        {
            let text = format!("cannot be written, agents get the file all the same: {error}");
            self.complain(path, &text);
        }
        Arc::new(file)
    }

    fn make_group(&mut self, group: &str) {
        let directory = self.shared.join(group);
        match fs::create_dir(&directory) {
            Ok(()) => {
                info!(group, "group is made, since an agent needs it");
                if let Err(error) = fs::write(directory.join(AGENT_CONF), EMPTY_AGENT_CONF) {
                    self.complain(&directory, &format!("has no {AGENT_CONF}: {error}"));
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                let text = format!("cannot be made: {error}; make it with `muster-control group create {group}`");
                self.complain(&directory, &text);
            }
        }
    }

    fn remove_unused_lists(&mut self, lists: &BTreeSet<Vec<String>>) {
        let used: BTreeSet<String> = lists.iter().map(|list| multigroup_name(list)).collect();
        let Ok(entries) = fs::read_dir(&self.multigroups) else {
            return;
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if is_multigroup_name(&name) && !used.contains(&name) {
                let directory = entry.path();
                // Nothing else is in it, unless somebody put it there: then it stays.
                let _ = fs::remove_file(directory.join(MERGED));
                let _ = fs::remove_dir(&directory);
            }
        }
    }

    fn left_out(&mut self, path: &Path, why: LeftOut) {
        if why.is_surprising() {
            self.complain(path, &format!("is left out: {why}"));
        }
    }

    /// Says it once.
    fn complain(&mut self, path: &Path, what: &str) {
        // Enough to tell that something is wrong; a broken disk must not fill memory.
        const MAX_COMPLAINTS: usize = 1000;
        if self.complaints.len() < MAX_COMPLAINTS && self.complaints.insert(format!("{} {what}", path.display())) {
            warn!(path = %path.display(), reason = what, "trouble with a shared file");
        }
    }
}

fn files_of<'a, C>(found: impl IntoIterator<Item = (&'a String, &'a Found)>) -> C
where
    C: FromIterator<(String, Arc<MergedFile>)>,
{
    found
        .into_iter()
        .map(|(name, found)| (name.clone(), Arc::clone(&found.file)))
        .collect()
}

fn print_of<'a>(listings: impl IntoIterator<Item = &'a Listing>, orders: Option<&(Stamp, Vec<u8>)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    orders.map(|(stamp, _)| stamp).hash(&mut hasher);
    for listing in listings {
        listing.len().hash(&mut hasher);
        for (path, entry) in listing {
            path.as_str().hash(&mut hasher);
            entry.stamp.hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// The file itself: should a link have taken its place since it was listed, it is not followed.
fn read_no_link(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// The whole file or the old one; never a part.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("mg.new");
    // What another process left there, a link perhaps, is not written to.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
    file.write_all(content)?;
    fs::rename(&new, path).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests;
