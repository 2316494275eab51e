//! What the network's workers and the roster share about one agent.
//!
//! Workers and roster meet only here and in the [`News`] queue. A worker touches a slot for every message, so all that
//! a plain event needs is one or two atomic stores; the only lock, around the route, is taken by control messages and
//! by sends.
//!
//! **Invariant:** whoever holds a slot may read it for ever; whether it is still the agent's slot is a question to the
//! key table. A slot whose line left `client.keys` is never heard again.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_proto::{
    agent::{AgentId, AgentStatus},
    keys::{address::RegisteredAddress, cipher::CipherKeys, file::KeyEntry},
    local::{Layout, analysis::Source},
    transport::{counter::Counter, envelope::CryptoForm, keepalive::Family},
};

use crate::analysis::Mark;

mod counts;
mod millis;
mod news;
mod said;

pub use self::{
    counts::{Counts, Message},
    millis::Millis,
    news::{Courier, Ending, News, SendError, StartupOutcome},
    said::Said,
};

/// How much of the derived keys depends on the key alone.
const AES_KEY_LEN: usize = 32;

/// An agent that brings no more in a second is quiet: some hundred events.
const QUIET_BYTES: u64 = 32 * 1024;
/// Bits for the bytes of a second.
const RECENT_BITS: u32 = 28;
const RECENT_MASK: u64 = (1 << RECENT_BITS) - 1;
/// So often an agent's counters are complained about.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);
/// So often workers tell of two who use one key.
const CONFLICT_PAUSE: Duration = Duration::from_secs(1);

/// What carried a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A stream of framed messages.
    Tcp,
    /// One message a datagram.
    Udp,
}

impl Protocol {
    /// The word in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A TCP connection of this process; numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

impl ConnectionId {
    const WORKER_SHIFT: u32 = 48;
    /// Before every connection of every worker.
    pub(crate) const FIRST: Self = Self(0);

    /// The `sequence`th connection of a worker. Sequences begin at 1, so that no connection has number 0.
    pub fn new(worker: usize, sequence: u64) -> Self {
        Self(((worker as u64) << Self::WORKER_SHIFT) | (sequence & ((1 << Self::WORKER_SHIFT) - 1)))
    }

    /// The worker that serves it.
    pub fn worker(self) -> usize {
        usize::try_from(self.0 >> Self::WORKER_SHIFT).unwrap_or(usize::MAX)
    }

    /// As a number, for logs.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Where answers to an agent go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Into the connection that its last control message came over.
    Tcp {
        /// The connection, which knows its worker.
        connection: ConnectionId,
        /// The other end.
        peer: SocketAddr,
    },
    /// To the address that its last control message came from.
    Udp {
        /// The worker that received it, and sends the answers.
        worker: usize,
        /// Which of the worker's sockets: answers leave from the one that was asked.
        socket: usize,
        /// Address and port of the agent.
        peer: SocketAddr,
    },
}

impl Route {
    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        match self {
            Self::Tcp { peer, .. } | Self::Udp { peer, .. } => *peer,
        }
    }

    /// What carries the messages.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Tcp { .. } => Protocol::Tcp,
            Self::Udp { .. } => Protocol::Udp,
        }
    }

    /// The worker that sends on it.
    pub fn worker(&self) -> usize {
        match self {
            Self::Tcp { connection, .. } => connection.worker(),
            Self::Udp { worker, .. } => *worker,
        }
    }
}

