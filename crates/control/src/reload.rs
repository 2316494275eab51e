//! `reload`

use muster_proto::ipc::control::{Request, Response};
use muster_service::exit::{DONE, code_of};

use crate::{
    cli,
    context::{Context, mismatched},
    daemons,
    output::say,
};

pub(crate) async fn reload(context: &Context, chosen: &cli::Daemons) -> anyhow::Result<u8> {
    // Whether the configuration is good is for the daemon to say: we may not even be allowed to read it.
    let settings = context.settings().ok();
    let mut code = DONE;
    for daemon in daemons::chosen(chosen) {
        let name = daemon.name;
        // Disabled by the new configuration or the old one: if it runs all the same, it is asked.
        let idle = settings.as_ref().and_then(|settings| daemon.idle_because(settings));
        if idle.is_some() && daemon.pid().is_none() {
            continue;
        }
        let outcome = match context.ask(name, &Request::Reload).await {
            Ok(Response::Done(done)) => Ok(done),
            Ok(_) => Err(mismatched(name)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(done) => say(format!("{name}: reloaded, {done}")),
            Err(error) => {
                say(format!("{error:#}"));
                code = code_of(&error);
            }
        }
    }
    Ok(code)
}
