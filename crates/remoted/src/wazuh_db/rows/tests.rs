use std::{net::SocketAddr, sync::Arc};

use muster_proto::keys::file;

use super::*;
use crate::{
    roster::agent::SharedState,
    slot::{ConnectionId, Protocol, Route},
};

const NOW: Millis = Millis(1_000_000);

fn rows() -> Rows {
    Rows::new("vm".to_owned(), "undefined".to_owned())
}

fn slot(id: u32) -> Arc<AgentSlot> {
    let line = format!("{id:03} a{id} any {}\n", "k".repeat(64));
    let slot = Arc::new(AgentSlot::new(&file::parse(line.as_bytes()).entries.remove(0)));
    slot.bind(Route::Tcp {
        connection: ConnectionId::new(0, 1),
        peer: peer(),
    });
    slot
}

fn peer() -> SocketAddr {
    "127.0.0.1:7".parse().unwrap()
}

fn startup(slot: &Arc<AgentSlot>, outcome: StartupOutcome) -> News {
    News::Startup {
        slot: Arc::clone(slot),
        at: NOW,
        peer: peer(),
        protocol: Protocol::Tcp,
        outcome,
    }
}

fn accepted(slot: &Arc<AgentSlot>) -> News {
    startup(slot, StartupOutcome::Accepted { version: None })
}

fn keepalive(slot: &Arc<AgentSlot>, sum: &str) -> News {
    let text = format!("Linux |h - Wazuh v4.14.7\n{sum} merged.mg\n");
    News::Keepalive {
        slot: Arc::clone(slot),
        at: NOW,
        peer: peer(),
        protocol: Protocol::Tcp,
        said: slot.say(&text),
    }
}

fn shared(slot: &Arc<AgentSlot>, synced: bool) -> News {
    News::Shared {
        slot: Arc::clone(slot),
        shared: SharedState {
            groups: vec!["default".to_owned()],
            synced: Some(synced),
        },
    }
}

/// The commands of all that is due, each cut behind its name.
fn written(rows: &mut Rows) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(job) = rows.next(NOW + GATHER) {
        all.extend(job.commands.iter().map(|command| short(command)));
        rows.done(&job);
    }
    all
}

fn short(command: &str) -> String {
    let name = command.split(' ').nth(1).unwrap_or_default();
    let word = ["pending", "disconnected", "not synced", "active"]
        .into_iter()
        .find(|word| command.contains(&format!("\"{word}\"")));
    format!("{name} {}", word.unwrap_or("-"))
}

#[test]
fn session_is_written_in_its_order() {
    let (mut rows, agent) = (rows(), slot(5));
    rows.hear(NOW, &accepted(&agent));
    assert!(rows.next(NOW).is_none(), "more may follow");
    assert_eq!(written(&mut rows), ["update-keepalive pending"]);
    rows.hear(NOW, &accepted(&agent));
    rows.hear(NOW, &keepalive(&agent, "x"));
    assert_eq!(
        written(&mut rows),
        ["update-keepalive pending", "update-agent-data not synced"]
    );
    rows.hear(NOW, &News::Shutdown { slot: agent, at: NOW });
    assert_eq!(written(&mut rows), ["update-connection-status disconnected"]);
    assert_eq!(rows.next_due(), None);
}

#[test]
fn same_text_again_is_written_short_and_a_new_one_whole() {
    let (mut rows, agent) = (rows(), slot(5));
    for expected in ["update-agent-data active", "update-keepalive active"] {
        rows.hear(NOW, &keepalive(&agent, "abc"));
        assert_eq!(written(&mut rows), [expected]);
    }
    rows.hear(NOW, &keepalive(&agent, "abd"));
    rows.hear(NOW, &keepalive(&agent, "abe"));
    assert_eq!(written(&mut rows), ["update-agent-data active"], "the latest counts");
    rows.forget_written();
    rows.hear(NOW, &keepalive(&agent, "abe"));
    assert_eq!(written(&mut rows), ["update-agent-data active"]);
}

