//! What happens to one agent, and what is told of it.

use super::*;

#[test]
fn life_of_an_agent_is_told_in_order() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    assert_eq!(stage.status("001"), AgentStatus::NeverConnected);
    stage.startup("001");
    stage.wait(s(1));
    stage.keepalive("001", WAZUH);
    stage.live(s(600), s(20), &["001"], WAZUH);
    stage.wait(s(200));
    stage.startup("001");
    stage.keepalive("001", WAZUH);
    stage.wait(s(5));
    stage.shutdown("001");
    assert_eq!(
        stage.told(),
        [
            "001 never_connected>pending startup 3",
            "001 pending>active startup 3",
            "001 active>disconnected keepalive_timeout 8",
            "001 disconnected>pending startup 3",
            "001 pending>active reconnected 3",
            "001 active>disconnected agent_stopped 5",
        ]
    );
    assert_eq!(stage.out.notices[0].text, "ossec: Agent stopped: 'agent-001->any'.");
}

#[test]
fn any_valid_message_keeps_an_agent_and_brings_it_back() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.keepalive("001", WAZUH);
    stage.told();
    for _ in 0..20 {
        stage.wait(s(100));
        stage.event("001");
    }
    assert_eq!(stage.told(), [""; 0]);
    stage.wait(s(200));
    stage.event("001");
    stage.event("002");
    assert_eq!(
        stage.told(),
        [
            "001 active>disconnected keepalive_timeout 8",
            "001 disconnected>active reconnected 3",
            "002 never_connected>active startup 3"
        ]
    );
}

#[test]
fn plain_event_leaves_a_pending_agent_pending() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.startup("001");
    stage.event("001");
    assert_eq!(stage.status("001"), AgentStatus::Pending);
}

#[test]
fn pending_agent_that_falls_silent_is_disconnected_and_one_that_talks_is_told_of_once() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.startup("001");
    stage.startup("002");
    stage.told();
    for _ in 0..40 {
        stage.wait(s(10));
        stage.event("002");
    }
    assert_eq!(
        stage.told(),
        [
            "001 pending>disconnected stuck_pending 5",
            "002 pending>pending stuck_pending 5"
        ]
    );
    stage.wait(s(200));
    assert_eq!(stage.told(), ["002 pending>disconnected stuck_pending 5"]);
}

#[test]
fn lost_connection_is_told_once_and_changes_no_status() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.lose_connection("001");
    stage.lose_connection("001");
    assert_eq!(stage.status("001"), AgentStatus::Active);
    let events = stage.events(Kind::Connection);
    assert_eq!(events.len(), 1);
    assert_eq!(body(&events[0])["connection"]["reason"], "connection_lost");
    assert_eq!(body(&events[0])["connection"]["detail"], "closed by the other end");
    stage.keepalive("001", WAZUH);
    stage.lose_connection("001");
    assert_eq!(stage.events(Kind::Connection).len(), 1);
    stage.told();
    stage.wait(s(200));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 8"]);
}

#[test]
fn refused_startup_is_told_once_and_makes_nobody_pending() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.keepalive("002", WAZUH);
    stage.told();
    for _ in 0..3 {
        stage.startup_with(
            "001",
            StartupOutcome::RefusedVersion {
                version: "v5.0.0".to_owned(),
            },
        );
        stage.startup_with("002", StartupOutcome::NoVersion);
        stage.wait(s(10));
    }
    assert_eq!(
        stage.told(),
        [
            "001 never_connected>never_connected version_refused 3",
            "002 active>disconnected version_refused 3"
        ]
    );
    assert_eq!(stage.info("001").version.as_deref(), Some("Wazuh v5.0.0"));
}

#[test]
fn goodbye_of_an_agent_that_is_gone_already_is_no_second_change() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.shutdown("001");
    stage.told();
    stage.shutdown("001");
    assert_eq!(stage.told(), [""; 0]);
    assert_eq!(stage.out.notices.len(), 2);
}

