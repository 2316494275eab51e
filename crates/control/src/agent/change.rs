//! `agent add` and `agent remove`: orders to authd, in the stock JSON of `queue/sockets/auth`.

use std::{io, path::Path, time::Duration};

use anyhow::Context as _;
use base64::{Engine, engine::general_purpose::STANDARD};
use muster_proto::{
    agent::AgentId,
    enrollment::name::{self, MAX_LEN},
    local::auth::{self, Add, Answer, ErrorCode, Request},
    paths,
};
use muster_service::exit::{DONE, Exit, FAILED, NOT_PERMITTED, UNREACHABLE};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use zeroize::Zeroizing;

use crate::{
    cli::{AgentAdd, AgentRemove, OutputFormat},
    context::Context,
    output::{self, say},
};

/// How long authd may take: it asks remoted and syncs the key file.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) async fn add(context: &Context, arguments: &AgentAdd) -> anyhow::Result<u8> {
    let id = arguments
        .id
        .as_deref()
        .map(|id| auth::new_id(id).ok_or_else(|| Exit::new(FAILED, format!("{id} is no id: 1 to 8 digits, not 0"))));
    // authd takes whatever fits into a key line from local programs, as stock does.
    if !name::is_valid_by_hand(arguments.name.as_bytes()) {
        let rule = format!("up to {MAX_LEN} of A-Z a-z 0-9 - _ ., not beginning with a dot");
        return Err(Exit::new(FAILED, format!("{} is no name for an agent: {rule}", arguments.name)).into());
    }
    let request = Request::Add(Box::new(Add {
        name: arguments.name.clone(),
        ip: arguments.ip.clone(),
        id: id.transpose()?,
        key: None,
        groups: arguments.groups.clone(),
        key_hash: None,
        force: None,
    }));
    let agent = match ask(&request).await? {
        Answer::Agent(agent) => agent,
        Answer::Error(code) => return Err(refused(&format!("cannot add {}", arguments.name), code)),
        Answer::Ensured(_) | Answer::Removed => {
            return Err(anyhow::anyhow!("authd answered something else than was asked"));
        }
    };
    let exported = arguments.show_key.then(|| {
        let line = Zeroizing::new(format!("{} {} {} {}", agent.id, agent.name, agent.ip, agent.key));
        Zeroizing::new(STANDARD.encode(line.as_bytes()))
    });
    match context.output {
        OutputFormat::Json => {
            let mut object = json!({ "id": agent.id, "name": agent.name, "ip": agent.ip });
            if let (Some(key), Some(fields)) = (&exported, object.as_object_mut()) {
                fields.insert("key".to_owned(), key.as_str().into());
            }
            output::json(&object)?;
        }
        OutputFormat::Text => {
            output::line(&agent.id)?;
            if let Some(key) = &exported {
                output::line(key.as_str())?;
            }
        }
    }
    Ok(DONE)
}

pub(crate) async fn remove(_: &Context, arguments: &AgentRemove) -> anyhow::Result<u8> {
    let mut code = DONE;
    for id in &arguments.ids {
        let request = Request::Remove {
            id: AgentId::new(id),
            purge: arguments.purge,
        };
        match ask(&request).await? {
            Answer::Removed => say(format!("agent {id} is removed")),
            Answer::Error(error) => {
                say(format!("cannot remove agent {id}: {error}"));
                code = FAILED;
            }
            Answer::Agent(_) | Answer::Ensured(_) => anyhow::bail!("authd answered something else than was asked"),
        }
    }
    Ok(code)
}

fn refused(what: &str, code: ErrorCode) -> anyhow::Error {
    Exit::new(FAILED, format!("{what}: {code}")).into()
}

/// One question and its answer, on a connection of its own, as the stock socket has it.
async fn ask(request: &Request) -> anyhow::Result<Answer> {
    let path = Path::new(paths::AUTH_SOCKET);
    let mut stream = UnixStream::connect(path).await.map_err(unreachable)?;
    let conversation = async {
        stream
            .write_all(&Zeroizing::new(auth::frame(&request.to_payload())))
            .await?;
        let mut header = [0; 4];
        stream.read_exact(&mut header).await?;
        let length = auth::payload_len(header).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut payload = Zeroizing::new(vec![0; length]);
        stream.read_exact(&mut payload).await?;
        Ok::<_, io::Error>(payload)
    };
    let answered = timeout(DEADLINE, conversation).await;
    let payload = answered
        .map_err(|_| Exit::new(UNREACHABLE, "authd does not answer"))?
        .context("asking authd")?;
    Ok(Answer::parse(&payload)?)
}

fn unreachable(error: io::Error) -> anyhow::Error {
    let exit = match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::new(NOT_PERMITTED, "authd is not for you to ask"),
        _ => Exit::new(UNREACHABLE, "authd does not run in this home"),
    };
    anyhow::Error::new(error).context(exit)
}
