//! `start`

use muster_service::{
    client::ClientError,
    exit::{DONE, FAILED},
};

use crate::{
    cli,
    context::Context,
    daemons::{self, Daemon},
    output::say,
    spawn::{self, Outcome},
    unit::Unit,
};

pub(crate) async fn start(context: &Context, chosen: &cli::Daemons) -> anyhow::Result<u8> {
    // What is wrong with the configuration is wrong for all of them: it is said once, before any is started.
    let settings = context.settings()?;
    let mut code = DONE;
    for daemon in daemons::chosen(chosen) {
        if let Some(why) = daemon.idle_because(&settings) {
            say(format!("{}: left out, {why}", daemon.name));
            continue;
        }
        let failed = start_one(context, &daemon).await?;
        if code == DONE {
            code = failed;
        }
    }
    Ok(code)
}

async fn start_one(context: &Context, daemon: &Daemon) -> anyhow::Result<u8> {
    let name = daemon.name;
    match context.try_connect(name).await {
        Err(ClientError::Unreachable { .. }) => {}
        _ => {
            say(format!("{name}: is running already"));
            return Ok(DONE);
        }
    }
    if let Some(unit) = Unit::of(name, &context.home) {
        let started = unit.tell("start")?;
        match started {
            true => say(format!("{name}: started by systemd")),
            false => say(format!("{name}: did not start\n  the whole log: {}", unit.log())),
        }
        return Ok(if started { DONE } else { FAILED });
    }
    let (outcome, mut log) = spawn::detached(context, daemon).await?;
    let code = match outcome {
        Outcome::Ready => {
            say(format!("{name}: started"));
            return Ok(DONE);
        }
        Outcome::Ended(status) => {
            say(format!("{name}: did not start ({status})"));
            spawn::code(status)
        }
        Outcome::TooSlow => {
            say(format!(
                "{name}: not ready after {} s, ended again",
                spawn::READY_DEADLINE.as_secs()
            ));
            FAILED
        }
    };
    for line in log.last_lines() {
        say(format!("  {line}"));
    }
    say(format!(
        "  the whole log: {}",
        context.home.join(daemon.log()).display()
    ));
    Ok(code)
}
