//! One line for the rules of this manager when events are lost, the disk takes none, or the node name is taken: what NATS
//! cannot tell just then, or nobody there might read.
//!
//! A datagram to the analysis daemon, such as `1:muster-natsd:{"muster":{…}}`, which the rules in `etc/rules` know. It never
//! waits; without a socket, or with a full one, the line is not said, since log and status say it anyway.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    time::{Duration, Instant},
};

use muster_proto::local::analysis::write_own_line;
use serde_json::{Value, json};

/// How long nothing more of its kind is said behind a line.
const QUIET: Duration = Duration::from_secs(60);
/// Who says it, as rules see it.
const PROGRAM: &str = "muster-natsd";

/// What the rules are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// Events were dropped, and nobody will get them.
    EventsDropped,
    /// The disk below the spool takes nothing.
    SpoolFails,
    /// Another manager publishes under our name.
    NodeNameTaken,
}

impl What {
    /// The kind of an act of the audit trail, if rules are to know of it.
    pub(crate) fn of_act(act: &str) -> Option<Self> {
        match act {
            "dropped" => Some(Self::EventsDropped),
            "node_name_taken" => Some(Self::NodeNameTaken),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::EventsDropped => "events_dropped",
            Self::SpoolFails => "spool_fails",
            Self::NodeNameTaken => "node_name_taken",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Alerts {
    socket: UnixDatagram,
    path: PathBuf,
    node: String,
    /// When each kind was said last, and how many were passed over since, of how many events.
    said: BTreeMap<What, (Instant, u64, u64)>,
}

impl Alerts {
    /// To the socket at `path`, which need not be there yet.
    pub(crate) fn new(path: PathBuf, node: &str) -> std::io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path,
            node: node.to_owned(),
            said: BTreeMap::new(),
        })
    }

    /// Says it, unless its kind was just said.
    pub(crate) fn tell(&mut self, what: What, detail: &Value, now: Instant) {
        let Some(line) = self.line(what, detail, now) else {
            return;
        };
        let mut datagram = Vec::new();
        write_own_line(&mut datagram, PROGRAM, line.as_bytes());
        if let Err(error) = self.socket.send_to(&datagram, &self.path) {
            tracing::debug!(%error, what = what.word(), "the analysis daemon does not take an alert");
        }
    }

    fn line(&mut self, what: What, detail: &Value, now: Instant) -> Option<String> {
        let count = detail["count"].as_u64().unwrap_or(0);
        let said = self.said.get_mut(&what);
        let (passed_over, events) = match said {
            Some((at, passed_over, events)) if now.duration_since(*at) < QUIET => {
                *passed_over += 1;
                *events += count;
                return None;
            }
            Some((_, passed_over, events)) => (*passed_over, *events),
            None => (0, 0),
        };
        self.said.insert(what, (now, 0, 0));
        // Words and numbers only, so that the shape stays the same: the rules' decoder makes a field of each member.
        let text = |name: &str| detail[name].as_str().unwrap_or("-").to_owned();
        let line = json!({"muster": {
            "daemon": "natsd",
            "alert": what.word(),
            "node": self.node,
            "reason": text(if what == What::EventsDropped { "reason" } else { "why" }),
            "stream": text("stream"),
            "producer": text("producer"),
            "count": count + events,
            "passed_over": passed_over,
        }});
        Some(line.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_said_once_a_minute_with_what_was_passed_over() {
        let mut alerts = Alerts::new(PathBuf::from("/nonexistent"), "mgr-a").expect("a socket");
        let now = Instant::now();
        let detail = json!({"count": 3, "reason": "spool_full", "stream": "MUSTER_ALERTS", "from_seq": 5});
        assert_eq!(
            alerts.line(What::EventsDropped, &detail, now).as_deref(),
            Some(
                r#"{"muster":{"alert":"events_dropped","count":3,"daemon":"natsd","node":"mgr-a","passed_over":0,"producer":"-","reason":"spool_full","stream":"MUSTER_ALERTS"}}"#
            )
        );
        assert_eq!(alerts.line(What::EventsDropped, &detail, now + QUIET / 2), None);
        let disk = alerts
            .line(What::SpoolFails, &json!({"why": "no space left"}), now)
            .expect("another kind");
        assert!(disk.contains(r#""alert":"spool_fails","count":0"#) && disk.contains(r#""reason":"no space left""#));
        let later = alerts
            .line(What::EventsDropped, &detail, now + QUIET)
            .expect("said again");
        assert!(
            later.contains(r#""count":6"#) && later.contains(r#""passed_over":1"#),
            "{later}"
        );
    }
}
