//! Agents that go away while that is expected.

use muster_proto::ipc::control::{MaintenanceScope, MaintenanceWindow};

use super::*;
use crate::roster::{agent::SharedState, maintenance::Maintenance};

impl Stage {
    fn maintain(&mut self, change: impl FnOnce(&mut Maintenance, u64) -> Vec<MaintenanceWindow>, reason: &str) {
        let mut maintenance = self.roster.maintenance().clone();
        let changed = change(&mut maintenance, self.now.wall_ms / 1000);
        self.roster.set_maintenance(self.now, maintenance, &changed, reason);
    }

    fn open(&mut self, scope: MaintenanceScope, seconds: u64) {
        self.maintain(
            |maintenance, now| vec![maintenance.start(scope, seconds, now).unwrap()],
            "maintenance_started",
        );
    }

    fn join(&mut self, id: &str, group: &str) {
        let slot = self.slot(id);
        let shared = SharedState {
            groups: vec![group.to_owned()],
            synced: None,
        };
        self.news(News::Shared { slot, shared });
    }
}

fn group(name: &str) -> MaintenanceScope {
    MaintenanceScope::Group(name.to_owned())
}

#[test]
fn absence_in_a_window_is_low_and_is_told_in_full_when_the_window_ends() {
    let settings = RosterSettings {
        escalation: ESCALATION.to_vec(),
        ..quiet()
    };
    let mut stage = Stage::with_agents(settings, &["001", "002", "003"]);
    for (id, name) in [("001", "web"), ("002", "web"), ("003", "db")] {
        stage.keepalive(id, WAZUH);
        stage.join(id, name);
    }
    stage.told();
    stage.open(group("web"), 7200);
    stage.shutdown("002");
    stage.wait(s(182));
    let mut health = stage.events(Kind::Health);
    assert_eq!(
        stage.told(),
        [
            "002 active>disconnected maintenance 3",
            "001 active>disconnected maintenance 3",
            "003 active>disconnected keepalive_timeout 8",
        ]
    );
    stage.wait(s(3700));
    assert_eq!(
        stage.told(),
        ["003 disconnected>disconnected keepalive_timeout 9"],
        "nothing else is said again"
    );
    stage.keepalive("002", WAZUH);
    stage.wait(s(1));
    stage.shutdown("002");
    stage.told();
    stage.wait(s(7200 - 182 - 3700));
    health.extend(stage.events(Kind::Health));
    assert_eq!(
        stage.told(),
        [
            "001 disconnected>disconnected keepalive_timeout 8",
            "002 disconnected>disconnected agent_stopped 5",
        ]
    );
    let health: Vec<Value> = health.iter().map(|event| body(event)["health"].clone()).collect();
    assert_eq!(health.len(), 2);
    assert_eq!(health[0]["reason"], "maintenance_started");
    assert_eq!(health[1]["reason"], "maintenance_ended");
    assert_eq!(health[1]["scope"]["group"], "web");
}

#[test]
fn agents_that_come_back_in_time_leave_no_alarm() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.open(MaintenanceScope::All, 600);
    stage.wait(s(300));
    stage.keepalive("001", WAZUH);
    stage.told();
    stage.live(s(400), s(20), &["001"], WAZUH);
    assert_eq!(stage.told(), [""; 0]);
}

#[test]
fn expected_absences_are_no_mass_but_those_that_stay_away_are() {
    let ids = many(40);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut stage = Stage::with_agents(quiet(), &ids);
    for id in &ids {
        stage.keepalive(id, WAZUH);
        stage.join(id, "web");
    }
    stage.open(MaintenanceScope::All, 3600);
    stage.live(s(400), s(20), &ids[20..], WAZUH);
    assert_eq!(stage.events(Kind::Health).len(), 1, "of the window");
    assert!(
        stage
            .told()
            .iter()
            .rev()
            .take(20)
            .all(|line| line.ends_with(">disconnected maintenance 3"))
    );
    stage.maintain(|maintenance, _| maintenance.stop(None), "maintenance_ended");
    stage.live(s(100), s(20), &ids[20..], WAZUH);
    let health: Vec<Value> = stage
        .events(Kind::Health)
        .iter()
        .map(|event| body(event)["health"].clone())
        .collect();
    let reasons: Vec<&str> = health.iter().filter_map(|health| health["reason"].as_str()).collect();
    assert_eq!(reasons, ["maintenance_ended", "mass_expiry", "mass_expiry"]);
    assert_eq!((&health[1]["count"], &health[1]["group"]), (&20.into(), &"web".into()));
    let told = stage.told();
    assert_eq!(told.len(), 20);
    assert!(
        told.iter()
            .all(|line| line.ends_with("disconnected>disconnected keepalive_timeout 5")),
        "{told:?}"
    );
}

#[test]
fn window_that_ended_while_we_were_away_hides_nobody() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.open(MaintenanceScope::Agent(AgentId::new("001")), 600);
    stage.wait(s(200));
    let (rows, _) = stage.roster.take_rows(stage.now, 100);
    let later = Times {
        mono: Millis(1000),
        wall_ms: stage.now.wall_ms + 3_600_000,
    };
    let mut stage = Stage::restored(quiet(), later, rows);
    stage.enroll(&["001"]);
    stage.wait(s(12));
    assert_eq!(stage.told(), ["001 disconnected>disconnected keepalive_timeout 8"]);
    stage.wait(s(60));
    assert_eq!(stage.told(), [""; 0], "once");
}

#[test]
fn conflicts_over_a_key_and_lost_keys_are_never_silenced() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.keepalive("001", WAZUH);
    stage.keepalive("002", WAZUH);
    stage.open(MaintenanceScope::All, 600);
    stage.told();
    let removed = vec![stage.slot("001")];
    stage.news(News::KeysReloaded {
        added: Vec::new(),
        changed: Vec::new(),
        removed,
    });
    assert_eq!(stage.told(), ["001 active>disconnected key_removed 3"]);
    stage.lose_connection("002");
    let lost = stage.events(Kind::Connection);
    assert_eq!(body(&lost[0])["connection"]["alert_level"], 3);
}