/// What workers and roster share about one agent. One per key line, kept over key reloads while id, name, address and
/// key stay the same.
pub struct AgentSlot {
    /// The id, as the key line has it.
    pub id: AgentId,
    /// The name.
    pub name: Arc<str>,
    /// Where it may talk from.
    pub address: RegisteredAddress,
    /// The keys of its envelope.
    pub keys: CipherKeys,
    heard: AtomicU64,
    /// Where the roster keeps what it knows of the agent. A hint, for the roster alone.
    place: AtomicU32,
    status: AtomicU8,
    revival_told: AtomicBool,
    conflict_told: AtomicU64,
    complained: AtomicU64,
    form: AtomicU8,
    family: AtomicU8,
    /// Its last keepalive, from which family and release were read.
    said: Mutex<Option<Arc<Said>>>,
    /// Major and minor number of its version, 0 while unknown.
    release: AtomicU32,
    /// A file is on its way to it.
    receives_file: AtomicBool,
    counts: Counts,
    owner: AtomicU64,
    route: Mutex<Option<Route>>,
    received: AtomicU64,
    received_written: AtomicU64,
    received_loaded: AtomicBool,
    received_retired: AtomicBool,
    source: OnceLock<Source>,
    /// The second in which it brought events last, and how many bytes.
    recent: AtomicU64,
    /// Behind which of its events the next one must stay.
    mark: AtomicU64,
    events: AtomicU64,
    event_bytes: AtomicU64,
    events_dropped: AtomicU64,
}

impl AgentSlot {
    /// The slot of a key line that nothing was heard of yet.
    pub fn new(entry: &KeyEntry) -> Self {
        Self {
            id: entry.id.clone(),
            name: entry.name.as_str().into(),
            address: entry.address.clone(),
            keys: CipherKeys::derive(entry.id.as_str(), &entry.name, entry.key.expose()),
            heard: AtomicU64::new(0),
            place: AtomicU32::new(u32::MAX),
            status: AtomicU8::new(AgentStatus::NeverConnected.code()),
            revival_told: AtomicBool::new(false),
            conflict_told: AtomicU64::new(0),
            complained: AtomicU64::new(0),
            form: AtomicU8::new(form_code(CryptoForm::Blowfish)),
            family: AtomicU8::new(0),
            said: Mutex::new(None),
            release: AtomicU32::new(0),
            receives_file: AtomicBool::new(false),
            counts: Counts::default(),
            owner: AtomicU64::new(0),
            route: Mutex::new(None),
            received: AtomicU64::new(0),
            received_written: AtomicU64::new(0),
            received_loaded: AtomicBool::new(false),
            received_retired: AtomicBool::new(false),
            source: OnceLock::new(),
            recent: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            events: AtomicU64::new(0),
            event_bytes: AtomicU64::new(0),
            events_dropped: AtomicU64::new(0),
        }
    }

    /// The slot of a line whose name or key was changed. When the id and the address text are the old ones the agent
    /// is still taken to sit where it sat: what was heard and where answers go stay, as with the stock manager. Its
    /// counters stay only with the key: whoever has another one counts from the beginning, and cannot be replayed with
    /// the old.
    #[must_use]
    pub fn succeed(entry: &KeyEntry, old: &Self) -> Self {
        let new = Self::new(entry);
        new.status.store(old.status.load(Ordering::Relaxed), Ordering::Relaxed);
        if new.has_key_of(old) {
            new.received
                .store(old.received.load(Ordering::Relaxed), Ordering::Relaxed);
            new.received_loaded
                .store(old.received_loaded.load(Ordering::Relaxed), Ordering::Relaxed);
        } else {
            new.received_loaded.store(true, Ordering::Relaxed);
        }
        if new.address.text() == old.address.text() {
            new.heard.store(old.heard.load(Ordering::Relaxed), Ordering::Relaxed);
            new.form.store(old.form.load(Ordering::Relaxed), Ordering::Relaxed);
            new.family.store(old.family.load(Ordering::Relaxed), Ordering::Relaxed);
            new.release
                .store(old.release.load(Ordering::Relaxed), Ordering::Relaxed);
            new.receives_file
                .store(old.receives_file.load(Ordering::Relaxed), Ordering::Relaxed);
            if let Some(route) = old.route() {
                new.bind(route);
            }
        }
        new
    }

