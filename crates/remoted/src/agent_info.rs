//! Among stock OSSEC daemons: `queue/agent-info/<name>-<address>`, one file for each agent. Its content is the first
//! line of the last keepalive, its modification time is the sign of life that `agent_control` and monitord go by.
//!
//! A thread of its own writes them, since a disk may take its time. What happens when [`QUEUE`] is full: the file keeps
//! the time of an earlier keepalive, until the next one.

use std::{
    fs::{self, File, FileTimes, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
    time::SystemTime,
};

use nix::fcntl::OFlag;

use crate::slot::{AgentSlot, News};

/// Where the files are. Only OSSEC homes have this directory.
pub const DIRECTORY: &str = "queue/agent-info";
/// Keepalives that may wait to be written.
const QUEUE: usize = 4096;
/// Its readers are in the group.
const MODE: u32 = 0o640;
/// The longest name of a file that Linux allows.
const MAX_NAME_LEN: usize = 255;

/// Where keepalives go in.
pub struct AgentInfo(SyncSender<Sign>);

struct Sign {
    name: String,
    line: String,
}

impl AgentInfo {
    /// Starts the thread, if the home has such a directory. It ends when this is dropped.
    pub fn start(directory: &Path) -> io::Result<Option<Self>> {
        if !directory.is_dir() {
            return Ok(None);
        }
        let (signs, inbox) = sync_channel(QUEUE);
        let directory = directory.to_owned();
        thread::Builder::new()
            .name("agent-info".to_owned())
            .spawn(move || write(&directory, &inbox))?;
        Ok(Some(Self(signs)))
    }

    /// Hears what the roster hears.
    pub fn hear(&self, news: &News) {
        let News::Keepalive { slot, said, .. } = news else {
            return;
        };
        let Some(name) = file_name(slot) else { return };
        let line = said.keepalive().text().lines().next().unwrap_or_default().to_owned();
        match self.0.try_send(Sign { name, line }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => tracing::debug!(agent_id = %slot.id, "agent-info is not up to date"),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

/// The name of an agent's file; `None` for one that cannot have any.
fn file_name(slot: &AgentSlot) -> Option<String> {
    let name = format!("{}-{}", slot.name, slot.address.host_text());
    let fits = name.len() <= MAX_NAME_LEN && !name.starts_with('.') && !name.contains(['/', '\0']);
    fits.then_some(name)
}

fn write(directory: &Path, signs: &Receiver<Sign>) {
    let mut complained = false;
    for Sign { name, line } in signs {
        if let Err(error) = touch(&directory.join(name), &line)
            && !std::mem::replace(&mut complained, true)
        {
            tracing::warn!(%error, directory = %directory.display(), "cannot write agents' signs of life");
        }
    }
}

/// Writes the file if it says something else, and gives it the time of now.
fn touch(path: &Path, line: &str) -> io::Result<()> {
    let content = format!("{line}\n");
    let is_there = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    if is_there && fs::read(path).is_ok_and(|known| known == content.as_bytes()) {
        let now = SystemTime::now();
        let file = File::open(path)?;
        return file.set_times(FileTimes::new().set_accessed(now).set_modified(now));
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    file.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_proto::keys::file;

    use super::*;

    fn slot(name: &str, address: &str) -> AgentSlot {
        let line = format!("001 {name} {address} {}\n", "k".repeat(64));
        AgentSlot::new(&file::parse(line.as_bytes()).entries.remove(0))
    }

    #[test]
    fn files_are_named_by_agent_and_registered_address_without_prefix() {
        assert_eq!(file_name(&slot("web", "any")).as_deref(), Some("web-any"));
        assert_eq!(file_name(&slot("web", "10.1.0.0/16")).as_deref(), Some("web-10.1.0.0"));
        assert_eq!(file_name(&slot("../web", "any")), None);
    }

    #[test]
    fn same_line_again_only_renews_the_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web-any");
        touch(&path, "Linux h - OSSEC HIDS v4.2.0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "Linux h - OSSEC HIDS v4.2.0\n");
        let past = SystemTime::now() - Duration::from_secs(3600);
        File::open(&path)
            .unwrap()
            .set_times(FileTimes::new().set_modified(past))
            .unwrap();
        touch(&path, "Linux h - OSSEC HIDS v4.2.0").unwrap();
        assert!(fs::metadata(&path).unwrap().modified().unwrap() > past + Duration::from_secs(3000));
        touch(&path, "other").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "other\n");
    }

    #[test]
    fn link_in_the_place_of_a_file_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "kept").unwrap();
        let path = directory.path().join("web-any");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(touch(&path, "line").is_err());
        assert_eq!(fs::read_to_string(target).unwrap(), "kept");
    }

    #[test]
    fn home_without_the_directory_has_no_writer() {
        let directory = tempfile::tempdir().unwrap();
        assert!(AgentInfo::start(&directory.path().join("no")).unwrap().is_none());
        assert!(AgentInfo::start(directory.path()).unwrap().is_some());
    }
}
