//! `nats status`: how events reach the broker. `nats key`, `nats request`, `nats test`: see the modules.

pub mod key;
pub mod request;
mod test;

use std::collections::BTreeMap;

use clap::Subcommand;
use muster_proto::ipc::control::{Request, Response};
use muster_service::exit::DONE;
use serde_json::json;

use self::key::KeyCommand;
use crate::{
    cli::OutputFormat,
    context::{self, Context},
    output::{self, tame},
};

const DAEMON: &str = "natsd";

/// `nats …`
#[derive(Debug, Subcommand)]
pub enum NatsCommand {
    /// say how events reach the broker: connection, rates, backlog, last acknowledgement, losses, and what is degraded and why
    ///
    /// Rates are those of the last minute, for each stream that anything was published to since natsd has started. Of what was
    /// lost since then, dropped_latest names the latest ranges.
    ///
    /// As JSON: {"ready", "degraded": [], "queues": [], "counters": {}, "facts": {}}.
    Status,
    /// publish a probe, read it back, and say how long each step took, or which one failed and what to do
    ///
    /// The steps: connect (reach the server), tls, log_in (credentials), spool (the probe is numbered, signed and on the
    /// disk), acknowledge (the daemon's own connection has published it), read_back (out of the stream), verify (its
    /// signature). The probe is an event of the manager's health with the reason "probe". The exit code is 0 when it came
    /// back, else 1.
    ///
    /// As JSON: {"server", "server_name", "version", "jetstream", "max_payload", "tls", "subject", "sequence", "waiting",
    /// "legs": [{"leg", "micros", "note"}], "failed": {"leg", "why", "cure"} | null}.
    Test,
    /// list, make, rotate and revoke the keys that events are signed with, and have a trust key vouch for them
    #[command(subcommand)]
    Key(KeyCommand),
    /// send a signed request to a manager and print its reply
    ///
    /// The manager must have <control enabled="yes"> and the key as a <control_key> with the role of the verb: read for
    /// the ones that end in status and summary, destroy for agent.remove and agent.rekey, act for the others. What an
    /// agent makes of an order is published on <prefix>.agent.<id>.control_result, with the ticket of the reply.
    ///
    /// As JSON: {"node", "timestamp", "outcome": "done" | "accepted" | "refused" | "failed", "reason", "text", "ticket",
    /// "data", "kid"}. The exit code is 0 when it was done or accepted, 77 when it was refused, 1 when it failed, 3
    /// without a reply.
    Request(Box<request::Request>),
    /// make a key to sign requests with, and print its public half
    RequestKey(request::RequestKey),
}

pub(crate) async fn nats(context: &Context, command: &NatsCommand) -> anyhow::Result<u8> {
    match command {
        NatsCommand::Status => status(context).await,
        NatsCommand::Test => test::test(context).await,
        NatsCommand::Key(command) => key::key(context, command).await,
        NatsCommand::Request(arguments) => request::request(Some(&context.home), context.output, arguments).await,
        NatsCommand::RequestKey(arguments) => request::new_key(arguments),
    }
}

async fn status(context: &Context) -> anyhow::Result<u8> {
    let status = match context.ask(DAEMON, &Request::Status).await? {
        Response::Status(status) => *status,
        _ => return Err(context::mismatched(DAEMON)),
    };
    match context.output {
        OutputFormat::Json => {
            let counters: BTreeMap<_, _> = status.counters.iter().cloned().collect();
            let facts: BTreeMap<_, _> = status.facts.iter().cloned().collect();
            output::json(&json!({
                "ready": status.ready, "degraded": status.degraded, "queues": status.queues,
                "counters": counters, "facts": facts,
            }))?;
        }
        OutputFormat::Text => {
            for (name, value) in &status.facts {
                output::line(format!("{name}: {}", tame(value)))?;
            }
            for queue in &status.queues {
                let (name, used, capacity, unit) = (&queue.name, queue.used, queue.capacity, &queue.unit);
                output::line(format!(
                    "{name}: {used} of {capacity} {unit}, {} dropped",
                    queue.dropped
                ))?;
            }
            for (name, value) in &status.counters {
                output::line(format!("{name}: {value}"))?;
            }
            for why in &status.degraded {
                output::line(format!("degraded: {}", tame(why)))?;
            }
        }
    }
    Ok(DONE)
}
