//! The command line and the story of startup.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use muster_config::{HomeKind, Layout, Nats, Settings, home_kind};
use muster_proto::paths;
use muster_service::{Common, FileAccess, Running, Startup, clock, ipc};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    alert::Alerts,
    audit::{self, Audit},
    bundle, census,
    command::{self, Commander, Doorkeeper},
    control::Control,
    intake,
    keeper::{Keeper, Parts},
    keys::{self, Begun, Keyring, Rules},
    message::Composer,
    neighbours,
    owners::{self, Room},
    provision,
    publish::{self, Publisher, kv::Roll},
    seal::Sealer,
    sequence::{Elsewhere, Sequencer},
    spool::{Limits, Spool},
    status::{Counters, Hearing, Link, Report},
    verify,
};

/// Without a broker the spool is only for looking back.
const HISTORY_BYTES: u64 = 64 * 1024 * 1024;
/// Where managers share their agents: how long producers wait at the start for what NATS says of those.
const OWNERS_PATIENCE: Duration = Duration::from_secs(5);

/// takes events from all daemons and publishes them to NATS
///
/// Events are kept in a spool until NATS has acknowledged them; while NATS is away they wait there. Without a <nats>
/// block in etc/ossec.conf events are only kept for a while, for `muster-control events`.
#[derive(Parser)]
#[command(name = "muster-natsd", version = muster_service::version::version())]
struct Cli {
    #[command(flatten)]
    common: Common,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Verify(verify::command::Verify),
    AuditCheck(audit::command::AuditCheck),
    Provision(provision::Provision),
    Bundle(bundle::Bundle),
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
    match &cli.command {
        Some(Command::Verify(verify)) => return verify.run(&cli.common),
        Some(Command::AuditCheck(check)) => return check.run(&cli.common),
        Some(Command::Provision(provision)) => return provision.run(&cli.common),
        Some(Command::Bundle(bundle)) => return bundle.run(&cli.common),
        None => {}
    }
    let mut startup = Startup::begin("natsd", &cli.common)?;
    let control = startup.control_socket()?;
    let events = startup.stream_socket("events", paths::EVENTS_SOCKET)?;
    let spool = startup.settings.nats.spool.dir.clone();
    startup.own_directory(&spool.to_string_lossy())?;
    let had_key = make_signing_key(&startup)?;
    startup.drop_privileges(file_access(&startup.settings.nats))?;
    startup.run(async move |running| start(running, control, events, had_key).await)
}

/// The first start makes a signing key; it must be readable for the user that the daemon becomes. Whether there was one.
fn make_signing_key(startup: &Startup) -> anyhow::Result<bool> {
    let nats = &startup.settings.nats;
    let mut had_key = false;
    if nats.enabled && nats.message_signing {
        let path = &nats.signing_key;
        let made = keys::create_if_missing(path).with_context(|| {
            let path = path.display();
            format!("cannot make the signing key {path}; `muster-control nats key new` makes it for root")
        })?;
        if made {
            startup.own_file(&path.to_string_lossy())?;
            tracing::info!(path = %path.display(), "made a signing key; consumers must learn its public half");
        }
        had_key = !made;
    }
    Ok(had_key)
}

fn file_access(nats: &Nats) -> FileAccess {
    let files = [
        &nats.credentials_file,
        &nats.nkey_file,
        &nats.tls_ca,
        &nats.tls_cert,
        &nats.tls_key,
    ];
    let signing_key = nats.message_signing.then_some(&nats.signing_key);
    FileAccess::new()
        .write([&nats.spool.dir])
        .write(nats.audit_logging.then_some("logs"))
        .read(files.into_iter().flatten().chain(signing_key))
        // The system's root certificates, and what the resolver reads.
        .read(["/etc", "/usr/share", "/run/systemd/resolve"])
}