    /// Whether the key itself is the same; the name has a part in the derived keys, but not in those of AES.
    pub(crate) fn has_key_of(&self, other: &Self) -> bool {
        let of_key = |slot: &Self| slot.keys.expose().first_chunk::<AES_KEY_LEN>().copied();
        of_key(self) == of_key(other)
    }

    /// When the last valid message came, or [`Millis::NEVER`] in this process.
    pub fn heard(&self) -> Millis {
        Millis(self.heard.load(Ordering::Relaxed))
    }

    /// A valid message came. Also called while its connection is paused by us, since it may be talking all the time.
    pub fn hear(&self, now: Millis) {
        self.heard.fetch_max(now.0, Ordering::Relaxed);
    }

    /// Where the roster keeps the agent, as the roster said last. Whoever sits there may be another by now.
    pub(crate) fn place(&self) -> u32 {
        self.place.load(Ordering::Relaxed)
    }

    /// Only the roster calls this.
    pub(crate) fn set_place(&self, place: u32) {
        self.place.store(place, Ordering::Relaxed);
    }

    /// The status that the roster gave it last.
    pub fn status(&self) -> AgentStatus {
        AgentStatus::from_code(self.status.load(Ordering::Relaxed)).unwrap_or(AgentStatus::NeverConnected)
    }

    /// Only the roster calls this.
    pub fn set_status(&self, status: AgentStatus) {
        self.status.store(status.code(), Ordering::Relaxed);
        self.revival_told.store(false, Ordering::Relaxed);
    }

    /// Whether an event or answer heard now is news to the roster: the agent was away, and nobody said so since its
    /// status was last set.
    pub(crate) fn revival_is_news(&self) -> bool {
        matches!(self.status(), AgentStatus::Disconnected | AgentStatus::NeverConnected)
            && !self.revival_told.swap(true, Ordering::Relaxed)
    }

    /// The news of the revival could not be told; the next message tries again.
    pub(crate) fn revival_untold(&self) {
        self.revival_told.store(false, Ordering::Relaxed);
    }

    /// Whether a second is over since a conflict about its key was told; it counts as told now.
    pub(crate) fn conflict_is_due(&self, now: Millis) -> bool {
        is_due(&self.conflict_told, CONFLICT_PAUSE, now)
    }

    /// The crypto form of its latest valid message; [`CryptoForm::Blowfish`] before the first.
    pub fn form(&self) -> CryptoForm {
        form_of(self.form.load(Ordering::Relaxed))
    }

    pub(crate) fn set_form(&self, form: CryptoForm) {
        self.form.store(form_code(form), Ordering::Relaxed);
    }

    /// Whose agent its last keepalive says it is.
    pub fn family(&self) -> Option<Family> {
        match self.family.load(Ordering::Relaxed) {
            1 => Some(Family::Wazuh),
            2 => Some(Family::Ossec),
            _ => None,
        }
    }

    pub(crate) fn set_family(&self, family: Family) {
        let code = match family {
            Family::Wazuh => 1,
            Family::Ossec => 2,
        };
        self.family.store(code, Ordering::Relaxed);
    }

