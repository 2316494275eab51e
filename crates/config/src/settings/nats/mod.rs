//! `<nats>`: publishing to a NATS server.

mod control;
mod escalation;
mod walk;

use std::{path::PathBuf, time::Duration};

use muster_proto::paths;
use serde::{Serialize, Serializer};

pub use self::control::{Control, ControlKey, ControlRole};
use crate::{limits, secret::Secret};

/// The `<nats>` block. Paths are relative to the home unless absolute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nats {
    /// Whether anything is published. Off without the block, on with it.
    pub enabled: bool,
    /// The servers, as URLs without credentials. Never empty when enabled.
    pub servers: Vec<String>,
    /// A `.creds` file.
    pub credentials_file: Option<PathBuf>,
    /// A file with an nkey seed.
    pub nkey_file: Option<PathBuf>,
    /// A user name, which needs a password.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A token.
    pub token: Option<Secret>,
    /// What every subject begins with.
    pub subject_prefix: String,
    /// Our client certificate; needs `tls_key`.
    pub tls_cert: Option<PathBuf>,
    /// Its private key; needs `tls_cert`.
    pub tls_key: Option<PathBuf>,
    /// The CA of the server; the system's when absent.
    pub tls_ca: Option<PathBuf>,
    /// The name of this manager in events; see [`crate::Settings::node_name`].
    pub node_name: Option<String>,
    /// Failures in a row after which the state is *degraded*; zero: never. The daemon goes on trying for ever.
    pub max_reconnects: u32,
    /// Time between two tries.
    #[serde(serialize_with = "crate::json::seconds")]
    pub reconnect_delay: Duration,
    /// TLS becomes mandatory; with recipients, bodies are sealed too.
    pub encrypt_messages: bool,
    /// Whether events are signed.
    pub message_signing: bool,
    /// Whether an audit trail is kept and published.
    pub audit_logging: bool,
    /// The signing key's seed file.
    pub signing_key: PathBuf,
    /// The public half of the key that vouches for signing keys, and whose seed lies elsewhere.
    pub trust_key: Option<String>,
    /// How long a new signing key is announced before it signs.
    #[serde(serialize_with = "crate::json::seconds")]
    pub key_overlap: Duration,
    /// Who can open sealed bodies.
    pub recipients: Vec<Recipient>,
    /// Which families are sealed.
    pub encrypt: Encrypt,
    /// How events are delivered.
    pub publish: Publish,
    /// Where events wait.
    pub spool: Spool,
    /// The form of bodies.
    pub format: EventFormat,
    /// Which keepalive events are published.
    pub keepalive_events: KeepaliveEvents,
    /// Whether keepalives of agents are published too, of each agent at most one in its interval.
    pub keepalive_received: bool,
    /// The key-value bucket that mirrors the state of agents, as it was written; see [`Nats::bucket`].
    pub kv: Option<Kv>,
    /// How managers that share a fleet agree on who has which agent, if they do.
    pub ownership: Option<Ownership>,
    /// Requests that may come back over NATS.
    pub control: Control,
    /// Who may send them.
    pub control_keys: Vec<ControlKey>,
    /// Whether the rules of this manager hear of lost events, and of a spool that takes none.
    pub local_alerts: bool,
    /// `security.source` in event bodies.
    pub source: String,
    /// When a disconnection that goes on is published again, one level up each time; empty = never.
    #[serde(serialize_with = "crate::json::all_seconds")]
    pub escalation: Vec<Duration>,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            enabled: false,
            servers: Vec::new(),
            credentials_file: None,
            nkey_file: None,
            user: None,
            password: None,
            token: None,
            subject_prefix: limits::SUBJECT_PREFIX.to_owned(),
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            node_name: None,
            max_reconnects: 0,
            reconnect_delay: limits::RECONNECT_DELAY,
            encrypt_messages: false,
            message_signing: false,
            audit_logging: false,
            signing_key: limits::SIGNING_KEY.into(),
            trust_key: None,
            key_overlap: limits::KEY_OVERLAP,
            recipients: Vec::new(),
            encrypt: Encrypt::default(),
            publish: Publish::default(),
            spool: Spool::default(),
            format: EventFormat::Native,
            keepalive_events: KeepaliveEvents::All,
            keepalive_received: false,
            kv: None,
            ownership: None,
            control: Control::default(),
            control_keys: Vec::new(),
            local_alerts: true,
            source: limits::EVENT_SOURCE.to_owned(),
            escalation: limits::ESCALATION.to_vec(),
        }
    }
}

impl Nats {
    /// The bucket of agents, if it and its neighbours, those of managers and of signing keys, are to be used. Without
    /// `<kv>` they are used where the broker has them.
    pub fn bucket(&self) -> Option<&str> {
        match &self.kv {
            None if self.publish.mode == PublishMode::Core => None,
            None => Some(limits::KV_BUCKET),
            Some(kv) => kv.enabled.then_some(&kv.bucket),
        }
    }

