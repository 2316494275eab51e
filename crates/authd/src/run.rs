//! From arguments to a running daemon.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::Context;
use muster_config::Auth;
use muster_proto::paths;
use muster_service::{FileAccess, Running, Startup, clock, outbox, socket};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

use crate::{
    Cli,
    admission::Admission,
    certificate,
    change::EventMaker,
    control::Control,
    counters::Counters,
    enroll::Enroller,
    ledger::{Ledger, Places},
    live::{Live, LiveSettings},
    liveness::Remoted,
    local::{self, LocalSide},
    remote::{self, Gate},
    stale,
    store::Store,
};

/// Connections that the kernel holds until we accept them.
const BACKLOG: i32 = 1024;
/// Descriptors for everything but agents: local clients, control, database, log.
const OWN_DESCRIPTORS: u64 = 1536;
/// Of directories that daemons share.
const SHARED_DIRECTORY_MODE: u32 = 0o1770;
/// What the manager is called when the system does not say.
const FALLBACK_NAME: &str = "localhost";

/// The sockets and settings that the daemon begins with.
struct Doors {
    live: Live,
    tls: Vec<TcpListener>,
    local: UnixListener,
    control: UnixListener,
}

/// The whole life of the daemon.
pub fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
    if certificate::make_if_asked(cli)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut startup = Startup::begin("authd", &cli.common)?;
    // Fails only when a provider is there already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let auth = cli.over(&startup.settings.auth);
    if auth.disabled {
        tracing::info!("enrollment is switched off (no <auth> block, or <disabled>yes</disabled>); nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    let live = Live::new(&startup.settings, auth, None)?;
    allow_descriptors(live.auth.limits.max_connections);
    make_directories(&startup.home)?;
    let doors = Doors {
        tls: listen(&mut startup, &live.auth)?,
        local: startup.stream_socket("auth", paths::AUTH_SOCKET)?,
        control: startup.control_socket()?,
        live,
    };
    for file in [paths::CLIENT_KEYS, paths::AGENTS_TIMESTAMP, paths::ENROLLMENT_DB] {
        startup.own_file(file)?;
    }
    for suffix in ["-wal", "-shm"] {
        startup.own_file(&format!("{}{suffix}", paths::ENROLLMENT_DB))?;
    }
    startup.drop_privileges(FileAccess::new().write(["etc", "queue"]))?;
    let cli = cli.clone();
    startup.run(async move |running| open(running, cli, doors))
}

/// Room for all connections that may be open, those just told to close, and our own files. What the system does not give
/// is missing when accepting: then accepting pauses.
fn allow_descriptors(max_connections: usize) {
    let wanted = u64::try_from(max_connections)
        .unwrap_or(u64::MAX)
        .saturating_mul(2)
        .saturating_add(OWN_DESCRIPTORS);
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
        }
        Ok::<_, nix::Error>(wanted.min(hard))
    };
    match raise() {
        Ok(limit) if limit < wanted => {
            tracing::warn!(
                limit,
                wanted,
                "there may not be enough file descriptors for all connections"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors"),
    }
}

/// `queue/sockets` and `queue/db`, which a new home may lack. Daemons of several users share them: group and sticky bit
/// let each make its own files and none touch another's.
fn make_directories(home: &Path) -> anyhow::Result<()> {
    for path in ["queue/sockets", "queue/db"] {
        if !Path::new(path).is_dir() {
            make_shared(home, Path::new(path)).with_context(|| format!("making {path}"))?;
        }
    }
    Ok(())
}

fn make_shared(home: &Path, path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)?;
    if nix::unistd::geteuid().is_root() {
        let home = fs::metadata(home)?;
        chown(path, Some(home.uid()), Some(home.gid()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(SHARED_DIRECTORY_MODE))
}

fn listen(startup: &mut Startup, auth: &Auth) -> anyhow::Result<Vec<TcpListener>> {
    if !auth.remote_enrollment {
        return Ok(Vec::new());
    }
    if let Some(listener) = startup.inherited.take_tcp("enrollment")? {
        return Ok(vec![listener]);
    }
    let addresses = match auth.local_ip {
        Some(address) => vec![address],
        None if auth.ipv6 => vec![IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
        None => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
    };
    let bind = |address| socket::bind_tcp(SocketAddr::new(address, auth.port), BACKLOG);
    Ok(addresses.into_iter().map(bind).collect::<Result<_, _>>()?)
}

fn open(running: &mut Running, cli: Cli, doors: Doors) -> anyhow::Result<()> {
    let manager_name = manager_name();
    let node = running.settings.node_name().unwrap_or(&manager_name).to_owned();
    let events = EventMaker { node };
    let counters = Arc::new(Counters::default());
    let now = Instant::now();

    let places = Places {
        keys: paths::CLIENT_KEYS.into(),
        database: paths::ENROLLMENT_DB.into(),
        timestamps: paths::AGENTS_TIMESTAMP.into(),
    };
    let mut ledger = Ledger::open(&places, events.clone(), clock::unix_ms())?;
    if running.settings.nats.leases_ids() {
        ledger.give_only_leased_ids()?;
    }
    let outbox = start_outbox(running, places.database)?;
    let policy = doors.live.store_policy(&manager_name);
    let (store, store_end) =
        Store::start(ledger, policy, Arc::clone(&counters), outbox.clone()).context("starting the store")?;

    log_password(&doors.live);
    let admission = Arc::new(Mutex::new(Admission::new(doors.live.limits(), now)));
    let (live, live_settings) = watch::channel(Arc::new(doors.live));
    let until_told = watch_remoted(running, &store, &live_settings, &counters);
    let enroller = Arc::new(Enroller::new(
        store.clone(),
        Remoted::default(),
        until_told,
        events,
        counters,
        now,
    ));

    let control = Control {
        status: running.status_source(),
        reloader: running.reloader(),
        cli,
        live,
        enroller: Arc::clone(&enroller),
        admission: Arc::clone(&admission),
        outbox,
        listening: listening(&doors.tls)?,
        manager_name,
    };
    running.serve_control(doors.control, Arc::new(control))?;

    let mut sides = JoinSet::new();
    let gate = Arc::new(Gate {
        enroller: Arc::clone(&enroller),
        live: live_settings.clone(),
        admission,
    });
    for listener in doors.tls {
        let listener = tokio::net::TcpListener::from_std(listener).context("taking over the enrollment port")?;
        sides.spawn(remote::serve(Arc::clone(&gate), listener, running.stopping()));
    }
    let local = tokio::net::UnixListener::from_std(doors.local).context("taking over queue/sockets/auth")?;
    let local_side = Arc::new(LocalSide {
        enroller,
        live: live_settings,
    });
    sides.spawn(local::serve(local_side, local, running.stopping()));
    running.spawn("enrollment", until_end(sides, store, store_end));
    Ok(())
}

fn start_outbox(running: &Running, database: PathBuf) -> anyhow::Result<outbox::Sender> {
    let options = outbox::SenderOptions {
        database,
        producer: "authd",
        socket: paths::EVENTS_SOCKET.into(),
    };
    let (outbox, _) = outbox::Sender::start(options, running.stopping()).context("starting the outbox")?;
    Ok(outbox)
}

/// Tells remoted of new keys, and asks it who has been away for too long. Gives what is known to be told.
fn watch_remoted(
    running: &mut Running,
    store: &Store,
    live: &LiveSettings,
    counters: &Arc<Counters>,
) -> watch::Receiver<u64> {
    let (told, until_told) = watch::channel(0);
    let announcing = Remoted::default().announce(store.changes(), told);
    let removing = stale::remove_for_ever(store.clone(), Remoted::default(), live.clone(), Arc::clone(counters));
    let stop = running.stopping();
    running.spawn("remoted", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = announcing => {}
            () = removing => {}
        }
        Ok(())
    });
    until_told
}

/// Until both sides have ended; then the store ends, behind everything that was asked for.
async fn until_end(mut sides: JoinSet<()>, store: Store, mut store_end: oneshot::Receiver<()>) -> anyhow::Result<()> {
    tokio::select! {
        _ = &mut store_end => anyhow::bail!("the thread that owns the keys has ended"),
        () = async { while sides.join_next().await.is_some() {} } => {}
    }
    store.stop().await;
    let _ = store_end.await;
    Ok(())
}

/// The name that no agent may have.
fn manager_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| FALLBACK_NAME.to_owned())
}

fn listening(tls: &[TcpListener]) -> anyhow::Result<Vec<String>> {
    let mut listening = Vec::new();
    for listener in tls {
        listening.push(format!(
            "tcp {}",
            listener.local_addr().context("asking for the enrollment port")?
        ));
    }
    listening.push(paths::AUTH_SOCKET.to_owned());
    Ok(listening)
}

fn log_password(live: &Live) {
    let port = live.auth.port;
    match &live.password {
        _ if !live.auth.remote_enrollment => {
            tracing::info!("Port {port} is not opened: remote enrollment is switched off.");
        }
        Some(password) if password.is_random => {
            // The one secret that is logged: without the log nobody would know it, and it ends with this process.
            let password = password.secret.expose();
            tracing::info!(
                "Accepting connections on port {port}. Random password chosen for agent authentication: {password}"
            );
        }
        Some(_) => tracing::info!(
            "Accepting connections on port {port}. Using password specified on file: {}",
            paths::AUTHD_PASS
        ),
        None => tracing::info!("Accepting connections on port {port}. No password required."),
    }
}
