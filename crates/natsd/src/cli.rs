//! The command line and the story of startup.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser};
use muster_config::{EventFormat, Nats, Settings, SpoolFsync};
use muster_proto::paths;
use muster_service::{Common, FileAccess, Running, Startup, clock, ipc};

use crate::{
    control::Control,
    intake,
    keeper::Keeper,
    message::Composer,
    publish::Publisher,
    sequence::Sequencer,
    spool::{Limits, Spool},
    status::{Counters, Link, Report},
};

/// Without a broker the spool is only for looking back.
const HISTORY_BYTES: u64 = 64 * 1024 * 1024;

/// takes events from all daemons and publishes them to NATS
///
/// Events are kept in a spool until NATS has acknowledged them; while NATS is away they wait there. Without a <nats>
/// block in etc/ossec.conf events are only kept for a while, for `muster-control events`.
#[derive(Parser)]
#[command(name = "muster-natsd", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
}

/// The command line, for man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// From arguments to an exit code.
///
/// # Errors
/// What keeps the daemon from running.
pub fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut startup = Startup::begin("natsd", &cli.common)?;
    refuse_what_is_not_there(&startup.settings.nats)?;
    let control = startup.control_socket()?;
    let events = startup.stream_socket("events", paths::EVENTS_SOCKET)?;
    let spool = startup.settings.nats.spool.dir.clone();
    startup.own_directory(&spool.to_string_lossy())?;
    startup.drop_privileges(file_access(&startup.settings.nats))?;
    startup.run(async move |running| start(running, control, events).await)
}

/// An option of trust that this build does not have must not be passed over in silence.
fn refuse_what_is_not_there(nats: &Nats) -> anyhow::Result<()> {
    if !nats.enabled {
        return Ok(());
    }
    let asked = [
        (nats.message_signing, "<message_signing>yes</message_signing>"),
        (!nats.recipients.is_empty(), "<recipient>"),
        (nats.audit_logging, "<audit_logging>yes</audit_logging>"),
        (nats.control.enabled, "<control enabled=\"yes\"/>"),
        (nats.kv.is_some(), "<kv/>"),
        (nats.format != EventFormat::Native, "<format> other than native"),
    ];
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, option)) => {
            bail!("etc/ossec.conf: {option} in <nats> is not available in this release; remove it to start")
        }
        None => Ok(()),
    }
}

fn file_access(nats: &Nats) -> FileAccess {
    let files = [
        &nats.credentials_file,
        &nats.nkey_file,
        &nats.tls_ca,
        &nats.tls_cert,
        &nats.tls_key,
    ];
    FileAccess::new()
        .write([&nats.spool.dir])
        .read(files.into_iter().flatten())
        // The system's root certificates, and what the resolver reads.
        .read(["/etc", "/usr/share", "/run/systemd/resolve"])
}

async fn start(
    running: &mut Running,
    control: std::os::unix::net::UnixListener,
    events: std::os::unix::net::UnixListener,
) -> anyhow::Result<()> {
    let settings = Arc::clone(&running.settings);
    let nats = &settings.nats;
    let node = node_name(&settings);
    let directory = nats.spool.dir.clone();
    let (spool, recovered) = Spool::open(&directory, limits(nats)).context("opening the spool")?;
    let sequencer = Sequencer::open(&directory, &node, &recovered, clock::unix_s()).context("opening the sequence")?;
    if sequencer.state_lost {
        tracing::error!("the state of the sequence was lost: a new epoch begins above what the spool knows");
    }
    tracing::info!(
        epoch = sequencer.epoch,
        last_sequence_before = sequencer.before,
        node,
        "a new epoch begins"
    );
    let composer = Composer {
        prefix: nats.subject_prefix.clone(),
        node: node.clone(),
        source: nats.source.clone(),
        version: settings.muster.manager_version.bare(),
        epoch: sequencer.epoch,
        history: !nats.enabled,
    };
    let (keeper, shared, batches) = Keeper::new(directory, spool, recovered, sequencer, composer);
    let thread = keeper.start().context("starting the spool's thread")?;
    let counters = Arc::new(Counters::default());
    let link = if nats.enabled {
        Link::Down("not yet connected".to_owned())
    } else {
        Link::Off
    };
    let report = Arc::new(Report::new(link));

    let handler = Control {
        status: running.status_source(),
        reloader: running.reloader(),
        shared: Arc::clone(&shared),
        report: Arc::clone(&report),
        counters: Arc::clone(&counters),
        keeper: batches.downgrade(),
        settings: nats.clone(),
    };
    running.serve_control(control, Arc::new(handler))?;

    let events = tokio::net::UnixListener::from_std(events).context("taking over the events socket")?;
    let (stop, intake_shared, intake_counters) = (running.stopping(), Arc::clone(&shared), Arc::clone(&counters));
    running.spawn("intake", async move {
        let (intake_stop, connections_stop) = (stop.clone(), stop);
        ipc::serve_connections(events, intake::MAX_PRODUCERS, intake_stop, move |stream| {
            let served = intake::serve(
                stream,
                Arc::clone(&intake_shared),
                batches.clone(),
                Arc::clone(&intake_counters),
            );
            let stop = connections_stop.clone();
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = served => {}
                }
            }
        })
        .await;
        // With the last sender of batches gone, the thread commits what it has and ends.
        tokio::task::spawn_blocking(move || thread.join())
            .await?
            .ok()
            .context("the spool's thread broke off")
    });

    if nats.enabled {
        let publisher = Publisher {
            nats: nats.clone(),
            node,
            shared,
            report,
            counters,
        };
        let stop = running.stopping();
        running.spawn("publisher", publisher.run(stop));
    }
    Ok(())
}

fn limits(nats: &Nats) -> Limits {
    Limits {
        max_bytes: if nats.enabled {
            nats.spool.max_bytes
        } else {
            nats.spool.max_bytes.min(HISTORY_BYTES)
        },
        max_age_ms: u64::try_from(nats.spool.max_age.as_millis()).unwrap_or(u64::MAX),
        sync: nats.spool.fsync != SpoolFsync::Never,
    }
}

fn node_name(settings: &Settings) -> String {
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    settings
        .node_name()
        .map(str::to_owned)
        .or_else(host)
        .unwrap_or_else(|| "localhost".to_owned())
}
