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
pub use auth::{Auth, AuthLimits, Force, Rate};
pub use global::{Cluster, Global, Layout, LogFormat, Logging, ManagerVersion, Muster};
pub use internal::{AuthInternal, DebugLevel, Internal, MonitordInternal, RemotedInternal};
pub use key_request::{ExecMode, KeyRequest};
pub use nats::{
    Control, ControlKey, ControlRole, Encrypt, EventFormat, Family, KeepaliveEvents, Kv, Nats, Publish, PublishMode,
    Recipient, Spool, SpoolFsync,
};
pub use remote::{
    Connection, CryptoAccept, KeyConflict, ManagerKeepalive, Probe, Protocols, Remote, RemoteLimits, WhenFull,
};

use serde::Serialize;

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

    /// The `<remote>` blocks that agents connect to.
    pub fn secure_remotes(&self) -> impl Iterator<Item = &Remote> {
        self.remotes
            .iter()
            .filter(|remote| remote.connection == Connection::Secure)
    }
}
