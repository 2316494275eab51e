//! `agent restart`, `agent reconnect` and `agent request`: through the stock sockets, as stock tools do it.

use std::{io, os::unix::net::UnixDatagram, path::Path, time::Duration};

use anyhow::Context as _;
use muster_proto::{
    agent::{AgentId, AgentStatus},
    ipc::control::{AgentInfo, Request, Response},
    local::{
        active_response::{Audience, Kind, Order},
        remote,
    },
    paths,
};
use muster_service::exit::{DONE, Exit, FAILED, NOT_PERMITTED, UNREACHABLE};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::{
    cli::{AgentRequest, AgentTargets, OutputFormat},
    context::{self, Context, mismatched},
    output::{self, say},
};

/// What stands in front of orders of an operator, by custom.
const SENDER: &str = "msg_to_agent";
/// The order to restart, as agents from 4.2 on know it. remoted gives older ones and OSSEC's the text that they know.
const RESTART: &[u8] = br#"{"version":1,"origin":{"module":"control"},"command":"restart-wazuh0","parameters":{"extra_args":[],"alert":{}}}"#;
const RECONNECT: &[u8] = b"force_reconnect";
/// Longer than any answer can take: `remoted.response_timeout` is an hour at most, and may begin anew.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4 * 3600);

pub(crate) async fn restart(context: &Context, targets: &AgentTargets) -> anyhow::Result<u8> {
    order(context, targets, Kind::ActiveResponse, RESTART, |_| None).await
}

pub(crate) async fn reconnect(context: &Context, targets: &AgentTargets) -> anyhow::Result<u8> {
    let unable = |agent: &AgentInfo| {
        let is_ossec = agent
            .version
            .as_deref()
            .is_some_and(|version| version.starts_with("OSSEC"));
        is_ossec.then_some("OSSEC's agents know no order to reconnect")
    };
    order(context, targets, Kind::Control, RECONNECT, unable).await
}

async fn order(
    context: &Context,
    targets: &AgentTargets,
    kind: Kind,
    body: &[u8],
    unable: impl Fn(&AgentInfo) -> Option<&'static str>,
) -> anyhow::Result<u8> {
    if targets.all {
        drop_order(kind, Audience::Everyone, body)?;
        say("ordered: every agent that is connected");
        return Ok(DONE);
    }
    let mut client = context.connect("remoted").await?;
    let mut code = DONE;
    for id in &targets.ids {
        let asked = Request::Agent(AgentId::new(id));
        let Response::Agents { agents, .. } = context::ask(&mut client, "remoted", &asked).await? else {
            return Err(mismatched("remoted"));
        };
        let why_not = match agents.first() {
            None => Some("there is no such agent"),
            Some(agent) if agent.status != AgentStatus::Active => Some("it is not connected"),
            Some(agent) => unable(agent),
        };
        match why_not {
            Some(why) => {
                say(format!("cannot order agent {id}: {why}"));
                code = FAILED;
            }
            None => {
                drop_order(kind, Audience::Agent(id.into()), body)?;
                say(format!("ordered: agent {id}"));
            }
        }
    }
    Ok(code)
}

fn drop_order(kind: Kind, audience: Audience<'_>, body: &[u8]) -> anyhow::Result<()> {
    let datagram = Order { audience, kind, body }.to_datagram(SENDER);
    UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(&datagram, paths::ACTIVE_RESPONSE_SOCKET))
        .map(drop)
        .map_err(unreachable)
}

pub(crate) async fn request(context: &Context, arguments: &AgentRequest) -> anyhow::Result<u8> {
    let payload = format!("{} {}", arguments.id, arguments.text.join(" "));
    let mut stream = UnixStream::connect(Path::new(paths::REMOTE_SOCKET))
        .await
        .map_err(unreachable)?;
    let conversation = async {
        stream.write_all(&remote::frame(payload.as_bytes())).await?;
        let mut header = [0; 4];
        match stream.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        let length = remote::payload_len(header).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(Some(answer))
    };
    let answered = timeout(ANSWER_DEADLINE, conversation).await;
    let answer = answered
        .map_err(|_| Exit::new(UNREACHABLE, "remoted does not answer"))?
        .context("asking remoted")?;
    let Some(answer) = answer else {
        return Err(Exit::new(FAILED, format!("there is no agent {}", arguments.id)).into());
    };
    if let Some(error) = answer.strip_prefix(b"err ") {
        let error = output::tame(&String::from_utf8_lossy(error));
        return Err(Exit::new(FAILED, format!("agent {}: {error}", arguments.id)).into());
    }
    match context.output {
        OutputFormat::Text => output::line(&answer)?,
        OutputFormat::Json => {
            let text = String::from_utf8_lossy(&answer);
            let answer = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
            output::json(&json!({ "id": arguments.id, "answer": answer }))?;
        }
    }
    Ok(DONE)
}

fn unreachable(error: io::Error) -> anyhow::Error {
    let exit = match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::new(NOT_PERMITTED, "remoted is not for you to ask"),
        _ => Exit::new(UNREACHABLE, "remoted does not run in this home"),
    };
    anyhow::Error::new(error).context(exit)
}