async fn start(
    running: &mut Running,
    control: std::os::unix::net::UnixListener,
    events: std::os::unix::net::UnixListener,
    had_key: bool,
) -> anyhow::Result<()> {
    let settings = Arc::clone(&running.settings);
    let nats = &settings.nats;
    let node = node_name(&settings);
    let directory = nats.spool.dir.clone();
    let (spool, recovered) = Spool::open(&directory, limits(nats)).context("opening the spool")?;
    let elsewhere = Elsewhere {
        had_key,
        epoch: known_epoch(nats, &node).await,
    };
    let sequencer = Sequencer::open(&directory, &node, &recovered, elsewhere, clock::unix_s());
    let sequencer = sequencer.context("opening the sequence")?;
    if sequencer.state_lost {
        tracing::error!(
            first_sequence = sequencer.before + 1,
            "the state of the sequence was lost, and perhaps events with it: a new epoch begins"
        );
    }
    tracing::info!(
        epoch = sequencer.epoch,
        last_sequence_before = sequencer.before,
        node,
        "a new epoch begins"
    );
    let now_ms = clock::unix_ms();
    let epoch = sequencer.epoch;
    let begun = if sequencer.state_lost {
        Begun::StateLost
    } else {
        Begun::Start
    };
    let (keyring, first) = if nats.enabled && nats.message_signing {
        let rules = Rules {
            node: node.clone(),
            epoch,
            begun,
            begun_anew: sequencer.begun.clone(),
            trust_key: nats.trust_key.clone(),
            overlap_ms: u64::try_from(nats.key_overlap.as_millis()).unwrap_or(u64::MAX),
        };
        let opened = Keyring::open(&nats.signing_key, &directory, rules, now_ms);
        let (keyring, first) = opened.context("opening the signing key")?;
        (Some(keyring), first)
    } else {
        (None, Vec::new())
    };
    let audit = if nats.enabled && nats.audit_logging {
        let audit = Audit::open(Path::new(audit::FILE), &node, epoch);
        Some(audit.with_context(|| format!("opening {}", audit::FILE))?)
    } else {
        None
    };
    let sealer = Sealer::new(&nats.recipients, &nats.encrypt).context("etc/ossec.conf: <nats>")?;
    let trust = trust(nats, keyring.as_ref());
    tracing::info!(trust, "how events are protected");
    let composer = Composer {
        prefix: nats.subject_prefix.clone(),
        node: node.clone(),
        source: nats.source.clone(),
        version: settings.muster.manager_version.bare(),
        epoch,
        history: !nats.enabled,
        format: nats.format,
        sealer,
        keyring,
    };
    let counters = Arc::new(Counters::default());
    let link = if nats.enabled {
        Link::Down("not yet connected".to_owned())
    } else {
        Link::Off
    };
    let hears = nats.enabled && nats.control.enabled;
    let hearing = if hears {
        Hearing::Down("not yet connected".to_owned())
    } else {
        Hearing::Off
    };
    let report = Arc::new(Report::new(link, hearing));
    report.tell_keys(composer.keyring.as_ref());
    report.change(|facts| {
        facts.wants_buckets = nats.insists_on_buckets() || nats.ownership.is_some();
        if nats.max_reconnects > 0 {
            facts.patience = nats.max_reconnects;
        }
    });
    let doorkeeper = if hears {
        Some(Doorkeeper::new(nats, &node).context("etc/ossec.conf")?)
    } else {
        None
    };
    let (keeper, shared, batches) = Keeper::new(Parts {
        spool,
        recovered,
        sequencer,
        composer,
        audit,
        report: Arc::clone(&report),
        alerts: alerts(&settings, &node)?,
        counters: Arc::clone(&counters),
        roll: (nats.enabled && nats.bucket().is_some()).then(|| Roll::new(&node, epoch)),
        owners: nats.ownership.as_ref().filter(|_| nats.enabled).map(|owners| {
            let room = Room::new(&owners.bucket, &node, epoch);
            Arc::new(room)
        }),
        first,
    });
    let thread = keeper.start().context("starting the spool's thread")?;

    let config = audit::fingerprint(Path::new(paths::CONFIG));
    shared.note("configuration", json!({"file": paths::CONFIG, "sha256": config}));
    let handler = Control {
        config: Mutex::new(config),
        status: running.status_source(),
        reloader: running.reloader(),
        shared: Arc::clone(&shared),
        report: Arc::clone(&report),
        counters: Arc::clone(&counters),
        keeper: batches.downgrade(),
        settings: nats.clone(),
        doorkeeper: doorkeeper.clone(),
        node: node.clone(),
        epoch,
        trust,
        probing: tokio::sync::Mutex::new(()),
    };
    running.serve_control(control, Arc::new(handler))?;

    let events = tokio::net::UnixListener::from_std(events).context("taking over the events socket")?;
    let (stop, intake_shared, intake_counters) = (running.stopping(), Arc::clone(&shared), Arc::clone(&counters));
    running.spawn("intake", async move {
        if let Some(room) = &intake_shared.owners {
            // What waited for us may tell of agents that went to another manager meanwhile.
            tokio::select! {
                () = stop.cancelled() => {}
                () = room.wait_until_read(OWNERS_PATIENCE) => {}
            }
        }
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

    if let Some(gate) = doorkeeper {
        let (tickets, ordered) = mpsc::channel(command::MAX_TICKETS);
        let commander = Commander {
            nats: nats.clone(),
            node: node.clone(),
            epoch,
            gate,
            shared: Arc::clone(&shared),
            report: Arc::clone(&report),
            counters: Arc::clone(&counters),
            tickets,
            enrollments: command::Enrollments::new(shared.followers.clone(), tokio::runtime::Handle::current()),
            service: command::Service::new(&nats.subject_prefix, &node, clock::unix_s()),
        };
        let watched = command::watch(ordered, Arc::clone(&shared), node.clone(), running.stopping());
        running.spawn("tickets", async move {
            watched.await;
            Ok(())
        });
        let thread = commander
            .start(running.stopping())
            .context("starting the commander's thread")?;
        running.spawn("commander", async move {
            let ended = tokio::task::spawn_blocking(move || thread.join()).await?;
            ended
                .ok()
                .context("the commander broke off")?
                .context("hearing requests")
        });
    }

    if let Some(room) = shared.owners.clone() {
        let stop = running.stopping();
        running.spawn("partings", async move {
            owners::let_go(room, stop).await;
            Ok(())
        });
    }
    if shared.roll().is_some() || shared.owners.is_some() {
        let (census_shared, stop) = (Arc::clone(&shared), running.stopping());
        running.spawn("census", async move {
            census::run(census_shared, stop).await;
            Ok(())
        });
    }
    if nats.enabled {
        let (asking_shared, stop) = (Arc::clone(&shared), running.stopping());
        running.spawn("neighbours", async move {
            neighbours::run(asking_shared, stop).await;
            Ok(())
        });
        let publisher = Publisher {
            nats: nats.clone(),
            node,
            epoch,
            shared,
            report,
            counters,
        };
        let thread = publisher
            .start(running.stopping())
            .context("starting the publisher's thread")?;
        running.spawn("publisher", async move {
            let ended = tokio::task::spawn_blocking(move || thread.join()).await?;
            ended.ok().context("the publisher broke off")?.context("publishing")
        });
    }
    Ok(())
}

/// The last epoch, as the audit trail and the bucket of names have it.
async fn known_epoch(nats: &Nats, node: &str) -> Option<u64> {
    if !nats.enabled {
        return None;
    }
    let of_trail = nats
        .audit_logging
        .then(|| audit::last_epoch(Path::new(audit::FILE), node));
    let of_bucket = publish::fence::known_epoch(nats, node).await;
    of_trail.flatten().max(of_bucket)
}

/// How events are protected, in words, for log and status.
fn trust(nats: &Nats, keyring: Option<&Keyring>) -> String {
    let signed = keyring.map_or_else(
        || "not signed".to_owned(),
        |ring| format!("signed with {}", ring.key_id()),
    );
    let sealed = match (nats.encrypt_messages, nats.recipients.len()) {
        (true, 0) => "TLS required, bodies not sealed (no <recipient>)".to_owned(),
        (_, 0) => "bodies not sealed".to_owned(),
        (_, count) => format!("bodies sealed for {count}"),
    };
    format!("{signed}; {sealed}")
}

/// The way to the rules of this manager, if there is one.
fn alerts(settings: &Settings, node: &str) -> anyhow::Result<Option<Alerts>> {
    if !settings.nats.enabled || !settings.nats.local_alerts {
        return Ok(None);
    }
    let is_ossec = match settings.muster.layout {
        Layout::Ossec => true,
        Layout::Wazuh => false,
        Layout::Auto => home_kind(Path::new(".")) == HomeKind::Ossec,
    };
    let path = if is_ossec {
        paths::ANALYSIS_QUEUE_OSSEC
    } else {
        paths::ANALYSIS_QUEUE
    };
    let alerts = Alerts::new(path.into(), node).context("making a socket for alerts")?;
    Ok(Some(alerts))
}

fn limits(nats: &Nats) -> Limits {
    Limits {
        max_bytes: if nats.enabled {
            nats.spool.max_bytes
        } else {
            nats.spool.max_bytes.min(HISTORY_BYTES)
        },
        max_age_ms: u64::try_from(nats.spool.max_age.as_millis()).unwrap_or(u64::MAX),
        sync: nats.spool.fsync,
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
