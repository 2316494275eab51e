//! What the configuration means, once it has been read and checked: no `Option` that cannot truly be absent,
//! durations and sizes typed, and a default for everything.

mod agentless;
mod auth;
mod global;
mod internal;
mod key_request;
mod nats;
mod remote;

pub use agentless::{Agentless, AgentlessHost, Elevation};
pub use auth::{Auth, AuthLimits, Force};
pub use global::{Cluster, Global, Layout, LogFormat, Logging, Muster};
pub use internal::{AuthInternal, DebugLevel, Internal, MonitordInternal, RemotedInternal};
pub use key_request::{ExecMode, KeyRequest};
pub use nats::{
    Control, ControlKey, ControlRole, Encrypt, EventFormat, Family, KeepaliveEvents, Kv, Nats, Ownership, Publish,
    PublishMode, Recipient, Spool, SpoolFsync,
};
pub use remote::{
    Connection, CryptoAccept, KeyConflict, ManagerKeepalive, Probe, Protocols, Remote, RemoteLimits, WhenFull,
};

use serde::Serialize;

pub use crate::value::{ManagerVersion, Rate};
use crate::walk::{Block, Origin, Repeated, Walk};

/// Everything that the daemons read from `etc/ossec.conf` and the internal options.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Settings {
    /// `<muster>`: our own options that belong to no daemon alone.
    pub muster: Muster,
    /// `<global>`: the options of the stock block that concern agents.
    pub global: Global,
    /// `<cluster>`: only the node's name is ours.
    pub cluster: Cluster,
    /// `<logging>`: how log files are written.
    pub logging: Logging,
    /// Each `<remote>` block in the order of the file. Empty when there is none: remoted then has nothing to do.
    pub remotes: Vec<Remote>,
    /// `<auth>`: the enrollment daemon. Without the block it is disabled.
    pub auth: Auth,
    /// `<auth><key_request>` or the older `<wodle name="agent-key-polling">`. `None` when there is neither: the
    /// feature is off.
    pub key_request: Option<KeyRequest>,
    /// `<nats>`: publishing. Without the block it is disabled.
    pub nats: Nats,
    /// Each `<agentless>` block in the order of the file.
    pub agentless: Vec<Agentless>,
    /// `internal_options.conf` with `local_internal_options.conf` over it.
    pub internal: Internal,
}

impl Settings {
    /// The name by which this manager goes in events, if the configuration gives one: `<nats>` before `<muster>`
    /// before `<cluster>`. Otherwise the caller takes the host's name.
    pub fn node_name(&self) -> Option<&str> {
        let names = [&self.nats.node_name, &self.muster.node_name, &self.cluster.node_name];
        names.into_iter().find_map(|name| name.as_deref())
    }

    /// The settings as JSON: times in seconds, sizes in bytes, secrets masked.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The `<remote>` blocks that agents connect to.
    pub fn secure_remotes(&self) -> impl Iterator<Item = &Remote> {
        self.remotes
            .iter()
            .filter(|remote| remote.connection == Connection::Secure)
    }
}

/// The blocks of stock daemons that are not ours to read. They are passed over in silence.
const STOCK_BLOCKS: [&str; 42] = [
    "active-response",
    "agent-upgrade",
    "agent_config",
    "alerts",
    "anti_tampering",
    "aws-s3",
    "azure-logs",
    "cis-cat",
    "client",
    "client_buffer",
    "command",
    "database",
    "database_output",
    "decoder",
    "docker-listener",
    "email_alerts",
    "fluent-forward",
    "gcp-bucket",
    "gcp-pubsub",
    "github",
    "indexer",
    "integration",
    "labels",
    "localfile",
    "ms-graph",
    "office365",
    "open-scap",
    "osquery",
    "prelude",
    "reports",
    "rootcheck",
    "rule_test",
    "rules",
    "ruleset",
    "sca",
    "socket",
    "syscheck",
    "syscollector",
    "syslog_output",
    "task-manager",
    "vulnerability-detection",
    "vulnerability-detector",
];

/// The older home of `<key_request>`.
const KEY_POLLING: &str = "wodle@agent-key-polling";

impl Block for Settings {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.block(Origin::Own, "muster", &mut self.muster);
        walk.block(Origin::Stock, "global", &mut self.global);
        walk.block(Origin::Stock, "cluster", &mut self.cluster);
        walk.block(Origin::Stock, "logging", &mut self.logging);
        remote::Listeners::walk_all(&mut self.remotes, self.muster.layout, walk);
        self.walk_auth(walk);
        walk.block(Origin::Own, "nats", &mut self.nats);
        walk.blocks(Origin::Stock, "agentless", &mut self.agentless);
        walk.unused(&STOCK_BLOCKS);
        walk.unused(&["wodle"]);
    }
}

impl Settings {
    /// `<auth>` and both homes of the key request. The first `<key_request>` counts. What the older block says before
    /// it only stays where it names a source; what it says after it is ignored. So stock does it.
    fn walk_auth<W: Walk>(&mut self, walk: &mut W) {
        let key_request = self.key_request.take();
        // Only the older block can hold `force_insert`.
        let (mut old, new) = match key_request {
            Some(request) if request.force_insert.is_some() => (Some(key_request::Wodle(request)), None),
            request => (None, request),
        };
        let mut block = auth::AuthBlock {
            auth: std::mem::take(&mut self.auth),
            key_request: new,
        };
        walk.block(Origin::Stock, "auth", &mut block);
        walk.optional(Origin::Stock, KEY_POLLING, Repeated::Merged, &mut old);
        self.auth = block.auth;
        self.key_request = match (block.key_request, old) {
            (Some(new), Some(old)) if walk.order(KEY_POLLING) < walk.order("auth") => Some(new.with_sources_of(old.0)),
            (Some(new), Some(_)) => {
                walk.warning(
                    KEY_POLLING,
                    "this block is ignored, since <auth> before it has <key_request>",
                );
                Some(new)
            }
            (new, old) => new.or(old.map(|old| old.0)),
        };
    }
}
