//! What is critical, and reaches those who follow alerts whatever else the agent does.

use super::{
    conflict::{Conflict, Kept},
    *,
};

/// It comes and goes until the quarter of an hour has had its alert, and is there at the end.
fn flapping(settings: RosterSettings) -> Stage {
    let mut stage = Stage::with_agents(settings, &["001"]);
    for _ in 0..4 {
        stage.keepalive("001", WAZUH);
        stage.wait(s(62));
        assert_eq!(stage.status("001"), AgentStatus::Disconnected);
    }
    stage.keepalive("001", WAZUH);
    stage
}

fn hasty() -> RosterSettings {
    let policy = Policy {
        interval: s(20),
        timeout: s(60),
        ..quiet().policy
    };
    RosterSettings { policy, ..quiet() }
}

fn alerts(stage: &mut Stage) -> Vec<String> {
    let changes = stage.events(Kind::StatusChange);
    changes
        .iter()
        .filter_map(Event::disconnect_alert)
        .map(|alert| told(&alert))
        .collect()
}

#[test]
fn agent_that_was_made_to_flap_first_is_still_missed_when_its_key_is_taken() {
    let mut stage = flapping(hasty());
    assert_eq!(alerts(&mut stage).len(), 2, "those before it flapped");
    stage.news(News::KeysTaken(vec![stage.slot("001")]));
    let removal = stage.events(Kind::StatusChange).remove(0);
    assert!(removal.headers.iter().any(|(name, _)| name == "Muster-Flapping"));
    assert!(removal.disconnect_alert().is_some(), "{removal:?}");
}

#[test]
fn key_used_from_two_places_is_an_alert_that_leaves_the_status_as_it_is() {
    let mut stage = flapping(hasty());
    alerts(&mut stage);
    stage.events(Kind::Connection);
    let since = stage.info("001").since;
    let conflict = Conflict {
        holder: PEER.parse().unwrap(),
        other: "198.51.100.9:50000".parse().unwrap(),
        kept: Kept::First,
    };
    for _ in 0..2 {
        stage.news(News::KeyConflict {
            slot: stage.slot("001"),
            at: stage.now.mono,
            conflict,
        });
    }
    assert_eq!(
        alerts(&mut stage),
        ["001 active>active key_conflict 12"],
        "it is said once"
    );
    let connection = stage.events(Kind::Connection);
    assert_eq!(connection.len(), 1);
    assert_eq!(
        body(&connection[0])["connection"]["other_address"],
        "198.51.100.9:50000"
    );
    assert_eq!(
        (stage.status("001"), stage.info("001").since),
        (AgentStatus::Active, since)
    );
    stage.wait(s(62));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}
