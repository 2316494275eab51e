//! `status`

use muster_config::Settings;
use muster_proto::ipc::control::{DaemonStatus, Request, Response};
use muster_service::{
    client::ClientError,
    clock,
    exit::{DONE, NOT_PERMITTED, UNREACHABLE},
};
use serde_json::{Map, Value, json};

use crate::{
    cli::{self, OutputFormat},
    context::Context,
    daemons::{self, Daemon},
    output,
};

/// What could be found out about one daemon.
struct Found {
    daemon: Daemon,
    /// Why it has nothing to do, if so.
    idle: Option<&'static str>,
    state: State,
}

enum State {
    /// It answers.
    Running(Box<DaemonStatus>),
    /// It has a process and gives no answer.
    Unresponsive(String),
    /// We may not ask.
    Forbidden(String),
    /// It has neither.
    Stopped,
}

pub(crate) async fn status(context: &Context, chosen: &cli::Daemons) -> anyhow::Result<u8> {
    // A broken configuration is no reason not to say how the daemons are.
    let settings = context.settings().ok();
    let mut all = Vec::new();
    for daemon in daemons::chosen(chosen) {
        all.push(find_out(context, daemon, settings.as_ref()).await);
    }
    match context.output {
        OutputFormat::Json => output::json(&json!({ "daemons": all.iter().map(to_json).collect::<Vec<_>>() }))?,
        OutputFormat::Text => {
            let now = clock::unix_s();
            for found in &all {
                for line in to_text(found, now) {
                    output::line(line)?;
                }
            }
        }
    }
    if all.iter().any(|found| matches!(found.state, State::Forbidden(_))) {
        return Ok(NOT_PERMITTED);
    }
    let as_it_should = |found: &Found| found.idle.is_some() || matches!(found.state, State::Running(_));
    Ok(if all.iter().all(as_it_should) {
        DONE
    } else {
        UNREACHABLE
    })
}

async fn find_out(context: &Context, daemon: Daemon, settings: Option<&Settings>) -> Found {
    let idle = settings.and_then(|settings| daemon.idle_because(settings));
    let answer = match context.try_connect(daemon.name).await {
        Ok(mut client) => client.ask(&Request::Status).await,
        Err(error) => Err(error),
    };
    let state = match answer {
        Ok(Response::Status(status)) => State::Running(status),
        Ok(_) => State::Unresponsive("it answered something else than was asked".to_owned()),
        Err(ClientError::Unreachable { .. }) if daemon.pid().is_none() => State::Stopped,
        Err(error @ ClientError::NotPermitted { .. }) => State::Forbidden(format!("{:#}", anyhow::Error::new(error))),
        Err(error) => State::Unresponsive(format!("{:#}", anyhow::Error::new(error))),
    };
    Found { daemon, idle, state }
}

fn to_json(found: &Found) -> Value {
    let mut object = Map::new();
    object.insert("daemon".to_owned(), found.daemon.name.into());
    object.insert("enabled".to_owned(), found.idle.is_none().into());
    let state = match &found.state {
        State::Stopped => "stopped",
        State::Unresponsive(error) => {
            object.insert("error".to_owned(), error.as_str().into());
            "unresponsive"
        }
        State::Forbidden(error) => {
            object.insert("error".to_owned(), error.as_str().into());
            "forbidden"
        }
        State::Running(status) => {
            let DaemonStatus {
                daemon: _,
                version,
                pid,
                since,
                ready,
                degraded,
                listening,
                queues,
                counters,
                facts,
            } = &**status;
            let counters: Map<_, _> = counters
                .iter()
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect();
            let facts: Map<_, _> = facts
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().into()))
                .collect();
            let fields = [
                ("version", json!(version)),
                ("pid", json!(pid)),
                ("since", json!(since)),
                ("ready", json!(ready)),
                ("degraded", json!(degraded)),
                ("listening", json!(listening)),
                ("queues", json!(queues)),
                ("counters", counters.into()),
                ("facts", facts.into()),
            ];
            object.extend(fields.map(|(name, value)| (name.to_owned(), value)));
            "running"
        }
    };
    object.insert("state".to_owned(), state.into());
    object.into()
}