#[test]
fn agent_labelled_critical_is_a_critical_loss() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", &WAZUH.replacen('\n', "\n\"criticality\":critical\n", 1));
    stage.told();
    stage.wait(s(200));
    assert_eq!(stage.told(), ["001 active>disconnected keepalive_timeout 12"]);
}

#[test]
fn agent_that_never_came_is_told_of_after_a_day() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.wait(s(86_000));
    assert_eq!(stage.told(), [""; 0]);
    stage.wait(s(100_000));
    assert_eq!(stage.told(), ["001 never_connected>never_connected never_connected 5"]);
}

#[test]
fn absence_is_said_again_after_an_hour_and_after_a_day_unless_that_is_off() {
    for (escalation, expected) in [(ESCALATION.to_vec(), 2), (Vec::new(), 0)] {
        let said_again = !escalation.is_empty();
        let mut stage = Stage::with_agents(RosterSettings { escalation, ..quiet() }, &["001"]);
        stage.keepalive("001", WAZUH);
        stage.wait(s(181));
        stage.told();
        stage.wait(s(200_000));
        let told = stage.told();
        assert_eq!(told.len(), expected, "{told:?}");
        if said_again {
            assert_eq!(told[0], "001 disconnected>disconnected keepalive_timeout 9");
            assert_eq!(told[1], "001 disconnected>disconnected keepalive_timeout 10");
        }
    }
}

#[test]
fn flapping_agent_says_so_and_raises_one_alert_in_a_quarter_of_an_hour() {
    let hasty = Policy {
        interval: s(20),
        timeout: s(60),
        ..quiet().policy
    };
    let mut stage = Stage::with_agents(
        RosterSettings {
            policy: hasty,
            ..quiet()
        },
        &["001"],
    );
    for _ in 0..6 {
        stage.live(s(60), s(10), &["001"], WAZUH);
        stage.wait(s(62));
    }
    let gone: Vec<Event> = stage
        .events(Kind::StatusChange)
        .into_iter()
        .filter(|event| told(event).contains("timeout"))
        .collect();
    assert_eq!(gone.len(), 6);
    assert!(
        gone.iter().all(|event| told(event).ends_with(" 8")),
        "the level of the body stays"
    );
    assert_eq!(
        gone.iter()
            .filter(|event| event.alert_level >= HIGH_ALERT_THRESHOLD)
            .count(),
        2
    );
    let header = |event: &Event| {
        event
            .headers
            .iter()
            .find(|(name, _)| name == "Muster-Flapping")
            .cloned()
    };
    assert_eq!(header(&gone[1]), None);
    assert!(header(&gone[3]).is_some());
}

#[test]
fn quiet_restart_of_an_agent_is_no_flapping() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.shutdown("001");
    stage.startup("001");
    stage.keepalive("001", WAZUH);
    assert!(
        stage
            .events(Kind::StatusChange)
            .iter()
            .all(|event| event.headers.len() == 1)
    );
}

#[test]
fn removed_key_ends_an_active_agent_and_says_why() {
    let mut stage = four();
    let removed = vec![stage.slot("001"), stage.slot("004")];
    stage.news(News::KeysReloaded {
        added: Vec::new(),
        changed: Vec::new(),
        removed,
    });
    assert_eq!(stage.told(), ["001 active>disconnected key_removed 3"]);
    assert_eq!(stage.roster.len(), 2);
    stage.keepalive("001", WAZUH);
    assert_eq!(stage.told(), [""; 0], "late news of a removed agent brings nobody back");
    assert_eq!(stage.roster.take_rows(stage.now, usize::MAX).1.len(), 2);
    stage.wait(s(600));
}

