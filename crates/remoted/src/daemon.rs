//! Putting the parts together: store, network edge, desk, control socket.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Context;
use muster_config::Settings;
use muster_proto::{local::Layout, paths};
use muster_service::{
    Running, Startup, clock,
    outbox::{Sender, SenderOptions},
};
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{
    agent_info::{self, AgentInfo},
    analysis::AnalysisTarget,
    control::{Control, LocalCounters},
    desk::{Clock, Desk, DeskParts, NEWS_QUEUE},
    edge::{Edge, EdgeParts, Sockets},
    key_requests::KeyRequestQueue,
    local::LocalSockets,
    monitor, options,
    orders::{OrderCounters, Orders},
    reach::Reach,
    requests::{
        figures::Figures,
        registry::RequestIds,
        serve::{RequestCounters, Service, ServiceParts},
    },
    roster::{
        Roster,
        maintenance::{self, Maintenance},
    },
    shared::{Engine, EngineParts},
    slot::Millis,
    store::{Opened, Store, Writer},
    syslog::{self, serve::SyslogParts},
    wazuh_db::{self, writer::StockRows},
};

/// What stock calls the node of a manager that is in no cluster.
const NO_CLUSTER: &str = "undefined";

/// Makes the directories that only remoted writes.
pub fn own_files(startup: &Startup) -> anyhow::Result<()> {
    startup.own_directory(paths::RIDS)?;
    startup.own_directory("queue/db")?;
    startup.own_directory(paths::MULTIGROUPS)?;
    if !Path::new(paths::SHARED).is_dir() {
        startup.own_directory(paths::SHARED)?;
    }
    ["", "-wal", "-shm"]
        .iter()
        .try_for_each(|ending| startup.own_file(&format!("{}{ending}", paths::AGENTS_DB)))
}

/// The ports that are open to others.
pub struct Ports {
    /// For agents.
    pub agents: Sockets,
    /// For syslog.
    pub syslog: Vec<syslog::sockets::Port>,
}

impl Ports {
    /// Binds them, while there may still be the right to do so.
    pub fn bind(settings: &Settings, workers: usize) -> anyhow::Result<Self> {
        Ok(Self {
            agents: Sockets::bind(settings, workers)?,
            syslog: syslog::sockets::bind(settings)?,
        })
    }
}