    /// Whether new agents get ids of blocks that this manager has leased, and no others.
    pub fn leases_ids(&self) -> bool {
        self.enabled && self.ownership.as_ref().is_some_and(|ownership| ownership.ids)
    }

    /// Whether it is a fault when the broker has no buckets: they were asked for.
    pub fn insists_on_buckets(&self) -> bool {
        self.kv.as_ref().is_some_and(|kv| kv.enabled)
    }
}

/// `<recipient id="...">X...</recipient>`: somebody who can open sealed bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recipient {
    /// The name in the header of a sealed event.
    pub id: String,
    /// The public xkey.
    pub key: String,
}

/// `<encrypt families="..."/>`: which families are sealed when there are recipients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Encrypt {
    /// The families.
    pub families: Vec<Family>,
}

impl Default for Encrypt {
    fn default() -> Self {
        Self {
            families: vec![Family::Status, Family::Alerts, Family::Osquery, Family::Enrollment],
        }
    }
}

/// A family of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Keepalives.
    Keepalive,
    /// Status changes.
    Status,
    /// Enrollment.
    Enrollment,
    /// Key polling.
    Keypoll,
    /// Rule alerts.
    Alerts,
    /// Archives.
    Archives,
    /// Agentless hosts.
    Agentless,
    /// osquery.
    Osquery,
}

/// `<publish mode="..." window="..." ack_timeout="..."/>`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Publish {
    /// Over what.
    pub mode: PublishMode,
    /// Events that may be on their way without an acknowledgement.
    pub window: u32,
    /// How long to wait for one.
    #[serde(serialize_with = "crate::json::seconds")]
    pub ack_timeout: Duration,
    /// Events a second while the spool is drained; zero: as fast as they are taken.
    pub drain_rate: u32,
}

impl Default for Publish {
    fn default() -> Self {
        Self {
            mode: PublishMode::Auto,
            window: limits::PUBLISH_WINDOW,
            ack_timeout: limits::PUBLISH_ACK_TIMEOUT,
            drain_rate: 0,
        }
    }
}

/// Over what events are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishMode {
    /// JetStream where a stream takes the subject, core NATS otherwise.
    Auto,
    /// JetStream only: without a stream events wait.
    Jetstream,
    /// Core NATS only: no acknowledgement.
    Core,
}

/// `<spool dir="..." max_bytes="..." max_age="..." fsync="..."/>`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spool {
    /// The directory.
    pub dir: PathBuf,
    /// How much may wait, in bytes.
    pub max_bytes: u64,
    /// How long an event may wait.
    #[serde(serialize_with = "crate::json::seconds")]
    pub max_age: Duration,
    /// When what was written is forced to the disk.
    pub fsync: SpoolFsync,
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            dir: paths::SPOOL.into(),
            max_bytes: limits::SPOOL_MAX_BYTES,
            max_age: limits::SPOOL_MAX_AGE,
            fsync: SpoolFsync::Batch,
        }
    }
}

/// When the spool is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpoolFsync {
    /// Once for all events that came in during the last one. A producer hears "taken" only after it.
    Batch,
    /// Once for each event.
    Each,
    /// Never: a power cut may lose events that a producer was told are safe.
    Never,
}

/// The form of event bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventFormat {
    /// Our own.
    Native,
    /// Our own, with the headers of CloudEvents 1.0.
    Cloudevents,
    /// Our own, in the envelope of CloudEvents 1.0. As text `cloudevents-structured`.
    #[serde(rename = "cloudevents-structured")]
    CloudeventsStructured,
    /// OCSF, with what its release 1.3.0 has.
    Ocsf,
    /// OCSF, with what its release 1.9.0 has. As text `ocsf-1.9`.
    #[serde(rename = "ocsf-1.9")]
    Ocsf19,
}

/// Which keepalive events are published. As text: `all`, `sample:N`, `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepaliveEvents {
    /// Each one.
    All,
    /// One in so many of each agent, at least 1.
    Sample(u32),
    /// None.
    Off,
}

impl Serialize for KeepaliveEvents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Sample(every) => serializer.collect_str(&format_args!("sample:{every}")),
            Self::Off => serializer.serialize_str("off"),
        }
    }
}

/// `<kv enabled="..." bucket="..."/>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kv {
    /// Whether buckets are used at all.
    pub enabled: bool,
    /// The bucket's name.
    pub bucket: String,
}

impl Default for Kv {
    fn default() -> Self {
        Self {
            enabled: true,
            bucket: limits::KV_BUCKET.to_owned(),
        }
    }
}

/// `<ownership bucket="..." ids="..."/>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ownership {
    /// The bucket's name.
    pub bucket: String,
    /// Whether new agents get ids of blocks that this manager has leased.
    pub ids: bool,
}

impl Default for Ownership {
    fn default() -> Self {
        Self {
            bucket: limits::OWNER_BUCKET.to_owned(),
            ids: false,
        }
    }
}
