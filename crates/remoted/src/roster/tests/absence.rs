//! What the analysis daemon is told in monitord's place.

use super::*;

/// Told 30 s after the status; removed after a day.
fn watched() -> RosterSettings {
    RosterSettings {
        monitor: MonitorSettings {
            alert_after: Some(s(30)),
            delete_after: Some(s(86_400)),
        },
        ..quiet()
    }
}

fn lines(stage: &mut Stage) -> Vec<String> {
    let notices = stage.out.notices.drain(..);
    notices
        .map(|notice| format!("{} {}:{}", notice.slot.id, notice.location, notice.text))
        .collect()
}

#[test]
fn silent_agent_is_told_of_after_the_alert_time_and_once() {
    let mut stage = Stage::with_agents(watched(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(209));
    assert_eq!(lines(&mut stage), [""; 0]);
    stage.wait(s(2));
    let told = ["001 wazuh-monitord:ossec: Agent disconnected: 'agent-001-any'."];
    assert_eq!(lines(&mut stage), told);
    stage.wait(s(10_000));
    assert_eq!(lines(&mut stage), [""; 0]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(211));
    assert_eq!(lines(&mut stage), told, "a second absence is another");
}

#[test]
fn agent_that_is_back_in_time_is_not_told_of() {
    let mut stage = Stage::with_agents(watched(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.wait(s(185));
    assert_eq!(stage.status("001"), AgentStatus::Disconnected);
    stage.keepalive("001", WAZUH);
    stage.wait(s(100));
    assert_eq!(lines(&mut stage), [""; 0]);
}

#[test]
fn goodbye_has_its_own_line_and_no_other() {
    let mut stage = Stage::with_agents(watched(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.shutdown("001");
    stage.wait(s(29));
    assert_eq!(lines(&mut stage), [""; 0], "it may come back in time");
    stage.wait(s(1000));
    assert_eq!(
        lines(&mut stage),
        ["001 wazuh-remoted:ossec: Agent stopped: 'agent-001->any'."]
    );
}

#[test]
fn agent_that_said_goodbye_and_is_back_in_time_is_not_told_of() {
    let mut stage = Stage::with_agents(watched(), &["001"]);
    stage.keepalive("001", WAZUH);
    stage.shutdown("001");
    stage.wait(s(20));
    stage.keepalive("001", WAZUH);
    stage.wait(s(60));
    assert_eq!(lines(&mut stage), [""; 0]);
}

#[test]
fn only_a_removal_after_too_long_an_absence_is_told() {
    for (absence, told) in [
        (s(86_000), None),
        (
            s(86_700),
            Some("001 wazuh-monitord:ossec: Agent removed: 'agent-001-any'."),
        ),
    ] {
        let mut stage = Stage::with_agents(watched(), &["001"]);
        stage.keepalive("001", WAZUH);
        stage.wait(absence);
        lines(&mut stage);
        let removed = vec![stage.slot("001")];
        stage.news(News::KeysReloaded {
            added: Vec::new(),
            changed: Vec::new(),
            removed,
        });
        assert_eq!(lines(&mut stage).first().map(String::as_str), told);
    }
}
