//! `agent reset-counter`.

use muster_proto::{
    agent::AgentId,
    ipc::control::{Request, Response},
};
use muster_service::exit::DONE;

use crate::{
    cli::ResetCounter,
    context::{Context, mismatched},
    output::say,
};

pub(crate) async fn reset(context: &Context, arguments: &ResetCounter) -> anyhow::Result<u8> {
    for id in &arguments.ids {
        match context.ask("remoted", &Request::ResetCounter(AgentId::new(id))).await? {
            Response::Done(what) => say(what),
            _ => return Err(mismatched("remoted")),
        }
    }
    Ok(DONE)
}
