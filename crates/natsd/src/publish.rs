//! From the spool to the broker, on a thread of its own.
//!
//! Over JetStream an event is done when the broker has acknowledged it. What no stream takes yet is told to whoever listens,
//! unless the configuration insists on a stream, and waits for one; only where there is no JetStream an event is done when
//! the broker has read it. While there is no connection nothing is sent, and the spool grows.
//!
//! Each connection has a runtime of its own that goes when the connection is over, with everything the client still
//! held: what is sent next is decided from the spool alone.

mod answer;
mod claims;
pub(crate) mod connection;
pub(crate) mod drift;
pub(crate) mod fence;
pub(crate) mod kv;
mod lane;
pub(crate) mod leases;
mod mirror;
mod pace;
mod session;
pub(crate) mod skew;
pub(crate) mod tls;
mod told;
mod turns;

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_nats::Client;
use muster_config::Nats;
use serde_json::json;
use tokio::{runtime, sync::mpsc};
use tokio_util::sync::CancellationToken;

use self::{
    connection::{News, jitter, pause},
    fence::{Fence, Standing},
    session::{End, Session},
    tls::Peer,
};
use crate::{
    keeper::{Shared, chain},
    status::{Claim, Counters, Link, Report},
};

/// A connection that has held for so long, or over which anything was acknowledged, was a good one.
const SETTLED: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Publisher {
    pub(crate) nats: Nats,
    pub(crate) node: String,
    pub(crate) epoch: u64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) report: Arc<Report>,
    pub(crate) counters: Arc<Counters>,
}

impl Publisher {
    /// Starts the thread; it ends soon after it was told to stop.
    pub(crate) fn start(self, stop: CancellationToken) -> io::Result<thread::JoinHandle<io::Result<()>>> {
        thread::Builder::new()
            .name("publisher".to_owned())
            .spawn(move || self.run(&stop))
    }

    fn run(self, stop: &CancellationToken) -> io::Result<()> {
        let mut failures = 0_u32;
        let mut fence = self.fence();
        let mut met = BTreeMap::new();
        for server in self.nats.servers.iter().cycle() {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let (begun, published) = (Instant::now(), self.counters.events_published_total.value());
            let end = runtime.block_on(self.one_connection(server, &mut fence, &mut met, failures, stop));
            if let Some(room) = &self.shared.owners {
                room.lose_touch();
            }
            let stopped = matches!(end, End::Stopped);
            match end {
                End::Stopped => {}
                End::Lost(why) => {
                    let good = self.counters.events_published_total.value() > published;
                    // A server that takes us in only to throw us out is as good as one that does not.
                    failures = if good || begun.elapsed() >= SETTLED {
                        0
                    } else {
                        failures.saturating_add(1)
                    };
                    self.lost(server, why, failures);
                }
                End::Failed(why) => {
                    failures = failures.saturating_add(1);
                    self.failed(server, why, failures);
                }
            }
            let delay = self.nats.reconnect_delay;
            let waits = (!stopped).then(|| pause(failures, delay, self.nats.max_reconnects, jitter()));
            let stopped = runtime.block_on(wait(waits, stop));
            runtime.shutdown_background();
            if stopped {
                break;
            }
        }
        Ok(())
    }

