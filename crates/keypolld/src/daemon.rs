//! Putting the parts together.

use std::{
    os::unix::net::{UnixDatagram, UnixListener},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use muster_config::{KeyRequest, Settings};
use muster_proto::paths;
use muster_service::{
    FileAccess, Running, Startup,
    exit::{BAD_CONFIG, Exit},
    outbox::{Sender, SenderOptions},
};
use tokio::sync::watch;

use crate::{
    control::{Control, ControlParts},
    counters::Counters,
    engine::{Engine, EngineParts},
    events::{Events, Store},
    loud::Loud,
    options,
    process::{leftovers, limits},
};

/// What the daemon was started for, or 78 when there is nothing to do.
pub fn key_request(settings: &Settings) -> anyhow::Result<KeyRequest> {
    let wanted = settings.key_request.clone().filter(|request| request.enabled);
    wanted.ok_or_else(|| {
        let off = "key polling is switched off: there is no <key_request> in <auth>, or it has <enabled>no</enabled>";
        Exit::new(BAD_CONFIG, off).into()
    })
}

/// Makes what a new home may lack, and takes over what belongs to us.
pub fn own_files(startup: &Startup) -> anyhow::Result<()> {
    // Where they are, other daemons use them as well: their owner and mode are none of our business.
    for path in ["queue/sockets", "queue/db"] {
        if !Path::new(path).exists() {
            startup.own_directory(path)?;
        }
    }
    ["", "-wal", "-shm"]
        .iter()
        .try_for_each(|ending| startup.own_file(&format!("{}{ending}", paths::KEYPOLL_DB)))
}

/// The files that the daemon needs. A program would inherit the restriction, and which files it needs is the operator's
/// business: with `<exec_path>` there is none.
pub fn file_access(request: &KeyRequest) -> FileAccess {
    let access = FileAccess::new().write(["queue/db"]);
    match request.exec_path {
        Some(_) => access.write(["/"]),
        None => access,
    }
}

/// Starts everything.
pub fn start(
    running: &mut Running,
    home: &Path,
    request: &KeyRequest,
    control: UnixListener,
    intake: UnixDatagram,
) -> anyhow::Result<()> {
    limits::apply(request.max_memory);
    leftovers::adopt();
    let counters = Arc::new(Counters::default());
    let loud = Arc::new(Loud::new(Instant::now()));
    let setup = options::setup(request, home, &loud).map_err(|error| Exit::new(BAD_CONFIG, error.to_string()))?;
    let (setup, setups) = watch::channel(Arc::new(setup));

    let store = Store::open(Path::new(paths::KEYPOLL_DB)).context("opening the store of events")?;
    let options = SenderOptions {
        database: paths::KEYPOLL_DB.into(),
        producer: "keypolld",
        socket: paths::EVENTS_SOCKET.into(),
    };
    let (outbox, _) = Sender::start(options, running.stopping()).context("starting the outbox's thread")?;
    let waker = outbox.clone();
    let (events, writer) = Events::start(store, Arc::clone(&counters), move || waker.wake())
        .context("starting the thread that writes events")?;

    let intake = tokio::net::UnixDatagram::from_std(intake).context("taking over queue/sockets/krequest")?;
    let engine = Engine::new(EngineParts {
        intake,
        setup: setups,
        events: events.clone(),
        writer,
        counters: Arc::clone(&counters),
        loud: Arc::clone(&loud),
    });
    let handler = Control::new(ControlParts {
        status: running.status_source(),
        reloader: running.reloader(),
        home: home.to_owned(),
        setup,
        window: engine.window(),
        counters,
        events,
        outbox,
        loud,
        may_run_programs: request.exec_path.is_some(),
    });
    running.serve_control(control, Arc::new(handler))?;
    running.spawn("engine", engine.run(running.stopping()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_block_or_switched_off_there_is_nothing_to_do() {
        let on = KeyRequest::default();
        let off = KeyRequest {
            enabled: false,
            ..KeyRequest::default()
        };
        for (request, is_on) in [(None, false), (Some(off), false), (Some(on), true)] {
            let settings = Settings {
                key_request: request,
                ..Settings::default()
            };
            assert_eq!(key_request(&settings).is_ok(), is_on);
        }
    }

    #[test]
    fn file_access_is_left_open_for_programs_only() {
        let with = |exec_path: Option<&str>| {
            file_access(&KeyRequest {
                exec_path: exec_path.map(str::to_owned),
                ..KeyRequest::default()
            })
        };
        assert_eq!(with(None), FileAccess::new().write(["queue/db"]));
        assert_ne!(with(Some("/x")), with(None));
    }
}
