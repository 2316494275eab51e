//! `nats test`: what natsd found on the way to the broker and back.

use std::{path::Path, time::Duration};

use muster_proto::{
    ipc::control::{NatsReport, Request, Response},
    paths,
};
use muster_service::{
    client::Client,
    exit::{DONE, FAILED},
};

use super::DAEMON;
use crate::{
    cli::OutputFormat,
    context::{self, Context, OUR_NAME},
    output::{self, tame},
};

/// All steps together, each at its own limit.
const DEADLINE: Duration = Duration::from_secs(120);

pub(super) async fn test(context: &Context) -> anyhow::Result<u8> {
    let path = paths::control_socket(DAEMON);
    let client = Client::connect(Path::new(&path), OUR_NAME, DEADLINE).await;
    let mut client = client.map_err(|error| context::explain(DAEMON, error))?;
    let report = match context::ask(&mut client, DAEMON, &Request::NatsTest).await? {
        Response::NatsTest(report) => *report,
        _ => return Err(context::mismatched(DAEMON)),
    };
    match context.output {
        OutputFormat::Json => output::json(&report)?,
        OutputFormat::Text => {
            for line in lines(&report) {
                output::line(tame(&line))?;
            }
        }
    }
    Ok(if report.failed.is_none() { DONE } else { FAILED })
}

fn lines(report: &NatsReport) -> Vec<String> {
    let mut lines = vec![format!("server: {}", report.server)];
    if !report.version.is_empty() {
        let (name, version, largest) = (&report.server_name, &report.version, report.max_payload);
        let jetstream = if report.jetstream { "JetStream" } else { "no JetStream" };
        lines.push(format!(
            "it is: {name}, version {version}, {jetstream}, messages up to {largest} bytes"
        ));
    }
    lines.extend(report.tls.iter().map(|tls| format!("TLS: {tls}")));
    if report.sequence > 0 {
        lines.push(format!("probe: number {} on {}", report.sequence, report.subject));
    }
    if report.waiting > 0 {
        lines.push(format!("waiting before it: {} events", report.waiting));
    }
    for leg in &report.legs {
        let note = if leg.note.is_empty() {
            String::new()
        } else {
            format!("  {}", leg.note)
        };
        lines.push(format!("{:<12}{:>10} ms{note}", leg.leg, millis(leg.micros)));
    }
    match &report.failed {
        Some(fault) => {
            lines.push(format!("{:<12}failed: {}", fault.leg, fault.why));
            lines.push(format!("what to do: {}", fault.cure));
        }
        None => {
            let all = report.legs.iter().map(|leg| leg.micros).sum();
            lines.push(format!("{:<12}{:>10} ms", "all", millis(all)));
        }
    }
    lines
}

/// Milliseconds with three places.
fn millis(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use muster_proto::ipc::control::{NatsFault, NatsLeg};

    use super::*;

    fn report() -> NatsReport {
        NatsReport {
            server: "nats://127.0.0.1:4222".to_owned(),
            server_name: "xdr".to_owned(),
            version: "2.9.10".to_owned(),
            jetstream: true,
            max_payload: 1_048_576,
            sequence: 7,
            subject: "p.manager.health.n".to_owned(),
            legs: vec![NatsLeg {
                leg: "connect".to_owned(),
                micros: 1_250,
                note: String::new(),
            }],
            ..NatsReport::default()
        }
    }

    #[test]
    fn steps_and_their_sum_are_in_milliseconds() {
        let text = lines(&report()).join("\n");
        assert!(
            text.contains("version 2.9.10, JetStream, messages up to 1048576 bytes"),
            "{text}"
        );
        assert!(text.contains("connect          1.250 ms"), "{text}");
        assert!(text.ends_with("all              1.250 ms"), "{text}");
    }

    #[test]
    fn failed_step_is_named_with_its_cure_and_nothing_is_summed_up() {
        let failed = NatsFault {
            leg: "tls".to_owned(),
            why: "UnknownIssuer".to_owned(),
            cure: "set <tls_ca>".to_owned(),
        };
        let text = lines(&NatsReport {
            failed: Some(failed),
            ..report()
        })
        .join("\n");
        assert!(
            text.ends_with("tls         failed: UnknownIssuer\nwhat to do: set <tls_ca>"),
            "{text}"
        );
        assert!(!text.contains("all  "), "{text}");
    }
}
