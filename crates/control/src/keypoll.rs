//! `keypoll status` and `keypoll try`.

use std::{path::Path, time::Duration};

use muster_proto::{
    ipc::control::{DaemonStatus, KeyPollReport, Request, Response},
    paths,
};
use muster_service::{
    client::Client,
    exit::{DONE, FAILED},
};
use serde_json::json;

use crate::{
    cli::{KeypollTry, OutputFormat},
    context::{self, Context, OUR_NAME},
    output::{self, tame},
};

const DAEMON: &str = "keypolld";
/// How long a look-up may take when the configuration cannot be read.
const DEADLINE: Duration = Duration::from_secs(130);
/// How much longer than its sources keypolld may take.
const SLACK: Duration = Duration::from_secs(30);

pub(crate) async fn status(context: &Context) -> anyhow::Result<u8> {
    let status = match context.ask(DAEMON, &Request::Status).await? {
        Response::Status(status) => *status,
        _ => return Err(context::mismatched(DAEMON)),
    };
    match context.output {
        OutputFormat::Json => {
            let counters: serde_json::Map<_, _> = status
                .counters
                .iter()
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect();
            let facts: serde_json::Map<_, _> = status
                .facts
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().into()))
                .collect();
            output::json(&json!({
                "ready": status.ready,
                "degraded": status.degraded,
                "queues": status.queues,
                "counters": counters,
                "facts": facts,
            }))?;
        }
        OutputFormat::Text => {
            for line in to_text(&status) {
                output::line(line)?;
            }
        }
    }
    Ok(DONE)
}

fn to_text(status: &DaemonStatus) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(
        status
            .facts
            .iter()
            .map(|(name, value)| format!("{name}: {}", tame(value))),
    );
    lines.extend(status.degraded.iter().map(|why| format!("degraded: {}", tame(why))));
    lines.extend(status.queues.iter().map(|queue| {
        let dropped = match queue.dropped {
            0 => String::new(),
            dropped => format!(", {dropped} dropped"),
        };
        format!(
            "{}: {} of {} {}{dropped}",
            queue.name, queue.used, queue.capacity, queue.unit
        )
    }));
    let counted = status.counters.iter().filter(|(_, value)| *value > 0);
    lines.extend(counted.map(|(name, value)| {
        let name = name.trim_start_matches("keypoll_").trim_end_matches("_total");
        format!("{}: {value}", name.replace('_', " "))
    }));
    lines
}

pub(crate) async fn try_look_up(context: &Context, arguments: &KeypollTry) -> anyhow::Result<u8> {
    let request = Request::KeyPollTry {
        lookup: arguments.lookup.clone(),
        value: arguments.value.clone(),
    };
    // keypolld gives each of its sources as long as the configuration says.
    let limit = match context.settings().ok().and_then(|settings| settings.key_request) {
        Some(settings) => settings.timeout.saturating_mul(2).saturating_add(SLACK),
        None => DEADLINE,
    };
    let path = paths::control_socket(DAEMON);
    let client = Client::connect(Path::new(&path), OUR_NAME, limit).await;
    let mut client = client.map_err(|error| context::explain(DAEMON, error))?;
    let report = match context::ask(&mut client, DAEMON, &request).await? {
        Response::KeyPoll(report) => *report,
        _ => return Err(context::mismatched(DAEMON)),
    };
    match context.output {
        OutputFormat::Json => output::json(&report)?,
        OutputFormat::Text => {
            for line in report_to_text(&report) {
                output::line(line)?;
            }
        }
    }
    Ok(if report.agent.is_some() { DONE } else { FAILED })
}

fn report_to_text(report: &KeyPollReport) -> Vec<String> {
    let mut lines = vec![format!("asked for: {} {}", report.lookup, tame(&report.value))];
    lines.extend(report.errors.iter().map(|error| format!("failed: {}", tame(error))));
    let source = report.source.as_deref().unwrap_or("nobody");
    lines.push(format!("answered by: {source}, in {} ms", report.duration_ms));
    lines.push(match report.reason.as_str() {
        "" => format!("outcome: {}", report.outcome),
        reason => format!("outcome: {}: {}", report.outcome, tame(reason)),
    });
    if let Some(agent) = &report.agent {
        lines.push(format!(
            "agent: {} {} {}, a key of {} characters",
            agent.id, agent.name, agent.ip, agent.key_length
        ));
        lines.push(
            match agent.registered.as_str() {
                "nothing" => "authd has no agent with this id: a request would register it",
                "the same" => "authd has this agent: a request would change nothing",
                "another" => "authd has another agent, or another key, under this id: <force> decides",
                _ => "authd cannot be asked what it has",
            }
            .to_owned(),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use muster_proto::ipc::control::KeyPollAgent;

    use super::*;

    #[test]
    fn a_report_reads_from_question_to_consequence() {
        let report = KeyPollReport {
            lookup: "id".to_owned(),
            value: "001".to_owned(),
            outcome: "found".to_owned(),
            source: Some("exec_path".to_owned()),
            duration_ms: 12,
            errors: vec!["socket: cannot connect to the socket".to_owned()],
            agent: Some(KeyPollAgent {
                id: "001".to_owned(),
                name: "web-01".to_owned(),
                ip: "any".to_owned(),
                key_length: 64,
                registered: "nothing".to_owned(),
            }),
            ..KeyPollReport::default()
        };
        assert_eq!(
            report_to_text(&report),
            [
                "asked for: id 001",
                "failed: socket: cannot connect to the socket",
                "answered by: exec_path, in 12 ms",
                "outcome: found",
                "agent: 001 web-01 any, a key of 64 characters",
                "authd has no agent with this id: a request would register it",
            ]
        );
    }

    #[test]
    fn words_of_the_source_cannot_move_the_cursor() {
        let report = KeyPollReport {
            outcome: "source_error".to_owned(),
            reason: "\x1b[2J".to_owned(),
            ..KeyPollReport::default()
        };
        assert!(report_to_text(&report).concat().contains("\u{fffd}[2J"));
    }
}
