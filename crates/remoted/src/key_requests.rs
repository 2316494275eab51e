//! Asking for keys that we do not have: datagrams to `queue/sockets/krequest`, for keypolld or a stock authd.
//!
//! Strangers cause these requests, one with each message, so this is where they are held back: only here is the address
//! known that a message came from. Each address has a rate of its own. Addresses of datagrams can be made up, those of
//! connections cannot: so the two have tables of their own, and all datagrams together have at most half of what is
//! allowed in all. A flood over UDP, from however many addresses, takes nothing from agents that come over TCP.
//!
//! Workers never wait here. While nobody listens at the socket, requests are not kept at all.

use std::{
    collections::{HashSet, VecDeque},
    io,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use muster_config::{KeyRequest as Settings, Rate as ConfiguredRate};
use muster_proto::{
    agent::AgentId,
    bucket::{KeyedBuckets, Rate, TokenBucket},
    ipc::control::QueueStatus,
};
use tokio::{
    net::UnixDatagram,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    session::{KeyRequest, KeyRequests, Origin},
    slot::Protocol,
};

/// Requests that wait to be sent. When there is no room the newest is dropped; its agent comes again.
const QUEUE: usize = 1024;
/// Addresses of each carrier that have a rate of their own; beyond them new ones share one.
const MAX_ADDRESSES: usize = 16_384;
/// Between two attempts to find somebody at the socket.
const RETRY: Duration = Duration::from_secs(1);
/// How long one request may take to be sent, as stock.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// Between two attempts when the system has no buffers, as stock.
const NO_BUFFERS_PAUSE: Duration = Duration::from_secs(1);

muster_service::counters! {
    /// What became of requests.
    pub struct Counters {
        /// Sent.
        key_requests_sent_total,
        /// Not kept, because nobody listened.
        key_requests_unheard_total,
        /// Beyond the rate of their address.
        key_requests_rate_limited_total,
        /// For ids that no agent can have.
        key_requests_invalid_total,
        /// The same waited already.
        key_requests_merged_total,
        /// No room.
        key_requests_dropped_total,
    }
}

/// The door for the workers. Clones are the same door.
#[derive(Clone, Debug)]
pub struct KeyRequestQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    counters: Counters,
    is_heard: AtomicBool,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<String>,
    known: HashSet<String>,
    gate: Gate,
}

/// Who may ask how often.
#[derive(Debug)]
struct Gate {
    tcp: KeyedBuckets<IpAddr>,
    udp: KeyedBuckets<IpAddr>,
    all_udp: (Rate, TokenBucket),
}

impl Gate {
    fn new(settings: &Settings, now: Instant) -> Self {
        let each = rate(settings.rate_per_address);
        let all = rate(settings.rate_total);
        let half = Rate {
            // A limit must not become none.
            per_second: all.per_second.div_ceil(2),
            burst: (all.burst / 2).max(1),
        };
        Self {
            tcp: KeyedBuckets::new(each, MAX_ADDRESSES, now),
            udp: KeyedBuckets::new(each, MAX_ADDRESSES, now),
            all_udp: (half, TokenBucket::new(half, now)),
        }
    }

    fn lets_through(&mut self, source: IpAddr, protocol: Protocol, now: Instant) -> bool {
        let site = site(source);
        match protocol {
            Protocol::Tcp => self.tcp.take(site, now),
            Protocol::Udp => {
                let (rate, bucket) = &mut self.all_udp;
                self.udp.take(site, now) && bucket.take(*rate, now)
            }
        }
    }
}

