//! Agents that went to another manager.

use muster_proto::agent::Reason;

use super::*;

fn since(stage: &Stage) -> u64 {
    let since = stage.roster.agent(stage.now, "001").and_then(|agent| agent.since);
    since.expect("a time") * 1000 + 999
}

#[test]
fn agent_that_is_let_go_leaves_without_a_word_and_may_come_back() {
    let mut stage = Stage::with_agents(
        RosterSettings {
            monitor: MonitorSettings {
                alert_after: Some(s(1)),
                delete_after: None,
            },
            ..quiet()
        },
        &["001"],
    );
    stage.keepalive("001", WAZUH);
    stage.told();
    stage.wait(s(10));
    let since = since(&stage);
    let slot = stage.roster.let_go(stage.now, "001", since).expect("goes");
    assert_eq!(slot.id.as_str(), "001");
    stage.wait(s(4000));
    assert_eq!(stage.told(), [""; 0]);
    assert!(stage.out.notices.is_empty(), "the analysis daemon hears nothing");
    let agent = stage.roster.agent(stage.now, "001").expect("it keeps its key");
    assert_eq!(
        (agent.status, agent.reason),
        (AgentStatus::Disconnected, Some(Reason::Moved))
    );
    stage.startup("001");
    stage.keepalive("001", WAZUH);
    assert_eq!(
        stage.told(),
        ["001 disconnected>pending startup 3", "001 pending>active reconnected 3"]
    );
    assert!(stage.roster.let_go(stage.now, "001", since).is_err(), "it came back");
    assert_eq!(stage.status("001"), AgentStatus::Active);
    assert!(
        stage.roster.let_go(stage.now, "002", u64::MAX).is_err(),
        "there is none"
    );
}