#[test]
fn keepalive_that_comes_while_one_is_written_is_not_taken_for_it() {
    let (mut rows, agent) = (rows(), slot(5));
    rows.hear(NOW, &keepalive(&agent, "abc"));
    let job = rows.next(NOW + GATHER).unwrap();
    rows.hear(NOW, &keepalive(&agent, "abd"));
    rows.done(&job);
    assert_eq!(written(&mut rows), ["update-agent-data active"]);
}

#[test]
fn file_that_is_another_than_was_written_is_written_again_of_whoever_is_there() {
    let (mut rows, agent) = (rows(), slot(5));
    rows.hear(NOW, &shared(&agent, false));
    rows.hear(NOW, &keepalive(&agent, "abc"));
    assert_eq!(written(&mut rows), ["update-agent-data active"]);
    rows.hear(NOW, &shared(&agent, false));
    assert_eq!(written(&mut rows), ["update-agent-data not synced"]);
    agent.unbind(ConnectionId::new(0, 1));
    rows.hear(NOW, &shared(&agent, true));
    assert_eq!(written(&mut rows), [""; 0]);
}

#[test]
fn refusals_have_their_codes() {
    let (mut rows, agent) = (rows(), slot(10));
    let version = "v4.15.0".to_owned();
    rows.hear(NOW, &startup(&agent, StartupOutcome::RefusedVersion { version }));
    let job = rows.next(NOW + GATHER).unwrap();
    assert_eq!(
        job.commands,
        [r#"global update-status-code {"id":10,"status_code":1,"version":"Wazuh v4.15.0","sync_status":"synced"}"#]
    );
    rows.hear(NOW, &startup(&agent, StartupOutcome::NoVersion));
    assert_eq!(written(&mut rows), ["update-status-code -"]);
}

#[test]
fn what_a_lost_connection_left_is_written_again_unless_newer_news_say_more() {
    let (mut rows, agent) = (rows(), slot(5));
    rows.hear(NOW, &accepted(&agent));
    rows.hear(NOW, &keepalive(&agent, "abc"));
    let job = rows.next(NOW + GATHER).unwrap();
    rows.failed(NOW, job);
    let job = rows.next(NOW + GATHER).unwrap();
    assert_eq!(job.commands.len(), 2);
    rows.hear(
        NOW,
        &News::Shutdown {
            slot: Arc::clone(&agent),
            at: NOW,
        },
    );
    rows.failed(NOW, job);
    assert_eq!(written(&mut rows), ["update-connection-status disconnected"]);
    rows.gone(NOW, &agent, StatusCode::NoKeepalive);
    let job = rows.next(NOW + GATHER).unwrap();
    rows.hear(NOW, &keepalive(&agent, "abc"));
    rows.failed(NOW, job);
    assert_eq!(written(&mut rows), ["update-agent-data active"]);
}

#[test]
fn agent_whose_key_went_has_nothing_written() {
    let (mut rows, agent) = (rows(), slot(5));
    rows.hear(NOW, &keepalive(&agent, "abc"));
    let job = rows.next(NOW + GATHER).unwrap();
    rows.hear(NOW, &keepalive(&agent, "abc"));
    rows.hear(
        NOW,
        &News::KeysReloaded {
            added: Vec::new(),
            changed: Vec::new(),
            removed: vec![agent],
        },
    );
    rows.failed(NOW, job);
    assert_eq!(written(&mut rows), [""; 0]);
    assert_eq!(rows.sizes(), (0, 0));
}

#[test]
fn no_more_waits_than_there_are_agents() {
    let mut rows = rows();
    let agents = [slot(1), slot(2), slot(3)];
    for round in 0..100 {
        for agent in &agents {
            rows.hear(NOW, &accepted(agent));
            rows.hear(NOW, &keepalive(agent, &round.to_string()));
        }
    }
    assert_eq!(rows.sizes(), (3, 3));
}