fn to_text(found: &Found, now: u64) -> Vec<String> {
    let name = found.daemon.name;
    match &found.state {
        State::Stopped => vec![match found.idle {
            Some(why) => format!("{name:10} not started: {why}"),
            None => format!("{name:10} not running"),
        }],
        State::Unresponsive(error) => vec![format!("{name:10} runs and does not answer: {error}")],
        State::Forbidden(error) => vec![format!("{name:10} is not for you to ask: {error}")],
        State::Running(status) => running(status, now),
    }
}

fn running(status: &DaemonStatus, now: u64) -> Vec<String> {
    let word = if !status.ready {
        "not ready"
    } else if status.degraded.is_empty() {
        "ready"
    } else {
        "degraded"
    };
    let (since, age) = (
        output::time(status.since),
        output::duration(now.saturating_sub(status.since)),
    );
    let mut lines = vec![format!(
        "{:10} {word}, running since {since} ({age}), pid {}, release {}",
        status.daemon, status.pid, status.version
    )];
    lines.extend(status.degraded.iter().map(|why| format!("  ! {why}")));
    if !status.listening.is_empty() {
        lines.push(format!("  listening  {}", status.listening.join(", ")));
    }
    for queue in &status.queues {
        lines.push(format!(
            "  queue      {}: {} of {} {}, {} dropped",
            queue.name, queue.used, queue.capacity, queue.unit, queue.dropped
        ));
    }
    lines.extend(status.facts.iter().map(|(name, value)| format!("  {name:10} {value}")));
    // Counters that count something bad are worth a look; the others are for metrics.
    lines.extend(
        status
            .counters
            .iter()
            .filter(|(name, value)| *value > 0 && is_worrying(name))
            .map(|(name, value)| format!("  counter    {name}: {value}")),
    );
    lines
}

fn is_worrying(counter: &str) -> bool {
    [
        "dropped",
        "refused",
        "rejected",
        "failed",
        "lost",
        "errors",
        "discarded",
    ]
    .iter()
    .any(|word| counter.contains(word))
}

#[cfg(test)]
mod tests {
    use muster_proto::ipc::control::QueueStatus;

    use super::*;

    fn found() -> Found {
        let status = DaemonStatus {
            daemon: "remoted".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 7,
            since: 1_000_000,
            ready: true,
            degraded: vec!["natsd is away".to_owned()],
            listening: vec!["tcp 127.0.0.1:1514".to_owned()],
            queues: vec![QueueStatus {
                name: "outbox".to_owned(),
                used: 3,
                capacity: 1000,
                unit: "events".to_owned(),
                dropped: 0,
            }],
            counters: vec![
                ("messages_total".to_owned(), 9),
                ("messages_dropped_total".to_owned(), 2),
            ],
            facts: vec![("agents".to_owned(), "50".to_owned())],
        };
        Found {
            daemon: daemons::ALL[3],
            idle: None,
            state: State::Running(Box::new(status)),
        }
    }

    #[test]
    fn json_has_counters_and_facts_as_objects() {
        let value = to_json(&found());
        assert_eq!(value["daemon"], "remoted");
        assert_eq!(value["state"], "running");
        assert_eq!(value["counters"]["messages_dropped_total"], 2);
        assert_eq!(value["facts"]["agents"], "50");
        assert_eq!(value["queues"][0]["capacity"], 1000);
    }

    #[test]
    fn text_shows_what_is_wrong_and_not_every_counter() {
        let text = to_text(&found(), 1_000_060).join("\n");
        assert!(text.contains("degraded") && text.contains("! natsd is away"), "{text}");
        assert!(
            text.contains("messages_dropped_total: 2") && !text.contains("messages_total"),
            "{text}"
        );
        assert!(text.contains("(1 min 0 s)"), "{text}");
    }
}
