//! Time-outs: of one, of many, and those that must not be.

use super::*;

#[test]
fn timeout_is_noticed_within_a_tick_of_its_time() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(179));
    assert_eq!(stage.status("001"), AgentStatus::Active);
    stage.wait(Duration::from_millis(1100));
    assert_eq!(stage.status("001"), AgentStatus::Disconnected);
    let events = stage.events(Kind::StatusChange);
    let change = &body(events.last().unwrap())["status_change"];
    assert_eq!(
        (&change["missed_keepalives"], &change["alert_level"]),
        (&3.into(), &8.into())
    );
    assert_eq!(change["ip_address"], "192.0.2.7");
    assert_eq!(change["timestamp"], stage.info("001").since.unwrap());
}

#[test]
fn mass_expiry_is_one_summary_and_no_alarm_for_each() {
    let ids = many(50);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut stage = Stage::with_agents(quiet(), &ids);
    ids.iter().for_each(|id| stage.keepalive(id, WAZUH));
    stage.told();
    stage.live(s(260), s(20), &ids[20..], WAZUH);
    let health = stage.events(Kind::Health);
    assert_eq!(health.len(), 2);
    let (first, last) = (body(&health[0])["health"].clone(), body(&health[1])["health"].clone());
    assert_eq!(
        (&first["reason"], &first["count"], &first["confirmed"]),
        (&"mass_expiry".into(), &20.into(), &false.into())
    );
    assert_eq!(
        (&last["count"], &last["active_before"], &last["confirmed"]),
        (&20.into(), &50.into(), &true.into())
    );
    assert_eq!(first["network"], "192.0.2.7/32");
    let told = stage.told();
    assert_eq!(told.len(), 20, "each one is told");
    assert!(
        told.iter()
            .all(|line| line.ends_with("active>disconnected keepalive_timeout 5")),
        "{told:?}"
    );
    stage.wait(s(400));
    let told = stage.told();
    assert_eq!(told.len(), 30);
}

#[test]
fn nobody_is_disconnected_because_we_stood_still() {
    for stall in [s(100), s(3600), s(86_400)] {
        let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
        ["001", "002"].iter().for_each(|id| stage.keepalive(id, WAZUH));
        stage.wait(s(20));
        stage.told();
        stage.jump(stall);
        stage.wait(s(15));
        stage.keepalive("001", WAZUH);
        stage.wait(s(30));
        assert_eq!(stage.told(), [""; 0], "{stall:?}");
        stage.live(s(200), s(20), &["001"], WAZUH);
        assert_eq!(
            stage.told(),
            ["002 active>disconnected keepalive_timeout 8"],
            "{stall:?}"
        );
    }
}

#[test]
fn steps_of_the_wall_clock_decide_nothing() {
    for step in [-100_000_000_i64, 100_000_000] {
        let mut stage = Stage::with_agents(quiet(), &["001"]);
        stage.keepalive("001", WAZUH);
        stage.told();
        stage.now.wall_ms = stage.now.wall_ms.saturating_add_signed(step);
        stage.live(s(600), s(20), &["001"], WAZUH);
        assert_eq!(stage.told(), [""; 0]);
        let heard = stage.info("001").last_heard.unwrap();
        assert_eq!(heard, stage.now.wall_ms / 1000, "shown by the clock as it is now");
    }
}
