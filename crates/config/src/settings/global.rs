//! The blocks that belong to no daemon alone: `<muster>`, `<global>`, `<cluster>`, `<logging>`.

use std::time::Duration;

use serde::Serialize;

use crate::{
    kind::{Special, maybe, span, text, word},
    limits,
    value::ManagerVersion,
    walk::{Block, Walk},
};

/// `<muster>`: our own options for all daemons.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Muster {
    /// The version that we present to agents, peers and event readers.
    pub manager_version: ManagerVersion,
    /// Whose sockets and file forms the home has.
    pub layout: Layout,
    /// The name of this manager in events; see [`crate::Settings::node_name`].
    pub node_name: Option<String>,
}

/// `<global>`: of the stock block, what concerns agents.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Global {
    /// Silence after which an agent is disconnected where no `<manager_keepalive>` says otherwise.
    #[serde(serialize_with = "crate::json::seconds")]
    pub agents_disconnection_time: Duration,
    /// How much longer until the alert about it is sent.
    #[serde(serialize_with = "crate::json::seconds")]
    pub agents_disconnection_alert_time: Duration,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            agents_disconnection_time: limits::AGENTS_DISCONNECTION_TIME,
            agents_disconnection_alert_time: Duration::ZERO,
        }
    }
}

/// `<cluster>`: a stock cluster's own block, of which we only use the name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cluster {
    /// The name of this node, if one is set.
    pub node_name: Option<String>,
}

/// `<logging>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Logging {
    /// Which log files are written.
    pub log_format: LogFormat,
}

/// The form of log files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines of text.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
    /// Both files.
    Both,
}

/// Whose sockets and file forms the home has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Told by what is there: `queue/ossec` means OSSEC, otherwise Wazuh.
    #[default]
    Auto,
    /// `queue/sockets/...`, events with agent ids.
    Wazuh,
    /// `queue/ossec/queue`, events without agent ids.
    Ossec,
}

const DAY: u64 = 86_400;

impl Default for ManagerVersion {
    fn default() -> Self {
        limits::MANAGER_VERSION
    }
}

/// What a node may be called: the name stands in headers, message ids and subjects.
pub(super) fn node_name() -> Special<String> {
    Special {
        accepts: "a name of 1 to 64 characters without spaces and ':'",
        read: |text| {
            let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != ':';
            let is_name = (1..=64).contains(&text.chars().count()) && text.chars().all(fits);
            is_name.then(|| text.to_owned()).into()
        },
        write: |name| Some(name.clone()),
    }
}

fn version() -> Special<ManagerVersion> {
    Special {
        accepts: "a version of three numbers, such as v4.14.7",
        read: |text| text.parse().ok().into(),
        write: |version| Some(version.to_string()),
    }
}

impl Block for Muster {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.own("manager_version", version(), &mut self.manager_version);
        let layouts = word(&[
            ("auto", Layout::Auto),
            ("wazuh", Layout::Wazuh),
            ("ossec", Layout::Ossec),
        ]);
        walk.own("layout", layouts, &mut self.layout);
        walk.own("node_name", maybe(node_name()), &mut self.node_name);
    }
}

/// What else stands in `<global>` and concerns analysis, mail and output.
const GLOBAL_OF_OTHERS: [&str; 36] = [
    "alerts_log",
    "custom_alert_output",
    "custom_alert_output_format",
    "email_from",
    "email_idsname",
    "email_log_source",
    "email_maxperhour",
    "email_notification",
    "email_reply_to",
    "email_to",
    "eps",
    "geoip6_db_path",
    "geoip_db_path",
    "geoipdb",
    "helo_server",
    "host_information",
    "integrity_checking",
    "jsonout_output",
    "limits",
    "logall",
    "logall_json",
    "max_output_size",
    "md5_allowlist",
    "memory_size",
    "picviz_output",
    "picviz_socket",
    "prelude_log_level",
    "prelude_output",
    "prelude_profile",
    "queue_size",
    "rootkit_detection",
    "rotate_interval",
    "smtp_server",
    "stats",
    "update_check",
    "white_list",
];

/// More of them, all about one output.
const GLOBAL_ZEROMQ: [&str; 4] = [
    "zeromq_client_cert",
    "zeromq_output",
    "zeromq_server_cert",
    "zeromq_uri",
];

impl Block for Global {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock(
            "agents_disconnection_time",
            span(1, 365 * DAY),
            &mut self.agents_disconnection_time,
        );
        walk.stock(
            "agents_disconnection_alert_time",
            span(0, 365 * DAY),
            &mut self.agents_disconnection_alert_time,
        );
        walk.unused(&GLOBAL_OF_OTHERS);
        walk.unused(&GLOBAL_ZEROMQ);
    }
}

/// The name that stock writes where there is none.
const NO_NODE_NAME: &str = "undefined";

impl Block for Cluster {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("node_name", maybe(text(255)), &mut self.node_name);
        if self.node_name.as_deref() == Some(NO_NODE_NAME) {
            self.node_name = None;
        }
        walk.foreign();
    }
}

fn log_format() -> Special<LogFormat> {
    Special {
        accepts: "'plain', 'json' or 'plain,json'",
        read: |text| {
            let mut words: Vec<_> = text.split(',').map(str::trim).collect();
            words.sort_unstable();
            let format = match words.as_slice() {
                ["plain"] => Some(LogFormat::Plain),
                ["json"] => Some(LogFormat::Json),
                ["json", "plain"] => Some(LogFormat::Both),
                _ => None,
            };
            format.into()
        },
        write: |format| {
            let word = match format {
                LogFormat::Plain => "plain",
                LogFormat::Json => "json",
                LogFormat::Both => "plain,json",
            };
            Some(word.to_owned())
        },
    }
}

impl Block for Logging {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("log_format", log_format(), &mut self.log_format);
        walk.foreign();
    }
}