    /// Its keepalive has come, of which this is the text behind `#!-`. Family and release are known when it is back.
    pub(crate) fn say(&self, text: &str) -> Arc<Said> {
        let mut last = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(said) if said.keepalive().says_the_same(text) => Arc::clone(said),
            _ => {
                let said = Arc::new(Said::new(text));
                let fields = said.keepalive().fields();
                if let Some(family) = fields.family() {
                    self.set_family(family);
                }
                if let Some(version) = fields.version {
                    self.set_version(version);
                }
                Arc::clone(last.insert(Arc::clone(&said)))
            }
        }
    }

    /// Major and minor number of the version that it named, if it named one.
    pub fn release(&self) -> Option<(u16, u16)> {
        let packed = self.release.load(Ordering::Relaxed);
        (packed != 0).then_some(((packed >> 16) as u16, (packed & 0xffff) as u16))
    }

    /// It names its version: `v4.14.7`, `Wazuh v4.14.7`, `OSSEC HIDS v4.2.0`. One without numbers says nothing.
    pub(crate) fn set_version(&self, version: &str) {
        let numbers = version.rsplit('v').next().unwrap_or_default();
        let mut numbers = numbers.split('.').map(str::parse::<u16>);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            let packed = (u32::from(major) << 16) | u32::from(minor);
            self.release.store(packed, Ordering::Relaxed);
        }
    }

    /// Whether a file is on its way to it: until it has arrived, only messages may be sent that do not destroy it.
    pub fn receives_file(&self) -> bool {
        self.receives_file.load(Ordering::Relaxed)
    }

    /// Whoever sends the file says when it begins and when it has ended, however it ended.
    pub fn set_receives_file(&self, receives: bool) {
        self.receives_file.store(receives, Ordering::Relaxed);
    }

    /// Messages from it and to it, by kind.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Where answers go, if the agent has said a control message that binds and its connection is still there.
    pub fn route(&self) -> Option<Route> {
        *self.lock_route()
    }

    /// Answers go here from now on. Gives back where they went before.
    pub(crate) fn bind(&self, route: Route) -> Option<Route> {
        let mut place = self.lock_route();
        let before = place.replace(route);
        let owner = match route {
            Route::Tcp { connection, .. } => connection.0,
            Route::Udp { .. } => 0,
        };
        self.owner.store(owner, Ordering::Relaxed);
        before
    }

    /// The connection is gone. Says whether answers went there until now.
    pub(crate) fn unbind(&self, connection: ConnectionId) -> bool {
        let mut place = self.lock_route();
        let was_bound = matches!(*place, Some(Route::Tcp { connection: bound, .. }) if bound == connection);
        if was_bound {
            *place = None;
            self.owner.store(0, Ordering::Relaxed);
        }
        was_bound
    }

    /// The TCP connection that the agent is bound to.
    pub(crate) fn owner(&self) -> Option<ConnectionId> {
        match self.owner.load(Ordering::Relaxed) {
            0 => None,
            number => Some(ConnectionId(number)),
        }
    }

    /// The counters of the last message that was taken, if its file does not hold them.
    pub(crate) fn received_unwritten(&self) -> Option<Counter> {
        if self.received_retired.load(Ordering::Relaxed) {
            return None;
        }
        let received = self.received.load(Ordering::Relaxed);
        (received != self.received_written.load(Ordering::Relaxed)).then(|| unpack(received))
    }

    /// Whatever counters come next are taken.
    pub(crate) fn forget_received(&self) {
        self.received_loaded.store(true, Ordering::Relaxed);
        self.received_written.store(0, Ordering::Relaxed);
        self.received.store(0, Ordering::Relaxed);
    }

    /// The counters that its file was last given, if it was given any.
    pub(crate) fn last_written(&self) -> Option<Counter> {
        match self.received_written.load(Ordering::Relaxed) {
            0 => None,
            written => Some(unpack(written)),
        }
    }

    /// Whether a minute is over since its counters were complained about; it counts as done now.
    pub(crate) fn complaint_is_due(&self, now: Millis) -> bool {
        is_due(&self.complained, COMPLAINT_PAUSE, now)
    }

    /// This slot's counters are of no use any more, and must not come back through the file.
    pub(crate) fn retire_received(&self) {
        self.received_retired.store(true, Ordering::Relaxed);
    }

    /// The agent's file holds these counters now.
    pub(crate) fn received_written(&self, counter: Counter) {
        self.received_written.store(pack(counter), Ordering::Relaxed);
    }

    /// Records the counters of a message and gives back the highest ones before it.
    pub(crate) fn record_if_newer(&self, counter: Counter) -> Counter {
        unpack(self.received.fetch_max(pack(counter), Ordering::Relaxed))
    }

    /// Records the counters of a message whatever they are.
    pub(crate) fn record(&self, counter: Counter) {
        self.received.store(pack(counter), Ordering::Relaxed);
    }

    /// Whether the counters kept on disk still have to be read; says yes once.
    pub(crate) fn must_load_received(&self) -> bool {
        !self.received_loaded.load(Ordering::Relaxed) && !self.received_loaded.swap(true, Ordering::Relaxed)
    }

    /// How the analysis daemon is told whose event it is. The layout is that of the home, always the same.
    pub(crate) fn source(&self, layout: Layout) -> &Source {
        self.source
            .get_or_init(|| Source::new(layout, &self.id, &self.name, &self.address))
    }

    /// Counts an event, for the list of top talkers, and for knowing who brings much.
    pub(crate) fn count_event(&self, bytes: usize, now: Millis) {
        // Two workers that count at once may lose a count; nothing but a mild judgement hangs on it.
        let second = now.0 / 1000;
        let recent = self.recent.load(Ordering::Relaxed);
        let before = if recent >> RECENT_BITS == second {
            recent & RECENT_MASK
        } else {
            0
        };
        let bytes_now = before.saturating_add(bytes as u64).min(RECENT_MASK);
        self.recent
            .store((second << RECENT_BITS) | bytes_now, Ordering::Relaxed);
        self.events.fetch_add(1, Ordering::Relaxed);
        self.event_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Behind which event in its worker's slow lane its next one must stay.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.mark.load(Ordering::Relaxed))
    }

    pub(crate) fn set_mark(&self, mark: Mark) {
        self.mark.store(mark.0, Ordering::Relaxed);
    }

    /// Whether it has brought no more than a little in this second.
    pub(crate) fn is_quiet(&self, now: Millis) -> bool {
        let recent = self.recent.load(Ordering::Relaxed);
        recent >> RECENT_BITS != now.0 / 1000 || recent & RECENT_MASK <= QUIET_BYTES
    }

    /// Counts an event that was dropped because nobody took it.
    pub(crate) fn count_dropped_event(&self) {
        self.events_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Events taken from it, their bytes, and how many of them were dropped, since the slot was made.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            events: self.events.load(Ordering::Relaxed),
            bytes: self.event_bytes.load(Ordering::Relaxed),
            dropped: self.events_dropped.load(Ordering::Relaxed),
        }
    }

    fn lock_route(&self) -> MutexGuard<'_, Option<Route>> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AgentSlot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AgentSlot({} {})", self.id, self.name)
    }
}

