//! Declared maintenance: agents that go away meanwhile are worth a note and no alarm.
//!
//! Windows are agreed upon between people, so they go by the wall clock. What was silenced is said again when its window
//! ends and the agent is still away, so that no window hides a dead agent for good.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_proto::{
    agent::AgentId,
    event::{Event, Kind, body},
    ipc::control::{MaintenanceScope, MaintenanceWindow},
};
use serde::Serialize;

use super::level;

/// The windows, over restarts.
pub const FILE: &str = "queue/db/maintenance.json";
/// Windows at a time.
const MAX_WINDOWS: usize = 1000;
/// The longest window: what takes longer is no maintenance.
pub const MAX_SECONDS: u64 = 30 * 24 * 3600;

/// All windows that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maintenance {
    windows: Vec<MaintenanceWindow>,
}

impl Maintenance {
    /// The windows that an earlier process left, without those that have ended. A file that makes no sense holds none.
    pub fn load(path: &Path, now_s: u64) -> Self {
        let windows = match fs::read(path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(windows)) => windows,
            Ok(Err(error)) => {
                tracing::error!(%error, path = %path.display(), "cannot read the maintenance windows: there are none");
                Vec::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "cannot read the maintenance windows: there are none");
                Vec::new()
            }
        };
        let mut maintenance = Self { windows };
        maintenance.windows.truncate(MAX_WINDOWS);
        maintenance.take_ended(now_s);
        maintenance
    }

    /// Puts them beside the file and then into its place.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut beside = PathBuf::from(path);
        beside.set_extension("new");
        let mut file = fs::File::create(&beside)?;
        serde_json::to_writer(&mut file, &self.windows)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    }

    /// Opens a window; one of the same scope gives way to it.
    ///
    /// # Errors
    /// Why it is not opened.
    pub fn start(&mut self, scope: MaintenanceScope, seconds: u64, now_s: u64) -> Result<MaintenanceWindow, String> {
        if seconds == 0 || seconds > MAX_SECONDS {
            return Err(format!("a window lasts from 1 s to {} days", MAX_SECONDS / 86_400));
        }
        self.windows.retain(|window| window.scope != scope);
        if self.windows.len() >= MAX_WINDOWS {
            return Err(format!(
                "there are {MAX_WINDOWS} windows already; use groups, or stop some"
            ));
        }
        let window = MaintenanceWindow {
            scope,
            since: now_s,
            until: now_s + seconds,
        };
        self.windows.push(window.clone());
        Ok(window)
    }

    /// Ends the window of a scope, or all of them. Gives those that it ended.
    pub fn stop(&mut self, scope: Option<&MaintenanceScope>) -> Vec<MaintenanceWindow> {
        let ended = self
            .windows
            .extract_if(.., |window| scope.is_none_or(|scope| window.scope == *scope));
        ended.collect()
    }

    /// Takes out the windows whose time is over.
    pub fn take_ended(&mut self, now_s: u64) -> Vec<MaintenanceWindow> {
        self.windows.extract_if(.., |window| window.until <= now_s).collect()
    }

    /// The windows that are open, oldest first.
    pub fn windows(&self) -> &[MaintenanceWindow] {
        &self.windows
    }

    /// Whether an agent's absence is expected.
    pub fn covers(&self, id: &AgentId, groups: &[String]) -> bool {
        self.windows.iter().any(|window| match &window.scope {
            MaintenanceScope::All => true,
            MaintenanceScope::Group(group) => groups.contains(group),
            MaintenanceScope::Agent(agent) => agent == id,
        })
    }
}

/// What is said of a window, on the subject of the manager's health.
#[derive(Serialize)]
struct Body<'a> {
    manager_node: &'a str,
    timestamp: u64,
    /// `maintenance_started` or `maintenance_ended`.
    reason: &'a str,
    scope: &'a MaintenanceScope,
    since: u64,
    until: u64,
    alert_level: u8,
}

/// That a window was opened, or is over.
pub(super) fn event(window: &MaintenanceWindow, reason: &str, now_ms: u64, node: &str) -> Event {
    let body = Body {
        manager_node: node,
        timestamp: now_ms / 1000,
        reason,
        scope: &window.scope,
        since: window.since,
        until: window.until,
        alert_level: level::LOW,
    };
    body::manager_event(Kind::Health, "", now_ms, level::LOW, body::wrapped("health", &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> MaintenanceScope {
        MaintenanceScope::Group(name.to_owned())
    }

    #[test]
    fn window_covers_its_scope_until_it_ends() {
        let (mut maintenance, web) = (Maintenance::default(), ["default".to_owned(), "web".to_owned()]);
        let (one, two) = (AgentId::new("001"), AgentId::new("002"));
        maintenance.start(group("web"), 60, 1000).expect("opens");
        maintenance
            .start(MaintenanceScope::Agent(two.clone()), 30, 1000)
            .expect("opens");
        assert!(maintenance.covers(&one, &web) && !maintenance.covers(&one, &web[..1]));
        assert!(maintenance.covers(&two, &[]));
        assert_eq!(maintenance.take_ended(1029), []);
        assert_eq!(maintenance.take_ended(1030).len(), 1);
        assert!(!maintenance.covers(&two, &[]));
        maintenance.start(MaintenanceScope::All, 10, 1030).expect("opens");
        assert!(maintenance.covers(&two, &[]));
        assert_eq!(maintenance.stop(Some(&MaintenanceScope::All)).len(), 1);
        assert_eq!(maintenance.stop(None).len(), 1);
        assert_eq!(maintenance.windows(), []);
    }

    #[test]
    fn second_window_of_a_scope_takes_the_place_of_the_first() {
        let mut maintenance = Maintenance::default();
        maintenance.start(group("web"), 600, 1000).expect("opens");
        maintenance.start(group("web"), 60, 1000).expect("opens");
        assert_eq!(maintenance.windows().len(), 1);
        assert_eq!(maintenance.take_ended(1060).len(), 1);
    }

    #[test]
    fn no_window_is_empty_or_endless_and_their_number_is_bounded() {
        let mut maintenance = Maintenance::default();
        assert!(maintenance.start(group("a"), 0, 1).is_err());
        assert!(maintenance.start(group("a"), MAX_SECONDS + 1, 1).is_err());
        for number in 0..MAX_WINDOWS {
            maintenance.start(group(&number.to_string()), 60, 1).expect("opens");
        }
        assert!(maintenance.start(group("a"), 60, 1).is_err());
        assert!(maintenance.start(group("5"), 60, 1).is_ok(), "in the place of another");
    }

    #[test]
    fn windows_survive_a_restart_unless_they_ended_meanwhile() {
        let home = tempfile::tempdir().expect("directory");
        let path = home.path().join("maintenance.json");
        assert_eq!(Maintenance::load(&path, 1), Maintenance::default());
        let mut maintenance = Maintenance::default();
        maintenance.start(group("web"), 60, 1000).expect("opens");
        maintenance.start(MaintenanceScope::All, 600, 1000).expect("opens");
        maintenance.save(&path).expect("writes");
        assert_eq!(Maintenance::load(&path, 1059), maintenance);
        assert_eq!(Maintenance::load(&path, 1060).windows().len(), 1);
        fs::write(&path, "[{").expect("writes");
        assert_eq!(Maintenance::load(&path, 1), Maintenance::default());
    }
}