/// Starts everything, in the order in which one part needs the other.
pub async fn start(running: &mut Running, local: LocalSockets, ports: Ports) -> anyhow::Result<()> {
    let settings = Arc::clone(&running.settings);
    let host = host_name();
    let Opened {
        store,
        rows,
        moved_aside,
    } = Store::open(Path::new(paths::AGENTS_DB)).context("opening the store")?;
    let complaints = moved_aside.map(|path| {
        format!(
            "the store of agents was broken and begins anew; the old one is {}",
            path.display()
        )
    });
    let options = SenderOptions {
        database: paths::AGENTS_DB.into(),
        producer: "remoted",
        socket: paths::EVENTS_SOCKET.into(),
    };
    let (outbox, _) = Sender::start(options, running.stopping()).context("starting the outbox's thread")?;
    let waker = outbox.clone();
    let writer = Writer::start(store, move || waker.wake()).context("starting the store's thread")?;

    let seed = getrandom::u32().map_err(|error| anyhow::anyhow!("the system gives no random number: {error}"))?;
    let clock = Arc::new(Clock::start());
    let request_ids = RequestIds::from(seed);
    let mut roster = Roster::new(
        options::roster_settings(&settings, &host),
        clock.now(),
        rows,
        request_ids.clone(),
    );
    let windows = Maintenance::load(Path::new(maintenance::FILE), clock::unix_s());
    roster.set_maintenance(clock.now(), windows, &[], "");
    let (news_sender, news) = mpsc::channel(NEWS_QUEUE);
    let key_requests = KeyRequestQueue::new(settings.key_request.as_ref(), Instant::now());
    let edge = Edge::start(EdgeParts {
        home: Path::new(""),
        settings: &settings,
        sockets: ports.agents,
        news: news_sender.clone(),
        key_requests: Arc::new(key_requests.clone()),
        unix_seconds: u32::try_from(clock::unix_s()).unwrap_or(u32::MAX),
        request_ids,
    })?;
    let courier = edge.courier();
    let syslog = syslog::serve::start(SyslogParts {
        ports: ports.syslog,
        analysis: AnalysisTarget::new(Path::new(""), settings.muster.layout),
        node: settings.node_name().unwrap_or(&host).to_owned(),
        news: news_sender.clone(),
        stop: running.stopping(),
    });
    let (syslog, syslog_thread) = syslog.context("starting syslog's thread")?.unzip();
    let (engine, shared) = Engine::new(EngineParts {
        home: Path::new(""),
        settings: &settings,
        news: news_sender,
        carrier: edge.carrier(),
    });
    let (tables, registry, layout) = (edge.tables(), edge.registry(), edge.layout());
    let edge = Arc::new(Mutex::new(edge));
    let reach = Arc::new(Reach::new(settings.global.agents_disconnection_time));
    let (request_counters, order_counters) = (Arc::<RequestCounters>::default(), Arc::<OrderCounters>::default());
    let orders = Orders {
        tables: tables.clone(),
        reach: Arc::clone(&reach),
        courier: Arc::clone(&courier),
        layout,
        counters: Arc::clone(&order_counters),
    };
    let lines = Arc::clone(&edge);
    let node = settings.cluster.node_name.clone();
    let stock_rows = StockRows::new(host.clone(), node.unwrap_or_else(|| NO_CLUSTER.to_owned()));
    let agent_info = AgentInfo::start(Path::new(agent_info::DIRECTORY)).context("starting agent-info's thread")?;
    let stock_monitord = monitor::StockMonitord::default();
    let given_up = stock_rows.clone();
    let own_line = Box::new(move |slot: &_, program: &'static str, text: &str| {
        if program == monitor::PROGRAM {
            if stock_monitord.runs(Path::new(paths::RUN), Millis::now()) {
                return;
            }
            if text.starts_with(monitor::DISCONNECTED) {
                given_up.given_up(slot);
            }
        }
        // A line about an agent that stops while we do is lost with us.
        if let Ok(edge) = lines.try_lock() {
            let _ = edge.own_line(slot, program, text);
        }
    });
    let desk = Desk::new(
        roster,
        DeskParts {
            news,
            courier,
            own_line,
            listener: Box::new({
                let (shared, stock_rows) = (shared.clone(), stock_rows.clone());
                move |news| {
                    shared.hear(news);
                    stock_rows.hear(news);
                    if let Some(agent_info) = &agent_info {
                        agent_info.hear(news);
                    }
                }
            }),
            writer,
            clock,
        },
    );
    let (groups, window) = (desk.window(), desk.window());
    let requests = Service::new(ServiceParts {
        registry,
        courier: orders.courier.clone(),
        tables,
        reach: Arc::clone(&reach),
        options: &settings.internal.remoted,
        counters: Arc::clone(&request_counters),
        figures: Figures {
            edge: Arc::clone(&edge),
            settings: Arc::clone(&settings),
            reach: Arc::clone(&reach),
            debug: settings.internal.debug.remoted,
            started: clock::unix_s(),
            requests: Arc::clone(&request_counters),
            orders: Arc::clone(&order_counters),
            groups: Box::new(move |id| {
                let agent = groups.roster().agent(groups.now(), id.as_str())?;
                Some(agent.groups.join(","))
            }),
        },
    });
    running.spawn("key requests", {
        let sending = key_requests
            .clone()
            .send_to(paths::KEY_REQUEST_SOCKET.into(), running.stopping());
        async move {
            sending.await;
            Ok(())
        }
    });
    let handler = Control {
        key_requests,
        status: running.status_source(),
        reloader: running.reloader(),
        settings: Mutex::new(settings),
        window,
        shared,
        stock_rows: stock_rows.clone(),
        edge: Arc::clone(&edge),
        outbox,
        host,
        complaints: complaints.into_iter().collect(),
        reach,
        maintaining: Mutex::new(()),
        local: LocalCounters {
            requests: request_counters,
            orders: order_counters,
            syslog,
        },
    };
    running.serve_control(local.control, Arc::new(handler))?;
    let listener = tokio::net::UnixListener::from_std(local.requests).context("taking over queue/sockets/remote")?;
    let stop = running.stopping();
    running.spawn("requests", async move {
        Arc::new(requests).serve(listener, stop).await;
        Ok(())
    });
    if layout == Layout::Wazuh {
        running.spawn("rows", stock_rows.write_to(wazuh_db::SOCKET.into(), running.stopping()));
    }
    running.spawn("orders", orders.serve(local.orders, running.stopping()));
    running.spawn("shared files", engine.run(running.stopping()));
    running.spawn("desk", desk.run());
    let stop = running.stopping();
    running.spawn("edge", async move {
        stop.cancelled().await;
        // The desk ends when the last worker has told its news.
        spawn_blocking(move || {
            edge.lock().unwrap_or_else(PoisonError::into_inner).stop();
            syslog_thread.map(JoinHandle::join)
        })
        .await?;
        Ok(())
    });
    Ok(())
}

/// What the machine calls itself.
fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "manager".to_owned())
}
