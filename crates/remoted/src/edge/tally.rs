//! What a worker counts. One writer for each set, so that counting costs a load and a store.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

macro_rules! tallies {
    ($($name:ident = $metric:literal, $doc:literal;)*) => {
        /// Everything that a worker counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Tally {
            $(#[doc = $doc] $name,)*
        }

        impl Tally {
            /// All of them, in the order of their declaration.
            pub const ALL: [Self; [$($metric),*].len()] = [$(Self::$name),*];

            /// The metric's name without the `muster_` prefix.
            pub fn metric(self) -> &'static str {
                match self {
                    $(Self::$name => $metric,)*
                }
            }
        }
    };
}

tallies! {
    BytesReceived = "remoted_received_bytes_total", "Bytes read from agents' sockets.";
    BytesSent = "remoted_sent_bytes_total", "Bytes written to agents' sockets.";
    MessagesReceived = "remoted_received_messages_total", "Messages, good and bad.";
    MessagesSent = "remoted_sent_messages_total", "Messages to agents.";
    Events = "remoted_events_total", "Valid events.";
    EventsForwarded = "remoted_events_forwarded_total", "Datagrams that the analysis daemon took.";
    EventsDroppedFull = "remoted_events_dropped_full_total", "Events lost because the analysis daemon takes too little.";
    EventsDroppedNoReader = "remoted_events_dropped_no_reader_total", "Events lost because nobody listens at the analysis socket.";
    EventsDroppedTooLong = "remoted_events_dropped_too_long_total", "Events lost because the kernel takes no datagram of their length.";
    EventsMalformed = "remoted_events_malformed_total", "Events without queue and location, which nobody can take (1106).";
    EventsMarker = "remoted_events_marker_total", "Signs of life in the form of events, which are not passed on.";
    ArchivesDropped = "remoted_archives_dropped_total", "Archive records lost because natsd takes too little.";
    Startups = "remoted_startups_total", "Startup messages.";
    StartupsRefused = "remoted_startups_refused_total", "Startup messages answered with an error.";
    Keepalives = "remoted_keepalives_total", "Keepalives.";
    Shutdowns = "remoted_shutdowns_total", "Shutdown messages.";
    Answers = "remoted_answers_total", "Answers to requests.";
    ControlUnknown = "remoted_control_unknown_total", "Control messages that say nothing we know.";
    Acks = "remoted_acks_total", "Acknowledgements sent.";
    Pings = "remoted_pings_total", "Pings answered.";
    RepliesDropped = "remoted_replies_dropped_total", "Messages to agents lost because their way was full or closed.";
    CommandsFailed = "remoted_commands_failed_total", "Messages that the roster wanted sent and whose agent was gone.";
    NewsDropped = "remoted_news_dropped_total", "Control messages over UDP that the roster had no room to hear of.";
    ConnectionsAccepted = "remoted_connections_accepted_total", "TCP connections.";
    ConnectionsClosed = "remoted_connections_closed_total", "TCP connections that ended.";
    ConnectionsEvicted = "remoted_connections_evicted_total", "Connections without a valid message that made room for others.";
    ConnectionsUnidentified = "remoted_connections_unidentified_total", "Connections closed because no valid message came in time.";
    ConnectionsRefused = "remoted_connections_refused_total", "Connections closed at once because there are too many.";
    ConnectionsOvertaken = "remoted_connections_overtaken_total", "Connections closed because the agent came back on another.";
    AcceptErrors = "remoted_accept_errors_total", "Times that the kernel could not give us a connection.";
    Pauses = "remoted_pauses_total", "Times that a connection was not read because the analysis daemon was slow.";
    FramesTooLong = "remoted_refused_frame_length_total", "Announced lengths over the limit.";
    RefusedPreface = "remoted_refused_proxy_header_total", "Connections of load balancers without a PROXY protocol header.";
    RefusedMalformed = "remoted_refused_malformed_total", "Messages that are none (1403).";
    RefusedUnknownId = "remoted_refused_unknown_id_total", "Messages with an id that nobody has (1408).";
    RefusedSource = "remoted_refused_source_total", "Messages with an id that may not come from there (1408).";
    RefusedAddress = "remoted_refused_address_total", "Messages without id from an address that nobody has (1213).";
    RefusedKey = "remoted_refused_key_total", "Messages sealed with another key (1404).";
    RefusedCorrupt = "remoted_refused_corrupt_total", "Damaged messages (1406, 2202 and others).";
    RefusedReplay = "remoted_refused_replay_total", "Messages whose counters were used before (1407, 1404).";
    RefusedConflict = "remoted_refused_key_in_use_total", "Messages of agents that are connected elsewhere.";
    RefusedCipher = "remoted_refused_cipher_total", "Messages in a cipher that the configuration does not accept.";
}

/// One worker's counts.
pub struct Tallies([AtomicU64; Tally::ALL.len()]);

impl Tallies {
    /// All zero.
    pub fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Tally::ALL.len()])
    }

    /// Counts one. Only the worker that owns the set may.
    pub fn count(&self, tally: Tally) {
        self.add(tally, 1);
    }

    /// Counts several. Only the worker that owns the set may.
    pub fn add(&self, tally: Tally, number: u64) {
        let place = &self.0[tally as usize];
        place.store(place.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
    }

    /// The count.
    pub fn read(&self, tally: Tally) -> u64 {
        self.0[tally as usize].load(Ordering::Relaxed)
    }
}

/// How full a worker is, as others may read it.
#[derive(Debug, Default)]
pub struct Gauges {
    analysis_bytes: AtomicUsize,
    analysis_down: AtomicBool,
}

impl Gauges {
    /// What waits for the analysis daemon, and whether nobody takes it.
    pub(crate) fn set_analysis(&self, bytes: usize, down: bool) {
        self.analysis_bytes.store(bytes, Ordering::Relaxed);
        self.analysis_down.store(down, Ordering::Relaxed);
    }

    /// Bytes that wait for the analysis daemon.
    pub fn analysis_bytes(&self) -> usize {
        self.analysis_bytes.load(Ordering::Relaxed)
    }

    /// Whether events came and nobody took them.
    pub fn analysis_down(&self) -> bool {
        self.analysis_down.load(Ordering::Relaxed)
    }
}

impl Default for Tallies {
    fn default() -> Self {
        Self::new()
    }
}