/// Whoever has one address of an IPv6 network has all of it.
fn site(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

fn rate(rate: ConfiguredRate) -> Rate {
    Rate {
        per_second: rate.per_second,
        burst: rate.burst.max(1),
    }
}

impl KeyRequests for KeyRequestQueue {
    fn ask(&self, request: KeyRequest<'_>, origin: &Origin) {
        let Shared {
            counters,
            is_heard,
            wake,
            ..
        } = &*self.0;
        if !is_heard.load(Ordering::Relaxed) {
            counters.key_requests_unheard_total.increment();
            return;
        }
        // An empty id is asked for, as stock does: a source of keys may know what to make of `!!`.
        let is_nobodys = |id: &str| !id.is_empty() && AgentId::new(id).number().is_none_or(|number| number == 0);
        if matches!(request, KeyRequest::Id(id) if is_nobodys(id)) {
            counters.key_requests_invalid_total.increment();
            return;
        }
        let mut state = self.state();
        let source = origin.peer().ip();
        if !state.gate.lets_through(source, origin.protocol(), Instant::now()) {
            counters.key_requests_rate_limited_total.increment();
            return;
        }
        if state.waiting.len() >= QUEUE {
            counters.key_requests_dropped_total.increment();
            return;
        }
        let text = request.text();
        if !state.known.insert(text.clone()) {
            counters.key_requests_merged_total.increment();
            return;
        }
        state.waiting.push_back(text);
        drop(state);
        wake.notify_one();
    }
}

impl KeyRequestQueue {
    /// With the rates of the configuration; those of the defaults when it says nothing of key requests, since a stock
    /// authd or a keypolld with a file of its own may serve them all the same.
    pub fn new(settings: Option<&Settings>, now: Instant) -> Self {
        let gate = settings.map_or_else(
            || Gate::new(&Settings::default(), now),
            |settings| Gate::new(settings, now),
        );
        Self(Arc::new(Shared {
            counters: Counters::default(),
            is_heard: AtomicBool::new(false),
            wake: Notify::new(),
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                known: HashSet::new(),
                gate,
            }),
        }))
    }

    /// Its line of the status.
    pub fn queue(&self) -> QueueStatus {
        QueueStatus {
            name: "key requests".to_owned(),
            used: u64::try_from(self.state().waiting.len()).unwrap_or(u64::MAX),
            capacity: u64::try_from(QUEUE).unwrap_or(u64::MAX),
            unit: "requests".to_owned(),
            dropped: self.0.counters.key_requests_dropped_total.value(),
        }
    }

    /// What became of requests.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Whether somebody takes requests.
    pub fn is_heard(&self) -> bool {
        self.0.is_heard.load(Ordering::Relaxed)
    }

    /// Sends until told to stop.
    pub async fn send_to(self, path: PathBuf, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.send_for_ever(&path) => {}
        }
    }

    async fn send_for_ever(&self, path: &PathBuf) {
        loop {
            match UnixDatagram::unbound().and_then(|socket| socket.connect(path).map(|()| socket)) {
                Ok(socket) => {
                    self.hear(true);
                    self.send_on(&socket).await;
                }
                Err(error) => {
                    self.hear(false);
                    tracing::trace!(%error, "nobody takes key requests");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Says when it changes.
    fn hear(&self, is_heard: bool) {
        match (self.0.is_heard.swap(is_heard, Ordering::Relaxed), is_heard) {
            (false, true) => tracing::info!("keys of unknown agents are asked for from now on"),
            (true, false) => {
                let mut state = self.state();
                // Their agents come again; old requests would only be a burst for whoever listens next.
                state.waiting.clear();
                state.known.clear();
                drop(state);
                tracing::info!("nobody takes key requests any more");
            }
            _ => {}
        }
    }

    /// Sends on one connection, until it is of no more use.
    async fn send_on(&self, socket: &UnixDatagram) {
        loop {
            let Some(text) = self.first() else {
                self.0.wake.notified().await;
                continue;
            };
            match timeout(SEND_DEADLINE, socket.send(text.as_bytes())).await {
                Ok(Ok(_)) => {
                    self.remove(&text);
                    self.0.counters.key_requests_sent_total.increment();
                }
                Ok(Err(error)) if is_full(&error) => sleep(NO_BUFFERS_PAUSE).await,
                // The listener has gone; the request goes to the next one.
                Ok(Err(_)) => return,
                // It is there and does not read.
                Err(_) => {
                    self.remove(&text);
                    self.0.counters.key_requests_dropped_total.increment();
                }
            }
        }
    }

    fn first(&self) -> Option<String> {
        self.state().waiting.front().cloned()
    }

    fn remove(&self, text: &str) {
        let mut state = self.state();
        if state.waiting.front().is_some_and(|first| first == text) {
            state.waiting.pop_front();
        }
        state.known.remove(text);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// ENOBUFS: the system has no room for another datagram now.
fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32)
}

#[cfg(test)]
mod tests;