    /// Only where buckets are used at all.
    fn fence(&self) -> Option<Fence> {
        if self.nats.ownership.is_none() {
            self.nats.bucket()?;
        }
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        match Fence::open(&self.nats.spool.dir, &self.node, self.epoch, host.unwrap_or_default()) {
            Ok(fence) => Some(fence),
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "cannot keep the claim to the name of this manager"
                );
                None
            }
        }
    }

    fn lost(&self, server: &str, why: String, failures: u32) {
        if failures <= 1 || failures.is_multiple_of(100) {
            tracing::warn!(why, failures, "connection to NATS is lost; events wait in the spool");
            self.shared.note("disconnected", json!({"server": server, "why": why}));
        }
        self.report.change(|facts| {
            facts.link = Link::Down(why);
            facts.failures = failures;
        });
    }

    fn failed(&self, server: &str, why: String, failures: u32) {
        // Once for each kind of failure, and then now and then.
        if self.report.read().link != Link::Down(why.clone()) || failures.is_multiple_of(100) {
            tracing::error!(
                error = why,
                failures,
                "cannot connect to NATS; events wait in the spool"
            );
            self.shared
                .note("connect_failed", json!({"server": server, "why": why}));
        }
        self.report.change(|facts| {
            facts.link = Link::Down(why);
            facts.failures = failures;
        });
    }

    async fn one_connection(
        &self,
        server: &str,
        fence: &mut Option<Fence>,
        met: &mut BTreeMap<String, String>,
        failures: u32,
        stop: &CancellationToken,
    ) -> End {
        let peer = Peer::default();
        let connected = tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            connected = connection::connect_noting(&self.nats, &self.node, server, &peer) => connected,
        };
        let (client, mut news) = match connected {
            Ok(connected) => connected,
            Err(error) => return End::Failed(chain(&error)),
        };
        let info = client.server_info();
        let thrown_out = self.report.read().last_error.filter(|_| failures > 0);
        if thrown_out.is_none() {
            tracing::info!(server, version = info.version, "connected to NATS");
        }
        self.counters.nats_connections_total.increment();
        self.report.change(|facts| {
            facts.link = Link::Up;
            facts.server = format!("{server} {} {}", info.server_name, info.version);
            // What it told when it threw us out the last time is not told again.
            facts.last_error.clone_from(&thrown_out);
        });
        let certificate = peer.fingerprint();
        let detail = json!({
            "server": server, "server_name": info.server_name, "server_id": info.server_id, "version": info.version,
            "tls": certificate.is_some(), "certificate_sha256": certificate,
        });
        if let Some(now) = certificate
            && let Some(before) = met.insert(server.to_owned(), now.clone())
            && before != now
        {
            tracing::warn!(server, before, now, "the NATS server has another certificate");
            self.shared.note(
                "certificate_changed",
                json!({"server": server, "before": before, "now": now}),
            );
        }
        if thrown_out.is_none() {
            self.shared.note("connected", detail);
        }
        let standing = tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            standing = self.stand(fence, &client) => standing,
            no_right = no_right_to_names(&mut news) => no_right.map(|()| {
                self.report.change(|facts| facts.claim = Claim::Unfenced);
                None
            }),
        };
        let held = match standing {
            Ok(held) => held,
            Err(why) => return End::Lost(why),
        };
        let mut session = match Session::begin(self, client.clone(), news).await {
            Ok(session) => session,
            Err(why) => return End::Lost(why),
        };
        let Some(fence) = held else {
            return tokio::select! {
                end = session.run(stop) => end,
                never = drift::run(&client, self) => match never {},
                never = claims::run(&client, &self.shared) => match never {},
                never = leases::run(&client, self.fleet(), &self.node) => match never {},
            };
        };
        let end = tokio::select! {
            end = session.run(stop) => end,
            never = drift::run(&client, self) => match never {},
            never = claims::run(&client, &self.shared) => match never {},
            never = leases::run(&client, self.fleet(), &self.node) => match never {},
            why = fence.keep(&client, &self.report) => return End::Lost(why),
            never = mirror::run(&client, &self.shared, &self.node) => match never {},
        };
        if matches!(end, End::Stopped) {
            fence.release(&client).await;
        }
        end
    }

    /// The fleet that ids are leased for, if they are.
    fn fleet(&self) -> Option<&str> {
        let ownership = self.nats.ownership.as_ref().filter(|ownership| ownership.ids)?;
        Some(&ownership.bucket)
    }

    /// Waits until the name of this manager is ours. Nothing when nobody looks after names.
    async fn stand<'f>(&self, fence: &'f mut Option<Fence>, client: &Client) -> Result<Option<&'f mut Fence>, String> {
        let Some(fence) = fence else { return Ok(None) };
        if !client.server_info().jetstream && !self.nats.insists_on_buckets() {
            self.report.change(|facts| facts.claim = Claim::Unfenced);
            return Ok(None);
        }
        loop {
            match fence.stand(client).await? {
                Standing::Held => {
                    self.report.change(|facts| facts.claim = Claim::Held);
                    return Ok(Some(fence));
                }
                Standing::Unfenced => {
                    self.report.change(|facts| facts.claim = Claim::Unfenced);
                    return Ok(None);
                }
                Standing::Taken(why) => {
                    let said = Claim::Taken(why.clone());
                    if !matches!(self.report.read().claim, Claim::Taken(_)) {
                        tracing::error!(why, "nothing is published: the name of this manager is taken");
                        self.shared
                            .note("node_name_taken", json!({"node": self.node, "why": why}));
                    }
                    self.report.change(|facts| facts.claim = said);
                    tokio::time::sleep(fence::BEAT / 2).await;
                }
            }
        }
    }
}

/// Ends when the broker says that we may not look after names, or that the connection is over. It is silent to whoever
/// asks without the right, so that waiting for its answer alone would look like a broker that stands still.
async fn no_right_to_names(news: &mut mpsc::Receiver<News>) -> Result<(), String> {
    loop {
        match news.recv().await {
            Some(News::Lost(why)) => return Err(why),
            Some(News::Error(text)) if text.contains(fence::NODES) && !text.contains(fence::STREAM_INFO) => {
                tracing::info!(error = text, "nobody looks after the names of managers");
                return Ok(());
            }
            Some(news) => tracing::debug!(?news, "NATS tells something while the name is being taken"),
            None => return Err("the client has ended".to_owned()),
        }
    }
}

/// Whether it was told to stop.
async fn wait(pause: Option<Duration>, stop: &CancellationToken) -> bool {
    let Some(pause) = pause else { return true };
    tokio::select! {
        () = stop.cancelled() => true,
        () = tokio::time::sleep(pause) => false,
    }
}