#[test]
fn key_that_somebody_took_out_of_the_file_is_an_alert() {
    let mut stage = four();
    let taken = vec![stage.slot("001"), stage.slot("003")];
    stage.news(News::KeysTaken(taken.clone()));
    let alerts = stage.events(Kind::StatusChange);
    assert!(alerts.iter().all(|event| event.disconnect_alert().is_some()));
    let told_of: Vec<_> = alerts.iter().map(told).collect();
    assert_eq!(
        told_of,
        ["001 active>disconnected unexpected_removal 12"],
        "003 was away"
    );
    stage.news(News::KeysReloaded {
        added: Vec::new(),
        changed: Vec::new(),
        removed: taken,
    });
    assert_eq!(stage.told(), [""; 0], "it is told once");
    assert_eq!(stage.roster.len(), 2);
}

#[test]
fn changed_key_leaves_the_status_and_news_of_the_old_slot_count_no_more() {
    let mut stage = four();
    let (old, entry) = (
        stage.slot("001"),
        file::parse(b"001 renamed 10.0.0.0/8 99").entries.remove(0),
    );
    let new = Arc::new(AgentSlot::succeed(&entry, &old));
    stage.slots.insert("001".to_owned(), Arc::clone(&new));
    stage.news(News::KeysReloaded {
        added: Vec::new(),
        changed: vec![new],
        removed: Vec::new(),
    });
    assert_eq!(
        (stage.status("001"), stage.info("001").name.as_str()),
        (AgentStatus::Active, "renamed")
    );
    stage.news(News::Shutdown {
        slot: old,
        at: stage.now.mono,
    });
    assert_eq!(stage.status("001"), AgentStatus::Active);
    stage.wait(s(200));
    assert!(
        stage
            .told()
            .contains(&"001 active>disconnected keepalive_timeout 8".to_owned())
    );
}

#[test]
fn pages_are_in_the_order_of_numbers_and_say_whether_more_follow() {
    let mut stage = Stage::new(quiet());
    stage.enroll(&["1000", "002", "010", "abc", "001"]);
    let ids = |page: &[AgentInfo]| page.iter().map(|agent| agent.id.to_string()).collect::<Vec<_>>();
    let (page, more) = stage.roster.page(stage.now, None, 3);
    assert_eq!(
        (ids(&page), more),
        (vec!["001".to_owned(), "002".to_owned(), "010".to_owned()], true)
    );
    let (page, more) = stage.roster.page(stage.now, Some(&AgentId::new("005")), 10);
    assert_eq!(
        (ids(&page), more),
        (vec!["010".to_owned(), "1000".to_owned(), "abc".to_owned()], false)
    );
}

#[test]
fn row_is_stored_once_however_often_it_changed() {
    let mut stage = Stage::with_agents(quiet(), &["001", "002"]);
    stage.roster.take_rows(stage.now, usize::MAX);
    stage.live(s(200), s(20), &["001"], WAZUH);
    let (rows, _) = stage.roster.take_rows(stage.now, usize::MAX);
    assert_eq!(rows.len(), 1);
    assert!(rows[0].inventory.is_some());
    stage.keepalive("001", WAZUH);
    let (rows, _) = stage.roster.take_rows(stage.now, usize::MAX);
    assert!(rows[0].inventory.is_none(), "what it says of itself has not changed");
}

#[test]
fn inventory_is_shown_as_the_agent_reports_it() {
    let mut stage = Stage::with_agents(quiet(), &["001"]);
    let text = "Linux |w |6.1 |#1 |x86_64 [Debian GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7 / 0123\n\"a\":b\nabcd merged.mg\n#\"_agent_ip\":10.0.0.9\n";
    stage.keepalive("001", text);
    let info = stage.info("001");
    let os = info.os.unwrap();
    assert_eq!(
        (os.name.as_deref(), os.platform.as_deref()),
        (Some("Debian GNU/Linux"), Some("debian"))
    );
    assert_eq!(
        (info.merged_sum.as_deref(), info.config_sum.as_deref()),
        (Some("abcd"), Some("0123"))
    );
    assert_eq!(
        (info.reported_ip.as_deref(), info.labels),
        (Some("10.0.0.9"), vec!["\"a\":b".to_owned()])
    );
    assert_eq!(
        (info.peer.as_deref(), info.protocol.as_deref()),
        (Some(PEER), Some("tcp"))
    );
}
