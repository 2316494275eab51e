//! What a restart of remoted leaves as it was.

use super::*;

/// What the store gives back after a restart, an hour later.
fn restarted(mut stage: Stage, settings: RosterSettings, lines: &str) -> Stage {
    let (rows, _) = stage.roster.take_rows(stage.now, usize::MAX);
    let now = Times {
        mono: stage.now.mono + s(3600),
        wall_ms: stage.now.wall_ms + 3_600_000,
    };
    let mut stage = Stage::restored(settings, now, rows);
    stage.enroll_lines(lines);
    stage
}

#[test]
fn restart_changes_nothing_and_tells_nothing() {
    let before = four();
    let shown = before.info("001");
    let mut stage = restarted(before, quiet(), FOUR);
    for (id, status) in [
        ("001", AgentStatus::Active),
        ("002", AgentStatus::Pending),
        ("003", AgentStatus::Disconnected),
        ("004", AgentStatus::NeverConnected),
    ] {
        assert_eq!(stage.status(id), status);
    }
    let info = stage.info("001");
    assert_eq!(
        AgentInfo {
            crypto: info.crypto.clone(),
            ..info.clone()
        },
        AgentInfo { missed: 0, ..shown }
    );
    stage.wait(s(179));
    assert_eq!(
        stage.told(),
        [""; 0],
        "nobody is given up before a whole time-out has passed"
    );
    stage.wait(s(3));
    assert_eq!(
        stage.told(),
        [
            "001 active>disconnected keepalive_timeout 8",
            "002 pending>disconnected stuck_pending 5"
        ]
    );
}

#[test]
fn absence_that_a_restart_explains_is_no_alarm_and_any_other_is() {
    let impatient = || RosterSettings {
        policy: Policy {
            timeout: s(90),
            ..quiet().policy
        },
        ..quiet()
    };
    let mut before = four();
    before.enroll_lines("005 agent-005 any 5\n006 agent-006 any 6");
    before.keepalive("005", &WAZUH.replacen('\n', "\n\"criticality\":critical\n", 1));
    before.keepalive("006", WAZUH);
    let lines = format!("{FOUR}\n005 agent-005 any 5\n006 agent-006 any 6");
    let mut stage = restarted(before, impatient(), &lines);
    // It was there after the restart, and went then.
    stage.keepalive("006", WAZUH);
    stage.wait(s(100));
    let mut told = stage.told();
    told.retain(|line| !line.contains("stuck_pending"));
    assert_eq!(
        told,
        [
            "001 active>disconnected manager_restart 3",
            "005 active>disconnected keepalive_timeout 12",
            "006 active>disconnected keepalive_timeout 8"
        ]
    );
}

#[test]
fn slow_agent_that_is_given_up_after_a_restart_had_its_time() {
    let mut before = four();
    before.live(s(6000), s(600), &["001"], OSSEC);
    let mut stage = restarted(before, quiet(), FOUR);
    stage.wait(s(1840));
    assert!(
        stage
            .told()
            .contains(&"001 active>disconnected keepalive_timeout 8".to_owned())
    );
}

#[test]
fn agent_that_comes_back_after_a_restart_was_never_away() {
    let mut stage = restarted(four(), settings(), FOUR);
    stage.wait(s(170));
    assert_eq!(stage.sent, [], "it has no place to send to before it was heard");
    stage.keepalive("001", WAZUH);
    stage.live(s(300), s(20), &["001"], WAZUH);
    assert!(stage.told().iter().all(|line| !line.starts_with("001")));
    assert!(!stage.sent.is_empty());
}

#[test]
fn key_removed_while_we_were_away_and_id_given_to_another_are_other_agents() {
    let mut stage = restarted(
        four(),
        quiet(),
        "001 newcomer any 9\n002 agent-002 any 2\n003 agent-003 any 3",
    );
    assert_eq!(stage.status("001"), AgentStatus::NeverConnected);
    assert_eq!(stage.roster.len(), 3);
    let (rows, gone) = stage.roster.take_rows(stage.now, usize::MAX);
    assert_eq!(gone, [AgentId::new("004")]);
    assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["001"]);
}

#[test]
fn empty_key_file_at_the_start_does_not_forget_the_fleet() {
    let mut stage = restarted(four(), quiet(), "");
    assert_eq!(stage.roster.take_rows(stage.now, usize::MAX).1, []);
    stage.enroll_lines(FOUR);
    assert_eq!(stage.status("001"), AgentStatus::Active);
}