/// Whether a pause is over since the moment in `last`, which is now from then on.
fn is_due(last: &AtomicU64, pause: Duration, now: Millis) -> bool {
    let before = Millis(last.load(Ordering::Relaxed));
    let due = before.is_never() || now.since(before) >= pause;
    if due {
        last.store(now.0, Ordering::Relaxed);
    }
    due
}

/// What an agent sent in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Events taken.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them were dropped.
    pub dropped: u64,
}

/// IPv4 behind IPv6's mapped form is IPv4: that is how addresses are registered and compared.
pub(crate) fn plain_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn pack(counter: Counter) -> u64 {
    (u64::from(counter.global) << 32) | u64::from(counter.local)
}

fn unpack(packed: u64) -> Counter {
    Counter {
        global: u32::try_from(packed >> 32).unwrap_or(u32::MAX),
        local: u32::try_from(packed & u64::from(u32::MAX)).unwrap_or(u32::MAX),
    }
}

fn form_code(form: CryptoForm) -> u8 {
    match form {
        CryptoForm::Blowfish => 0,
        CryptoForm::WazuhAes => 1,
        CryptoForm::OssecAes => 2,
    }
}

fn form_of(code: u8) -> CryptoForm {
    match code {
        1 => CryptoForm::WazuhAes,
        2 => CryptoForm::OssecAes,
        _ => CryptoForm::Blowfish,
    }
}
